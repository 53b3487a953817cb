//! The share of a file system that a side may fill.
//!
//! With `free` bytes free and `used` of its own in flight, a side may have `(free + used) / 2` in
//! flight, less a reserve: it leaves the other direction as much as it takes. Two directions settle
//! at a third each, `n` writers at one part of `n + 1` each, and the others alone never leave one
//! without space, since files in flight are taken and removed again.
//!
//! The reserve is for files that must be written in any case: the beats that acknowledge, which let
//! files be removed, and answers in `response.txt`. Data never takes it, so a file system with no
//! more than that free counts as full.

use std::io;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::{MAX_IN_FLIGHT, WINDOW};
use crate::session::shared_directory::{Free, SharedDirectory, Trouble};

/// Bytes that data leaves free, or an eighth of a file system that is smaller than eight of it.
const RESERVE: u64 = 1 << 20;

/// Number of files that data leaves free.
const RESERVED_FILES: u64 = 16;

/// A piece of at most this many bytes is never cut and may use the reserve: a question, an answer,
/// a goodbye.
const SMALL: usize = 4096;

/// Smallest size in bytes to which a piece is cut.
const SMALLEST_CUT: usize = 16 << 10;

/// Where this many bytes are free, the file system's answer is reused for [`ANSWER_KEPT_TIME`]: over NFS
/// asking is a round trip.
const PLENTY: u64 = 16 * WINDOW as u64;

/// See [`PLENTY`].
const ANSWER_KEPT_TIME: Duration = Duration::from_millis(100);

/// A side's knowledge of its file system.
#[derive(Debug, Default)]
pub(super) struct Space {
    asked: Option<(Option<Free>, Instant)>,
    /// Most bytes to try after the system refused for lack of space: halved with each refusal and
    /// doubled with each success. Covers quotas, and file systems that do not report their free
    /// space.
    refused: Option<usize>,
}

impl Space {
    /// Bytes of a piece of `left` bytes that may be written, with the given bytes and files in
    /// flight. `None`: nothing now.
    pub(super) fn allowance(
        &mut self,
        directory: &mut dyn SharedDirectory,
        left: usize,
        in_flight: (usize, usize),
        now: Instant,
    ) -> Option<usize> {
        if left <= SMALL {
            return Some(left);
        }
        let (used, files) = in_flight;
        let most = self.refused.unwrap_or(left);
        let Some(free) = self.free(directory, now) else {
            return Some(most);
        };
        let bytes = free.bytes.saturating_sub(reserve(&free));
        let spare_files = free.files.saturating_sub(RESERVED_FILES);
        let share = bytes.saturating_sub(used as u64) / 2;
        let files_share = spare_files.saturating_sub(files as u64) / 2;
        // With nothing of its own in flight a side goes on as long as any space is left.
        let least = SMALLEST_CUT.min(left);
        let (bytes, files) = match files {
            0 => (share.max(bytes.min(least as u64)), spare_files),
            _ => (share, files_share),
        };
        if bytes < least as u64 || files == 0 {
            return None;
        }
        Some(most.min(usize::try_from(bytes).unwrap_or(usize::MAX)))
    }

    /// Most bytes that the other side can have in flight.
    pub(super) fn peers_window(
        &mut self,
        directory: &mut dyn SharedDirectory,
        untold: usize,
        now: Instant,
    ) -> usize {
        // Too little to ask the file system for.
        if untold < SMALLEST_CUT {
            return WINDOW;
        }
        let Some(free) = self.free(directory, now) else {
            return WINDOW;
        };
        let bytes = free.bytes.saturating_sub(reserve(&free));
        usize::try_from(bytes).unwrap_or(WINDOW).min(WINDOW)
    }

    /// Notes that `payload` bytes were written.
    pub(super) fn wrote(&mut self, payload: usize) {
        self.refused = self
            .refused
            .map(|refused| refused.max(payload) * 2)
            .filter(|refused| *refused < WINDOW);
    }

    /// Notes that the system had no space for `payload` bytes.
    pub(super) fn refused(&mut self, payload: usize) {
        self.refused = Some((payload / 2).max(SMALLEST_CUT));
        self.asked = None;
    }

    /// Whether data finds no space now.
    pub(super) fn is_full(directory: &mut dyn SharedDirectory) -> bool {
        directory
            .free()
            .is_some_and(|free| free.bytes <= reserve(&free) || free.files <= RESERVED_FILES)
    }

    fn free(&mut self, directory: &mut dyn SharedDirectory, now: Instant) -> Option<Free> {
        if let Some((Some(free), at)) = self.asked
            && free.bytes >= PLENTY
            && free.files >= 16 * MAX_IN_FLIGHT as u64
            && now.saturating_duration_since(at) < ANSWER_KEPT_TIME
        {
            return Some(free);
        }
        let free = directory.free();
        self.asked = Some((free, now));
        free
    }
}

fn reserve(free: &Free) -> u64 {
    RESERVE.min(free.size / 8)
}

/// The error for a file system with no more than the reserve free.
pub(super) fn full() -> Trouble {
    Trouble::Full {
        context: "the session's file system is full".to_owned(),
        source: io::Error::from_raw_os_error(Errno::ENOSPC as i32),
    }
}

//! Device memory of one guest over all its sessions, each of which has a process of its own.
//!
//! The broker makes a page for the guest and gives it to the worker of each of its sessions. A worker writes how much its
//! session has to a word of its own, and reads those of the others before it takes more: so no one is asked, and the
//! broker, which clears the word of a worker that is gone, waits for nobody. Only workers of the same guest have the page.
//! One that was taken over can lie in it, to its own guest's sessions: it has the device, and could take memory without.
#![allow(unsafe_code)]

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::stat::fstat;
use rustix::fs::{MemfdFlags, memfd_create};

/// Bytes of the page: words of 64 bits. The first says how many follow that were ever used, one for each session.
const BYTES: usize = 1 << 13;
const WORDS: usize = BYTES / size_of::<u64>();

/// Sessions of one guest that can have a word.
pub const MOST_SESSIONS: usize = WORDS - 1;

const SIZE_SEALS: SealFlag = SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW);

/// The page as the broker has it, with the words that are in use.
#[derive(Debug)]
pub struct Page {
    file: std::fs::File,
    /// By word: the session that has it.
    sessions: Vec<Option<u64>>,
}

impl Page {
    /// A page without sessions.
    ///
    /// # Errors
    /// There is no memory or descriptor for it.
    pub fn new() -> io::Result<Self> {
        // Not by the C library: the one of XCP-ng's dom0 has no memfd_create.
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = std::fs::File::from(memfd_create("vgpu-guest-memory", flags)?);
        file.set_len(BYTES as u64)?;
        fcntl(
            &file,
            FcntlArg::F_ADD_SEALS(SIZE_SEALS | SealFlag::F_SEAL_SEAL),
        )?;
        Ok(Self {
            file,
            sessions: Vec::new(),
        })
    }

    /// The word of a session: its own, or the first that is free, which is 0 then.
    ///
    /// # Errors
    /// None is left, or it could not be cleared.
    pub fn word(&mut self, session: u64) -> io::Result<u32> {
        let own = self.sessions.iter().position(|it| *it == Some(session));
        let free = || self.sessions.iter().position(Option::is_none);
        let at = own.or_else(free).unwrap_or(self.sessions.len());
        if at >= MOST_SESSIONS {
            return Err(io::Error::other("its guest has too many sessions"));
        }
        if own.is_none() {
            self.write(1 + at, 0)?;
            if at == self.sessions.len() {
                self.write(0, at as u64 + 1)?;
                self.sessions.push(None);
            }
            self.sessions[at] = Some(session);
        }
        Ok(u32::try_from(at).expect("few sessions"))
    }

    /// The worker of a session is gone, and with it what it had of the device. Returns whether others have words.
    pub fn release(&mut self, session: u64) -> bool {
        if let Some(at) = self.sessions.iter().position(|it| *it == Some(session)) {
            self.sessions[at] = None;
            if let Err(error) = self.write(1 + at, 0) {
                log::error!("memory of session {session} counts on: {error}");
            }
        }
        self.sessions.iter().any(Option::is_some)
    }

    fn write(&self, word: usize, value: u64) -> io::Result<()> {
        let bytes = value.to_ne_bytes();
        self.file.write_all_at(&bytes, (word * bytes.len()) as u64)
    }
}

impl AsFd for Page {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The page as the worker of one session has it.
#[derive(Debug)]
pub struct GuestMemory {
    words: NonNull<AtomicU64>,
    own: usize,
}

// SAFETY: the words are atomic, and mapped until this is dropped.
unsafe impl Send for GuestMemory {}
// SAFETY: as above.
unsafe impl Sync for GuestMemory {}

impl GuestMemory {
    /// Maps the page that the broker has given; `word` is the session's own.
    ///
    /// # Errors
    /// It is no such page, or cannot be mapped.
    pub fn new(page: &OwnedFd, word: u32) -> io::Result<Self> {
        let own = usize::try_from(word).unwrap_or(MOST_SESSIONS);
        let seals = SealFlag::from_bits_retain(fcntl(page, FcntlArg::F_GET_SEALS)?);
        let size = usize::try_from(fstat(page)?.st_size).unwrap_or(0);
        if own >= MOST_SESSIONS || size != BYTES || !seals.contains(SIZE_SEALS) {
            return Err(io::Error::other("that is no page of a guest's memory"));
        }
        let bytes = NonZeroUsize::new(BYTES).expect("some");
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, where the kernel has room. The file is as long, and can neither shrink nor grow.
        let words = unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, page, 0) }?;
        Ok(Self {
            words: words.cast(),
            own,
        })
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: mapped in `new` with as many words, which are all accessed as atomics here; the broker writes to them
        // through the file, whole words at a time, and only to the first and to those that no worker has.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), WORDS) }
    }

    /// Bytes that the guest's other sessions have.
    pub fn of_others(&self) -> u64 {
        let (used, words) = self.words().split_first().expect("there are some");
        // Relaxed: a session that begins has nothing yet, and reads this one's word before it takes anything.
        let used = usize::try_from(used.load(Ordering::Relaxed)).unwrap_or(MOST_SESSIONS);
        let others = words.iter().take(used).enumerate();
        let others = others.filter(|(at, _)| *at != self.own);
        // Acquire: pairs with the others' stores in `set`.
        others.fold(0, |sum, (_, word)| {
            sum.saturating_add(word.load(Ordering::Acquire))
        })
    }

    /// From here on the session has so many bytes.
    pub fn set(&self, bytes: u64) {
        // Release: pairs with the load in `of_others`.
        self.words()[1 + self.own].store(bytes, Ordering::Release);
        // Of two sessions that take more at once, each then reads what the other has: both may be refused, but not both be
        // allowed.
        fence(Ordering::SeqCst);
    }
}

impl Drop for GuestMemory {
    fn drop(&mut self) {
        self.set(0);
        // SAFETY: mapped in `new` with this length, and nothing of it is used after this.
        let _ = unsafe { munmap(self.words.cast(), BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(page: &mut Page, id: u64) -> GuestMemory {
        let word = page.word(id).unwrap();
        GuestMemory::new(&page.as_fd().try_clone_to_owned().unwrap(), word).unwrap()
    }

    #[test]
    fn each_session_sees_what_the_others_have() {
        let mut page = Page::new().unwrap();
        let (one, two) = (session(&mut page, 7), session(&mut page, 9));
        one.set(5);
        two.set(u64::MAX);
        assert_eq!((one.of_others(), two.of_others()), (u64::MAX, 5));
        // As one that was killed, which says nothing.
        std::mem::forget(two);
        assert!(page.release(9));
        assert_eq!(one.of_others(), 0);
        let three = session(&mut page, 11);
        assert_eq!((page.word(11).unwrap(), three.of_others()), (1, 5));
        assert_eq!(page.sessions.len(), 2);
        drop(one);
        assert_eq!(three.of_others(), 0);
        assert!(page.release(7));
        assert!(!page.release(11));
    }

    #[test]
    fn of_sessions_that_take_more_at_once_no_two_pass_the_limit() {
        const MOST: u64 = 10;
        let mut page = Page::new().unwrap();
        let sessions = [session(&mut page, 0), session(&mut page, 1)];
        let start = std::sync::Barrier::new(2);
        let taken = AtomicU64::new(0);
        for _ in 0..2000 {
            std::thread::scope(|scope| {
                for session in &sessions {
                    let (start, taken) = (&start, &taken);
                    scope.spawn(move || {
                        start.wait();
                        session.set(6);
                        if session.of_others().saturating_add(6) > MOST {
                            session.set(0);
                        } else {
                            taken.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
            });
            assert!(taken.swap(0, Ordering::Relaxed) < 2);
            sessions.iter().for_each(|session| session.set(0));
        }
    }

    #[test]
    fn only_such_a_page_is_mapped() {
        let page = Page::new().unwrap();
        let fd = page.as_fd().try_clone_to_owned().unwrap();
        let most = u32::try_from(MOST_SESSIONS).unwrap();
        assert!(GuestMemory::new(&fd, most).is_err());
        assert!(GuestMemory::new(&fd, most - 1).is_ok());
        let file = OwnedFd::from(tempfile::tempfile().unwrap());
        assert!(GuestMemory::new(&file, 0).is_err());
        let unsealed = memfd_create("x", MemfdFlags::ALLOW_SEALING).unwrap();
        nix::unistd::ftruncate(&unsealed, i64::try_from(BYTES).unwrap()).unwrap();
        assert!(GuestMemory::new(&unsealed, 0).is_err());
    }
}

#![forbid(unsafe_code)]
//! The requirements on every channel, whatever carries it.
//!
//! Each [`Case`] is a pair of functions, one for each end, that talk over nothing but the channel:
//! the two may run in two threads, two processes or two domains. `vchan/tests/channels/conformance_local.rs`
//! runs them over a memfd; `vchan-testing conformance-serve` and `conformance-connect` run them
//! between two processes or domains, over any backend.

mod cases;
mod close;
pub mod many;
mod stream;

use std::time::{Duration, Instant};

use vchan::Channel;
use vchan::layout::{RingSizes, Role};

/// The actions of one end; the error is one line.
pub type Side = fn(Channel) -> Result<(), String>;

/// One property to show.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// A unique name, words joined by underscores.
    pub name: &'static str,
    /// Rings to serve with.
    pub rings: RingSizes,
    /// The first index, where the backend allows a choice; else 0.
    pub first_index: u32,
    /// The end whose process kills itself as part of the case; run that one in its own process
    /// and expect no success from it.
    pub dies: Option<Role>,
    /// The vchan server's side.
    pub server: Side,
    /// The vchan client's side.
    pub client: Side,
}

/// All cases, in the order in which both ends run them.
pub fn cases() -> Vec<Case> {
    cases::all()
}

/// Longest wait of any single step: a watchdog, not a measure.
pub const STEP_LIMIT: Duration = Duration::from_secs(60);

fn soon() -> Instant {
    Instant::now() + STEP_LIMIT
}

fn check(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}

/// Turns an error of the channel into a line that names the step.
fn at<T>(step: &str, outcome: vchan::Result<T>) -> Result<T, String> {
    outcome.map_err(|error| format!("{step}: {error}"))
}

fn read_exact(channel: &mut Channel, buf: &mut [u8]) -> Result<(), String> {
    let mut filled = 0;
    while filled < buf.len() {
        match at("read", channel.read(&mut buf[filled..], soon()))? {
            0 => {
                return Err(format!(
                    "stream ended after {filled} of {} bytes",
                    buf.len()
                ));
            }
            n => filled += n,
        }
    }
    Ok(())
}

fn write_all(channel: &mut Channel, buf: &[u8]) -> Result<(), String> {
    at("write", channel.write_all(buf, soon()))
}

fn expect_end(channel: &mut Channel) -> Result<(), String> {
    match at("read at the end", channel.read(&mut [0; 1], soon()))? {
        0 => Ok(()),
        _ => Err("a byte came where the stream should end".to_owned()),
    }
}

/// A repeatable stream of bytes and sizes (xorshift64*).
#[derive(Debug, Clone)]
struct Sequence(u64);

impl Sequence {
    fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn up_to(&mut self, most: usize) -> usize {
        // The low bits of a remainder are random enough for sizes.
        usize::try_from(self.next() % most as u64).unwrap_or(0) + 1
    }

    fn fill(&mut self, buf: &mut [u8]) {
        for chunk in buf.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.fill(&mut bytes);
        bytes
    }
}

//! `--echo` and `--sink`.

use std::time::{Duration, Instant};

use vchan::{Channel, PeerEnd};
use vgpu_cli::{Failure, print_line};

use crate::progress::Progress;

/// The size of the steps in which a ring hands data over.
pub(crate) const BUFFER: usize = 64 << 10;

/// A deadline of a year, for waits that the peer ends by acting, closing or dying.
pub(crate) fn whenever() -> Instant {
    Instant::now() + Duration::from_secs(365 * 24 * 3600)
}

/// Sends every byte back until the peer closes.
pub(crate) fn echo(mut channel: Channel) -> Result<(), Failure> {
    let mut buf = vec![0; BUFFER];
    let deadline = whenever();
    loop {
        match channel.read(&mut buf, deadline)? {
            0 => break,
            n => channel.write_all(&buf[..n], deadline)?,
        }
    }
    // Tells whether the peer has read all of its echo.
    Ok(channel.drain(Instant::now())?)
}

/// Reads to the end of the stream and prints its length and crc32c.
pub(crate) fn sink(mut channel: Channel, progress: &Progress) -> Result<(), Failure> {
    let meter = progress.meter("received", None);
    let mut buf = vec![0; BUFFER];
    let (mut total, mut crc) = (0u64, 0);
    let deadline = whenever();
    loop {
        match channel.read(&mut buf, deadline)? {
            0 => break,
            n => {
                crc = crc32c::crc32c_append(crc, &buf[..n]);
                total += n as u64;
                meter.add(n);
            }
        }
    }
    meter.done();
    print_line(format_args!("sink: {total} bytes crc32c={crc:08x}"))?;
    unless_gone(channel.peer_end()?)
}

/// The stream has come to its end; fails if the peer went away without ending it.
pub(crate) fn unless_gone(end: PeerEnd) -> Result<(), Failure> {
    match end {
        PeerEnd::Gone => Err(Failure::new(
            "the other side went away without ending its stream: there may be more missing",
            "look at the other side's output, then start both sides again",
        )),
        _ => Ok(()),
    }
}

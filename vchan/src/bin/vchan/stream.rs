//! `--echo` and `--sink`.

use std::io::stdout;
use std::time::{Duration, Instant};

use vchan::Channel;
use vgpu_transport::output::write_all;

use crate::failure::Failure;
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
    say(format_args!("sink: {total} bytes crc32c={crc:08x}"))?;
    Failure::unless_ended(channel.peer_end()?)
}

/// Prints a line; a closed standard output is a failure, not a panic.
pub(crate) fn say(line: std::fmt::Arguments<'_>) -> Result<(), Failure> {
    write_all(&stdout(), format!("{line}\n").as_bytes())
        .map_err(|error| Failure::standard("output", &error))
}

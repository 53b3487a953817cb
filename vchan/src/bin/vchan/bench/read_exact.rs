//! Reading a message whole.

use std::time::Instant;

use vchan::{Channel, Error};
use vgpu_cli::Failure;

/// Fills `buf`; the end of the stream is a failure.
#[inline]
pub(crate) fn read_exact(
    channel: &mut Channel,
    buf: &mut [u8],
    deadline: Instant,
) -> Result<(), Failure> {
    channel.read_exact(buf, deadline).map_err(closed)
}

#[cold]
fn closed(error: Error) -> Failure {
    match error {
        Error::PeerClosed { .. } => Failure::new(
            "the other side closed in the middle of the benchmark",
            "look at its output, then start both sides again",
        ),
        error => error.into(),
    }
}

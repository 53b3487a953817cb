//! `local:PATH`: a mediator on the same machine.
//!
//! As on Xen, the guest provides the memory: it connects to the mediator's socket, takes the vchan
//! server role, and sends the memfd over the socket.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use vchan::{Channel, RingSizes};
use vgpu_socket_transport::connect_unix_stream;

use super::tcp::failed;
use super::{Opened, unreachable};
use crate::error::Cause;
use crate::options::Options;

/// Bytes of each ring: more than over Xen, where pages are scarce. A memfd costs only its memory,
/// and the longer the ring the less often either side waits for the other.
const RING_BYTES: usize = 1 << 20;

/// Most bytes of memory beside the ring. The mediator says how much it takes of that.
const MOST_REGIONS: usize = 1 << 40;

/// How often a wait looks whether the program was told to stop.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(20);

pub(super) fn open(path: &Path, options: &Options, deadline: Instant) -> Result<Opened, Cause> {
    let interrupted = || options.interrupted();
    let stream = connect_unix_stream("local", path, deadline, &interrupted)
        .map_err(|error| failed(&error))?;
    stream
        .set_nonblocking(false)
        .map_err(|error| unreachable(error.to_string(), "look at the system's log"))?;
    let rings = RingSizes::from(options.ring_bytes.unwrap_or(RING_BYTES));
    let channel = serve_on(stream, rings, options, deadline)?;
    let regions = channel.regions();
    regions.set_limit(MOST_REGIONS);
    Ok((Box::new(channel), Some(regions)))
}

/// Brings the ring up, and gives up as soon as the program is asked to stop.
fn serve_on(
    stream: UnixStream,
    rings: RingSizes,
    options: &Options,
    deadline: Instant,
) -> Result<Channel, Cause> {
    let failed = |error: vchan::Error| unreachable(error.to_string(), error.advice());
    if options.interrupt.is_none() {
        return vchan::local::serve_on(stream, rings, deadline).map_err(failed);
    }
    let watched = stream
        .try_clone()
        .map_err(|error| failed(vchan::Error::os("dup", error)))?;
    thread::scope(|scope| {
        let (done, waiting) = mpsc::channel::<()>();
        // The rendezvous itself knows of no interrupt: the end of its stream ends it.
        scope.spawn(move || {
            while matches!(
                waiting.recv_timeout(STOP_CHECK_INTERVAL),
                Err(RecvTimeoutError::Timeout)
            ) {
                if options.interrupted() {
                    let _ = watched.shutdown(Shutdown::Both);
                }
            }
        });
        let channel = vchan::local::serve_on(stream, rings, deadline);
        drop(done);
        match channel {
            Err(_) if options.interrupted() => Err(Cause::Interrupted),
            channel => channel.map_err(failed),
        }
    })
}

//! From an endpoint to a transport.

mod file;
mod local;
mod tcp;
mod unix;
mod xen;

use std::time::Instant;

use vchan::region::Regions;
use vgpu_transport::Endpoint;
use vgpu_transport::Transport;

pub use tcp::SECRET_FILE;
pub use xen::{MEDIATOR_HINT, MediatorHint};

use crate::error::Cause;
use crate::options::Options;

/// A transport, and what makes memory beside its ring that the mediator can map, where that costs no more than the
/// memory: pages that Xen grants are few.
pub(crate) type Opened = (Box<dyn Transport>, Option<Regions>);

/// Connects to `endpoint`, until `deadline` at the latest.
pub(crate) fn open_transport(
    endpoint: &Endpoint,
    options: &Options,
    deadline: Instant,
) -> Result<Opened, Cause> {
    let transport = match endpoint {
        Endpoint::Xen => xen::open(options, deadline),
        Endpoint::Local(path) => return local::open(path, options, deadline),
        Endpoint::Unix(path) => unix::open(path, options, deadline),
        Endpoint::Tcp { host, port } => tcp::open(host, *port, options, deadline),
        Endpoint::File(directory) => file::open(directory, options, deadline),
        other => Err(Cause::Unreachable {
            what: format!("endpoint {other} is not in this build of vgpu-guest"),
            advice: "use xen:, local:PATH, unix:PATH, tcp:HOST:PORT or file:DIR".to_owned(),
        }),
    };
    Ok((transport?, None))
}

/// A wait of a rendezvous that failed, as a cause.
fn unreachable(what: String, advice: impl Into<String>) -> Cause {
    Cause::Unreachable {
        what,
        advice: advice.into(),
    }
}

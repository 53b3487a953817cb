//! The way to the other mediator.

use std::time::{Duration, Instant};

use vchan::RingSizes;
use vgpu_socket_transport::{ConnectError, Secret, connect_tcp, connect_unix};
use vgpu_transport::endpoint::Endpoint;

use super::lost::Lost;
use super::{Route, take_offer};
use crate::session::Stream;

/// Bytes of each ring over `local:`: as a guest has them.
const LOCAL_RING: usize = 1 << 20;

/// Time for somebody to listen at a path.
const LISTENING: Duration = Duration::from_secs(1);

/// Opens the stream; the session on it is not open yet.
pub(super) fn connect(route: &Route, deadline: Instant) -> Result<Stream, Lost> {
    let place = &route.endpoint.to_string();
    let unreachable = |error: &dyn std::fmt::Display, advice: &str| {
        Lost::new(place, &format!("cannot be reached: {error}"), advice)
    };
    let vchan_failed = |error: vchan::Error| unreachable(&error, &error.advice());
    let socket_failed = |error: ConnectError| unreachable(&error, error.advice());
    // Nobody can interrupt a worker but by its end.
    let interrupted = || false;
    match &route.endpoint {
        Endpoint::Local(path) => {
            // One that is being started may take a moment; one that is not there should be said soon.
            let soon = deadline.min(Instant::now() + LISTENING);
            let stream = vchan::local::connect_stream(path, soon).map_err(vchan_failed)?;
            let rings = RingSizes::from(LOCAL_RING);
            let channel = vchan::local::serve_on(stream, rings, deadline).map_err(vchan_failed)?;
            Ok(channel.into())
        }
        Endpoint::XenDomain(domain) => take_offer::take(domain, deadline)
            .map(Stream::from)
            .map_err(|none| unreachable(&none.what, &none.advice)),
        Endpoint::Unix(path) => connect_unix(path, deadline, &interrupted)
            .map(Stream::from)
            .map_err(socket_failed),
        Endpoint::Tcp { host, port } => {
            let secret = route.secret.as_deref().map(Secret::read).transpose();
            let secret = secret.map_err(|error| unreachable(&error, error.advice()))?;
            connect_tcp(host, *port, secret.as_ref(), deadline, &interrupted)
                .map(Stream::from)
                .map_err(socket_failed)
        }
        other => Err(unreachable(
            &format!("no relay goes over {other}"),
            "use relay:xen:DOMAIN, relay:tcp:HOST:PORT, relay:unix:PATH or relay:local:PATH",
        )),
    }
}

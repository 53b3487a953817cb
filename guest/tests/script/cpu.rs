//! A real mediator's session with the CPU executor, in this process.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use vgpu_mediator::executor::cpu::CpuExecutor;
use vgpu_mediator::session::{self, Stream, Terms, Timeouts};
use vgpu_mediator::usage::Observed;
use vgpu_socket_transport::SocketTransport;

use super::TERMS;

/// Serves one session until it ends.
pub(crate) fn serve(stream: UnixStream) {
    let time = Duration::from_secs(60);
    let mut stream = Stream::from(SocketTransport::from_unix(stream).expect("a socket"));
    let settings = session::Settings {
        terms: Terms {
            max_handles: 16,
            ..TERMS
        },
        timeouts: Timeouts {
            hello: time,
            idle: time,
            stall: time,
            request: None,
        },
        operations: session::OpSet::ALL,
        epoch: 5,
        reason: None,
        refusal: None,
    };
    let mut cpu = || Ok(Box::new(CpuExecutor::new("a test")) as _);
    let (observed, stop) = (Observed::default(), Default::default());
    session::serve(&mut stream, &mut cpu, &settings, &observed, &stop);
}

//! `unix:PATH`: a mediator on the same machine, by the bytes of a Unix socket.

use std::path::Path;
use std::time::Instant;

use vgpu_transport::Transport;

use super::tcp::failed;
use crate::error::Cause;
use crate::options::Options;

pub(super) fn open(
    path: &Path,
    options: &Options,
    deadline: Instant,
) -> Result<Box<dyn Transport>, Cause> {
    let interrupted = || options.interrupted();
    let transport = vgpu_socket_transport::connect_unix(path, deadline, &interrupted)
        .map_err(|error| failed(&error))?;
    Ok(Box::new(transport))
}

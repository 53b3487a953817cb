//! `tcp:HOST:PORT`: a mediator anywhere, which knows this program by a secret.

use std::path::PathBuf;
use std::time::Instant;

use vgpu_socket_transport::{ConnectError, Secret, connect_tcp};
use vgpu_transport::Transport;

use super::unreachable;
use crate::error::Cause;
use crate::options::Options;

/// The environment variable that names the file with the secret where
/// [`Options::secret_file`] does not.
pub const SECRET_FILE: &str = "VGPU_SECRET_FILE";

pub(super) fn open(
    host: &str,
    port: u16,
    options: &Options,
    deadline: Instant,
) -> Result<Box<dyn Transport>, Cause> {
    // Read anew for every connection: it may have been replaced.
    let secret = secret_file(options)
        .map(|path| Secret::read(&path))
        .transpose()
        .map_err(|error| unreachable(error.to_string(), error.advice()))?;
    let interrupted = || options.interrupted();
    let transport = connect_tcp(host, port, secret.as_ref(), deadline, &interrupted)
        .map_err(|error| failed(&error))?;
    Ok(Box::new(transport))
}

fn secret_file(options: &Options) -> Option<PathBuf> {
    let named = || std::env::var_os(SECRET_FILE).filter(|path| !path.is_empty());
    options
        .secret_file
        .clone()
        .or_else(|| named().map(PathBuf::from))
}

pub(super) fn failed(error: &ConnectError) -> Cause {
    match error.is_interrupted() {
        true => Cause::Interrupted,
        false => unreachable(error.to_string(), error.advice()),
    }
}

//! `file:DIR`: a mediator that sees the same directory, over NFS, sshfs or on the same machine.

use std::path::Path;
use std::time::Instant;

use vgpu_file_transport::session::{Settings, connect};
use vgpu_transport::Transport;

use super::unreachable;
use crate::error::Cause;
use crate::options::Options;

pub(super) fn open(
    directory: &Path,
    options: &Options,
    deadline: Instant,
) -> Result<Box<dyn Transport>, Cause> {
    let interrupted = || options.interrupted();
    match connect(directory, &Settings::default(), deadline, &interrupted) {
        Ok(transport) => Ok(Box::new(transport)),
        Err(error) if error.is_interrupted() => Err(Cause::Interrupted),
        Err(error) => Err(unreachable(error.to_string(), error.advice())),
    }
}

//! Printing results.

use std::io;

use indicatif::DecimalBytes;
use serde::Serialize;
use vgpu_transport::output::write_all;

/// Prints a line; a closed stdout is an error, not a panic.
pub(crate) fn line(text: &str) -> io::Result<()> {
    write_all(&io::stdout(), format!("{text}\n").as_bytes())
}

/// Prints a line on stderr. Where that fails there is nobody to tell.
pub(crate) fn error(text: &str) {
    let _ = write_all(&io::stderr(), format!("{text}\n").as_bytes());
}

/// Prints an object on one line.
pub(crate) fn json(object: &impl Serialize) -> io::Result<()> {
    line(&vgpu_cli::json_line(object)?)
}

/// Bytes of device memory as people read them: `1.50 GB`, in units of 1000 as `vgpuctl` has them.
pub(crate) fn bytes(bytes: u64) -> String {
    DecimalBytes(bytes).to_string()
}

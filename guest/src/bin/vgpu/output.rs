//! Printing beside the results.

use std::io;
use std::time::Duration;

use indicatif::DecimalBytes;
use vgpu_transport::output::write_all;

/// Prints a line on stderr. Where that fails there is nobody to tell.
pub(crate) fn error(text: &str) {
    let _ = write_all(&io::stderr(), format!("{text}\n").as_bytes());
}

/// A time of the device for `--json`.
pub(crate) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Bytes of device memory as people read them: `1.50 GB`, in units of 1000 as `vgpuctl` has them.
pub(crate) fn bytes(bytes: u64) -> String {
    DecimalBytes(bytes).to_string()
}

//! Printing results.

use std::io;

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

/// Writes `bytes` as people read them: `1.5 GiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes() {
        assert_eq!(bytes(0), "0 bytes");
        assert_eq!(bytes(1023), "1023 bytes");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes(80 << 30), "80.0 GiB");
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
    }
}

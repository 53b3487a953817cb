//! Writing to standard output and standard error, everything or an error, and figures as people read them.

use std::io::{self, IsTerminal};

use unit_prefix::NumberPrefix::{self, Prefixed, Standalone};
use vgpu_transport::output::write_all;

/// Prints on standard output.
///
/// # Errors
/// The system's error; of kind [`io::ErrorKind::BrokenPipe`] when the reader is gone.
pub fn print(text: &str) -> io::Result<()> {
    write_all(&io::stdout(), text.as_bytes())
}

/// Prints on standard error. Where that fails there is nobody to tell.
pub fn print_error(text: &str) {
    let _ = write_all(&io::stderr(), text.as_bytes());
}

/// Whether standard output is a terminal, which can be told to move its cursor.
pub fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// A count with a decimal prefix, as in `1.5 M`; below 1000 as it is.
pub fn count(value: f64) -> String {
    let prefixed = match NumberPrefix::decimal(value) {
        // What rounds up to 1000 belongs to the next prefix.
        Standalone(it) if it >= 999.5 => NumberPrefix::decimal(value + 1.0),
        Prefixed(_, it) if it >= 999.95 => NumberPrefix::decimal(value * 1.001),
        it => it,
    };
    match prefixed {
        Standalone(it) => format!("{it:.0}"),
        Prefixed(prefix, it) => format!("{it:.1} {prefix}"),
    }
}

/// Bytes with a decimal prefix, as in `1.5 MB`.
pub fn bytes(value: f64) -> String {
    let count = count(value);
    if count.contains(' ') {
        format!("{count}B")
    } else {
        format!("{count} B")
    }
}

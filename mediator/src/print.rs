//! Writing to standard output and standard error: everything, or an error.

use std::io::{self, IsTerminal};

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

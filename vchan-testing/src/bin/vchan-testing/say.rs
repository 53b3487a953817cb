//! Lines on standard output.

use std::fmt::Arguments;
use std::io::{Write, stdout};

use crate::failure::Failure;

/// Prints a line; a closed standard output is a failure, not a panic.
pub(crate) fn say(line: Arguments<'_>) -> Result<(), Failure> {
    let mut stdout = stdout().lock();
    writeln!(stdout, "{line}")
        .and_then(|()| stdout.flush())
        .map_err(|error| {
            Failure::new(
                format!("cannot write to standard output: {error}"),
                "check where it is redirected to, and that there is room",
            )
        })
}

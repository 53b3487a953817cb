//! Reports that a test of this workspace, or a part of it, could not run here.
//!
//! libtest has no skip at run time: a test that returns early has passed, and its output is
//! captured. [`skipped`] writes one line to the process's own standard error, which libtest does
//! not capture. `cargo xtask test` finds these lines, prints them once more before its summary and
//! counts them.

use std::io::Write;
use std::panic::Location;

/// The beginning of the line; `cargo xtask test` searches for it.
pub const MARK: &str = "SKIPPED: ";

/// Reports that the calling test does not show its property here, and `why`: the missing piece and,
/// where there is one, the remedy.
#[track_caller]
pub fn skipped(why: impl std::fmt::Display) {
    // One write, so that lines of tests that run at once do not mix; and one line, however long the
    // reason.
    let text = line(Location::caller(), std::thread::current().name(), &why);
    // A closed standard error is no reason to fail.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

fn line(at: &Location<'_>, thread: Option<&str>, why: &dyn std::fmt::Display) -> String {
    // libtest names its threads after their tests, except the one that runs all of them.
    let test = thread.filter(|name| *name != "main").unwrap_or("a test");
    let why = why.to_string().replace('\n', " ");
    format!("{MARK}{test} ({}:{}): {why}\n", at.file(), at.line())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_is_one_line_that_names_the_test_and_the_reason() {
        let at = Location::caller();
        let text = line(at, Some("a::test"), &"no GPU\nplug one in");
        let place = format!("{}:{}", at.file(), at.line());
        assert_eq!(
            text,
            format!("SKIPPED: a::test ({place}): no GPU plug one in\n")
        );
        assert!(line(at, Some("main"), &"x").starts_with("SKIPPED: a test ("));
    }
}

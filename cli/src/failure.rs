//! Errors for people: one line of what is wrong and one of what to do.

use std::fmt::{self, Display};
use std::io;
use std::process::ExitCode;

use vgpu_transport::output::write_all;

use crate::print_object;

/// The exit status for a command line or a configuration that makes no sense.
pub const MISUSE: u8 = 2;

/// The exit status of a program that a person or the system has told to stop, by Ctrl-C or another signal, before it
/// was done. Shells report it for SIGINT.
pub const INTERRUPTED: u8 = 130;

/// Why a program gives up. `Display` is [`what`](Self::what) alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The problem, in one line.
    pub what: String,
    /// The remedy, in one line.
    pub advice: String,
    /// The exit status: 1 for a failure, [`MISUSE`] or [`INTERRUPTED`].
    pub code: u8,
    /// An object that was printed says it already.
    told: bool,
}

impl Failure {
    /// A failure and its remedy.
    pub fn new(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            advice: advice.into(),
            code: 1,
            told: false,
        }
    }

    /// The command line or the configuration makes no sense: the same again would fail again.
    pub fn usage(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(what, advice).with_code(MISUSE)
    }

    /// The program was told to stop.
    pub fn interrupted(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(what, advice).with_code(INTERRUPTED)
    }

    /// The system refused to do `what`.
    pub fn system(what: impl Display, error: impl Display, advice: impl Into<String>) -> Self {
        Self::new(format!("{what}: {error}"), advice)
    }

    /// Standard input or output failed; `which` is the one of them.
    pub fn standard(which: &str, error: &io::Error) -> Self {
        Self::system(
            format_args!("cannot use standard {which}"),
            error,
            "check where it is redirected to, and that there is room",
        )
    }

    /// The same, with another exit status.
    pub fn with_code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// The same, where an object that was printed says it already: [`report`](Self::report) prints none.
    pub fn told(self) -> Self {
        Self { told: true, ..self }
    }

    /// The two lines for people, each with its end.
    pub fn lines(&self) -> String {
        format!("error: {}\n help: {}\n", self.what, self.advice)
    }

    /// The object for programs.
    pub fn object(&self) -> serde_json::Value {
        let Self {
            what, advice, code, ..
        } = self;
        serde_json::json!({ "error": { "what": what, "advice": advice, "code": code } })
    }

    /// With `json` prints the [`object`](Self::object) on standard output, unless one was printed. Where that fails the lines
    /// on standard error remain.
    pub fn print_object(&self, json: bool) {
        if json && !self.told {
            let _ = print_object(&self.object());
        }
    }

    /// Tells of it: [`lines`](Self::lines) on standard error, after [`print_object`](Self::print_object). Where neither
    /// can be written there is nobody to tell.
    pub fn report(&self, json: bool) -> ExitCode {
        self.print_object(json);
        let _ = write_all(&io::stderr(), self.lines().as_bytes());
        ExitCode::from(self.code)
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_and_the_object_say_the_same() {
        let failure = Failure::system("cannot open x", "no such file", "name another");
        assert_eq!(
            failure.lines(),
            "error: cannot open x: no such file\n help: name another\n"
        );
        assert_eq!(
            failure.object(),
            serde_json::json!({
                "error": { "what": "cannot open x: no such file", "advice": "name another", "code": 1 }
            })
        );
        assert_eq!(Failure::usage("", "").code, 2);
        assert_eq!(Failure::interrupted("", "").told().code, 130);
    }
}

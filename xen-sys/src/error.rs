//! Errors of calls to Xen: the failure, and a hint for the reader.

use std::borrow::Cow;
use std::fmt;
use std::io;

/// The kind of failure, for callers that handle each differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A C library, or a symbol of it, is not installed.
    LibraryMissing,
    /// The device node does not exist: no Xen, or the module is not loaded.
    DeviceMissing,
    /// The device node exists but this user may not open it.
    PermissionDenied,
    /// No more pages can be granted: the limit of gntalloc or of the grant table.
    GrantLimit,
    /// Xen refused to map the grant references.
    MapRefused,
    /// Xen refused to bind the event channel.
    BindRefused,
    /// The kernel dropped events because they were not read; see
    /// [`EventChannels::reset`](crate::EventChannels::reset).
    EventsLost,
    /// The operation did not finish before its deadline.
    TimedOut,
    /// The arguments are invalid for every provider.
    InvalidArgument,
    /// Any other error of the operating system; see [`Error::errno`].
    Os,
}

/// A failed operation, its errno and a hint.
///
/// `Display` prints one line with the failure; [`Error::hint`] is one line with the remedy.
#[derive(Debug, Clone)]
pub struct Error {
    kind: ErrorKind,
    what: String,
    errno: Option<i32>,
    hint: Option<Cow<'static, str>>,
}

/// The result of every operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error without an errno, for other implementations of this crate's traits.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self {
            kind,
            what: what.into(),
            errno: None,
            hint: None,
        }
    }

    /// An operating system error; `errno` is the positive number.
    pub(crate) fn os(kind: ErrorKind, what: impl Into<String>, error: &io::Error) -> Self {
        Self {
            kind,
            what: what.into(),
            errno: error.raw_os_error(),
            hint: None,
        }
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The kind of failure.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The operation that failed, without the operating system's reason.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// The positive errno, where the operating system gave one.
    pub fn errno(&self) -> Option<i32> {
        self.errno
    }

    /// One line: the remedy, where one is known.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match self.errno {
            Some(errno) => write!(f, ": {}", io::Error::from_raw_os_error(errno)),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match error.kind {
            ErrorKind::LibraryMissing | ErrorKind::DeviceMissing => io::ErrorKind::NotFound,
            ErrorKind::PermissionDenied => io::ErrorKind::PermissionDenied,
            ErrorKind::GrantLimit => io::ErrorKind::OutOfMemory,
            ErrorKind::TimedOut => io::ErrorKind::TimedOut,
            ErrorKind::InvalidArgument => io::ErrorKind::InvalidInput,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_is_one_line_with_the_reason() {
        let error = Error::os(
            ErrorKind::DeviceMissing,
            "cannot open /dev/xen/gntalloc",
            &io::Error::from_raw_os_error(libc::ENOENT),
        )
        .with_hint("is the module loaded?");
        let text = error.to_string();
        assert!(
            text.starts_with("cannot open /dev/xen/gntalloc: "),
            "{text}"
        );
        assert!(!text.contains('\n'));
        assert_eq!(error.errno(), Some(libc::ENOENT));
        assert_eq!(error.hint(), Some("is the module loaded?"));
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::NotFound);
    }
}

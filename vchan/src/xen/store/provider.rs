//! What a channel asks of xenstore, and the two providers of it.
//!
//! | provider | speaks | where |
//! |---|---|---|
//! | [`Provider::Own`] | the wire protocol itself, with a deadline on each request | everywhere; no further dependency |
//! | `Provider::XenstoreRs` | through the crate xenstore-rs (GPL-3.0-only) | with the feature `xenstore-rs`, in programs that [prefer](Provider::prefer) it: those of dom0 |

use std::env::{self, VarError};
use std::io;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::client::Client;
#[cfg(feature = "xenstore-rs")]
use super::xenstore_rs;

/// Environment variable that overrides the choice: `own` or, where it is built in, `xenstore-rs`.
pub const PROVIDER_ENV: &str = "VCHAN_XENSTORE";

/// Who speaks to xenstored for this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Provider {
    /// This crate's own client.
    #[default]
    Own,
    /// The crate xenstore-rs.
    #[cfg(feature = "xenstore-rs")]
    XenstoreRs,
}

static PREFERRED: OnceLock<Provider> = OnceLock::new();

impl Provider {
    /// Makes this the process's provider wherever [`PROVIDER_ENV`] names none. For the start of a
    /// program: the first call counts, and connections that are there stay what they are.
    pub fn prefer(self) {
        let _ = PREFERRED.set(self);
    }

    /// The provider of this process.
    ///
    /// # Errors
    /// `InvalidInput` when [`PROVIDER_ENV`] names none that this program has.
    pub fn current() -> io::Result<Self> {
        match env::var(PROVIDER_ENV) {
            Ok(name) => Self::named(&name),
            Err(VarError::NotPresent) => Ok(PREFERRED.get().copied().unwrap_or_default()),
            Err(VarError::NotUnicode(_)) => Err(unknown("(not UTF-8)")),
        }
    }

    fn named(name: &str) -> io::Result<Self> {
        match name {
            "own" => Ok(Self::Own),
            #[cfg(feature = "xenstore-rs")]
            "xenstore-rs" => Ok(Self::XenstoreRs),
            other => Err(unknown(other)),
        }
    }

    /// Connects for requests.
    ///
    /// # Errors
    /// There is neither a socket nor a device, or there is a socket and nobody answers.
    pub(super) fn connect(self, deadline: Instant) -> io::Result<Box<dyn Requests>> {
        match self {
            Self::Own => Ok(Box::new(Client::connect(deadline)?)),
            #[cfg(feature = "xenstore-rs")]
            Self::XenstoreRs => Ok(Box::new(xenstore_rs::for_requests()?)),
        }
    }

    /// Sets a watch on `path`, over a connection of its own. The first event comes at once.
    ///
    /// # Errors
    /// There is neither a socket nor a device, or nobody answers there; xenstored refuses the watch.
    pub fn watch(self, path: &str) -> io::Result<Box<dyn Watch>> {
        match self {
            Self::Own => Ok(Box::new(super::client::Watching::start(path)?)),
            #[cfg(feature = "xenstore-rs")]
            Self::XenstoreRs => Ok(Box::new(xenstore_rs::Watching::start(path)?)),
        }
    }
}

fn unknown(name: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("{PROVIDER_ENV} names no xenstore client of this program: {name:?}"),
    )
}

/// Requests on one connection, each of which may be made twice without harm.
///
/// A provider that cannot hold a deadline ignores it: every caller has one of its own.
pub(super) trait Requests {
    /// The names right below `path`.
    fn directory(&mut self, path: &str, deadline: Instant) -> Result<Vec<Box<str>>, Failed>;
    /// The value of `path`.
    fn read(&mut self, path: &str, deadline: Instant) -> Result<Box<str>, Failed>;
    /// Sets the value of `path`.
    fn write(&mut self, path: &str, value: &str, deadline: Instant) -> Result<(), Failed>;
    /// Removes `path` and what is below it.
    fn remove(&mut self, path: &str, deadline: Instant) -> Result<(), Failed>;
}

/// Why a request failed.
#[derive(Debug)]
pub(super) enum Failed {
    /// xenstored answered with this error code (`ENOENT`…).
    Refused(String),
    /// The answer is not text.
    NotText,
    /// No answer until the deadline. It may still come, and is not mistaken for another then.
    TimedOut,
    /// The connection is of no further use.
    Broken(io::Error),
}

/// A watch that was set.
pub trait Watch {
    /// Waits for an event, at most for `limit` where there is one.
    fn wait(&mut self, limit: Option<Duration>) -> Waited;
}

/// How a wait for an event ended.
#[derive(Debug)]
pub enum Waited {
    /// What is watched may have changed, once or more.
    Fired,
    /// The limit passed.
    TimedOut,
    /// xenstored has hung up, or the connection broke; no further event comes.
    Ended,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_no_provider_is_an_error_that_says_where_it_came_from() {
        assert_eq!(Provider::named("own").unwrap(), Provider::Own);
        #[cfg(feature = "xenstore-rs")]
        assert_eq!(
            Provider::named("xenstore-rs").unwrap(),
            Provider::XenstoreRs
        );
        for name in ["", "Own", "libxenstore"] {
            let error = Provider::named(name).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            assert!(error.to_string().contains(PROVIDER_ENV), "{error}");
        }
    }
}

//! The choice between the two providers of xenstore.
//!
//! | provider | speaks | where |
//! |---|---|---|
//! | [`Provider::Own`] | the wire protocol itself, with a deadline on each request | everywhere; no further dependency |
//! | `Provider::XenstoreRs` | through the crate xenstore-rs (GPL-3.0-only) | with the feature `xenstore-rs`, in programs that [prefer](Provider::prefer) it: those of dom0 |

use std::env::{self, VarError};
use std::io;
use std::sync::OnceLock;
use std::time::Instant;

use super::client::{self, Client};
use super::interface::{Requests, Watch};
#[cfg(feature = "xenstore-rs")]
use super::xenstore_rs;

/// Environment variable that overrides the choice: `own` or, where it is built in, `xenstore-rs`.
pub const PROVIDER_ENV: &str = "VCHAN_XENSTORE";

/// The client through which this process talks to xenstored.
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
    /// Makes this the process's provider wherever [`PROVIDER_ENV`] names none. Call it at the start
    /// of a program: the first call counts, and existing connections are not changed.
    pub fn prefer(self) {
        let _ = PREFERRED.set(self);
    }

    /// The provider of this process.
    ///
    /// # Errors
    /// `InvalidInput` when [`PROVIDER_ENV`] names a provider that this program does not have.
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
    /// There is neither a socket nor a device, or there is a socket and it does not answer.
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
    /// There is neither a socket nor a device, or nothing answers there; xenstored refuses the
    /// watch.
    pub fn watch(self, path: &str) -> io::Result<Box<dyn Watch>> {
        match self {
            Self::Own => Ok(Box::new(client::Watching::start(path)?)),
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

//! The two implementations of the operations, and the choice between them.

use std::env;
use std::fmt;
use std::str::FromStr;

use crate::kernel::{Evtchn, Gntalloc, Gntdev};
use crate::libraries::{LibraryEvtchn, LibraryGntshr, LibraryGnttab};
use crate::{Error, ErrorKind, EventChannels, GrantMap, GrantShare, Result};

/// Environment variable that overrides the choice: `auto`, `libraries` or `ioctls`.
pub const PROVIDER_ENV: &str = "XEN_SYS_PROVIDER";

/// The implementation of the operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Provider {
    /// The C libraries where they are installed, else the ioctls.
    #[default]
    Auto,
    /// libxengnttab and libxenevtchn, loaded at run time.
    Libraries,
    /// The kernel's devices, without any library.
    Ioctls,
}

impl Provider {
    /// The choice of the environment variable [`PROVIDER_ENV`], `Auto` without one.
    ///
    /// # Errors
    /// `InvalidArgument` when the variable has another value.
    pub fn from_env() -> Result<Self> {
        match env::var(PROVIDER_ENV) {
            Ok(value) => value.parse(),
            Err(env::VarError::NotPresent) => Ok(Self::Auto),
            Err(env::VarError::NotUnicode(_)) => Err(unknown("(not UTF-8)")),
        }
    }

    /// Opens the granting side.
    ///
    /// # Errors
    /// `DeviceMissing`, `PermissionDenied`; `LibraryMissing` with [`Provider::Libraries`].
    pub fn open_grant_share(self) -> Result<Box<dyn GrantShare>> {
        self.choose(
            || Ok(Box::new(LibraryGntshr::open()?) as _),
            || Ok(Box::new(Gntalloc::open()?) as _),
        )
    }

    /// Opens the mapping side.
    ///
    /// # Errors
    /// `DeviceMissing`, `PermissionDenied`; `LibraryMissing` with [`Provider::Libraries`].
    pub fn open_grant_map(self) -> Result<Box<dyn GrantMap>> {
        self.choose(
            || Ok(Box::new(LibraryGnttab::open()?) as _),
            || Ok(Box::new(Gntdev::open()?) as _),
        )
    }

    /// Opens an event channel device of its own.
    ///
    /// # Errors
    /// `DeviceMissing`, `PermissionDenied`; `LibraryMissing` with [`Provider::Libraries`].
    pub fn open_event_channels(self) -> Result<Box<dyn EventChannels>> {
        self.choose(
            || Ok(Box::new(LibraryEvtchn::open()?) as _),
            || Ok(Box::new(Evtchn::open()?) as _),
        )
    }

    /// Opens with the chosen implementation; `Auto` takes the ioctls only when the library is
    /// missing.
    fn choose<T>(
        self,
        library: impl FnOnce() -> Result<T>,
        kernel: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        match self {
            Self::Libraries => library(),
            Self::Ioctls => kernel(),
            Self::Auto => match library() {
                Err(error) if error.kind() == ErrorKind::LibraryMissing => kernel(),
                result => result,
            },
        }
    }
}

fn unknown(value: &str) -> Error {
    Error::new(
        ErrorKind::InvalidArgument,
        format!("unknown provider `{value}`"),
    )
    .with_hint("use auto, libraries or ioctls")
}

impl FromStr for Provider {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "libraries" => Ok(Self::Libraries),
            "ioctls" => Ok(Self::Ioctls),
            other => Err(unknown(other)),
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Libraries => "libraries",
            Self::Ioctls => "ioctls",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_falls_back_only_for_a_missing_library() {
        let library = |kind| move || Err(Error::new(kind, "library"));
        let kernel = || Ok("kernel");
        let missing = ErrorKind::LibraryMissing;
        assert_eq!(
            Provider::Auto.choose(library(missing), kernel).ok(),
            Some("kernel")
        );
        assert_eq!(
            Provider::Auto.choose(|| Ok("library"), kernel).ok(),
            Some("library")
        );
        assert!(
            Provider::Auto
                .choose(library(ErrorKind::PermissionDenied), kernel)
                .is_err()
        );
        assert!(
            Provider::Libraries
                .choose(library(missing), kernel)
                .is_err()
        );
    }

    #[test]
    fn names_round_trip() {
        for provider in [Provider::Auto, Provider::Libraries, Provider::Ioctls] {
            assert_eq!(
                provider.to_string().parse::<Provider>().ok(),
                Some(provider)
            );
        }
        let error = "libxen".parse::<Provider>().map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
}

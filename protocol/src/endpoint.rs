//! Where a mediator is: `xen:`, `local:PATH`, `file:DIR`, and lists of these.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// One way to reach a mediator, or for a mediator to be reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Endpoint {
    /// `xen:`: from a guest to dom0, over granted pages.
    Xen,
    /// `local:PATH`: within one machine, over a memfd; PATH is the mediator's Unix socket.
    Local(PathBuf),
    /// `file:DIR`: through files in a directory that both sides see.
    File(PathBuf),
}

/// Why a text is not an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// Nothing before or after a comma, or nothing at all.
    #[error("the endpoint is empty; write one of xen:, local:PATH, file:DIR")]
    Empty,
    /// No `scheme:` in front.
    #[error("'{0}' has no scheme; write xen:, local:{0} or file:{0}")]
    NoScheme(String),
    /// A scheme that exists in the design, but not in this build.
    #[error("'{0}:' endpoints are not in this build, which has xen:, local:PATH and file:DIR")]
    NotInThisBuild(String),
    /// A scheme nobody knows.
    #[error("'{0}:' is no endpoint scheme; this build has xen:, local:PATH and file:DIR")]
    UnknownScheme(String),
    /// `local:` or `file:` without a path.
    #[error("'{0}:' needs a path after the colon, as in {0}:/run/vgpu/vgpu.sock")]
    EmptyPath(&'static str),
    /// `xen:` takes nothing after the colon: a guest reaches dom0 only, at an agreed place.
    #[error("'xen:{0}' has text after the colon; write xen: alone, it always means dom0")]
    XenWithText(String),
    /// A path with a NUL byte, which no system call takes.
    #[error("the path of '{0}:' contains a NUL byte")]
    Nul(&'static str),
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text.is_empty() {
            return Err(EndpointError::Empty);
        }
        let Some((scheme, rest)) = text.split_once(':') else {
            return Err(EndpointError::NoScheme(text.to_owned()));
        };
        match scheme {
            "xen" if rest.is_empty() => Ok(Self::Xen),
            "xen" => Err(EndpointError::XenWithText(rest.to_owned())),
            "local" => path("local", rest).map(Self::Local),
            "file" => path("file", rest).map(Self::File),
            "unix" | "tcp" => Err(EndpointError::NotInThisBuild(scheme.to_owned())),
            _ => Err(EndpointError::UnknownScheme(scheme.to_owned())),
        }
    }
}

fn path(scheme: &'static str, rest: &str) -> Result<PathBuf, EndpointError> {
    if rest.is_empty() {
        return Err(EndpointError::EmptyPath(scheme));
    }
    if rest.contains('\0') {
        return Err(EndpointError::Nul(scheme));
    }
    Ok(PathBuf::from(rest))
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Xen => f.write_str("xen:"),
            Self::Local(path) => write!(f, "local:{}", path.display()),
            Self::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

/// Parses a comma-separated list, to be tried in order. Paths with a comma cannot be in a list.
///
/// # Errors
/// The first part that is not an endpoint; an empty list or part is an error too.
pub fn parse_list(text: &str) -> Result<Vec<Endpoint>, EndpointError> {
    text.split(',').map(Endpoint::from_str).collect()
}

//! Addresses of mediators: `xen:`, `local:PATH`, `unix:PATH`, `tcp:HOST:PORT`, `file:DIR`, and
//! lists of these.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::str::FromStr;

/// One way to reach a mediator, or at which a mediator listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Endpoint {
    /// `xen:`: from a guest to dom0, over granted pages.
    Xen,
    /// `xen:DOMAIN`: from dom0 to the mediator in a guest that has the GPU. DOMAIN is a domid, a
    /// name or a uuid.
    XenDomain(String),
    /// `local:PATH`: within one machine, over a memfd; PATH is the mediator's Unix socket.
    Local(PathBuf),
    /// `unix:PATH`: within one machine, the bytes themselves over the mediator's Unix socket.
    Unix(PathBuf),
    /// `tcp:HOST:PORT`: over a network.
    Tcp {
        /// A name or an address; an IPv6 address without the brackets, with a zone where it needs
        /// one (`fe80::1%eth0`).
        host: String,
        /// Never 0.
        port: u16,
    },
    /// `file:DIR`: through files in a directory that both sides see.
    File(PathBuf),
}

/// The reasons why a text is not an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// Nothing before or after a comma, or nothing at all.
    #[error(
        "the endpoint is empty; write one of xen:, local:PATH, unix:PATH, tcp:HOST:PORT, file:DIR"
    )]
    Empty,
    /// No `scheme:` at the start.
    #[error("'{0}' has no scheme; write xen:, local:{0}, unix:{0}, tcp:{0}:PORT or file:{0}")]
    NoScheme(String),
    /// An unknown scheme.
    #[error(
        "'{0}:' is no endpoint scheme; there are xen:, local:PATH, unix:PATH, tcp:HOST:PORT and \
         file:DIR"
    )]
    UnknownScheme(String),
    /// `local:`, `unix:` or `file:` without a path.
    #[error("'{0}:' needs a path after the colon, as in {0}:{example}", example = example(.0))]
    EmptyPath(&'static str),
    /// `xen:` followed by something other than a domain's id, name or uuid.
    #[error(
        "'xen:{0}' names no domain; write xen: for dom0, or a domid, a name or a uuid after it"
    )]
    NoDomain(String),
    /// `tcp:` without a host and a port.
    #[error(
        "'tcp:{0}' is no address; write tcp:HOST:PORT or tcp:[IPV6]:PORT, PORT from 1 to 65535"
    )]
    NoAddress(String),
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
            "xen" => domain(rest).map(Self::XenDomain),
            "local" => path("local", rest).map(Self::Local),
            "unix" => path("unix", rest).map(Self::Unix),
            "tcp" => address(rest),
            "file" => path("file", rest).map(Self::File),
            _ => Err(EndpointError::UnknownScheme(scheme.to_owned())),
        }
    }
}

/// An example of a path for this scheme.
fn example(scheme: &str) -> &'static str {
    match scheme {
        "file" => "/mnt/vgpu",
        _ => "/run/vgpu/vgpu.sock",
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

fn domain(rest: &str) -> Result<String, EndpointError> {
    let sound = |c: char| !c.is_control() && !c.is_whitespace() && c != '/';
    if rest.len() > 255 || !rest.chars().all(sound) {
        return Err(EndpointError::NoDomain(rest.to_owned()));
    }
    Ok(rest.to_owned())
}

fn address(rest: &str) -> Result<Endpoint, EndpointError> {
    let wrong = || EndpointError::NoAddress(rest.to_owned());
    let (host, port) = rest.rsplit_once(':').ok_or_else(wrong)?;
    let port = port
        .parse()
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(wrong)?;
    let host = match host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        Some(host) => ipv6(host).ok_or_else(wrong)?,
        None => host.to_owned(),
    };
    let bracketed = rest.starts_with('[');
    let sound =
        |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c) || (bracketed && c == '%');
    let bare_ipv6 = !bracketed && host.contains(':');
    if host.is_empty() || host.len() > 253 || bare_ipv6 || !host.chars().all(sound) {
        return Err(wrong());
    }
    Ok(Endpoint::Tcp { host, port })
}

/// An IPv6 address in canonical form, with its zone if it has one: `fe80::1%eth0`, where the zone
/// is the name or the number of an interface (RFC 4007, section 11).
fn ipv6(text: &str) -> Option<String> {
    let (address, zone) = match text.split_once('%') {
        Some((address, zone)) => (address, Some(zone)),
        None => (text, None),
    };
    let address: Ipv6Addr = address.parse().ok()?;
    let sound = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    match zone {
        None => Some(address.to_string()),
        // Linux's names of interfaces have at most 15 characters.
        Some(zone) if (1..=15).contains(&zone.len()) && zone.chars().all(sound) => {
            Some(format!("{address}%{zone}"))
        }
        Some(_) => None,
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Xen => f.write_str("xen:"),
            Self::XenDomain(domain) => write!(f, "xen:{domain}"),
            Self::Local(path) => write!(f, "local:{}", path.display()),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
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

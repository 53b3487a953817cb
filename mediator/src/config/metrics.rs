//! `metrics`: where the metrics are served.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `unix:PATH`, or a loopback address with its port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum MetricsAddress {
    /// A Unix socket.
    Unix(PathBuf),
    /// TCP, of this machine only: what is said there is not encrypted, and names guests.
    Tcp(SocketAddr),
}

impl FromStr for MetricsAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return match path.is_absolute() {
                true => Ok(Self::Unix(path)),
                false => Err(format!("`{text}`: the path after unix: must be absolute")),
            };
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Self::Tcp(address)),
            Ok(address) => Err(format!(
                "`{text}`: metrics are not encrypted, and {} is no loopback address",
                address.ip()
            )),
            Err(_) => Err(format!(
                "`{text}` is neither unix:PATH nor a loopback address with a port, such as 127.0.0.1:9835"
            )),
        }
    }
}

impl fmt::Display for MetricsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

impl TryFrom<String> for MetricsAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<MetricsAddress> for String {
    fn from(address: MetricsAddress) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_this_machine_are_taken() {
        for text in [
            "unix:/run/a b",
            "127.0.0.1:9835",
            "127.3.2.1:1",
            "[::1]:9835",
        ] {
            let address: MetricsAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
        for (text, word) in [
            ("192.0.2.1:9835", "no loopback"),
            ("0.0.0.0:9835", "no loopback"),
            ("[::]:9835", "no loopback"),
            ("localhost:9835", "neither"),
            ("127.0.0.1", "neither"),
            ("", "neither"),
            ("unix:", "absolute"),
            ("unix:a", "absolute"),
        ] {
            let error = text.parse::<MetricsAddress>().unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}

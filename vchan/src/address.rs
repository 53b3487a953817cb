#![forbid(unsafe_code)]
//! The address of a channel, as one text form for all carriers.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Instant;

use crate::channel::Channel;
use crate::domain::DomId;
use crate::error::{Error, Result};
use crate::wire::layout::{Format, RingSizes};
use crate::{Setup, local, xen};

/// `local:PATH` or `xen:DOMID/PATH`: the address of a channel as seen from one of its ends.
///
/// * `local:/run/demo.sock`: a Unix socket of this machine; see [`local`].
/// * `xen:7/data/demo`: with domain 7, at a path in xenstore that is relative to the home of
///   whoever serves; `xen:7//local/domain/7/data/demo` is absolute. Both ends name the *other*
///   domain, so where a guest serves `xen:0/data/demo`, dom0 connects to `xen:7/data/demo`. See
///   [`xen`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Address {
    /// A Unix socket.
    Local(PathBuf),
    /// A path in xenstore.
    Xen {
        /// The domain at the other end.
        peer: DomId,
        /// Absolute, or relative to the server's home.
        path: xen::path::ChannelPath,
    },
}

impl Address {
    /// Takes the vchan server role: provides the memory and waits for one client.
    ///
    /// `rings` of `None` are the default: [`local::default_rings`], or on Xen
    /// [`RingSizes::DEFAULT`] and smaller ones where the kernel grants fewer pages.
    ///
    /// # Errors
    /// Those of [`local::serve`] or [`xen::Server`].
    pub fn serve(&self, rings: Option<RingSizes>, deadline: Instant) -> Result<Channel> {
        let setup = Setup::new().deadline(deadline);
        match (self, rings) {
            (Self::Local(path), rings) => {
                let rings = rings.unwrap_or_else(|| local::default_rings(Format::default()));
                local::serve(path, rings, deadline)
            }
            (Self::Xen { peer, path }, Some(rings)) => {
                xen::Server::publish_with(&setup, *peer, path.as_str(), rings)?.accept(deadline)
            }
            (Self::Xen { peer, path }, None) => {
                xen::Server::publish_default_with(&setup, *peer, path.as_str())?.accept(deadline)
            }
        }
    }

    /// Takes the vchan client role: finds the server, waiting for it to appear.
    ///
    /// # Errors
    /// Those of [`local::connect`] or [`xen::connect`].
    pub fn connect(&self, deadline: Instant) -> Result<Channel> {
        match self {
            Self::Local(path) => local::connect(path, deadline),
            Self::Xen { peer, path } => xen::connect(*peer, path.as_str(), deadline),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(path) => write!(f, "local:{}", path.display()),
            Self::Xen { peer, path } => write!(f, "xen:{peer}/{path}"),
        }
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |what: String| {
            Err(Error::setup(
                what,
                "give local:PATH, or xen:DOMID/PATH with the domain at the other end",
            ))
        };
        match text.split_once(':') {
            Some(("local", path)) if !path.is_empty() => Ok(Self::Local(path.into())),
            Some(("xen", place)) => match place.split_once('/') {
                Some((domain, path)) => Ok(Self::Xen {
                    peer: match domain.parse() {
                        Ok(peer) => peer,
                        Err(error) => return refuse(format!("'{text}': {error}")),
                    },
                    path: path.parse()?,
                }),
                None => refuse(format!("'{text}' has no path after the domain")),
            },
            _ => refuse(format!("'{text}' is no address of a channel")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_addresses_are_the_same() {
        for text in [
            "local:/run/demo.sock",
            "local:relative.sock",
            "local:with:colon",
            "xen:7/data/demo",
            "xen:0//local/domain/7/data/demo",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "local",
            "local:",
            "/run/demo.sock",
            "xen:",
            "xen:7",
            "xen:7/",
            "xen:/data/demo",
            "xen:40000/data/demo",
            "xen:-1/data/demo",
            "xen:7/data//demo",
            "xen:7/data/de mo",
            "tcp:host:1",
        ] {
            let error = text.parse::<Address>().unwrap_err();
            assert!(!error.advice().is_empty(), "{text:?}");
        }
    }
}

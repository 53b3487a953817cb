//! Errors, split by whose fault they are.
//!
//! [`Error`] is what calls return. [`PeerError`] is the part of it that a correct peer cannot
//! cause: it is *sticky*, every later call on the same channel returns it again.
//!
//! `Display` says in one line what happened; [`Error::advice`] says in one line what to do.

use std::io;

use vgpu_transport::TransportError;

pub use crate::region::error::{RegionError, TicketError};

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Which of the two rings a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingName {
    /// Client to server.
    Left,
    /// Server to client.
    Right,
}

impl std::fmt::Display for RingName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Left => "left",
            Self::Right => "right",
        })
    }
}

/// The peer broke a rule of the wire format. Close the channel; nothing else helps.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// The peer claims to have written more than its ring holds, or took written bytes back.
    #[error(
        "peer set {ring}.prod to {found:#x}, allowed is {oldest:#x} to {newest:#x} \
         (ring of {size} bytes)"
    )]
    Producer {
        /// The ring the peer writes.
        ring: RingName,
        /// The value found.
        found: u32,
        /// The least value allowed: what the peer had published before.
        oldest: u32,
        /// The greatest value allowed: our read position plus the ring's size.
        newest: u32,
        /// The ring's size in bytes.
        size: u32,
    },
    /// The peer claims to have read more than was written, or took a read back.
    #[error(
        "peer set {ring}.cons to {found:#x}, allowed is {oldest:#x} to {newest:#x} \
         (ring of {size} bytes)"
    )]
    Consumer {
        /// The ring the peer reads.
        ring: RingName,
        /// The value found.
        found: u32,
        /// The least value allowed: what the peer had published before.
        oldest: u32,
        /// The greatest value allowed: our write position.
        newest: u32,
        /// The ring's size in bytes.
        size: u32,
    },
    /// The indexes found at connect do not describe a ring.
    #[error(
        "at connect the {ring} ring has prod {prod:#x} and cons {cons:#x}, but only {size} bytes"
    )]
    StartIndexes {
        /// The ring concerned.
        ring: RingName,
        /// Its write index.
        prod: u32,
        /// Its read index.
        cons: u32,
        /// Its size in bytes.
        size: u32,
    },
    /// A live byte holds a value that has no meaning at this point.
    #[error("peer set {field} to {found}, allowed is 0 or 1")]
    Live {
        /// `cli_live` or `srv_live`.
        field: &'static str,
        /// The value found.
        found: u8,
    },
    /// The server offers ring orders that no valid control page has.
    #[error("peer offers ring orders left {left}, right {right}: {reason}")]
    Orders {
        /// `left_order`.
        left: u16,
        /// `right_order`.
        right: u16,
        /// The rule they break.
        reason: &'static str,
    },
    /// The handshake of the extension went wrong.
    #[error("peer broke the extension's handshake: {0}")]
    Extension(#[from] ExtensionError),
    /// Something in the rendezvous (hello message, descriptors, xenstore values) is wrong.
    #[error("peer broke the rendezvous: {0}")]
    Rendezvous(String),
}

/// Violations of the handshake of the [extension](crate::extension).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExtensionError {
    /// The page does not begin as an extension page does.
    #[error("the page begins with {0:02x?}, which is not an extension page")]
    Magic([u8; 8]),
    /// The server offers version 0, or the client accepts one that was not offered.
    #[error("version {found} is not one of 1 to {newest}")]
    Version {
        /// The version found.
        found: u16,
        /// The newest one allowed.
        newest: u16,
    },
    /// The client accepts features that were not offered.
    #[error("features {found:#x} were accepted where {offered:#x} were offered")]
    Features {
        /// Bits found.
        found: u32,
        /// Bits offered.
        offered: u32,
    },
    /// The page belongs to another channel.
    #[error("its nonce is that of another channel")]
    Nonce,
    /// The server offers ring orders that do not go with those of the control page.
    #[error("it offers ring orders left {left}, right {right}: {rule}")]
    Orders {
        /// Order of the left ring.
        left: u16,
        /// Order of the right ring.
        right: u16,
        /// The rule they break.
        rule: &'static str,
    },
    /// The count of extra grants is not what the orders need.
    #[error("it lists {found} extra grants for rings that need {needed}")]
    ExtraGrants {
        /// The count found.
        found: u16,
        /// The count that follows from the orders.
        needed: usize,
    },
}

/// The reasons for which a call can fail.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// This end has been closed.
    #[error("the channel was closed by this side")]
    Closed,
    /// The peer closed, or its process or domain is gone.
    #[error("the peer closed the channel{}", left_behind(*unread))]
    PeerClosed {
        /// Bytes sent to the peer which it never took out of the ring.
        unread: u32,
    },
    /// The peer's whole domain was destroyed while the channel was open: what it had not yet sent
    /// is lost. (The end of a process alone looks like a close: its kernel does that for it.)
    #[error("the other side's domain was destroyed while the channel was open")]
    PeerLost,
    /// The deadline passed first; the text completes "while waiting to".
    #[error("timed out while waiting to {0}")]
    TimedOut(&'static str),
    /// The peer broke the rules.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// A shared region cannot do what was asked; the channel stays usable.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// The two ends could not be brought together.
    #[error("{what}")]
    Setup {
        /// One line: the problem.
        what: String,
        /// One line: the remedy.
        advice: String,
    },
    /// The caller asked for more bytes than there are; nothing was done.
    #[error("cannot {what} {asked} bytes: the most is {most}")]
    TooMany {
        /// The operation on them, for the message.
        what: &'static str,
        /// Bytes asked for.
        asked: usize,
        /// Most bytes that were possible.
        most: usize,
    },
    /// The operating system refused.
    #[error("{context}: {source}")]
    Os {
        /// The operation that failed, and its object.
        context: String,
        /// One line: the remedy.
        advice: String,
        /// The system's answer.
        source: io::Error,
    },
}

fn left_behind(unread: u32) -> String {
    match unread {
        0 => String::new(),
        unread => format!(" and left {unread} bytes unread"),
    }
}

impl Error {
    /// An [`Error::Os`] without special advice.
    pub fn os(context: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Os {
            context: context.into(),
            advice: "look at the system's log for the reason".to_owned(),
            source: source.into(),
        }
    }

    /// An [`Error::Os`] with advice.
    pub fn os_with_advice(
        context: impl Into<String>,
        source: impl Into<io::Error>,
        advice: impl Into<String>,
    ) -> Self {
        Self::Os {
            context: context.into(),
            advice: advice.into(),
            source: source.into(),
        }
    }

    /// An [`Error::Setup`].
    pub fn setup(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::Setup {
            what: what.into(),
            advice: advice.into(),
        }
    }

    /// One line: the remedy, for people.
    pub fn advice(&self) -> String {
        match self {
            Self::Closed => "open a new channel".to_owned(),
            Self::PeerClosed { .. } => {
                "look at the other side's output, then start both sides again".to_owned()
            }
            Self::PeerLost => {
                "start the domain again, then both sides; it has a new domain id".to_owned()
            }
            Self::TimedOut(_) => {
                "check that the other side is running, or allow more time".to_owned()
            }
            Self::Peer(_) => {
                "close this channel and do not trust the peer; it is broken or hostile".to_owned()
            }
            Self::Region(error) => error.advice().to_owned(),
            Self::TooMany { .. } => {
                "ask for no more than the ring holds, and pass on no more than \
                 was peeked at or reserved; check a length that came from the peer first"
                    .to_owned()
            }
            Self::Setup { advice, .. } | Self::Os { advice, .. } => advice.clone(),
        }
    }
}

#[cfg(feature = "cli")]
impl From<Error> for vgpu_cli::Failure {
    fn from(error: Error) -> Self {
        Self::new(error.to_string(), error.advice())
    }
}

impl From<TicketError> for Error {
    fn from(error: TicketError) -> Self {
        RegionError::from(error).into()
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Closed => io::ErrorKind::NotConnected,
            Error::PeerClosed { .. } => io::ErrorKind::BrokenPipe,
            Error::PeerLost => io::ErrorKind::ConnectionAborted,
            Error::TimedOut(_) => io::ErrorKind::TimedOut,
            Error::Peer(_) => io::ErrorKind::InvalidData,
            Error::Region(_) => io::ErrorKind::InvalidInput,
            Error::Setup { .. } => io::ErrorKind::NotFound,
            Error::TooMany { .. } => io::ErrorKind::InvalidInput,
            Error::Os { source, .. } => source.kind(),
        };
        Self::new(kind, error)
    }
}

impl From<Error> for TransportError {
    fn from(error: Error) -> Self {
        match error {
            Error::Closed | Error::PeerClosed { .. } | Error::PeerLost => Self::Closed,
            Error::TimedOut(what) => Self::TimedOut(what),
            Error::Peer(peer) => Self::PeerViolation(peer.to_string()),
            Error::Region(error) => Self::Io {
                context: error.to_string(),
                source: io::ErrorKind::InvalidInput.into(),
            },
            Error::Setup { what, .. } => Self::Io {
                context: what,
                source: io::ErrorKind::NotConnected.into(),
            },
            error @ Error::TooMany { .. } => Self::Io {
                context: error.to_string(),
                source: io::ErrorKind::InvalidInput.into(),
            },
            Error::Os {
                context, source, ..
            } => Self::Io { context, source },
        }
    }
}

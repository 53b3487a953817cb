//! The other end of a session, and the account that it belongs to.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use nix::unistd::Uid;
use vgpu_file_transport::{GuestName, SessionName};

use crate::policy::{GuestKey, Identity};

/// A directory that is served.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// As the admin named it.
    pub(super) directory: PathBuf,
    /// The guest of the directory; `None` for the directory itself.
    pub(super) guest: Option<GuestName>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let directory = self.directory.display();
        match &self.guest {
            None => write!(f, "file:{directory}"),
            Some(guest) => write!(f, "file:{directory}/{guest}"),
        }
    }
}

/// The other end of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Peer {
    /// A guest of this Xen host, and the name of its channel below `data/vgpu`.
    Xen(Identity, String),
    /// A process of this machine.
    Local {
        /// Its user.
        uid: u32,
        /// Itself.
        pid: i32,
    },
    /// A process of this machine, over the bytes of a Unix socket.
    Unix {
        /// Its user.
        uid: u32,
        /// Itself.
        pid: i32,
    },
    /// Somebody who connected over TCP.
    Tcp {
        /// Name of the secret that it has shown.
        name: Option<String>,
        /// Its source address.
        address: SocketAddr,
    },
    /// The mediator in dom0, of which this one is the relay's far end.
    Dom0,
    /// Whoever writes the two files of a directory.
    File(Place),
    /// A session in a directory.
    FileSession(Place, SessionName),
}

/// Identifies an account: what counts as one guest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum AccountKey {
    /// Domids are used again, so the uuid belongs to it.
    Xen(u16, Option<String>),
    /// By whatever kind of socket.
    Local(u32),
    /// All who have shown no secret share one.
    Tcp(Option<String>),
    Dom0,
    File(Place),
}

/// The kind of endpoint that a peer comes by. Peers that cannot be told apart are at least limited by that.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum EndpointKind {
    Xen,
    /// `local:` and `unix:`.
    Local,
    Tcp,
    /// The directory as the admin named it, with all directories of guests in it.
    File(PathBuf),
}

impl fmt::Display for EndpointKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Xen => f.write_str("xen:"),
            Self::Local => f.write_str("local: and unix:"),
            Self::Tcp => f.write_str("tcp:"),
            Self::File(directory) => write!(f, "file:{}", directory.display()),
        }
    }
}

impl Peer {
    /// The kind of endpoint that it comes by.
    pub(super) fn endpoint_kind(&self) -> EndpointKind {
        match self {
            Self::Xen(..) | Self::Dom0 => EndpointKind::Xen,
            Self::Local { .. } | Self::Unix { .. } => EndpointKind::Local,
            Self::Tcp { .. } => EndpointKind::Tcp,
            Self::File(place) | Self::FileSession(place, _) => {
                EndpointKind::File(place.directory.clone())
            }
        }
    }

    /// Whether it could do anything to this process anyway: limits guard against its mistakes only.
    pub(super) fn is_trusted(&self) -> bool {
        match self {
            Self::Local { uid, .. } | Self::Unix { uid, .. } => {
                *uid == 0 || *uid == Uid::effective().as_raw()
            }
            Self::Dom0 => true,
            Self::Xen(..) | Self::Tcp { .. } | Self::File(_) | Self::FileSession(..) => false,
        }
    }

    /// The account that its use counts for.
    pub(super) fn account(&self) -> AccountKey {
        match self {
            Self::Xen(identity, _) => AccountKey::Xen(identity.domid, identity.uuid.clone()),
            Self::Local { uid, .. } | Self::Unix { uid, .. } => AccountKey::Local(*uid),
            Self::Tcp { name, .. } => AccountKey::Tcp(name.clone()),
            Self::Dom0 => AccountKey::Dom0,
            Self::File(place) | Self::FileSession(place, _) => AccountKey::File(place.clone()),
        }
    }

    /// The account's name for programs: of a VM it outlives a restart, unless it has neither uuid nor name.
    pub(super) fn id(&self) -> String {
        match self {
            Self::Xen(identity, _) => match (&identity.uuid, &identity.name) {
                (Some(uuid), _) => format!("uuid:{uuid}"),
                (None, Some(name)) => format!("name:{name}"),
                (None, None) => format!("domid:{}", identity.domid),
            },
            Self::Local { uid, .. } | Self::Unix { uid, .. } => format!("uid:{uid}"),
            Self::Tcp { name: None, .. } => "tcp".to_owned(),
            Self::Tcp {
                name: Some(name), ..
            } => format!("tcp:{name}"),
            Self::Dom0 => "dom0".to_owned(),
            Self::File(place) | Self::FileSession(place, _) => place.to_string(),
        }
    }

    /// The account's name for people.
    pub(super) fn account_name(&self) -> String {
        match self {
            Self::Xen(identity, _) => identity.to_string(),
            Self::Local { uid, .. } | Self::Unix { uid, .. } => format!("local uid {uid}"),
            Self::Tcp { name: None, .. } => "tcp, without a secret".to_owned(),
            Self::Tcp {
                name: Some(name), ..
            } => format!("tcp {name}"),
            Self::Dom0 => "dom0".to_owned(),
            Self::File(place) | Self::FileSession(place, _) => place.to_string(),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { uid, pid } => write!(f, "local uid {uid} pid {pid}"),
            Self::Unix { uid, pid } => write!(f, "unix uid {uid} pid {pid}"),
            Self::Tcp {
                name: None,
                address,
            } => write!(f, "tcp {address}"),
            Self::Tcp {
                name: Some(name),
                address,
            } => write!(f, "tcp {name} ({address})"),
            _ => f.write_str(&self.account_name()),
        }
    }
}

/// Which sessions an administrator means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    Guest(GuestKey),
    Session(u64),
    /// All processes of this machine.
    Local,
    /// All sessions that dom0's mediator passes on.
    Dom0,
    /// The name that `vgpuctl status` prints for an account or for one session.
    Printed(String),
}

/// Prefixes of the names that [`Peer`] prints. A rule for a VM whose name begins with one of them is
/// written `name:…`, as everywhere.
const PRINTED: [&str; 6] = ["guest ", "local uid ", "unix uid ", "tcp ", "tcp,", "file:"];

impl Target {
    /// `session:N`, `local`, a guest as in the configuration, or a name that `status` prints.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text == "local" {
            return Ok(Self::Local);
        }
        if text == "dom0" {
            return Ok(Self::Dom0);
        }
        if PRINTED.iter().any(|start| text.starts_with(start)) {
            return Ok(Self::Printed(text.to_owned()));
        }
        match text.strip_prefix("session:").map(str::parse) {
            Some(Ok(id)) => Ok(Self::Session(id)),
            Some(Err(_)) => Err(format!("`{text}`: a session is a number")),
            None => text.parse().map(Self::Guest),
        }
    }

    /// Whether `who`'s session number `id` is meant.
    pub(super) fn means(&self, id: u64, peer: &Peer) -> bool {
        match (self, peer) {
            (Self::Session(wanted), _) => *wanted == id,
            (Self::Local, Peer::Local { .. } | Peer::Unix { .. }) | (Self::Dom0, Peer::Dom0) => {
                true
            }
            // Compared as printed: what the printer writes needs no second reading of its parts.
            (Self::Printed(text), peer) => {
                *text == peer.account_name() || *text == peer.to_string()
            }
            (Self::Guest(key), Peer::Xen(identity, _)) => identity.is(key),
            (Self::Guest(GuestKey::Name(name)), Peer::FileSession(place, _)) => place
                .guest
                .as_ref()
                .is_some_and(|guest| guest.as_str() == name),
            (Self::Guest(GuestKey::Name(wanted)), Peer::Tcp { name, .. }) => {
                name.as_ref() == Some(wanted)
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Everybody that can have a session.
    fn anybody() -> impl Strategy<Value = Peer> {
        let identity = || {
            let name = prop::option::of(any::<String>());
            (any::<u16>(), name, prop::option::of("[0-9a-f]{8}"))
                .prop_map(|(domid, name, uuid)| Identity { domid, name, uuid })
        };
        // Directories and guests that are easily taken for one another.
        let place = || {
            let guest = prop::option::of("[ab][ab.-]{0,2}");
            ("/[ab /]{0,4}", guest).prop_map(|(directory, guest)| Place {
                directory: directory.into(),
                guest: guest.map(|name| name.parse::<GuestName>().unwrap()),
            })
        };
        let address = any::<(bool, u32, u16)>().prop_map(|(six, host, port)| {
            let four = std::net::Ipv4Addr::from_bits(host);
            match six {
                true => SocketAddr::new(four.to_ipv6_mapped().into(), port),
                false => SocketAddr::new(four.into(), port),
            }
        });
        let secret = prop::option::of("[A-Za-z0-9._-]{1,8}");
        prop_oneof![
            identity().prop_map(|identity| Peer::Xen(identity, "0123456789abcdef".into())),
            any::<(u32, i32)>().prop_map(|(uid, pid)| Peer::Local { uid, pid }),
            any::<(u32, i32)>().prop_map(|(uid, pid)| Peer::Unix { uid, pid }),
            (secret, address).prop_map(|(name, address)| Peer::Tcp { name, address }),
            Just(Peer::Dom0),
            place().prop_map(Peer::File),
            (place(), any::<[u8; 16]>())
                .prop_map(|(place, name)| Peer::FileSession(place, SessionName::new(name))),
        ]
    }

    proptest! {
        #[test]
        fn what_status_prints_means_the_one_it_was_printed_for(
            peer in anybody(), other in anybody(), id in any::<u64>(),
        ) {
            let printed = [peer.account_name(), peer.to_string()];
            for name in &printed {
                let target = Target::parse(name).unwrap();
                prop_assert!(target.means(id, &peer), "{name}");
                // `dom0` aside, a name means nobody else, unless that one is printed the same.
                let same = printed.contains(&other.account_name())
                    || printed.contains(&other.to_string());
                prop_assert!(same || !target.means(id, &other), "{name}: {other}");
            }
        }

        #[test]
        fn accounts_that_are_printed_the_same_are_the_same(peer in anybody(), other in anybody()) {
            // A domid and a directory may be in use twice, at different times or by two endpoints.
            let ambiguous = |peer: &Peer| {
                matches!(peer, Peer::Xen(..) | Peer::File(_) | Peer::FileSession(..))
            };
            if peer.account() != other.account() && !ambiguous(&peer) {
                prop_assert_ne!(peer.account_name(), other.account_name());
            }
        }
    }

    #[test]
    fn targets_mean_what_they_say() {
        let identity = Identity {
            domid: 7,
            name: Some("web".into()),
            uuid: None,
        };
        let xen = Peer::Xen(identity, "0123456789abcdef".into());
        let local = Peer::Local { uid: 1000, pid: 5 };
        let unix = Peer::Unix { uid: 1000, pid: 5 };
        let tcp = |name: Option<&str>| Peer::Tcp {
            name: name.map(str::to_owned),
            address: "192.0.2.1:5".parse().unwrap(),
        };
        for (text, xen_wanted, local_wanted) in [
            ("7", true, false),
            ("web", true, false),
            ("8", false, false),
            ("local", false, true),
            ("session:3", true, true),
            ("session:4", false, false),
        ] {
            let target = Target::parse(text).unwrap();
            assert_eq!(target.means(3, &xen), xen_wanted, "{text}");
            assert_eq!(target.means(3, &local), local_wanted, "{text}");
            assert_eq!(target.means(3, &unix), local_wanted, "{text}");
            let tcp_wanted = matches!(text, "web" | "session:3");
            assert_eq!(target.means(3, &tcp(Some("web"))), tcp_wanted, "{text}");
            assert_eq!(target.means(3, &tcp(None)), text == "session:3", "{text}");
        }
        assert!(Target::parse("session:x").is_err());
        assert!(Target::parse("").is_err());
    }
}

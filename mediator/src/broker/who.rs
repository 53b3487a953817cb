//! Whose session it is.

use std::fmt;

use vgpu_file_transport::SessionName;

use super::files::Place;
use crate::policy::{GuestKey, Identity};

/// The other end of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Who {
    /// A guest of this Xen host, and the name of its channel below `data/vgpu`.
    Xen(Identity, String),
    /// A process of this machine.
    Local {
        /// Its user.
        uid: u32,
        /// Itself.
        pid: i32,
    },
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
    Local(u32),
    File(Place),
}

impl Who {
    /// The account that its use counts for.
    pub(super) fn account(&self) -> AccountKey {
        match self {
            Self::Xen(identity, _) => AccountKey::Xen(identity.domid, identity.uuid.clone()),
            Self::Local { uid, .. } => AccountKey::Local(*uid),
            Self::File(place) | Self::FileSession(place, _) => AccountKey::File(place.clone()),
        }
    }

    /// The account's name for people.
    pub(super) fn account_name(&self) -> String {
        match self {
            Self::Xen(identity, _) => identity.to_string(),
            Self::Local { uid, .. } => format!("local uid {uid}"),
            Self::File(place) | Self::FileSession(place, _) => place.to_string(),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { uid, pid } => write!(f, "local uid {uid} pid {pid}"),
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
}

impl Target {
    /// `session:N`, `local`, or a guest as in the configuration.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text == "local" {
            return Ok(Self::Local);
        }
        match text.strip_prefix("session:").map(str::parse) {
            Some(Ok(id)) => Ok(Self::Session(id)),
            Some(Err(_)) => Err(format!("`{text}`: a session is a number")),
            None => text.parse().map(Self::Guest),
        }
    }

    /// Whether `who`'s session number `id` is meant.
    pub(super) fn means(&self, id: u64, who: &Who) -> bool {
        match (self, who) {
            (Self::Session(wanted), _) => *wanted == id,
            (Self::Local, Who::Local { .. }) => true,
            (Self::Guest(key), Who::Xen(identity, _)) => identity.is(key),
            (Self::Guest(GuestKey::Name(name)), Who::FileSession(place, _)) => place
                .guest
                .as_ref()
                .is_some_and(|guest| guest.as_str() == name),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_mean_what_they_say() {
        let identity = Identity {
            domid: 7,
            name: Some("web".into()),
            uuid: None,
        };
        let xen = Who::Xen(identity, "0123456789abcdef".into());
        let local = Who::Local { uid: 1000, pid: 5 };
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
        }
        assert!(Target::parse("session:x").is_err());
        assert!(Target::parse("").is_err());
    }
}

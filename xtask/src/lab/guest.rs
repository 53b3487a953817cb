//! The description of a guest.

use std::fmt;
use std::net::Ipv4Addr;

/// The virtualisation of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Paravirtualised: no hardware support needed.
    Pv,
    /// Hardware-virtualised without an emulated PC.
    Pvh,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Pv => "pv",
            Kind::Pvh => "pvh",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Pv => "PV",
            Kind::Pvh => "PVH",
        })
    }
}

/// A guest to create.
#[derive(Debug, Clone)]
pub(crate) struct GuestSpec {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) memory_mib: u32,
    /// `max_maptrack_frames`; 0 is XCP-ng's setting: such a guest cannot map any grants. `None`
    /// leaves Xen's default.
    pub(crate) maptrack_frames: Option<u32>,
    /// Physical processors it may run on, in xl's form.
    pub(crate) cpus: Option<String>,
    /// Its address in the network between dom0 and guests, `None` for no network.
    pub(crate) address: Option<Ipv4Addr>,
    /// More words for its kernel command line.
    pub(crate) command_line: String,
}

impl GuestSpec {
    /// A guest like XCP-ng's, with 320 MiB.
    pub(crate) fn new(name: &str, kind: Kind) -> Self {
        GuestSpec {
            name: name.to_owned(),
            kind,
            memory_mib: 320,
            maptrack_frames: Some(0),
            cpus: None,
            address: None,
            command_line: String::new(),
        }
    }

    /// The call of `guest_create` in `image/functions.sh` that makes it.
    pub(crate) fn shell_command(&self) -> String {
        let mut line = format!(
            "guest_create {} {} memory={}",
            self.name,
            self.kind.name(),
            self.memory_mib
        );
        if let Some(frames) = self.maptrack_frames {
            line.push_str(&format!(" maptrack={frames}"));
        }
        if let Some(cpus) = &self.cpus {
            line.push_str(&format!(" cpus={cpus}"));
        }
        if let Some(address) = self.address {
            line.push_str(&format!(" address={address}"));
        }
        if !self.command_line.is_empty() {
            line.push_str(&format!(" 'cmdline={}'", self.command_line));
        }
        line
    }
}

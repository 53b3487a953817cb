//! Which guests may use the mediator. Deny by default.
//!
//! A guest is known by its domid, its name and its VM's uuid, all of which dom0 writes into
//! xenstore below nodes that the guest cannot write. Nothing below the guest's own `data` or
//! `vm-data` counts.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use vgpu_protocol::op::OpSet;

use crate::devices::Devices;

/// Name of a guest in a configuration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum GuestKey {
    /// The number of a running domain. It changes with every start of the VM.
    DomId(u16),
    /// The VM's name.
    Name(String),
    /// The VM's uuid, in lower case.
    Uuid(String),
}

impl FromStr for GuestKey {
    type Err = String;

    /// A bare number is a domid and a bare uuid a uuid; a prefix settles it otherwise.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("domid", number)) => parse_domid(number)
                .ok_or_else(|| format!("`{text}`: a domid is a number from 1 to 32751")),
            Some(("uuid", uuid)) => parse_uuid(uuid).ok_or_else(|| {
                format!("`{text}`: a uuid has 32 hexadecimal digits in groups of 8-4-4-4-12")
            }),
            Some(("name", name)) => parse_name(name),
            _ if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => {
                parse_domid(text).ok_or_else(|| {
                    format!(
                        "`{text}`: a domid is a number from 1 to 32751; write name:{text} if it \
                         is a name"
                    )
                })
            }
            _ => parse_uuid(text).map_or_else(|| parse_name(text), Ok),
        }
    }
}

fn parse_domid(text: &str) -> Option<GuestKey> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number: u16 = text.parse().ok()?;
    // 0 is dom0 itself, and from 0x7FF0 on Xen's numbers have special meanings.
    (digits && (1..0x7FF0).contains(&number)).then_some(GuestKey::DomId(number))
}

fn parse_name(text: &str) -> Result<GuestKey, String> {
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(format!("{text:?} is no name of a guest"));
    }
    Ok(GuestKey::Name(text.to_owned()))
}

fn parse_uuid(text: &str) -> Option<GuestKey> {
    let groups: Vec<&str> = text.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    let hex = |group: &&str| group.bytes().all(|byte| byte.is_ascii_hexdigit());
    (lengths == [8, 4, 4, 4, 12] && groups.iter().all(hex))
        .then(|| GuestKey::Uuid(text.to_ascii_lowercase()))
}

impl fmt::Display for GuestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DomId(number) => write!(f, "domid:{number}"),
            Self::Name(name) => write!(f, "name:{name}"),
            Self::Uuid(uuid) => write!(f, "uuid:{uuid}"),
        }
    }
}

impl Serialize for GuestKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GuestKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The rule for one guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct GuestRule {
    /// Whether it may use the mediator.
    pub allow: bool,
    /// Sessions it may have at once, where that is not the general limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_sessions: Option<u32>,
    /// The share of a device of each of its sessions, where that is not the general limit.
    #[serde(flatten)]
    pub share: Share,
}

/// Limits of a session; absent values set no limit here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Share {
    /// MiB of device memory.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub memory_mib: Option<u32>,
    /// MiB of the guest's own memory that may be mapped and page-locked for the device.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pinned_mib: Option<u32>,
    /// Seconds that a kernel may run.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kernel_timeout_s: Option<u32>,
    /// Objects of each kind: allocations, modules, streams, events.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_objects: Option<u32>,
    /// Seconds a session may be idle between two requests.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub idle_timeout_s: Option<u32>,
    /// Seconds without any byte moved, or other progress, in the middle of a request.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stall_timeout_s: Option<u32>,
    /// Seconds that a request may take in all.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub request_timeout_s: Option<u32>,
    /// Operations that it may request.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub operations: Option<Operations>,
    /// Its guest's part of the device's time, beside those of others.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub weight: Option<u32>,
    /// Devices of this machine that it may use, in the order in which it counts them. None at all where several rules
    /// name its guest and no device is common to them.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub devices: Option<Devices>,
}

/// The operations that a session may ask for: a list of their names, as `module-load`, or those of
/// whole families, as `module`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Operations(pub OpSet);

impl TryFrom<Vec<String>> for Operations {
    type Error = String;

    fn try_from(names: Vec<String>) -> Result<Self, String> {
        let mut all = OpSet::NONE;
        for name in names {
            let named = OpSet::named(&name).ok_or_else(|| {
                format!(
                    "`{name}` is no operation; there are those of {}, and single ones as module-load",
                    OpSet::families().join(", ")
                )
            })?;
            all = all.union(named);
        }
        Ok(Self(all))
    }
}

impl From<Operations> for Vec<String> {
    fn from(operations: Operations) -> Self {
        operations.0.names()
    }
}

impl Share {
    /// This one, and `general` for what it does not say.
    #[must_use]
    pub fn or(self, general: Self) -> Self {
        Self {
            memory_mib: self.memory_mib.or(general.memory_mib),
            pinned_mib: self.pinned_mib.or(general.pinned_mib),
            kernel_timeout_s: self.kernel_timeout_s.or(general.kernel_timeout_s),
            max_objects: self.max_objects.or(general.max_objects),
            idle_timeout_s: self.idle_timeout_s.or(general.idle_timeout_s),
            stall_timeout_s: self.stall_timeout_s.or(general.stall_timeout_s),
            request_timeout_s: self.request_timeout_s.or(general.request_timeout_s),
            operations: self.operations.or(general.operations),
            weight: self.weight.or(general.weight),
            devices: self.devices.or(general.devices),
        }
    }

    /// The less of each.
    fn least(self, other: Self) -> Self {
        let least = |one: Option<u32>, other: Option<u32>| match (one, other) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        Self {
            memory_mib: least(self.memory_mib, other.memory_mib),
            pinned_mib: least(self.pinned_mib, other.pinned_mib),
            kernel_timeout_s: least(self.kernel_timeout_s, other.kernel_timeout_s),
            max_objects: least(self.max_objects, other.max_objects),
            idle_timeout_s: least(self.idle_timeout_s, other.idle_timeout_s),
            stall_timeout_s: least(self.stall_timeout_s, other.stall_timeout_s),
            request_timeout_s: least(self.request_timeout_s, other.request_timeout_s),
            operations: match (self.operations, other.operations) {
                (Some(one), Some(other)) => Some(Operations(one.0.common(other.0))),
                (one, other) => one.or(other),
            },
            weight: least(self.weight, other.weight),
            devices: match (self.devices, other.devices) {
                (Some(one), Some(other)) => Some(one.common(&other)),
                (one, other) => one.or(other),
            },
        }
    }

    /// Whether it says anything that no session can be run with.
    ///
    /// # Errors
    /// Which setting, and why.
    pub fn check(self) -> Result<(), String> {
        let settings = [
            ("memory_mib", self.memory_mib),
            ("kernel_timeout_s", self.kernel_timeout_s),
            ("max_objects", self.max_objects),
            ("idle_timeout_s", self.idle_timeout_s),
            ("stall_timeout_s", self.stall_timeout_s),
            ("request_timeout_s", self.request_timeout_s),
            ("weight", self.weight),
        ];
        if let Some((name, _)) = settings.iter().find(|(_, value)| *value == Some(0)) {
            return Err(format!("{name} is 0; it must be at least 1"));
        }
        let at_most = [
            ("max_objects", self.max_objects, MOST_OBJECTS),
            ("weight", self.weight, MOST_WEIGHT),
        ];
        for (name, value, most) in at_most {
            if let Some(value) = value.filter(|value| *value > most) {
                return Err(format!("{name} is {value}; at most {most} are possible"));
            }
        }
        self.devices.map_or(Ok(()), |devices| devices.check())
    }
}

/// Largest weight: one beside it still has its turn within a second.
pub const MOST_WEIGHT: u32 = 100;

/// Objects of each kind that any session can have.
pub const MOST_OBJECTS: u32 = 1 << 16;

/// MiB of a guest's own memory that may be page-locked for a session where nothing else is said.
pub const PINNED_MIB: u32 = 256;

/// A guest as dom0 knows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// The running domain's number.
    pub domid: u16,
    /// The VM's name, if xenstore has one.
    pub name: Option<String>,
    /// The VM's uuid in lower case, if xenstore has one.
    pub uuid: Option<String>,
}

impl Identity {
    /// Whether a configuration or an administrator means this guest by `key`.
    pub fn is(&self, key: &GuestKey) -> bool {
        match key {
            GuestKey::DomId(domid) => *domid == self.domid,
            GuestKey::Name(name) => self.name.as_ref() == Some(name),
            GuestKey::Uuid(uuid) => self.uuid.as_ref() == Some(uuid),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guest {}", self.domid)?;
        match &self.name {
            Some(name) => write!(f, " ({})", name.escape_debug()),
            None => Ok(()),
        }
    }
}

/// The rules for all guests.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// Admit everyone whom no rule denies.
    pub allow_all: bool,
    /// Rules by guest. A guest that several rules name is denied if one of them denies it.
    pub guests: BTreeMap<GuestKey, GuestRule>,
}

/// The policy's verdict on a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// Whether it may use the mediator.
    pub allow: bool,
    /// Sessions it may have at once, where a rule says so.
    pub max_sessions: Option<u32>,
    /// Which rule decided.
    pub why: String,
}

impl Policy {
    /// Judges a client that has shown the secret of `name`. The secret lets it in; a rule for that
    /// name can deny it or say how many sessions it may have.
    pub fn judge_name(&self, name: &str) -> Judgement {
        match self.guests.get(&GuestKey::Name(name.to_owned())) {
            Some(rule) => Judgement {
                allow: rule.allow,
                max_sessions: rule.max_sessions,
                why: match rule.allow {
                    true => "it has a secret".into(),
                    false => format!("the rule for name:{name} denies it"),
                },
            },
            None => Judgement {
                allow: true,
                max_sessions: None,
                why: "it has a secret".into(),
            },
        }
    }

    /// The share that the rules give a session of a guest; of several rules, the least.
    pub fn share(&self, guest: &Identity) -> Share {
        let rules = self.guests.iter().filter(|(key, _)| guest.is(key));
        rules.fold(Share::default(), |share, (_, rule)| share.least(rule.share))
    }

    /// The same of one that is known by a name alone.
    pub fn share_of_name(&self, name: &str) -> Share {
        let rule = self.guests.get(&GuestKey::Name(name.to_owned()));
        rule.map_or_else(Share::default, |rule| rule.share)
    }

    /// Judges a guest.
    pub fn judge(&self, guest: &Identity) -> Judgement {
        let mut allowed: Option<Judgement> = None;
        for (key, rule) in self.guests.iter().filter(|(key, _)| guest.is(key)) {
            let verb = if rule.allow { "allows" } else { "denies" };
            let judgement = Judgement {
                allow: rule.allow,
                max_sessions: rule.max_sessions,
                why: format!("the rule for {key} {verb} it"),
            };
            if !rule.allow {
                return judgement;
            }
            // Of several rules that allow it, the one with the smallest limit counts.
            let tighter = |old: &Judgement| {
                rule.max_sessions.unwrap_or(u32::MAX) < old.max_sessions.unwrap_or(u32::MAX)
            };
            if allowed.as_ref().is_none_or(tighter) {
                allowed = Some(judgement);
            }
        }
        allowed.unwrap_or_else(|| Judgement {
            allow: self.allow_all,
            max_sessions: None,
            why: if self.allow_all {
                "all guests are allowed".into()
            } else {
                "no rule allows it".into()
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::DeviceKey;

    const UUID: &str = "0a1b2c3d-0000-4000-8000-00000000beef";

    fn operations(names: &[&str]) -> Operations {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        names.try_into().unwrap()
    }

    fn guest() -> Identity {
        Identity {
            domid: 7,
            name: Some("web-1".into()),
            uuid: Some(UUID.into()),
        }
    }

    fn policy(allow_all: bool, rules: &[(&str, bool, Option<u32>)]) -> Policy {
        let guests = rules
            .iter()
            .map(|&(key, allow, max_sessions)| {
                (
                    key.parse().unwrap(),
                    GuestRule {
                        allow,
                        max_sessions,
                        share: Share::default(),
                    },
                )
            })
            .collect();
        Policy { allow_all, guests }
    }

    #[test]
    fn keys_are_read_by_their_shape_or_prefix() {
        let cases = [
            ("7", GuestKey::DomId(7)),
            ("domid:7", GuestKey::DomId(7)),
            ("web-1", GuestKey::Name("web-1".into())),
            ("name:7", GuestKey::Name("7".into())),
            ("name:a:b", GuestKey::Name("a:b".into())),
            (
                "uuid:0A1B2C3D-0000-4000-8000-00000000BEEF",
                GuestKey::Uuid(UUID.into()),
            ),
            (UUID, GuestKey::Uuid(UUID.into())),
            ("0a1b2c3d-0000", GuestKey::Name("0a1b2c3d-0000".into())),
        ];
        for (text, wanted) in cases {
            assert_eq!(text.parse(), Ok(wanted.clone()), "{text}");
            assert_eq!(
                wanted.to_string().parse(),
                Ok(wanted),
                "what is printed is read again"
            );
        }
        for text in [
            "", "0", "40000", "99999999", "domid:x", "domid:", "uuid:7", "name:", "a\nb",
        ] {
            assert!(text.parse::<GuestKey>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn nobody_is_allowed_by_default() {
        let judgement = Policy::default().judge(&guest());
        assert!(!judgement.allow);
        assert_eq!(judgement.why, "no rule allows it");
    }

    #[test]
    fn each_kind_of_key_finds_its_guest() {
        for key in ["7", "web-1", UUID] {
            assert!(
                policy(false, &[(key, true, None)]).judge(&guest()).allow,
                "{key}"
            );
            assert!(
                !policy(true, &[(key, false, None)]).judge(&guest()).allow,
                "{key}"
            );
        }
        for key in ["8", "web-2", "0a1b2c3d-0000-4000-8000-00000000cafe"] {
            assert!(
                !policy(false, &[(key, true, None)]).judge(&guest()).allow,
                "{key}"
            );
            assert!(
                policy(true, &[(key, false, None)]).judge(&guest()).allow,
                "{key}"
            );
        }
    }

    #[test]
    fn a_secret_lets_its_name_in_unless_a_rule_denies_it() {
        let rules = [("web-1", false, None), ("db", true, Some(2))];
        let policy = policy(false, &rules);
        assert!(policy.judge_name("other").allow);
        assert_eq!(policy.judge_name("db").max_sessions, Some(2));
        let denied = policy.judge_name("web-1");
        assert!(!denied.allow);
        assert_eq!(denied.why, "the rule for name:web-1 denies it");
    }

    #[test]
    fn a_denial_beats_any_permission_and_the_tightest_limit_counts() {
        let rules = [
            ("7", true, None),
            ("web-1", false, None),
            (UUID, true, None),
        ];
        let judgement = policy(true, &rules).judge(&guest());
        assert!(!judgement.allow);
        assert_eq!(judgement.why, "the rule for name:web-1 denies it");
        let rules = [
            ("7", true, Some(3)),
            ("web-1", true, None),
            (UUID, true, Some(2)),
        ];
        let judgement = policy(false, &rules).judge(&guest());
        assert!(judgement.allow);
        assert_eq!(judgement.max_sessions, Some(2));
    }

    #[test]
    fn a_guest_without_name_and_uuid_matches_only_its_domid() {
        let unnamed = Identity {
            domid: 7,
            ..Identity::default()
        };
        assert!(policy(false, &[("7", true, None)]).judge(&unnamed).allow);
        assert!(
            !policy(false, &[("web-1", true, None)])
                .judge(&unnamed)
                .allow
        );
        assert_eq!(unnamed.to_string(), "guest 7");
        assert_eq!(guest().to_string(), "guest 7 (web-1)");
    }

    #[test]
    fn of_several_rules_the_least_share_counts_and_a_general_one_fills_in() {
        let mut policy = policy(false, &[("web-1", true, None), ("7", true, None)]);
        let (web, seven) = ("web-1".parse().unwrap(), "7".parse().unwrap());
        policy.guests.get_mut(&web).unwrap().share = Share {
            memory_mib: Some(100),
            kernel_timeout_s: Some(5),
            operations: Some(operations(&["module", "launch"])),
            ..Share::default()
        };
        policy.guests.get_mut(&seven).unwrap().share = Share {
            memory_mib: Some(200),
            operations: Some(operations(&["launch", "memory"])),
            ..Share::default()
        };
        let guest = Identity {
            domid: 7,
            name: Some("web-1".into()),
            uuid: None,
        };
        let general = Share {
            memory_mib: Some(1),
            kernel_timeout_s: Some(60),
            max_objects: Some(9),
            stall_timeout_s: Some(8),
            request_timeout_s: Some(7),
            ..Share::default()
        };
        let share = policy.share(&guest).or(general);
        assert_eq!(share.operations, Some(operations(&["launch"])));
        assert_eq!(share.stall_timeout_s, Some(8));
        assert_eq!(share.request_timeout_s, Some(7));
        assert_eq!(share.memory_mib, Some(100));
        assert_eq!(share.kernel_timeout_s, Some(5));
        assert_eq!(share.max_objects, Some(9));
        let devices = |keys: &[u32]| {
            let keys: Vec<DeviceKey> = keys.iter().copied().map(DeviceKey::Index).collect();
            Devices::try_from(keys).unwrap()
        };
        policy.guests.get_mut(&web).unwrap().share.devices = Some(devices(&[2, 0]));
        assert_eq!(
            policy.share(&guest).or(general).devices,
            Some(devices(&[2, 0]))
        );
        policy.guests.get_mut(&seven).unwrap().share.devices = Some(devices(&[1, 2]));
        assert_eq!(policy.share(&guest).devices, Some(devices(&[2])));
        // Never all of them because no two lists agree.
        policy.guests.get_mut(&seven).unwrap().share.devices = Some(devices(&[1]));
        assert_eq!(
            policy.share(&guest).or(general).devices,
            Some(Devices::NONE)
        );
        let stranger = Identity {
            domid: 8,
            ..Identity::default()
        };
        assert_eq!(policy.share(&stranger), Share::default());
        assert_eq!(policy.share_of_name("web-1").memory_mib, Some(100));
        assert_eq!(policy.share_of_name("other"), Share::default());
        for (share, words) in [
            (
                Share {
                    memory_mib: Some(0),
                    ..general
                },
                "memory_mib is 0",
            ),
            (
                Share {
                    kernel_timeout_s: Some(0),
                    ..general
                },
                "kernel_timeout_s is 0",
            ),
            (
                Share {
                    max_objects: Some(0),
                    ..general
                },
                "max_objects is 0",
            ),
            (
                Share {
                    max_objects: Some(70_000),
                    ..general
                },
                "at most 65536",
            ),
            (
                Share {
                    weight: Some(101),
                    ..general
                },
                "weight is 101; at most 100",
            ),
        ] {
            assert!(share.check().unwrap_err().contains(words));
        }
        assert_eq!(general.check(), Ok(()));
    }
}

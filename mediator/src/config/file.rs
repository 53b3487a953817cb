//! The configuration file as it is written, before flags and checks.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::de::{Error, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer};
use vgpu_transport::endpoint::{Endpoint, parse_list};

use super::{Limits, MetricsAddress, WorkerSettings};
use crate::devices::Devices;
use crate::executor::ExecutorChoice;
use crate::policy::{GuestKey, GuestRule, Operations, Share};

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ConfigFile {
    #[serde(deserialize_with = "endpoints")]
    pub(super) listen: Vec<Endpoint>,
    #[serde(deserialize_with = "executor")]
    pub(super) executor: Option<ExecutorChoice>,
    pub(super) relay_secret: Option<PathBuf>,
    pub(super) secrets: Option<PathBuf>,
    pub(super) control: Option<PathBuf>,
    pub(super) metrics: Option<MetricsAddress>,
    pub(super) allow_all: bool,
    #[serde(deserialize_with = "limits")]
    pub(super) limits: Limits,
    pub(super) worker: WorkerSettings,
    #[serde(deserialize_with = "guests")]
    pub(super) guests: BTreeMap<GuestKey, GuestRule>,
}

/// `"xen:"`, `"xen:,local:/a"` or `["xen:", "local:/a"]`.
fn endpoints<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Endpoint>, D::Error> {
    struct List;
    impl<'de> Visitor<'de> for List {
        type Value = Vec<Endpoint>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an endpoint or a list of endpoints, such as \"xen:\"")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
            parse_list(text).map_err(E::custom)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Self::Value, A::Error> {
            let mut list = Vec::new();
            while let Some(text) = parts.next_element::<String>()? {
                list.push(text.parse().map_err(A::Error::custom)?);
            }
            Ok(list)
        }
    }
    deserializer.deserialize_any(List)
}

fn executor<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<ExecutorChoice>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(D::Error::custom)
}

/// The limits, checked, so that the error has a line.
fn limits<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Limits, D::Error> {
    let limits = Limits::deserialize(deserializer)?;
    limits.check().map_err(D::Error::custom)?;
    Ok(limits)
}

/// A table of rules in which no guest stands twice, in whatever notation.
fn guests<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<GuestKey, GuestRule>, D::Error> {
    struct Rules;
    impl<'de> Visitor<'de> for Rules {
        type Value = BTreeMap<GuestKey, GuestRule>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a table of guests, such as { web-1 = \"allow\" }")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
            let mut rules = BTreeMap::new();
            while let Some(Key(key)) = entries.next_key()? {
                if rules.contains_key(&key) {
                    // Reading the value first lets the error carry this entry's line.
                    entries.next_value_seed(Refuse(format!("{key} is named twice")))?;
                }
                let Rule(rule) = entries.next_value()?;
                rules.insert(key, rule);
            }
            Ok(rules)
        }
    }
    deserializer.deserialize_map(Rules)
}

struct Key(GuestKey);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        GuestKey::deserialize(deserializer).map(Key)
    }
}

/// Takes a value only to refuse it.
struct Refuse(String);

impl<'de> serde::de::DeserializeSeed<'de> for Refuse {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, _: D) -> Result<(), D::Error> {
        Err(D::Error::custom(self.0))
    }
}

/// `true`, `"allow"`, `{ allow = true, max_sessions = 2 }` and their opposites.
struct Rule(GuestRule);

impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            allow: bool,
            max_sessions: Option<u32>,
            memory_mib: Option<u32>,
            pinned_mib: Option<u32>,
            kernel_timeout_s: Option<u32>,
            max_objects: Option<u32>,
            idle_timeout_s: Option<u32>,
            stall_timeout_s: Option<u32>,
            request_timeout_s: Option<u32>,
            operations: Option<Operations>,
            weight: Option<u32>,
            devices: Option<Devices>,
        }
        struct Notations;
        impl<'de> Visitor<'de> for Notations {
            type Value = GuestRule;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"allow\", \"deny\", true, false or { allow = true, … }")
            }

            fn visit_bool<E: Error>(self, allow: bool) -> Result<GuestRule, E> {
                Ok(GuestRule {
                    allow,
                    max_sessions: None,
                    share: Share::default(),
                })
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<GuestRule, E> {
                match text {
                    "allow" => self.visit_bool(true),
                    "deny" => self.visit_bool(false),
                    other => Err(E::invalid_value(serde::de::Unexpected::Str(other), &self)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<GuestRule, A::Error> {
                let table = Table::deserialize(MapAccessDeserializer::new(table))?;
                let share = Share {
                    memory_mib: table.memory_mib,
                    pinned_mib: table.pinned_mib,
                    kernel_timeout_s: table.kernel_timeout_s,
                    max_objects: table.max_objects,
                    idle_timeout_s: table.idle_timeout_s,
                    stall_timeout_s: table.stall_timeout_s,
                    request_timeout_s: table.request_timeout_s,
                    operations: table.operations,
                    weight: table.weight,
                    devices: table.devices,
                };
                share.check().map_err(A::Error::custom)?;
                Ok(GuestRule {
                    allow: table.allow,
                    max_sessions: table.max_sessions,
                    share,
                })
            }
        }
        deserializer.deserialize_any(Notations).map(Rule)
    }
}

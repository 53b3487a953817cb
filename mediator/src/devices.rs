//! The devices of this machine that a guest may use: their names in a configuration, and what these mean here.

use std::fmt;
use std::str::FromStr;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Most devices that a list can name: more than a machine has GPUs.
pub const MOST_DEVICES: usize = 16;

/// The name of a device in a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceKey {
    /// Its number, from 0, in the order of the PCI bus, as `nvidia-smi` counts. With the cpu executor 0 is the processor.
    Index(u32),
    /// Its own 16 bytes, as `cuDeviceGetUuid` gives them: `GPU-` and 32 digits, as `nvidia-smi -L` prints them.
    Uuid([u8; 16]),
}

impl FromStr for DeviceKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let index = || text.parse().ok().map(Self::Index);
        let uuid = || {
            let uuid = text.strip_prefix("GPU-")?;
            parse_uuid(uuid).map(Self::Uuid)
        };
        let found = if digits { index() } else { uuid() };
        found.ok_or_else(|| {
            format!(
                "`{}` is no device; name it by its number in the order of the PCI bus, such as 0, or by its whole \
                 UUID, \"GPU-…\": nvidia-smi -L prints both",
                text.escape_debug()
            )
        })
    }
}

/// 32 hexadecimal digits in groups of 8-4-4-4-12.
fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let groups: Vec<usize> = text.split('-').map(str::len).collect();
    let digits: Vec<u8> = text
        .bytes()
        .filter(|byte| *byte != b'-')
        .map(|byte| char::from(byte).to_digit(16)?.try_into().ok())
        .collect::<Option<_>>()?;
    if groups != [8, 4, 4, 4, 12] {
        return None;
    }
    let (pairs, _) = digits.as_chunks::<2>();
    let bytes: Vec<u8> = pairs.iter().map(|[high, low]| high << 4 | low).collect();
    bytes.try_into().ok()
}

impl fmt::Display for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = match self {
            Self::Index(index) => return write!(f, "{index}"),
            Self::Uuid(bytes) => bytes,
        };
        f.write_str("GPU")?;
        for (index, byte) in bytes.iter().enumerate() {
            if [0, 4, 6, 8, 10].contains(&index) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl Serialize for DeviceKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Index(index) => serializer.serialize_u32(*index),
            Self::Uuid(_) => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for DeviceKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Key;
        impl Visitor<'_> for Key {
            type Value = DeviceKey;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the number of a device or its UUID, \"GPU-…\"")
            }

            fn visit_u64<E: Error>(self, index: u64) -> Result<DeviceKey, E> {
                index.to_string().parse().map_err(E::custom)
            }

            fn visit_i64<E: Error>(self, index: i64) -> Result<DeviceKey, E> {
                index.to_string().parse().map_err(E::custom)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<DeviceKey, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Key)
    }
}

/// A list of devices, in the order in which a guest counts them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Devices {
    /// Unused bits are those of [`NONE`](Self::NONE).
    keys: [DeviceKey; MOST_DEVICES],
    count: usize,
}

impl Devices {
    /// No device.
    pub const NONE: Self = Self {
        keys: [DeviceKey::Index(0); MOST_DEVICES],
        count: 0,
    };

    /// The names.
    pub fn keys(&self) -> &[DeviceKey] {
        &self.keys[..self.count]
    }

    /// Adds a name, unless it is there. Says whether there was room.
    fn add(&mut self, key: DeviceKey) -> bool {
        if self.keys().contains(&key) {
            return true;
        }
        let Some(place) = self.keys.get_mut(self.count) else {
            return false;
        };
        *place = key;
        self.count += 1;
        true
    }

    /// Those of this list that `other` has too, by the same names.
    #[must_use]
    pub fn common(&self, other: &Self) -> Self {
        let mut common = Self::NONE;
        for key in self.keys().iter().filter(|key| other.keys().contains(key)) {
            common.add(*key);
        }
        common
    }

    /// Whether a configuration can have it.
    ///
    /// # Errors
    /// It names nothing.
    pub fn check(&self) -> Result<(), String> {
        match self.count {
            0 => Err(
                "devices is empty; name at least one device, or leave it out for all of them"
                    .to_owned(),
            ),
            _ => Ok(()),
        }
    }

    /// The list by UUIDs, each device once; a name of none of `table` stays as it is.
    #[must_use]
    pub fn resolved(&self, table: &[Device]) -> Self {
        let mut resolved = Self::NONE;
        for key in self.keys() {
            let device = table.iter().find(|device| device.is(*key));
            resolved.add(device.map_or(*key, Device::key));
        }
        resolved
    }

    /// The devices, in the order of the list, each once; or the first name that is that of none.
    ///
    /// # Errors
    /// That name.
    pub fn find_in(&self, table: &[Device]) -> Result<Vec<Device>, DeviceKey> {
        let resolved = self.resolved(table);
        let find = |key: &DeviceKey| table.iter().find(|it| it.is(*key)).cloned().ok_or(*key);
        resolved.keys().iter().map(find).collect()
    }
}

impl TryFrom<Vec<DeviceKey>> for Devices {
    type Error = String;

    fn try_from(keys: Vec<DeviceKey>) -> Result<Self, String> {
        let mut devices = Self::NONE;
        for key in keys {
            if devices.keys().contains(&key) {
                return Err(format!("devices names {key} twice"));
            }
            if !devices.add(key) {
                return Err(format!(
                    "devices names more than {MOST_DEVICES}; so many are possible"
                ));
            }
        }
        Ok(devices)
    }
}

impl fmt::Debug for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys()).finish()
    }
}

/// As in `0, GPU-8f…`.
impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.keys().iter().map(ToString::to_string).collect();
        f.write_str(&names.join(", "))
    }
}

impl Serialize for Devices {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.keys())
    }
}

impl<'de> Deserialize<'de> for Devices {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Devices;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of devices, such as [0] or [\"GPU-…\"]")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut keys: A) -> Result<Devices, A::Error> {
                let mut list = Vec::new();
                // One more than there may be is an error already.
                while list.len() <= MOST_DEVICES
                    && let Some(key) = keys.next_element::<DeviceKey>()?
                {
                    list.push(key);
                }
                list.try_into().map_err(A::Error::custom)
            }
        }
        deserializer.deserialize_any(List)
    }
}

/// A device of this machine, as an executor sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its number, from 0, in the order of the PCI bus.
    pub index: u32,
    /// `GPU-` and 32 digits, as `nvidia-smi -L` prints it; empty for a processor.
    #[serde(default)]
    pub uuid: String,
    /// Its place on the PCI bus, as in `0000:3b:00.0`; empty for a processor.
    #[serde(default)]
    pub pci: String,
    /// Its name.
    pub name: String,
    /// Its memory in bytes.
    pub total_memory: u64,
}

impl Device {
    /// Its name that outlives a change of the machine: by UUID where it has one.
    pub fn key(&self) -> DeviceKey {
        self.uuid.parse().unwrap_or(DeviceKey::Index(self.index))
    }

    /// Whether `key` names it.
    pub fn is(&self, key: DeviceKey) -> bool {
        key == DeviceKey::Index(self.index) || key == self.key()
    }
}

/// Advice about a device that is not there.
pub const MISSING_ADVICE: &str = "vgpuctl doctor lists the devices; name one of them in `devices` of the configuration, \
                                  and vgpuctl reload";

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "GPU-0a1b2c3d-0000-4000-8000-00000000beef";

    fn list(json: &str) -> Result<Devices, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    fn device(index: u32, uuid: &str) -> Device {
        Device {
            index,
            uuid: uuid.into(),
            pci: String::new(),
            name: "a device".into(),
            total_memory: 1,
        }
    }

    #[test]
    fn names_are_numbers_and_uuids_and_are_printed_as_they_are_read() {
        for text in ["0", "15", UUID] {
            let key: DeviceKey = text.parse().unwrap();
            assert_eq!(key.to_string(), text);
        }
        let upper = UUID.replace("beef", "BEEF");
        assert_eq!(upper.parse::<DeviceKey>(), UUID.parse());
        for text in [
            "",
            "-1",
            "0x1",
            "99999999999",
            "GPU-",
            "GPU-0a1b2c3d",
            "GPU-0a1b2c3d-0000-4000-8000-00000000beeg",
            "GPU-0a1b2c3d0-000-4000-8000-00000000beef",
            "MIG-0a1b2c3d-0000-4000-8000-00000000beef",
            "0a1b2c3d-0000-4000-8000-00000000beef",
            "all",
            "GPU-é",
        ] {
            let error = text.parse::<DeviceKey>().unwrap_err();
            assert!(error.contains("nvidia-smi -L"), "{error}");
        }
    }

    #[test]
    fn lists_are_of_names_each_once_and_bounded() {
        let devices = list(&format!("[1, \"0\", \"{UUID}\"]")).unwrap();
        assert_eq!(devices.to_string(), format!("1, 0, {UUID}"));
        let json = serde_json::to_string(&devices).unwrap();
        assert_eq!(json, format!("[1,0,\"{UUID}\"]"));
        assert_eq!(list(&json), Ok(devices));
        let all: Vec<String> = (0..=MOST_DEVICES).map(|n| n.to_string()).collect();
        for (json, words) in [
            ("[1, 1]", "names 1 twice"),
            ("[-1]", "`-1` is no device"),
            ("[true]", "expected the number of a device"),
            ("[1.5]", "expected the number of a device"),
            ("3", "expected a list of devices"),
            (&*format!("[{}]", all.join(",")), "more than 16"),
        ] {
            let error = list(json).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        assert_eq!(
            list(&format!("[{}]", all[1..].join(","))).unwrap().count,
            16
        );
        let error = list("[]").unwrap().check().unwrap_err();
        assert!(error.contains("devices is empty"), "{error}");
        assert_eq!(devices.check(), Ok(()));
    }

    #[test]
    fn a_list_means_devices_by_number_or_uuid_in_its_order() {
        let other = "GPU-ffffffff-0000-4000-8000-000000000001";
        let table = [device(0, other), device(1, UUID)];
        let found = |json: &str| {
            let found = list(json).unwrap().find_in(&table);
            found.map(|all| all.iter().map(|it| it.index).collect::<Vec<_>>())
        };
        assert_eq!(found("[1, 0]"), Ok(vec![1, 0]));
        assert_eq!(found(&format!("[\"{UUID}\", 0]")), Ok(vec![1, 0]));
        // The same device by two names.
        assert_eq!(found(&format!("[1, \"{UUID}\"]")), Ok(vec![1]));
        assert_eq!(found("[0, 2]"), Err(DeviceKey::Index(2)));
        let resolved = list("[1, 7]").unwrap().resolved(&table);
        assert_eq!(resolved.to_string(), format!("{UUID}, 7"));
        let cpu = [device(0, "")];
        assert_eq!(list("[0]").unwrap().find_in(&cpu), Ok(cpu.to_vec()));
        assert!(list("[1]").unwrap().find_in(&cpu).is_err());
        assert!(
            list(&format!("[\"{UUID}\"]"))
                .unwrap()
                .find_in(&cpu)
                .is_err()
        );
    }

    #[test]
    fn what_two_lists_have_in_common_has_the_order_of_the_first() {
        let (one, other) = (list("[3, 1, 2]").unwrap(), list("[2, 3, 5]").unwrap());
        assert_eq!(one.common(&other), list("[3, 2]").unwrap());
        assert_eq!(one.common(&list("[7]").unwrap()), Devices::NONE);
    }
}

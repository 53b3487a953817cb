//! Domain identifiers.

use std::fmt;
use std::str::FromStr;

/// The number Xen gives a running domain; dom0 is 0. Reused after a domain is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DomId(pub u16);

impl DomId {
    /// The first number Xen keeps for special purposes (`DOMID_FIRST_RESERVED`).
    pub const FIRST_RESERVED: u16 = 0x7FF0;
}

impl fmt::Display for DomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A text is not the number of an ordinary domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a domain id (0 to {max})", max = DomId::FIRST_RESERVED - 1)]
pub struct DomIdError(String);

impl FromStr for DomId {
    type Err = DomIdError;

    fn from_str(text: &str) -> Result<Self, DomIdError> {
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse() {
            Ok(number) if plain && number < Self::FIRST_RESERVED => Ok(Self(number)),
            _ => Err(DomIdError(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ordinary_domains_parse() {
        assert_eq!("0".parse(), Ok(DomId(0)));
        assert_eq!("32751".parse(), Ok(DomId(0x7FEF)));
        for text in ["", "32752", "65536", "-1", "+1", " 1", "1\n", "0x1", "dom0"] {
            assert!(text.parse::<DomId>().is_err(), "{text:?} parsed");
        }
    }
}

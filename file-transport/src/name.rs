//! The two kinds of names from which paths are built, and which others may not choose freely.
//!
//! A valid name has no slash and no leading dot, so it names an entry of the one directory it is
//! looked up in.

use std::fmt;
use std::str::FromStr;

/// The directory of the sessions, in a served directory. No guest's directory can have this name.
pub const SESSIONS: &str = "sessions";

/// The longest name of a guest's directory, in bytes.
const LONGEST: usize = 64;

/// The name of a guest's own directory, `DIR/<guest>/`: `[A-Za-z0-9][A-Za-z0-9._-]{0,63}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestName(String);

/// The reasons why a text is not such a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Other characters, too long, or empty.
    #[error("a guest's directory is named with 1 to 64 of A-Z a-z 0-9 . _ -, no sign first")]
    Guest,
    /// A reserved name.
    #[error("`{SESSIONS}` is where sessions are, and no guest's directory")]
    Reserved,
    /// Not 32 hexadecimal digits.
    #[error("a session is named with 32 digits of 0-9 a-f")]
    Session,
}

impl GuestName {
    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for GuestName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let first = text
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric());
        let sound = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if !first || text.len() > LONGEST || !text.bytes().all(sound) {
            return Err(NameError::Guest);
        }
        if text == SESSIONS {
            return Err(NameError::Reserved);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for GuestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a session: 128 bits drawn at random by the guest, as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionName([u8; 16]);

impl SessionName {
    /// The name with these bits.
    pub const fn new(bits: [u8; 16]) -> Self {
        Self(bits)
    }

    /// The bits.
    pub const fn bits(&self) -> [u8; 16] {
        self.0
    }
}

impl FromStr for SessionName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() != 32 || !text.bytes().all(digit) {
            return Err(NameError::Session);
        }
        let bits = u128::from_str_radix(text, 16).map_err(|_| NameError::Session)?;
        Ok(Self(bits.to_be_bytes()))
    }
}

impl fmt::Display for SessionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for SessionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionName({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn guests_have_plain_names() {
        let longest = "x".repeat(64);
        for name in ["a", "0", "web-1", "VM.2_b", "a..", "sessions2", &longest] {
            assert_eq!(name.parse::<GuestName>().unwrap().as_str(), name);
        }
        let too_long = "x".repeat(65);
        for name in [
            "", ".", "..", ".a", "-a", "_a", "a/b", "a b", "a\0", "ä", "a\n", &too_long,
        ] {
            assert_eq!(name.parse::<GuestName>(), Err(NameError::Guest), "{name:?}");
        }
        assert_eq!("sessions".parse::<GuestName>(), Err(NameError::Reserved));
    }

    #[test]
    fn sessions_have_32_small_digits() {
        let name = "00112233445566778899aabbccddeeff";
        assert_eq!(name.parse::<SessionName>().unwrap().to_string(), name);
        for name in [
            "",
            "00112233445566778899AABBCCDDEEFF",
            "+0112233445566778899aabbccddeeff",
            "00112233445566778899aabbccddeef",
            "00112233445566778899aabbccddeeff0",
        ] {
            assert_eq!(
                name.parse::<SessionName>(),
                Err(NameError::Session),
                "{name}"
            );
        }
    }

    proptest! {
        #[test]
        fn every_session_reads_back(bits in any::<[u8; 16]>()) {
            let name = SessionName::new(bits);
            prop_assert_eq!(name.to_string().parse(), Ok(name));
        }

        #[test]
        fn no_name_leaves_its_directory(text in any::<String>()) {
            if let Ok(name) = text.parse::<GuestName>() {
                prop_assert!(!name.as_str().contains(['/', '\0']) && !name.as_str().starts_with('.'));
            }
        }
    }
}

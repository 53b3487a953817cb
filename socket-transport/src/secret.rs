//! A name and its key, and the line that holds them: `NAME KEY`, the key 64 hexadecimal digits.

use std::fmt;
use std::path::Path;

use zeroize::Zeroizing;

use crate::secrets::Secrets;

/// Longest name, in bytes.
pub const MAX_NAME: usize = 64;

/// Bytes of a key.
pub(crate) const KEY: usize = 32;

/// 32 secret bytes, wiped when dropped.
pub(crate) type Key = Zeroizing<[u8; KEY]>;

/// Why a text or a file holds no secret. `Display` is one line of what, [`advice`](Self::advice)
/// one of what to do.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct SecretError {
    pub(crate) what: String,
    pub(crate) advice: String,
}

impl SecretError {
    pub(crate) fn new(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            advice: advice.into(),
        }
    }

    /// One line: what to do.
    pub fn advice(&self) -> &str {
        &self.advice
    }
}

/// A client's name and the key that it shares with the mediator.
pub struct Secret {
    name: String,
    key: Key,
}

impl Secret {
    /// A new secret for `name`.
    ///
    /// # Errors
    /// `name` is none, or the system has no random numbers.
    pub fn generate(name: &str) -> Result<Self, SecretError> {
        let name = checked_name(name)?;
        Ok(Self {
            name,
            key: random_key()?,
        })
    }

    /// The one secret in the file at `path`.
    ///
    /// # Errors
    /// The file cannot be read, others can read it, or it holds anything but one secret.
    pub fn read(path: &Path) -> Result<Self, SecretError> {
        let secrets = Secrets::read(path)?;
        let mut lines = secrets.lines();
        match (lines.next(), lines.next()) {
            (Some(line), None) => Self::parse(line),
            _ => Err(SecretError::new(
                format!("{} holds several secrets", path.display()),
                "give a client a file with its own line only",
            )),
        }
    }

    /// As [`read`](Self::read), from the text of a file.
    ///
    /// # Errors
    /// The text holds anything but one secret.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let (name, digits) = split_line(text.trim())?;
        Ok(Self {
            name: name.to_owned(),
            key: key_from(digits),
        })
    }

    /// By which the mediator knows the client.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn key(&self) -> &[u8; KEY] {
        &self.key
    }

    /// `NAME KEY`, as it stands in a file. Wiped when dropped.
    pub fn to_line(&self) -> Zeroizing<String> {
        // Written into room enough, so that no copy stays behind.
        let mut line = Zeroizing::new(String::with_capacity(MAX_NAME + 1 + 2 * KEY));
        line.push_str(&self.name);
        line.push(' ');
        for byte in self.key.iter() {
            for digit in [byte >> 4, byte & 15] {
                line.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
            }
        }
        line
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Whether `name` can be in a file of secrets, and in a log.
pub(crate) fn is_name(name: &str) -> bool {
    let sound = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    (1..=MAX_NAME).contains(&name.len()) && name.chars().all(sound)
}

fn checked_name(name: &str) -> Result<String, SecretError> {
    if is_name(name) {
        return Ok(name.to_owned());
    }
    Err(SecretError::new(
        format!("{name:.64?} is no name for a secret"),
        format!("use 1 to {MAX_NAME} letters, digits, dots, dashes and underscores"),
    ))
}

pub(crate) fn random_key() -> Result<Key, SecretError> {
    let mut key = Key::default();
    getrandom::fill(key.as_mut_slice())
        .map_err(|error| SecretError::new(format!("no random numbers: {error}"), "try again"))?;
    Ok(key)
}

/// `NAME KEY`: the name and the key's digits. No error of this repeats what may be a key.
pub(crate) fn split_line(line: &str) -> Result<(&str, &str), SecretError> {
    let advice = "write NAME KEY, as vgpuctl secret NAME prints it";
    let mut words = line.split_whitespace();
    let (Some(name), Some(digits), None) = (words.next(), words.next(), words.next()) else {
        return Err(SecretError::new("a secret is two words, NAME KEY", advice));
    };
    if !is_name(name) {
        return Err(SecretError::new(
            "the first word is no name for a secret",
            format!("use 1 to {MAX_NAME} letters, digits, dots, dashes and underscores"),
        ));
    }
    if digits.len() != 2 * KEY || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(SecretError::new(
            format!("the key of {name} is not 64 hexadecimal digits"),
            advice,
        ));
    }
    Ok((name, digits))
}

/// The key of `digits`, which [`split_line`] has checked.
pub(crate) fn key_from(digits: &str) -> Key {
    let mut key = Key::default();
    for (byte, pair) in key.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        for digit in pair {
            let value = char::from(*digit).to_digit(16).unwrap_or_default();
            *byte = *byte << 4 | u8::try_from(value).unwrap_or_default();
        }
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_is_written() {
        let secret = Secret::generate("web-1").unwrap();
        let line = secret.to_line();
        let read = Secret::parse(&line).unwrap();
        assert_eq!((read.name(), read.key()), ("web-1", secret.key()));
        assert_ne!(Secret::generate("web-1").unwrap().key(), secret.key());
        assert!(
            !format!("{secret:?}").contains(&line[6..]),
            "no key in logs"
        );
    }
}

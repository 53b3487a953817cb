//! The line that holds a name and its key: `NAME KEY`, the key 64 hexadecimal digits.

use zeroize::Zeroizing;

/// Longest name, in bytes.
pub const MAX_NAME: usize = 64;

/// Bytes of a key.
pub(crate) const KEY: usize = 32;

/// 32 secret bytes, wiped when dropped.
pub(crate) type Key = Zeroizing<[u8; KEY]>;

/// The reason why a text or a file holds no secret. `Display` is one line with the failure,
/// [`advice`](Self::advice) one with the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct SecretError {
    pub(crate) what: String,
    pub(crate) advice: String,
}

impl SecretError {
    /// An error with its remedy.
    pub fn new(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            advice: advice.into(),
        }
    }

    /// One line: the remedy.
    pub fn advice(&self) -> &str {
        &self.advice
    }
}

/// Whether `name` is valid in a file of secrets and in a log.
pub(crate) fn is_name(name: &str) -> bool {
    let sound = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    (1..=MAX_NAME).contains(&name.len()) && name.chars().all(sound)
}

/// # Errors
/// `name` is not one.
pub(crate) fn checked_name(name: &str) -> Result<String, SecretError> {
    if is_name(name) {
        return Ok(name.to_owned());
    }
    Err(SecretError::new(
        format!("{name:.64?} is no name for a secret"),
        format!("use 1 to {MAX_NAME} letters, digits, dots, dashes and underscores"),
    ))
}

/// # Errors
/// The system has no random numbers.
pub(crate) fn random_key() -> Result<Key, SecretError> {
    let mut key = Key::default();
    getrandom::fill(key.as_mut_slice())
        .map_err(|error| SecretError::new(format!("no random numbers: {error}"), "try again"))?;
    Ok(key)
}

/// `NAME KEY`: the name and the key's digits. No error repeats anything that may be a key.
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

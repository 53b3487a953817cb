//! A client's secret.

use std::fmt;
use std::path::Path;

use zeroize::Zeroizing;

use crate::secret_line::{
    KEY, Key, MAX_NAME, SecretError, checked_name, key_from, random_key, split_line,
};
use crate::secrets::Secrets;

/// A client's name and the key that it shares with the mediator.
pub struct Secret {
    name: String,
    key: Key,
}

impl Secret {
    /// A new secret for `name`.
    ///
    /// # Errors
    /// `name` is not a valid name, or the system has no random numbers.
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

    /// The name by which the mediator knows the client.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn into_key(self) -> Key {
        self.key
    }

    pub(crate) fn key(&self) -> &[u8; KEY] {
        &self.key
    }

    /// `NAME KEY`, as in a file. Wiped when dropped.
    pub fn to_line(&self) -> Zeroizing<String> {
        // Written into a buffer that is large enough, so that no copy stays behind.
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

//! Names and keys, and the files that hold them.
//!
//! One secret a line: `NAME KEY`, the key 64 hexadecimal digits; empty lines and lines that begin
//! with `#` say nothing. A mediator's file holds one secret for each client, a client's file its
//! own. Whoever reads a key can be that client, so a file that others can read is refused.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::Uid;
use zeroize::Zeroizing;

/// Longest name, in bytes.
pub const MAX_NAME: usize = 64;

/// Bytes of a key.
pub(crate) const KEY: usize = 32;

/// Longest file, in bytes: thousands of secrets.
const MAX_FILE: u64 = 1 << 20;

/// 32 secret bytes, wiped when dropped.
pub(crate) type Key = Zeroizing<[u8; KEY]>;

/// Why a text or a file holds no secret. `Display` is one line of what, [`advice`](Self::advice)
/// one of what to do.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct SecretError {
    what: String,
    advice: String,
}

impl SecretError {
    fn new(what: impl Into<String>, advice: impl Into<String>) -> Self {
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
        let mut key = Key::default();
        getrandom::fill(key.as_mut_slice()).map_err(|error| {
            SecretError::new(format!("no random numbers: {error}"), "try again")
        })?;
        Ok(Self { name, key })
    }

    /// The one secret in the file at `path`.
    ///
    /// # Errors
    /// The file cannot be read, others can read it, or it holds anything but one secret.
    pub fn read(path: &Path) -> Result<Self, SecretError> {
        let mut secrets = Secrets::read(path)?.keys.into_iter();
        match (secrets.next(), secrets.next()) {
            (Some((name, key)), None) => Ok(Self { name, key }),
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
        let (name, key) = parse_line(text.trim())?;
        Ok(Self { name, key })
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

/// The secrets of all clients of a mediator.
pub struct Secrets {
    keys: BTreeMap<String, Key>,
    /// Of nobody; see [`Secrets::key_or_decoy`].
    decoy: Key,
}

impl Secrets {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, others can read it, a line is no secret or names somebody again, or there
    /// is none.
    pub fn read(path: &Path) -> Result<Self, SecretError> {
        let shown = path.display();
        let failed = |error: io::Error| {
            SecretError::new(
                format!("cannot read the secrets in {shown}: {error}"),
                "check the path; vgpuctl secret NAME prints a line for such a file",
            )
        };
        // Without O_NONBLOCK a fifo in its place would hold the program up.
        let flags = nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_CLOEXEC;
        let file = nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty())
            .map_err(|errno| failed(errno.into()))?;
        let file = File::from(file);
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(SecretError::new(
                format!("{shown} is no regular file"),
                "name the file that holds the secrets",
            ));
        }
        let me = Uid::effective().as_raw();
        if metadata.mode() & 0o077 != 0 || (metadata.uid() != me && metadata.uid() != 0) {
            return Err(SecretError::new(
                format!("others than its user can read or change {shown}"),
                format!("make it yours alone: chown {me} {shown}; chmod 600 {shown}"),
            ));
        }
        let mut text = Zeroizing::new(String::new());
        file.take(MAX_FILE + 1)
            .read_to_string(&mut text)
            .map_err(failed)?;
        if text.len() as u64 > MAX_FILE {
            return Err(SecretError::new(
                format!("{shown} is longer than {MAX_FILE} bytes"),
                "name the file that holds the secrets",
            ));
        }
        Self::parse(&text)
            .map_err(|error| SecretError::new(format!("{shown}: {}", error.what), error.advice))
    }

    /// As [`read`](Self::read), from the text of a file.
    ///
    /// # Errors
    /// A line is no secret or names somebody again, or there is none.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let mut keys = BTreeMap::new();
        let lines = text.lines().map(str::trim).enumerate();
        for (index, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
            let number = index + 1;
            let (name, key) = parse_line(line).map_err(|error| {
                SecretError::new(format!("line {number}: {}", error.what), error.advice)
            })?;
            if keys.contains_key(&name) {
                return Err(SecretError::new(
                    format!("line {number} names {name} again"),
                    "keep one line for each name",
                ));
            }
            keys.insert(name, key);
        }
        if keys.is_empty() {
            return Err(SecretError::new(
                "there is no secret in it",
                "add a line, as vgpuctl secret NAME prints it",
            ));
        }
        let mut decoy = Key::default();
        getrandom::fill(decoy.as_mut_slice()).map_err(|error| {
            SecretError::new(format!("no random numbers: {error}"), "try again")
        })?;
        Ok(Self { keys, decoy })
    }

    /// Whose secrets there are.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().map(String::as_str)
    }

    /// The key of `name`, and whether there is one. For a name that nobody has a key that nobody
    /// knows: the handshake fails in the same steps as with a wrong key, so that a stranger does
    /// not learn which names exist.
    pub(crate) fn key_or_decoy(&self, name: &str) -> (&[u8; KEY], bool) {
        match self.keys.get(name) {
            Some(key) => (key, true),
            None => (&self.decoy, false),
        }
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
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

/// No error of this repeats what may be a key.
fn parse_line(line: &str) -> Result<(String, Key), SecretError> {
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
    let wrong = || {
        SecretError::new(
            format!("the key of {name} is not 64 hexadecimal digits"),
            advice,
        )
    };
    if digits.len() != 2 * KEY {
        return Err(wrong());
    }
    let mut key = Key::default();
    for (byte, pair) in key.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        for digit in pair {
            let value = char::from(*digit).to_digit(16).ok_or_else(wrong)?;
            *byte = *byte << 4 | u8::try_from(value).unwrap_or_default();
        }
    }
    Ok((name.to_owned(), key))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

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

    #[test]
    fn files_hold_comments_and_each_name_once() {
        let (a, b) = ("a".repeat(64), "B".repeat(64));
        let secrets = Secrets::parse(&format!("# who\n\n one {a}\ntwo\t{b} \n")).unwrap();
        assert_eq!(secrets.names().collect::<Vec<_>>(), ["one", "two"]);
        assert_eq!(secrets.key_or_decoy("one"), (&[0xAA; 32], true));
        let (decoy, known) = secrets.key_or_decoy("three");
        assert!(!known && *decoy != [0; 32]);
        for (text, word) in [
            (String::new(), "no secret"),
            (format!("one {a}\none {b}"), "line 2 names one again"),
            (format!("one {a} x"), "two words"),
            ("one".to_owned(), "two words"),
            (format!("on/e {a}"), "no name"),
            (format!("{} {a}", "x".repeat(65)), "no name"),
            (format!("one {}", &a[1..]), "64 hexadecimal"),
            (format!("one {}g", &a[1..]), "64 hexadecimal"),
            (format!("one {}é", &a[2..]), "64 hexadecimal"),
        ] {
            let error = Secrets::parse(&text).unwrap_err();
            assert!(error.to_string().contains(word), "{text}: {error}");
            assert!(!error.to_string().contains(&a[2..]), "no key in errors");
        }
    }

    #[test]
    fn files_that_others_can_read_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secrets");
        let line = Secret::generate("web").unwrap().to_line();
        fs::write(&path, line.as_bytes()).unwrap();
        for mode in [0o640, 0o604, 0o660, 0o620] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let error = Secret::read(&path).unwrap_err();
            assert!(error.to_string().contains("others"), "{error}");
            assert!(error.advice().contains("chmod 600"), "{}", error.advice());
        }
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(Secret::read(&path).unwrap().name(), "web");
        let other = Secret::generate("db").unwrap().to_line();
        fs::write(&path, format!("{}\n{}\n", *line, *other)).unwrap();
        assert_eq!(Secrets::read(&path).unwrap().names().count(), 2);
        assert!(Secret::read(&path).is_err(), "a client has one");
        assert!(Secrets::read(directory.path()).is_err());
        assert!(Secrets::read(&directory.path().join("none")).is_err());
    }
}

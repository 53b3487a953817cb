//! The files that hold secrets.
//!
//! One secret per line; empty lines and lines that begin with `#` are ignored. A mediator's file
//! holds one secret for each client, a client's file its own. Anyone who reads a key can pass for
//! that client, so a file that others can read is refused.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::mem;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::Uid;
use zeroize::Zeroizing;

use crate::secret::Secret;
use crate::secret_line::{KEY, Key, SecretError, key_from, random_key, split_line};

/// Longest file, in bytes: thousands of secrets.
const MAX_FILE: usize = 1 << 20;

/// The file with the secrets of all clients of a mediator, checked. Its text is wiped when dropped.
pub struct Secrets(Zeroizing<String>);

impl Secrets {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, others can read it, a line is not a secret or repeats a name, or the file
    /// holds none.
    pub fn read(path: &Path) -> Result<Self, SecretError> {
        let shown = path.display();
        let failed = |error: io::Error| {
            SecretError::new(
                format!("cannot read the secrets in {shown}: {error}"),
                "check the path; vgpuctl secret NAME prints a line for such a file",
            )
        };
        // Without O_NONBLOCK a FIFO in its place would block the program.
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
        let length = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
        if length > MAX_FILE {
            return Err(SecretError::new(
                format!("{shown} is longer than {MAX_FILE} bytes"),
                "name the file that holds the secrets",
            ));
        }
        let text = read_text(file, length).map_err(failed)?;
        Self::check(text)
            .map_err(|error| SecretError::new(format!("{shown}: {}", error.what), error.advice))
    }

    /// As [`read`](Self::read), from the text of a file.
    ///
    /// # Errors
    /// A line is not a secret or repeats a name, or the text holds none.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        Self::check(Zeroizing::new(text.to_owned()))
    }

    fn check(text: Zeroizing<String>) -> Result<Self, SecretError> {
        let mut names = BTreeSet::new();
        for (index, line) in text.lines().enumerate().filter(|(_, line)| says(line)) {
            let number = index + 1;
            let (name, _) = split_line(line.trim()).map_err(|error| {
                SecretError::new(format!("line {number}: {}", error.what), error.advice)
            })?;
            if !names.insert(name) {
                return Err(SecretError::new(
                    format!("line {number} names {name} again"),
                    "keep one line for each name",
                ));
            }
        }
        if names.is_empty() {
            return Err(SecretError::new(
                "there is no secret in it",
                "add a line, as vgpuctl secret NAME prints it",
            ));
        }
        Ok(Self(text))
    }

    pub(crate) fn lines(&self) -> impl Iterator<Item = &str> {
        self.0.lines().filter(|line| says(line)).map(str::trim)
    }

    /// Name and digits; every line was checked.
    fn entries(&self) -> impl Iterator<Item = (&str, &str)> {
        self.lines().filter_map(|line| split_line(line).ok())
    }

    /// The names that have a secret.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries().map(|(name, _)| name)
    }

    /// The key that a client claiming to be `name` must know.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn expected(&self, name: &str) -> Result<Expected, SecretError> {
        // For every name, so that known and unknown names take the same time.
        let decoy = random_key()?;
        let found = self.entries().find(|(entry, _)| *entry == name);
        Ok(Expected {
            known: found.is_some(),
            key: found.map_or(decoy, |(_, digits)| key_from(digits)),
        })
    }
}

impl Secrets {
    /// The secret of `name`, if it has one.
    pub fn find(&self, name: &str) -> Option<Secret> {
        let mut lines = self.lines();
        let line = lines.find(|line| split_line(line).is_ok_and(|(entry, _)| entry == name))?;
        Secret::parse(line).ok()
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

/// The one key that a client must know, taken out of [`Secrets`].
pub struct Expected {
    key: Key,
    known: bool,
}

impl Expected {
    /// The client's own key.
    pub fn known(secret: Secret) -> Self {
        Self {
            key: secret.into_key(),
            known: true,
        }
    }

    /// A key that nobody has, for an unknown name.
    pub fn decoy(secret: Secret) -> Self {
        Self {
            key: secret.into_key(),
            known: false,
        }
    }

    /// The key, and whether it is a client's. For an unknown name it is a key that nobody knows:
    /// the handshake fails in the same steps as with a wrong key, so that a stranger does not learn
    /// which names exist.
    pub(crate) fn key_or_decoy(&self) -> (&[u8; KEY], bool) {
        (&self.key, self.known)
    }
}

impl fmt::Debug for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Expected").finish_non_exhaustive()
    }
}

/// Reads `file`, which is `length` bytes long, into memory that never moves, so that no copy of a key
/// stays behind.
fn read_text(mut file: File, length: usize) -> io::Result<Zeroizing<String>> {
    let mut bytes = Zeroizing::new(vec![0; length + 1]);
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    if filled > length {
        return Err(io::Error::other("it grew meanwhile; try again"));
    }
    bytes.truncate(filled);
    match String::from_utf8(mem::take(&mut *bytes)) {
        Ok(text) => Ok(Zeroizing::new(text)),
        Err(error) => {
            *bytes = error.into_bytes();
            Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it is not UTF-8 text",
            ))
        }
    }
}

/// Whether a line is anything but blank or a comment.
fn says(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with('#')
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::secret::Secret;

    #[test]
    fn files_hold_comments_and_each_name_once() {
        let (a, b) = ("a".repeat(64), "B".repeat(64));
        let secrets = Secrets::parse(&format!("# who\n\n one {a}\ntwo\t{b} \n")).unwrap();
        assert_eq!(secrets.names().collect::<Vec<_>>(), ["one", "two"]);
        let expected = |name| secrets.expected(name).unwrap();
        assert_eq!(expected("one").key_or_decoy(), (&[0xAA; 32], true));
        assert_eq!(expected("two").key_or_decoy(), (&[0xBB; 32], true));
        let (decoy, other) = (expected("three"), expected("three"));
        assert!(!decoy.known && *decoy.key != [0; 32] && decoy.key != other.key);
        assert_eq!(format!("{decoy:?}"), "Expected { .. }");
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
        fs::write(&path, b"web \xFF").unwrap();
        let error = Secrets::read(&path).unwrap_err();
        assert!(error.to_string().ends_with("not UTF-8 text"), "{error}");
        assert!(Secrets::read(directory.path()).is_err());
        assert!(Secrets::read(&directory.path().join("none")).is_err());
    }
}

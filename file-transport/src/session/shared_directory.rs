//! A session's directory as a trait, so that the rules can be run against a model of one.

use std::io;

/// A directory that two sides share. Names come from [`super::file_name`].
pub trait SharedDirectory {
    /// The names in it, as fresh as the file system returns them: names may be missing, or listed
    /// although they are gone.
    ///
    /// # Errors
    /// See [`Trouble`].
    fn list(&mut self) -> Result<Vec<String>, Trouble>;

    /// Reads the file `name` whole, once, if it has at most `most` bytes.
    ///
    /// # Errors
    /// See [`Trouble`].
    fn read(&mut self, name: &str, most: usize) -> Result<Content, Trouble>;

    /// Makes the file `name` with `bytes`: no reader ever sees part of it under that name. After an
    /// error it may exist or not, and the same call with the same bytes may be repeated.
    ///
    /// # Errors
    /// See [`Trouble`].
    fn publish(&mut self, name: &str, bytes: &[u8]) -> Result<(), Trouble>;

    /// Removes the file `name`, if it is there.
    ///
    /// # Errors
    /// See [`Trouble`].
    fn remove(&mut self, name: &str) -> Result<(), Trouble>;

    /// The free space of the file system; `None` where it is not reported.
    fn free(&mut self) -> Option<Free> {
        None
    }
}

/// The space of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Free {
    /// Bytes in all, free or not.
    pub size: u64,
    /// Bytes that can be written.
    pub bytes: u64,
    /// Files that can be made; [`u64::MAX`] where they are not counted.
    pub files: u64,
}

/// The result of [`SharedDirectory::read`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// The bytes.
    Bytes(Vec<u8>),
    /// There is no such file, or no longer.
    Absent,
    /// Not a file of a session; the text says what it is.
    Unfit(&'static str),
}

/// The reasons why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// It is gone: removed, or the file system under it.
    #[error("the session's directory is gone")]
    Gone,
    /// There are more names than a session ever makes.
    #[error("the session's directory holds more than {0} names")]
    Crowded(usize),
    /// There is no space left, so nothing was made under the name, and other bytes may come under
    /// it.
    #[error("{context}: {source}")]
    Full {
        /// The operation that failed.
        context: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The system refused; a later try may succeed. The operation may have had its effect.
    #[error("{context}: {source}")]
    Io {
        /// The operation that failed.
        context: String,
        /// The system's answer.
        source: io::Error,
    },
}

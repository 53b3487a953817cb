//! A session's directory as a trait, so that the rules can be run against a model of one.

use std::io;

/// A directory that two sides share. Names come from [`super::file_name`].
pub trait SharedDirectory {
    /// The names in it, as fresh as the file system gives them: some may be missing that are there,
    /// some there that are gone.
    ///
    /// # Errors
    /// See [`Trouble`].
    fn list(&mut self) -> Result<Vec<String>, Trouble>;

    /// Reads the file `name` whole, once, if it has at most `most` bytes.
    ///
    /// # Errors
    /// See [`Trouble`].
    fn read(&mut self, name: &str, most: usize) -> Result<Content, Trouble>;

    /// Makes the file `name`: nobody ever sees a part of it under that name. After an error it may
    /// be there or not, and the same call with the same bytes may be repeated.
    ///
    /// # Errors
    /// See [`Trouble`].
    fn publish(&mut self, name: &str, bytes: &[u8]) -> Result<(), Trouble>;

    /// Removes the file `name`, if it is there.
    ///
    /// # Errors
    /// See [`Trouble`].
    fn remove(&mut self, name: &str) -> Result<(), Trouble>;

    /// What is free on the file system, for whoever comes; `None` where it does not tell.
    fn free(&mut self) -> Option<Free> {
        None
    }
}

/// What is free on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Free {
    /// Bytes in all, free or not.
    pub size: u64,
    /// Bytes that can be written.
    pub bytes: u64,
    /// Files that can be made; [`u64::MAX`] where they are not counted.
    pub files: u64,
}

/// What [`SharedDirectory::read`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// The bytes.
    Bytes(Vec<u8>),
    /// There is no such file, or no longer.
    Absent,
    /// Something that is no file of a session, and what.
    Unfit(&'static str),
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// It is there no more: removed, or the file system under it.
    #[error("the session's directory is gone")]
    Gone,
    /// There are more names than a session ever makes.
    #[error("the session's directory holds more than {0} names")]
    Crowded(usize),
    /// There is no space left, so nothing was made under the name: other bytes may come under it.
    #[error("{context}: {source}")]
    Full {
        /// What was being done.
        context: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The system refused; another time it may not. What was to be done may be done.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// The system's answer.
        source: io::Error,
    },
}

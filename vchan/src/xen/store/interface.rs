//! The traits of a provider of xenstore: requests, and a watch.

use std::io;
use std::time::{Duration, Instant};

/// Requests on one connection, each of which may be repeated without harm.
///
/// A provider that cannot hold a deadline ignores it: every caller enforces its own.
pub(super) trait Requests {
    /// The names right below `path`.
    fn directory(&mut self, path: &str, deadline: Instant) -> Result<Vec<Box<str>>, Failed>;
    /// The value of `path`.
    fn read(&mut self, path: &str, deadline: Instant) -> Result<Box<str>, Failed>;
    /// Sets the value of `path`.
    fn write(&mut self, path: &str, value: &str, deadline: Instant) -> Result<(), Failed>;
    /// Removes `path` and what is below it.
    fn remove(&mut self, path: &str, deadline: Instant) -> Result<(), Failed>;
}

/// The reasons why a request failed.
#[derive(Debug)]
pub(super) enum Failed {
    /// xenstored answered with this error code (`ENOENT`…).
    Refused(String),
    /// The answer is not text.
    NotText,
    /// No answer by the deadline. A late one is not mistaken for another answer.
    TimedOut,
    /// The connection can no longer be used.
    Broken(io::Error),
}

/// A watch that is set.
pub trait Watch {
    /// Waits for an event, at most for `limit` where there is one.
    fn wait(&mut self, limit: Option<Duration>) -> Waited;
}

/// The outcome of a wait for an event.
#[derive(Debug)]
pub enum Waited {
    /// The watched node may have changed, once or more.
    Fired,
    /// The limit passed.
    TimedOut,
    /// xenstored has hung up, or the connection broke; no further event comes.
    Ended,
}

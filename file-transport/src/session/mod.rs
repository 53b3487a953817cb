//! Full sessions over a directory that both sides see: an ordered stream of bytes each way.
//!
//! | file | job | I/O |
//! |---|---|---|
//! | [`segment`] | one file's bytes | none |
//! | [`file_name`] | the names of files | none |
//! | [`rules`] | the next file to take (`incoming.rs`) and to write (`outgoing.rs`), the time to give up | by [`shared_directory`] |
//! | [`pace`] | the interval between looks | none |
//! | [`directory`] | the real directory | all of it |
//! | [`mount_cache_test`] | the guest's test of its mount's caches | by `directory` |
//! | [`mount`] | the file system that it lies on | reads `/proc` |
//! | [`stream`] | the transport, its queues, and the thread that does the I/O | by `directory` |
//! | [`connect`](mod@connect) | making a session, taking one | by `stream` |
//!
//! `docs/file-protocol.md` describes the files, for people who inspect such a directory.

pub mod connect;
pub mod directory;
pub mod file_name;
pub mod mount;
pub mod mount_cache_test;
pub mod pace;
pub mod rules;
pub mod segment;
pub mod shared_directory;
pub mod stream;

pub use connect::{ConnectError, Settings, accept, connect};
pub use stream::FileTransport;

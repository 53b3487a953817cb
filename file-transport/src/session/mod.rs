//! Full sessions over a directory that both sides see: an ordered stream of bytes each way.
//!
//! | file | job | I/O |
//! |---|---|---|
//! | [`segment`] | one file's bytes | none |
//! | [`file_name`] | what files are called | none |
//! | [`rules`] | which file to take (`incoming.rs`) and to write (`outgoing.rs`), when to give up | by [`shared_directory`] |
//! | [`pace`] | how often to look | none |
//! | [`directory`] | the real directory | all of it |
//! | [`mount_cache_test`] | the guest's test of what its mount caches | by `directory` |
//! | [`mount`] | which file system it lies on | reads `/proc` |
//! | [`stream`] | the transport, its queues, and the thread that does the I/O | by `directory` |
//! | [`connect`](mod@connect) | making a session, taking one | by `stream` |
//!
//! `docs/file-protocol.md` describes the files for people who look into such a directory.

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

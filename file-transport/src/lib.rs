#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]
//! # Modules
//! * [`two_file_grammar`]: what may stand in the two files. Bytes in, values out.
//! * [`watch`]: when a command is *new*. What was seen and when goes in, what to do comes out.
//! * [`directory`]: opening, reading and replacing the files.
//! * [`serve()`]: the loop that joins the three.
//! * [`guests`]: the directories of single guests beside the two files.
//! * [`name`]: the names of guests' directories and of sessions.
//!
//! # Guarantees
//! * A command that lies complete in `command.txt` is run once, and once more each time the file is
//!   written anew, also with the same number.
//! * Who opens `response.txt` reads one whole line: the file is replaced, never written in place.
//! * Nothing in the directory is followed out of it: symbolic links, FIFOs and devices under one of
//!   the two names are refused, and at most [`two_file_grammar::MAX_COMMAND_BYTES`] + 1 bytes are read.
//!
//! # Limits
//! * Two writings within [`watch::SETTLE`] of one another may count as one.
//! * There is one client at a time. Two clients of one directory overwrite each other's commands.
//! * How soon a client sees the answer is up to its own caches: on NFS it opens the file for every
//!   look (close-to-open consistency), on sshfs it mounts with `-o dir_cache=no,direct_io`.

pub mod directory;
pub mod guests;
mod listing;
mod lock;
pub mod name;
mod open_flags;
pub mod serve;
pub mod session;
pub mod sessions;
pub mod two_file_grammar;
pub mod watch;

pub use name::{GuestName, SessionName};
pub use serve::{ServeError, Stop, serve, serve_directory};

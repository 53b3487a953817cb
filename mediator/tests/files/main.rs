//! Sessions and the two files over `file:`. With users of their own: `file_users.rs`, whose process has another umask.

mod faults;
mod guide;
mod sessions;
#[path = "../support/mod.rs"]
mod support;

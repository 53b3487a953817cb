//! What workers, mediators of ordinary users, and an old kernel leave to a process.

mod linux_4_19;
mod live_worker;
#[path = "../support/mod.rs"]
mod support;
mod two_users;

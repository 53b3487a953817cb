//! The 54 hostile-peer and fault cases of the project's reference (`vchan.md`, section (c)), as
//! far as they need no Xen. Each test is named after its case; `docs/threat-model.md` has the
//! table, and `table.rs` checks that it is complete. What needs Xen is in the lab's suite
//! (`xtask/src/lab/suite/faults*.rs`).
//!
//! For each case: no panic, no wait beyond its deadline, and the typed error.

#[path = "../liar/mod.rs"]
mod liar;
#[path = "../xenstore_rs/mod.rs"]
mod xenstore_rs;

mod control_page;
mod data;
mod events;
mod fairness;
mod indexes;
mod lifecycle;
mod memory_model;
mod resources;
mod table;
mod xenstore;
mod xenstored;

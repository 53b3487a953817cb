//! The 54 hostile-peer and fault cases of `docs/threat-model.md`, as far as they need no Xen. Each
//! test is named after its case; `table.rs` checks that the table is complete. Cases that need Xen
//! are in the lab's suite (`xtask/src/lab/suite/`).
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

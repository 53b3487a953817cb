#![deny(unsafe_code)]
//! Tests of [`vchan`] for its own test programs, the lab and fuzzers.
//!
//! * [`conformance`]: the requirements on every channel, whatever carries it.
//! * [`peer`]: one end of a local channel without any rules, and offers that a test may falsify.
//! * [`hostile`]: a peer that breaks every rule it can, and a victim whose every answer is checked.
//!
//! The command `vchan-testing` plays each side of these between two processes or two domains.
//! Nothing here is installed.

pub mod conformance;
pub mod hostile;
pub mod peer;

//! `cargo xtask bindgen [--check]`: writes `xen-sys/src/generated/`, or proves it up to date.
//!
//! Building xen-sys never needs libclang: its bindings are committed. Only this command does, so
//! the bindgen crate is behind a feature, and its user is a program of its own (`bin/bindings.rs`).

use std::ffi::OsString;

use anyhow::{Context, Result};

mod flags {
    xflags::xflags! {
        /// Write xen-sys/src/generated from the C headers.
        cmd bindgen {
            /// Write nothing; fail if the committed files differ from what the headers give.
            optional --check
        }
    }
}

/// Runs `cargo xtask bindgen` with the arguments that follow its name.
pub(crate) fn main(args: Vec<OsString>) -> Result<()> {
    let check = flags::Bindgen::from_vec(args)
        .unwrap_or_else(|error| crate::help_or_misuse(error))
        .check;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = std::process::Command::new(cargo);
    command
        .current_dir(crate::workspace_root())
        .args(["run", "--quiet", "--package", "xtask", "--bin", "bindings"])
        .args(["--features", "bindgen", "--"]);
    if check {
        command.arg("--check");
    }
    let status = command.status().context("cannot run cargo")?;
    // The other program has printed the reason.
    if !status.success() {
        std::process::exit(status.code().unwrap_or(1));
    }
    Ok(())
}

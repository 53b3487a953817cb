//! `cargo xtask lab`: a real Xen with a dom0 and guests, on a machine that has
//! neither Xen nor virtualisation. `docs/lab.md` tells how it works.

use std::ffi::OsString;

mod flags;

/// Runs `cargo xtask lab ARGS`.
pub(crate) fn main(args: Vec<OsString>) -> anyhow::Result<()> {
    let flags = flags::Lab::from_vec(args).unwrap_or_else(|error| error.exit());
    match flags.subcommand {
        flags::LabCmd::Build(_) | flags::LabCmd::Run(_) => anyhow::bail!("not landed yet"),
    }
}

//! `cargo xtask demo`: mediator and guest on this machine, over the same ring that Xen guests use.

use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use crate::mediator::{Mediator, build};

mod flags {
    #![allow(unreachable_pub, reason = "written by the xflags macro")]

    xflags::xflags! {
        /// Builds the programs, starts a mediator on a ring in shared memory, adds vectors through it.
        cmd demo {}
    }
}

/// Runs `cargo xtask demo`.
pub(crate) fn main(args: Vec<OsString>) -> Result<()> {
    flags::Demo::from_vec(args).unwrap_or_else(|error| crate::help_or_misuse(error));
    eprintln!("demo: building vgpu-mediatord and vgpu (the first time takes a minute or two)");
    let programs = build()?;
    let dir = std::env::temp_dir().join(format!("vgpu-demo-{}", std::process::id()));
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let outcome = show(&programs, &dir);
    std::fs::remove_dir_all(&dir).ok();
    outcome
}

fn show(programs: &Path, dir: &Path) -> Result<()> {
    let endpoint = format!("local:{}", dir.join("vgpu.sock").display());
    eprintln!("demo: starting vgpu-mediatord --listen {endpoint}");
    let mut mediator = Mediator::start(programs, dir, &endpoint, &[])?;
    mediator.wait_until_ready(programs, &endpoint)?;
    let vgpu = |arguments: &[&str]| -> Result<()> {
        eprintln!("\n$ vgpu --endpoint {endpoint} {}", arguments.join(" "));
        let status = Command::new(programs.join("vgpu"))
            .args(["--endpoint", &endpoint])
            .args(arguments)
            .status()
            .context("cannot start vgpu")?;
        if !status.success() {
            bail!("vgpu {} failed ({status})", arguments.join(" "));
        }
        Ok(())
    };
    vgpu(&["info"])?;
    vgpu(&["ping"])?;
    vgpu(&["vector-add", "--n", "1048576"])?;
    vgpu(&["vector-add", "--n", "16777216"])?;
    mediator.stop()?;
    eprintln!("\ndemo: passed; every element that came back was checked");
    Ok(())
}

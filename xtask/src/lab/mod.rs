//! `cargo xtask lab`: a real Xen with a dom0 and guests, on a machine that has
//! neither Xen nor virtualisation. `docs/lab.md` tells how it works.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

mod agent;
mod base64;
mod cpio;
mod flags;
mod host;
mod image;
mod libraries;
mod machine;
mod modules;
mod packages;
mod project;
mod qemu;
mod run;

use flags::LabCmd;
use host::Xenstored;
use image::Images;
use qemu::{Boot, Qemu};

/// Runs `cargo xtask lab ARGS`.
pub(crate) fn main(args: Vec<OsString>) -> Result<()> {
    let flags = flags::Lab::from_vec(args).unwrap_or_else(|error| error.exit());
    let xenstored: Xenstored = flags.xenstored.as_deref().unwrap_or("c").parse()?;
    let memory_mib = flags.memory.unwrap_or(qemu::DEFAULT_MEMORY);
    match flags.subcommand {
        LabCmd::Build(_) => {
            let images = images()?;
            println!("{}", images.base.display());
            Ok(())
        }
        LabCmd::Shell(shell) => {
            let images = images()?;
            let project = project::archive(&programs(shell.bare, shell.add)?)?;
            Qemu::interactive(&Boot {
                images: &images,
                project: &project,
                xenstored,
                memory_mib,
            })
        }
        LabCmd::Run(run) => {
            let images = images()?;
            let project = project::archive(&programs(run.bare, run.add)?)?;
            let boot = Boot {
                images: &images,
                project: &project,
                xenstored,
                memory_mib,
            };
            let mut machine = Qemu::boot(&boot)?;
            let limit = Duration::from_secs(run.timeout.unwrap_or(600));
            run::script(&mut machine, &run.script, limit)
        }
    }
}

/// The images, built if need be.
fn images() -> Result<Images> {
    machine::prepare()?;
    let cache = packages::cache_folder()?;
    let packages = packages::fetch(&cache)?;
    image::build(&cache, &packages)
}

/// What goes into the project's archive.
fn programs(bare: bool, add: Vec<PathBuf>) -> Result<Vec<PathBuf>> {
    let mut files = if bare {
        Vec::new()
    } else {
        project::build_programs()?
    };
    files.extend(add);
    Ok(files)
}

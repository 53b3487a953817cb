//! The files that a bench needs, built here or taken from a folder that was prepared elsewhere.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::super::image::{self, Images};
use super::super::project::{self, Program};
use crate::apt;

/// The programs that are measured, vchan's counterpart on the stock library, and the agent.
const PROGRAMS: [&str; 7] = [
    "vchan",
    "vchan-testing",
    "vchan-c-peer",
    "lab-agent",
    "vgpu",
    "vgpu-mediatord",
    "vgpuctl",
];

/// The parts of the images; `dom0.cpio` is made from them again where it is needed.
const IMAGES: [&str; 4] = ["xen", "vmlinux", "base.cpio", "network.cpio"];

/// All files needed to boot the lab and measure in it.
pub(super) struct Prebuilt {
    pub(super) images: Images,
    pub(super) programs: Vec<Program>,
    /// For the logs.
    pub(super) runs: PathBuf,
}

/// Builds everything, or takes it from `folder`.
///
/// # Errors
/// Something cannot be built or is missing.
pub(super) fn obtain(folder: Option<&Path>) -> Result<Prebuilt> {
    match folder {
        Some(folder) => take(&std::path::absolute(folder)?),
        None => build(&["vchan", "vchan-testing"]),
    }
}

/// The same with the programs of sessions.
///
/// # Errors
/// As [`obtain`].
pub(super) fn obtain_all(folder: Option<&Path>) -> Result<Prebuilt> {
    match folder {
        Some(_) => obtain(folder),
        None => build(project::PACKAGES),
    }
}

/// Our own `vchan`, to be run on this machine.
///
/// # Errors
/// As [`obtain`].
pub(super) fn vchan(folder: Option<&Path>) -> Result<PathBuf> {
    let program = match folder {
        Some(folder) => std::path::absolute(folder)?.join("bin").join(PROGRAMS[0]),
        None => {
            let built = project::build_release(&["vchan"])?;
            let found = built
                .into_iter()
                .find(|program| program.name == PROGRAMS[0]);
            found.context("cargo built no vchan")?.file
        }
    };
    Ok(program)
}

fn build(packages: &[&str]) -> Result<Prebuilt> {
    let mut programs = project::build_release(packages)?;
    let images = super::super::images()?; // installs what the C peer needs, too
    programs.push(project::build_c_peer()?);
    Ok(Prebuilt {
        images,
        programs,
        runs: project::runs(),
    })
}

fn take(folder: &Path) -> Result<Prebuilt> {
    for (program, package) in [
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("setpriv", "util-linux"),
    ] {
        if apt::which(program).is_none() {
            bail!(
                "this machine has no {program}\n  install the package {package}, or add its folder to PATH"
            );
        }
    }
    let images = folder.join("images");
    for file in IMAGES.map(|name| images.join(name)) {
        if !file.is_file() {
            bail!(
                "{} is missing\n  write the folder anew with `cargo xtask bench prepare`",
                file.display()
            );
        }
    }
    // Made each time: it is quick, and an incomplete one must not stay.
    image::add_dom0(&images)?;
    let programs = PROGRAMS.map(|name| Program::of(folder.join("bin").join(name)));
    Ok(Prebuilt {
        images: Images::of(&images),
        programs: programs.into_iter().collect::<Result<_>>()?,
        runs: folder.join("runs"),
    })
}

/// Builds all and puts it into `folder`, this program included.
///
/// # Errors
/// As [`obtain`], or the folder cannot be written.
pub(super) fn prepare(folder: &Path) -> Result<()> {
    let Prebuilt {
        images, programs, ..
    } = build(project::PACKAGES)?;
    let bin = folder.join("bin");
    let into = folder.join("images");
    for folder in [&bin, &into] {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    for program in programs
        .iter()
        .filter(|p| PROGRAMS.contains(&p.name.as_str()))
    {
        write_program(&program.file, &bin.join(&program.name))?;
    }
    write_program(&std::env::current_exe()?, &folder.join("xtask"))?;
    let built = [&images.xen, &images.kernel, &images.base, &images.network];
    for (name, file) in IMAGES.iter().zip(built) {
        fs::copy(file, into.join(name)).with_context(|| format!("copying {}", file.display()))?;
    }
    println!(
        "{folder}: on any x86-64 Linux with QEMU: {folder}/xtask bench vchan --prebuilt {folder} (or bench relay)",
        folder = folder.display()
    );
    Ok(())
}

fn write_program(from: &Path, to: &Path) -> Result<()> {
    // Replaced rather than overwritten: the old one may be running.
    let _ = fs::remove_file(to);
    fs::write(to, project::stripped(from)?).with_context(|| format!("writing {}", to.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

//! What this machine must have for the lab, and how it gets it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// A program the lab calls, and the Debian package that has it.
const PROGRAMS: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("setpriv", "util-linux"),
    ("readelf", "binutils"),
    ("xz", "xz-utils"),
    ("dpkg", "dpkg"),
    ("apt-get", "apt"),
];

/// The header the stock libxenvchan peer is built with.
const LIBXENVCHAN_HEADER: &str = "/usr/include/libxenvchan.h";

/// Installs the missing Debian packages: directly as root, else through sudo.
///
/// # Errors
/// Names the packages when they cannot be installed from here.
pub(crate) fn prepare() -> Result<()> {
    let mut missing: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| find_program(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if !Path::new(LIBXENVCHAN_HEADER).exists() {
        missing.push("libxen-dev");
    }
    if missing.is_empty() {
        return Ok(());
    }
    missing.dedup();
    let list = missing.join(" ");
    if find_program("apt-get").is_none() {
        bail!(
            "this machine lacks {list}\n  the lab needs Debian 12 (its packages of Xen and QEMU)"
        );
    }
    eprintln!("lab: installing {list}");
    let install = |update_first: bool| -> Result<bool> {
        if update_first && !as_root(&["apt-get", "update", "-q"])? {
            return Ok(false);
        }
        let mut command = vec![
            "env",
            "DEBIAN_FRONTEND=noninteractive",
            "apt-get",
            "install",
            "-y",
            "-q",
        ];
        command.push("--no-install-recommends");
        command.extend(&missing);
        as_root(&command)
    };
    if install(false)? || install(true)? {
        return Ok(());
    }
    bail!("could not install {list}\n  install them by hand: apt-get install {list}")
}

/// `apt-get update`, for a machine whose package lists are missing or old.
pub(crate) fn update_package_lists() -> Result<()> {
    if as_root(&["apt-get", "update", "-q"])? {
        return Ok(());
    }
    bail!("apt-get update failed\n  run it as root, then start the lab again")
}

/// Where `program` lies, looked for in PATH and in the administrator's folders.
pub(crate) fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

/// Runs a command as root and tells whether it succeeded; its output goes to
/// standard error, which is where the lab reports progress.
fn as_root(command: &[&str]) -> Result<bool> {
    let id = Command::new("id")
        .arg("-u")
        .output()
        .context("running id")?;
    let root = id.stdout.trim_ascii() == b"0";
    let mut words = command.to_vec();
    if !root {
        if find_program("sudo").is_none() {
            return Ok(false);
        }
        words.splice(0..0, ["sudo", "-n"]);
    }
    let status = Command::new(words[0])
        .args(&words[1..])
        .stdout(std::io::stderr())
        .status()
        .with_context(|| format!("running {}", words.join(" ")))?;
    Ok(status.success())
}

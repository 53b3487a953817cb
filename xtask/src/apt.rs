//! Debian packages that an xtask command needs on this machine.

use anyhow::{Context, Result, bail};
use std::process::{Command, Stdio};

/// Installs those of `packages` that are missing, with `apt-get`, as root or through `sudo`.
///
/// # Errors
/// Names the missing packages when they cannot be installed.
pub(crate) fn ensure(packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|p| !installed(p)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    eprintln!("xtask: installing Debian packages: {list}");
    if which("apt-get").is_none() {
        bail!(
            "these programs' packages are missing: {list}\nthis machine has no apt-get: install them by its own means (Debian 12 names)"
        );
    }
    // An old package index names files that are gone; a new one costs seconds.
    update_lists().ok();
    let mut install = vec![
        "env",
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "install",
        "-y",
        "-qq",
        "--no-install-recommends",
    ];
    install.extend(&missing);
    run_as_root(&install)
        .with_context(|| format!("cannot install {list}\nrun as root: apt-get install {list}"))
}

/// Fetches the lists of packages anew.
///
/// # Errors
/// It needs root, or no mirror answers.
pub(crate) fn update_lists() -> Result<()> {
    run_as_root(&["apt-get", "update", "-qq"]).context("cannot update the lists of packages")
}

fn installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status}", package])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|out| out.status.success() && out.stdout == b"installed")
}

/// Runs `argv` as root: directly when we are root, else through `sudo` where there is one.
fn run_as_root(argv: &[&str]) -> Result<()> {
    let root = Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|out| out.stdout.trim_ascii() == b"0");
    let mut command = if root {
        Command::new(argv[0])
    } else if which("sudo").is_some() {
        let mut sudo = Command::new("sudo");
        sudo.arg(argv[0]);
        sudo
    } else {
        bail!("this needs root, and there is no sudo");
    };
    // Package scripts print a lot; the reason for a failure is on stderr.
    let out = command
        .args(&argv[1..])
        .stdin(Stdio::null())
        .output()
        .context("cannot start it")?;
    if !out.status.success() {
        bail!(
            "{} failed: {}",
            argv.join(" "),
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(())
}

/// The path of `program`, found in PATH.
pub(crate) fn which(program: &str) -> Option<std::path::PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|dir| dir.join(program))
        .find(|p| p.is_file())
}

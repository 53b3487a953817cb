//! The unit under a real systemd: a Debian that boots as far as this one needs, beside this machine's own.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{debs, output, package};
use crate::dist::Dist;

/// Lines that may reach the journal before systemd gives up.
const MOST_LINES: usize = 60;

/// Boots it.
const BOOT: &str = include_str!("boot.sh");

/// The script that runs in it.
const SCRIPT: &str = include_str!("systemd.sh");

/// Its only purpose: whatever the script's end, systemd ends too.
const UNIT: &str = "[Unit]
Description=checks of the installed packages
SuccessAction=exit-force
FailureAction=exit-force
[Service]
Type=oneshot
ExecStart=/bin/sh /check.sh
StandardOutput=file:/check.out
StandardError=file:/check.out
";

/// Installs mediator and guest, and has systemd start, reload, stop and restart the mediator, and try one that cannot
/// start: with a wrong configuration once, and without Xen until it stays failed.
///
/// # Errors
/// One of these does not hold, or systemd cannot boot here.
pub(super) fn operates(dist: &Dist) -> Result<()> {
    // Beside systemd what installs the package's group.
    let root = debs::unpack(dist, "debian-systemd", &["passwd", "systemd"])?;
    let mut install = Command::new("dpkg");
    install.arg("--root").arg(&root).arg("--install");
    for name in ["vgpu-mediator", "vgpu-guest"] {
        install.arg(package(dist, name, ".deb")?);
    }
    output(&mut install)?;
    fs::write(root.join("check.sh"), SCRIPT)?;
    fs::write(root.join("etc/systemd/system/check.service"), UNIT)?;
    output(
        Command::new("unshare")
            .args(["--mount", "sh", "-c", BOOT, "sh"])
            .arg(&root)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
    )
    .with_context(|| format!("in systemd:\n{}", said(&root)))?;
    let said = said(&root);
    let held = said.lines().any(|line| line == "all of it holds");
    ensure!(held, "in systemd:\n{said}");
    for what in ["wrong-configuration", "without-xen"] {
        let lines = lines(&said, what).with_context(|| format!("no lines of {what}:\n{said}"))?;
        ensure!(
            lines < MOST_LINES,
            "{what}: {lines} lines reach the journal"
        );
    }
    eprintln!("dist: in systemd:\n{}", said.trim_end());
    Ok(())
}

/// The output of the script.
fn said(root: &Path) -> String {
    fs::read_to_string(root.join("check.out")).unwrap_or_default()
}

/// The number in `WHAT lines N …`.
fn lines(said: &str, what: &str) -> Option<usize> {
    let rest = said.lines().find_map(|line| line.strip_prefix(what))?;
    let number = rest.strip_prefix(" lines ")?.split(' ').next()?;
    number.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::lines;

    #[test]
    fn the_journals_lines_are_read_out_of_what_the_script_says() {
        let said = "x\nwrong-configuration lines 9\nwithout-xen lines 39 seconds 21\n";
        assert_eq!(lines(said, "wrong-configuration"), Some(9));
        assert_eq!(lines(said, "without-xen"), Some(39));
        assert_eq!(lines(said, "other"), None);
    }
}

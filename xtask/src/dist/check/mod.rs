//! Installs the packages in file systems of their own, as the package tools of the target systems
//! would, and tries what they have installed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::Dist;
use super::packages::Common;
use super::tools::Tools;

mod bills;
mod debs;
mod debug_files;
mod documents;
mod pages;
mod rpms;
mod systemd;
mod unit;

/// Debian packages with the tools of these checks.
pub(super) const INSTALLED: &[&str] = &[
    "busybox-static",
    "gcc",
    "groff-base",
    "libc6-dev",
    "mmdebstrap",
    "pkgconf",
    "rpm",
    "systemd",
    "util-linux",
];

/// Those of [`run_plain`].
pub(crate) const INSTALLED_PLAIN: &[&str] = &["groff-base", "systemd"];

/// The packages to install, in this order.
const DEBS: [&str; 5] = [
    "vgpu-mediator",
    "vgpu-guest",
    "vchan",
    "libvgpu0",
    "libvgpu-dev",
];

/// The same as rpms.
const RPMS: [&str; 5] = [
    "vgpu-mediator",
    "vgpu-guest",
    "vchan",
    "libvgpu",
    "libvgpu-devel",
];

/// Where the mediator's configuration is installed, below the root.
const SETTINGS: &str = "etc/vgpu/mediatord.toml";

/// A configuration as an administrator has changed it.
const CHANGED: &str = "# changed\nlisten = [\"xen:\"]\n";

/// Runs all checks; those of the bills of materials only if they were made.
///
/// # Errors
/// A check fails, or this user is not root.
pub(super) fn run_all(dist: &Dist, tools: &Tools, bills: bool) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "dpkg and rpm install into a file system of their own as root only: run this as root"
    );
    let common = Common::new(dist, tools);
    let mut passed = 0;
    let mut pass = |name: &str| {
        println!("PASS packages/{name}");
        passed += 1;
    };
    pages::lint(dist)?;
    pass("manual-pages");
    if bills {
        bills::complete(dist)?;
        pass("bills-of-materials");
    } else {
        println!("SKIP packages/bills-of-materials: not made (--no-sbom)");
    }

    debug_files::are_found(dist)?;
    pass("debug-files-are-found");

    let rpms = rpms::Rpms::prepare(dist, &common)?;
    rpms.install_upgrade_erase(&common)?;
    pass("rpm-install-upgrade-erase");
    rpms.refuse_plain_build(&common)?;
    pass("plain-build-refused");
    rpms.spec()?;
    pass("rpm-of-the-spec");

    let debs = debs::Debs::prepare(dist)?;
    debs.install()?;
    pages::every_flag(&debs.root)?;
    pass("every-flag-in-its-page");
    documents::every_path(&debs.root, &debs.installed()?)?;
    pass("every-path-in-the-documents");
    debs.session()?;
    pass("deb-session");
    unit::verify(&debs.root, &dist.work)?;
    pass("unit-is-valid");
    systemd::operates(dist)?;
    pass("unit-in-systemd");
    debs.upgrade_purge(&common)?;
    pass("deb-install-upgrade-purge");
    println!("{passed} passed, 0 failed, {} skipped", u32::from(!bills));
    Ok(())
}

/// Runs the checks that need no package, on its files below `root`; `installed` has the paths of all packages.
///
/// # Errors
/// A check fails.
pub(super) fn run_plain(dist: &Dist, root: &Path, installed: &BTreeSet<PathBuf>) -> Result<()> {
    let checks: [(&str, &dyn Fn() -> Result<()>); 4] = [
        ("manual-pages", &|| pages::lint(dist)),
        ("every-flag-in-its-page", &|| pages::every_flag(root)),
        ("every-path-in-the-documents", &|| {
            documents::every_path(root, installed)
        }),
        ("unit-is-valid", &|| unit::verify(root, &dist.work)),
    ];
    for (name, check) in &checks {
        check().with_context(|| format!("packages/{name}"))?;
        println!("PASS packages/{name}");
    }
    println!("{} passed, 0 failed, 0 skipped", checks.len());
    Ok(())
}

/// The package of `name` with this ending.
fn package(dist: &Dist, name: &str, ending: &str) -> Result<PathBuf> {
    for entry in fs::read_dir(&dist.out)? {
        let path = entry?.path();
        let found = path.file_name().and_then(|file| file.to_str());
        let rest = found.and_then(|file| file.strip_prefix(name));
        let is_version =
            |rest: &str| rest[1..].starts_with(&dist.version) && rest.ends_with(ending);
        if rest.is_some_and(|rest| rest.len() > 1 && is_version(rest)) {
            return Ok(path);
        }
    }
    bail!("there is no {ending} of {name}")
}

/// The mediator's package with a later release and another default configuration.
fn newer(common: &Common<'_>, work: &Path, format: &str) -> Result<PathBuf> {
    let description = fs::read(work.join(format!("vgpu-mediator-{format}.yaml")))?;
    let mut described: serde_json::Value = serde_json::from_slice(&description)?;
    described["release"] = json!("2");
    let sample = work.join("newer.toml");
    fs::write(&sample, "# newer\n")?;
    for file in described["contents"].as_array_mut().context("contents")? {
        if file["dst"] == format!("/{SETTINGS}") {
            file["src"] = json!(sample);
        }
    }
    common.pack(&format!("vgpu-mediator-newer-{format}"), &described, work)
}

/// Everything below `root`, files and folders, relative to it, but for the records of package tools.
fn files(root: &Path) -> Result<BTreeSet<PathBuf>> {
    const RECORDS: [&str; 6] = [
        "var/lib/dpkg",
        "var/log",
        "var/cache",
        "var/lib/rpm",
        "usr/lib/sysimage",
        ".rpmdb",
    ];
    let mut files = BTreeSet::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let inner = path.strip_prefix(root)?.to_owned();
            if RECORDS.iter().any(|record| inner.starts_with(record)) {
                continue;
            }
            if path.is_dir() && !path.is_symlink() {
                folders.push(path);
            }
            files.insert(inner);
        }
    }
    Ok(files)
}

/// Fails if there are files or folders below `root` that were not there `before`.
fn nothing_left(root: &Path, before: &BTreeSet<PathBuf>) -> Result<()> {
    let after = files(root)?;
    let left: Vec<_> = after.difference(before).collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

/// The output of a command that must succeed.
fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot start {command:?}"))?;
    let text = said(&output);
    ensure!(output.status.success(), "{command:?}: {text}");
    Ok(text)
}

fn said(output: &Output) -> String {
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    text.trim().to_owned()
}

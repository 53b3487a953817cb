//! Installs what was made, in file systems of its own: as the package tools of the systems that it is
//! meant for would.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::packages::{Common, requirements};
use super::tools::Tools;
use super::{Dist, elf};
use crate::mediator::Mediator;

/// What rpm finds on CentOS 7, and so in XCP-ng 8.3's dom0, of all that programs can ask for.
const CENTOS_7: &[(&str, &[&str])] = &[
    (
        "libc.so.6",
        &[
            "2.2.5", "2.2.6", "2.3", "2.3.2", "2.3.3", "2.3.4", "2.4", "2.5", "2.6", "2.7", "2.8",
            "2.9", "2.10", "2.11", "2.12", "2.13", "2.14", "2.15", "2.16", "2.17",
        ],
    ),
    (
        "libpthread.so.0",
        &[
            "2.2.5", "2.2.6", "2.3.2", "2.3.3", "2.3.4", "2.4", "2.11", "2.12",
        ],
    ),
    ("libm.so.6", &["2.2.5", "2.4", "2.15"]),
    ("libdl.so.2", &["2.2.5", "2.3.3", "2.3.4"]),
    ("librt.so.1", &["2.2.5", "2.3.3", "2.3.4", "2.4", "2.7"]),
    ("libutil.so.1", &["2.2.5"]),
    ("ld-linux-x86-64.so.2", &["2.2.5", "2.3", "2.4"]),
];

/// The packages that are installed, in this order.
const PACKAGES: [&str; 3] = ["vgpu-mediator", "vgpu-guest", "vchan"];

/// Where the mediator's configuration is installed, below the root.
const SETTINGS: &str = "etc/vgpu/mediatord.toml";

/// A configuration as an administrator has changed it.
const CHANGED: &str = "# changed\nlisten = [\"xen:\"]\n";

/// Runs all of it.
///
/// # Errors
/// Something does not hold.
pub(super) fn run_all(dist: &Dist, tools: &Tools) -> Result<()> {
    let common = Common::new(dist, tools);
    lint_pages(dist)?;
    println!("PASS packages/manual-pages");
    let rpms = Rpms {
        dist,
        root: dist.work.join("centos-7"),
    };
    rpms.prepare(&common)?;
    rpms.install_upgrade_erase(&common)?;
    println!("PASS packages/rpm-install-upgrade-erase");
    rpms.refuse_plain_build(&common)?;
    println!("PASS packages/plain-build-refused");
    let debs = Debs {
        dist,
        root: dist.work.join("debian"),
    };
    debs.prepare(&common)?;
    debs.install_upgrade_purge(&common)?;
    println!("PASS packages/deb-install-upgrade-purge");
    println!("4 passed, 0 failed, 0 skipped");
    Ok(())
}

/// A shell and what else busybox is, for the packages' scripts.
fn add_shell(root: &Path) -> Result<()> {
    let bin = root.join("bin");
    fs::create_dir_all(&bin)?;
    fs::copy("/bin/busybox", bin.join("busybox")).context("busybox-static is not installed")?;
    for name in ["sh", "rmdir"] {
        std::os::unix::fs::symlink("busybox", bin.join(name))?;
    }
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

/// A package of nothing, for a database that is to believe in what it provides.
fn stub(name: &str, version: &str, provides: &[String]) -> serde_json::Value {
    json!({
        "name": name, "arch": "amd64", "platform": "linux", "version": version,
        "version_schema": "none", "maintainer": "The vgpu project <vgpu@invalid>", "license": "none",
        "description": "A stand-in", "provides": provides, "contents": [],
    })
}

/// man's own formatter finds nothing to complain about.
fn lint_pages(dist: &Dist) -> Result<()> {
    let mut pages = 0;
    for program in fs::read_dir(dist.work.join("pages"))? {
        for page in fs::read_dir(program?.path().join("man"))? {
            let page = page?.path();
            let script = "zcat \"$1\" | groff -Kutf8 -man -Tutf8 -ww -z 2>&1";
            let said = output(Command::new("bash").args(["-c", script, "bash"]).arg(&page))?;
            ensure!(said.is_empty(), "{}: {said}", page.display());
            pages += 1;
        }
    }
    ensure!(pages > 5, "only {pages} pages");
    Ok(())
}

/// An rpm database without a system, that says it is a CentOS 7.
struct Rpms<'d> {
    dist: &'d Dist,
    root: PathBuf,
}

impl Rpms<'_> {
    fn rpm(&self, arguments: &[&str], packages: &[PathBuf]) -> Result<Output> {
        Command::new("rpm")
            .arg("--root")
            .arg(&self.root)
            .args(arguments)
            .args(packages)
            .output()
            .context("cannot start rpm")
    }

    /// Makes the root and puts the stub into its database.
    fn prepare(&self, common: &Common<'_>) -> Result<()> {
        let provides: Vec<String> = CENTOS_7
            .iter()
            .flat_map(|(library, versions)| {
                let plain = format!("{library}()(64bit)");
                let more = versions
                    .iter()
                    .map(move |version| format!("{library}(GLIBC_{version})(64bit)"));
                std::iter::once(plain).chain(more)
            })
            .chain(["/bin/sh".to_owned(), "systemd".to_owned()])
            .collect();
        let stub = stub("centos-7-stub", "7", &provides);
        let stub = common.pack("centos-7-stub-rpm", &stub, &self.dist.work)?;
        add_shell(&self.root)?;
        done(self.rpm(&["--initdb"], &[])?)?;
        done(self.rpm(&["-i", "--justdb"], &[stub])?)
    }

    fn install_upgrade_erase(&self, common: &Common<'_>) -> Result<()> {
        for name in PACKAGES {
            done(self.rpm(&["-i"], &[package(self.dist, name, ".rpm")?])?)?;
            let verified = self.rpm(&["-V", name], &[])?;
            ensure!(
                verified.stdout.is_empty(),
                "rpm -V {name}: {}",
                said(&verified)
            );
        }
        let settings = self.root.join(SETTINGS);
        fs::write(&settings, CHANGED)?;
        done(self.rpm(&["-U"], &[newer(common, &self.dist.work, "rpm")?])?)?;
        ensure!(
            fs::read_to_string(&settings)? == CHANGED,
            "an upgrade has overwritten a changed configuration"
        );
        // The new default, for the administrator to compare.
        fs::remove_file(self.root.join(format!("{SETTINGS}.rpmnew")))?;
        done(self.rpm(&["-e", PACKAGES[0], PACKAGES[1], PACKAGES[2]], &[])?)?;
        let saved = self.root.join(format!("{SETTINGS}.rpmsave"));
        ensure!(
            fs::read_to_string(&saved)? == CHANGED,
            "the changed configuration was not saved"
        );
        fs::remove_file(saved)?;
        nothing_left(&self.root)
    }

    /// A program of a plain build, in a package like the others, is refused for its glibc.
    fn refuse_plain_build(&self, common: &Common<'_>) -> Result<()> {
        let plain = std::env::current_exe()?;
        ensure!(
            elf::check_glibc(&plain, super::programs::GLIBC_MINOR).is_err(),
            "this program runs on glibc 2.{}: it shows nothing",
            super::programs::GLIBC_MINOR
        );
        let described = json!({
            "name": "plain", "arch": "amd64", "platform": "linux", "version": "1",
            "maintainer": "The vgpu project <vgpu@invalid>", "license": "none",
            "description": "A plain build", "depends": requirements([plain.clone()].into_iter())?,
            "contents": [{ "src": plain, "dst": "/usr/bin/plain" }],
        });
        let package = common.pack("plain-rpm", &described, &self.dist.work)?;
        let refused = self.rpm(&["-i"], &[package])?;
        let text = said(&refused);
        ensure!(
            !refused.status.success() && text.contains("GLIBC_2."),
            "a plain build was not refused: {text}"
        );
        Ok(())
    }
}

/// A Debian with a C library by its word, a shell, and nothing else.
struct Debs<'d> {
    dist: &'d Dist,
    root: PathBuf,
}

impl Debs<'_> {
    fn dpkg(&self, arguments: &[&str], packages: &[PathBuf]) -> Result<()> {
        let output = Command::new("dpkg")
            .arg("--root")
            .arg(&self.root)
            // Where the default configuration changes, dpkg asks; this is its default answer.
            .arg("--force-confdef")
            .args(arguments)
            .args(packages)
            .output()
            .context("cannot start dpkg")?;
        ensure!(
            output.status.success(),
            "dpkg {arguments:?}: {}",
            said(&output)
        );
        Ok(())
    }

    fn prepare(&self, common: &Common<'_>) -> Result<()> {
        add_shell(&self.root)?;
        for folder in ["info", "updates", "triggers"] {
            fs::create_dir_all(self.root.join("var/lib/dpkg").join(folder))?;
        }
        for file in ["status", "available"] {
            fs::write(self.root.join("var/lib/dpkg").join(file), "")?;
        }
        let libc = stub("libc6", "2.17", &[]);
        let libc = common.pack("libc6-deb", &libc, &self.dist.work)?;
        self.dpkg(&["--install"], &[libc])
    }

    fn install_upgrade_purge(&self, common: &Common<'_>) -> Result<()> {
        for name in PACKAGES {
            self.dpkg(&["--install"], &[package(self.dist, name, ".deb")?])?;
            self.dpkg(&["--verify", name], &[])?;
        }
        self.session()?;
        let settings = self.root.join(SETTINGS);
        fs::write(&settings, CHANGED)?;
        self.dpkg(&["--install"], &[newer(common, &self.dist.work, "deb")?])?;
        let kept = || Ok::<_, anyhow::Error>(fs::read_to_string(&settings)? == CHANGED);
        ensure!(
            kept()?,
            "an upgrade has overwritten a changed configuration"
        );
        self.dpkg(&["--remove", PACKAGES[0], PACKAGES[1], PACKAGES[2]], &[])?;
        ensure!(kept()?, "removing has taken the configuration along");
        self.dpkg(
            &["--purge", PACKAGES[0], PACKAGES[1], PACKAGES[2], "libc6"],
            &[],
        )?;
        nothing_left(&self.root)
    }

    /// The programs that were installed add vectors for each other, on this machine.
    fn session(&self) -> Result<()> {
        let programs = self.root.join("usr/bin");
        let folder = self.dist.work.join("session");
        fs::create_dir_all(&folder)?;
        let endpoint = format!("local:{}", folder.join("s").display());
        let mut mediator = Mediator::start(&programs, &folder, &endpoint, &["--executor", "cpu"])?;
        mediator.wait_until_ready(&programs, &endpoint)?;
        let added = Command::new(programs.join("vgpu"))
            .args(["--endpoint", &endpoint, "vector-add", "--n", "100000"])
            .output()
            .context("cannot start vgpu")?;
        ensure!(added.status.success(), "vgpu vector-add: {}", said(&added));
        mediator.stop()
    }
}

/// Fails where files are below `root` that belong to no package tool's database.
fn nothing_left(root: &Path) -> Result<()> {
    let mut left = Vec::new();
    let mut folders = vec![root.to_owned()];
    let own = ["rpm", ".rpmdb", "sysimage", "dpkg", "bin"];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_symlink() || !path.is_dir() {
                left.push(path);
            } else if !own.iter().any(|name| path.ends_with(name)) || path.ends_with("usr/bin") {
                folders.push(path);
            }
        }
    }
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot start {command:?}"))?;
    Ok(said(&output))
}

fn said(output: &Output) -> String {
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    text.trim().to_owned()
}

fn done(output: Output) -> Result<()> {
    if !output.status.success() {
        bail!("rpm: {}", said(&output));
    }
    Ok(())
}

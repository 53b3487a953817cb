//! The debs, in a Debian 12 of its own: the packages that every Debian has, and ours.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{CHANGED, DEBS, SETTINGS, files, newer, nothing_left, output, package};
use crate::dist::Dist;
use crate::dist::packages::Common;

/// The script that runs in it: sessions between the installed programs.
const SESSION: &str = include_str!("session.sh");

/// A Debian.
pub(super) struct Debs<'d> {
    dist: &'d Dist,
    pub(super) root: PathBuf,
    /// Its files before the first of our packages.
    before: BTreeSet<PathBuf>,
}

/// Unpacks a Debian of essential packages and these into a folder of this name. It is made the first time.
///
/// # Errors
/// It cannot be made: that needs Debian's archive.
pub(super) fn unpack(dist: &Dist, name: &str, packages: &[&str]) -> Result<PathBuf> {
    let tools = crate::cargo::target_dir().join("dist/tools");
    let archive = tools.join(format!("{name}-12.tar"));
    if !archive.exists() {
        eprintln!("dist: making a Debian 12 (mmdebstrap)");
        // Renamed when complete: an interrupted run leaves no half.
        let part = tools.join(format!("{name}-12-part.tar"));
        let mut mmdebstrap = Command::new("mmdebstrap");
        mmdebstrap.args(["--quiet", "--mode=root", "--variant=essential"]);
        // An empty list is none to it.
        if !packages.is_empty() {
            mmdebstrap.arg(format!("--include={}", packages.join(",")));
        }
        output(mmdebstrap.arg("bookworm").arg(&part))?;
        fs::rename(part, &archive)?;
    }
    let root = dist.work.join(name);
    fs::create_dir_all(&root)?;
    output(
        Command::new("tar")
            .arg("-xf")
            .arg(archive)
            .arg("-C")
            .arg(&root),
    )?;
    Ok(root)
}

impl<'d> Debs<'d> {
    /// Unpacks a Debian, which is made the first time.
    ///
    /// # Errors
    /// It cannot be made: that needs Debian's archive.
    pub(super) fn prepare(dist: &'d Dist) -> Result<Self> {
        let root = unpack(dist, "debian-passwd", &["passwd"])?;
        let before = files(&root)?;
        Ok(Self { dist, root, before })
    }

    fn dpkg(&self, arguments: &[&str], packages: &[PathBuf]) -> Result<String> {
        output(
            Command::new("dpkg")
                .arg("--root")
                .arg(&self.root)
                // Where the default configuration changes, dpkg asks; this is its default answer.
                .arg("--force-confdef")
                .args(arguments)
                .args(packages),
        )
    }

    /// Installs all packages.
    ///
    /// # Errors
    /// One cannot be installed, or differs from what dpkg knows.
    pub(super) fn install(&self) -> Result<()> {
        for name in DEBS {
            self.dpkg(&["--install"], &[package(self.dist, name, ".deb")?])?;
            self.dpkg(&["--verify", name], &[])?;
        }
        // The devices go to a group, and there is that group.
        let rule = "usr/lib/udev/rules.d/70-vgpu-guest.rules";
        let rule = fs::read_to_string(self.root.join(rule)).context("no udev rule")?;
        ensure!(rule.contains("GROUP=\"vgpu\""), "the udev rule: {rule}");
        let groups = fs::read_to_string(self.root.join("etc/group"))?;
        ensure!(
            groups.lines().any(|line| line.starts_with("vgpu:")),
            "no group vgpu after an installation: {groups}"
        );
        Ok(())
    }

    /// The paths that our packages have installed, files and folders, as dpkg lists them.
    ///
    /// # Errors
    /// dpkg fails.
    pub(super) fn installed(&self) -> Result<BTreeSet<PathBuf>> {
        let mut paths = BTreeSet::new();
        for name in DEBS {
            let list = self.dpkg(&["--listfiles", name], &[])?;
            paths.extend(list.lines().map(PathBuf::from));
        }
        Ok(paths)
    }

    /// Runs a shell script in the Debian, with processes, mounts, /run and /tmp of its own.
    ///
    /// # Errors
    /// It fails, with its output.
    pub(super) fn script(&self, script: &str) -> Result<String> {
        const ENTER: &str = "set -e\n\
            mount --bind \"$1\" \"$1\"\n\
            mount -t proc proc \"$1/proc\"\n\
            mount --bind /dev \"$1/dev\"\n\
            mount -t tmpfs tmpfs \"$1/run\"\n\
            mount -t tmpfs tmpfs \"$1/tmp\"\n\
            exec timeout 300 chroot \"$1\" /bin/sh -c \"$2\"\n";
        output(
            Command::new("unshare")
                .args([
                    "--mount",
                    "--pid",
                    "--fork",
                    "--kill-child",
                    "sh",
                    "-c",
                    ENTER,
                    "sh",
                ])
                .arg(&self.root)
                .arg(script)
                .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
                .env_remove("RUST_LOG"),
        )
    }

    /// The installed mediator serves the installed `vgpu`: a vector add, and a kernel of the user's own; and a
    /// program that was built with the installed library.
    ///
    /// # Errors
    /// A session fails, or its result is wrong.
    pub(super) fn session(&self) -> Result<()> {
        let folder = self.root.join("session");
        fs::create_dir_all(&folder)?;
        let kernel = self.dist.source.join("guest/examples/saxpy.ptx");
        fs::copy(&kernel, folder.join("saxpy.ptx"))
            .with_context(|| format!("copying {}", kernel.display()))?;
        fs::write(folder.join("commit"), &self.dist.commit)?;
        // 2.5 x + y
        for (name, value) in [("x", 4.0_f32), ("y", 1.0), ("wanted", 11.0)] {
            fs::write(folder.join(name), value.to_le_bytes().repeat(1000))?;
        }
        self.compile(&folder.join("saxpy"))?;
        let said = self.script(SESSION);
        fs::remove_dir_all(folder)?;
        let said = said?;
        let right = said.lines().any(|line| line == "all sessions are right");
        ensure!(right, "{said}");
        Ok(())
    }

    /// Builds the example in C with the installed library, as `program`. The compiler is this machine's.
    fn compile(&self, program: &Path) -> Result<()> {
        let described = self.root.join("usr/lib/x86_64-linux-gnu/pkgconfig");
        let flags = output(
            Command::new("pkg-config")
                .args(["--cflags", "--libs", "vgpu"])
                .env("PKG_CONFIG_LIBDIR", described)
                .env("PKG_CONFIG_SYSROOT_DIR", &self.root)
                // Or it would leave out the usual folders, which are meant in there.
                .env("PKG_CONFIG_ALLOW_SYSTEM_CFLAGS", "1")
                .env("PKG_CONFIG_ALLOW_SYSTEM_LIBS", "1"),
        )?;
        output(
            Command::new("cc")
                .arg("-std=c99")
                .arg(self.dist.source.join("c-api/examples/saxpy.c"))
                .args(flags.split_whitespace())
                .arg("-o")
                .arg(program),
        )?;
        Ok(())
    }

    /// An upgrade keeps a changed configuration, removal too, and purging leaves nothing.
    ///
    /// # Errors
    /// One of these does not hold.
    pub(super) fn upgrade_purge(&self, common: &Common<'_>) -> Result<()> {
        let settings = self.root.join(SETTINGS);
        fs::write(&settings, CHANGED)?;
        self.dpkg(&["--install"], &[newer(common, &self.dist.work, "deb")?])?;
        let kept = || Ok::<_, anyhow::Error>(fs::read_to_string(&settings)? == CHANGED);
        ensure!(
            kept()?,
            "an upgrade has overwritten a changed configuration"
        );
        self.dpkg(&[&["--remove"], &DEBS[..]].concat(), &[])?;
        ensure!(kept()?, "removing has taken the configuration along");
        self.dpkg(&[&["--purge"], &DEBS[..]].concat(), &[])?;
        // groupadd's copies of what it has changed; the group itself stays, since files may be its own.
        for copy in ["etc/group-", "etc/gshadow-", "etc/.pwd.lock"] {
            let copy = PathBuf::from(copy);
            if !self.before.contains(&copy) && self.root.join(&copy).exists() {
                fs::remove_file(self.root.join(&copy))?;
            }
        }
        nothing_left(&self.root, &self.before)
    }
}

//! The rpms, in a root whose rpm database claims to be CentOS 7.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{CHANGED, RPMS, SETTINGS, files, newer, nothing_left, output, package, said};
use crate::dist::packages::{Common, requirements};
use crate::dist::{Dist, elf, programs};

/// The capabilities that rpm finds on CentOS 7, and so in XCP-ng 8.3's dom0, among all that
/// programs can require.
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

/// The root: a shell for the packages' scripts, and the database.
pub(super) struct Rpms<'d> {
    dist: &'d Dist,
    root: PathBuf,
    /// Its files before the first package.
    before: BTreeSet<PathBuf>,
}

impl<'d> Rpms<'d> {
    /// Makes the root and puts the stub into its database.
    ///
    /// # Errors
    /// rpm or busybox is missing, or fails.
    pub(super) fn prepare(dist: &'d Dist, common: &Common<'_>) -> Result<Self> {
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
        let stub = json!({
            "name": "centos-7-stub", "arch": "amd64", "platform": "linux", "version": "7",
            "version_schema": "none", "maintainer": "The vgpu project <vgpu@invalid>",
            "license": "none", "description": "A stand-in", "provides": provides, "contents": [],
        });
        let stub = common.pack("centos-7-stub-rpm", &stub, &dist.work)?;
        let root = dist.work.join("centos-7");
        add_shell(&root)?;
        for folder in FOLDERS {
            fs::create_dir_all(root.join(folder))?;
        }
        let mut rpms = Self {
            dist,
            root,
            before: BTreeSet::new(),
        };
        rpms.rpm(&["--initdb"], &[])?;
        rpms.rpm(&["-i", "--justdb"], &[stub])?;
        rpms.before = files(&rpms.root)?;
        Ok(rpms)
    }

    fn command(&self, arguments: &[&str], packages: &[PathBuf]) -> Command {
        let mut command = Command::new("rpm");
        command.arg("--root").arg(&self.root);
        command.args(arguments).args(packages);
        command
    }

    fn rpm(&self, arguments: &[&str], packages: &[PathBuf]) -> Result<String> {
        output(&mut self.command(arguments, packages))
    }

    /// Installs a package and has rpm compare what is there with what it knows.
    fn install(&self, name: &str, file: PathBuf) -> Result<()> {
        self.rpm(&["-i"], &[file])?;
        let differences = self.rpm(&["-V", name], &[])?;
        ensure!(differences.is_empty(), "rpm -V {name}: {differences}");
        Ok(())
    }

    /// All packages, without `--nodeps`.
    ///
    /// # Errors
    /// One cannot be installed, a changed configuration is lost, or something is left.
    pub(super) fn install_upgrade_erase(&self, common: &Common<'_>) -> Result<()> {
        // With the configuration as it came, there is nothing to keep.
        self.install(RPMS[0], package(self.dist, RPMS[0], ".rpm")?)?;
        self.rpm(&["-e", RPMS[0]], &[])?;
        nothing_left(&self.root, &self.before)?;
        for name in RPMS {
            self.install(name, package(self.dist, name, ".rpm")?)?;
        }
        let settings = self.root.join(SETTINGS);
        fs::write(&settings, CHANGED)?;
        self.rpm(&["-U"], &[newer(common, &self.dist.work, "rpm")?])?;
        ensure!(
            fs::read_to_string(&settings)? == CHANGED,
            "an upgrade has overwritten a changed configuration"
        );
        // The new default, left for the administrator to compare.
        fs::remove_file(self.root.join(format!("{SETTINGS}.rpmnew")))?;
        self.rpm(&[&["-e"], &RPMS[..]].concat(), &[])?;
        let saved = self.root.join(format!("{SETTINGS}.rpmsave"));
        ensure!(
            fs::read_to_string(&saved)? == CHANGED,
            "the changed configuration was not saved"
        );
        fs::remove_file(&saved)?;
        // rpm keeps a folder that is not empty.
        if let Some(folder) = saved.parent().filter(|folder| folder.exists()) {
            fs::remove_dir(folder)?;
        }
        nothing_left(&self.root, &self.before)
    }

    /// A program of a plain build, in a package like the others, is refused for its glibc.
    ///
    /// # Errors
    /// It is not.
    pub(super) fn refuse_plain_build(&self, common: &Common<'_>) -> Result<()> {
        // This program, also while cargo replaces the file it came from.
        let plain = self.dist.work.join("plain");
        fs::copy("/proc/self/exe", &plain)?;
        ensure!(
            elf::check_glibc(&plain, programs::GLIBC_MINOR).is_err(),
            "this program runs on glibc 2.{}: it shows nothing",
            programs::GLIBC_MINOR
        );
        let described = json!({
            "name": "plain", "arch": "amd64", "platform": "linux", "version": "1",
            "maintainer": "The vgpu project <vgpu@invalid>", "license": "none",
            "description": "A plain build", "depends": requirements([plain.clone()].into_iter())?,
            "contents": [{ "src": plain, "dst": "/usr/bin/plain" }],
        });
        let package = common.pack("plain-rpm", &described, &self.dist.work)?;
        let refused = self.command(&["-i"], &[package]).output().context("rpm")?;
        let text = said(&refused);
        ensure!(
            !refused.status.success() && text.contains("GLIBC_2."),
            "a plain build was not refused: {text}"
        );
        Ok(())
    }

    /// The rpm that XCP-ng's own tools would make, of the tarball and `dist/vgpu-mediator.spec`:
    /// with the same files as the other, to install and to erase.
    ///
    /// # Errors
    /// It cannot be built, differs, or leaves something.
    pub(super) fn spec(&self) -> Result<()> {
        let folder = self.dist.work.join("rpmbuild");
        let define = |name: &str, value: &str| ["--define".to_owned(), format!("{name} {value}")];
        let path = |path: &Path| path.to_str().map(str::to_owned).context("UTF-8");
        output(
            Command::new("rpmbuild")
                .args(["-bb", "--quiet"])
                .args(define("dist", ".xcpng8.3"))
                .args(define("_topdir", &path(&folder)?))
                .args(define("_sourcedir", &path(&self.dist.out)?))
                .arg(self.dist.packaging("vgpu-mediator.spec")),
        )?;
        let built = folder.join("RPMS/x86_64");
        let built = fs::read_dir(&built)?
            .next()
            .context("rpmbuild made nothing")??
            .path();
        let list = |file: &Path| -> Result<BTreeSet<String>> {
            let files = output(Command::new("rpm").args(["-qlp"]).arg(file))?;
            // Each has its own places for documents, and folders only where they are its own; the spec has no
            // shells but dom0's.
            let counts = |line: &&str| {
                let other = ["/usr/share/doc", "/usr/share/fish", "/usr/share/zsh"];
                !other.iter().any(|it| line.starts_with(it)) && *line != "/etc/vgpu"
            };
            Ok(files.lines().filter(counts).map(str::to_owned).collect())
        };
        let (own, spec) = (list(&package(self.dist, RPMS[0], ".rpm")?)?, list(&built)?);
        let differ: Vec<_> = own.symmetric_difference(&spec).collect();
        ensure!(differ.is_empty(), "the two rpms differ in {differ:?}");
        self.install(RPMS[0], built)?;
        self.rpm(&["-e", RPMS[0]], &[])?;
        nothing_left(&self.root, &self.before)
    }
}

/// Folders of packages that the stub stands for, and of shells: they are there already, and stay.
const FOLDERS: [&str; 14] = [
    "etc/modprobe.d",
    "usr/bin",
    "usr/include",
    "usr/lib/modules-load.d",
    "usr/lib/systemd/system",
    "usr/lib/udev/rules.d",
    "usr/lib64/pkgconfig",
    "usr/share/bash-completion/completions",
    "usr/share/doc",
    "usr/share/fish/vendor_completions.d",
    "usr/share/man/man1",
    "usr/share/man/man5",
    "usr/share/zsh/site-functions",
    "var/tmp",
];

/// A shell and the rest of busybox, for the packages' scripts.
fn add_shell(root: &Path) -> Result<()> {
    let bin = root.join("bin");
    fs::create_dir_all(&bin)?;
    fs::copy("/bin/busybox", bin.join("busybox")).context("busybox-static is not installed")?;
    for name in ["sh", "rmdir"] {
        std::os::unix::fs::symlink("busybox", bin.join(name))?;
    }
    // Without it a command that writes there is not run.
    fs::create_dir_all(root.join("dev"))?;
    let null = root.join("dev/null");
    output(
        Command::new("mknod")
            .args(["-m", "666"])
            .arg(null)
            .args(["c", "1", "3"]),
    )?;
    Ok(())
}

//! Builds the initramfs of dom0 and guests from the unpacked packages.
//!
//! `base.cpio` is booted by both; `network.cpio` is the addition for a network (`network.rs`);
//! `dom0.cpio` adds, for dom0 alone, the guests' kernel and a copy of these two. All are cached by
//! a hash of their inputs. The project's own programs come in one more, small archive
//! (`project.rs`).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::cpio::Archive;
use super::packages::{Packages, fnv1a};
use super::{kernel, libraries, modules, network};

/// Raise it when this file changes the contents of an image.
const FORMAT: &str = "4";

/// Xen's programs, in `usr/lib/xen-4.17/bin` of the packages and of the image.
const XEN_PROGRAMS: &[&str] = &[
    "libxl-save-helper",
    "lsevtchn",
    "oxenstored",
    "vchan-socket-proxy",
    "xen-diag",
    "xen-init-dom0",
    "xenconsole",
    "xenconsoled",
    "xenstored",
    "xl",
];
/// Other programs, by their paths in packages and image.
const OTHER_PROGRAMS: &[&str] = &["usr/bin/flock"];

const XENSTORE_PROGRAMS: &[&str] = &[
    "chmod", "exists", "list", "ls", "read", "rm", "watch", "write",
];

/// Libraries that no program above links but that are loaded or linked elsewhere: `libgcc_s` is
/// loaded by `pthread_cancel` (xl), the rest is for the project's programs and the stock
/// libxenvchan peer.
const EXTRA_LIBRARIES: &[&str] = &[
    "ld-linux-x86-64.so.2",
    "libdl.so.2",
    "libgcc_s.so.1",
    "libm.so.6",
    "libpthread.so.0",
    "librt.so.1",
    "libxenctrl.so.4.17",
    "libxenevtchn.so.1",
    "libxengnttab.so.1",
    "libxenstore.so.4",
    "libxenvchan.so.4.17",
];

const XEN_BIN: &str = "usr/lib/xen-4.17/bin";
pub(super) const LIBRARY_FOLDER: &str = "usr/lib/x86_64-linux-gnu";

const SCRIPTS: &[(&str, &str)] = &[
    ("init", include_str!("image/init.sh")),
    ("lab/functions.sh", include_str!("image/functions.sh")),
];

const FILES: &[(&str, &str)] = &[
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
    ("etc/group", "root:x:0:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n"),
    // Mount points of /init; xenconsoled opens pseudo-terminals.
    (
        "etc/fstab",
        "proc /proc proc\nsysfs /sys sysfs\ndevpts /dev/pts devpts\ntmpfs /dev/shm tmpfs\n\
         tmpfs /run tmpfs\ntmpfs /tmp tmpfs\n",
    ),
    // dom0's memory is fixed on the command line; guests get the rest.
    ("etc/xen/xl.conf", "autoballoon=\"off\"\n"),
    // Without the first two oxenstored does not start; the quotas are XCP-ng's.
    (
        "etc/xen/oxenstored.conf",
        "xenstored-kva = /proc/xen/xsd_kva\nxenstored-port = /proc/xen/xsd_port\n\
         quota-maxentity = 8192\nquota-maxsize = 2048\nquota-maxwatch = 512\n\
         quota-transaction = 10\n",
    ),
    ("etc/ld.so.cache", ""),
];

/// The files for a boot, all in the cache.
#[derive(Debug, Clone)]
pub(crate) struct Images {
    /// The hypervisor, as the 32-bit ELF file that QEMU's loader takes.
    pub(crate) xen: PathBuf,
    /// Linux, for dom0 and guests.
    pub(crate) kernel: PathBuf,
    pub(crate) base: PathBuf,
    /// The addition for a network.
    pub(crate) network: PathBuf,
    pub(crate) dom0: PathBuf,
}

impl Images {
    /// The images in `folder`.
    pub(crate) fn of(folder: &Path) -> Self {
        Images {
            xen: folder.join("xen"),
            kernel: folder.join("vmlinux"),
            base: folder.join("base.cpio"),
            network: folder.join("network.cpio"),
            dom0: folder.join("dom0.cpio"),
        }
    }
}

/// Builds the images, or finds them in the cache.
pub(crate) fn build(cache: &Path, packages: &Packages) -> Result<Images> {
    let inputs = inputs(&packages.version);
    let folder = cache.join(format!("images-{:016x}", fnv1a(inputs.as_bytes())));
    let images = Images::of(&folder);
    if folder.is_dir() {
        return Ok(images);
    }
    eprintln!("lab: building the base image");
    let work = cache.join(format!("building-{}", std::process::id()));
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work)?;
    let outcome = build_in(&work, packages);
    if outcome.is_ok() && fs::rename(&work, &folder).is_err() && !folder.is_dir() {
        bail!("could not move the images to {}", folder.display());
    }
    let _ = fs::remove_dir_all(&work);
    outcome?;
    Ok(images)
}

/// Everything that the images are made of: the packages' version, and what is taken from them or added.
fn inputs(version: &str) -> String {
    let lists = [
        modules::MODULES,
        XEN_PROGRAMS,
        OTHER_PROGRAMS,
        XENSTORE_PROGRAMS,
        EXTRA_LIBRARIES,
    ];
    let mut inputs = format!("{FORMAT} {version} {lists:?} {:?}", network::LISTS);
    for (name, text) in SCRIPTS.iter().chain(FILES).chain(network::SCRIPTS) {
        inputs.push_str(name);
        inputs.push_str(text);
    }
    inputs
}

fn build_in(work: &Path, packages: &Packages) -> Result<()> {
    let boot = packages.tree.join("boot");
    let xen = Command::new("gzip")
        .arg("-dc")
        .arg(boot.join("xen-4.17-amd64.gz"))
        .output()
        .context("running gzip")?;
    if !xen.status.success() {
        bail!(
            "could not unpack the hypervisor: {}",
            String::from_utf8_lossy(&xen.stderr)
        );
    }
    fs::write(work.join("xen"), xen.stdout)?;
    let kernel_version = kernel_version(&packages.tree)?;
    let vmlinuz = read(&boot.join(format!("vmlinuz-{kernel_version}")))?;
    let kernel = kernel::extract(&vmlinuz)?;
    fs::write(work.join("vmlinux"), &kernel)?;

    let base = work.join("base.cpio");
    let mut archive = Archive::new(BufWriter::new(File::create(&base)?));
    let libraries = add_base(&mut archive, &packages.tree, &kernel_version)?;
    archive.finish()?.flush()?;
    let network = work.join("network.cpio");
    network::build(&network, &packages.tree, &kernel_version, &libraries)?;

    add_dom0(work)
}

/// Writes `dom0.cpio` beside the `vmlinux`, `base.cpio` and `network.cpio` that it is made from.
///
/// # Errors
/// One of them is missing, or the disk is full.
pub(crate) fn add_dom0(folder: &Path) -> Result<()> {
    let file = File::create(folder.join("dom0.cpio"))?;
    let mut archive = Archive::new(BufWriter::new(file));
    for name in ["vmlinux", "base.cpio", "network.cpio"] {
        archive.file(&format!("boot/{name}"), 0o644, &read(&folder.join(name))?)?;
    }
    archive.finish()?.flush()?;
    Ok(())
}

/// The one kernel version in the unpacked packages.
fn kernel_version(tree: &Path) -> Result<String> {
    let mut versions = fs::read_dir(tree.join("lib/modules")).context("lib/modules")?;
    let version = versions
        .next()
        .context("the kernel package has no modules")??;
    version
        .file_name()
        .into_string()
        .ok()
        .context("the kernel's version is not UTF-8")
}

/// Adds the base files; returns the names of its libraries.
fn add_base<W: Write>(
    archive: &mut Archive<W>,
    tree: &Path,
    kernel: &str,
) -> Result<BTreeSet<String>> {
    for folder in [
        "dev",
        "proc",
        "sys",
        "run",
        "tmp",
        "root",
        "var",
        "opt/vgpu/bin",
    ] {
        archive.directory(folder)?;
    }
    for folder in ["usr/bin", "usr/sbin", "usr/lib", "usr/lib64"] {
        archive.directory(folder)?;
        archive.symlink(folder.trim_start_matches("usr/"), folder)?;
    }
    archive.symlink("var/run", "/run")?;
    for (path, text) in SCRIPTS {
        archive.file(path, 0o755, text.as_bytes())?;
    }
    for (path, text) in FILES {
        archive.file(path, 0o644, text.as_bytes())?;
    }

    let busybox = tree.join("bin/busybox");
    archive.file(
        "usr/bin/busybox",
        0o755,
        &fs::read(&busybox).context("busybox")?,
    )?;
    let applets = Command::new(&busybox)
        .arg("--list")
        .output()
        .context("running busybox")?;
    for applet in String::from_utf8_lossy(&applets.stdout)
        .lines()
        .filter(|a| *a != "busybox")
    {
        archive.symlink(&format!("usr/bin/{applet}"), "busybox")?;
    }

    let mut programs: Vec<PathBuf> = XEN_PROGRAMS
        .iter()
        .map(|name| tree.join(XEN_BIN).join(name))
        .collect();
    programs.extend(OTHER_PROGRAMS.iter().map(|name| tree.join(name)));
    programs.extend(
        XENSTORE_PROGRAMS
            .iter()
            .map(|n| tree.join(format!("usr/bin/xenstore-{n}"))),
    );
    for program in &programs {
        let path = program
            .strip_prefix(tree)?
            .to_str()
            .context("a path is not UTF-8")?;
        archive.file(path, 0o755, &read(program)?)?;
    }

    let mut wanted = programs;
    for name in EXTRA_LIBRARIES {
        let file = libraries::find(tree, name)
            .with_context(|| format!("no package of the lab has {name}"))?;
        archive.file(&format!("{LIBRARY_FOLDER}/{name}"), 0o755, &read(&file)?)?;
        wanted.push(file);
    }
    let mut libraries: BTreeSet<String> = EXTRA_LIBRARIES.iter().map(|n| n.to_string()).collect();
    for (name, file) in libraries::closure(tree, &wanted)? {
        if libraries.insert(name.clone()) {
            archive.file(&format!("{LIBRARY_FOLDER}/{name}"), 0o755, &read(&file)?)?;
        }
    }
    let loader = "ld-linux-x86-64.so.2";
    archive.symlink(
        &format!("usr/lib64/{loader}"),
        &format!("/{LIBRARY_FOLDER}/{loader}"),
    )?;

    let folder = format!("lib/modules/{kernel}");
    let found = modules::collect(tree, kernel, modules::MODULES)?;
    for module in &found {
        archive.file(
            &format!("usr/{folder}/{}", module.path),
            0o644,
            &read(&module.file)?,
        )?;
    }
    let list = modules::dependency_file(&found);
    archive.file(&format!("usr/{folder}/modules.dep"), 0o644, list.as_bytes())?;
    Ok(libraries)
}

pub(super) fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("reading {}", file.display()))
}

/// A file's permissions in an archive: executable or not.
pub(crate) fn permissions(file: &Path) -> Result<u32> {
    Ok(fs::metadata(file)?.permissions().mode() & 0o777)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_goes_into_an_image_is_in_its_key() {
        let inputs = inputs("4.17 6.1");
        let lists = [
            modules::MODULES,
            XEN_PROGRAMS,
            OTHER_PROGRAMS,
            XENSTORE_PROGRAMS,
            EXTRA_LIBRARIES,
        ];
        let network = network::LISTS.into_iter().flatten();
        for name in lists.into_iter().flatten().chain(network) {
            assert!(inputs.contains(&format!("{name:?}")), "{name}: {inputs}");
        }
        for (name, text) in SCRIPTS.iter().chain(FILES).chain(network::SCRIPTS) {
            assert!(inputs.contains(name) && inputs.contains(text), "{name}");
        }
        assert!(inputs.contains("4.17 6.1"));
    }
}

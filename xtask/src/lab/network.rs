//! The files that the lab's network and NFS need, in an archive of their own: dom0 unpacks it, and
//! guests boot with it, only where a test needs a network. All other boots stay as fast as without.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::cpio::Archive;
use super::image::{LIBRARY_FOLDER, read};
use super::{libraries, modules};

/// Modules besides those of every boot: the NFS server, for dom0, and the client, for guests; and
/// the network card that QEMU emulates, for dom0's access to the outside.
const MODULES: &[&str] = &["nfsd", "nfsv4", "e1000"];

/// The server's programs, the client's, and a `mount` that calls the latter and reads `/etc/fstab`.
const PROGRAMS: &[&str] = &[
    "bin/mount",
    "bin/umount",
    "sbin/mount.nfs",
    "usr/sbin/exportfs",
    "usr/sbin/rpc.mountd",
    "usr/sbin/rpc.nfsd",
];

/// Names linked to `mount.nfs`.
const LINKS: &[&str] = &["mount.nfs4", "umount.nfs", "umount.nfs4"];

/// Files copied from the packages: libtirpc reads them.
const COPIED: &[&str] = &["etc/netconfig", "etc/protocols", "etc/services"];

/// All of these.
pub(super) const LISTS: [&[&str]; 4] = [MODULES, PROGRAMS, LINKS, COPIED];

pub(super) const SCRIPTS: &[(&str, &str)] = &[
    ("etc/xen/scripts/vif-lab", include_str!("image/vif.sh")),
    ("lab/network.sh", include_str!("image/network.sh")),
];

/// Writes `network.cpio`, which leaves out the `libraries` that the base image has.
///
/// # Errors
/// A package lacks a file, or the disk is full.
pub(super) fn build(
    file: &Path,
    tree: &Path,
    kernel: &str,
    libraries: &BTreeSet<String>,
) -> Result<()> {
    let mut archive = Archive::new(BufWriter::new(File::create(file)?));
    let programs: Vec<PathBuf> = PROGRAMS.iter().map(|name| tree.join(name)).collect();
    for program in &programs {
        let name = program
            .file_name()
            .and_then(|name| name.to_str())
            .context("a program without a name")?;
        // Replaces busybox's links of the same names.
        archive.file(&format!("usr/bin/{name}"), 0o755, &read(program)?)?;
    }
    // mount(8) looks for the programs of file systems in /sbin.
    for name in ["mount.nfs"].iter().chain(LINKS) {
        archive.symlink(&format!("usr/sbin/{name}"), "/usr/bin/mount.nfs")?;
    }
    for (name, file) in libraries::closure(tree, &programs)? {
        if !libraries.contains(&name) {
            archive.file(&format!("{LIBRARY_FOLDER}/{name}"), 0o755, &read(&file)?)?;
        }
    }
    for path in COPIED {
        archive.file(path, 0o644, &read(&tree.join(path))?)?;
    }
    archive.directory("etc/xen/scripts")?;
    for (path, text) in SCRIPTS {
        archive.file(path, 0o755, text.as_bytes())?;
    }
    let all: Vec<&str> = modules::MODULES.iter().chain(MODULES).copied().collect();
    let base = modules::collect(tree, kernel, modules::MODULES)?;
    let found = modules::collect(tree, kernel, &all)?;
    for module in &found {
        if !base.iter().any(|other| other.path == module.path) {
            let path = format!("usr/lib/modules/{kernel}/{}", module.path);
            archive.file(&path, 0o644, &read(&module.file)?)?;
        }
    }
    let list = modules::dependency_file(&found);
    archive.file(
        &format!("usr/lib/modules/{kernel}/modules.dep"),
        0o644,
        list.as_bytes(),
    )?;
    archive.finish()?.flush()?;
    Ok(())
}

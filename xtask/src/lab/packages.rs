//! Fetches the Debian packages of Xen and unpacks them into a cache. None of them is installed on
//! this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::apt;

/// The packages for the images. [`kernel_package`] finds the kernel.
const PACKAGES: &[&str] = &[
    "busybox-static",
    "libblkid1",
    "libbz2-1.0",
    "libc6",
    "libcom-err2",
    "libfdt1",
    "libgcc-s1",
    "libgssapi-krb5-2",
    "libk5crypto3",
    "libkeyutils1",
    "libkrb5-3",
    "libkrb5support0",
    "liblzma5",
    "liblzo2-2",
    "libmount1",
    "libncurses6",
    "libnl-3-200",
    "libnl-route-3-200",
    "libnsl2",
    "libpcre2-8-0",
    "libselinux1",
    "libssl3",
    "libtinfo6",
    "libtirpc-common",
    "libtirpc3",
    "libuuid1",
    "libwrap0",
    "libxencall1",
    "libxendevicemodel1",
    "libxenevtchn1",
    "libxenforeignmemory1",
    "libxengnttab1",
    "libxenhypfs1",
    "libxenmisc4.17",
    "libxenstore4",
    "libxentoolcore1",
    "libxentoollog1",
    "libyajl2",
    "libzstd1",
    "mount",
    "netbase",
    "nfs-common",
    "nfs-kernel-server",
    "util-linux",
    "xen-hypervisor-4.17-amd64",
    "xen-utils-4.17",
    "xenstore-utils",
    "zlib1g",
];

/// Packages that must be installed on this machine: the emulator, tools to unpack packages and
/// kernels, and the headers for the stock libxenvchan peer.
pub(crate) const INSTALLED: &[&str] = &[
    "qemu-system-x86",
    "binutils",
    "kmod",
    "xz-utils",
    "util-linux",
    "libxen-dev",
];

/// The unpacked packages.
pub(crate) struct Packages {
    /// Root of the unpacked files (`usr/`, `lib/`, `boot/`).
    pub(crate) tree: PathBuf,
    /// Changes whenever a package's version does.
    pub(crate) version: String,
    /// The version of the package of the hypervisor.
    pub(crate) xen: String,
}

/// The lab's cache folder: `$VGPU_LAB_CACHE`, else `$XDG_CACHE_HOME/vgpu/lab`,
/// else `~/.cache/vgpu/lab`.
pub(crate) fn cache_folder() -> Result<PathBuf> {
    let set = |name| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    let folder = set("VGPU_LAB_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|p| p.join("vgpu/lab")))
        .or_else(|| set("HOME").map(|p| p.join(".cache/vgpu/lab")))
        .context("no folder for the lab's cache\n  set VGPU_LAB_CACHE to one")?;
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    std::path::absolute(&folder).context("the cache folder's path")
}

/// Downloads and unpacks the packages that are not in the cache yet.
pub(crate) fn fetch(cache: &Path) -> Result<Packages> {
    let files = match package_files() {
        Ok(files) => files,
        Err(first) => {
            eprintln!("lab: {first:#}; updating the package lists");
            apt::update_lists()?;
            package_files()?
        }
    };
    let version = format!("{:016x}", fnv1a(files.join("\n").as_bytes()));
    let xen = xen_version(&files)?;
    let tree = cache.join(format!("packages-{version}"));
    if tree.is_dir() {
        return Ok(Packages { tree, version, xen });
    }

    eprintln!(
        "lab: downloading {} Debian packages (Xen, Linux, NFS; about 85 MB)",
        files.len()
    );
    // Made beside its final place and renamed when complete, so that two runs at once, or an
    // interrupted one, never leave half a tree.
    let work = cache.join(format!("unpacking-{}", std::process::id()));
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(work.join("deb"))?;
    fs::create_dir_all(work.join("tree"))?;
    let outcome = download_and_unpack(&work);
    if outcome.is_ok() && fs::rename(work.join("tree"), &tree).is_err() && !tree.is_dir() {
        let _ = fs::remove_dir_all(&work);
        bail!("could not move the unpacked packages to {}", tree.display());
    }
    let _ = fs::remove_dir_all(&work);
    outcome?;
    Ok(Packages { tree, version, xen })
}

fn download_and_unpack(work: &Path) -> Result<()> {
    let deb = work.join("deb");
    let mut download = Command::new("apt-get");
    download
        .args(["download", "-q"])
        .args(wanted()?)
        .current_dir(&deb);
    run(&mut download)?;
    eprintln!("lab: unpacking");
    for entry in fs::read_dir(&deb)? {
        let file = entry?.path();
        if file.extension().is_some_and(|e| e == "deb") {
            run(Command::new("dpkg")
                .arg("-x")
                .arg(&file)
                .arg(work.join("tree")))?;
        }
    }
    Ok(())
}

/// The file names, with versions, of a download now.
fn package_files() -> Result<Vec<String>> {
    let mut print = Command::new("apt-get");
    print
        .args(["download", "--print-uris", "-q"])
        .args(wanted()?);
    // One line per package: 'URI' FILE SIZE HASH
    let mut files: Vec<String> = run(&mut print)?
        .lines()
        .filter_map(|line| Some(line.split_whitespace().nth(1)?.to_owned()))
        .collect();
    files.sort();
    if files.is_empty() {
        bail!("apt-get names no package files");
    }
    Ok(files)
}

/// The hypervisor's version, from the name of its package's file: `PACKAGE_VERSION_amd64.deb`.
fn xen_version(files: &[String]) -> Result<String> {
    let name = files
        .iter()
        .find(|name| name.starts_with("xen-hypervisor-"));
    let version = name.and_then(|name| name.split('_').nth(1));
    version
        .map(str::to_owned)
        .context("apt-get names no hypervisor")
}

fn wanted() -> Result<Vec<String>> {
    let mut packages: Vec<String> = PACKAGES.iter().map(|p| (*p).to_owned()).collect();
    packages.push(kernel_package()?);
    Ok(packages)
}

/// The kernel image that `linux-image-amd64` depends on at present.
fn kernel_package() -> Result<String> {
    let depends = run(Command::new("apt-cache").args(["depends", "linux-image-amd64"]))?;
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .map(str::to_owned)
        .context("linux-image-amd64 names no kernel\n  the lab needs Debian 12's package lists")
}

/// Runs a command to its end and returns its standard output.
pub(super) fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let last: Vec<&str> = text.lines().rev().take(3).collect();
        bail!("{:?} failed: {}", command.get_program(), last.join("; "));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// FNV-1a, 64 bits: names cache entries; no protection against attackers.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::xen_version;

    #[test]
    fn the_hypervisors_version_is_in_its_file_name() {
        let files = [
            "libc6_2.36-9_amd64.deb",
            "xen-hypervisor-4.17-amd64_4.17.5+72-1_amd64.deb",
        ];
        assert_eq!(
            xen_version(&files.map(str::to_owned)).unwrap(),
            "4.17.5+72-1"
        );
        assert!(xen_version(&[]).is_err());
    }
}

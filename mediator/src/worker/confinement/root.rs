//! The files that a worker sees: a root directory of its own, which holds what the worker needs and can
//! be changed by nobody.

use std::env;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, umask};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::unistd::{chdir, chroot, pivot_root};
use vgpu_file_transport::directory::place;
use vgpu_transport::endpoint::Endpoint;

use super::{Needs, gpus, tried};

/// Mount point of the new root while it is built: a directory that every system has. No other
/// process sees the mount.
const WORKSHOP: &str = "/tmp";

/// Directories of libraries. NVIDIA's and Xen's load further ones at run time.
const LIBRARIES: [&str; 6] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
];

/// Files that describe the machine, for the CPU executor's Info.
const MACHINE: [&str; 2] = ["/proc/cpuinfo", "/proc/meminfo"];

/// Files read by NVIDIA's driver.
const CUDA_READS: [&str; 11] = [
    "/proc/driver",
    "/proc/devices",
    "/proc/modules",
    "/proc/version",
    "/proc/stat",
    "/proc/filesystems",
    "/proc/sys/vm",
    "/sys/bus/pci",
    "/sys/devices",
    "/sys/module",
    "/usr/share/nvidia",
];

/// Devices that do nothing to anybody.
const CUDA_DEVICES: [&str; 3] = ["/dev/null", "/dev/zero", "/dev/urandom"];

/// Files needed to resolve host names.
const RESOLVER: [&str; 7] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/run/systemd/resolve",
];

/// Directory of the devices for xenstore, grants and event channels.
const XEN_DEVICES: &str = "/dev/xen";

/// Files that show whether this is Xen, and the limit of granted pages.
const XEN_READS: [&str; 3] = ["/proc/xen", "/sys/hypervisor", "/sys/module/xen_gntalloc"];

/// Of relays in dom0: they lock each other out there.
const RUN: &str = "/run/vgpu";

/// How something of the system is shown.
#[derive(Debug, Clone, Copy)]
enum As {
    /// Libraries: they are run, and not changed.
    Library,
    /// Data to read.
    Data,
    /// Devices.
    Device,
    /// A directory or file to write in.
    Writable,
}

impl As {
    fn flags(self) -> MsFlags {
        let read = MsFlags::MS_RDONLY;
        match self {
            Self::Library => read | MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            Self::Data => read | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
            Self::Device => MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
            Self::Writable => MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        }
    }
}

/// A part of the system made visible.
enum Shown {
    /// A file or a directory with all that is mounted in it.
    There(OwnedFd, As),
    /// A link, by what it holds.
    Link(PathBuf),
}

/// Makes the root directory one that holds what `needs` names, at its usual paths.
pub(super) fn change(needs: &Needs) -> Result<(), String> {
    // Mounts from now on are visible to no other process.
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount_over("none", Path::new("/"), None, private).map_err(tried("private mounts"))?;
    // Opened while all of it can be reached.
    let shown = everything(needs).map_err(tried("served directory"))?;
    let strict = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(
        Some("vgpu"),
        WORKSHOP,
        Some("tmpfs"),
        strict,
        Some("size=1m,mode=755"),
    )
    .map_err(tried("tmpfs"))?;
    // The worker's later user needs access to it.
    let usual = umask(Mode::from_bits_truncate(0o022));
    let shown = shown.iter().try_for_each(|(path, shown)| {
        show(path, shown).map_err(|error| format!("{}: {error}", path.display()))
    });
    umask(usual);
    shown?;
    let closed = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | strict;
    mount_over("none", Path::new(WORKSHOP), None, closed).map_err(tried("read-only root"))?;
    chdir(WORKSHOP).map_err(tried("chdir"))?;
    match pivot_root(".", ".") {
        // The old root comes to lie over the new one, and goes.
        Ok(()) => umount2(".", MntFlags::MNT_DETACH).map_err(tried("old root"))?,
        // A system that runs from its initramfs: that root stays, below the new one, and nothing leads
        // there for who has neither a descriptor of it nor the right to change its root.
        Err(Errno::EINVAL) => {
            mount_over(".", Path::new("/"), None, MsFlags::MS_MOVE).map_err(tried("root"))?;
            chroot(".").map_err(tried("chroot"))?;
        }
        Err(error) => return Err(format!("pivot_root: {error}")),
    }
    chdir("/").map_err(tried("chdir"))
}

fn mount_over(from: &str, to: &Path, kind: Option<&str>, flags: MsFlags) -> nix::Result<()> {
    mount(Some(from), to, kind, flags, None::<&str>)
}

/// Parts of the system visible to a worker with these needs. Missing ones are left out.
fn everything(needs: &Needs) -> io::Result<Vec<(PathBuf, Shown)>> {
    let mut list = List(Vec::new());
    if needs.compiler {
        return Ok(list.0);
    }
    MACHINE.iter().for_each(|path| list.add(path, As::Data));
    if needs.cuda || needs.xen || needs.relay.is_some() {
        LIBRARIES
            .iter()
            .for_each(|path| list.add(path, As::Library));
        let others = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        for folder in env::split_paths(&others).filter(|folder| folder.is_absolute()) {
            list.add(folder, As::Library);
        }
    }
    let xen = needs.xen || needs.relay.is_some();
    if needs.cuda || xen || needs.served.is_some() {
        list.add("/proc/self", As::Writable);
    }
    if needs.cuda {
        CUDA_READS.iter().for_each(|path| list.add(path, As::Data));
        CUDA_DEVICES
            .iter()
            .for_each(|path| list.add(path, As::Device));
        gpus::device_files(needs.gpus.as_deref())
            .iter()
            .for_each(|path| list.add(path, As::Device));
    }
    if xen {
        list.add(XEN_DEVICES, As::Device);
        XEN_READS.iter().for_each(|path| list.add(path, As::Data));
        let socket = env::var_os("XENSTORED_PATH").map(PathBuf::from);
        let socket = socket.unwrap_or_else(|| "/run/xenstored/socket".into());
        list.add(socket.parent().unwrap_or(&socket), As::Data);
    }
    if let Some(relay) = &needs.relay {
        RESOLVER.iter().for_each(|path| list.add(path, As::Data));
        list.add(RUN, As::Writable);
        if let Some(secret) = &relay.secret {
            list.add(secret, As::Data);
        }
        if let Endpoint::Local(path) | Endpoint::Unix(path) = &relay.endpoint
            && let Some(folder) = path.parent()
        {
            list.add(folder, As::Data);
        }
    }
    if let Some(served) = &needs.served {
        let path = match &served.guest {
            Some(guest) => served.directory.join(guest.as_str()),
            None => served.directory.clone(),
        };
        // If it cannot be opened, the worker reports that when it opens it itself.
        if let Ok(directory) = place(&served.directory, served.guest.as_ref()) {
            list.0.push((path, Shown::There(directory, As::Writable)));
        }
    }
    Ok(list.0)
}

struct List(Vec<(PathBuf, Shown)>);

impl List {
    fn add(&mut self, path: impl AsRef<Path>, way: As) {
        let path = path.as_ref();
        // A system whose /lib is a link to /usr/lib looks the same here.
        if matches!(way, As::Library)
            && let Ok(target) = fs::read_link(path)
            && target.is_relative()
        {
            return self.0.push((path.to_owned(), Shown::Link(target)));
        }
        if let Ok(fd) = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()) {
            self.0.push((path.to_owned(), Shown::There(fd, way)));
        }
    }
}

/// Shows something in the new root.
fn show(path: &Path, shown: &Shown) -> io::Result<()> {
    let inside = path.strip_prefix("/").map_err(io::Error::other)?;
    let target = Path::new(WORKSHOP).join(inside);
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    let (fd, way) = match shown {
        Shown::Link(link) => return symlink(link, target),
        Shown::There(fd, way) => (fd, *way),
    };
    let source = format!("/proc/self/fd/{}", fd.as_raw_fd());
    match fs::metadata(&source)?.is_dir() {
        true => fs::create_dir_all(&target)?,
        false => drop(File::options().create(true).append(true).open(&target)?),
    }
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount_over(&source, &target, None, bind)?;
    // Earlier restrictions stay; in a user namespace the kernel insists on that.
    let there = fstatvfs(fd)?.flags();
    let mut flags = way.flags();
    for (was, stays) in [
        (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ] {
        if there.contains(was) {
            flags |= stays;
        }
    }
    let again = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags;
    Ok(mount_over("none", &target, None, again)?)
}

//! File systems that are mounted over a served directory, or unmounted from under it.
//!
//! A confined worker has mounts of its own and notices none of that. The kernel tells a process that polls its
//! `/proc/self/mountinfo` when the table of mounts has changed (proc(5)), and reading the table touches no file system.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The kernel's table.
const TABLE: &str = "/proc/self/mountinfo";

/// Most bytes of it that are read.
const MOST_BYTES: u64 = 4 << 20;

/// Time from a change to the look at it: an unmount and a mount count once, and many changes cost little.
const SETTLE: Duration = Duration::from_millis(200);

/// The table of mounts.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    /// Open while a directory is served. Without it no change is noticed.
    table: Option<File>,
    look_at: Option<Instant>,
}

/// What is mounted where a path leads: the same one again counts as the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mounted {
    /// Major and minor number of the file system's device.
    device: Vec<u8>,
    /// The directory of the file system that lies at the mount point, as the table has it.
    root: Vec<u8>,
    at: PathBuf,
}

/// The mounts of a moment.
pub(super) struct Table(Vec<Mount>);

/// A line of the table.
struct Mount {
    id: u32,
    parent: u32,
    mounted: Mounted,
}

impl Mounts {
    pub(super) fn open() -> Self {
        let table = File::open(TABLE);
        let table = table.inspect_err(|error| {
            log::warn!("mounts over served directories are not noticed: {TABLE}: {error}");
        });
        Self {
            table: table.ok(),
            look_at: None,
        }
    }

    /// To poll for `POLLPRI`, which comes with each change.
    pub(super) fn changes(&self) -> Option<BorrowedFd<'_>> {
        self.table.as_ref().map(AsFd::as_fd)
    }

    /// The table has changed.
    pub(super) fn on_change(&mut self, now: Instant) {
        self.look_at.get_or_insert(now + SETTLE);
    }

    /// When to look at what has changed.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.look_at
    }

    /// Whether to look now at what has changed.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        self.look_at.take_if(|at| *at <= now).is_some()
    }

    /// The table as it is now; empty where it cannot be read.
    pub(super) fn read(&mut self) -> Table {
        let text = self.table.as_mut().and_then(|table| text(table).ok());
        Table::parse(&text.unwrap_or_default())
    }
}

fn text(table: &mut File) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    table.rewind()?;
    table.take(MOST_BYTES).read_to_end(&mut text)?;
    Ok(text)
}

impl Table {
    fn parse(text: &[u8]) -> Self {
        let lines = text.split(|byte| *byte == b'\n');
        Self(lines.filter_map(mount).collect())
    }

    /// What is mounted where a path leads that goes through no links. Goes from the root down, as the kernel does: what is
    /// mounted below a mount that hides it does not count.
    pub(super) fn find(&self, path: &Path) -> Option<Mounted> {
        let Self(mounts) = self;
        let is_root = |mount: &&Mount| {
            let below = |other: &Mount| other.id == mount.parent && other.id != mount.id;
            mount.mounted.at == Path::new("/") && !mounts.iter().any(below)
        };
        let mut here = mounts.iter().rfind(is_root)?;
        for _ in mounts {
            let inner = mounts.iter().filter(|inner| {
                inner.parent == here.id
                    && inner.id != here.id
                    && path.starts_with(&inner.mounted.at)
            });
            match inner.min_by_key(|inner| inner.mounted.at.as_os_str().len()) {
                Some(next) => here = next,
                None => break,
            }
        }
        Some(here.mounted.clone())
    }
}

fn mount(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut number = || str::from_utf8(fields.next()?).ok()?.parse().ok();
    Some(Mount {
        id: number()?,
        parent: number()?,
        mounted: Mounted {
            device: fields.next()?.to_vec(),
            root: fields.next()?.to_vec(),
            at: unescaped(fields.next()?),
        },
    })
}

/// Spaces, tabs, line ends and backslashes are three octal digits after a backslash.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let digits = after
            .get(..3)
            .and_then(|digits| str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        let (byte, next) = match byte {
            Some(byte) if *first == b'\\' => (byte, &after[3..]),
            _ => (*first, after),
        };
        bytes.push(byte);
        rest = next;
    }
    OsStr::from_bytes(&bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(table: &str, path: &str) -> String {
        let table = Table::parse(table.as_bytes());
        let found = table.find(Path::new(path)).unwrap();
        String::from_utf8(found.device).unwrap()
    }

    #[test]
    fn the_mount_that_a_path_leads_to_is_found() {
        let table = "1 1 0:1 / / rw - rootfs rootfs rw\n\
             20 1 0:20 / /dev/shm rw,relatime - tmpfs tmpfs rw\n\
             21 20 0:21 / /dev/shm/vgpu/vm1 rw - tmpfs vgpu rw\n\
             nonsense\n\
             22 20 0:22 / /dev/shm/vgpu/with\\040space\\134 rw shared:3 - tmpfs vgpu rw\n";
        assert_eq!(at(table, "/"), "0:1");
        assert_eq!(at(table, "/dev/shm/vgpu"), "0:20");
        assert_eq!(at(table, "/dev/shm/vgpu/vm1"), "0:21");
        assert_eq!(at(table, "/dev/shm/vgpu/vm1/sessions"), "0:21");
        assert_eq!(at(table, "/dev/shm/vgpu/vm10"), "0:20");
        assert_eq!(at(table, "/dev/shm/vgpu/with space\\"), "0:22");
        // Mounted over, and over a directory above, which hides it.
        let over = format!("{table}23 21 0:23 / /dev/shm/vgpu/vm1 rw - tmpfs vgpu rw\n");
        assert_eq!(at(&over, "/dev/shm/vgpu/vm1"), "0:23");
        let hidden = format!("{over}24 20 0:24 / /dev/shm rw - tmpfs tmpfs rw\n");
        assert_eq!(at(&hidden, "/dev/shm/vgpu/vm1"), "0:24");
        assert!(Table::parse(b"").find(Path::new("/")).is_none());
    }

    #[test]
    fn the_kernels_table_is_understood() {
        let mut mounts = Mounts::open();
        let mut found = || {
            let table = mounts.read();
            ["/proc/self", "/"].map(|path| table.find(Path::new(path)))
        };
        let [proc, root] = found();
        assert_eq!(proc.as_ref().unwrap().at, Path::new("/proc"));
        assert_ne!(proc, root);
        assert_eq!(found(), [proc, root], "read again");
    }
}

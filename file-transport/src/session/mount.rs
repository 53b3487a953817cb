//! The file system that a directory lies on, and the effect of its mount options on sessions.

use std::fs;
use std::os::fd::AsFd;

use nix::sys::stat::{fstat, major, minor};

/// A line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The mount point.
    pub point: String,
    /// The file system's type, such as `tmpfs`, `nfs4`, `fuse.sshfs`.
    pub kind: String,
    /// Options of this mount and of the file system.
    pub options: Vec<String>,
}

/// A finding about a mount, for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    /// The finding.
    pub what: String,
    /// The remedy.
    pub advice: String,
    /// Whether sessions are unreliable; otherwise only they are slower, or the two-file protocol is
    /// affected.
    pub grave: bool,
    /// Whether it was observed, rather than inferred from the mount's options.
    pub seen: bool,
}

impl Mount {
    /// The mount that `directory` lies on; `None` where it cannot be determined.
    pub fn of(directory: impl AsFd) -> Option<Self> {
        let device = fstat(directory).ok()?.st_dev;
        let id = format!("{}:{}", major(device), minor(device));
        Self::find(&fs::read_to_string("/proc/self/mountinfo").ok()?, &id)
    }

    /// The last mount of the device `id`, written as in `0:42`, in the text of a `mountinfo`.
    pub fn find(text: &str, id: &str) -> Option<Self> {
        text.lines().rev().find_map(|line| {
            // ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAGS...] - KIND SOURCE SUPEROPTIONS
            let (mount, system) = line.split_once(" - ")?;
            let mount: Vec<&str> = mount.split(' ').collect();
            let system: Vec<&str> = system.split(' ').collect();
            if *mount.get(2)? != id {
                return None;
            }
            let options = mount.get(5)?.split(',').chain(system.get(2)?.split(','));
            Some(Self {
                point: (*mount.get(4)?).to_owned(),
                kind: (*system.first()?).to_owned(),
                options: options.map(str::to_owned).collect(),
            })
        })
    }

    /// Whether the files are on another machine, so that names and contents may be cached here.
    pub fn is_remote(&self) -> bool {
        let local = [
            "tmpfs", "ramfs", "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "overlay",
            "bcachefs", "devtmpfs", "rootfs",
        ];
        !local.contains(&self.kind.as_str())
    }

    fn has(&self, option: &str) -> bool {
        self.options.iter().any(|found| found == option)
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.options
            .iter()
            .rev()
            .find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
    }

    /// The consequences of the options for this program's use of the mount.
    pub fn remarks(&self) -> Vec<Remark> {
        let mut remarks = Vec::new();
        let mut remark = |what: &str, advice: &str, grave| {
            remarks.push(Remark {
                what: what.to_owned(),
                advice: advice.to_owned(),
                grave,
                seen: false,
            });
        };
        if self.has("ro") {
            remark(
                "it is mounted read-only",
                "mount it with rw, and export it so",
                true,
            );
        }
        if self.kind == "nfs" || self.kind == "nfs4" {
            let no_attributes = self.has("noac")
                || ["acregmin", "acregmax", "acdirmin", "acdirmax"]
                    .iter()
                    .all(|name| self.value(name) == Some("0"));
            let names = self.value("lookupcache");
            if self.has("nocto") {
                remark(
                    "nocto: this NFS mount does not ask the server when a file is opened",
                    "mount without nocto",
                    true,
                );
            }
            if !no_attributes {
                remark(
                    "this NFS mount caches attributes (no actimeo=0): now and then an answer is \
                     noticed up to a second late",
                    "mount with actimeo=0",
                    false,
                );
            }
            if !no_attributes && !matches!(names, Some("none" | "pos" | "positive")) {
                remark(
                    "this NFS mount caches names that do not exist, so a program that waits for a \
                     file by its name may not see it for a minute; sessions do not, they list",
                    "mount with lookupcache=none, or actimeo=0",
                    false,
                );
            }
            if self.has("soft") {
                remark(
                    "soft: this NFS mount reports errors while its server is away for a while",
                    "mount with hard, unless sessions may end then",
                    false,
                );
            }
        }
        if self.kind == "fuse.sshfs" {
            remark(
                "sshfs caches directories for 20 s unless told otherwise, and its options cannot \
                 be seen from here",
                "mount with -o dir_cache=no,direct_io,attr_timeout=0,entry_timeout=0,reconnect,\
                 ServerAliveInterval=15",
                false,
            );
        }
        remarks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
22 1 0:20 / / rw,relatime - overlay overlay rw,lowerdir=/a
30 22 0:41 / /dev/shm rw,nosuid,nodev - tmpfs tmpfs rw,size=65536k
31 22 0:42 / /mnt/vgpu rw,relatime shared:7 master:3 - nfs4 10.0.0.1:/vgpu rw,vers=4.2,rsize=262144,hard,proto=tcp
32 22 0:43 / /mnt/good rw - nfs4 10.0.0.1:/vgpu rw,vers=4.2,hard,acregmin=0,acregmax=0,acdirmin=0,acdirmax=0,lookupcache=none
33 22 0:44 / /mnt/bad rw - nfs 10.0.0.1:/vgpu rw,vers=3,soft,nocto,lookupcache=pos
34 22 0:45 / /mnt/ssh ro,nosuid - fuse.sshfs host:/x rw,user_id=0
";

    #[test]
    fn the_mount_of_a_device_is_found_with_all_its_options() {
        let tmpfs = Mount::find(TEXT, "0:41").unwrap();
        assert_eq!(
            (tmpfs.kind.as_str(), tmpfs.point.as_str()),
            ("tmpfs", "/dev/shm")
        );
        assert!(!tmpfs.is_remote() && tmpfs.remarks().is_empty());
        let nfs = Mount::find(TEXT, "0:42").unwrap();
        assert_eq!(nfs.value("vers"), Some("4.2"));
        assert!(nfs.has("hard") && nfs.is_remote());
        assert_eq!(Mount::find(TEXT, "0:4"), None);
        assert_eq!(Mount::find("nonsense\n - \n0 0 0:1 -", "0:1"), None);
    }

    #[test]
    fn wrong_options_are_named() {
        let remarks = |id| Mount::find(TEXT, id).unwrap().remarks();
        let advice = |id| -> Vec<(String, bool)> {
            remarks(id)
                .into_iter()
                .map(|r| (r.advice, r.grave))
                .collect()
        };
        let named = |text: &str, grave| (text.to_owned(), grave);
        assert_eq!(
            advice("0:42"),
            [
                named("mount with actimeo=0", false),
                named("mount with lookupcache=none, or actimeo=0", false),
            ]
        );
        assert_eq!(advice("0:43"), []);
        assert_eq!(
            advice("0:44"),
            [
                named("mount without nocto", true),
                named("mount with actimeo=0", false),
                named("mount with hard, unless sessions may end then", false),
            ]
        );
        assert!(advice("0:45")[0].1 && advice("0:45")[1].0.contains("dir_cache=no"));
    }

    #[test]
    fn the_mount_of_a_real_directory_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let mount = Mount::of(fs::File::open(directory.path()).unwrap());
        assert!(mount.is_some_and(|mount| !mount.kind.is_empty()));
    }
}

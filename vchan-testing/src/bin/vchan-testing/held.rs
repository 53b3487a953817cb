//! The resources that a process holds, for tests that check for leaks.

use std::fmt;
use std::fs;

use vgpu_cli::{Failure, print_line};
use xen_sys::{Access, ErrorKind, Provider};

/// Open descriptors, mappings of shared memory and threads of this process, as the kernel lists
/// them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    descriptors: usize,
    mappings: usize,
    threads: usize,
}

impl Held {
    pub(crate) fn now() -> Result<Self, Failure> {
        let maps = fs::read_to_string("/proc/self/maps").map_err(|error| unreadable(&error))?;
        let is_shared = |line: &&str| line.contains("/dev/xen/") || line.contains("memfd:vchan");
        Ok(Self {
            // One of them is the folder itself.
            descriptors: count("/proc/self/fd")?,
            mappings: maps.lines().filter(is_shared).count(),
            threads: count("/proc/self/task")?,
        })
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} descriptors, {} mappings, {} threads",
            self.descriptors, self.mappings, self.threads
        )
    }
}

/// Number of descriptors of this process that are open on `path`.
pub(crate) fn open_on(path: &str) -> Result<usize, Failure> {
    let entries = fs::read_dir("/proc/self/fd").map_err(|error| unreadable(&error))?;
    Ok(entries
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter(|link| link.as_os_str() == path)
        .count())
}

/// Logs the file that each descriptor of this process is open on, to identify leaks.
pub(crate) fn list_descriptors() {
    for entry in fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten()
    {
        if let Ok(link) = fs::read_link(entry.path()) {
            log::warn!("{} is {}", entry.file_name().display(), link.display());
        }
    }
}

/// Prints how many pages this kernel would still grant.
pub(crate) fn pages_left() -> Result<(), Failure> {
    let device = Provider::from_env()
        .and_then(Provider::open_grant_share)
        .map_err(failed)?;
    let mut all = Vec::new();
    let (mut total, mut step) = (0, 1024);
    while step > 0 {
        match device.share(xen_sys::DomId(0), step, Access::ReadWrite, None) {
            Ok(pages) => {
                total += step;
                all.push(pages);
            }
            Err(error) if error.kind() == ErrorKind::GrantLimit => step /= 2,
            Err(error) => return Err(failed(error)),
        }
    }
    print_line(format_args!("pages left to grant: {total}"))
}

fn count(folder: &str) -> Result<usize, Failure> {
    Ok(fs::read_dir(folder)
        .map_err(|error| unreadable(&error))?
        .count())
}

fn unreadable(error: &std::io::Error) -> Failure {
    Failure::new(
        format!("cannot read what this process holds: {error}"),
        "mount /proc",
    )
}

fn failed(error: xen_sys::Error) -> Failure {
    let advice = error.hint().unwrap_or("look at dmesg").to_owned();
    Failure::new(error.to_string(), advice)
}

//! Writes cpio archives in the `newc` format, which Linux accepts as initramfs.
//!
//! Several archives written one after another form one initramfs, later files replacing earlier
//! ones; so files that change often have an archive of their own.

use std::collections::BTreeSet;
use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// An archive being written. All files belong to root; times are zero, so the same input gives the
/// same bytes.
pub(crate) struct Archive<W> {
    out: W,
    next_inode: u32,
    directories: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(out: W) -> Self {
        Archive {
            out,
            next_inode: 1,
            directories: BTreeSet::new(),
        }
    }

    /// Adds a directory and its parents, unless they are there already.
    pub(crate) fn directory(&mut self, path: &str) -> io::Result<()> {
        if path.is_empty() || self.directories.contains(path) {
            return Ok(());
        }
        self.parents_of(path)?;
        self.directories.insert(path.to_owned());
        self.entry(path, DIRECTORY | 0o755, &[])
    }

    /// Adds a file with `permissions` (the low nine mode bits).
    pub(crate) fn file(&mut self, path: &str, permissions: u32, content: &[u8]) -> io::Result<()> {
        self.parents_of(path)?;
        self.entry(path, REGULAR | permissions, content)
    }

    pub(crate) fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.parents_of(path)?;
        self.entry(path, SYMLINK | 0o777, target.as_bytes())
    }

    /// Ends the archive and returns the writer.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, &[])?;
        Ok(self.out)
    }

    fn parents_of(&mut self, path: &str) -> io::Result<()> {
        match path.rsplit_once('/') {
            Some((parent, _)) => self.directory(parent),
            None => Ok(()),
        }
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let too_large = |_| io::Error::other(format!("{path} is too large for a cpio archive"));
        let size = u32::try_from(content.len()).map_err(too_large)?;
        let name_size = u32::try_from(path.len() + 1).map_err(too_large)?;
        let inode = self.next_inode;
        self.next_inode += 1;
        // magic, inode, mode, uid, gid, links, time, size, device ×2, special
        // device ×2, length of the name with its NUL, checksum (unused).
        write!(
            self.out,
            "070701{inode:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}",
            0, 0, 1, 0
        )?;
        write!(self.out, "{size:08x}{:08x}{:08x}{:08x}{:08x}", 0, 0, 0, 0)?;
        write!(self.out, "{name_size:08x}{:08x}{path}\0", 0)?;
        self.pad(110 + path.len() + 1)?;
        self.out.write_all(content)?;
        self.pad(content.len())
    }

    /// Pads header with name, and content, to a multiple of four bytes each.
    fn pad(&mut self, written: usize) -> io::Result<()> {
        self.out
            .write_all(&[0; 3][..written.next_multiple_of(4) - written])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_parents_come_first() {
        let mut archive = Archive::new(Vec::new());
        archive.file("a/b/c", 0o755, b"hello").unwrap();
        archive.file("a/d", 0o644, b"").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let names: Vec<_> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert_eq!(names.len(), 5, "a, a/b, a/b/c, a/d, trailer");
        assert!(names.iter().all(|at| at % 4 == 0));
        assert!(text.find("a/b\0") < text.find("a/b/c\0"));
    }
}

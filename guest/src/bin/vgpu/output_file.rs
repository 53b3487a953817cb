//! The file for a result: found to be writable before the work is done, written after it was verified.
//!
//! A regular file is replaced whole or not at all, and keeps its mode, its owner and the links that
//! lead to it. What cannot be replaced is written into: a FIFO, a character device, and a file whose
//! owner or directory does not let a copy take its place.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{Gid, Uid, fchown};
use tempfile::NamedTempFile;

use crate::failure::Failure;

/// Links followed one after the other, as the kernel does at most.
const MOST_LINKS: usize = 40;

/// The permission bits that a replaced file hands on; set-user-id and the like are not for results.
const MODE: u32 = 0o777;

/// Where a result will be written.
#[derive(Debug)]
pub(crate) struct OutputFile<'p> {
    /// As the user wrote it.
    path: &'p Path,
    way: Way,
}

#[derive(Debug)]
enum Way {
    /// The temporary file takes the name of `target`, which no link stands at.
    Replace {
        target: PathBuf,
        temporary: NamedTempFile,
    },
    /// A regular file that is overwritten.
    Overwrite(File),
    /// A FIFO or a character device.
    Stream(File),
}

impl<'p> OutputFile<'p> {
    /// Looks at what stands at `path`, and opens or makes what will be written.
    ///
    /// # Errors
    /// A directory, socket or block device; a FIFO that nobody reads; whatever the system refuses.
    pub(crate) fn prepare(path: &'p Path) -> Result<Self, Failure> {
        let way = match fs::metadata(path) {
            Ok(found) if found.is_file() => existing(path, &found),
            Ok(found) => return special(path, &found).map(|way| Self { path, way }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => new(path),
            Err(error) => Err(error),
        };
        way.map(|way| Self { path, way })
            .map_err(|error| unwritable(path, &error))
    }

    /// Writes `bytes`, which are everything that the file shall hold.
    ///
    /// # Errors
    /// Whatever the system says. What stood at the path is still there, unless it had to be written
    /// into.
    pub(crate) fn finish(self, bytes: &[u8]) -> Result<(), Failure> {
        let written = match self.way {
            Way::Stream(mut stream) => stream.write_all(bytes),
            Way::Overwrite(mut file) => file
                .set_len(0)
                .and_then(|()| file.write_all(bytes))
                .and_then(|()| file.sync_all()),
            Way::Replace {
                target,
                mut temporary,
            } => temporary
                .write_all(bytes)
                .and_then(|()| temporary.as_file().sync_all())
                .and_then(|()| {
                    let persisted = temporary.persist(target);
                    persisted.map(drop).map_err(|error| error.error)
                }),
        };
        written.map_err(|error| unwritable(self.path, &error))
    }
}

/// A regular file: replaced by a copy of the same mode and owner, or else overwritten.
fn existing(path: &Path, found: &Metadata) -> io::Result<Way> {
    // Whoever may not write the file shall not replace it either.
    let file = OpenOptions::new().write(true).open(path)?;
    // A path through /proc/self/fd need not lead to a name.
    let Ok(target) = fs::canonicalize(path) else {
        return Ok(Way::Overwrite(file));
    };
    // Other names of the file would keep the old content.
    if found.nlink() > 1 {
        return Ok(Way::Overwrite(file));
    }
    let temporary = match temporary_beside(&target, found.mode() & MODE) {
        Err(error) if cannot_be_replaced(&error) => return Ok(Way::Overwrite(file)),
        other => other?,
    };
    let (uid, gid) = (Uid::from_raw(found.uid()), Gid::from_raw(found.gid()));
    let made = temporary.as_file().metadata()?;
    if (made.uid(), made.gid()) != (found.uid(), found.gid())
        && fchown(temporary.as_file(), Some(uid), Some(gid)).is_err()
    {
        return Ok(Way::Overwrite(file));
    }
    // The umask has no say in a mode that was there before.
    let mode = Permissions::from_mode(found.mode() & MODE);
    temporary.as_file().set_permissions(mode)?;
    Ok(Way::Replace { target, temporary })
}

fn cannot_be_replaced(error: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem)
}

/// Nothing is there yet, at the path or where its links lead.
fn new(path: &Path) -> io::Result<Way> {
    let target = follow(path)?;
    // What a newly made file gets, less the umask.
    let temporary = temporary_beside(&target, 0o666)?;
    Ok(Way::Replace { target, temporary })
}

fn temporary_beside(target: &Path, mode: u32) -> io::Result<NamedTempFile> {
    tempfile::Builder::new()
        .prefix(".vgpu-")
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(directory_of(target))
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Where links lead at whose end nothing is.
fn follow(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        match fs::read_link(&path) {
            Ok(link) => path = directory_of(&path).join(link),
            // No link, or nothing at all.
            Err(_) => return Ok(path),
        }
    }
    Err(Errno::ELOOP.into())
}

/// Something else than a regular file.
fn special(path: &Path, found: &Metadata) -> Result<Way, Failure> {
    let kind = found.file_type();
    let refused = |what: &str, advice: &str| {
        Err(Failure::new(
            format!("{} is {what}", path.display()),
            advice,
        ))
    };
    if kind.is_dir() {
        return refused("a directory", "give --output the name of a file");
    }
    if kind.is_socket() {
        return refused("a socket", "give --output the name of a file");
    }
    if kind.is_block_device() {
        return refused(
            "a disk or another block device",
            "give --output the name of a file; nothing was written",
        );
    }
    let opened = OpenOptions::new()
        .write(true)
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
        .open(path);
    match opened.and_then(|stream| block(&stream).map(|()| stream)) {
        Ok(stream) => Ok(Way::Stream(stream)),
        Err(error) if error.raw_os_error() == Some(Errno::ENXIO as i32) => {
            refused("a FIFO that nobody reads", "start what reads it first")
        }
        Err(error) => Err(unwritable(path, &error)),
    }
}

/// Lets writes wait for room. The descriptor was opened here, so nobody shares its flags.
fn block(stream: &impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(stream, FcntlArg::F_GETFL)?);
    fcntl(stream, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    Ok(())
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    Failure::new(
        format!("cannot write {}: {error}", path.display()),
        "check that the directory exists, may be written and has room",
    )
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::thread;

    use nix::sys::stat::Mode;
    use tempfile::TempDir;

    use super::*;

    fn write(path: &Path, bytes: &[u8]) {
        let file = OutputFile::prepare(path).expect("writable");
        file.finish(bytes).expect("written");
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("there").mode() & 0o7777
    }

    fn refused(path: &Path) -> String {
        let failure = OutputFile::prepare(path).expect_err("refused");
        failure.to_string()
    }

    #[test]
    fn a_file_is_replaced_and_keeps_its_mode_and_owner() {
        let directory = TempDir::new().expect("a directory");
        let path = directory.path().join("c");
        for kept in [0o600, 0o640, 0o666, 0o444] {
            fs::write(&path, "before").expect("written");
            fs::set_permissions(&path, Permissions::from_mode(kept)).expect("allowed");
            if nix::unistd::geteuid().is_root() {
                fchown(
                    File::open(&path).expect("there"),
                    Some(Uid::from_raw(1234)),
                    Some(Gid::from_raw(4321)),
                )
                .expect("root may");
            } else if kept == 0o444 {
                assert!(refused(&path).contains("cannot write"));
                continue;
            }
            let before = fs::metadata(&path).expect("there");
            write(&path, b"after");
            let after = fs::metadata(&path).expect("there");
            assert_eq!(fs::read(&path).expect("there"), b"after");
            assert_eq!(mode(&path), kept);
            assert_eq!((after.uid(), after.gid()), (before.uid(), before.gid()));
            assert_ne!(after.ino(), before.ino());
        }
        assert_eq!(fs::read_dir(directory.path()).expect("there").count(), 1);
    }

    #[test]
    fn what_is_prepared_and_not_finished_changes_nothing() {
        let directory = TempDir::new().expect("a directory");
        let path = directory.path().join("c");
        drop(OutputFile::prepare(&path).expect("writable"));
        assert!(!path.exists());
        fs::write(&path, "before").expect("written");
        drop(OutputFile::prepare(&path).expect("writable"));
        assert_eq!(fs::read(&path).expect("there"), b"before");
        assert_eq!(fs::read_dir(directory.path()).expect("there").count(), 1);
    }

    #[test]
    fn links_are_followed_also_where_nothing_is_yet() {
        let directory = TempDir::new().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("far")).expect("made");
        fs::write(at("far/there"), "before").expect("written");
        symlink("far/there", at("link")).expect("made");
        symlink("link", at("link to link")).expect("made");
        symlink("far/dangling", at("dangling")).expect("made");
        symlink("loop", at("loop")).expect("made");
        for (link, target) in [("link to link", "far/there"), ("dangling", "far/dangling")] {
            write(&at(link), b"after");
            assert_eq!(fs::read(at(target)).expect("there"), b"after");
            assert!(fs::symlink_metadata(at(link)).expect("there").is_symlink());
        }
        assert!(
            fs::symlink_metadata(at("link"))
                .expect("there")
                .is_symlink()
        );
        assert!(refused(&at("loop")).contains("cannot write"));
        // The other name of a file shows what was written, too.
        fs::hard_link(at("far/there"), at("twin")).expect("made");
        write(&at("twin"), b"once more");
        assert_eq!(fs::read(at("far/there")).expect("there"), b"once more");
    }

    #[test]
    fn devices_and_fifos_are_written_into_and_stay() {
        write(Path::new("/dev/null"), b"gone");
        let kind = fs::metadata("/dev/null").expect("there").file_type();
        assert!(kind.is_char_device());

        let directory = TempDir::new().expect("a directory");
        let path = directory.path().join("fifo");
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).expect("made");
        assert!(refused(&path).contains("nobody reads"));
        let reader = thread::spawn({
            let path = path.clone();
            move || {
                let mut read = Vec::new();
                File::open(path).and_then(|mut fifo| fifo.read_to_end(&mut read))?;
                io::Result::Ok(read)
            }
        });
        let file = loop {
            match OutputFile::prepare(&path) {
                Ok(file) => break file,
                Err(_) => thread::yield_now(),
            }
        };
        // More than a pipe holds at once.
        let bytes = vec![7; 1 << 20];
        file.finish(&bytes).expect("written");
        assert!(reader.join().expect("ended").expect("read") == bytes);
        let kind = fs::symlink_metadata(&path).expect("there").file_type();
        assert!(kind.is_fifo());
    }

    #[test]
    fn sockets_and_directories_are_refused_and_stay() {
        let directory = TempDir::new().expect("a directory");
        let path = directory.path().join("socket");
        let _listener = UnixListener::bind(&path).expect("bound");
        assert!(refused(&path).contains("is a socket"));
        let kind = fs::symlink_metadata(&path).expect("there").file_type();
        assert!(kind.is_socket());
        assert!(refused(directory.path()).contains("is a directory"));
    }
}

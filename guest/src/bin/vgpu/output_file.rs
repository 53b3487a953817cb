//! The file for a result: found to be writable before the work is done, written after it was verified.
//!
//! A regular file is replaced whole or not at all, and keeps its mode, its owner, its extended
//! attributes with the access lists, and the links that lead to it. What cannot be replaced so is
//! written into: a FIFO, a character device, and a file whose owner, attributes or directory do not
//! let a copy take its place.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl};
use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fremovexattr, fsetxattr};
use tempfile::NamedTempFile;
use vgpu_cli::Failure;

/// Longest value of an extended attribute, and longest list of their names (Linux).
const XATTR_MAX: usize = 64 << 10;

/// The extended attribute with a file's access list.
const ACCESS_LIST: &str = "system.posix_acl_access";

/// How often the place is looked at again because something else appeared there.
const LOOKS: usize = 5;

/// Device and inode: which file it is, as long as somebody holds it open. The number of a file that is
/// gone is given to the next.
type Identity = (u64, u64);

/// A place for the result, found to be usable before the work is done.
#[derive(Debug)]
pub(crate) struct OutputFile<'p> {
    path: &'p Path,
    target: Target,
    made: Option<Made>,
}

#[derive(Debug)]
enum Target {
    /// A regular file, there whole or not at all: it gets its name when it is complete.
    Renamed {
        temporary: NamedTempFile,
        to: PathBuf,
        /// The present file, held open so that no other file can get its inode number.
        replaces: Option<File>,
    },
    /// A file that a rename would destroy: a device, a pipe, one with further names or with an owner
    /// or attributes that a new file cannot be given.
    Written(File),
}

impl<'p> OutputFile<'p> {
    /// Finds out what stands at `path`, and whether it may be written.
    ///
    /// # Errors
    /// A directory, a socket, a block device, a pipe that nobody reads, or no right to write.
    pub(crate) fn prepare(path: &'p Path) -> Result<Self, Failure> {
        match fs::metadata(path) {
            Ok(metadata) => {
                refuse_unwritable_kinds(path, &metadata)?;
                Self::existing(path, None)
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(unwritable(path, &error)),
            Err(_) if path.as_os_str().as_bytes().ends_with(b"/") => Err(is_directory(path)),
            Err(_) if path.is_symlink() => {
                // The kernel makes the file that the link names, and refuses the links that others
                // may have laid in a directory like /tmp.
                let file = open(path, true)?;
                let made = Made::new(path, file).map_err(|error| unwritable(path, &error))?;
                Self::existing(path, Some(made))
            }
            Err(_) => {
                let directory = match path.parent() {
                    Some(parent) if parent != Path::new("") => parent,
                    _ => Path::new("."),
                };
                // The mode of a new file, before the umask.
                let temporary =
                    temporary_in(directory, 0o666).map_err(|error| unwritable(path, &error))?;
                let to = path.to_owned();
                let target = Target::Renamed {
                    temporary,
                    to,
                    replaces: None,
                };
                Ok(Self {
                    path,
                    target,
                    made: None,
                })
            }
        }
    }

    fn existing(path: &'p Path, made: Option<Made>) -> Result<Self, Failure> {
        // Also where it will be replaced: a file that may not be written is left alone.
        let file = open(path, false)?;
        let metadata = file.metadata().map_err(|error| unwritable(path, &error))?;
        refuse_unwritable_kinds(path, &metadata)?;
        let target = if metadata.is_file() {
            replacement(path, &file, &metadata).unwrap_or(Target::Written(file))
        } else {
            // From here on a slow reader is waited for.
            fcntl(&file, FcntlArg::F_GETFL)
                .map(|flags| OFlag::from_bits_truncate(flags) - OFlag::O_NONBLOCK)
                .and_then(|flags| fcntl(&file, FcntlArg::F_SETFL(flags)))
                .map_err(|errno| unwritable(path, &errno.into()))?;
            Target::Written(file)
        };
        Ok(Self { path, target, made })
    }

    /// Writes `bytes`, which are everything that the file shall hold.
    ///
    /// # Errors
    /// It cannot be written. Then a regular file is as it was before, unless it had to be written
    /// in place and the error came on the way.
    pub(crate) fn finish(self, bytes: &[u8]) -> Result<(), Failure> {
        let path = self.path;
        let mut file = self;
        for _ in 0..LOOKS {
            match file.place(bytes) {
                Ok(true) => return Ok(()),
                // It is treated like what was there from the start.
                Ok(false) => file = Self::prepare(path)?,
                Err(error) => return Err(unwritable(path, &error)),
            }
        }
        Err(Failure::new(
            format!("{} keeps being replaced", path.display()),
            "let nobody else write there meanwhile",
        ))
    }

    /// Puts `bytes` in place. False: something else stands there by now, and was left alone.
    fn place(mut self, bytes: &[u8]) -> io::Result<bool> {
        match self.target {
            Target::Written(file) => write_into(file, bytes)?,
            Target::Renamed {
                mut temporary,
                to,
                replaces,
            } => {
                temporary.write_all(bytes)?;
                temporary.as_file().sync_all()?;
                let there = fs::symlink_metadata(&to).ok().map(|there| identity(&there));
                let before = replaces.as_ref().map(File::metadata).transpose()?;
                if there != before.map(|before| identity(&before)) {
                    return Ok(false);
                }
                let renamed = match replaces {
                    Some(_) => temporary.persist(&to),
                    // A file that appears after the check is not replaced either.
                    None => match temporary.persist_noclobber(&to) {
                        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
                            return Ok(false);
                        }
                        // Not every file system has it.
                        Err(error) => error.file.persist(&to),
                        done => done,
                    },
                };
                renamed.map_err(|error| error.error)?;
            }
        }
        if let Some(made) = &mut self.made {
            made.wanted = true;
        }
        Ok(true)
    }
}

/// An empty file that was made for the result, removed if none comes.
#[derive(Debug)]
struct Made {
    to: PathBuf,
    /// The file itself, held so that nothing else can have its number.
    file: File,
    wanted: bool,
}

impl Made {
    fn new(path: &Path, file: File) -> io::Result<Self> {
        let to = fs::canonicalize(path)?;
        Ok(Self {
            to,
            file,
            wanted: false,
        })
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if self.wanted {
            return;
        }
        // Not what somebody else has put there or written into meanwhile.
        if let (Ok(there), Ok(made)) = (fs::symlink_metadata(&self.to), self.file.metadata())
            && identity(&there) == identity(&made)
            && made.len() == 0
        {
            let _ = fs::remove_file(&self.to);
        }
    }
}

fn identity(metadata: &Metadata) -> Identity {
    (metadata.dev(), metadata.ino())
}

/// Opens what stands at `path` for writing and changes nothing, nor waits for a pipe's reader.
fn open(path: &Path, create: bool) -> Result<File, Failure> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    OpenOptions::new()
        .write(true)
        .create(create)
        .truncate(false)
        .custom_flags(flags.bits())
        .open(path)
        .map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENXIO) => Failure::new(
                format!("{} is a FIFO that nobody reads", path.display()),
                "start what reads it first",
            ),
            _ => unwritable(path, &error),
        })
}

fn refuse_unwritable_kinds(path: &Path, metadata: &Metadata) -> Result<(), Failure> {
    let kind = metadata.file_type();
    let what = if kind.is_dir() {
        return Err(is_directory(path));
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_block_device() {
        "a block device"
    } else {
        return Ok(());
    };
    Err(Failure::new(
        format!("{} is {what}", path.display()),
        "give --output the name of a file, a pipe or a character device",
    ))
}

fn is_directory(path: &Path) -> Failure {
    let what = format!("{} is a directory", path.display());
    Failure::new(what, "give --output the name of a file")
}

fn temporary_in(directory: &Path, mode: u32) -> io::Result<NamedTempFile> {
    tempfile::Builder::new()
        .prefix(".vgpu-")
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(directory)
}

/// A file that can take the place of `old`, with its owner, mode and attributes; `None` where there
/// cannot be one.
fn replacement(path: &Path, old: &File, metadata: &Metadata) -> Option<Target> {
    let to = fs::canonicalize(path).ok()?;
    // The other names of a file would keep what was there before.
    if metadata.nlink() != 1 || identity(&fs::symlink_metadata(&to).ok()?) != identity(metadata) {
        return None;
    }
    let temporary = temporary_in(to.parent()?, 0o600).ok()?;
    let file = temporary.as_file();
    let new = file.metadata().ok()?;
    if (new.uid(), new.gid()) != (metadata.uid(), metadata.gid()) {
        fchown(file, Some(metadata.uid()), Some(metadata.gid())).ok()?;
    }
    copy_attributes(old, file).ok()?;
    // As after any write, without the bits that lend rights.
    file.set_permissions(Permissions::from_mode(metadata.mode() & 0o777))
        .ok()?;
    Some(Target::Renamed {
        temporary,
        to,
        replaces: Some(old.try_clone().ok()?),
    })
}

/// Copies the extended attributes, access lists among them: the group's bits of a mode are the mask
/// of the list, and mean other people without it.
fn copy_attributes(old: &File, new: &File) -> rustix::io::Result<()> {
    let mut names = vec![0; XATTR_MAX];
    let length = match flistxattr(old, names.as_mut_slice()) {
        Err(rustix::io::Errno::NOTSUP) => return Ok(()),
        length => length?,
    };
    let names = names[..length].split(|byte| *byte == 0);
    let names: Vec<&[u8]> = names.filter(|name| !name.is_empty()).collect();
    // The new file may have got a list from its directory.
    if !names.contains(&ACCESS_LIST.as_bytes()) {
        match fremovexattr(new, ACCESS_LIST) {
            Ok(()) | Err(rustix::io::Errno::NODATA | rustix::io::Errno::NOTSUP) => {}
            Err(errno) => return Err(errno),
        }
    }
    let mut value = vec![0; XATTR_MAX];
    for name in names {
        let length = fgetxattr(old, name, value.as_mut_slice())?;
        fsetxattr(new, name, &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}

/// Writes into what is there.
fn write_into(mut file: File, bytes: &[u8]) -> io::Result<()> {
    if !file.metadata()?.is_file() {
        return file.write_all(bytes);
    }
    // A full disk is found before the first byte of what was there is gone.
    let length = bytes.len() as u64;
    // Not every file system can reserve room; on those an error may come on the way.
    let most = i64::try_from(length).unwrap_or(i64::MAX);
    let reserved = fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, most);
    if let Err(errno @ (Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG)) = reserved {
        return Err(errno.into());
    }
    file.write_all(bytes)?;
    file.set_len(length)?;
    file.sync_all()
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
                fchown(File::open(&path).expect("there"), Some(1234), Some(4321))
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

    /// An access list as the kernel takes it: version 2, entries of tag, rights and id.
    fn access_list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut bytes = 2u32.to_le_bytes().to_vec();
        for (tag, rights, id) in entries {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(rights.to_le_bytes());
            bytes.extend(id.to_le_bytes());
        }
        bytes
    }

    /// One user more may read and write; the owner's group may do nothing.
    fn one_user_more() -> Vec<u8> {
        let nobody = u32::MAX;
        access_list(&[
            (0x01, 6, nobody),
            (0x02, 6, 1234),
            (0x04, 0, nobody),
            (0x10, 6, nobody),
            (0x20, 0, nobody),
        ])
    }

    fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
        let mut value = vec![0; XATTR_MAX];
        let file = File::open(path).expect("there");
        let length = fgetxattr(file, name, value.as_mut_slice()).ok()?;
        value.truncate(length);
        Some(value)
    }

    #[test]
    fn a_file_keeps_its_access_list_and_gets_none_that_it_did_not_have() {
        let directory = TempDir::new().expect("a directory");
        let path = directory.path().join("c");
        fs::write(&path, "before").expect("written");
        let list = one_user_more();
        let file = File::open(&path).expect("there");
        if fsetxattr(&file, ACCESS_LIST, &list, XattrFlags::empty()).is_err() {
            test_skip::skipped("this file system has no access lists");
            return;
        }
        fsetxattr(&file, "user.note", b"kept", XattrFlags::empty()).expect("an attribute");
        assert_eq!(mode(&path), 0o660);
        write(&path, b"after");
        assert_eq!(fs::read(&path).expect("there"), b"after");
        assert_eq!(mode(&path), 0o660);
        assert_eq!(attribute(&path, ACCESS_LIST), Some(list.clone()));
        assert_eq!(attribute(&path, "user.note").as_deref(), Some(&b"kept"[..]));

        // The other way round: the directory gives a list to every new file.
        let plain = directory.path().join("plain");
        fs::write(&plain, "before").expect("written");
        fs::set_permissions(&plain, Permissions::from_mode(0o660)).expect("allowed");
        let parent = File::open(directory.path()).expect("there");
        let default = "system.posix_acl_default";
        fsetxattr(&parent, default, &list, XattrFlags::empty()).expect("a list");
        write(&plain, b"after");
        assert_eq!(fs::read(&plain).expect("there"), b"after");
        assert_eq!(attribute(&plain, ACCESS_LIST), None);
        assert_eq!(mode(&plain), 0o660);
    }

    #[test]
    fn a_full_disk_costs_a_file_that_is_written_in_place_nothing() {
        use nix::mount::{MsFlags, mount};
        use nix::sched::{CloneFlags, unshare};

        // A mount that only this thread sees.
        let tested = thread::spawn(|| {
            let directory = TempDir::new().expect("a directory");
            let nothing = None::<&str>;
            let mounted = unshare(CloneFlags::CLONE_NEWNS)
                .and_then(|()| {
                    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
                    mount(nothing, "/", nothing, flags, nothing)
                })
                .and_then(|()| {
                    let (kind, flags) = (Some("tmpfs"), MsFlags::empty());
                    mount(kind, directory.path(), kind, flags, Some("size=64k"))
                });
            if let Err(errno) = mounted {
                test_skip::skipped(format!("no file system of its own: {errno}"));
                return;
            }
            let (one, other) = (directory.path().join("one"), directory.path().join("other"));
            fs::write(&one, "before").expect("written");
            fs::hard_link(&one, &other).expect("a second name");
            let file = OutputFile::prepare(&one).expect("writable");
            let error = file.finish(&vec![7; 1 << 20]).expect_err("no room");
            assert!(error.to_string().contains("cannot write"));
            assert_eq!(fs::read(&other).expect("there"), b"before");
            write(&one, b"now");
            assert_eq!(fs::read(&other).expect("there"), b"now");
            nix::mount::umount(directory.path()).expect("unmounted");
        });
        tested.join().expect("it held");
    }

    #[test]
    fn what_appears_meanwhile_is_not_renamed_over() {
        let directory = TempDir::new().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        // Where nothing was, and where a file was.
        for before in [None, Some("before")] {
            let path = at("c");
            let _ = fs::remove_file(&path);
            if let Some(before) = before {
                fs::write(&path, before).expect("written");
            }
            let file = OutputFile::prepare(&path).expect("writable");
            let _ = fs::remove_file(&path);
            let listener = UnixListener::bind(&path).expect("bound");
            let error = file.finish(b"after").expect_err("a socket is refused");
            assert!(error.to_string().contains("is a socket"));
            let kind = fs::symlink_metadata(&path).expect("there").file_type();
            assert!(kind.is_socket());
            drop(listener);

            let _ = fs::remove_file(&path);
            if let Some(before) = before {
                fs::write(&path, before).expect("written");
            }
            let file = OutputFile::prepare(&path).expect("writable");
            let _ = fs::remove_file(&path);
            symlink("far", &path).expect("made");
            file.finish(b"after").expect("written");
            assert!(fs::symlink_metadata(&path).expect("there").is_symlink());
            assert_eq!(fs::read(at("far")).expect("there"), b"after");
            fs::remove_file(at("far")).expect("there");
        }
        fs::remove_file(at("c")).expect("there");
        assert_eq!(fs::read_dir(directory.path()).expect("there").count(), 0);
    }

    #[test]
    fn a_file_that_was_made_through_a_link_goes_again_unless_it_is_written() {
        let directory = TempDir::new().expect("a directory");
        let (link, target) = (directory.path().join("link"), directory.path().join("c"));
        symlink("c", &link).expect("made");
        drop(OutputFile::prepare(&link).expect("writable"));
        assert!(!target.exists());
        // Bytes that another process wrote there meanwhile stay.
        let file = OutputFile::prepare(&link).expect("writable");
        fs::write(&target, "theirs").expect("written");
        drop(file);
        assert_eq!(fs::read(&target).expect("there"), b"theirs");
    }
}

//! The mediator's work on disk: making, reading and removing in `sessions/` and in sessions'
//! directories.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, geteuid, unlinkat};

use crate::directory::Directory;
use crate::listing::{self, open_directory};
use crate::name::{SESSIONS, SessionName};
use crate::open_flags::SAFE;
use crate::session::file_name::{CLAIM, GONE};

/// Opens `sessions/`, and makes it unless it exists: for the owner of the served directory, and for
/// the same users who may write to that.
pub(super) fn open_sessions(directory: &Directory) -> nix::Result<OwnedFd> {
    match open_directory(directory.as_fd(), SESSIONS) {
        Err(Errno::ENOENT) => {}
        other => return other,
    }
    match mkdirat(directory, SESSIONS, Mode::S_IRWXU) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno),
    }
    let sessions = open_directory(directory.as_fd(), SESSIONS)?;
    // Either made a moment ago, or replaced by a guest: a guest's own is not changed.
    if fstat(&sessions)?.st_uid != geteuid().as_raw() {
        return Ok(sessions);
    }
    let about = fstat(directory)?;
    let owner = (Uid::from_raw(about.st_uid), Gid::from_raw(about.st_gid));
    if let Err(errno) = fchown(&sessions, Some(owner.0), Some(owner.1)) {
        log::debug!("{SESSIONS}: {}", errno.desc());
    }
    // A set-group-id bit is kept: guests then share their sessions with the group.
    let mode = Mode::from_bits_truncate(about.st_mode & 0o2777);
    // Where several users may write, none may remove another's entries.
    let shared = mode.intersects(Mode::S_IWGRP | Mode::S_IWOTH);
    let sticky = if shared { Mode::S_ISVTX } else { Mode::empty() };
    fchmod(&sessions, mode | sticky)?;
    Ok(sessions)
}

/// The message for a session that this user cannot take: the reason and the remedy.
pub(super) fn closed_session(sessions: &OwnedFd, name: SessionName) -> String {
    let name = name.to_string();
    let about = fstatat(sessions, name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
    let owner = about.map_or_else(
        |_| "another user".into(),
        |it| format!("user {}", it.st_uid),
    );
    format!(
        "the session {name} of {owner} is closed to this mediator, which runs as user {}: run it as \
         root or as that user, or share the directory by a group of both (chgrp, chmod 2770)",
        geteuid()
    )
}

/// The contents of the file by which a mediator takes a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// The mediator of this number has taken it.
    Of(u64),
    /// It is incomplete, or cannot be read now: a later look may tell. Its writer first makes the
    /// file, which only one can, and then writes into it; in between it may have to wait for the
    /// processor.
    Unknown,
    /// No mediator writes such a file.
    Strange,
}

/// The mediator that has taken the session in `directory`.
pub(super) fn read_claim(directory: &OwnedFd) -> Claim {
    if listing::is_unfit(directory, CLAIM) {
        return Claim::Strange;
    }
    let Ok(fd) = openat(directory, CLAIM, SAFE | OFlag::O_RDONLY, Mode::empty()) else {
        return Claim::Unknown;
    };
    let file = File::from(fd);
    match file.metadata() {
        Ok(about) if about.is_file() => {}
        Ok(_) => return Claim::Strange,
        Err(_) => return Claim::Unknown,
    }
    let mut text = Vec::new();
    if file.take(64).read_to_end(&mut text).is_err() {
        return Claim::Unknown;
    }
    // 16 digits and the end of the line.
    let Some((b'\n', digits)) = text.split_last() else {
        return match text.len() < 17 && text.iter().all(u8::is_ascii_hexdigit) {
            true => Claim::Unknown,
            false => Claim::Strange,
        };
    };
    std::str::from_utf8(digits)
        .ok()
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .map_or(Claim::Strange, Claim::Of)
}

/// Marks the session in `directory` for its guest: nobody will go on with it.
pub(super) fn mark(directory: &OwnedFd) {
    let flags = SAFE | OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
    if let Err(errno) = openat(directory, GONE, flags, Mode::from_bits_truncate(0o644))
        && errno != Errno::EEXIST
    {
        log::debug!("{GONE}: {}", errno.desc());
    }
}

/// Removes the files `names` of a session's directory, and the directory if it is then empty.
pub(super) fn clear(directory: &OwnedFd, sessions: &OwnedFd, name: SessionName, names: &[String]) {
    for file in names {
        if let Err(Errno::EISDIR | Errno::EPERM) =
            unlinkat(directory, file.as_str(), UnlinkatFlags::NoRemoveDir)
        {
            let _ = unlinkat(directory, file.as_str(), UnlinkatFlags::RemoveDir);
        }
    }
    match unlinkat(
        sessions,
        name.to_string().as_str(),
        UnlinkatFlags::RemoveDir,
    ) {
        Ok(()) => log::debug!("session {name} was left behind and is removed"),
        Err(errno) => log::debug!("session {name} cannot be removed yet: {}", errno.desc()),
    }
}

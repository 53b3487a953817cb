//! Checks of a served directory: owners, modes, space.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::statvfs::fstatvfs;
use vgpu_cli::diagnosis::Check;
use vgpu_file_transport::name::SESSIONS;
use vgpu_file_transport::two_file_grammar::COMMAND_FILE;
use vgpu_mediator::control::Status;

/// How long a file system may take to answer.
const FILE_SYSTEM_LIMIT: Duration = Duration::from_secs(5);

/// Files and sessions that are looked at.
const MOST: usize = 1000;

const NAME: &str = "file directory";

/// A check of each directory that the mediator serves.
pub(super) fn checks(status: &Status) -> Vec<Check> {
    let user = fs::metadata(format!("/proc/{}", status.pid)).map_or(0, |process| process.uid());
    let directories = status
        .listen
        .iter()
        .filter_map(|endpoint| endpoint.strip_prefix("file:"));
    directories
        .map(|directory| {
            let (sender, answer) = mpsc::channel();
            let path = directory.to_owned();
            // On a mount whose server is away this thread waits for ever, and only it.
            thread::spawn(move || sender.send(look(Path::new(&path), user)));
            answer.recv_timeout(FILE_SYSTEM_LIMIT).unwrap_or_else(|_| {
                Check::bad(
                    NAME,
                    format!("{directory} does not answer"),
                    "look whether its file system is mounted and its server answers",
                )
            })
        })
        .collect()
}

/// The problem with `directory` for a mediator that runs as `user`, if there is one.
fn look(directory: &Path, user: u32) -> Check {
    let shown = directory.display();
    let opened = File::open(directory).and_then(|it| Ok((it.metadata()?, it)));
    let (about, opened) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            let advice = "make it, or run this as root";
            return Check::bad(NAME, format!("{shown}: {error}"), advice);
        }
    };
    if let Ok(space) = fstatvfs(&opened)
        && space.blocks() > 0
        && space.blocks_available() <= space.blocks() / 8
        && space.blocks_available() * space.fragment_size() <= 1 << 20
    {
        return Check::bad(
            NAME,
            format!(
                "the file system of {shown} is full: sessions there fail, and answers may be missing"
            ),
            "make room on it",
        );
    }
    if let Some(path) = closed(directory, user) {
        return Check::bad(
            NAME,
            format!("{path} is closed to the mediator, which runs as user {user}"),
            "run it as root or as the owner, or share the directory by a group of both (chgrp, chmod 2770)",
        );
    }
    Check::good(
        NAME,
        format!(
            "{shown}: owner {}, mode {:o}, the mediator runs as user {user}",
            about.uid(),
            about.mode() & 0o7777
        ),
    )
}

/// Something there that a mediator of this user cannot read.
fn closed(directory: &Path, user: u32) -> Option<String> {
    if user == 0 {
        return None;
    }
    let sessions = fs::read_dir(directory.join(SESSIONS)).ok();
    let sessions = sessions
        .into_iter()
        .flatten()
        .take(MOST)
        .filter_map(|entry| Some(entry.ok()?.path()));
    let mut files = sessions.chain([directory.join(COMMAND_FILE)]);
    files.find_map(|path| {
        let about = fs::symlink_metadata(&path).ok()?;
        // Of the group nothing is known here.
        let closed = about.uid() != user && about.mode() & 0o044 == 0;
        closed.then(|| path.display().to_string())
    })
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_session_that_the_mediator_may_not_look_into_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let own = fs::metadata(path).unwrap().uid();
        let session = path.join(SESSIONS).join("00112233445566778899aabbccddeeff");
        fs::create_dir_all(&session).unwrap();
        fs::set_permissions(&session, Permissions::from_mode(0o700)).unwrap();
        assert_eq!(look(path, own).verdict, Verdict::Good);
        let check = look(path, own + 1);
        assert_eq!(check.verdict, Verdict::Bad);
        assert!(
            check.found.contains("00112233445566778899aabbccddeeff"),
            "{}",
            check.found
        );
        fs::set_permissions(&session, Permissions::from_mode(0o2770)).unwrap();
        assert_eq!(look(path, own + 1).verdict, Verdict::Good);
    }
}

//! Checks for `file:DIR`: a mount that answers, its options, the right to write, and its caching.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access, geteuid};
use vgpu_cli::diagnosis::Check;
use vgpu_file_transport::name::SESSIONS;
use vgpu_file_transport::session::mount::{Mount, Remark};
use vgpu_file_transport::session::{Settings, connect};
use vgpu_file_transport::two_file_grammar::{COMMAND_FILE, RESPONSE_FILE};
use vgpu_guest::Options;
use vgpu_transport::Transport;

/// All checks of `directory`.
pub(super) fn checks(directory: &Path, options: &Options) -> Vec<Check> {
    let (sender, answer) = mpsc::channel();
    let path = directory.to_owned();
    // On a mount whose server is away this thread waits for ever, and only it.
    thread::spawn(move || sender.send(look(&path)));
    let Ok((mut checks, usable)) = answer.recv_timeout(options.connect_timeout) else {
        return vec![Check::bad(
            "directory",
            format!("{} does not answer", directory.display()),
            "look whether the server of the mount runs and can be reached; umount -f, then mount \
             again",
        )];
    };
    if usable {
        checks.extend(test(directory, options));
    }
    checks
}

/// Whether it is there, on what, and for this user.
fn look(directory: &PathBuf) -> (Vec<Check>, bool) {
    let shown = directory.display();
    let opened = match File::open(directory) {
        Ok(opened) => opened,
        Err(error) => {
            let advice = "mount it, or correct the path after file:";
            let check = Check::bad("directory", format!("{shown}: {error}"), advice);
            return (vec![check], false);
        }
    };
    let mut checks = Vec::new();
    match Mount::of(&opened) {
        Some(mount) => {
            let found = format!(
                "{shown} is on {} ({}): {}",
                mount.kind,
                mount.point,
                mount.options.join(",")
            );
            checks.push(Check::good("mount", found));
            checks.extend(
                mount
                    .remarks()
                    .into_iter()
                    .map(|remark| as_check("mount option", remark)),
            );
        }
        None => checks.push(Check::remark(
            "mount",
            format!("nothing in /proc/self/mountinfo is {shown}'s"),
            "mount /proc, to see which options are in force",
        )),
    }
    checks.extend(two_files(directory));
    let sessions = directory.join(SESSIONS);
    let writable = access(&sessions, AccessFlags::W_OK | AccessFlags::X_OK);
    match writable {
        Ok(()) => checks.push(Check::good(
            "sessions",
            format!("{} can be written", sessions.display()),
        )),
        Err(Errno::ENOENT) => checks.push(Check::bad(
            "sessions",
            format!("no mediator has made {}", sessions.display()),
            "start one where the directory lies: vgpu-mediatord --listen file:DIR",
        )),
        Err(errno) => checks.push(Check::bad(
            "sessions",
            format!(
                "{} cannot be written by this user: {}",
                sessions.display(),
                errno.desc()
            ),
            "give this user the right to write it; over NFS root is nobody there unless the export \
             says otherwise (chown nobody, or no_root_squash)",
        )),
    }
    (checks, writable.is_ok())
}

/// Whether this user may use the two files, and whom they come from.
fn two_files(directory: &Path) -> Vec<Check> {
    const NAME: &str = "two files";
    let mut checks = Vec::new();
    let mut look = |file: &str, right: AccessFlags, may: &str, advice: &str| {
        let path = directory.join(file);
        match access(&path, right) {
            Ok(()) => checks.push(Check::good(
                NAME,
                format!("{} can be {may}", path.display()),
            )),
            // It is made when somebody writes it.
            Err(Errno::ENOENT) => {}
            Err(errno) => checks.push(Check::bad(
                NAME,
                format!(
                    "{} cannot be {may} by this user: {}",
                    path.display(),
                    errno.desc()
                ),
                advice,
            )),
        }
    };
    look(
        RESPONSE_FILE,
        AccessFlags::R_OK,
        "read",
        "an older mediator makes it so with a umask of 027 or 077: update it, or start it with umask 022",
    );
    look(
        COMMAND_FILE,
        AccessFlags::W_OK,
        "written",
        "where the directory lies, chown it and command.txt to this user, or share them by a group (chgrp, \
         chmod 2770); over NFS to the user that the export maps this one to",
    );
    let maker = std::fs::symlink_metadata(directory.join(RESPONSE_FILE)).map(|about| about.uid());
    let own = geteuid().as_raw();
    let shared = std::fs::metadata(directory.join(SESSIONS))
        .is_ok_and(|about| about.mode() & 0o2070 == 0o2070);
    if let Ok(maker) = maker
        && maker != 0
        && maker != own
        && !shared
    {
        checks.push(Check::remark(
            NAME,
            format!("the mediator runs as user {maker}, this program as user {own}"),
            "a mediator that is not root cannot look into the sessions of other users: run it as root, or \
             share the directory by a group of both (chgrp, chmod 2770)",
        ));
    }
    checks
}

fn as_check(name: &'static str, remark: Remark) -> Check {
    let Remark {
        what,
        advice,
        grave,
        ..
    } = remark;
    if grave {
        Check::bad(name, what, advice)
    } else {
        Check::remark(name, what, advice)
    }
}

/// Connects, and finds out what the mount remembers that is no longer so.
fn test(directory: &Path, options: &Options) -> Vec<Check> {
    const NAME: &str = "caches";
    let deadline = Instant::now() + options.connect_timeout;
    let settings = Settings { thorough: true };
    let interrupted = || {
        // Relaxed: the flag carries no other data.
        let flag = options.interrupt.as_ref();
        flag.is_some_and(|flag| flag.load(std::sync::atomic::Ordering::Relaxed))
    };
    match connect(directory, &settings, deadline, &interrupted) {
        Ok(mut transport) => {
            let seen: Vec<Remark> = transport
                .remarks()
                .into_iter()
                .filter(|remark| remark.seen)
                .collect();
            // Nothing was said in this session; what becomes of it does not matter.
            let _ = transport.close(Instant::now() + Duration::from_secs(1));
            if seen.is_empty() {
                let found = "names, sizes and contents are seen here as they are there";
                return vec![Check::good(NAME, found)];
            }
            seen.into_iter()
                .map(|remark| as_check(NAME, remark))
                .collect()
        }
        Err(error) => vec![Check::bad(NAME, error.to_string(), error.advice())],
    }
}

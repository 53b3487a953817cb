//! Two mediators of different users, neither of them root, in one place: the second is told who has it, and
//! neither its start nor its end harms the first. Its tests need root, to be somebody else.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::other_users::{copy_for_all, directory, is_root, reachable};
use crate::support::{Killed, MEDIATORD, VGPUCTL, run, stderr, wait_until};

/// Users who are nobody here.
const FIRST: u32 = 61_236;
const SECOND: u32 = 61_237;

/// A mediator, and its log.
struct Of {
    child: Killed,
    log: PathBuf,
}

impl Of {
    fn start(parent: &Path, user: u32, control: &Path, listen: &str) -> Self {
        let program = parent.join(format!("vgpu-mediatord-{user}"));
        copy_for_all(Path::new(MEDIATORD), &program);
        let log = parent.join(format!("log-{user}"));
        let child = Command::new(program)
            .args(["--executor", "cpu", "--listen", listen, "--control"])
            .arg(control)
            .env_remove("RUST_LOG")
            .current_dir("/")
            .uid(user)
            .gid(user)
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self {
            child: Killed(child),
            log,
        }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn ended(&mut self) -> bool {
        self.child.0.try_wait().unwrap().is_some()
    }
}

/// The mediator there runs a command of its own user.
fn serves(directory: &Path) {
    let script = "rm -f response.txt; echo 1 > command.txt
        until grep -q ^1: response.txt 2> /dev/null; do sleep 0.1; done";
    let output = run(Command::new("sh")
        .args(["-euc", script])
        .current_dir(directory)
        .uid(FIRST)
        .gid(FIRST));
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn two_users_cannot_serve_one_directory() {
    if !is_root() {
        return;
    }
    // The first one's own, to which all may write; and one of root's, as /tmp is.
    for (owner, mode) in [(FIRST, 0o777), (0, 0o1777)] {
        let parent = reachable();
        let served = directory(parent.path(), "served", owner, mode);
        let homes = [FIRST, SECOND].map(|user| {
            let name = format!("home-{user}");
            directory(parent.path(), &name, user, 0o700).join("control.sock")
        });
        let listen = format!("file:{}", served.display());
        let first = Of::start(parent.path(), FIRST, &homes[0], &listen);
        wait_until("the first serves", || served.join("response.txt").exists());
        let second = Of::start(parent.path(), SECOND, &homes[1], &listen);
        let who = format!("user {FIRST} has the lock file");
        wait_until("the second is told", || second.said().contains(&who));
        serves(&served);
        drop(second);
        serves(&served);
        assert!(!first.said().contains("ERROR"), "{}", first.said());
    }
}

#[test]
fn two_users_cannot_have_one_control_socket() {
    if !is_root() {
        return;
    }
    // One of root's, as /tmp is, and the first one's own.
    let sticky = (0, 0o1777, format!("belongs to user {FIRST}"));
    let own = (FIRST, 0o777, "belongs to another user".to_owned());
    for (owner, mode, why) in [sticky, own] {
        let parent = reachable();
        let run_directory = directory(parent.path(), "run", owner, mode);
        let control = run_directory.join("control.sock");
        let sockets = [FIRST, SECOND].map(|user| {
            let name = format!("home-{user}");
            directory(parent.path(), &name, user, 0o700).join("unix.sock")
        });
        let listen = |at: usize| format!("unix:{}", sockets[at].display());
        let mut first = Of::start(parent.path(), FIRST, &control, &listen(0));
        let status = || {
            run(Command::new(VGPUCTL)
                .arg("--control")
                .arg(&control)
                .arg("status"))
        };
        wait_until("the first answers", || status().status.success());
        let mut second = Of::start(parent.path(), SECOND, &control, &listen(1));
        wait_until("the second ends", || second.ended());
        assert!(second.said().contains(&why), "{}", second.said());
        let output = status();
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(!first.ended(), "{}", first.said());
    }
}

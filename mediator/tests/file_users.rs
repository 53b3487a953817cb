//! `file:` between users, with a umask of 077 on both sides: what has to be readable is, and who may not
//! look is told why, at both ends. Its tests need root, to be somebody else.

mod support;

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::stat::{Mode, umask};
use support::other_users::{self, copy_for_all, is_root, reachable};
use support::{MEDIATORD, Mediator, WATCHDOG, add, options, run, stderr, stdout, wait_until};
use vgpu_guest::{Client, Endpoint, Options};

/// Users who are nobody here.
const GUEST: u32 = 61_234;
const OTHER: u32 = 61_235;

/// Sets the umask, which is the process's: that of all tests here, and of what they start. One test at
/// a time, since a program that is being written cannot be run, nor while a child of another test has
/// it open for a moment.
fn closed_umask() -> Option<MutexGuard<'static, ()>> {
    static ALONE: Mutex<()> = Mutex::new(());
    if !is_root() {
        return None;
    }
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    umask(Mode::from_bits_truncate(0o077));
    Some(alone)
}

/// A copy of `program` that every user can run.
fn program(directory: &Path, program: &Path) -> PathBuf {
    let copy = directory.join(program.file_name().unwrap());
    copy_for_all(program, &copy);
    copy
}

/// A guest run by another user, in a process of its own: this program, told by an environment
/// variable to run this one test.
#[test]
fn guest_process() {
    let Ok(endpoint) = std::env::var("VGPU_TEST_GUEST") else {
        return;
    };
    umask(Mode::from_bits_truncate(0o077));
    let patience = std::env::var("VGPU_TEST_PATIENCE").map_or(WATCHDOG, |seconds| {
        Duration::from_secs(seconds.parse().unwrap())
    });
    let options = Options {
        connect_timeout: patience,
        ..options()
    };
    match Client::connect(&[endpoint.parse::<Endpoint>().unwrap()], &options) {
        Ok(mut client) => {
            add(&mut client, 100_000).unwrap();
            client.goodbye().unwrap();
            println!("added");
        }
        Err(error) => println!("refused: {error}; {}", error.advice()),
    }
}

fn guest(directory: &Path, user: u32, place: &Path, patience: Option<u32>) -> String {
    let mut command = Command::new(program(directory, &std::env::current_exe().unwrap()));
    command
        .args(["--exact", "guest_process", "--nocapture"])
        .env("VGPU_TEST_GUEST", format!("file:{}", place.display()))
        .current_dir("/")
        .uid(user)
        .gid(user);
    if let Some(seconds) = patience {
        command.env("VGPU_TEST_PATIENCE", seconds.to_string());
    }
    let output = run(&mut command);
    assert!(
        output.status.success(),
        "{}{}",
        stdout(&output),
        stderr(&output)
    );
    stdout(&output)
}

#[test]
fn a_mediator_of_roots_with_a_closed_umask_serves_other_users() {
    let Some(_alone) = closed_umask() else {
        return;
    };
    let directory = reachable();
    let served = other_users::directory(directory.path(), "served", GUEST, 0o700);
    let listen = format!("file:{}", served.display());
    let mediator = Mediator::start(directory.path(), &["--listen", &listen]);
    wait_until("it is served", || served.join("response.txt").exists());
    // The two files, from a shell whose umask is closed too.
    let script = "umask 077
        for number in 1 2; do
            echo 0 > command.txt
            until [ \"$(cat response.txt)\" = 0:Ready ]; do sleep 0.1; done
            echo $number > command.txt
            while line=$(cat response.txt); do
                case $line in 0:*) sleep 0.1 ;; *) echo \"$line\"; break ;; esac
            done
            rm command.txt
        done";
    let output = run(Command::new("sh")
        .args(["-euc", script])
        .current_dir(&served)
        .uid(GUEST)
        .gid(GUEST));
    let answers = stdout(&output);
    let mut lines = answers.lines();
    assert!(
        lines
            .next()
            .is_some_and(|line| line.starts_with("1:Vector add PASSED"))
            && lines.next().is_some_and(|line| line.starts_with("1:")),
        "{answers}{}",
        stderr(&output)
    );
    let said = guest(directory.path(), GUEST, &served, None);
    assert!(said.contains("added"), "{said}{}", mediator.log());
    mediator.stop();
}

#[test]
fn a_mediator_and_a_guest_of_two_users_are_told_what_is_closed() {
    let Some(_alone) = closed_umask() else {
        return;
    };
    let directory = reachable();
    let served = other_users::directory(directory.path(), "served", OTHER, 0o1777);
    let home = other_users::directory(directory.path(), "home", OTHER, 0o700);
    let log = home.join("log");
    let listen = format!("file:{}", served.display());
    let mut mediator = Command::new(program(directory.path(), Path::new(MEDIATORD)))
        .args(["--executor", "cpu", "--listen", &listen, "--control"])
        .arg(home.join("control.sock"))
        .current_dir("/")
        .uid(OTHER)
        .gid(OTHER)
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    wait_until("it is served", || served.join("sessions").exists());
    let said = guest(directory.path(), GUEST, &served, Some(4));
    // A command file that the mediator cannot read.
    let command = served.join("command.txt");
    fs::remove_file(&command).unwrap();
    fs::write(&command, "1\n").unwrap();
    chown(&command, Some(GUEST), Some(GUEST)).unwrap();
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    wait_until("the answer says why", || {
        read(&served.join("response.txt"))
            .contains("cannot be read by the mediator, which runs as user 61235")
    });
    // The answer is there before the log says so.
    for why in [
        "of user 61234 is closed to this mediator, which runs as user 61235",
        "command.txt cannot be read by the mediator",
    ] {
        wait_until(why, || read(&log).contains(why));
    }
    let lines = read(&log);
    let _ = mediator.kill();
    let _ = mediator.wait();
    assert!(
        said.contains(
            "the mediator there runs as user 61235 and may not look into sessions of user 61234"
        ),
        "{said}{lines}"
    );
}

#[test]
fn two_users_share_a_directory_by_a_group() {
    let Some(_alone) = closed_umask() else {
        return;
    };
    let directory = reachable();
    // Both users' group is that of the directory.
    let served = other_users::directory(directory.path(), "served", OTHER, 0o2770);
    let home = other_users::directory(directory.path(), "home", OTHER, 0o700);
    let listen = format!("file:{}", served.display());
    let mut mediator = Command::new(program(directory.path(), Path::new(MEDIATORD)))
        .args(["--executor", "cpu", "--listen", &listen, "--control"])
        .arg(home.join("control.sock"))
        .current_dir("/")
        .uid(OTHER)
        .gid(OTHER)
        .spawn()
        .unwrap();
    wait_until("it is served", || served.join("sessions").exists());
    let mut command = Command::new(program(directory.path(), &std::env::current_exe().unwrap()));
    let output = run(command
        .args(["--exact", "guest_process", "--nocapture"])
        .env("VGPU_TEST_GUEST", format!("file:{}", served.display()))
        .current_dir("/")
        .uid(GUEST)
        .gid(OTHER));
    let _ = mediator.kill();
    let _ = mediator.wait();
    assert!(
        stdout(&output).contains("added"),
        "{}{}",
        stdout(&output),
        stderr(&output)
    );
}

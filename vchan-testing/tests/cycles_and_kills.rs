//! 1,000 channels opened and closed and 100 peers killed in the middle of a transfer leave nothing
//! behind, in two processes that live through it. The lab runs the same commands between two
//! domains, and counts Xen's own tables too.

use std::path::Path;
use std::process::{Command, Output, Stdio};

fn start(command: &str, path: &Path) -> std::process::Child {
    Command::new(env!("CARGO_BIN_EXE_vchan-testing"))
        .args(command.split_whitespace())
        .args(["--timeout", "60"])
        .arg(format!("local:{}", path.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn both(server: &str, client: &str, path: &Path) -> [Output; 2] {
    let server = start(server, path);
    let client = start(client, path).wait_with_output().unwrap();
    [server.wait_with_output().unwrap(), client]
}

#[track_caller]
fn text(output: &Output) -> &str {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    std::str::from_utf8(&output.stdout).unwrap()
}

#[test]
fn a_thousand_channels_and_a_hundred_kills_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    for output in &both("cycle-serve", "cycle-connect", &path) {
        let text = text(output);
        assert!(
            text.starts_with("closed: 1000 rounds\nkilled: 100 rounds\nheld: "),
            "{text}"
        );
    }
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_hundred_channels_between_two_processes_of_one_thread_each() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let [server, client] = both("many-serve", "many-connect --stalled 2", &path);
    assert!(
        text(&client).contains("checked: 100 channels"),
        "{client:?}"
    );
    assert!(
        text(&server).starts_with("2 with bytes left, served: 100 channels"),
        "{server:?}"
    );
}

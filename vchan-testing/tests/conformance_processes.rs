//! The suite between two processes, including the cases in which one of them dies.

use std::path::Path;
use std::process::{Command, Output, Stdio};

fn vchan_testing(arguments: &str, path: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vchan-testing"));
    command
        .args(arguments.split_whitespace())
        .args(["--timeout", "60"])
        .arg(format!("local:{}", path.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

#[track_caller]
fn succeeded(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{}\n{text}\n{errors}",
        output.status
    );
    text
}

#[test]
fn every_case_between_two_processes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let server = vchan_testing("conformance-serve", &path).spawn().unwrap();
    let client = vchan_testing("conformance-connect", &path)
        .output()
        .unwrap();
    let server = server.wait_with_output().unwrap();
    for text in [succeeded(&server), succeeded(&client)] {
        assert!(
            text.contains("ok server_killed\n") && text.contains("ok client_killed\n"),
            "{text}"
        );
    }
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        0,
        "a socket was left behind"
    );
}

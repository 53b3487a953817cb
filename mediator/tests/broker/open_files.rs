//! Limits of open files: what the mediator's own limits need is there before it serves, or it says so.

use std::fs;
use std::process::Command;

use vgpu_guest::Client;

use crate::support::{MEDIATORD, Mediator, run, stderr};

/// A shell's words that set a limit and become the program behind them.
const LIMITED: &str = r#"ulimit "$0" "$1" && shift && exec "$@""#;

#[test]
fn a_hard_limit_that_is_too_low_is_told_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let listen = format!("local:{}", directory.path().join("s").display());
    let output = run(Command::new("sh")
        .args(["-c", LIMITED, "-n", "200", MEDIATORD])
        .args(["--executor", "cpu", "--listen", &listen, "--control"])
        .arg(directory.path().join("control.sock")));
    let text = stderr(&output);
    assert!(!output.status.success(), "{text}");
    assert_eq!(text.lines().count(), 2, "{text}");
    for words in [
        "may open 200 files",
        "its limits need ",
        "LimitNOFILE=",
        "max_sessions",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn a_soft_limit_is_raised_to_what_the_limits_need() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("m.toml");
    fs::write(&config, "[limits]\nmax_sessions = 512\n").unwrap();
    let mediator = Mediator::start_with(
        directory.path(),
        &["--config", config.to_str().unwrap()],
        |command| {
            let mut limited = Command::new("sh");
            limited.args(["-c", LIMITED, "-Sn", "100", MEDIATORD]);
            limited.args(command.get_args());
            let log = fs::File::options()
                .append(true)
                .open(directory.path().join("log"))
                .unwrap();
            *command = limited;
            command.stderr(log);
        },
    );
    let limits = fs::read_to_string(format!("/proc/{}/limits", mediator.pid())).unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let soft: u64 = files
        .and_then(|line| line.split_whitespace().nth(3))
        .unwrap()
        .parse()
        .unwrap();
    assert!(soft > 2 * 512, "{limits}");
    // What a session needs here is what was counted on.
    let before = mediator.descriptors().len();
    let sessions: Vec<Client> = (0..4).map(|_| mediator.connect().unwrap()).collect();
    let of_sessions = mediator.descriptors().len().saturating_sub(before);
    // And the page of their guest.
    assert!(of_sessions <= 2 * sessions.len() + 1, "{of_sessions}");
    drop(sessions);
    mediator.stop();
}

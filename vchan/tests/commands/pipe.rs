//! `vchan … --pipe`: files through a channel, and the progress shown meanwhile.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// `vchan` without input, with its output and errors captured.
fn vchan(arguments: &str, socket: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vchan"));
    command.args(arguments.split_whitespace());
    command.args(["--backend", "local", "--timeout", "60", "--path"]);
    command.arg(socket).env_remove("TERM");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Pseudo-random bytes, the same in every run.
fn payload(bytes: u32) -> Vec<u8> {
    (0..bytes)
        .map(|i| (i.wrapping_mul(0x9E37_79B9) >> 24) as u8)
        .collect()
}

/// Waits for success, and returns standard output and error.
#[track_caller]
fn succeeds(child: Child) -> (Vec<u8>, String) {
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}: {errors}", output.status);
    (output.stdout, errors)
}

#[track_caller]
fn fails(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    errors
}

/// Waits until a server's socket exists, or is gone again because the two have met.
fn wait_for(socket: &Path, there: bool) {
    let start = Instant::now();
    while socket.exists() != there {
        assert!(start.elapsed() < Duration::from_secs(60), "no meeting");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_file_arrives_whole_and_nobody_says_a_word() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, from, to) = (
        dir.path().join("socket"),
        dir.path().join("from"),
        dir.path().join("to"),
    );
    for (bytes, sending, receiving) in [
        (21_000_017, "serve --pipe --ring 1M", "connect --pipe"),
        (3_000_017, "connect --pipe", "serve --pipe --ring 1K"),
        // Including an empty file.
        (0, "serve --pipe", "connect --pipe"),
    ] {
        fs::write(&from, payload(bytes)).unwrap();
        let mut sender = vchan(&format!("{sending} --linger 0.05"), &socket);
        let mut receiver = vchan(receiving, &socket);
        let sender = sender.stdin(File::open(&from).unwrap()).spawn().unwrap();
        let receiver = receiver.stdout(File::create(&to).unwrap()).spawn().unwrap();
        assert_eq!(succeeds(sender), (Vec::new(), String::new()));
        assert_eq!(succeeds(receiver), (Vec::new(), String::new()));
        assert!(fs::read(&to).unwrap() == payload(bytes), "{bytes} bytes");
    }
}

#[test]
fn the_peers_end_is_the_end_also_while_the_input_stays_open() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let mut sender = vchan("serve --pipe --linger 0.05", &socket)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut receiver = vchan("connect --pipe", &socket)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let held = receiver.stdin.take();
    sender.stdin.take().unwrap().write_all(b"all").unwrap();
    assert_eq!(succeeds(sender).0, b"");
    assert_eq!(succeeds(receiver).0, b"all");
    drop(held);
}

#[test]
fn success_means_that_everything_was_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let from = dir.path().join("from");
    fs::write(&from, payload(3_000_017)).unwrap();
    let sender = || {
        let mut command = vchan("serve --pipe --linger 0.05", &socket);
        command.stdin(File::open(&from).unwrap()).spawn().unwrap()
    };

    // The receiver cannot write its output.
    let sending = sender();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let receiver = vchan("connect --pipe", &socket).stdout(full).spawn();
    let errors = fails(receiver.unwrap());
    assert!(
        errors.starts_with("error: cannot use standard output"),
        "{errors}"
    );
    let errors = fails(sending);
    assert!(errors.contains("unread"), "{errors}");

    // Nobody reads the receiver's output.
    let sending = sender();
    let mut receiver = vchan("connect --pipe", &socket).spawn().unwrap();
    drop(receiver.stdout.take());
    let errors = fails(receiver);
    assert!(errors.contains("Broken pipe"), "{errors}");
    fails(sending);

    // The receiver is killed.
    let sending = sender();
    let mut receiver = vchan("connect --pipe", &socket).spawn().unwrap();
    receiver
        .stdout
        .take()
        .unwrap()
        .read_exact(&mut [0; 1000])
        .unwrap();
    receiver.kill().unwrap();
    receiver.wait().unwrap();
    fails(sending);

    // The sender is killed, here with everything so far read and written out.
    for receiving in [
        "connect --pipe",
        "connect --pipe --classic",
        "connect --sink",
    ] {
        let mut sending = vchan("serve --pipe", &socket);
        let mut sending = sending.stdin(Stdio::piped()).spawn().unwrap();
        wait_for(&socket, true);
        let mut receiver = vchan(receiving, &socket).spawn().unwrap();
        sending.stdin.as_ref().unwrap().write_all(b"part").unwrap();
        if receiving.contains("pipe") {
            let mut part = [0; 4];
            let stdout = receiver.stdout.as_mut().unwrap();
            stdout.read_exact(&mut part).unwrap();
        } else {
            wait_for(&socket, false);
            thread::sleep(Duration::from_millis(200));
        }
        sending.kill().unwrap();
        sending.wait().unwrap();
        let errors = fails(receiver);
        assert!(errors.contains("without ending its stream"), "{errors}");
    }

    // The sender cannot read its input.
    let mut unreadable = vchan("serve --pipe", &socket);
    let sending = unreadable.stdin(File::open(dir.path()).unwrap()).spawn();
    let receiver = vchan("connect --pipe", &socket).spawn().unwrap();
    let errors = fails(sending.unwrap());
    fails(receiver);
    assert!(
        errors.starts_with("error: cannot use standard input"),
        "{errors}"
    );
}

/// What the receiver has read was all that had been sent, but not all that there was to send. The sender's two threads find
/// that out in either order.
#[test]
fn a_receiver_that_is_gone_before_the_input_ends_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    for _either_order in 0..20 {
        let mut sender = vchan("serve --pipe", &socket)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        wait_for(&socket, true);
        let mut receiver = vchan("connect --pipe", &socket).spawn().unwrap();
        let mut input = sender.stdin.take().unwrap();
        input.write_all(b"part").unwrap();
        let output = receiver.stdout.as_mut().unwrap();
        output.read_exact(&mut [0; 4]).unwrap();
        let pid = Pid::from_raw(sender.id().cast_signed());
        kill(pid, Signal::SIGSTOP).unwrap();
        waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
        input.write_all(b"more").unwrap();
        receiver.kill().unwrap();
        receiver.wait().unwrap();
        kill(pid, Signal::SIGCONT).unwrap();
        let errors = fails(sender);
        assert!(errors.contains("closed the channel"), "{errors}");
        drop(input);
    }
}

/// A terminal: the end for a program, and the end that shows its output.
fn terminal() -> (OwnedFd, File) {
    let size = Winsize {
        ws_row: 24,
        ws_col: 100,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let pty = openpty(Some(&size), None).unwrap();
    (pty.slave, pty.master.into())
}

/// Reads a terminal's output until the programs on it have ended, or until `wanted` is there.
fn shown(mut screen: File, wanted: &'static str) -> (String, File) {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let (mut text, mut buf) = (String::new(), [0; 4096]);
        // A terminal reports with an error that no program has it open any more.
        while wanted.is_empty() || !text.contains(wanted) {
            match screen.read(&mut buf) {
                Ok(n) if n > 0 => text.push_str(&String::from_utf8_lossy(&buf[..n])),
                _ => break,
            }
        }
        sender.send((text, screen))
    });
    receiver
        .recv_timeout(Duration::from_secs(60))
        .expect("the terminal never showed it")
}

#[test]
fn progress_is_shown_on_a_terminal_and_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, from) = (dir.path().join("socket"), dir.path().join("from"));
    fs::write(&from, payload(3_000_000)).unwrap();
    for quiet in [false, true] {
        let (slave, screen) = terminal();
        let mut sender = vchan("serve --pipe --linger 0.05", &socket);
        if quiet {
            sender.arg("--quiet");
        }
        sender.stdin(File::open(&from).unwrap()).stderr(slave);
        let sending = sender.spawn().unwrap();
        // Otherwise the test would hold the terminal open.
        drop(sender);
        let mut receiver = vchan("connect --pipe", &socket).spawn().unwrap();
        // The transfer stalls, since nobody takes the received bytes.
        let mut screen = screen;
        if !quiet {
            let text;
            (text, screen) = shown(screen, "%");
            assert!(
                text.contains("sent") && text.contains("of 2.86 MiB"),
                "{text:?}"
            );
        }
        let mut received = Vec::new();
        let mut stdout = receiver.stdout.take().unwrap();
        stdout.read_to_end(&mut received).unwrap();
        assert_eq!(received.len(), 3_000_000);
        assert_eq!(succeeds(receiver).1, "", "stderr is no terminal there");
        succeeds(sending);
        let (text, _) = shown(screen, "");
        if quiet {
            assert_eq!(text, "");
        } else {
            assert!(text.contains("sent 2.86 MiB in "), "{text:?}");
        }
    }
}

#[test]
fn a_terminal_gets_every_byte_of_the_output() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, from) = (dir.path().join("socket"), dir.path().join("from"));
    let text = "0123456789".repeat(20_000) + "!";
    fs::write(&from, &text).unwrap();
    let (slave, screen) = terminal();
    let mut receiver = vchan("serve --pipe", &socket);
    let receiving = receiver.stdout(slave).spawn().unwrap();
    drop(receiver);
    let mut sender = vchan("connect --pipe --linger 0.05", &socket);
    let sending = sender.stdin(File::open(&from).unwrap()).spawn().unwrap();
    let (seen, _screen) = shown(screen, "!");
    assert_eq!(seen.len(), text.len());
    assert!(seen == text);
    succeeds(sending);
    succeeds(receiving);
}

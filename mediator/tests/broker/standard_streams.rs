//! Standard output and standard error belong to whoever starts the mediator, and to libraries that are
//! loaded into it: neither what they hold nor that nobody reads them stops it.

use std::fs;
use std::io::{PipeReader, PipeWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;

use crate::support::{Killed, Mediator, add, run, stderr, wait_until};

/// A library that prints whatever a parser of lines could stumble over, before `main` and at the end.
fn noisy_library(directory: &Path) -> PathBuf {
    let source = directory.join("noise.c");
    fs::write(
        &source,
        r#"
        #include <unistd.h>
        static void say(const char *text, unsigned long length) {
            if (write(1, text, length)) {}
        }
        __attribute__((constructor)) static void begin(void) {
            static const char noise[] = "a line\n{\"ended\":1}\n\xff\xfe\n half a line";
            say(noise, sizeof noise - 1);
            static char flood[20000];
            say(flood, sizeof flood);
        }
        __attribute__((destructor)) static void end(void) { say("the end\n", 8); }
        "#,
    )
    .unwrap();
    let library = directory.join("noise.so");
    let compiled = run(Command::new("cc")
        .args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"])
        .args([&library, &source]));
    assert!(compiled.status.success(), "{}", stderr(&compiled));
    library
}

#[test]
fn a_preloaded_library_may_print_what_it_likes() {
    let directory = tempfile::tempdir().unwrap();
    let library = noisy_library(directory.path());
    let served = directory.path().join("served");
    fs::create_dir(&served).unwrap();
    let listen = format!("file:{}", served.display());
    let mediator = Mediator::start_with(directory.path(), &["--listen", &listen], |command| {
        command.env("LD_PRELOAD", &library);
    });
    let mut client = mediator.connect().unwrap();
    add(&mut client, 1000).unwrap();
    client.goodbye().unwrap();
    let response = || crate::support::response(&served);
    wait_until("it is ready", || response().starts_with("0:Ready"));
    fs::write(served.join("command.txt"), "1\n").unwrap();
    wait_until("the command runs", || {
        response().starts_with("1:Vector add PASSED")
    });
    wait_until("the session is booked", || {
        mediator.status()["usage"]["bytes_out"].as_u64() > Some(4 * 1000)
    });
    // Not UTF-8, so that `Mediator::log` cannot read it.
    let log = fs::read(directory.path().join("log")).unwrap();
    let log = String::from_utf8_lossy(&log);
    assert!(
        log.contains(" half a line"),
        "the library was loaded: {log}"
    );
    assert!(!log.contains("misbehaves"), "{log}");
    mediator.stop();
}

/// A pipe that is full.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (ours, mut theirs) = std::io::pipe().unwrap();
    let set = |flags| fcntl(&theirs, FcntlArg::F_SETFL(flags)).unwrap();
    set(OFlag::O_NONBLOCK);
    while (&theirs).write(&[b'.'; 4096]).is_ok() {}
    while (&theirs).write(b".").is_ok() {}
    set(OFlag::empty());
    theirs.flush().unwrap();
    (ours, theirs)
}

#[test]
fn a_log_that_nobody_reads_stops_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let served = directory.path().join("served");
    fs::create_dir(&served).unwrap();
    let (_unread, theirs) = full_pipe();
    let flags = ["--listen", &format!("file:{}", served.display()), "-vv"];
    let mut mediator = Mediator::start_with(directory.path(), &flags, |command| {
        command.stdout(theirs.try_clone().unwrap()).stderr(theirs);
    });
    for _session in 0..2 {
        let mut client = mediator.connect().unwrap();
        add(&mut client, 1000).unwrap();
        client.goodbye().unwrap();
    }
    // Turned away, which is logged.
    let kicked = run(mediator.vgpuctl().args(["kick", "nobody"]));
    assert!(stderr(&kicked).contains("no session"), "{kicked:?}");
    let response = || crate::support::response(&served);
    wait_until("it is ready", || response().starts_with("0:Ready"));
    fs::write(served.join("command.txt"), "1\n").unwrap();
    wait_until("the command runs", || {
        response().starts_with("1:Vector add PASSED")
    });
    mediator.signal(Signal::SIGTERM);
    assert!(mediator.wait().success());
    assert!(response().starts_with("2:The mediator has stopped"));
}

/// The last words too go to whoever does not read them.
#[test]
fn a_mediator_that_fails_ends_although_nobody_reads_why() {
    let directory = tempfile::tempdir().unwrap();
    let first = Mediator::start(directory.path(), &[]);
    let (_unread, theirs) = full_pipe();
    let second = Command::new(crate::support::MEDIATORD)
        .args([
            "--listen",
            &first.endpoint().to_string(),
            "--executor",
            "cpu",
        ])
        .arg("--control")
        .arg(directory.path().join("another.sock"))
        .stderr(theirs)
        .spawn()
        .unwrap();
    let mut second = Killed(second);
    let mut status = None;
    wait_until("it ends", || {
        status = second.0.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.and_then(|status| status.code()), Some(1));
    first.stop();
}

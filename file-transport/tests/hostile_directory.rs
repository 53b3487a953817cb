//! A client that puts other things under the two names, and directories that cannot be served.

mod served;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use served::{Served, WATCHDOG};
use vgpu_file_transport::guide::parse_response;
use vgpu_file_transport::{Stop, serve};

const NOT_A_FILE: &str =
    "2:command.txt is not a regular file; remove it and write a number to it\n";
const PASSED: &str = "1:Vector add PASSED: 1024 elements, 0 errors (test executor)\n";

/// Removes `command.txt`, puts something else there, and sees that it is refused and that a proper
/// file is then taken again.
fn refused(put: impl FnOnce(&Path)) {
    let directory = tempfile::tempdir().unwrap();
    let served = Served::start(directory.path());
    let command = directory.path().join("command.txt");
    fs::remove_file(&command).unwrap();
    put(&command);
    served.wait_for(NOT_A_FILE);
    if command.is_dir() {
        fs::remove_dir(&command).unwrap();
    } else {
        fs::remove_file(&command).unwrap();
    }
    fs::write(&command, "1\n").unwrap();
    served.wait_for(PASSED);
    assert_eq!(served.runs(), 1);
}

#[test]
fn a_link_for_a_command_is_refused() {
    let elsewhere = tempfile::tempdir().unwrap();
    let target = elsewhere.path().join("target");
    fs::write(&target, "1\n").unwrap();
    refused(|command| symlink(&target, command).unwrap());
    assert_eq!(fs::read(&target).unwrap(), b"1\n");
}

#[test]
fn a_fifo_for_a_command_is_refused_without_waiting() {
    refused(|command| mkfifo(command, Mode::S_IRWXU).unwrap());
}

#[test]
fn a_directory_for_a_command_is_refused() {
    refused(|command| fs::create_dir(command).unwrap());
}

#[test]
fn links_present_at_start_are_replaced_not_followed() {
    let elsewhere = tempfile::tempdir().unwrap();
    let target = elsewhere.path().join("target");
    fs::write(&target, "keep\n").unwrap();
    let directory = tempfile::tempdir().unwrap();
    for name in ["command.txt", "response.txt", ".response.txt.new"] {
        symlink(&target, directory.path().join(name)).unwrap();
    }
    let served = Served::start(directory.path());
    fs::write(directory.path().join("command.txt"), "1\n").unwrap();
    served.wait_for(PASSED);
    assert_eq!(fs::read(&target).unwrap(), b"keep\n");
}

#[test]
fn a_hard_link_is_not_written_through() {
    let directory = tempfile::tempdir().unwrap();
    let other = directory.path().join("other");
    fs::write(&other, "keep\n").unwrap();
    fs::hard_link(&other, directory.path().join("command.txt")).unwrap();
    let _served = Served::start(directory.path());
    assert_eq!(fs::read(&other).unwrap(), b"keep\n");
}

#[test]
fn what_was_asked_before_the_start_does_not_run() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("command.txt"), "1\n").unwrap();
    let served = Served::start(directory.path());
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(served.runs(), 0);
    assert_eq!(served.response(), "0:Ready\n");
}

#[test]
fn a_huge_command_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let served = Served::start(directory.path());
    fs::write(directory.path().join("command.txt"), vec![b'1'; 1 << 20]).unwrap();
    served.wait_for("2:command.txt is longer than 64 bytes; write 0, 1 or 2 and a newline\n");
}

#[test]
fn a_reader_always_sees_a_whole_line() {
    let directory = tempfile::tempdir().unwrap();
    let served = Served::start(directory.path());
    let response = directory.path().join("response.txt");
    let deadline = Instant::now() + WATCHDOG;
    let mut looks = 0u32;
    for round in 1..=5 {
        fs::write(directory.path().join("command.txt"), "1\n").unwrap();
        while served.runs() < round || served.response() != PASSED {
            let bytes = fs::read(&response).unwrap();
            assert!(parse_response(&bytes).is_ok(), "look {looks}: {bytes:?}");
            assert!(Instant::now() < deadline, "round {round} did not end");
            looks += 1;
        }
    }
    assert!(looks > 100);
}

/// Serves `path` where that must fail, and gives the error.
fn serve_error(path: &Path) -> String {
    let stop = AtomicBool::new(false);
    let stop = Stop::when(&stop).or_at(Instant::now() + WATCHDOG);
    serve(path, &mut |_| Ok(String::new()), stop)
        .expect_err("cannot be served")
        .to_string()
}

#[test]
fn directories_that_cannot_be_served_say_why() {
    let directory = tempfile::tempdir().unwrap();
    let missing = serve_error(&directory.path().join("missing"));
    assert!(
        missing.contains("No such file") && missing.contains("; create it"),
        "{missing}"
    );
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(serve_error(&file).contains("Not a directory"));
}

#[test]
fn a_directory_is_served_once() {
    let directory = tempfile::tempdir().unwrap();
    let served = Served::start(directory.path());
    assert!(serve_error(directory.path()).contains("another mediator"));
    served.stop().unwrap();
    Served::start(directory.path()).stop().unwrap();
}

#[test]
fn a_removed_directory_ends_the_serving() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("vgpu");
    fs::create_dir(&path).unwrap();
    let served = Served::start(&path);
    fs::remove_dir_all(&path).unwrap();
    // Long enough for the next look, which comes before the stop is noticed.
    std::thread::sleep(Duration::from_millis(500));
    let error = served.stop().unwrap_err().to_string();
    assert!(error.contains("was removed"), "{error}");
}

#[test]
fn a_directory_with_another_in_its_place_ends_the_serving() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("vgpu");
    fs::create_dir(&path).unwrap();
    let served = Served::start(&path);
    fs::rename(&path, parent.path().join("away")).unwrap();
    fs::create_dir(&path).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let error = served.stop().unwrap_err().to_string();
    assert!(error.contains("replaced"), "{error}");
}

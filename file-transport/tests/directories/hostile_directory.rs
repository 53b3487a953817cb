//! A client that puts other things under the two names, and directories that cannot be served.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::served::{Served, WATCHDOG};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use vgpu_file_transport::directory::Directory;
use vgpu_file_transport::two_file_grammar::parse_response;
use vgpu_file_transport::{Stop, serve};

const NOT_A_FILE: &str =
    "2:command.txt is not a regular file; remove it and write a number to it\n";
const PASSED: &str = "1:Vector add PASSED: 1024 elements, 0 errors (test executor)\n";

/// Replaces `command.txt` by something else, and checks that it is refused and that a proper file
/// is then accepted again.
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
fn a_hard_link_swapped_in_while_the_mediator_starts_is_not_written_through() {
    let directory = tempfile::tempdir().unwrap();
    let other = directory.path().join("other");
    fs::write(&other, "keep\n").unwrap();
    let command = directory.path().join("command.txt");
    let served = Directory::open(directory.path()).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let _ = fs::hard_link(&other, &command);
                let _ = fs::remove_file(&command);
            }
        });
        // Each start writes it once.
        for _ in 0..4_000 {
            served.reset_command();
            if fs::read(&other).unwrap() != b"keep\n" {
                break;
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(fs::read(&other).unwrap(), b"keep\n");
}

#[test]
fn what_another_file_holds_is_not_told_through_a_hard_link() {
    let directory = tempfile::tempdir().unwrap();
    let served = Served::start(directory.path());
    let other = directory.path().join("other");
    fs::write(&other, "secret\n").unwrap();
    let command = directory.path().join("command.txt");
    fs::remove_file(&command).unwrap();
    fs::hard_link(&other, &command).unwrap();
    served.wait_for(
        "2:command.txt has a second name (a hard link); remove it and write a number to it\n",
    );
}

#[test]
fn command_txt_keeps_its_owners_rights_and_may_be_written_by_who_may_write_the_directory() {
    for (directory_mode, mode, wanted) in [
        (0o700, None, 0o644),
        (0o777, None, 0o666),
        (0o770, None, 0o664),
        (0o755, Some(0o666), 0o666),
        (0o755, Some(0o6777), 0o666),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        fs::set_permissions(path, Permissions::from_mode(directory_mode)).unwrap();
        let command = path.join("command.txt");
        if let Some(mode) = mode {
            fs::write(&command, "1\n").unwrap();
            fs::set_permissions(&command, Permissions::from_mode(mode)).unwrap();
        }
        Directory::open(path).unwrap().reset_command().unwrap();
        let found = fs::metadata(&command).unwrap().permissions().mode() & 0o7777;
        assert_eq!(found, wanted, "{directory_mode:o} {mode:?}");
        assert_eq!(fs::read(&command).unwrap(), b"0\n");
    }
}

#[test]
fn a_guest_that_locks_the_directory_keeps_nobody_out() {
    let directory = tempfile::tempdir().unwrap();
    let open = fs::File::open(directory.path()).unwrap();
    let _guests = Flock::lock(open, FlockArg::LockExclusiveNonblock).unwrap();
    Served::start(directory.path()).stop().unwrap();
}

/// A small tmpfs, unmounted when dropped.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn mount() -> Option<Self> {
        let place = tempfile::tempdir().unwrap();
        let flags = MsFlags::empty();
        match mount(
            Some("tmpfs"),
            place.path(),
            Some("tmpfs"),
            flags,
            Some("size=64k"),
        ) {
            Ok(()) => Some(Self(place)),
            Err(errno) => {
                test_skip::skipped(format_args!("a tmpfs cannot be mounted here: {errno}"));
                None
            }
        }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

#[test]
fn on_a_full_disk_no_old_answer_passes_for_a_new_one() {
    let Some(small) = Tmpfs::mount() else {
        return;
    };
    let path = small.0.path();
    let served = Served::start(path);
    fs::write(path.join("command.txt"), "1\n").unwrap();
    served.wait_for(PASSED);
    let filler = path.join("filler");
    let fill = || {
        let mut file = fs::File::options()
            .append(true)
            .create(true)
            .open(&filler)
            .unwrap();
        while file.write(&[1; 4096]).is_ok_and(|n| n > 0) {}
    };
    fill();
    // In place, so that the file keeps its block.
    let mut command = fs::File::options()
        .write(true)
        .open(path.join("command.txt"))
        .unwrap();
    command.write_all(b"9\n").unwrap();
    drop(command);
    let deadline = Instant::now() + WATCHDOG;
    while served.response() == PASSED {
        assert!(Instant::now() < deadline, "the old answer stays");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(
        !served.response().starts_with("1:"),
        "{}",
        served.response()
    );
    fs::remove_file(&filler).unwrap();
    served.wait_for("2:command 9 is unknown; write 0 (nothing), 1 (vector add) or 2 (GPU info)\n");
    // The same where there was no space for the client's own number, which it may not notice over
    // NFS.
    fs::write(path.join("command.txt"), "1\n").unwrap();
    served.wait_for(PASSED);
    fs::File::create(path.join("command.txt")).unwrap();
    fill();
    let emptied = Instant::now();
    while served.response() == PASSED {
        assert!(Instant::now() < deadline, "the old answer stays");
        std::thread::sleep(Duration::from_millis(5));
    }
    println!("withdrawn after {:?}", emptied.elapsed());
    fs::remove_file(&filler).unwrap();
    served.wait_for("2:command.txt is empty; write 0, 1 or 2 and a newline\n");
    served.stop().unwrap();
    // A mediator that finds the disk full serves as soon as it is not.
    fs::write(path.join("response.txt"), PASSED).unwrap();
    fill();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let deadline = Instant::now() + WATCHDOG;
            let read = || fs::read_to_string(path.join("response.txt")).unwrap_or_default();
            while read() == PASSED {
                assert!(Instant::now() < deadline, "the old answer stays");
                std::thread::sleep(Duration::from_millis(5));
            }
            fs::remove_file(&filler).unwrap();
        });
        Served::start(path).stop().unwrap();
    });
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

/// Serves `path` where that must fail, and returns the error.
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

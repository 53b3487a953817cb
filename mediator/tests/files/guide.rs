//! The two files, as people who have nothing but `open`, `write` and `read` use them, with a real
//! mediator: a compiled C client and a shell, in `DIR` and in directories of single guests.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::support::wait_for_response as wait_for;
use crate::support::{
    Mediator, only_ours_to_change, response, run, signal, stderr, stdout, wait_until,
};

const PASSED: &str = "1:Vector add PASSED: 1024 elements, 0 errors (cpu executor, ";

/// A mediator and the directory that it serves, with these guests' directories.
fn start(directory: &Path, guests: &[&str]) -> (Mediator, PathBuf) {
    let served = directory.join("served");
    fs::create_dir(&served).unwrap();
    only_ours_to_change(&served);
    for guest in guests {
        fs::create_dir(served.join(guest)).unwrap();
    }
    let listen = format!("file:{}", served.display());
    let mediator = Mediator::start(directory, &["--listen", &listen]);
    for place in guests.iter().map(|guest| served.join(guest)) {
        wait_for(&place, "0:Ready");
    }
    wait_for(&served, "0:Ready");
    (mediator, served)
}

/// The C client's program, compiled into `directory`.
fn c_client(directory: &Path) -> PathBuf {
    let source =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../file-transport/tests/guide_client.c");
    let program = directory.join("guide_client");
    let compiled = run(Command::new("cc")
        .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-o"])
        .args([&program, &source]));
    assert!(compiled.status.success(), "{}", stderr(&compiled));
    program
}

#[test]
fn a_c_client_asks_everything() {
    let directory = tempfile::tempdir().unwrap();
    let client = c_client(directory.path());
    let (mediator, served) = start(directory.path(), &["web-1"]);
    let ask_all = |place: PathBuf| {
        let ask = |number: &str| {
            let output = run(Command::new(&client).arg(&place).arg(number));
            (output.status.code(), stdout(&output))
        };
        for _repeated in 0..2 {
            let (code, answer) = ask("1");
            assert!(answer.starts_with(PASSED) && code == Some(0), "{answer}");
        }
        let (code, answer) = ask("2");
        assert!(
            answer.starts_with("1:") && answer.contains("cpu executor") && code == Some(0),
            "{answer}"
        );
        for (number, why) in [
            (
                "7",
                "2:command 7 is unknown; write 0 (nothing), 1 (vector add) or 2 (GPU info)",
            ),
            (
                "one",
                "2:command.txt holds \"one\", which is no decimal number",
            ),
            ("99999999999", "2:the number in command.txt is too large"),
            ("1 2", "2:command.txt holds more than one number"),
        ] {
            let (code, answer) = ask(number);
            assert!(
                answer.starts_with(why) && code == Some(2),
                "{number}: {answer}"
            );
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| ask_all(served.clone()));
        scope.spawn(|| ask_all(served.join("web-1")));
    });
    mediator.stop();
    assert_eq!(
        response(&served.join("web-1")),
        "2:The mediator has stopped; start vgpu-mediatord again\n"
    );
}

/// On a busy host the mediator may see a command only seconds later.
#[test]
fn a_c_client_never_takes_an_earlier_answer_for_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let client = c_client(directory.path());
    let (mediator, served) = start(directory.path(), &[]);
    fs::write(served.join("command.txt"), "7\n").unwrap();
    wait_for(&served, "2:");
    let worker = mediator.wait_for_workers(1)[0];
    signal(worker, Signal::SIGSTOP);
    let output = thread::scope(|scope| {
        let ask = scope.spawn(|| run(Command::new(&client).arg(&served).arg("1")));
        // Longer than the second that the guide's client waits.
        thread::sleep(Duration::from_millis(1500));
        signal(worker, Signal::SIGCONT);
        ask.join().unwrap()
    });
    assert!(stdout(&output).starts_with(PASSED), "{}", stdout(&output));
    mediator.stop();
}

#[test]
fn a_shell_writes_what_people_write() {
    let directory = tempfile::tempdir().unwrap();
    let (mediator, served) = start(directory.path(), &[]);
    let write = |command: &str| {
        stdout(&run(Command::new("sh")
            .args(["-euc", &format!("{command} > command.txt")])
            .current_dir(&served)))
    };
    // What the guide says: write, wait, look; here with the looks until the status is not 0. There is no
    // earlier answer that it could take for its own.
    let guide = "echo 1 > command.txt; sleep 1
        while line=$(cat response.txt); do
            case $line in 0:*) sleep 0.1 ;; *) echo \"$line\"; exit ;; esac
        done";
    let answer = stdout(&run(Command::new("sh")
        .args(["-euc", guide])
        .current_dir(&served)));
    assert!(answer.starts_with(PASSED), "{answer}");
    for (command, answer) in [
        (
            "printf 1",
            "2:command.txt holds a number without a newline; write 0, 1 or 2 and a newline\n",
        ),
        ("echo 2", "1:"),
        // Answered only after the file has been empty for a while.
        (
            ":",
            "2:command.txt is empty; write 0, 1 or 2 and a newline\n",
        ),
        ("echo 1", PASSED),
    ] {
        write(command);
        wait_for(&served, answer);
    }
    // The same number again is another command.
    let requests = || mediator.status()["usage"]["requests"].as_u64();
    let before = requests();
    write("echo 1");
    wait_until("it runs again", || requests() > before);
    wait_for(&served, PASSED);
    mediator.stop();
}

#[test]
fn while_a_command_runs_the_status_is_0() {
    let directory = tempfile::tempdir().unwrap();
    let (mediator, served) = start(directory.path(), &[]);
    fs::write(served.join("command.txt"), "7\n").unwrap();
    wait_for(&served, "2:");
    // Between the old answer and the new one there is nothing but status 0.
    fs::write(served.join("command.txt"), "1\n").unwrap();
    let mut seen = Vec::new();
    wait_until("the answer", || {
        let status = response(&served).chars().next().expect("a whole line");
        if seen.last() != Some(&status) {
            seen.push(status);
        }
        status == '1'
    });
    assert!(matches!(seen[..], ['2', '1'] | ['2', '0', '1']), "{seen:?}");
    mediator.stop();
}

#[test]
fn each_guests_directory_has_its_own_account_and_a_bad_one_delays_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let (mediator, served) = start(directory.path(), &["good"]);
    // Made while the mediator runs: one that is served at once, and some that are full of nonsense.
    let late = served.join("late");
    fs::create_dir(&late).unwrap();
    let bad = served.join("bad");
    fs::create_dir(&bad).unwrap();
    mkfifo(&bad.join("command.txt"), Mode::S_IRWXU).unwrap();
    fs::create_dir_all(bad.join("response.txt/full")).unwrap();
    let elsewhere = directory.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, served.join("link")).unwrap();
    fs::create_dir(served.join("-no-name")).unwrap();
    wait_for(&late, "0:Ready");
    for place in [&served.join("good"), &late, &served] {
        fs::write(place.join("command.txt"), "1\n").unwrap();
        wait_for(place, PASSED);
    }
    let log = mediator.log();
    for guest in ["good", "late", "bad"] {
        let line = format!("listening on file:{}/{guest}", served.display());
        assert!(log.contains(&line), "{line}: {log}");
    }
    let status = mediator.status();
    let accounts: Vec<_> = status["guests"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|guest| guest["guest"].as_str())
        .collect();
    for guest in ["", "/good", "/late"] {
        let name = format!("file:{}{guest}", served.display());
        assert!(accounts.contains(&name.as_str()), "{name}: {accounts:?}");
    }
    // No link is followed, and other names are nobody's.
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    assert_eq!(fs::read_dir(served.join("-no-name")).unwrap().count(), 0);
    // A directory that the admin removes is let go, and served again when it is back.
    // The mediator may write into it while it is emptied.
    wait_until("it is removed", || fs::remove_dir_all(&late).is_ok());
    wait_until("its worker ends", || {
        mediator.log().contains("late: session") && mediator.log().contains("was removed")
    });
    fs::create_dir(&late).unwrap();
    wait_for(&late, "0:Ready");
    mediator.stop();
}

#[test]
fn the_number_of_guests_directories_is_bounded_and_rules_apply() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("m.toml");
    fs::write(
        &config,
        "[limits]\nmax_file_guests = 2\n[guests]\na-denied = 'deny'\n",
    )
    .unwrap();
    let served = directory.path().join("served");
    for guest in ["a-denied", "b", "c", "d"] {
        fs::create_dir_all(served.join(guest)).unwrap();
    }
    only_ours_to_change(&served);
    let listen = format!("file:{}", served.display());
    let mediator = Mediator::start(
        directory.path(),
        &["--listen", &listen, "--config", config.to_str().unwrap()],
    );
    wait_for(&served.join("b"), "0:Ready");
    wait_for(&served.join("c"), "0:Ready");
    wait_until("the third is named", || {
        mediator
            .log()
            .contains("/d: not served: limits.max_file_guests is 2")
    });
    assert_eq!(response(&served.join("d")), "");
    assert_eq!(response(&served.join("a-denied")), "");
    mediator.stop();
}

#[test]
fn a_killed_worker_is_replaced_and_an_old_command_does_not_run() {
    let directory = tempfile::tempdir().unwrap();
    let (mediator, served) = start(directory.path(), &["web-1"]);
    let place = served.join("web-1");
    fs::write(place.join("command.txt"), "1\n").unwrap();
    wait_for(&place, PASSED);
    let began = Instant::now();
    for worker in mediator.workers() {
        signal(worker, Signal::SIGKILL);
    }
    wait_for(&place, "0:Ready");
    assert_eq!(
        fs::read_to_string(place.join("command.txt")).unwrap(),
        "0\n"
    );
    assert!(began.elapsed() >= Duration::from_millis(500), "not at once");
    fs::write(place.join("command.txt"), "1\n").unwrap();
    wait_for(&place, PASSED);
    mediator.stop();
}

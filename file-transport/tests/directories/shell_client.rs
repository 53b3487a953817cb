//! Clients as users write them: a shell with `echo` and `cat`, in a process of its own.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::process::{Command, Stdio};

use crate::served::Served;

/// Runs `script` in the served directory and returns its output.
fn sh(served: &Served, script: &str) -> String {
    let output = Command::new("sh")
        .args(["-euc", script])
        .current_dir(&served.path)
        .stdin(Stdio::null())
        .output()
        .expect("sh runs");
    assert!(output.status.success(), "{script}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

const PASSED: &str = "1:Vector add PASSED: 1024 elements, 0 errors (test executor)\n";

/// Runs `write` and waits for `answer`, which must not read like the one before it: that one stays until
/// the write is noticed.
fn ask(served: &Served, write: &str, answer: &str) {
    assert_ne!(served.response(), answer, "{write}");
    sh(served, write);
    served.wait_for(answer);
}

/// Runs `write`, and waits until it has led to a vector add, the `runs`th.
fn add(served: &Served, write: &str, runs: usize) {
    sh(served, write);
    // The old answer is replaced before it runs.
    served.wait_for_runs(runs);
    served.wait_for(PASSED);
}

#[test]
fn a_shell_session() {
    let directory = tempfile::tempdir().unwrap();
    let served = Served::start(directory.path());
    assert_eq!(sh(&served, "cat command.txt response.txt"), "0\n0:Ready\n");

    // As the guide has it. There is no earlier answer that it could take for its own.
    let guide = "echo 1 > command.txt
         sleep 1
         for look in $(seq 300); do
             line=$(cat response.txt)
             case $line in
                 0:*) sleep 0.1 ;;
                 *) echo \"$line\"; exit 0 ;;
             esac
         done
         exit 1";
    assert_eq!(sh(&served, guide), PASSED);
    assert_eq!(served.runs(), 1);

    // The same number written anew runs again, also when the file is replaced or removed first.
    add(&served, "echo 1 > command.txt", 2);
    add(&served, "echo 1 > new; mv new command.txt", 3);
    add(
        &served,
        "rm command.txt; sleep 0.2; echo 1 > command.txt",
        4,
    );
    // With another system's line ending; without any it may be half a number.
    add(&served, "printf '1\\r\\n' > command.txt", 5);
    ask(
        &served,
        "printf 1 > command.txt",
        "2:command.txt holds a number without a newline; write 0, 1 or 2 and a newline\n",
    );
    add(&served, "echo 1 > command.txt", 6);
    ask(
        &served,
        ": > command.txt",
        "2:command.txt is empty; write 0, 1 or 2 and a newline\n",
    );
    ask(
        &served,
        "echo 99999999999999999999 > command.txt",
        "2:the number in command.txt is too large; write 0, 1 or 2 and a newline\n",
    );

    ask(&served, "echo 2 > command.txt", "2:no GPU here\n");
    ask(
        &served,
        "echo 7 > command.txt",
        "2:command 7 is unknown; write 0 (nothing), 1 (vector add) or 2 (GPU info)\n",
    );
    ask(
        &served,
        "echo run > command.txt",
        "2:command.txt holds \"run\", which is no decimal number; write 0, 1 or 2 and a newline\n",
    );
    ask(&served, "echo 0 > command.txt", "0:Ready\n");
    assert_eq!(served.runs(), 6);

    let path = served.path.clone();
    served.stop().unwrap();
    let last = fs::read_to_string(path.join("response.txt")).unwrap();
    assert_eq!(
        last,
        "2:The mediator has stopped; start vgpu-mediatord again\n"
    );
}

#[test]
fn a_number_written_in_two_pieces_is_one_number() {
    let directory = tempfile::tempdir().unwrap();
    let served = Served::start(directory.path());
    ask(
        &served,
        "{ printf 1; sleep 0.2; echo 7; } > command.txt",
        "2:command 17 is unknown; write 0 (nothing), 1 (vector add) or 2 (GPU info)\n",
    );
    assert_eq!(served.runs(), 0);
}

/// A guest writes as the user its export maps it to, who need own no more than the directory.
#[test]
fn the_command_file_belongs_to_the_owner_of_the_directory() {
    let directory = tempfile::tempdir().unwrap();
    let owner = if nix::unistd::geteuid().is_root() {
        chown(directory.path(), Some(65534), Some(65534)).unwrap();
        65534
    } else {
        nix::unistd::geteuid().as_raw()
    };
    let served = Served::start(directory.path());
    let about = fs::metadata(directory.path().join("command.txt")).unwrap();
    assert_eq!(about.uid(), owner);
    assert_eq!(about.mode() & 0o600, 0o600);
    served.stop().unwrap();
}

//! A live worker as the kernel shows it: its user, its rights, and the files it sees.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use vgpu_guest::{Client, Endpoint};

use crate::support::confined::{assert_has_nothing, assert_is_confined, rights};
use crate::support::other_users::{copy_for_all, directory, is_root, reachable};
use crate::support::sockets::Sockets;
use crate::support::{MEDIATORD, Mediator, add, only_ours_to_change, run, stderr, wait_until};

/// Of `[worker]`, if it is not set.
const FIRST_USER: u32 = 2_080_000_000;

/// CAP_DAC_OVERRIDE, as a set.
const DAC_OVERRIDE: u64 = 1 << 1;

/// Somebody who is nobody here.
const OWNER: u32 = 61_240;

/// The worker of each session, and of directories, by what `status` says of it.
fn workers(mediator: &Mediator) -> Vec<(String, u32)> {
    let status = mediator.status();
    let sessions = status["sessions"].as_array().expect("a list").clone();
    let of = |session: &serde_json::Value| {
        let guest = session["guest"].as_str().expect("a name").to_owned();
        let pid = session["pid"].as_u64().expect("a number");
        (guest, u32::try_from(pid).expect("a pid"))
    };
    sessions.iter().map(of).collect()
}

#[test]
fn a_worker_is_nobody_and_sees_nothing_over_every_endpoint() {
    if !is_root() {
        return;
    }
    let parent = reachable();
    only_ours_to_change(parent.path());
    let sockets = Sockets::new(parent.path());
    directory(parent.path(), "exchange", OWNER, 0o755);
    let file = sockets.file().to_string();
    let mediator = sockets.start(&["--listen", &file]);
    let mut endpoints: Vec<Endpoint> = sockets.endpoints(&mediator);
    endpoints.push(sockets.file());
    let mut clients: Vec<Client> = Vec::new();
    for endpoint in &endpoints {
        let mut client = sockets.connect(endpoint).unwrap();
        add(&mut client, 1000).unwrap();
        clients.push(client);
    }
    let mut users = BTreeSet::new();
    let workers = workers(&mediator);
    assert_eq!(
        workers.len(),
        5,
        "four sessions and a directory: {workers:?}"
    );
    for (guest, pid) in workers {
        let says = rights(Path::new(&format!("/proc/{pid}/status")));
        let user = says("Uid:").split(' ').next().unwrap().parse().unwrap();
        println!("{guest}: worker {pid} is user {user}");
        if guest.starts_with("file:") {
            // The directory's owner, with the one capability to look for sessions there; of the session
            // root is the owner, who is the client here, and has none.
            match user {
                OWNER => assert_is_confined(pid, DAC_OVERRIDE),
                0 => assert_is_confined(pid, 0),
                other => panic!("{guest}: user {other}"),
            }
            for hidden in ["etc", "home", "root", "run", "proc/1", "usr"] {
                let path = format!("/proc/{pid}/root/{hidden}");
                assert!(!Path::new(&path).exists(), "{guest} sees /{hidden}");
            }
        } else {
            assert!(user >= FIRST_USER, "{guest}: user {user}");
            assert!(users.insert(user), "two workers are user {user}");
            assert_has_nothing(pid, user);
        }
    }
    for protection in mediator.status()["protections"].as_array().unwrap() {
        assert_eq!(protection["on"], true, "{protection}");
    }
    for (mut client, endpoint) in clients.into_iter().zip(endpoints) {
        add(&mut client, 100_000).unwrap_or_else(|error| panic!("{endpoint}: {error}"));
        client.goodbye().unwrap();
    }
    mediator.stop();
}

#[test]
fn a_mediator_of_an_ordinary_user_does_what_it_can_and_says_what_it_cannot() {
    if !is_root() {
        return;
    }
    let parent = reachable();
    let home = directory(parent.path(), "home", OWNER, 0o755);
    let program = parent.path().join("vgpu-mediatord");
    copy_for_all(Path::new(MEDIATORD), &program);
    let socket = home.join("vgpu.sock");
    let control = home.join("control.sock");
    let log = fs::File::create(parent.path().join("log")).unwrap();
    let listen = format!("local:{}", socket.display());
    let child = Command::new(program)
        .args(["--executor", "cpu", "--listen", &listen, "--control"])
        .arg(&control)
        .current_dir("/")
        .uid(OWNER)
        .gid(OWNER)
        .stdin(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let _child = crate::support::Killed(child);
    let said = || fs::read_to_string(parent.path().join("log")).unwrap_or_default();
    wait_until("it listens", || said().contains("listening on"));
    let missing = format!("not confined in full: user: it keeps user {OWNER}");
    assert!(said().contains(&missing), "{}", said());
    let mut client =
        Client::connect(&[Endpoint::Local(socket)], &crate::support::options()).unwrap();
    add(&mut client, 1000).unwrap();
    let status = run(Command::new(crate::support::VGPUCTL)
        .arg("--control")
        .arg(&control)
        .args(["--json", "status"]));
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    let pid = status["sessions"][0]["pid"].as_u64().unwrap();
    assert_is_confined(u32::try_from(pid).unwrap(), 0);
    client.goodbye().unwrap();
}

/// In a user namespace with one user there is none for workers.
#[test]
fn a_mediator_whose_workers_cannot_be_confined_does_not_start_unless_it_is_told_to() {
    if !is_root() {
        return;
    }
    let possible = Command::new("unshare").args(["-U", "-r", "true"]).output();
    if !possible.is_ok_and(|output| output.status.success()) {
        return test_skip::skipped("no user namespaces here, or no program unshare");
    }
    let parent = reachable();
    let start = |settings: &str| {
        let config = parent.path().join("m.toml");
        let socket = parent.path().join("vgpu.sock");
        let text = format!(
            "listen = 'local:{}'\nexecutor = 'cpu'\n{settings}",
            socket.display()
        );
        fs::write(&config, text).unwrap();
        Command::new("unshare")
            .args(["-U", "-r", MEDIATORD, "--config"])
            .arg(config)
            .arg("--control")
            .arg(parent.path().join("control.sock"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(parent.path().join("log")).unwrap())
            .spawn()
            .unwrap()
    };
    let said = || fs::read_to_string(parent.path().join("log")).unwrap();
    let mut refused = crate::support::Killed(start(""));
    wait_until("it ends", || refused.0.try_wait().unwrap().is_some());
    assert!(
        said().contains("workers cannot be confined: user"),
        "{}",
        said()
    );
    assert!(said().contains("best-effort"), "{}", said());
    let _serves = crate::support::Killed(start("[worker]\nconfine = 'best-effort'\n"));
    wait_until("it listens", || said().contains("listening on"));
    assert!(said().contains("not confined in full: user"), "{}", said());
}

/// As in a small guest, whose kernel allows root few threads.
#[test]
fn a_machine_that_allows_few_threads_is_enough() {
    if !is_root() {
        return;
    }
    let parent = reachable();
    let socket = parent.path().join("vgpu.sock");
    let child = Command::new("prlimit")
        .args(["--nproc=500:500", MEDIATORD])
        .args(["--executor", "cpu", "--listen"])
        .arg(format!("local:{}", socket.display()))
        .arg("--control")
        .arg(parent.path().join("control.sock"))
        .stdin(Stdio::null())
        .stderr(fs::File::create(parent.path().join("log")).unwrap())
        .spawn()
        .unwrap();
    let mut child = crate::support::Killed(child);
    let said = || fs::read_to_string(parent.path().join("log")).unwrap();
    wait_until("it listens", || {
        assert!(child.0.try_wait().unwrap().is_none(), "{}", said());
        said().contains("listening on")
    });
    let mut client =
        Client::connect(&[Endpoint::Local(socket)], &crate::support::options()).unwrap();
    add(&mut client, 1000).unwrap();
    client.goodbye().unwrap();
}

#[test]
fn settings_of_workers_are_checked() {
    let parent = tempfile::tempdir().unwrap();
    let config = parent.path().join("m.toml");
    for (settings, words) in [
        ("first_user = 0", "first_user is 0"),
        ("compile_timeout_s = 0", "compile_timeout_s is 0"),
        ("warm_workers = 17", "warm_workers is 17"),
        ("first_user = 2147483000", "first_user is 2147483000"),
        ("confine = 'perhaps'", "perhaps"),
    ] {
        fs::write(&config, format!("listen = 'xen:'\n[worker]\n{settings}\n")).unwrap();
        let output = run(Command::new(MEDIATORD)
            .arg("--config")
            .arg(&config)
            .arg("--check-config"));
        assert!(!output.status.success());
        assert!(stderr(&output).contains(words), "{}", stderr(&output));
    }
}

//! Workers that are there before their sessions (`worker.warm_workers`): who gets one, what it may do, and what becomes
//! of one that fails.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use serde_json::{Value, json};
use vgpu_guest::{Client, Device, Endpoint};

use crate::support::confined::{assert_has_nothing, assert_is_confined, rights};
use crate::support::sockets::Sockets;
use crate::support::{
    MEDIATORD, Mediator, add, is_running, run, signal, stderr, stdout, wait_until,
};

/// A mediator with warm workers.
struct Served {
    mediator: Mediator,
    sockets: Sockets,
    file: PathBuf,
    _directory: tempfile::TempDir,
}

impl Served {
    fn with(configuration: &str) -> Self {
        Self::listening(configuration, &[])
    }

    fn listening(configuration: &str, flags: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let sockets = Sockets::new(directory.path());
        let (mediator, file) = sockets.start_configured(configuration, flags);
        Self {
            mediator,
            sockets,
            file,
            _directory: directory,
        }
    }

    fn connect(&self, endpoint: &Endpoint) -> Client {
        self.sockets.connect(endpoint).unwrap()
    }

    fn reload(&self, configuration: &str) -> Value {
        fs::write(&self.file, configuration).unwrap();
        let output = run(self.mediator.vgpuctl().args(["--json", "reload"]));
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_str(&stdout(&output)).unwrap()
    }

    /// The worker of the only session.
    fn worker(&self) -> u32 {
        let status = self.mediator.status();
        let sessions = status["sessions"].as_array().unwrap();
        assert_eq!(sessions.len(), 1, "{status}");
        u32::try_from(sessions[0]["pid"].as_u64().unwrap()).unwrap()
    }

    /// Sessions that were given a warm worker, and that could have been.
    fn served(&self) -> (u64, u64) {
        let warm = &self.mediator.status()["warm"];
        let count = |name: &str| warm[name].as_u64().unwrap();
        (count("sessions"), count("cold_sessions"))
    }

    fn wait_for_log(&self, text: &str) {
        wait_until(text, || self.mediator.log().contains(text));
    }
}

/// Asserts that a worker is confined as one that was started for its session.
fn assert_worker(pid: u32) {
    assert_is_confined(pid, 0);
    if geteuid().is_root() {
        let says = rights(&PathBuf::from(format!("/proc/{pid}/status")));
        let user = says("Uid:").split(' ').next().unwrap().parse().unwrap();
        assert_has_nothing(pid, user);
    }
}

fn user(pid: u32) -> String {
    rights(&PathBuf::from(format!("/proc/{pid}/status")))("Uid:")
}

const ONE: &str = "[worker]\nwarm_workers = 1\n";
const TWO: &str = "[worker]\nwarm_workers = 2\n";

#[test]
fn a_session_over_each_socket_gets_a_worker_that_was_there_and_knows_nothing() {
    let served = Served::with(TWO);
    let mut seen = BTreeSet::new();
    for endpoint in served.sockets.endpoints(&served.mediator) {
        let ready = served.mediator.wait_for_warm(2);
        ready.iter().for_each(|pid| assert_worker(*pid));
        if geteuid().is_root() {
            let users: BTreeSet<String> = ready.iter().map(|pid| user(*pid)).collect();
            assert_eq!(users.len(), 2, "one user of two workers");
        }
        let device = Device::new(served.connect(&endpoint)).unwrap();
        let worker = served.worker();
        assert!(ready.contains(&worker), "{worker} of {ready:?}: {endpoint}");
        // Each has one session, which is the first.
        assert!(seen.insert(worker), "{worker} serves again");
        assert_worker(worker);
        // What it has done before was nobody's: this has asked for the device, and for the figures.
        let before = device.statistics().unwrap();
        assert!(before.requests <= 3, "{before:?}");
        assert_eq!(before.device_time, Duration::ZERO, "{before:?}");
        let (free, total) = device.memory_info().unwrap();
        assert_eq!(free, total, "something is there already");
        let zeros = device.alloc_zeros::<u8>(1 << 20).unwrap();
        assert!(device.clone_dtoh(&zeros).unwrap().iter().all(|it| *it == 0));
        drop(zeros);
        device.with_client(|client| add(client, 100_000)).unwrap();
        assert_worker(worker);
        device.goodbye().unwrap();
        wait_until("its worker ends with it", || !is_running(worker));
    }
    assert_eq!(served.served(), (3, 0));
    served.mediator.wait_for_warm(2);
    let text = stdout(&run(served.mediator.vgpuctl().arg("status")));
    let told = "warm       2 of 2 workers ready; 3 sessions had one, 0 did not\n";
    assert!(text.contains(told), "{text}");
    served.mediator.stop();
}

#[test]
fn one_that_does_not_take_its_session_is_replaced_by_one_that_is_started_for_it() {
    for how in [Signal::SIGSTOP, Signal::SIGKILL] {
        let served = Served::with(ONE);
        for endpoint in served.sockets.endpoints(&served.mediator) {
            let ready = served.mediator.wait_for_warm(1);
            // The broker need not have noticed when the session comes.
            signal(ready[0], how);
            let mut client = served.connect(&endpoint);
            add(&mut client, 1000).unwrap();
            let worker = served.worker();
            assert_ne!(worker, ready[0], "{endpoint}");
            assert_worker(worker);
            client.goodbye().unwrap();
            wait_until("the warm worker is gone", || !is_running(ready[0]));
            wait_until("the session is over", || {
                served.mediator.status()["sessions"] == json!([])
            });
        }
        if how == Signal::SIGSTOP {
            served.wait_for_log("it did not take its session within 500 ms");
            assert_eq!(served.served(), (0, 3));
        }
        served.mediator.stop();
    }
}

#[test]
fn one_that_is_killed_is_replaced() {
    let served = Served::with(TWO);
    let before = served.mediator.wait_for_warm(2);
    signal(before[0], Signal::SIGKILL);
    served.wait_for_log("a warm worker ended before it had a session: it was killed");
    let after = served.mediator.wait_for_warm(2);
    assert!(after.contains(&before[1]) && !after.contains(&before[0]));
    served.mediator.stop();
}

#[test]
fn rules_and_limits_count_in_a_warm_worker() {
    let served = Served::with(
        "[worker]\nwarm_workers = 1\n[limits]\nmemory_mib = 9\n\
         [guests]\ntester = { allow = true, memory_mib = 5, max_sessions = 1, operations = ['device', 'memory'] }\n",
    );
    served.mediator.wait_for_warm(1);
    let device = Device::new(served.mediator.connect().unwrap()).unwrap();
    assert_eq!(device.memory_info().unwrap(), (9 << 20, 9 << 20));
    let error = device.alloc::<u8>(10 << 20).unwrap_err().to_string();
    assert!(error.contains("E_QUOTA_MEM"), "{error}");
    device.goodbye().unwrap();

    served.mediator.wait_for_warm(1);
    let device = Device::new(served.connect(&served.sockets.tcp())).unwrap();
    assert_eq!(device.memory_info().unwrap(), (5 << 20, 5 << 20));
    let buffer = device.alloc::<u8>(4).unwrap();
    let error = device.clone_dtoh(&buffer).unwrap_err().to_string();
    assert!(error.contains("E_UNSUPPORTED"), "{error}");
    served.mediator.wait_for_warm(1);
    let refused = served.sockets.connect(&served.sockets.tcp()).unwrap_err();
    assert!(refused.to_string().contains("E_BUSY"), "{refused}");
    served.mediator.wait_for_warm(1);
    // Somebody without the secret gets nothing of it.
    fs::write(served.sockets.secrets(), "").unwrap();
    Client::connect(&[served.sockets.tcp()], &served.sockets.options_of("other")).unwrap_err();
    drop(buffer);
    device.goodbye().unwrap();
    served.mediator.stop();
}

#[test]
fn a_reload_changes_how_many_there_are() {
    let served = Served::with("");
    assert_eq!(served.mediator.status()["warm"], Value::Null);
    assert_eq!(served.mediator.workers(), [0; 0]);
    let reloaded = served.reload(TWO);
    assert_eq!(reloaded["changed"], json!(["worker.warm_workers"]));
    let two = served.mediator.wait_for_warm(2);
    served.reload("[worker]\nwarm_workers = 3\n");
    let three = served.mediator.wait_for_warm(3);
    assert!(two.iter().all(|pid| three.contains(pid)));
    served.reload(ONE);
    let one = served.mediator.wait_for_warm(1);
    assert!(three.contains(&one[0]));
    wait_until("the others are gone", || {
        three.iter().filter(|pid| is_running(**pid)).count() == 1
    });
    let mut client = served.mediator.connect().unwrap();
    assert_eq!(served.worker(), one[0]);
    served.reload("");
    served.mediator.wait_for_warm(0);
    // It is a session's by now.
    add(&mut client, 1000).unwrap();
    client.goodbye().unwrap();
    served.mediator.wait_for_workers(0);
    served.mediator.stop();
}

#[test]
fn a_stop_leaves_none_and_neither_does_the_mediators_death() {
    let served = Served::with(TWO);
    let ready = served.mediator.wait_for_warm(2);
    served.mediator.stop();
    assert!(!ready.iter().any(|pid| is_running(*pid)));

    let mut served = Served::with(TWO);
    let ready = served.mediator.wait_for_warm(2);
    served.mediator.signal(Signal::SIGKILL);
    served.mediator.wait();
    wait_until("they end with it", || {
        !ready.iter().any(|pid| is_running(*pid))
    });
}

#[test]
fn a_storm_of_connections_is_served_and_the_pool_is_full_again() {
    const STORM: usize = 24;
    let served = Served::with(TWO);
    served.mediator.wait_for_warm(2);
    let sessions: Vec<_> = (0..STORM)
        .map(|_| {
            let (endpoint, options) = (served.mediator.endpoint(), served.sockets.options());
            thread::spawn(move || {
                let mut client = Client::connect(&[endpoint], &options).unwrap();
                add(&mut client, 1000).unwrap();
                client.goodbye().unwrap();
            })
        })
        .collect();
    for session in sessions {
        session.join().unwrap();
    }
    let (warm, cold) = served.served();
    assert_eq!(warm + cold, STORM as u64);
    assert!(warm >= 2, "{warm}");
    served.mediator.wait_for_warm(2);
    served.mediator.wait_for_workers(2);
    served.mediator.stop();
}

#[test]
fn strangers_do_not_cost_a_context_each() {
    let served = Served::with(TWO);
    let (host, port) = served.sockets.address();
    let mut silent = Vec::new();
    for n in 1..=7 {
        served.mediator.wait_for_warm(2);
        silent.push(TcpStream::connect((&*host, port)).unwrap());
        wait_until("it is looked at", || {
            let (warm, cold) = served.served();
            warm + cold == n
        });
    }
    // Four of them, as long as no time has passed for another.
    let (warm, cold) = served.served();
    assert!((4..=5).contains(&warm), "{warm} of {}", warm + cold);
    // A client with a secret is served all the same, and takes no worker from others.
    let mut client = served.connect(&served.sockets.tcp());
    add(&mut client, 1000).unwrap();
    client.goodbye().unwrap();
    served.mediator.wait_for_warm(2);
    let (before, _) = served.served();
    let mut client = served.mediator.connect().unwrap();
    add(&mut client, 1000).unwrap();
    assert_eq!(served.served().0, before + 1);
    client.goodbye().unwrap();
    drop(silent);
    served.mediator.stop();
}

#[test]
fn clients_with_a_secret_find_one_each_time() {
    let served = Served::with(ONE);
    // More than strangers could have.
    for n in 1..=8 {
        served.mediator.wait_for_warm(1);
        let mut client = served.connect(&served.sockets.tcp());
        add(&mut client, 1000).unwrap();
        assert_eq!(served.served(), (n, 0));
        client.goodbye().unwrap();
        wait_until("the session is over", || {
            served.mediator.status()["sessions"] == json!([])
        });
    }
    served.mediator.stop();
}

#[test]
fn sessions_over_files_are_served_as_before() {
    let directory = tempfile::tempdir().unwrap();
    crate::support::only_ours_to_change(directory.path());
    let files = Endpoint::File(directory.path().join("exchange"));
    let served = Served::listening(TWO, &["--listen", &files.to_string()]);
    let ready = served.mediator.wait_for_warm(2);
    let mut client = served.connect(&files);
    add(&mut client, 1000).unwrap();
    client.goodbye().unwrap();
    assert_eq!(served.mediator.wait_for_warm(2), ready);
    assert_eq!(served.served(), (0, 0));
    let text = stdout(&run(served.mediator.vgpuctl().arg("status")));
    let told = format!("not for sessions over {files}\n");
    assert!(text.contains(&told), "{text}");
    let text = stdout(&run(served.mediator.vgpuctl().arg("doctor")));
    let told = format!("✔ warm workers: 2 of 2 are ready; not for sessions over {files}\n");
    assert!(text.contains(&told), "{text}");
    served.mediator.stop();
}

#[test]
fn where_nothing_is_opened_they_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("m.toml");
    fs::write(
        &file,
        format!("listen = 'local:/a'\nexecutor = 'relay:local:/b'\n{ONE}"),
    )
    .unwrap();
    let output = run(Command::new(MEDIATORD)
        .arg("--config")
        .arg(&file)
        .arg("--check-config"));
    assert!(!output.status.success());
    let text = stderr(&output);
    let told = "worker.warm_workers counts for nothing with executor relay:local:/b";
    assert!(text.contains(told), "{text}");
}

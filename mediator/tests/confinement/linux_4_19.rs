//! Mediator, workers, `vgpuctl` and guests with the system calls of Linux 4.19, XCP-ng's kernel in dom0, and
//! none that came later: sessions over every endpoint that needs no Xen, confined as always.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use vgpu_guest::Client;

use crate::support::other_users::reachable;
use crate::support::sockets::{Sockets, run_cases};
use crate::support::{Mediator, VGPUCTL, WATCHDOG, add, run, stderr, stdout};

/// Cases of the sessions' suite that between them make every system call that one of them makes: sessions that begin and end
/// in each way, data, lanes, and each kind of work on a device.
const CASES: &[&str] = &[
    "pings_of_all_sizes",
    "exchanges_of_all_sizes",
    "vector_add_of_several",
    "many_lanes",
    "two_sessions_at_once",
    "dropped_in_the_middle",
    "gpu_copies_of_all_sizes",
    "gpu_pinned_memory",
    "gpu_launches",
    "gpu_faults",
    "gpu_endless",
    "gpu_kernels_print_lines",
    "gpu_streams",
    "gpu_graphs_of_several",
];

/// Runs `test`, and all that it starts, with those system calls alone.
fn with_old_calls(test: impl FnOnce() + Send + 'static) {
    let thread = thread::spawn(|| {
        old_linux::restrict().expect("seccomp filters");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// That the kernel says of a process that the filter is over it.
fn assert_has_filter(pid: u32) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a live process");
    assert!(
        status.lines().any(|line| line == "Seccomp:\t2"),
        "{pid}: {status}"
    );
}

#[test]
fn whole_sessions_over_every_endpoint() {
    with_old_calls(|| {
        let directory = reachable();
        let sockets = Sockets::new(directory.path());
        let file = sockets.file();
        let mediator = sockets.start(&["--listen", &file.to_string()]);
        assert_has_filter(mediator.pid());
        let mut endpoints = sockets.endpoints(&mediator);
        endpoints.push(file);
        for endpoint in &endpoints {
            run_cases(endpoint, &sockets.options(), CASES);
        }
        let status = mediator.status();
        let protections = status["protections"].as_array().expect("a list");
        assert!(!protections.is_empty(), "{status}");
        // What only root can do to its workers does not depend on the kernel's age.
        for protection in protections.iter().filter(|_| geteuid().is_root()) {
            assert_eq!(protection["on"], true, "{protection}");
        }
        mediator.stop();
    });
}

#[test]
fn sessions_through_a_relay() {
    with_old_calls(|| {
        let [front, behind] = [(); 2].map(|()| reachable());
        let behind = Mediator::start(behind.path(), &[]);
        let relay = format!("relay:{}", behind.endpoint());
        let front = Mediator::start(front.path(), &["--executor", &relay]);
        let mut client = front.connect().expect("a session");
        add(&mut client, 100_000).expect("the sums");
        client.goodbye().expect("a good end");
        front.stop();
        behind.stop();
    });
}

#[test]
fn a_worker_that_is_killed_and_a_guest_that_is_kicked() {
    with_old_calls(|| {
        let directory = reachable();
        let mediator = Mediator::start(directory.path(), &[]);
        for end in ["kill", "kick"] {
            let mut client = mediator.connect().expect("a session");
            add(&mut client, 1000).expect("the sums");
            match end {
                "kill" => {
                    for worker in mediator.wait_for_workers(1) {
                        let pid = i32::try_from(worker).expect("a pid");
                        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("a live worker");
                    }
                }
                _ => {
                    let guest = mediator.status()["sessions"][0]["guest"].clone();
                    let guest = guest.as_str().expect("a name").to_owned();
                    let output = run(mediator.vgpuctl().args(["kick", &guest]));
                    assert!(output.status.success(), "{}", stderr(&output));
                }
            }
            // Work that was begun before the broker's word is still done.
            let deadline = Instant::now() + WATCHDOG;
            while add(&mut client, 1000).is_ok() {
                assert!(Instant::now() < deadline, "the session goes on");
            }
            mediator.wait_for_workers(0);
        }
        // The next guest finds the mediator as it was.
        let mut client: Client = mediator.connect().expect("a session");
        add(&mut client, 1000).expect("the sums");
        mediator.stop();
    });
}

#[test]
fn the_doctor_finds_the_same_protections() {
    let found = || {
        let mut doctor = Command::new(VGPUCTL);
        let output = run(doctor.args(["--json", "doctor"]));
        let report: serde_json::Value =
            serde_json::from_str(&stdout(&output)).unwrap_or_else(|_| panic!("{output:?}"));
        let checks = report["checks"].as_array().expect("a list");
        let confinement = |check: &&serde_json::Value| check["name"] == "confinement of workers";
        checks.iter().find(confinement).expect("a check").clone()
    };
    let here = found();
    with_old_calls(move || assert_eq!(found(), here));
}

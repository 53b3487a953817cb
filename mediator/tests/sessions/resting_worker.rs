//! A worker that does not run for longer than its deadlines allow, as on a host with too much to do: what
//! came meanwhile has come in time.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use vgpu_guest::{Client, Endpoint};

use crate::support::sockets::Sockets;
use crate::support::{Mediator, add, only_ours_to_change, signal};

const LANES: usize = 3;

/// Elements of each addition: far more than a transport holds.
const ELEMENTS: usize = 1 << 19;

/// Longer than the second that nothing may stand still.
const REST: Duration = Duration::from_millis(1500);

fn requests_survive_a_rest(endpoint: impl FnOnce(&Sockets, &Mediator) -> Endpoint) {
    let directory = tempfile::tempdir().unwrap();
    let sockets = Sockets::new(directory.path());
    let config = directory.path().join("m.toml");
    fs::write(&config, "[limits]\nstall_timeout_s = 1\n").unwrap();
    let Endpoint::File(exchange) = sockets.file() else {
        unreachable!("a directory");
    };
    fs::create_dir(&exchange).unwrap();
    only_ours_to_change(&exchange);
    let listen = sockets.file().to_string();
    let flags = ["--config", config.to_str().unwrap(), "--listen", &listen];
    let mediator = sockets.start(&flags);
    let endpoint = endpoint(&sockets, &mediator);
    let before = mediator.workers();
    let client = Client::connect(&[endpoint], &sockets.options()).unwrap();
    let serves = |pid: &u32| !before.contains(pid);
    // A directory has had its worker before.
    let workers = mediator.workers();
    let worker = workers.iter().copied().find(serves).unwrap_or(workers[0]);
    let mut lanes: Vec<Client> = (1..LANES).map(|_| client.lane().unwrap()).collect();
    lanes.push(client);
    let done = AtomicU64::new(0);
    thread::scope(|scope| {
        for lane in &mut lanes {
            scope.spawn(|| {
                add(lane, ELEMENTS).unwrap();
                // Relaxed: only this counter counts.
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        let mut rests = 0;
        while done.load(Ordering::Relaxed) < LANES as u64 && rests < 2 {
            thread::sleep(Duration::from_millis(50));
            signal(worker, Signal::SIGSTOP);
            thread::sleep(REST);
            signal(worker, Signal::SIGCONT);
            rests += 1;
        }
    });
    drop(lanes);
    mediator.stop();
}

#[test]
fn requests_over_local_survive_a_rest_of_their_worker() {
    requests_survive_a_rest(|_, mediator| mediator.endpoint());
}

#[test]
fn requests_over_unix_survive_a_rest_of_their_worker() {
    requests_survive_a_rest(|sockets, _| sockets.unix());
}

#[test]
fn requests_over_tcp_survive_a_rest_of_their_worker() {
    requests_survive_a_rest(|sockets, _| sockets.tcp());
}

#[test]
fn requests_over_files_survive_a_rest_of_their_worker() {
    requests_survive_a_rest(|sockets, _| sockets.file());
}

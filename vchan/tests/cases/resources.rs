//! vchan.md (c) 37 to 45: what runs out, fails, or is not there. Grants, event channels and
//! mappings of Xen's are for the lab (`faults/`, `xen-sys/`); descriptors and memory stand in here.

use std::fs;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use vchan::local::peer::Offer;
use vchan::local::{connect_on, serve_on};
use vchan::{Channel, Error};

use crate::liar::*;
use crate::xenstored::{TRANSACTION_START, WATCH, Xenstored, domain_one, failed, start};

/// Runs one of the tests below that change limits of the whole process, in a process of its own.
fn in_a_process_of_its_own(test: &str) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            &format!("resources::{test}"),
            "--ignored",
            "--nocapture",
        ])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    assert!(text.contains("1 passed"), "{text}");
}

/// Set-up fails at each descriptor it needs, once: a typed error each time, and nothing kept.
#[test]
fn case_37_set_up_fails_at_every_step() {
    in_a_process_of_its_own("descriptors_run_out");
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
#[ignore = "changes a limit of the process; run by case_37"]
fn descriptors_run_out() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let before = descriptors();
    for (failures, more) in (2..60).enumerate() {
        let (one, other) = UnixStream::pair().unwrap();
        // The two ends above count, and so does the one to count with.
        setrlimit(Resource::RLIMIT_NOFILE, (before + more) as u64, most).unwrap();
        let server = thread::spawn(move || serve_on(one, 64 << 10, soon()));
        let client = connect_on(other, soon());
        let server = server.join().unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
        let typed = |outcome: &Result<Channel, Error>| match outcome {
            Ok(_) => true,
            Err(Error::Os { .. } | Error::PeerClosed { .. } | Error::Setup { .. }) => false,
            // Descriptors that did not fit were dropped on the way.
            Err(Error::Peer(_)) => false,
            Err(error) => panic!("{error:?}"),
        };
        let complete = typed(&server) && typed(&client);
        drop((server, client));
        assert_eq!(
            descriptors(),
            before,
            "kept after failing at descriptor {more}"
        );
        if complete {
            // How many depends on when each side needs its descriptors.
            assert!(failures > 0, "no step failed");
            return;
        }
    }
    panic!("never enough descriptors");
}

/// No room to map what the server offers.
#[test]
fn case_38_no_room_to_map() {
    in_a_process_of_its_own("address_space_runs_out");
}

#[test]
#[ignore = "changes a limit of the process; run by case_38"]
fn address_space_runs_out() {
    let offer = Offer::new((1 << 20).into()).unwrap();
    let before = descriptors();
    let (near, far) = UnixStream::pair().unwrap();
    offer.send(&far, soon()).unwrap();
    let (_, most) = getrlimit(Resource::RLIMIT_AS).unwrap();
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
    setrlimit(Resource::RLIMIT_AS, pages * 4096 + (512 << 10), most).unwrap();
    let outcome = connect_on(near, soon());
    setrlimit(Resource::RLIMIT_AS, most, most).unwrap();
    match outcome {
        Err(Error::Os { source, .. }) => {
            assert_eq!(source.raw_os_error(), Some(libc::ENOMEM));
        }
        other => panic!("{other:?}"),
    }
    drop(far);
    assert_eq!(descriptors(), before);
}

/// A xenstored that refuses for want of room, in each of its words.
#[test]
fn case_41_xenstore_quotas() {
    for code in ["ENOSPC", "EDQUOT", "E2BIG", "EAGAIN", "EBUSY"] {
        let store = Xenstored::new(move |kind, path| domain_one(kind, path, |_| Some(Err(code))));
        let error = failed(start(
            &store.socket(),
            "connect --peer 1 --path data/x --timeout 1 --echo",
        ));
        assert!(error.contains(code), "{code}: {error}");
        // No loop until it agrees, and no transaction that could be refused at its end.
        assert!(store.nodes_read().len() < 10, "{:?}", store.nodes_read());
        let asked = store.asked.lock().unwrap();
        assert!(
            asked.iter().all(|(kind, _)| *kind != TRANSACTION_START),
            "{asked:?}"
        );
    }
}

/// xenstored dies while a client waits for keys: an error at once, not a wait for ever.
#[test]
fn case_42_xenstored_dies_under_waiters() {
    let died = Instant::now() + Duration::from_millis(500);
    let store = Xenstored::new(move |kind, path| {
        if Instant::now() > died {
            return None;
        }
        domain_one(kind, path, |_| Some(Err("ENOENT")))
    });
    let waiters = [0, 1, 2].map(|n| {
        let arguments = format!("connect --peer 1 --path data/x{n} --timeout 600 --echo");
        start(&store.socket(), &arguments)
    });
    for waiter in waiters {
        let error = failed(waiter);
        assert!(error.contains("cannot reach xenstore"), "{error}");
    }
}

/// A guest can make events only where somebody watches: nobody does below its path.
#[test]
fn case_43_no_watch_below_a_path_of_the_peer() {
    let store = Xenstored::new(|kind, path| domain_one(kind, path, |_| Some(Err("ENOENT"))));
    failed(start(
        &store.socket(),
        "connect --peer 1 --path data/x --timeout 0.5 --echo",
    ));
    let asked = store.asked.lock().unwrap();
    let watches: Vec<&String> = asked
        .iter()
        .filter(|(kind, _)| *kind == WATCH)
        .map(|(_, node)| node)
        .collect();
    assert!(
        watches.iter().all(|node| *node == "@releaseDomain"),
        "{watches:?}"
    );
}

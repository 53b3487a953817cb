//! Cases 37 to 45: resources that run out, fail, or are missing. Grants, event channels and
//! mappings of Xen are tested in the lab (`faults/`, `xen-sys/`); descriptors and memory stand in
//! for them here.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use vchan::layout::Role;
use vchan::local::{connect_on, connect_with, serve_on, serve_with};
use vchan::reactor::Reactor;
use vchan::{Channel, Error, Format, PeerError, Setup};
use vchan_testing::peer::Offer;

use crate::liar::*;
use crate::xenstored::{TRANSACTION_START, WATCH, Xenstored, domain_one, failed, start};

/// Environment variable with the socket of the partner of a process with a limit.
const PARTNER: &str = "VCHAN_TEST_PARTNER";

/// Runs one of the tests below that change limits of the whole process, in a process of its own,
/// with a partner that sets channels up at `partner`.
fn in_a_process_of_its_own(test: &str, partner: &Path) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            &format!("resources::{test}"),
            "--ignored",
            "--nocapture",
        ])
        .env(PARTNER, partner)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    assert!(text.contains("1 passed"), "{text}");
    eprint!("{errors}");
}

/// Set-up fails once at each descriptor it needs, in either role, and where there is no room to
/// map: a typed error with advice each time, on both sides, and nothing left allocated.
#[test]
fn case_37_set_up_fails_at_every_step() {
    let directory = tempfile::tempdir().unwrap();
    let partner = directory.path().join("partner");
    let listener = UnixListener::bind(&partner).unwrap();
    thread::spawn(move || listener.incoming().for_each(|stream| meet(stream.unwrap())));
    for test in [
        "each_descriptor_is_missing_once",
        "a_server_has_no_room_to_map",
        "descriptors_run_out_on_both_sides",
    ] {
        in_a_process_of_its_own(test, &partner);
    }
}

/// The partner's side of one set-up: an honest peer without a limit, in the opposite role. The
/// other process notices a panic here: nothing answers it any more.
fn meet(mut stream: UnixStream) {
    let mut role = [0];
    stream.read_exact(&mut role).unwrap();
    let outcome = match role {
        [b'c'] => connect_on(stream, soon()),
        _ => serve_on(stream, 64 << 10, soon()),
    };
    match outcome {
        Ok(mut channel) => assert_eq!(channel.read(&mut [0], soon()).unwrap(), 0),
        Err(error) => {
            let named = matches!(error, Error::PeerClosed { .. } | Error::Setup { .. });
            assert!(named && !error.advice().is_empty(), "{error:?}");
        }
    }
}

/// A stream to the partner, which then takes the role opposite to `role`.
fn to_partner(role: Role) -> UnixStream {
    let mut stream = UnixStream::connect(std::env::var_os(PARTNER).unwrap()).unwrap();
    let partners = match role {
        Role::Server => b"c",
        Role::Client => b"s",
    };
    stream.write_all(partners).unwrap();
    stream
}

fn set_up(role: Role, setup: &Setup<'_>, stream: UnixStream) -> Result<Channel, Error> {
    match role {
        Role::Server => serve_with(setup, stream, 64 << 10, soon()),
        Role::Client => connect_with(setup, stream, soon()),
    }
}

/// Runs `f` while no descriptor of this process may have the number `limit` or more.
fn below<T>(limit: usize, f: impl FnOnce() -> T) -> T {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, limit as u64, most).unwrap();
    let outcome = f();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    outcome
}

/// Whether memory of a channel is mapped here.
fn is_anything_mapped() -> bool {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    maps.contains("memfd:vchan")
}

#[test]
#[ignore = "changes a limit of the process; run by case_37"]
fn each_descriptor_is_missing_once() {
    // So that the next descriptor always has the next number.
    let mut holes = Vec::new();
    loop {
        let hole = File::open("/dev/null").unwrap();
        let (number, open) = (hole.as_raw_fd(), descriptors());
        holes.push(hole);
        // The descriptor that counts is among those it counts.
        if usize::try_from(number).unwrap() + 2 >= open {
            break;
        }
    }
    for role in ROLES {
        for (format, on_reactor) in [
            (Format::Extended, false),
            (Format::Classic, false),
            (Format::Extended, true),
        ] {
            let reactor = Reactor::new().unwrap();
            let setup = Setup::new().format(format);
            let setup = match on_reactor {
                true => setup.reactor(reactor.handle()),
                false => setup,
            };
            let what = format!("{role:?}, {format:?}, on a reactor: {on_reactor}");
            let before = descriptors();
            let whole = set_up(role, &setup, to_partner(role)).unwrap();
            let kept = descriptors() - before;
            assert!(is_anything_mapped());
            drop(whole);
            let mut failures = 0;
            loop {
                assert_no_more_than(before, &format!("{what}: kept after {failures}"));
                assert!(!is_anything_mapped(), "{what}: {failures}");
                assert_eq!(reactor.handle().len(), 0, "{what}: {failures}");
                let stream = to_partner(role);
                // The counting descriptor makes room for the stream.
                let outcome = below(before + failures, || set_up(role, &setup, stream));
                let error = match outcome {
                    Ok(_) => break,
                    Err(error) => error,
                };
                match &error {
                    Error::Os { source, .. } => {
                        assert_eq!(source.raw_os_error(), Some(libc::EMFILE), "{what}: {error}");
                    }
                    // Descriptors of a message that do not fit are dropped.
                    Error::Peer(PeerError::Rendezvous(_)) if role == Role::Client => {}
                    other => panic!("{what}: {other:?}"),
                }
                assert!(!error.advice().is_empty(), "{what}: {error}");
                failures += 1;
                assert!(failures < 60, "{what}: never enough descriptors");
            }
            // The stream was there before.
            assert!(
                failures >= kept - 1,
                "{what}: {failures} steps failed, and a channel has {kept} descriptors"
            );
            // With one more it always succeeds.
            let stream = to_partner(role);
            below(before + failures + 1, || set_up(role, &setup, stream)).unwrap();
            eprintln!("{what}: failed at each of {failures} descriptors");
        }
    }
}

#[test]
#[ignore = "changes a limit of the process; run by case_37"]
fn a_server_has_no_room_to_map() {
    let before = descriptors();
    let stream = to_partner(Role::Server);
    let outcome = with_little_room(|| serve_on(stream, 1 << 20, soon()));
    assert_no_memory(outcome);
    assert_no_more_than(before, "kept");
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Waits until only `before` descriptors are open: a thread closes those that a peer may have
/// filled.
#[track_caller]
fn assert_no_more_than(before: usize, what: &str) {
    let deadline = soon();
    while descriptors() != before && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(descriptors(), before, "{what}");
}

#[test]
#[ignore = "changes a limit of the process; run by case_37"]
fn descriptors_run_out_on_both_sides() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let before = descriptors();
    for (failures, more) in (2..60).enumerate() {
        let (one, other) = UnixStream::pair().unwrap();
        // The two ends above count, and so does the counting descriptor.
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
        let what = format!("kept after failing at descriptor {more}");
        assert_no_more_than(before, &what);
        if complete {
            // How many depends on when each side needs its descriptors.
            assert!(failures > 0, "no step failed");
            return;
        }
    }
    panic!("never enough descriptors");
}

/// No room to map the memory that the server offers.
#[test]
fn case_38_no_room_to_map() {
    in_a_process_of_its_own("address_space_runs_out", Path::new("nobody"));
}

#[test]
#[ignore = "changes a limit of the process; run by case_38"]
fn address_space_runs_out() {
    let offer = Offer::new((1 << 20).into()).unwrap();
    let before = descriptors();
    let (near, far) = UnixStream::pair().unwrap();
    offer.send(&far, soon()).unwrap();
    let outcome = with_little_room(|| connect_on(near, soon()));
    assert_no_memory(outcome);
    drop(far);
    assert_no_more_than(before, "kept");
}

/// Runs `f` while this process may map 512 KiB more.
fn with_little_room<T>(f: impl FnOnce() -> T) -> T {
    let (_, most) = getrlimit(Resource::RLIMIT_AS).unwrap();
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
    setrlimit(Resource::RLIMIT_AS, pages * 4096 + (512 << 10), most).unwrap();
    let outcome = f();
    setrlimit(Resource::RLIMIT_AS, most, most).unwrap();
    outcome
}

fn assert_no_memory(outcome: Result<Channel, Error>) {
    match outcome {
        Err(Error::Os { source, .. }) => {
            assert_eq!(source.raw_os_error(), Some(libc::ENOMEM));
        }
        other => panic!("{other:?}"),
    }
}

/// A xenstored that refuses for lack of room, with each of its error codes.
#[test]
fn case_41_xenstore_quotas() {
    for code in ["ENOSPC", "EDQUOT", "EQUOTA", "E2BIG", "EAGAIN", "EBUSY"] {
        let store = Xenstored::new(move |kind, path| domain_one(kind, path, |_| Some(Err(code))));
        let error = failed(start(
            &store.socket(),
            "connect --peer 1 --path data/x --timeout 10 --echo",
        ));
        assert!(error.contains(code), "{code}: {error}");
        let quota = !["EAGAIN", "EBUSY"].contains(&code);
        assert_eq!(error.contains("quota reached"), quota, "{code}: {error}");
        // No endless retries, and no transaction that could be refused at its end.
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

/// A guest can cause events only where somebody watches: nobody does below its path.
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

//! Cases 25 to 36: peers that die, stop, close, come back, or come twice.

use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vchan::layout::Role;
use vchan::{Channel, Error, local};
use vgpu_transport::Interest;

use crate::liar::*;

/// Starts `vchan ARGUMENTS` in a process of its own.
fn vchan(arguments: &str, path: &Path, stdin: Stdio) -> Child {
    Command::new(env!("CARGO_BIN_EXE_vchan"))
        .args(arguments.split(' '))
        .args(["--backend", "local", "--path"])
        .arg(path)
        .stdin(stdin)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn read_to_end(channel: &mut Channel) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buf = [0; 4096];
    loop {
        match channel.read(&mut buf, soon()).unwrap() {
            0 => return all,
            n => all.extend_from_slice(&buf[..n]),
        }
    }
}

#[test]
fn case_25_peer_process_killed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    // While it writes, and while it reads, in both roles.
    for ours in ROLES {
        let open = |arguments: &str, stdin| match ours {
            Role::Server => {
                let child = vchan(&format!("connect {arguments}"), &path, stdin);
                (local::serve(&path, 4096.into(), soon()).unwrap(), child)
            }
            Role::Client => {
                let child = vchan(&format!("serve --ring 4K {arguments}"), &path, stdin);
                (local::connect(&path, soon()).unwrap(), child)
            }
        };
        let zeros = std::fs::File::open("/dev/zero").unwrap();
        let (mut channel, mut writing) = open("--pipe", zeros.into());
        assert!(channel.read(&mut [0; 64], soon()).unwrap() > 0);
        writing.kill().unwrap();
        read_to_end(&mut channel);
        assert!(matches!(
            channel.write_all(b"x", soon()),
            Err(Error::PeerClosed { .. })
        ));
        writing.wait().unwrap();

        let (mut channel, mut reading) = open("--sink", Stdio::null());
        channel.write_all(&[0; 10_000], soon()).unwrap();
        reading.kill().unwrap();
        let outcome = (0..).find_map(|_| channel.write_all(&[0; 4096], soon()).err());
        assert!(
            matches!(outcome, Some(Error::PeerClosed { .. })),
            "{outcome:?}"
        );
        reading.wait().unwrap();
    }
    // A client that dies after mapping the pages and before declaring itself connected.
    let (one, mut other) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || local::serve_on(one, 4096, soon()).map(drop));
    other.read_exact(&mut [0; 8]).unwrap();
    drop(other);
    let outcome = server.join().unwrap();
    assert!(
        matches!(outcome, Err(Error::PeerClosed { .. })),
        "{outcome:?}"
    );
}

type Call = (&'static str, fn(&mut Channel) -> Result<(), Error>);

/// Every call that waits.
const CALLS: [Call; 7] = [
    ("read", |channel| {
        match channel.read(&mut [0; 8], soon())? {
            0 => Ok(()),
            n => panic!("read {n} bytes of a dead peer"),
        }
    }),
    ("write_all", |channel| {
        channel.write_all(&[0; 2 * RING as usize], soon())
    }),
    ("drain", |channel| {
        channel.write_all(b"unread", soon())?;
        channel.drain(soon())
    }),
    ("close", |channel| {
        channel.write_all(b"unread", soon())?;
        channel.close(soon())
    }),
    ("wait to read", |channel| {
        channel.wait(Interest::Read, soon())
    }),
    ("wait to write", |channel| {
        channel.write_all(&[0; RING as usize], soon())?;
        channel.wait(Interest::Write, soon())
    }),
    ("wait for both", |channel| {
        channel.write_all(&[0; RING as usize], soon())?;
        channel.wait(Interest::ReadOrWrite, soon())
    }),
];

/// The peer vanishes without closing, its live byte still 1, while we wait in each call.
#[test]
fn case_26_peer_vanishes_while_we_block() {
    for role in ROLES {
        let waiting = CALLS.map(|(name, call)| {
            let (mut victim, liar) = pair(role);
            let thread = thread::spawn(move || (call(&mut victim), victim));
            (name, thread, liar)
        });
        thread::sleep(Duration::from_millis(50));
        for (name, thread, liar) in waiting {
            drop(liar);
            let (outcome, mut victim) = thread.join().unwrap();
            match (name, outcome) {
                ("write_all" | "drain" | "close", Err(Error::PeerClosed { unread })) => {
                    assert!(unread > 0, "{name}");
                }
                ("read" | "wait to read" | "wait to write" | "wait for both", Ok(())) => {}
                (name, other) => panic!("{name}: {other:?}"),
            }
            if name != "close" {
                assert_eq!(victim.try_read(&mut [0; 8]).unwrap(), Some(0), "{name}");
                let end = victim.try_write(b"x");
                assert!(
                    matches!(end, Err(Error::PeerClosed { .. })),
                    "{name}: {end:?}"
                );
            }
        }
    }
    // And while there is no channel yet.
    let (one, other) = UnixStream::pair().unwrap();
    let accepting = thread::spawn(move || local::serve_on(one, 4096, soon()).map(drop));
    let (three, four) = UnixStream::pair().unwrap();
    let connecting = thread::spawn(move || local::connect_on(three, soon()).map(drop));
    thread::sleep(Duration::from_millis(30));
    drop((other, four));
    for outcome in [accepting.join().unwrap(), connecting.join().unwrap()] {
        assert!(
            matches!(outcome, Err(Error::PeerClosed { .. })),
            "{outcome:?}"
        );
    }
}

/// A peer that stands still is not dead: deadlines pass meanwhile, then everything arrives.
#[test]
fn case_27_peer_paused_and_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let mut peer = vchan("serve --ring 4K --echo", &path, Stdio::null());
    let mut channel = local::connect(&path, soon()).unwrap();
    let mut echoed = [0; 3];
    channel.write_all(b"one", soon()).unwrap();
    read_exact(&mut channel, &mut echoed);
    let pid = Pid::from_raw(i32::try_from(peer.id()).unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    channel.write_all(b"two", soon()).unwrap();
    assert!(matches!(
        channel.read(&mut [0; 3], short()),
        Err(Error::TimedOut(_))
    ));
    assert!(matches!(channel.drain(short()), Err(Error::TimedOut(_))));
    kill(pid, Signal::SIGCONT).unwrap();
    read_exact(&mut channel, &mut echoed);
    assert_eq!(&echoed, b"two");
    channel.close(soon()).unwrap();
    peer.wait().unwrap();
}

/// Written and closed at once: every byte arrives before the end does.
#[test]
fn case_28_write_then_close_at_once() {
    for round in 0..200 {
        let (mut server, mut client) = honest(4096);
        let sent = vec![7; 1 + round * 20];
        if round % 2 == 0 {
            std::mem::swap(&mut server, &mut client);
        }
        let reader = thread::spawn(move || read_to_end(&mut client));
        server.write_all(&sent, soon()).unwrap();
        drop(server);
        assert_eq!(reader.join().unwrap().len(), sent.len());
    }
    // The same by hand: the index and the live byte change between two looks of a waiting reader.
    for role in ROLES {
        let (mut victim, liar) = pair(role);
        let reader = thread::spawn(move || read_to_end(&mut victim));
        thread::sleep(Duration::from_millis(10));
        liar.page.set_u32(liars_indexes(role).0, 100);
        liar.page.set_u8(liars_live(role), 0);
        liar.ring();
        assert_eq!(reader.join().unwrap().len(), 100);
    }
    hang_up_after_writing();
}

/// The same with a process that dies instead of closing.
fn hang_up_after_writing() {
    for role in ROLES {
        let (mut victim, liar) = pair(role);
        let (page, prod) = (liar.page.clone(), liars_indexes(role).0);
        let waiting = thread::spawn(move || {
            let mut buf = [0; 8];
            let first = victim.read(&mut buf, soon()).unwrap();
            (first, victim.read(&mut buf, soon()).unwrap())
        });
        thread::sleep(Duration::from_millis(30));
        page.set_u32(prod, 2);
        drop(liar);
        assert_eq!(
            waiting.join().unwrap(),
            (2, 0),
            "the data first, then the end"
        );
    }
}

#[test]
fn case_29_both_close_together() {
    for round in 0..100 {
        let (mut server, mut client) = honest(4096);
        if round % 2 == 0 {
            server.write_all(b"left behind", soon()).unwrap();
            client.write_all(b"left behind", soon()).unwrap();
        }
        let closing = thread::spawn(move || server.close(soon()));
        for outcome in [client.close(soon()), closing.join().unwrap()] {
            // Whichever is second may find the other gone without having read.
            assert!(
                matches!(outcome, Ok(()) | Err(Error::PeerClosed { .. })),
                "{outcome:?}"
            );
        }
    }
}

/// A dead server's socket at the path is replaced; a live one is not.
#[test]
fn case_30_server_restarts_over_its_leftovers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a dead server's socket stays");
    // A client alone fails in time, and its error gives the reason.
    let error = local::connect(&path, short()).unwrap_err();
    assert!(error.to_string().contains("nobody listens"), "{error}");
    let client = {
        let path = path.clone();
        thread::spawn(move || local::connect(&path, soon()).unwrap())
    };
    let mut server = local::serve(&path, 4096.into(), soon()).unwrap();
    let mut client = client.join().unwrap();
    server.write_all(b"new", soon()).unwrap();
    let mut buf = [0; 3];
    read_exact(&mut client, &mut buf);
    assert_eq!(&buf, b"new");
}

#[test]
fn case_32_reconnect_sees_no_byte_of_the_old_session() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    for session in 0..10u8 {
        let client = {
            let path = path.clone();
            thread::spawn(move || local::connect(&path, soon()).unwrap())
        };
        let mut server = local::serve(&path, 4096.into(), soon()).unwrap();
        let mut client = client.join().unwrap();
        assert_eq!(
            client.try_read(&mut [0; 64]).unwrap(),
            None,
            "bytes of an old session"
        );
        assert_eq!(
            server.try_read(&mut [0; 64]).unwrap(),
            None,
            "bytes of an old session"
        );
        // Both leave with bytes under way.
        server.write_all(&[session; 99], soon()).unwrap();
        client.write_all(&[session; 99], soon()).unwrap();
    }
}

#[test]
fn case_33_second_client_at_the_same_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let clients = [0, 1].map(|_| {
        let path = path.clone();
        thread::spawn(move || {
            let deadline = std::time::Instant::now() + Duration::from_secs(2);
            local::connect(&path, deadline)
        })
    });
    let mut server = local::serve(&path, 4096.into(), soon()).unwrap();
    let mut connected: Vec<Channel> = Vec::new();
    for client in clients {
        match client.join().unwrap() {
            Ok(channel) => connected.push(channel),
            Err(Error::PeerClosed { .. } | Error::Setup { .. } | Error::TimedOut(_)) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    assert_eq!(connected.len(), 1, "one server, one client");
    server.write_all(b"for one", soon()).unwrap();
    let mut buf = [0; 7];
    read_exact(&mut connected[0], &mut buf);
    assert_eq!(&buf, b"for one");
}

/// Drops the parts in every order, and closes a closed channel.
#[test]
fn case_36_drop_order_and_double_close() {
    for order in 0..6 {
        let (server, mut client) = honest(4096);
        let (mut reader, mut writer) = server.split().unwrap();
        match order {
            0 => {
                drop(reader);
                writer.write_all(b"x", soon()).unwrap();
                drop(writer);
            }
            1 => {
                drop(writer);
                assert!(matches!(reader.try_read(&mut [0; 1]), Ok(None)));
                drop(reader);
            }
            2 => {
                writer.close_now(soon()).unwrap();
                assert!(matches!(writer.close_now(soon()), Err(Error::Closed)));
                assert!(matches!(
                    reader.read(&mut [0; 1], soon()),
                    Err(Error::Closed)
                ));
                drop(writer);
                drop(reader);
            }
            3 => {
                drop(client);
                client = honest(4096).1;
                assert_eq!(reader.read(&mut [0; 1], soon()).unwrap(), 0);
                drop((reader, writer));
            }
            4 => {
                thread::spawn(move || drop(reader)).join().unwrap();
                drop(writer);
            }
            _ => drop((writer, reader)),
        }
        let end = (0..).find_map(|_| match client.read(&mut [0; 8], soon()) {
            Ok(0) => Some(()),
            Ok(_) => None,
            Err(error) => panic!("order {order}: {error:?}"),
        });
        assert_eq!(end, Some(()));
        client.close(soon()).unwrap();
        client.close(soon()).unwrap();
        assert!(matches!(client.try_write(b"x"), Err(Error::Closed)));
    }
}

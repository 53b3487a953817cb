//! The properties that a session relies on, over each kind of socket.

use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::ends::{self, both, soon};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vgpu_socket_transport::SocketTransport;
use vgpu_transport::{Interest, Transport, TransportError, Waker};

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|i| u8::try_from((i * 7 + i / 251 + seed) % 256).unwrap())
        .collect()
}

#[test]
fn bytes_arrive_in_order_in_all_portions_both_ways_at_once() {
    let portions = [1, 13, 40, 4096, 16_384, 65_519, 65_520, 65_535, 300_000];
    for (kind, (mut a, mut b)) in both() {
        let work = |end: &mut SocketTransport, seed: usize| {
            let (sent, wanted) = (pattern(3_000_000, seed), pattern(3_000_000, 1 - seed));
            let (mut out, mut got) = (0, Vec::new());
            let mut step = seed;
            let mut buf = vec![0; 300_000];
            while out < sent.len() || got.len() < wanted.len() {
                step += 1;
                let portion = portions[step % portions.len()];
                let rest = &sent[out..];
                let wrote = end.try_write(&rest[..rest.len().min(portion)]).unwrap();
                out += wrote;
                let portion = portions[(step * 5 + 1) % portions.len()];
                let read = end.try_read(&mut buf[..portion]).unwrap();
                got.extend_from_slice(&buf[..read.unwrap_or(0)]);
                if wrote == 0 && read.is_none() {
                    let interest = match (out < sent.len(), got.len() < wanted.len()) {
                        (true, true) => Interest::ReadOrWrite,
                        (true, false) => Interest::Write,
                        (false, _) => Interest::Read,
                    };
                    end.wait(interest, soon()).unwrap();
                }
            }
            assert!(got == wanted, "{kind}");
            end.close(soon()).unwrap();
        };
        thread::scope(|scope| {
            scope.spawn(|| work(&mut a, 0));
            scope.spawn(|| work(&mut b, 1));
        });
    }
}

#[test]
fn the_end_comes_after_all_bytes() {
    for (kind, (mut a, mut b)) in both() {
        let bytes = pattern(100_001, 3);
        let expected = bytes.clone();
        let reader = thread::spawn(move || {
            let mut got = vec![0; expected.len()];
            b.read_exact(&mut got, soon()).unwrap();
            assert!(got == expected, "{kind}");
            b.wait(Interest::Read, soon()).unwrap();
            for _again in 0..3 {
                assert_eq!(b.try_read(&mut got).unwrap(), Some(0), "{kind}");
            }
            let error = b.read_exact(&mut got, soon()).unwrap_err();
            assert!(matches!(error, TransportError::Closed), "{kind}: {error}");
        });
        a.write_all(&bytes, soon()).unwrap();
        a.close(soon()).unwrap();
        a.close(soon()).unwrap();
        assert!(matches!(a.try_write(b"x"), Err(TransportError::Closed)));
        assert!(matches!(a.try_read(&mut [0]), Err(TransportError::Closed)));
        reader.join().unwrap();
    }
}

#[test]
fn nothing_waits_without_being_asked_to() {
    for (kind, (mut a, mut b)) in both() {
        let mut buf = [0; 8];
        assert_eq!(a.try_read(&mut buf).unwrap(), None, "{kind}");
        assert!(!a.has_received());
        let start = Instant::now();
        let error = a
            .wait(Interest::Read, start + Duration::from_millis(30))
            .unwrap_err();
        assert!(matches!(error, TransportError::TimedOut("read")), "{kind}");
        assert!(start.elapsed() >= Duration::from_millis(30), "{kind}");
        // Nobody reads: at some point there is no room, and the wait for it ends.
        let block = vec![7; 1 << 20];
        let mut taken = 0;
        while let n @ 1.. = a.try_write(&block).unwrap() {
            taken += n;
        }
        let past = Instant::now();
        assert!(a.wants_write() || kind == "unix");
        let error = a.wait(Interest::Write, past).unwrap_err();
        assert!(matches!(error, TransportError::TimedOut("write")), "{kind}");
        // Once somebody reads, all of it arrives.
        thread::scope(|scope| {
            scope.spawn(|| a.close(soon()).unwrap());
            let mut got = vec![0; taken];
            b.read_exact(&mut got, soon()).unwrap();
            assert!(got.iter().all(|byte| *byte == 7), "{kind}");
            b.wait(Interest::Read, soon()).unwrap();
            assert_eq!(b.try_read(&mut got).unwrap(), Some(0), "{kind}");
            drop(b);
        });
    }
}

#[test]
fn what_is_written_leaves_with_a_flush_or_a_wait() {
    for (kind, (mut a, mut b)) in both() {
        let mut got = [0; 5];
        a.write_all(b"flush", soon()).unwrap();
        a.flush(soon()).unwrap();
        b.read_exact(&mut got, soon()).unwrap();
        assert_eq!(&got, b"flush", "{kind}");
        a.write_all(b"waits", soon()).unwrap();
        let now = Instant::now();
        assert!(a.wait(Interest::Read, now).is_err(), "{kind}");
        b.read_exact(&mut got, soon()).unwrap();
        assert_eq!(&got, b"waits", "{kind}");
    }
}

/// Both sides have more to send than fits on the way, and flush before they read.
#[test]
fn two_sides_that_flush_at_once_do_not_wait_for_each_other() {
    for (kind, (mut a, mut b)) in both() {
        let work = |end: &mut SocketTransport| {
            let block = vec![1; 1 << 20];
            let (mut out, mut got) = (0, 0);
            let mut buf = vec![0; 1 << 16];
            while out < 16 << 20 || got < 16 << 20 {
                let rest = (16 << 20) - out;
                out += end.try_write(&block[..rest.min(block.len())]).unwrap();
                end.flush(soon()).unwrap();
                if let Some(n) = end.try_read(&mut buf).unwrap() {
                    got += n;
                } else if out == 16 << 20 {
                    end.wait(Interest::Read, soon()).unwrap();
                }
            }
            // If the flush returned early, the rest is sent now.
            end.close(soon()).unwrap();
        };
        thread::scope(|scope| {
            scope.spawn(|| work(&mut a));
            scope.spawn(|| work(&mut b));
        });
        drop((kind, a, b));
    }
}

#[test]
fn a_peer_that_is_gone_is_closed_on_every_call() {
    for (kind, (mut a, b)) in both() {
        drop(b);
        a.wait(Interest::Read, soon()).unwrap();
        let read = a.try_read(&mut [0; 8]);
        match kind {
            // The kernel closes for a process that dies; only over TCP could somebody else.
            "unix" => assert_eq!(read.unwrap(), Some(0)),
            _ => assert!(matches!(read, Err(TransportError::Closed)), "{read:?}"),
        }
        let block = vec![0; 1 << 20];
        let error = loop {
            // The kernel takes some bytes before it learns of the end.
            match a.try_write(&block) {
                Ok(_) => {
                    let _ = a.wait(Interest::Write, soon());
                }
                Err(error) => break error,
            }
        };
        assert!(matches!(error, TransportError::Closed), "{kind}: {error}");
        assert!(matches!(a.try_write(b"x"), Err(TransportError::Closed)));
        assert!(matches!(a.flush(soon()), Err(TransportError::Closed)));
        a.wait(Interest::Write, soon()).unwrap();
        assert!(matches!(a.close(soon()), Err(TransportError::Closed)));
    }
}

#[test]
fn last_words_are_heard_by_a_side_that_only_writes() {
    for (kind, (mut a, mut b)) in both() {
        thread::scope(|scope| {
            scope.spawn(|| {
                // With much unread, a plain close would reset the connection.
                b.read_exact(&mut [0; 1000], soon()).unwrap();
                b.write_all(b"enough", soon()).unwrap();
                b.close(Instant::now() + Duration::from_secs(5)).unwrap();
                drop(b);
            });
            let block = vec![0; 1 << 20];
            let closed = loop {
                match a.try_write(&block) {
                    Ok(0) if a.has_received() => break None,
                    Ok(0) => a.wait(Interest::ReadOrWrite, soon()).unwrap(),
                    Ok(_) => {}
                    Err(error) => break Some(error),
                }
                let mut words = [0; 6];
                if a.try_read(&mut words).unwrap() == Some(6) {
                    assert_eq!(&words, b"enough", "{kind}");
                    drop(a);
                    return;
                }
            };
            let mut words = [0; 6];
            a.read_exact(&mut words, soon()).unwrap();
            assert_eq!(&words, b"enough", "{kind}: {closed:?}");
            drop(a);
        });
    }
}

#[test]
fn a_side_that_neither_reads_nor_writes_keeps_nobody_from_closing() {
    for (kind, (mut a, mut b)) in both() {
        let (tell, closed) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(move || {
                a.write_all(b"over", soon()).unwrap();
                let limit = Instant::now() + Duration::from_secs(600);
                tell.send(a.close(limit)).unwrap();
            });
            let outcome = closed.recv_timeout(Duration::from_secs(60));
            let mut words = [0; 4];
            b.read_exact(&mut words, soon()).unwrap();
            assert_eq!(&words, b"over", "{kind}");
            drop(b);
            outcome.expect(kind).unwrap();
        });
    }
}

#[test]
fn places_are_named() {
    let (a, b) = ends::tcp();
    assert!(
        a.describe().starts_with("tcp:127.0.0.1:"),
        "{}",
        a.describe()
    );
    assert!(
        b.describe().starts_with("tcp:127.0.0.1:"),
        "{}",
        b.describe()
    );
    assert!(ends::unix().0.describe().starts_with("unix:"));
}

/// Small and large parts, some of them empty, against all of the room there is.
#[test]
fn parts_arrive_in_order_and_whole() {
    let lengths = [0, 32, 16 << 10, 65_519, 100_000];
    for (kind, (mut a, mut b)) in both() {
        let bytes: Vec<u8> = (0..=250u8).cycle().take(100_007).collect();
        let mut sent = Vec::new();
        thread::scope(|scope| {
            let reader = scope.spawn(move || {
                let (mut got, mut buf) = (Vec::new(), vec![0; 1 << 16]);
                loop {
                    match b.try_read(&mut buf).unwrap() {
                        Some(0) => return got,
                        Some(n) => got.extend_from_slice(&buf[..n]),
                        None => b.wait(Interest::Read, soon()).unwrap(),
                    }
                }
            });
            for (first, second) in lengths.iter().flat_map(|a| lengths.map(|b| (*a, b))) {
                let parts = [&bytes[..first], &bytes[7..7 + second], b"end"];
                let all = parts.concat();
                let mut done = 0;
                while done < all.len() {
                    let mut skip = done;
                    let rest = parts.map(|part| {
                        let n = skip.min(part.len());
                        skip -= n;
                        &part[n..]
                    });
                    match a.try_write_parts(&rest).unwrap() {
                        0 => a.wait(Interest::Write, soon()).unwrap(),
                        n => done += n,
                    }
                }
                sent.extend_from_slice(&all);
            }
            a.close(soon()).unwrap();
            assert!(reader.join().unwrap() == sent, "{kind}");
        });
    }
}

#[test]
fn a_waker_ends_a_wait_and_so_does_whatever_the_other_side_does() {
    for (kind, (mut a, mut b)) in both() {
        let waker = Waker::new().unwrap();
        let read = Some(Interest::Read);
        let patience = Duration::from_millis(30);
        for interest in [None, read] {
            let began = Instant::now();
            // As a thread leaves it that raises it late: after another has lowered it.
            nix::unistd::write(&waker, &1u64.to_ne_bytes()).unwrap();
            let waited = a.wait_or(interest, &waker, began + patience);
            assert!(matches!(waited, Err(TransportError::TimedOut(_))), "{kind}");
            assert!(began.elapsed() >= patience, "{kind}");
            let mut stale = [PollFd::new(waker.as_fd(), PollFlags::POLLIN)];
            assert_eq!(
                poll(&mut stale, PollTimeout::ZERO),
                Ok(0),
                "it did not wait"
            );
            thread::scope(|scope| {
                scope.spawn(|| waker.raise());
                a.wait_or(interest, &waker, soon()).unwrap();
            });
            assert!(waker.lower(), "{kind}: it stays raised");
        }
        a.wait_or(Some(Interest::ReadOrWrite), &waker, soon())
            .unwrap();
        // Gathered bytes are sent during a wait for the waker alone.
        a.write_all(b"word", soon()).unwrap();
        assert!(a.wait_or(None, &waker, Instant::now()).is_err());
        b.read_exact(&mut [0; 4], soon()).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                b.write_all(b"word", soon()).unwrap();
                b.flush(soon()).unwrap();
            });
            a.wait_or(read, &waker, soon()).unwrap();
        });
        a.read_exact(&mut [0; 4], soon()).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| drop(b));
            a.wait_or(read, &waker, soon()).unwrap();
        });
        // A closed socket does not end a wait that is not for it.
        let waited = a.wait_or(None, &waker, Instant::now() + patience);
        assert!(matches!(waited, Err(TransportError::TimedOut(_))), "{kind}");
    }
}

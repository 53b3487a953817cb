//! A channel as a session's transport: writes of several parts, and waits that another thread ends.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vchan::{Channel, Format, Setup, local};
use vgpu_transport::{Awaited, Interest, Transport, TransportError, Waker};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn pair(format: Format, ring: usize) -> (Channel, Channel) {
    let (one, other) = UnixStream::pair().unwrap();
    let setup = Setup::new().format(format);
    let server = thread::spawn(move || local::serve_with(&setup, one, ring, soon()).unwrap());
    let client = local::connect_on(other, soon()).unwrap();
    (server.join().unwrap(), client)
}

#[test]
fn parts_arrive_in_order_and_whole_at_any_room_left() {
    let bytes: Vec<u8> = (0..=250u8).cycle().take(5000).collect();
    for format in [Format::Extended, Format::Classic] {
        let (mut from, mut to) = pair(format, 1024);
        let ring = from.outgoing_ring_bytes();
        let mut got = vec![0; ring];
        for fill in 0..=ring {
            // Of 33, 290 and 1523 bytes: known to fit, found to fit, and too long.
            for parts in [
                [&bytes[1..17], &[], &bytes[3..20]],
                [&[], &bytes[5..200], &bytes[100..195]],
                [&bytes[2..500], &bytes[1..1025], b"!"],
            ] {
                let whole = parts.concat();
                let left = ring - fill;
                from.write_all(&bytes[..fill], soon()).unwrap();
                let taken = from.try_write_parts(&parts).unwrap();
                assert_eq!(taken, left.min(whole.len()), "with {fill} bytes before");
                to.read_exact(&mut got[..fill], soon()).unwrap();
                assert_eq!(to.available().unwrap(), taken);
                to.read_exact(&mut got[..taken], soon()).unwrap();
                assert!(got[..taken] == whole[..taken], "with {fill} bytes before");
            }
        }
    }
}

#[test]
fn a_reader_never_sees_a_part_alone() {
    let (mut from, mut to) = pair(Format::Extended, 4096);
    thread::scope(|scope| {
        scope.spawn(move || {
            let (header, body) = ([1; 32], [2; 32]);
            for _ in 0..200_000 {
                while from.halves().1.room().unwrap() < 64 {
                    Transport::wait(&mut from, Interest::Write, soon()).unwrap();
                }
                assert_eq!(from.try_write_parts(&[&header, &body]).unwrap(), 64);
            }
            Transport::close(&mut from, soon()).unwrap();
        });
        let mut buf = [0; 4096];
        loop {
            match Transport::try_read(&mut to, &mut buf).unwrap() {
                Some(0) => break,
                Some(n) => assert!(n.is_multiple_of(64), "{n} bytes"),
                None => Transport::wait(&mut to, Interest::Read, soon()).unwrap(),
            }
        }
    });
}

#[test]
fn a_waker_ends_a_wait_and_so_does_whatever_the_other_side_does() {
    for format in [Format::Extended, Format::Classic] {
        let (mut one, mut other) = pair(format, 1024);
        let waker = Waker::new().unwrap();
        let mut full = 0;
        while let n @ 1.. = one.try_write(&[7; 1024]).unwrap() {
            full += n;
        }
        let interests = [
            None,
            Some(Interest::Read),
            Some(Interest::Write),
            Some(Interest::ReadOrWrite),
        ];
        let patience = Duration::from_millis(5);
        for interest in interests {
            let began = Instant::now();
            // As a thread leaves it that raises it late: after another has lowered it.
            nix::unistd::write(&waker, &1u64.to_ne_bytes()).unwrap();
            let waited = Transport::wait_or(&mut one, interest, &waker, began + patience);
            assert!(matches!(waited, Err(TransportError::TimedOut(_))));
            assert!(began.elapsed() >= patience);
            let mut stale = [PollFd::new(waker.as_fd(), PollFlags::POLLIN)];
            assert_eq!(
                poll(&mut stale, PollTimeout::ZERO),
                Ok(0),
                "it did not wait"
            );
            // Often enough for the wait to begin polling before it sleeps.
            for _ in 0..100 {
                thread::scope(|scope| {
                    scope.spawn(|| waker.raise());
                    Transport::wait_or(&mut one, interest, &waker, soon()).unwrap();
                });
                assert!(waker.is_raised(), "nothing else has happened");
                Transport::wait_or(&mut one, interest, &waker, Instant::now()).unwrap();
                assert!(waker.lower(), "it stays raised");
            }
        }
        thread::scope(|scope| {
            scope.spawn(|| other.write_all(b"x", soon()).unwrap());
            Transport::wait_or(&mut one, Some(Interest::Read), &waker, soon()).unwrap();
        });
        one.read_exact(&mut [0], soon()).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| other.read_exact(&mut vec![0; full], soon()).unwrap());
            Transport::wait_or(&mut one, Some(Interest::Write), &waker, soon()).unwrap();
        });
        thread::scope(|scope| {
            scope.spawn(|| drop(other));
            while one.try_read(&mut [0]).unwrap().is_none() {
                Transport::wait_or(&mut one, Some(Interest::Read), &waker, soon()).unwrap();
            }
        });
        assert!(!waker.is_raised());
    }
}

/// A flag of which no waker tells.
#[derive(Debug)]
struct Flag {
    up: Arc<AtomicBool>,
    waker: Waker,
}

impl Awaited for Flag {
    fn waker(&self) -> &Waker {
        &self.waker
    }

    fn has_come(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    fn arm(&mut self) {
        panic!("a timer looks for it");
    }

    fn nap(&self, _waited: Duration) -> Option<Duration> {
        Some(Duration::from_micros(200))
    }
}

#[test]
fn a_timer_ends_a_wait_without_a_waker_and_so_does_the_other_side() {
    for format in [Format::Extended, Format::Classic] {
        let (mut one, mut other) = pair(format, 1024);
        let up = Arc::new(AtomicBool::new(false));
        let mut flag = Flag {
            up: Arc::clone(&up),
            waker: Waker::new().unwrap(),
        };
        for interest in [None, Some(Interest::Read), Some(Interest::ReadOrWrite)] {
            while one.try_write(&[7; 1024]).unwrap() > 0 {}
            let patience = Instant::now() + Duration::from_millis(5);
            let waited = Transport::wait_with(&mut one, interest, &mut flag, patience);
            assert!(matches!(waited, Err(TransportError::TimedOut(_))));
            assert!(Instant::now() >= patience);
            thread::scope(|scope| {
                scope.spawn(|| {
                    thread::sleep(Duration::from_millis(3));
                    up.store(true, Ordering::Release);
                });
                Transport::wait_with(&mut one, interest, &mut flag, soon()).unwrap();
            });
            assert!(
                up.swap(false, Ordering::AcqRel),
                "nothing else has happened"
            );
        }
        for _ in 0..100 {
            thread::scope(|scope| {
                scope.spawn(|| other.write_all(b"x", soon()).unwrap());
                Transport::wait_with(&mut one, Some(Interest::Read), &mut flag, soon()).unwrap();
            });
            one.read_exact(&mut [0], soon()).unwrap();
        }
        drop(other);
        while one.try_read(&mut [0]).unwrap().is_none() {
            Transport::wait_with(&mut one, Some(Interest::Read), &mut flag, soon()).unwrap();
        }
    }
}

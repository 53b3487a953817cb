//! One thread between two channels: waiting for either, and copying from ring to ring.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use vchan::two_channels::{Side, TwoChannels};
use vchan::{Channel, Error, Interest, local};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn pair(ring: usize) -> (Channel, Channel) {
    let (one, other) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || local::serve_on(one, ring, soon()).unwrap());
    let client = local::connect_on(other, soon()).unwrap();
    (server.join().unwrap(), client)
}

fn noise(n: usize) -> Vec<u8> {
    (0..u32::try_from(n).unwrap())
        .map(|i| (i.wrapping_mul(0x9E37_79B9) >> 24) as u8)
        .collect()
}

/// Passes everything on in both directions until both ends have closed; never waits for one side
/// alone.
fn relay(mut left: Channel, mut right: Channel) -> (u64, u64) {
    let mut both = TwoChannels::new();
    let (mut forth, mut back) = (false, false);
    while !(forth && back) {
        let moved =
            step(&mut left, &mut right, &mut forth) + step(&mut right, &mut left, &mut back);
        if moved > 0 || (forth && back) {
            continue;
        }
        let sides = [
            Side::Channel(&mut left, Interest::Read),
            Side::Channel(&mut right, Interest::Read),
        ];
        // Waits for room in short turns, which this test can afford.
        match both.wait(sides, Instant::now() + Duration::from_millis(1)) {
            Ok(()) | Err(Error::TimedOut(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    (left.stats().bytes_read, right.stats().bytes_read)
}

fn step(from: &mut Channel, to: &mut Channel, over: &mut bool) -> usize {
    if *over {
        return 0;
    }
    let Some(bytes) = from.try_peek(1).unwrap() else {
        return 0;
    };
    if bytes.is_empty() {
        *over = true;
        return 0;
    }
    let Some(mut room) = to.try_reserve(1).unwrap() else {
        return 0;
    };
    let n = room.copy_from_peer(bytes);
    to.commit(n).unwrap();
    from.consume(n).unwrap();
    n
}

#[test]
fn two_streams_pass_through_rings_of_any_sizes() {
    // Sizes that wrap at different places.
    for (left, right) in [(4096, 4096), (4096, 1 << 16), (1 << 17, 2048), (1024, 1024)] {
        let (mut one, left_end) = pair(left);
        let (right_end, mut other) = pair(right);
        let (there, back) = (noise(300_007), noise(123_457));
        let middle = thread::spawn(move || relay(left_end, right_end));
        let echo = {
            let (there, back) = (there.clone(), back.clone());
            thread::spawn(move || {
                let mut got = vec![0; there.len()];
                other.read_exact(&mut got, soon()).unwrap();
                assert!(got == there, "rings of {left} and {right}");
                other.write_all(&back, soon()).unwrap();
                other.close(soon()).unwrap();
            })
        };
        one.write_all(&there, soon()).unwrap();
        let mut got = vec![0; back.len()];
        one.read_exact(&mut got, soon()).unwrap();
        assert!(got == back, "rings of {left} and {right}");
        one.close(soon()).unwrap();
        echo.join().unwrap();
        let passed = middle.join().unwrap();
        assert_eq!(passed, (there.len() as u64, back.len() as u64));
    }
}

#[test]
fn a_part_copies_what_there_is_and_fits() {
    let (mut one, mut from) = pair(4096);
    let (mut to, mut other) = pair(4096);
    one.write_all(&noise(100), soon()).unwrap();
    let bytes = from.peek(100, soon()).unwrap();
    let mut room = to.reserve(64, soon()).unwrap().up_to(64);
    assert_eq!(room.copy_from_peer(bytes.after(90)), 10);
    assert_eq!(room.copy_from_peer(bytes.up_to(0)), 0);
    assert_eq!(room.copy_from_peer(bytes), 64);
    to.commit(64).unwrap();
    let mut got = [0; 64];
    other.read_exact(&mut got, soon()).unwrap();
    assert_eq!(got[..], noise(64));
}

#[test]
fn either_side_ends_the_wait() {
    let (mut one, mut left) = pair(4096);
    let (mut right, mut other) = pair(4096);
    let mut both = TwoChannels::new();
    let mut wait = |left: &mut Channel, right: &mut Channel, patience| {
        let sides = [
            Side::Channel(left, Interest::Read),
            Side::Channel(right, Interest::Read),
        ];
        both.wait(sides, Instant::now() + patience)
    };
    let (brief, long) = (Duration::from_millis(5), Duration::from_secs(60));
    let idle = wait(&mut left, &mut right, brief).unwrap_err();
    assert!(matches!(idle, Error::TimedOut(_)), "{idle}");
    // From another thread, so that the wait really sleeps, often enough for it to begin polling.
    for round in 0..200 {
        thread::scope(|scope| {
            let writer = match round % 2 {
                0 => &mut one,
                _ => &mut other,
            };
            scope.spawn(|| writer.write_all(b"x", soon()).unwrap());
            while left.available().unwrap() + right.available().unwrap() == 0 {
                wait(&mut left, &mut right, long).unwrap();
            }
        });
        let from = if round % 2 == 0 {
            &mut left
        } else {
            &mut right
        };
        from.read_exact(&mut [0], soon()).unwrap();
    }
    // The end of one side ends the wait too.
    thread::scope(|scope| {
        scope.spawn(|| drop(other));
        while !right.peer_gone().unwrap() {
            wait(&mut left, &mut right, long).unwrap();
        }
    });
    assert_eq!(right.try_read(&mut [0]).unwrap(), Some(0));
}

#[test]
fn room_is_waited_for_beside_data() {
    let (_one, mut left) = pair(4096);
    let (mut right, mut other) = pair(1024);
    let full = right.try_write(&[7; 4096]).unwrap();
    assert_eq!(right.try_write(&[7]).unwrap(), 0);
    let mut both = TwoChannels::new();
    thread::scope(|scope| {
        scope.spawn(|| other.read_exact(&mut vec![0; full], soon()).unwrap());
        while right.try_write(&[7]).unwrap() == 0 {
            let sides = [
                Side::Channel(&mut left, Interest::Read),
                Side::Channel(&mut right, Interest::ReadOrWrite),
            ];
            both.wait(sides, soon()).unwrap();
        }
    });
}

#[test]
fn a_socket_beside_a_channel() {
    let (mut one, mut left) = pair(4096);
    let (mut near, mut far) = UnixStream::pair().unwrap();
    let mut both = TwoChannels::new();
    let mut wait = |left: &mut Channel, near: &UnixStream, interest, patience| {
        let sides = [
            Side::Channel(left, Interest::Read),
            Side::Descriptor(near.as_fd(), interest),
        ];
        both.wait(sides, Instant::now() + patience)
    };
    let (brief, long) = (Duration::from_millis(5), Duration::from_secs(60));
    let idle = wait(&mut left, &near, Interest::Read, brief).unwrap_err();
    assert!(matches!(idle, Error::TimedOut(_)), "{idle}");
    wait(&mut left, &near, Interest::ReadOrWrite, long).unwrap();
    far.write_all(b"s").unwrap();
    wait(&mut left, &near, Interest::Read, long).unwrap();
    near.read_exact(&mut [0]).unwrap();
    one.write_all(b"c", soon()).unwrap();
    wait(&mut left, &near, Interest::Read, long).unwrap();
    left.read_exact(&mut [0], soon()).unwrap();
    drop(far);
    wait(&mut left, &near, Interest::Read, long).unwrap();
    let nobody = [Side::Nothing, Side::Nothing];
    let idle = TwoChannels::new().wait(nobody, Instant::now() + brief);
    assert!(matches!(idle, Err(Error::TimedOut(_))));
}

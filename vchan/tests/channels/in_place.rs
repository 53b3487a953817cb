//! Using the ring's bytes where they lie: `peek`, `consume`, `reserve`, `commit`; file
//! [`descriptors`] straight to and from the ring; and what a [`hostile`] peer can do to it.

mod descriptors;
mod hostile;

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vchan::{Channel, Error, Format, RingSizes, Setup, local};

use crate::liar::{short, soon};

/// Two honest ends.
fn pair(rings: impl Into<RingSizes>) -> (Channel, Channel) {
    pair_from(Format::Extended, rings, 0)
}

/// Two honest ends whose indexes start at `first_index`.
fn pair_from(format: Format, rings: impl Into<RingSizes>, first_index: u32) -> (Channel, Channel) {
    let rings = rings.into();
    let setup = Setup::new().format(format).first_index(first_index);
    let (one, other) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || local::serve_with(&setup, one, rings, soon()).unwrap());
    let client = local::connect_on(other, soon()).unwrap();
    assert_eq!(client.format(), format);
    (server.join().unwrap(), client)
}

/// Pseudo-random bytes, the same in every run.
fn noise(n: usize) -> Vec<u8> {
    (0..u32::try_from(n).unwrap())
        .map(|i| (i.wrapping_mul(0x9E37_79B9) >> 24) as u8)
        .collect()
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % n as u64).unwrap()
    }
}

/// Random steps of both kinds of access on both ends, checked against a queue.
#[test]
fn any_mixture_of_copies_and_access_in_place_is_one_stream() {
    let mut random = Random(0x5EED_0001);
    for (format, rings, start) in [
        (Format::Classic, 1024, 0),
        (Format::Extended, 4096, 0xFFFF_FF01),
        (Format::Classic, 4096, 0x7FFF_FF01),
        (Format::Extended, 2048, 0x7FFF_FF0D),
    ] {
        let sizes = RingSizes {
            server_to_client: rings,
            client_to_server: rings + 1,
        };
        let (mut one, mut other) = pair_from(format, sizes, start);
        for _ in 0..2 {
            let size = one.outgoing_ring_bytes();
            let mut queue = VecDeque::new();
            for _ in 0..4000 {
                let ask = random.below(size + 1);
                match random.below(5) {
                    0 => {
                        let data = noise(ask);
                        let n = one.try_write(&data).unwrap();
                        assert_eq!(n, ask.min(size - queue.len()));
                        queue.extend(&data[..n]);
                    }
                    1 => {
                        let free = size - queue.len();
                        let Some(mut room) = one.try_reserve(0).unwrap() else {
                            assert_eq!(free, 0);
                            continue;
                        };
                        assert_eq!(room.len(), free);
                        let skip = random.below(9).min(free);
                        let data = noise(skip);
                        room.reborrow().copy_from(&data);
                        let mut rest = room.after(skip).up_to(ask);
                        let mut word = 0x0123_4567_89AB_CDEF_u64 ^ ask as u64;
                        let mut words = Vec::new();
                        let filled = rest.fill_words(|| {
                            word = word.rotate_left(9);
                            words.extend(word.to_ne_bytes());
                            word
                        });
                        assert_eq!((filled, words.len()), (rest.len() / 8, filled * 8));
                        one.commit(skip).unwrap();
                        one.commit(words.len()).unwrap();
                        queue.extend(data.iter().chain(&words));
                    }
                    2 => {
                        let mut buf = vec![0; ask];
                        let n = other.try_read(&mut buf).unwrap().unwrap_or(0);
                        assert_eq!(n, ask.min(queue.len()));
                        assert!(queue.drain(..n).eq(buf[..n].iter().copied()));
                    }
                    _ => {
                        let Some(bytes) = other.try_peek(0).unwrap() else {
                            assert!(queue.is_empty());
                            continue;
                        };
                        let expected = queue.make_contiguous();
                        assert_eq!(bytes.len(), expected.len());
                        let skip = random.below(9);
                        let (view, expected) = (
                            bytes.after(skip).up_to(ask),
                            &expected[skip.min(expected.len())..],
                        );
                        let expected = &expected[..ask.min(expected.len())];
                        let mut buf = vec![0; view.len() + 3];
                        assert_eq!(view.copy_to(&mut buf), expected.len());
                        assert_eq!(&buf[..view.len()], expected);
                        let mut words = expected
                            .chunks_exact(8)
                            .map(|word| u64::from_ne_bytes(word.try_into().unwrap()));
                        let seen = view.for_each_word(|word| assert_eq!(Some(word), words.next()));
                        assert_eq!((seen, words.next()), (view.len() / 8, None));
                        let at = random.below(size);
                        let there = expected.get(at..at + 8);
                        assert_eq!(view.array::<8>(at).as_ref().map(|a| &a[..]), there);
                        let stretches = view.as_ptrs().map(|part| part.len());
                        assert_eq!(stretches.iter().sum::<usize>(), view.len());
                        let n = random.below(bytes.len() + 1);
                        other.consume(n).unwrap();
                        queue.drain(..n);
                    }
                }
            }
            std::mem::swap(&mut one, &mut other);
        }
    }
}

#[test]
fn no_more_can_be_passed_on_than_was_lent() {
    let too_many = |outcome: vchan::Result<()>, expected: usize| match outcome {
        Err(Error::TooMany { most, .. }) => assert_eq!(most, expected),
        other => panic!("expected TooMany, got {other:?}"),
    };
    let (mut one, mut other) = pair(4096);
    too_many(one.commit(1), 0);
    too_many(other.consume(1), 0);
    one.write_all(b"0123456789", soon()).unwrap();
    // Ten bytes are there, but none has been peeked at.
    too_many(other.consume(1), 0);
    assert_eq!(other.peek(1, soon()).unwrap().len(), 10);
    one.write_all(b"more", soon()).unwrap();
    too_many(other.consume(11), 10);
    too_many(other.consume(usize::MAX), 10);
    other.consume(0).unwrap();
    other.consume(4).unwrap();
    too_many(other.consume(7), 6);
    // A copying read takes from the peeked bytes, and may go beyond them.
    other.read(&mut [0; 5], soon()).unwrap();
    too_many(other.consume(2), 1);
    other.read(&mut [0; 5], soon()).unwrap();
    too_many(other.consume(1), 0);

    assert_eq!(one.reserve(1, soon()).unwrap().len(), 4096);
    one.write_all(&[0; 4000], soon()).unwrap();
    too_many(one.commit(97), 96);
    one.commit(96).unwrap();
    assert!(one.try_reserve(1).unwrap().is_none());

    for outcome in [
        one.reserve(4097, soon()).map(drop),
        one.try_reserve(usize::MAX).map(drop),
        other.peek(4097, soon()).map(drop),
        other.try_peek(usize::MAX).map(drop),
    ] {
        too_many(outcome, 4096);
    }
    let error = other.consume(usize::MAX).unwrap_err();
    assert!(!error.advice().is_empty());
    assert_eq!(
        io::Error::from(error).kind(),
        io::ErrorKind::InvalidInput,
        "it is the caller's mistake"
    );
}

#[test]
fn waits_for_as_much_as_was_asked_for() {
    for format in [Format::Classic, Format::Extended] {
        waits_in(format);
    }
}

fn waits_in(format: Format) {
    let (mut one, mut other) = pair_from(format, 4096, 0x7FFF_FF01);
    let writer = thread::spawn(move || {
        for chunk in noise(1000).chunks(100) {
            thread::sleep(Duration::from_millis(3));
            one.write_all(chunk, soon()).unwrap();
        }
        one
    });
    let bytes = other.peek(1000, soon()).unwrap();
    let mut copy = vec![0; 1000];
    assert_eq!((bytes.len(), bytes.copy_to(&mut copy)), (1000, 1000));
    assert_eq!(copy, noise(1000));
    let mut one = writer.join().unwrap();
    assert!(matches!(other.peek(1001, short()), Err(Error::TimedOut(_))));

    // And for as much room.
    one.write_all(&noise(3000), soon()).unwrap();
    assert!(matches!(one.reserve(97, short()), Err(Error::TimedOut(_))));
    let reader = thread::spawn(move || {
        for _ in 0..40 {
            thread::sleep(Duration::from_millis(1));
            other.read(&mut [0; 100], soon()).unwrap();
        }
        other
    });
    assert_eq!(one.reserve(4096, soon()).unwrap().len(), 4096);
    drop(reader.join().unwrap());
}

#[test]
fn a_poll_loop_hears_when_there_is_something() {
    let (mut one, mut other) = pair(4096);
    let readable = |channel: &Channel, ms: u16| {
        let mut fds = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(ms)).unwrap() == 1
    };
    // The first call acknowledges the event of the connection itself.
    assert!(other.try_peek(1).unwrap().is_none());
    one.write_all(b"x", soon()).unwrap();
    assert!(readable(&other, 60_000));
    assert_eq!(other.try_peek(1).unwrap().unwrap().len(), 1);
    other.consume(1).unwrap();
    assert!(other.try_peek(1).unwrap().is_none());

    let room = one.reserve(4096, soon()).unwrap().len();
    one.commit(room).unwrap();
    assert!(one.try_reserve(1).unwrap().is_none());
    assert_eq!(other.peek(4096, soon()).unwrap().len(), 4096);
    other.consume(100).unwrap();
    assert!(readable(&one, 60_000));
    assert_eq!(one.try_reserve(1).unwrap().unwrap().len(), 100);
}

#[test]
fn what_was_written_before_a_close_can_be_peeked_at() {
    let (mut one, mut other) = pair(4096);
    one.write_all(b"last words", soon()).unwrap();
    assert_eq!(other.peek(1, soon()).unwrap().len(), 10);
    drop(one);
    // Fewer than asked for are the rest of the stream.
    let bytes = other.peek(100, soon()).unwrap();
    assert_eq!(bytes.array(0), Some(*b"last words"));
    assert_eq!(bytes.array::<11>(0), None);
    other.consume(5).unwrap();
    assert_eq!(other.peek(100, soon()).unwrap().array(0), Some(*b"words"));
    other.consume(5).unwrap();
    for _ in 0..2 {
        assert!(other.peek(1, soon()).unwrap().is_empty());
        assert!(other.try_peek(1).unwrap().unwrap().is_empty());
        assert!(matches!(
            other.reserve(1, soon()),
            Err(Error::PeerClosed { .. })
        ));
    }

    // The end comes while we wait for more than there is.
    let (mut one, mut other) = pair(4096);
    let closer = thread::spawn(move || {
        one.write_all(b"some", soon()).unwrap();
        thread::sleep(Duration::from_millis(20));
    });
    assert_eq!(other.peek(100, soon()).unwrap().len(), 4);
    closer.join().unwrap();

    // A view stays usable when our own other half closes; consuming then fails.
    let (mut one, other) = pair(4096);
    one.write_all(b"bytes", soon()).unwrap();
    let (mut reader, mut writer) = other.split().unwrap();
    let bytes = reader.peek(1, soon()).unwrap();
    writer.close_now(soon()).unwrap();
    assert_eq!(bytes.array(0), Some(*b"bytes"));
    assert!(matches!(reader.consume(5), Err(Error::Closed)));
    assert!(matches!(reader.peek(1, soon()), Err(Error::Closed)));
}

#[test]
fn two_threads_may_fill_two_parts() {
    let (mut one, mut other) = pair_from(Format::Extended, 4096, 1000);
    let mut room = one.reserve(4096, soon()).unwrap();
    let mut begin = room.reborrow().up_to(1001);
    begin.copy_from(&[1; 1001]);
    thread::scope(|scope| {
        scope.spawn(|| room.after(1001).copy_from(&[2; 4096]));
    });
    one.commit(4096).unwrap();
    let bytes = other.peek(4096, soon()).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| assert_eq!(bytes.up_to(1001).array(0), Some([1; 1001])));
        scope.spawn(|| assert_eq!(bytes.after(1001).array(0), Some([2; 3095])));
    });
}

#[test]
fn one_thread_echoes_in_place() {
    let (mut one, mut other) = pair_from(Format::Classic, 4096, 4000);
    one.write_all(&noise(3000), soon()).unwrap();
    let (reader, writer) = other.halves();
    let bytes = reader.peek(3000, soon()).unwrap();
    let mut room = writer.reserve(3000, soon()).unwrap();
    let mut page = [0; 512];
    let mut moved = 0;
    while moved < bytes.len() {
        let n = bytes.after(moved).copy_to(&mut page);
        room.reborrow().after(moved).copy_from(&page[..n]);
        moved += n;
    }
    writer.commit(3000).unwrap();
    reader.consume(3000).unwrap();
    let mut copy = vec![0; 3000];
    assert_eq!(one.peek(3000, soon()).unwrap().copy_to(&mut copy), 3000);
    assert_eq!(copy, noise(3000));
}

//! Bytes arrive in order, whatever the sizes and whichever side waits.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use vchan::Interest;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::{Sequence, at, check, read_exact, soon, write_all};
use vchan::Channel;
use vchan::error::Error;

/// Sends every byte back until the end of the stream.
pub(super) fn echo(mut channel: Channel) -> Result<(), String> {
    let mut buf = vec![0; 1 << 16];
    loop {
        match at("read", channel.read(&mut buf, soon()))? {
            0 => return Ok(()),
            n => write_all(&mut channel, &buf[..n])?,
        }
    }
}

fn echoed(channel: &mut Channel, data: &[u8]) -> Result<(), String> {
    let mut back = vec![0; data.len()];
    write_all(channel, data)?;
    read_exact(channel, &mut back)?;
    check(back == data, || {
        format!("{} bytes came back changed", data.len())
    })
}

/// The ring this end writes, in bytes.
fn smaller_ring(channel: &Channel) -> usize {
    let sizes = channel.ring_sizes();
    sizes.client_to_server.min(sizes.server_to_client)
}

pub(super) fn every_size(mut channel: Channel) -> Result<(), String> {
    let mut sequence = Sequence::new(1);
    for len in 0..=smaller_ring(&channel) + 1 {
        echoed(&mut channel, &sequence.bytes(len))?;
    }
    Ok(())
}

pub(super) fn edge_sizes(mut channel: Channel) -> Result<(), String> {
    let mut sequence = Sequence::new(2);
    let ring = smaller_ring(&channel);
    for len in [
        0,
        1,
        2,
        3,
        4095,
        4096,
        4097,
        ring / 4,
        ring / 4 + 1,
        ring - 1,
        ring,
        ring + 1,
    ] {
        echoed(&mut channel, &sequence.bytes(len))?;
        // Shifts the start of the next size.
        echoed(&mut channel, &sequence.bytes(len % 61 + 1))?;
    }
    Ok(())
}

/// Bytes that each end sends in the cases below.
const VOLUME: usize = 3 << 20;

/// Writes and reads from two threads, in pieces of random sizes; both ends send the same stream.
pub(super) fn both_ways(channel: Channel) -> Result<(), String> {
    let (mut reader, mut writer) = at("split", channel.split())?;
    let sender = std::thread::spawn(move || {
        let (mut data, mut sizes) = (Sequence::new(3), Sequence::new(4));
        let mut left = VOLUME;
        while left > 0 {
            let bytes = data.bytes((sizes.up_to(2500) * 8).min(left));
            at("write", writer.write_all(&bytes, soon()))?;
            left -= bytes.len();
        }
        at("drain", writer.drain(soon()))
    });
    let (mut data, mut sizes) = (Sequence::new(3), Sequence::new(5));
    let (mut buf, mut received, mut expected) = (vec![0; 20_000], 0, Vec::new());
    while received < VOLUME {
        let most = sizes.up_to(buf.len());
        let n = at("read", reader.read(&mut buf[..most], soon()))?;
        check(n > 0, || format!("stream ended after {received} bytes"))?;
        while expected.len() < n {
            expected.extend(data.next().to_le_bytes());
        }
        check(expected[..n] == buf[..n], || {
            format!("wrong bytes after {received}")
        })?;
        expected.drain(..n);
        received += n;
    }
    sender
        .join()
        .map_err(|_| "the writing thread panicked".to_owned())?
}

/// The same from one thread: a side that waits to write also reads.
pub(super) fn both_ways_polling(mut channel: Channel) -> Result<(), String> {
    let outgoing = Sequence::new(6).bytes(VOLUME);
    let (mut sent, mut received) = (0, 0);
    let mut sizes = Sequence::new(7);
    let mut buf = vec![0; 20_000];
    while sent < VOLUME || received < VOLUME {
        let most = sizes.up_to(buf.len());
        let mut moved = 0;
        if sent < VOLUME {
            let end = VOLUME.min(sent + most);
            moved += at("try_write", channel.try_write(&outgoing[sent..end]))?;
            sent += moved;
        }
        if received < VOLUME {
            match at("try_read", channel.try_read(&mut buf[..most]))? {
                Some(0) => return Err(format!("stream ended after {received} bytes")),
                Some(n) => {
                    let expected = &outgoing[received..received + n];
                    check(expected == &buf[..n], || {
                        format!("wrong bytes after {received}")
                    })?;
                    received += n;
                    moved += n;
                }
                None => {}
            }
        }
        if moved == 0 {
            let interest = if sent < VOLUME {
                Interest::ReadOrWrite
            } else {
                Interest::Read
            };
            at("wait", channel.wait(interest, soon()))?;
        }
    }
    at("drain", channel.drain(soon()))
}

/// Counterpart of [`would_block`]: answers a byte, lets the ring fill, then reads up to the end
/// mark.
pub(super) fn answer_when_full(mut channel: Channel) -> Result<(), String> {
    let mut byte = [0];
    read_exact(&mut channel, &mut byte)?;
    write_all(&mut channel, b"x")?;
    let ring = channel.ring_sizes().client_to_server;
    while at("available", channel.available())? < ring {
        std::thread::sleep(Duration::from_millis(1));
    }
    // The client may still be between its last write that fitted and the one that does not: room
    // made now lets more of the filling through, so only the mark shows where it ends.
    let mut filling = 0;
    loop {
        read_exact(&mut channel, &mut byte)?;
        match byte {
            [b'+'] => break,
            [0x5A] => filling += 1,
            [other] => return Err(format!("byte {other:#04x} after {filling} of the filling")),
        }
    }
    check(filling >= ring, || {
        format!("only {filling} bytes came from a full ring of {ring}")
    })
}

/// `try_*` calls report that they would block, and the descriptor becomes readable when they no
/// longer would.
pub(super) fn would_block(mut channel: Channel) -> Result<(), String> {
    let mut byte = [0];
    check(
        at("try_read", channel.try_read(&mut byte))?.is_none(),
        || "try_read found something in an empty ring".to_owned(),
    )?;
    check(
        at("try_read", channel.try_read(&mut []))? == Some(0),
        || "try_read into nothing is not 0".to_owned(),
    )?;
    write_all(&mut channel, b"r")?;
    let answered = poll_until(&mut channel, |channel| {
        at("try_read", channel.try_read(&mut byte)).map(|n| n == Some(1))
    });
    answered?;
    check(byte == *b"x", || "the answer is wrong".to_owned())?;

    let chunk = [0x5A; 1000];
    while at("try_write", channel.try_write(&chunk))? > 0 {}
    poll_until(&mut channel, |channel| {
        at("try_write", channel.try_write(b"+")).map(|n| n == 1)
    })?;
    at("drain", channel.drain(soon()))
}

/// Calls `attempt` again each time the channel's descriptor is readable.
fn poll_until(
    channel: &mut Channel,
    mut attempt: impl FnMut(&mut Channel) -> Result<bool, String>,
) -> Result<(), String> {
    let deadline = soon();
    while !attempt(channel)? {
        let readable =
            is_readable_by(channel, deadline).map_err(|error| format!("poll: {error}"))?;
        check(readable, || {
            "the descriptor never became readable".to_owned()
        })?;
    }
    Ok(())
}

/// Counterpart of [`deadlines`].
pub(super) fn answer_late(mut channel: Channel) -> Result<(), String> {
    let mut go = [0];
    read_exact(&mut channel, &mut go)?;
    write_all(&mut channel, b"1")?;
    let mut all = vec![0; channel.ring_sizes().client_to_server + 1];
    // Starts to read only once the ring has been full for a while.
    while at("available", channel.available())? + 1 < all.len() {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(200));
    read_exact(&mut channel, &mut all)?;
    write_all(&mut channel, b"2")
}

/// Waits end at their deadline, and the channel stays usable.
pub(super) fn deadlines(mut channel: Channel) -> Result<(), String> {
    let short = || Instant::now() + Duration::from_millis(50);
    let timed_out = |outcome: vchan::Result<()>| match outcome {
        Err(Error::TimedOut(_)) => Ok(()),
        other => Err(format!("expected a time-out, got {other:?}")),
    };
    let mut byte = [0];
    timed_out(channel.read(&mut byte, short()).map(drop))?;
    timed_out(channel.read(&mut byte, Instant::now()).map(drop))?;
    timed_out(channel.wait(Interest::Read, short()))?;
    write_all(&mut channel, b"g")?;
    read_exact(&mut channel, &mut byte)?;

    let ring = channel.ring_sizes().client_to_server;
    write_all(&mut channel, &vec![1; ring])?;
    timed_out(channel.write_all(b"+", short()))?;
    timed_out(channel.drain(short()))?;
    write_all(&mut channel, b"+")?;
    read_exact(&mut channel, &mut byte)?;
    check(byte == *b"2", || "the second answer is wrong".to_owned())
}

/// A waiting end goes to sleep and stays asleep.
pub(super) fn idle(mut channel: Channel) -> Result<(), String> {
    echoed(&mut channel, b"hello")?;
    let before = channel.stats();
    let outcome = channel.wait(Interest::Read, Instant::now() + Duration::from_millis(500));
    check(matches!(outcome, Err(Error::TimedOut(_))), || {
        format!("wait: {outcome:?}")
    })?;
    let after = channel.stats();
    let (sleeps, events) = (
        after.sleeps - before.sleeps,
        after.events_received - before.events_received,
    );
    check(sleeps <= 3 && events <= 2, || {
        format!("an idle end slept {sleeps} times and was woken {events} times")
    })
}

/// Waits until the channel's descriptor is readable; false if `deadline` passes first.
fn is_readable_by(channel: &Channel, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut fds, Some(TimeSpec::from_duration(left)), None) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        }
    }
}

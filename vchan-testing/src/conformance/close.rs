//! Ends of streams: no byte written is lost, and nobody waits for a dead peer.

use std::time::Duration;

use super::{Sequence, at, check, expect_end, read_exact, soon, write_all};
use vchan::Channel;
use vchan::error::Error;

/// The bytes that the cases below send: a full ring plus an odd number.
fn payload(channel: &Channel) -> Vec<u8> {
    let sizes = channel.ring_sizes();
    Sequence::new(11).bytes(sizes.client_to_server.min(sizes.server_to_client) - 3)
}

pub(super) fn write_and_drop(mut channel: Channel) -> Result<(), String> {
    let payload = payload(&channel);
    write_all(&mut channel, &payload)
}

pub(super) fn read_to_end(mut channel: Channel) -> Result<(), String> {
    let expected = payload(&channel);
    let mut received = vec![0; expected.len()];
    read_exact(&mut channel, &mut received)?;
    check(received == expected, || "wrong bytes".to_owned())?;
    expect_end(&mut channel)?;
    // The end stays the end, also for calls that do not wait.
    expect_end(&mut channel)?;
    check(
        at("try_read", channel.try_read(&mut [0; 8]))? == Some(0),
        || "try_read after the end is not 0".to_owned(),
    )?;
    check(
        matches!(channel.try_write(b"x"), Err(Error::PeerClosed { .. })),
        || "a write to a closed peer succeeded".to_owned(),
    )
}

pub(super) fn write_and_close(mut channel: Channel) -> Result<(), String> {
    let payload = payload(&channel);
    write_all(&mut channel, &payload)?;
    at("close", channel.close(soon()))?;
    at("second close", channel.close(soon()))?;
    check(
        matches!(channel.try_read(&mut [0; 1]), Err(Error::Closed)),
        || "a closed channel can be read".to_owned(),
    )?;
    check(
        matches!(channel.try_write(b"x"), Err(Error::Closed)),
        || "a closed channel can be written".to_owned(),
    )
}

pub(super) fn read_slowly(mut channel: Channel) -> Result<(), String> {
    std::thread::sleep(Duration::from_millis(150));
    read_to_end_in_pieces(&mut channel)
}

fn read_to_end_in_pieces(channel: &mut Channel) -> Result<(), String> {
    let expected = payload(channel);
    let mut received = Vec::new();
    let mut buf = [0; 700];
    loop {
        match at("read", channel.read(&mut buf, soon()))? {
            0 => break,
            n => received.extend_from_slice(&buf[..n]),
        }
    }
    check(received == expected, || {
        format!("{} bytes arrived of {}", received.len(), expected.len())
    })
}

/// Both ends write and close at the same time; neither reads.
pub(super) fn write_some_and_close(mut channel: Channel) -> Result<(), String> {
    write_all(&mut channel, &[7; 100])?;
    match channel.close(soon()) {
        // The side that closes second may find the first gone without having read.
        Ok(()) | Err(Error::PeerClosed { .. }) => Ok(()),
        Err(error) => Err(format!("close: {error}")),
    }
}

/// Goes away once the peer has filled the ring.
pub(super) fn leave_unread(mut channel: Channel) -> Result<(), String> {
    let ring = channel.incoming_ring_bytes();
    while at("available", channel.available())? < ring {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(50));
    Ok(())
}

/// Waits for room that never comes, until the peer leaves.
pub(super) fn blocked_writer(mut channel: Channel) -> Result<(), String> {
    match channel.write_all(&vec![1; 3 << 20], soon()) {
        Err(Error::PeerClosed { unread }) => check(unread > 0, || {
            "the peer is said to have read everything".to_owned()
        }),
        other => Err(format!("a write to a peer that left ended with {other:?}")),
    }
}

/// One half closes while the other waits.
pub(super) fn close_other_half(channel: Channel) -> Result<(), String> {
    let (mut reader, writer) = at("split", channel.split())?;
    let waiting = std::thread::spawn(move || reader.read(&mut [0; 1], soon()));
    std::thread::sleep(Duration::from_millis(50));
    at("close", writer.close(soon()))?;
    match waiting
        .join()
        .map_err(|_| "the reading thread panicked".to_owned())?
    {
        Err(Error::Closed) => Ok(()),
        other => Err(format!("the waiting half got {other:?}")),
    }
}

pub(super) fn expect_only_end(mut channel: Channel) -> Result<(), String> {
    expect_end(&mut channel)
}

/// Writes, does not close, and dies.
pub(super) fn die_writing(mut channel: Channel) -> Result<(), String> {
    let payload = payload(&channel);
    write_all(&mut channel, &payload)?;
    // The peer reports that it waits; then the end comes without a close.
    read_exact(&mut channel, &mut [0])?;
    std::thread::sleep(Duration::from_millis(50));
    std::process::abort();
}

/// Receives the dead peer's bytes, then the end, in every call.
pub(super) fn survive(mut channel: Channel) -> Result<(), String> {
    let expected = payload(&channel);
    let mut received = vec![0; expected.len()];
    read_exact(&mut channel, &mut received)?;
    check(received == expected, || "wrong bytes".to_owned())?;
    write_all(&mut channel, b"!")?;
    expect_end(&mut channel)?;
    match channel.write_all(&[0; 1 << 17], soon()) {
        Err(Error::PeerClosed { .. }) => {}
        other => return Err(format!("a write to a dead peer ended with {other:?}")),
    }
    // Whether the last byte was read before the death is a race; a hang would be a failure.
    match channel.close(soon()) {
        Ok(()) | Err(Error::PeerClosed { .. }) => Ok(()),
        Err(error) => Err(format!("close: {error}")),
    }
}

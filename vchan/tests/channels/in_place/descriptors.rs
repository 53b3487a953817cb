//! File descriptors straight to and from the ring.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{pipe, pipe2};
use vchan::Channel;

use super::{noise, pair};
use crate::liar::{short, soon};

/// A file, through the ring, into `output`, whose other end, if it has one, `drain` reads and
/// checks. Returns the checksum of the file.
fn through_the_ring(
    bytes: usize,
    rings: usize,
    output: impl AsFd + Send + 'static,
    drain: impl FnOnce() -> Option<u32>,
) -> u32 {
    let mut file = tempfile::tempfile().unwrap();
    let chunk = noise((1 << 20) + 5);
    let (mut left, mut crc) = (bytes, 0);
    while left > 0 {
        let part = &chunk[..left.min(chunk.len())];
        file.write_all(part).unwrap();
        crc = crc32c::crc32c_append(crc, part);
        left -= part.len();
    }
    file.rewind().unwrap();
    let (mut one, mut other) = pair(rings);
    let sender = thread::spawn(move || {
        loop {
            let n = one
                .reserve(1, soon())
                .unwrap()
                .up_to(rings / 2 + 3)
                .read_from(&file, soon())
                .unwrap();
            if n == 0 {
                break one.close(soon()).unwrap();
            }
            one.commit(n).unwrap();
        }
    });
    let receiver = thread::spawn(move || {
        let mut total = 0;
        loop {
            let bytes = other.peek(1, soon()).unwrap();
            if bytes.is_empty() {
                break total;
            }
            let n = bytes.write_to(&output, soon()).unwrap();
            other.consume(n).unwrap();
            total += n;
        }
    });
    let drained = drain();
    assert_eq!(receiver.join().unwrap(), bytes);
    sender.join().unwrap();
    assert!(drained.is_none_or(|drained| drained == crc));
    crc
}

fn checksum(mut from: impl Read) -> u32 {
    let (mut crc, mut buf) = (0, vec![0; 100_001]);
    loop {
        match from.read(&mut buf).unwrap() {
            0 => return crc,
            n => crc = crc32c::crc32c_append(crc, &buf[..n]),
        }
    }
}

#[test]
fn file_to_ring_to_file() {
    let mut target = tempfile::tempfile().unwrap();
    let output = target.try_clone().unwrap();
    let crc = through_the_ring((48 << 20) + 777, 256 << 10, output, || None);
    target.rewind().unwrap();
    assert_eq!(checksum(target), crc);
}

#[test]
fn file_to_ring_to_pipe() {
    let (read_end, write_end) = pipe().unwrap();
    through_the_ring((16 << 20) + 3, 64 << 10, write_end, || {
        Some(checksum(File::from(read_end)))
    });
}

#[test]
fn file_to_ring_to_a_non_blocking_pipe() {
    let (read_end, write_end) = pipe2(OFlag::O_NONBLOCK).unwrap();
    fcntl(&read_end, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    through_the_ring((32 << 20) + 3, 64 << 10, write_end, || {
        Some(checksum(File::from(read_end)))
    });
}

#[test]
fn file_to_ring_to_socket() {
    let (near, far) = UnixStream::pair().unwrap();
    through_the_ring((32 << 20) + 3, 1024, near, || Some(checksum(far)));
}

/// Data that waits in a channel of its own.
fn waiting(bytes: usize) -> (Channel, Channel) {
    let (mut one, other) = pair(256 << 10);
    one.write_all(&noise(bytes), soon()).unwrap();
    (one, other)
}

fn full(fd: &OwnedFd) {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).unwrap());
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).unwrap();
    for piece in [65536, 4096, 1] {
        while nix::unistd::write(fd, &vec![0; piece]).is_ok() {}
    }
    fcntl(fd, FcntlArg::F_SETFL(flags)).unwrap();
}

#[test]
fn a_descriptor_that_takes_nothing_holds_nobody_beyond_the_deadline() {
    let (_one, mut other) = waiting(200_000);
    let bytes = other.peek(1, soon()).unwrap();
    for flags in [OFlag::empty(), OFlag::O_NONBLOCK] {
        let (read_end, write_end) = pipe2(flags).unwrap();
        full(&write_end);
        let error = bytes.write_to(&write_end, short()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        // Room for one page: that much is written, and a blocking pipe does not hold on to the rest
        // of the write, which nobody would ever read.
        let mut buf = [0; 4096];
        assert_eq!(nix::unistd::read(&read_end, &mut buf).unwrap(), 4096);
        assert_eq!(bytes.write_to(&write_end, soon()).unwrap(), 4096);
        drop(read_end);
        let error = bytes.write_to(&write_end, soon()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
    let (near, far) = UnixStream::pair().unwrap();
    let near = OwnedFd::from(near);
    let written = bytes.write_to(&near, soon()).unwrap();
    assert!(written > 0 && written <= bytes.len());
    full(&near);
    let error = bytes.write_to(&near, short()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    drop(far);
    let error = bytes.write_to(&near, soon()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);

    let read_only = File::open("/dev/null").unwrap();
    assert!(bytes.write_to(&read_only, soon()).is_err());
    assert_eq!(bytes.up_to(0).write_to(&near, short()).unwrap(), 0);
}

#[test]
fn a_descriptor_that_brings_nothing_holds_nobody_beyond_the_deadline() {
    let (mut one, mut other) = pair(4096);
    for flags in [OFlag::empty(), OFlag::O_NONBLOCK] {
        let (read_end, write_end) = pipe2(flags).unwrap();
        let mut room = one.reserve(1, soon()).unwrap();
        let error = room.read_from(&read_end, short()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        nix::unistd::write(&write_end, b"abc").unwrap();
        assert_eq!(room.read_from(&read_end, soon()).unwrap(), 3);
        drop(write_end);
        let error = room.reborrow().up_to(0).read_from(&read_end, soon());
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(room.read_from(&read_end, soon()).unwrap(), 0, "the end");
        one.commit(3).unwrap();
        assert_eq!(other.peek(3, soon()).unwrap().array(0), Some(*b"abc"));
        other.consume(3).unwrap();
    }
}

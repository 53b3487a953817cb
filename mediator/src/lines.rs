//! Lines from a peer that may send anything: bounded, without waiting.

use std::io::{self, Read};

/// Collects bytes until a line is complete.
#[derive(Debug)]
pub struct LineBuffer {
    bytes: Vec<u8>,
    longest: usize,
}

/// The result of a read from a stream that does not block.
#[derive(Debug, PartialEq, Eq)]
pub struct Received {
    /// The complete lines, without their ends.
    pub lines: Vec<String>,
    /// Whether the stream is over.
    pub closed: bool,
}

/// Bytes taken from a peer at once, so that one that floods holds up nobody.
const AT_ONCE: usize = 16 << 10;

impl LineBuffer {
    /// Lines of at most `longest` bytes.
    pub fn new(longest: usize) -> Self {
        Self {
            bytes: Vec::new(),
            longest,
        }
    }

    /// Reads what is there, at most 16 KiB.
    ///
    /// # Errors
    /// The stream failed, a line is too long, or one is not UTF-8: the peer can no longer be used.
    pub fn read(&mut self, mut stream: impl Read) -> io::Result<Received> {
        let mut buffer = [0; 4096];
        let mut received = Received {
            lines: Vec::new(),
            closed: false,
        };
        let mut taken = 0;
        while taken < AT_ONCE {
            match stream.read(&mut buffer) {
                Ok(0) => {
                    received.closed = true;
                    break;
                }
                Ok(n) => {
                    taken += n;
                    self.split(&buffer[..n], &mut received.lines)?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // After the last byte, where the peer has ended without reading all that it was sent.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    received.closed = true;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(received)
    }

    fn split(&mut self, mut bytes: &[u8], lines: &mut Vec<String>) -> io::Result<()> {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.push(&bytes[..end])?;
            bytes = &bytes[end + 1..];
            let line = String::from_utf8(std::mem::take(&mut self.bytes))
                .map_err(|_| invalid("a line is not UTF-8"))?;
            lines.push(line);
        }
        self.push(bytes)
    }

    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.bytes.len() + bytes.len() > self.longest {
            return Err(invalid("a line is too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}

/// Longest line of a log in bytes; what is beyond is left out.
const LONGEST_LOOSE: usize = 2048;

/// Lines of a log that anything may be written to, also by a library or by a process that its guest
/// has taken over: every byte is taken, none is an error, and what comes out is one plain line each.
#[derive(Debug, Default)]
pub struct LooseLines {
    bytes: Vec<u8>,
}

impl LooseLines {
    /// Reads what is there from a stream that does not block, at most 16 KiB. Gives the complete lines
    /// that are not empty, and whether there may come more.
    pub fn read(&mut self, mut stream: impl Read) -> (Vec<String>, bool) {
        let mut buffer = [0; 4096];
        let mut lines = Vec::new();
        let mut taken = 0;
        while taken < AT_ONCE {
            match stream.read(&mut buffer) {
                Ok(0) => {
                    self.end_line(&mut lines);
                    return (lines, false);
                }
                Ok(n) => {
                    taken += n;
                    for byte in &buffer[..n] {
                        match byte {
                            b'\n' => self.end_line(&mut lines),
                            byte if self.bytes.len() < LONGEST_LOOSE => self.bytes.push(*byte),
                            _ => {}
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return (lines, false),
            }
        }
        (lines, true)
    }

    fn end_line(&mut self, lines: &mut Vec<String>) {
        let line = String::from_utf8_lossy(&self.bytes).replace(char::is_control, " ");
        self.bytes.clear();
        if !line.trim().is_empty() {
            lines.push(line);
        }
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn lines_come_out_whole() {
        let mut buffer = LineBuffer::new(10);
        let received = buffer.read(&b"one\ntwo\nthr"[..]).unwrap();
        assert_eq!(received.lines, ["one", "two"]);
        assert!(received.closed);
        assert_eq!(buffer.read(&b"ee\n"[..]).unwrap().lines, ["three"]);
    }

    #[test]
    fn the_last_lines_of_a_peer_that_read_nothing_count() {
        let (here, mut there) = UnixStream::pair().unwrap();
        (&here).write_all(b"a question\n").unwrap();
        there.write_all(b"the end\n").unwrap();
        drop(there);
        let received = LineBuffer::new(10).read(&here).unwrap();
        assert_eq!(received.lines, ["the end"]);
        assert!(received.closed);
    }

    #[test]
    fn long_lines_and_noise_are_refused() {
        assert!(LineBuffer::new(3).read(&b"four"[..]).is_err());
        assert!(LineBuffer::new(3).read(&b"four\n"[..]).is_err());
        assert!(LineBuffer::new(3).read(&b"six\n"[..]).is_ok());
        assert!(LineBuffer::new(9).read(&b"\xff\n"[..]).is_err());
    }

    #[test]
    fn a_log_takes_everything_and_gives_plain_lines() {
        let mut log = LooseLines::default();
        let (lines, open) = log.read(&b"<4>a: one\n\n\x1b[2Jtwo\xff\r\nthr"[..]);
        assert_eq!(lines, ["<4>a: one", " [2Jtwo\u{fffd} ", "thr"]);
        assert!(!open);
        let (lines, _) = log.read(&[&[b'x'; 5000][..], b"\nnext\n"].concat()[..]);
        assert_eq!(lines, ["x".repeat(LONGEST_LOOSE), "next".into()]);
        let (lines, open) = log.read(&b"y\n".repeat(1 << 20)[..]);
        assert_eq!((lines.len(), open), (AT_ONCE / 2, true));
    }

    #[test]
    fn a_flood_is_taken_in_portions() {
        let flood = b"x\n".repeat(1 << 20);
        let received = LineBuffer::new(10).read(&flood[..]).unwrap();
        assert_eq!(received.lines.len(), AT_ONCE / 2);
        assert!(!received.closed);
    }
}

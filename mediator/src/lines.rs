//! Lines from a peer that may send anything: bounded, without waiting.

use std::io::{self, Read};

/// Collects bytes until a line is complete.
#[derive(Debug)]
pub struct LineBuffer {
    bytes: Vec<u8>,
    longest: usize,
}

/// What reading from a stream that does not block has brought.
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
    /// The stream failed, a line is too long, or one is not UTF-8: the peer is of no use any more.
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

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
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
    fn long_lines_and_noise_are_refused() {
        assert!(LineBuffer::new(3).read(&b"four"[..]).is_err());
        assert!(LineBuffer::new(3).read(&b"four\n"[..]).is_err());
        assert!(LineBuffer::new(3).read(&b"six\n"[..]).is_ok());
        assert!(LineBuffer::new(9).read(&b"\xff\n"[..]).is_err());
    }

    #[test]
    fn a_flood_is_taken_in_portions() {
        let flood = b"x\n".repeat(1 << 20);
        let received = LineBuffer::new(10).read(&flood[..]).unwrap();
        assert_eq!(received.lines.len(), AT_ONCE / 2);
        assert!(!received.closed);
    }
}

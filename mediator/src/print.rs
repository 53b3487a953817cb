//! Writing to standard output and standard error: everything, or an error.
//!
//! Whoever started a program may have left its output without blocking, which the program then shares.
//! The standard library writes until such a pipe is full and gives up; this waits for room instead.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::write;

/// Prints on standard output.
///
/// # Errors
/// What the system says; of kind [`io::ErrorKind::BrokenPipe`] when nobody reads any more.
pub fn print(text: &str) -> io::Result<()> {
    write_all(&io::stdout(), text.as_bytes())
}

/// Prints on standard error. Where that fails there is nobody to tell.
pub fn print_error(text: &str) {
    let _ = write_all(&io::stderr(), text.as_bytes());
}

/// Whether standard output is a terminal, which can be told to move its cursor.
pub fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Writes all of `bytes`, and waits where there is no room.
pub(crate) fn write_all(to: &impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match write(to, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let mut fds = [PollFd::new(to.as_fd(), PollFlags::POLLOUT)];
                match poll(&mut fds, PollTimeout::NONE) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;

    #[test]
    fn a_full_stream_that_does_not_block_is_waited_for() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let text = vec![b'x'; 4 << 20];
        let reader = thread::spawn(move || {
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).map(|_| all)
        });
        write_all(&ours, &text).unwrap();
        drop(ours);
        assert!(reader.join().unwrap().unwrap() == text);
    }

    #[test]
    fn a_reader_that_is_gone_is_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let error = write_all(&ours, b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}

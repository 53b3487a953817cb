//! The asking side of the control socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use vgpu_cli::Failure;
use vgpu_socket_transport::dial_unix;

use super::{Answer, Ask, MAX_RESPONSE, Request, Response, VERSION};
use crate::config::ROOT_CONTROL;

/// How long the mediator has to take the connection and answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// The same where it reads files first, which it gives up by itself.
const RELOAD_LIMIT: Duration = Duration::from_secs(30);

/// Asks the mediator at `path` and waits for its answer: five seconds at most, thirty for a reload.
///
/// # Errors
/// Nobody is there, access is denied, no answer in time, or an answer that is an error.
pub fn ask(path: &Path, ask: Ask) -> Result<Answer, Failure> {
    let limit = match ask {
        Ask::Reload => RELOAD_LIMIT,
        Ask::Status | Ask::Metrics | Ask::Kick { .. } => ANSWER_LIMIT,
    };
    let deadline = Instant::now() + limit;
    let no_answer = format!("the mediator at {} gave no answer", path.display());
    let timed_out = || {
        Failure::new(
            format!("{no_answer} in {} s", limit.as_secs()),
            "look at its log (journalctl -u vgpu-mediatord); restart it if it hangs",
        )
    };
    let stream = match dial_unix(path, deadline) {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(timed_out()),
        Err(error) => return Err(cannot_connect(path, &error)),
    };
    exchange(Timed { stream, deadline }, ask).map_err(|error| {
        if matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
        ) {
            timed_out()
        } else {
            let advice = "use the vgpuctl that came with it, and look at its log";
            Failure::system(&no_answer, error, advice)
        }
    })
}

/// A stream all of whose reads and writes together end at the deadline.
struct Timed {
    stream: UnixStream,
    deadline: Instant,
}

impl Timed {
    /// The time left; never zero, which would mean no end, so that a last look is always taken.
    fn left(&self) -> Option<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        Some(left.max(Duration::from_millis(1)))
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left())?;
        self.stream.read(buffer)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left())?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn exchange(mut stream: Timed, ask: Ask) -> io::Result<Answer> {
    stream.stream.set_nonblocking(false)?;
    let mut request = serde_json::to_string(&Request { v: VERSION, ask })?;
    request.push('\n');
    stream.write_all(request.as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream.take(MAX_RESPONSE as u64)).read_line(&mut line)?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let response: Response = serde_json::from_str(&line)?;
    if response.v != VERSION {
        let text = format!("it speaks version {}, this is {VERSION}", response.v);
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(response.answer)
}

fn cannot_connect(path: &Path, error: &io::Error) -> Failure {
    no_connection(path, error, Path::new(ROOT_CONTROL))
}

/// `of_root` is where root's mediator would listen.
fn no_connection(path: &Path, error: &io::Error, of_root: &Path) -> Failure {
    let shown = path.display();
    match error.kind() {
        // A socket stays where a mediator was killed, so that this is a guess.
        io::ErrorKind::NotFound if path != of_root && of_root.exists() => Failure::new(
            format!(
                "this user runs no mediator, at {shown}; root may, at {}",
                of_root.display()
            ),
            "run vgpuctl as root, or name another socket with --control PATH",
        ),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Failure::new(
            format!("no mediator at {shown}"),
            "start vgpu-mediatord, or name its socket with --control PATH",
        ),
        io::ErrorKind::PermissionDenied => Failure::new(
            format!("the mediator at {shown} does not serve this user"),
            "run vgpuctl as root or as the user that runs the mediator",
        ),
        _ => Failure::system(
            format!("cannot connect to {shown}"),
            error,
            "check the path after --control",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_without_a_mediator_hears_of_roots() {
        let directory = tempfile::tempdir().unwrap();
        let (own, of_root) = (directory.path().join("own"), directory.path().join("root"));
        let missing = io::Error::from(io::ErrorKind::NotFound);
        let said = |path: &Path| no_connection(path, &missing, &of_root);
        assert_eq!(said(&own).what, format!("no mediator at {}", own.display()));
        std::fs::write(&of_root, "").unwrap();
        let failure = said(&own);
        assert!(failure.what.contains("root may, at "), "{}", failure.what);
        assert!(failure.advice.contains("as root"), "{}", failure.advice);
        assert!(said(&of_root).what.starts_with("no mediator at "));
    }
}

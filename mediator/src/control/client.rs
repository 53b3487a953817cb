//! The asking side of the control socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::{Answer, Ask, MAX_RESPONSE, Request, Response, VERSION};
use crate::failure::Failure;

/// How long the mediator has for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks the mediator at `path` and waits for its answer, five seconds at most.
///
/// # Errors
/// Nobody is there, access is denied, no answer in time, or an answer that is an error.
pub fn ask(path: &Path, ask: Ask) -> Result<Answer, Failure> {
    let stream = UnixStream::connect(path).map_err(|error| cannot_connect(path, &error))?;
    exchange(stream, ask).map_err(|error| {
        let timed_out = matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
        );
        let what = format!("the mediator at {} gave no answer", path.display());
        if timed_out {
            let advice = "look at its log (journalctl -u vgpu-mediatord); restart it if it hangs";
            Failure::new(format!("{what} in {} s", PATIENCE.as_secs()), advice)
        } else {
            let advice = "use the vgpuctl that came with it, and look at its log";
            Failure::system(what, error, advice)
        }
    })
}

fn exchange(mut stream: UnixStream, ask: Ask) -> io::Result<Answer> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
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
    let shown = path.display();
    match error.kind() {
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

//! One request run to its end on a backend, for what is no session: the proof that a device works,
//! and the commands of the file protocol's two files.

use std::thread;
use std::time::{Duration, Instant};

use vgpu_protocol::frame::FrameHeader;
use vgpu_protocol::op::Request;
use vgpu_protocol::session::server::Failure;
use vgpu_protocol::status::ErrorCode;
use vgpu_transport::{Transport, TransportError};

use super::backend::{Also, Backend, Event};

/// The request's id: no other is under way.
const ID: u32 = 1;

/// How soon the backend is asked, though nothing has said that it has news.
const CHECK: Duration = Duration::from_millis(20);

/// The result of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The body of its reply.
    pub(crate) body: Vec<u8>,
    /// Its data.
    pub(crate) data: Vec<u8>,
}

/// Runs `request`, whose data is `up`, until `deadline`.
///
/// # Errors
/// Whatever the backend says; [`ErrorCode::Timeout`].
pub(crate) fn one_request(
    backend: &mut dyn Backend,
    request: &Request,
    up: &[u8],
    deadline: Instant,
) -> Result<Answer, Failure> {
    by_portions(backend, request, up, usize::MAX, deadline)
}

/// [`one_request`], with no more than `portion` bytes moved at once.
pub(crate) fn by_portions(
    backend: &mut dyn Backend,
    request: &Request,
    mut up: &[u8],
    portion: usize,
    deadline: Instant,
) -> Result<Answer, Failure> {
    backend.start(&FrameHeader::request(request.op(), ID), request.clone());
    let mut data = Vec::new();
    loop {
        // Read before the look, so that there is one after the deadline.
        let late = Instant::now() >= deadline;
        let mut moved = false;
        while let Some(event) = backend.next_event() {
            moved = true;
            match event {
                Event::Done(ID, outcome) => {
                    // Its data was put out before.
                    let body = outcome?;
                    while take_output(backend, &mut data, usize::MAX) > 0 {}
                    return Ok(Answer { body, data });
                }
                Event::Lost(lost) => {
                    return Err(Failure {
                        status: lost.code.into(),
                        text: lost.text,
                    });
                }
                _ => {}
            }
        }
        let room = backend.input(ID);
        let n = room.len().min(portion).min(up.len());
        room[..n].copy_from_slice(&up[..n]);
        up = &up[n..];
        if n > 0 {
            backend.filled(ID, n);
        }
        let taken = take_output(backend, &mut data, portion);
        if moved || n > 0 || taken > 0 {
            continue;
        }
        if late {
            backend.cancel(ID);
            return Err(Failure {
                status: ErrorCode::Timeout.into(),
                text: format!("{} was not done in time", request.op()),
            });
        }
        let until = deadline.min(Instant::now() + CHECK);
        let waited = match backend.also() {
            Also::Awaited(awaited) => awaited.wait(until),
            Also::Stream(stream, Some(interest)) => stream.wait(interest, until),
            Also::Stream(_, None) | Also::Nothing => {
                thread::sleep(until.saturating_duration_since(Instant::now()));
                Ok(())
            }
        };
        match waited {
            // An error of a stream is the backend's next event.
            Ok(()) | Err(TransportError::TimedOut(_)) => {}
            Err(error) => log::debug!("waiting for {}: {error}", request.op()),
        }
    }
}

/// Takes data that is at hand, `most` bytes of it; returns how many.
fn take_output(backend: &mut dyn Backend, data: &mut Vec<u8>, most: usize) -> usize {
    let output = backend.output(ID);
    let taken = output.len().min(most);
    data.extend_from_slice(&output[..taken]);
    if taken > 0 {
        backend.sent(ID, taken);
    }
    taken
}

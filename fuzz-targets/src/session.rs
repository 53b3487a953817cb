//! Whole sessions: the mediator's against a guest that sends anything, and the other way round.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vgpu_guest::{Client, Options};
use vgpu_mediator::executor::Executor;
use vgpu_mediator::executor::cpu::CpuExecutor;
use vgpu_mediator::session::{OpenError, Settings, StopFlag, serve};
use vgpu_mediator::usage::Observed;
use vgpu_protocol::frame::{FrameHeader, HEADER_LEN, MAX_BODY};
use vgpu_protocol::message::Limits;
use vgpu_protocol::transport::{Interest, Transport, TransportError};

const MAX_ELEMENTS: u64 = 4096;
const MAX_CHUNK: u32 = 128;

/// Delivers a script in portions, then the end of the stream; records what is written.
#[derive(Debug)]
struct Script {
    input: Vec<u8>,
    read: usize,
    portion: usize,
    /// Every other read moves nothing.
    turn: bool,
    output: Arc<Mutex<Vec<u8>>>,
    /// The reader has waited for more than there is.
    ended: bool,
    closed: bool,
}

impl Script {
    /// The first byte says how to cut the rest; 0 is not to cut it.
    fn new(data: &[u8]) -> Self {
        let (portion, input) = data.split_first().unwrap_or((&0, &[]));
        Self {
            input: input.to_vec(),
            read: 0,
            portion: match *portion {
                0 => usize::MAX,
                portion => portion.into(),
            },
            turn: false,
            output: Arc::default(),
            ended: false,
            closed: false,
        }
    }
}

impl Transport for Script {
    fn try_read(&mut self, buf: &mut [u8]) -> Result<Option<usize>, TransportError> {
        assert!(!buf.is_empty(), "a read into nothing looks like the end");
        self.turn = !self.turn;
        let left = &self.input[self.read..];
        if left.is_empty() {
            return Ok(self.ended.then_some(0));
        }
        if self.turn {
            return Ok(None);
        }
        let n = left.len().min(self.portion).min(buf.len());
        buf[..n].copy_from_slice(&left[..n]);
        self.read += n;
        Ok(Some(n))
    }

    fn try_write(&mut self, buf: &[u8]) -> Result<usize, TransportError> {
        assert!(!self.closed, "nothing is written after the close");
        let n = buf.len().min(self.portion);
        self.output.lock().unwrap().extend_from_slice(&buf[..n]);
        Ok(n)
    }

    fn wait(&mut self, _: Interest, _: Instant) -> Result<(), TransportError> {
        // Not before, so that whoever has something to write writes it.
        self.ended = self.read == self.input.len();
        Ok(())
    }

    fn flush(&mut self, _: Instant) -> Result<(), TransportError> {
        Ok(())
    }

    fn close(&mut self, _: Instant) -> Result<(), TransportError> {
        self.closed = true;
        Ok(())
    }

    fn describe(&self) -> String {
        "a script".to_owned()
    }
}

fn settings() -> Settings {
    Settings {
        limits: Limits {
            max_body: MAX_BODY,
            max_lanes: 1,
            max_requests: 16,
            max_handles: 16,
            max_chunk_elements: MAX_CHUNK,
            preferred_chunk_elements: MAX_CHUNK,
            max_elements: MAX_ELEMENTS,
        },
        epoch: 0x1234_5678,
        hello_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(10),
        stall_timeout: Duration::from_secs(10),
        reason: None,
        refusal: None,
    }
}

/// A mediator's session with the CPU executor. What it answers must be whole, valid replies.
pub(crate) fn mediator(data: &[u8]) {
    let answer = mediate(data);
    let mut rest = &answer[..];
    while let Some((header, after)) = rest.split_first_chunk::<HEADER_LEN>() {
        let header = FrameHeader::decode(header).expect("the mediator sends valid headers");
        assert!(header.is_reply());
        let len = header.body_len as usize;
        rest = after
            .get(len..)
            .expect("a reply's body is as long as it says");
    }
    assert!(rest.is_empty(), "half a header was sent");
}

fn mediate(data: &[u8]) -> Vec<u8> {
    let mut script = Script::new(data);
    let output = Arc::clone(&script.output);
    let mut open =
        || -> Result<Box<dyn Executor>, OpenError> { Ok(Box::new(CpuExecutor::new(""))) };
    serve(
        &mut script,
        &mut open,
        &settings(),
        &Observed::default(),
        &StopFlag::default(),
    );
    assert!(script.closed, "a session closes its transport");
    output.lock().unwrap().split_off(0)
}

/// A guest's session: every kind of request, as far as the mediator's answers let it come.
pub(crate) fn guest(data: &[u8]) {
    ask(data);
}

/// Runs the guest; returns what it sent.
fn ask(data: &[u8]) -> Vec<u8> {
    let script = Script::new(data);
    let output = Arc::clone(&script.output);
    let options = Options {
        connect_timeout: Duration::from_secs(10),
        stall_timeout: Duration::from_secs(10),
        client_name: "fuzz".to_owned(),
        ..Options::default()
    };
    if let Ok(mut client) = Client::over(Box::new(script), &options) {
        let mut out = [0.0; 300];
        // Whether the session is over after an error is the client's to know.
        let _ = client.info();
        let _ = client.ping(b"payload");
        let _ = client.ping_quiet(b"quiet");
        let _ = client.fence();
        let _ = client.vector_add(&[1.0; 300], &[2.0; 300], &mut out);
        let _ = client.goodbye();
    }
    output.lock().unwrap().split_off(0)
}

/// What guest and mediator say to each other when both are honest: each is given the other's
/// words so far, until nothing new is said.
fn dialogue() -> (Vec<u8>, Vec<u8>) {
    let (mut questions, mut answers) = (ask(&[0]), Vec::new());
    loop {
        let more = mediate(&[&[0][..], &questions].concat());
        let asked = ask(&[&[0][..], &more].concat());
        if (&asked, &more) == (&questions, &answers) {
            return (questions, answers);
        }
        (questions, answers) = (asked, more);
    }
}

fn in_portions(script: &[u8]) -> Vec<Vec<u8>> {
    [0u8, 1, 97]
        .map(|portion| [&[portion][..], script].concat())
        .to_vec()
}

pub(crate) fn mediator_seeds() -> Vec<Vec<u8>> {
    in_portions(&dialogue().0)
}

pub(crate) fn guest_seeds() -> Vec<Vec<u8>> {
    in_portions(&dialogue().1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dialogue_comes_to_its_end() {
        let (questions, answers) = dialogue();
        let last = |bytes: &[u8]| {
            let header = bytes.last_chunk::<HEADER_LEN>().expect("a last frame");
            FrameHeader::decode(header).map(|header| header.op)
        };
        use vgpu_protocol::message::Op;
        assert_eq!(last(&questions), Ok(Op::Goodbye));
        assert_eq!(last(&answers), Ok(Op::Goodbye));
    }
}

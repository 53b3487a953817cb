//! A mediator played from a script, at the other end of a pipe in memory.
//!
//! For what a real mediator never does, or does only at moments that cannot be chosen. Sessions
//! with a real mediator are tested in its own crate.

#![allow(dead_code, reason = "each test file uses its own part")]

pub(crate) mod pipe;

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vgpu_guest::{Client, Options, Result};
use vgpu_protocol::frame::{FrameHeader, HEADER_LEN};
use vgpu_protocol::message::{Features, Hello, HelloReply, Limits, Op, VectorAdd, VectorAddReply};
use vgpu_protocol::status::{ErrorCode, Status, encode_error_text};
use vgpu_transport::{Transport, TransportError};

/// Longer than any wait that is expected to succeed.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(20);

pub(crate) const EPOCH: u64 = 0x5eed;

pub(crate) const LIMITS: Limits = Limits {
    max_body: 1 << 20,
    max_lanes: 1,
    max_requests: 1,
    max_handles: 1,
    max_chunk_elements: 1 << 16,
    preferred_chunk_elements: 0,
    max_elements: 1 << 30,
};

/// The mediator's end.
pub(crate) struct Script {
    pub(crate) end: Box<dyn Transport>,
}

type Frame = (FrameHeader, Vec<u8>);
type Step<T> = std::result::Result<T, TransportError>;

impl Script {
    pub(crate) fn receive(&mut self) -> Step<Frame> {
        let deadline = Instant::now() + WATCHDOG;
        let mut header = [0; HEADER_LEN];
        self.end.read_exact(&mut header, deadline)?;
        let header = FrameHeader::decode(&header).expect("the guest sends sound headers");
        let mut body = vec![0; header.body_len as usize];
        self.end.read_exact(&mut body, deadline)?;
        Ok((header, body))
    }

    pub(crate) fn send(&mut self, header: FrameHeader, body: &[u8]) -> Step<()> {
        let deadline = Instant::now() + WATCHDOG;
        let header = header.with_body_len(u32::try_from(body.len()).expect("a short body"));
        self.end.write_all(&header.encode(), deadline)?;
        self.end.write_all(body, deadline)?;
        self.end.flush(deadline)
    }

    pub(crate) fn refuse(
        &mut self,
        request: &FrameHeader,
        code: ErrorCode,
        text: &str,
    ) -> Step<()> {
        self.send(
            FrameHeader::reply_to(request, code.into()),
            encode_error_text(text),
        )
    }

    /// Takes the Hello and admits the guest.
    pub(crate) fn welcome(&mut self, limits: Limits) -> Step<Hello> {
        let (header, body) = self.receive()?;
        assert_eq!(header.op, Op::Hello);
        let hello = Hello::decode(&body).expect("a sound Hello");
        let reply = HelloReply {
            version: 1,
            features: Features::ALL,
            limits,
            epoch: EPOCH,
        };
        self.send(FrameHeader::reply_to(&header, Status::OK), &reply.encode())?;
        Ok(hello)
    }

    /// Answers what comes, as it should be, until the guest leaves.
    pub(crate) fn serve(&mut self) -> Step<()> {
        loop {
            let (header, body) = self.receive()?;
            match header.op {
                Op::VectorAdd => self.add(&header, &body)?,
                _ => self.send(FrameHeader::reply_to(&header, Status::OK), &body)?,
            }
        }
    }

    /// Runs one vector add.
    pub(crate) fn add(&mut self, request: &FrameHeader, body: &[u8]) -> Step<()> {
        let add = VectorAdd::decode(body).expect("a sound VectorAdd");
        assert!(request.handle.is_some(), "a vector add has a stream");
        for elements in add.chunks() {
            let (data, body) = self.receive()?;
            assert_eq!((data.op, data.request_id), (Op::Data, request.request_id));
            assert_eq!(data.handle, request.handle);
            let sum = sum(&body, elements);
            let len = u32::try_from(sum.len()).expect("a chunk");
            self.send(FrameHeader::data_reply_to(request, len), &sum)?;
        }
        let reply = VectorAddReply {
            elements: add.elements,
            device_ns: 5,
        };
        self.send(FrameHeader::reply_to(request, Status::OK), &reply.encode())
    }

    /// Drops input up to the frame that ends it; returns how many frames there were.
    pub(crate) fn discard_input(&mut self) -> Step<usize> {
        let mut frames = 0;
        loop {
            let (data, _) = self.receive()?;
            assert_eq!(data.op, Op::Data);
            frames += 1;
            if !data.has_more() {
                return Ok(frames);
            }
        }
    }
}

pub(crate) fn sum(body: &[u8], elements: u32) -> Vec<u8> {
    assert_eq!(body.len(), 8 * elements as usize);
    let (a, b) = body.split_at(body.len() / 2);
    let float = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    a.chunks(4)
        .zip(b.chunks(4))
        .flat_map(|(a, b)| (float(a) + float(b)).to_le_bytes())
        .collect()
}

/// Options with limits short enough for tests of what never comes.
pub(crate) fn impatient() -> Options {
    Options {
        connect_timeout: Duration::from_millis(400),
        stall_timeout: Duration::from_millis(400),
        ..Options::default()
    }
}

/// Starts `script` on a thread and a client at the other end of a pipe that holds `capacity` bytes
/// each way and moves at most `portion` at a time.
pub(crate) fn play<T: Send + 'static>(
    capacity: usize,
    portion: usize,
    options: &Options,
    script: impl FnOnce(&mut Script) -> T + Send + 'static,
) -> (Result<Client>, JoinHandle<T>) {
    let (guest, mediator) = pipe::pair(capacity, portion);
    let thread = std::thread::spawn(move || {
        let end = Box::new(mediator);
        script(&mut Script { end })
    });
    (Client::over(Box::new(guest), options), thread)
}

//! A mediator played from a script, at the other end of a pipe in memory; and, in [`peer`], one that
//! keeps to the protocol.
//!
//! The scripts are for what a real mediator never does, or does only at moments that cannot be chosen.
//! Sessions with a real mediator are in `local.rs`, in what uses [`cpu`], and in the tests of its own crate.

#![allow(dead_code, reason = "each test file uses its own part")]

pub(crate) mod cpu;
pub(crate) mod device;
pub(crate) mod peer;
pub(crate) mod pipe;

use std::num::NonZeroU16;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vgpu_guest::{Client, HelloReply, InfoReply, Options, Result};
use vgpu_protocol::frame::{FrameHeader, HEADER_LEN};
use vgpu_protocol::op::{
    Body, Exchange, ExchangeReply, Features, FenceReply, Hello, Op, Ping, PingReply,
};
use vgpu_protocol::session::server::Terms;
use vgpu_protocol::status::{ErrorCode, Status, encode_error_text};
use vgpu_transport::{Transport, TransportError};

/// Longer than any wait that is expected to succeed.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(60);

pub(crate) const EPOCH: u64 = 0x5eed;

/// Terms offered by the mediators of these tests: all data of a request may be sent at once, and goes through the stream.
pub(crate) const TERMS: Terms = Terms {
    max_lanes: NonZeroU16::new(16).unwrap(),
    max_requests: NonZeroU16::new(64).unwrap(),
    max_handles: 1,
    initial_credit: 1 << 30,
    features: Features::ALL.without(Features::REGIONS),
};

/// Reply to Hello of a mediator that offers `terms`.
pub(crate) fn hello_reply(terms: Terms) -> HelloReply {
    HelloReply {
        version: NonZeroU16::MIN,
        features: terms.features,
        max_lanes: terms.max_lanes,
        max_requests: terms.max_requests,
        max_handles: terms.max_handles,
        initial_credit: terms.initial_credit,
        epoch: EPOCH,
    }
}

pub(crate) fn info_reply() -> InfoReply {
    InfoReply {
        total_memory: 1 << 30,
        executor: "cpu".into(),
        device: "none".into(),
        driver: "".into(),
        reason: "for a test".into(),
        mediator: "vgpu-mediatord of a test".into(),
    }
}

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

    pub(crate) fn reply(&mut self, request: &FrameHeader, body: &impl Body) -> Step<()> {
        let header = FrameHeader::reply_to(request, Status::OK);
        self.send(header, &body.encode())
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
    pub(crate) fn welcome(&mut self, terms: Terms) -> Step<Hello> {
        let (header, body) = self.receive()?;
        assert_eq!(header.op, Op::Hello);
        let hello = Hello::decode(&body).expect("a sound Hello");
        self.reply(&header, &hello_reply(terms))?;
        Ok(hello)
    }

    /// Answers what comes, as it should be, until the guest leaves.
    pub(crate) fn serve(&mut self) -> Step<()> {
        loop {
            let (header, body) = self.receive()?;
            match header.op {
                Op::Exchange => self.exchange(&header, &body)?,
                Op::Ping => self.echo(&header, &body)?,
                Op::Fence => self.reply(&header, &FenceReply::default())?,
                _ => self.send(FrameHeader::reply_to(&header, Status::OK), &[])?,
            }
        }
    }

    pub(crate) fn echo(&mut self, request: &FrameHeader, body: &[u8]) -> Step<()> {
        let ping = Ping::decode(body).expect("a sound ping");
        let payload = ping.payload;
        self.reply(request, &PingReply { payload })
    }

    /// Runs one exchange.
    pub(crate) fn exchange(&mut self, request: &FrameHeader, body: &[u8]) -> Step<()> {
        let exchange = Exchange::decode(body).expect("a sound Exchange");
        let data = self.input(request)?;
        assert_eq!(data.len() as u64, exchange.up);
        for part in answer(&data).chunks(400) {
            self.data(request, part)?;
        }
        self.reply(request, &ExchangeReply {})
    }

    /// Sends a frame of data.
    pub(crate) fn data(&mut self, request: &FrameHeader, body: &[u8]) -> Step<()> {
        self.send(FrameHeader::data_down(request, 0, 0), body)
    }

    /// Takes all data of `request`, up to the frame that ends it; answers a Ping by which the guest asks meanwhile how far
    /// its requests are.
    pub(crate) fn input(&mut self, request: &FrameHeader) -> Step<Vec<u8>> {
        let mut data = Vec::new();
        loop {
            let (header, body) = self.receive()?;
            if header.op == Op::Ping {
                self.echo(&header, &body)?;
                continue;
            }
            assert_eq!(
                (header.op, header.request_id),
                (Op::Data, request.request_id)
            );
            data.extend(body);
            if !header.has_more() {
                return Ok(data);
            }
        }
    }
}

/// Data sent back in the tests' exchanges: the first half.
pub(crate) fn answer(data: &[u8]) -> &[u8] {
    &data[..data.len() / 2]
}

/// Data of an exchange of 8 bytes there and 4 back for each element, different for each `seed`.
pub(crate) fn data(elements: usize, seed: usize) -> Vec<u8> {
    (0..8 * elements)
        .map(|i| ((i + seed).wrapping_mul(0x9e37_79b9) >> 13).to_le_bytes()[0])
        .collect()
}

/// Runs an exchange and checks what comes back.
pub(crate) fn exchange(client: &mut Client, elements: usize, seed: usize) -> Result<()> {
    let data = data(elements, seed);
    let mut back = vec![!0; 4 * elements];
    client.exchange(&data, &mut back)?;
    assert!(back == answer(&data), "{elements} elements");
    Ok(())
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

//! A session by hand: frames that an honest guest's library would not send, and what comes back.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use vchan::region::Regions;
use vgpu_guest::{Endpoint, Options};
use vgpu_protocol::frame::{FrameHeader, HEADER_LEN};
use vgpu_protocol::op::{
    Body, Features, Hello, HelloReply, MemoryAllocate, Op, Operation, Ping, Request,
};
use vgpu_protocol::status::{ErrorCode, Status, decode_error_text};
use vgpu_socket_transport::{Secret, connect_tcp, connect_unix, connect_unix_stream};
use vgpu_transport::{Interest, Transport};

use crate::support::WATCHDOG;

/// Data for requests that have some: more than any of them is to get.
static ZEROS: [u8; 4096] = [0; 4096];

/// Most bytes of data that are kept: of more than that nobody looks at the rest.
const MOST_KEPT: usize = 64 << 10;

/// A frame from a mediator.
#[derive(Debug)]
pub(crate) enum Heard {
    /// An answer, the data before it left out.
    Answer(FrameHeader, Vec<u8>),
    /// It ends the session, and says why.
    Closing(Status, String),
    /// It is gone.
    End,
}

pub(crate) struct Guest {
    stream: Box<dyn Transport>,
    pub(crate) regions: Option<Regions>,
    /// Received, and not looked at yet.
    inbox: Vec<u8>,
    next_id: u32,
    /// Data that came with the answer to the last request: the first of it.
    pub(crate) data: Vec<u8>,
    /// As the mediator's status has it.
    pub(crate) name: String,
    pub(crate) terms: HelloReply,
}

fn soon() -> Instant {
    Instant::now() + WATCHDOG
}

impl Guest {
    /// Connects, and says nothing yet.
    pub(crate) fn connect(endpoint: &Endpoint, options: &Options) -> Self {
        static GUESTS: AtomicU32 = AtomicU32::new(1);
        let never = || false;
        let (stream, regions): (Box<dyn Transport>, _) = match endpoint {
            Endpoint::Local(path) => {
                let stream = connect_unix_stream("local", path, soon(), &never).expect("connected");
                stream.set_nonblocking(false).expect("a socket");
                let channel = vchan::local::serve_on(stream, 64 << 10, soon()).expect("a ring");
                let regions = channel.regions();
                regions.set_limit(1 << 30);
                (Box::new(channel), Some(regions))
            }
            Endpoint::Unix(path) => {
                let stream = connect_unix(path, soon(), &never).expect("connected");
                (Box::new(stream), None)
            }
            Endpoint::Tcp { host, port } => {
                let file = options.secret_file.as_ref().expect("a secret");
                let secret = Secret::read(file).expect("a secret");
                let stream = connect_tcp(host, *port, Some(&secret), soon(), &never);
                (Box::new(stream.expect("connected")), None)
            }
            other => panic!("{other} is not tried"),
        };
        Self {
            stream,
            regions,
            inbox: Vec::new(),
            next_id: 1,
            data: Vec::new(),
            // Relaxed: only this counter counts.
            name: format!("liar {}", GUESTS.fetch_add(1, Ordering::Relaxed)),
            terms: HelloReply {
                version: 1.try_into().expect("not 0"),
                features: Features::NONE,
                max_lanes: 1.try_into().expect("not 0"),
                max_requests: 1.try_into().expect("not 0"),
                max_handles: 0,
                initial_credit: 0,
                epoch: 0,
            },
        }
    }

    /// A session that has begun.
    pub(crate) fn open(endpoint: &Endpoint, options: &Options) -> Self {
        let mut guest = Self::connect(endpoint, options);
        guest.hello(Features::ALL);
        guest
    }

    pub(crate) fn hello(&mut self, features: Features) {
        let hello = self.hello_of(1, 1, features);
        self.terms = self.done(hello);
    }

    pub(crate) fn hello_of(&self, min: u16, max: u16, features: Features) -> Hello {
        Hello {
            min_version: min.try_into().expect("not 0"),
            max_version: max,
            features,
            client_name: self.name.as_str().into(),
        }
    }

    pub(crate) fn header(&mut self, op: Op) -> FrameHeader {
        self.next_id += 1;
        self.data.clear();
        FrameHeader::request(op, self.next_id)
    }

    /// Sends bytes of any kind, and keeps what comes meanwhile: both sides may be full otherwise.
    pub(crate) fn raw(&mut self, mut bytes: &[u8]) {
        let deadline = soon();
        while !bytes.is_empty() {
            match self.stream.try_write(bytes) {
                // It has hung up because of what it has read up to now.
                Err(_) => return,
                Ok(0) => {
                    assert!(Instant::now() < deadline, "nothing is taken any more");
                    // Ended or late: the next call tells.
                    let _ = self.stream.wait(Interest::ReadOrWrite, deadline);
                    if self.receive() == Some(0) {
                        return;
                    }
                }
                Ok(n) => bytes = &bytes[n..],
            }
        }
        let _ = self.stream.flush(deadline);
    }

    /// The same, and takes nothing meanwhile: as much as there is room for.
    pub(crate) fn raw_unread(&mut self, bytes: &[u8]) -> usize {
        self.stream.try_write(bytes).unwrap_or(0)
    }

    /// Bytes received now: `None` if there are none, 0 at the end.
    fn receive(&mut self) -> Option<usize> {
        let mut bytes = [0; 16 << 10];
        // Where a socket was closed with bytes of this side unread, its end is an error.
        let n = self.stream.try_read(&mut bytes).unwrap_or(Some(0))?;
        self.inbox.extend_from_slice(&bytes[..n]);
        Some(n)
    }

    pub(crate) fn frame(&mut self, header: FrameHeader, body: &[u8]) {
        let len = u32::try_from(body.len()).expect("short");
        self.raw(&[&header.with_body_len(len).encode()[..], body].concat());
    }

    /// Sends a request and, where it takes data, the first bytes of that and its end.
    pub(crate) fn send(&mut self, request: impl Into<Request>) -> u32 {
        let request = request.into();
        let header = self.header(request.op());
        self.send_as(header, &request, &ZEROS)
    }

    pub(crate) fn send_as(&mut self, header: FrameHeader, request: &Request, data: &[u8]) -> u32 {
        let mut body = Vec::new();
        request.encode_to(&mut body);
        self.frame(header, &body);
        let (up, _) = request.data();
        if up > 0 {
            let n = data.len().min(usize::try_from(up).unwrap_or(usize::MAX));
            self.frame(FrameHeader::data_up(&header, 0, false), &data[..n]);
        }
        header.request_id
    }

    /// The next frame, data left out. Ends with a panic, never with a wait.
    pub(crate) fn hear(&mut self) -> Heard {
        let deadline = soon();
        loop {
            if let Some((header, rest)) = self.inbox.split_first_chunk::<HEADER_LEN>() {
                let header = FrameHeader::decode(header).expect("a mediator's frames are sound");
                let len = header.body_len as usize;
                if rest.len() >= len {
                    let body = rest[..len].to_vec();
                    self.inbox.drain(..HEADER_LEN + len);
                    match header.op {
                        Op::Data => {
                            let room = MOST_KEPT.saturating_sub(self.data.len());
                            self.data.extend_from_slice(&body[..len.min(room)]);
                        }
                        Op::Closing => {
                            return Heard::Closing(header.status, decode_error_text(&body));
                        }
                        _ => return Heard::Answer(header, body),
                    }
                    continue;
                }
            }
            match self.receive() {
                Some(0) => return Heard::End,
                Some(_) => {}
                None => {
                    assert!(Instant::now() < deadline, "neither answered nor ended");
                    let _ = self.stream.wait(Interest::Read, deadline);
                }
            }
        }
    }

    /// The status of request `id`, and the body of its answer or the text of its error, which is one that this
    /// version knows. Answers to others are left out.
    pub(crate) fn answer(&mut self, id: u32) -> (Status, Vec<u8>) {
        loop {
            match self.hear() {
                Heard::Answer(header, body) if header.request_id == id => {
                    assert_typed(header.status, &body);
                    return (header.status, body);
                }
                Heard::Answer(..) => {}
                other => panic!("the session is over: {other:?}"),
            }
        }
    }

    pub(crate) fn ask(&mut self, request: impl Into<Request>) -> (Status, Vec<u8>) {
        let id = self.send(request);
        self.answer(id)
    }

    /// Asks for what succeeds.
    pub(crate) fn done<R: Operation + Into<Request>>(&mut self, request: R) -> R::Reply {
        let (status, body) = self.ask(request);
        assert!(
            status.is_ok(),
            "{}: {status:?} {}",
            R::NAME,
            decode_error_text(&body)
        );
        R::Reply::decode(&body).expect("a reply")
    }

    /// Asks for what is refused with one of these.
    pub(crate) fn refused(&mut self, request: impl Into<Request>, with: &[Status]) {
        let request = request.into();
        let (status, body) = self.ask(request.clone());
        let text = decode_error_text(&body);
        assert!(with.contains(&status), "{request:?}: {status:?} {text}");
    }

    /// The session goes on as if nothing had been.
    pub(crate) fn serves(&mut self) {
        let bytes: Vec<u8> = self.name.clone().into_bytes();
        let payload = vgpu_protocol::op::field::Bytes::new(&bytes).expect("short");
        let reply = self.done(Ping { payload });
        assert_eq!(reply.payload.as_slice(), bytes);
    }

    /// The session is over by now, for a stated reason: with this code, or by an answer to Hello. The rest of what was
    /// sent before may still come.
    pub(crate) fn ended(&mut self, code: ErrorCode) {
        let wanted = Status::from(code);
        let mut stated = false;
        loop {
            match self.hear() {
                Heard::Closing(status, text) => {
                    assert!(status == wanted && !text.is_empty(), "{status:?} {text}");
                    stated = true;
                }
                Heard::Answer(header, body) => {
                    assert_typed(header.status, &body);
                    assert!(!stated, "{header:?} after the end");
                    stated |= header.op == Op::Hello && header.status == wanted;
                    stated |= self.terms.epoch == 0 && header.status == wanted;
                }
                Heard::End => break,
            }
        }
        assert!(stated, "the session ended without a reason");
    }

    pub(crate) fn allocate(&mut self, bytes: u64) -> u64 {
        let bytes = bytes.try_into().expect("not 0");
        self.done(MemoryAllocate { bytes }).address
    }
}

/// An error has a code that this version knows, and words. One without a code of its own would be the mediator's.
fn assert_typed(status: Status, body: &[u8]) {
    let text = decode_error_text(body);
    match status {
        Status::Ok => {}
        Status::Unknown(_) | Status::Mediator(ErrorCode::Internal) => panic!("{status:?}: {text}"),
        _ => assert!(!text.is_empty(), "{status:?} without words"),
    }
}

//! Sessions over a socket pair, against a guest that is bytes and nothing else: what a guest may do
//! and break, while the loop, the rules and a backend run as they do in a worker. The rules alone are
//! tested in `vgpu_protocol::session`.

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use vgpu_protocol::frame::{Flags, FrameHeader, HEADER_LEN};
use vgpu_protocol::handle::{Handle, HandleKind};
use vgpu_protocol::op::field::StreamRef;
use vgpu_protocol::op::{
    Body, DeviceInfo, Exchange, ExchangeReply, Features, Fence, FenceReply, FillRange, Goodbye,
    Hello, HelloReply, Info, InfoReply, Launch, MemoryAllocate, MemoryAllocateReply, MemoryInfo,
    MemoryInfoReply, Op, Ping, PingReply, Request, Statistics, StreamCancel, StreamCancelReply,
    TakePrinted,
};
use vgpu_protocol::session::server::Failure;
use vgpu_protocol::status::{ErrorCode, Status, decode_error_text};
use vgpu_socket_transport::SocketTransport;
use vgpu_transport::Waker;

use super::backend::{Also, Backend, Event, NotOpened, Opened, SessionBackend};
use super::*;
use crate::executor::Executor;
use crate::executor::cpu::CpuExecutor;
use crate::usage::Usage;
use crate::worker::turns::Turns;

/// No wait of a test is longer.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(60);

pub(crate) fn settings() -> Settings {
    let long = Duration::from_secs(60);
    Settings {
        terms: Terms {
            max_lanes: 8.try_into().unwrap(),
            max_requests: 4.try_into().unwrap(),
            max_handles: 4,
            initial_credit: 1000,
            features: Features::ALL,
        },
        timeouts: Timeouts {
            hello: long,
            idle: long,
            stall: long,
            request: None,
        },
        operations: OpSet::ALL,
        epoch: 77,
        reason: Some("a test".into()),
        refusal: None,
    }
}

/// The same, with what executors count on that a guest may send at once.
pub(crate) fn as_in_a_worker() -> Settings {
    let mut settings = settings();
    settings.terms.initial_credit = INITIAL_CREDIT;
    settings
}

/// A guest's end of the stream.
pub(crate) struct Guest {
    pub(crate) stream: UnixStream,
}

impl Guest {
    pub(crate) fn send(&mut self, header: FrameHeader, body: &[u8]) {
        let header = header.with_body_len(u32::try_from(body.len()).unwrap());
        self.stream
            .write_all(&[&header.encode()[..], body].concat())
            .unwrap();
    }

    pub(crate) fn ask(&mut self, id: u32, lane: u16, request: impl Into<Request>) {
        let request = request.into();
        let mut body = Vec::new();
        request.encode_to(&mut body);
        self.send(
            FrameHeader::request(request.op(), id).with_lane(lane),
            &body,
        );
    }

    pub(crate) fn hello(&mut self) -> (Status, Vec<u8>) {
        self.ask(
            1,
            0,
            Hello {
                min_version: 1.try_into().unwrap(),
                max_version: 9,
                features: Features::ALL,
                client_name: "a script".into(),
            },
        );
        let (header, body) = self.next();
        assert_eq!(header.op, Op::Hello);
        (header.status, body)
    }

    /// The next frame; panics at the end of the stream.
    pub(crate) fn next(&mut self) -> (FrameHeader, Vec<u8>) {
        self.try_next().expect("a frame and not the end")
    }

    pub(crate) fn try_next(&mut self) -> Option<(FrameHeader, Vec<u8>)> {
        let mut header = [0; HEADER_LEN];
        let begun = match self.stream.read(&mut header[..1]) {
            // Of a mediator that has not read all there was.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
            read => read.expect("in time"),
        };
        match begun {
            0 => return None,
            _ => self
                .stream
                .read_exact(&mut header[1..])
                .expect("a whole header"),
        }
        let header = FrameHeader::decode(&header).expect("the mediator's own frames are sound");
        let mut body = vec![0; header.body_len as usize];
        self.stream.read_exact(&mut body).expect("a whole body");
        Some((header, body))
    }

    /// The next frame; `None` at the end of the stream, also in the middle of a frame.
    fn try_next_unless_cut(&mut self) -> Option<FrameHeader> {
        let mut header = [0; HEADER_LEN];
        self.stream.read_exact(&mut header).ok()?;
        let header = FrameHeader::decode(&header).expect("the mediator's own frames are sound");
        let mut body = vec![0; header.body_len as usize];
        self.stream.read_exact(&mut body).ok()?;
        Some(header)
    }

    /// The next frame that is no data, and the data before it by request.
    pub(crate) fn reply(&mut self) -> (FrameHeader, Vec<u8>, HashMap<u32, Vec<u8>>) {
        let mut data: HashMap<u32, Vec<u8>> = HashMap::new();
        loop {
            let (header, body) = self.next();
            if header.op != Op::Data {
                return (header, body, data);
            }
            data.entry(header.request_id).or_default().extend(body);
        }
    }

    /// The reply to request `id`, which is to be the next, and its status.
    pub(crate) fn status_of(&mut self, id: u32) -> Status {
        let (header, _, _) = self.reply();
        assert_eq!(header.request_id, id, "{header:?}");
        header.status
    }

    /// The mediator's Closing frame: status and text.
    pub(crate) fn last_words(&mut self) -> (Status, String) {
        let (header, body, _) = self.reply();
        assert_eq!(header.op, Op::Closing, "{header:?}");
        assert!(self.try_next().is_none());
        (header.status, decode_error_text(&body))
    }
}

/// Runs a session with `guest` at the other end.
pub(crate) fn session<T>(
    serve: impl FnOnce(&mut Stream, &Observed) -> SessionEnd + Send,
    guest: impl FnOnce(Guest) -> T,
) -> (T, SessionEnd, Usage) {
    let (near, far) = UnixStream::pair().unwrap();
    far.set_read_timeout(Some(WATCHDOG)).unwrap();
    far.set_write_timeout(Some(WATCHDOG)).unwrap();
    let observed = Observed::default();
    thread::scope(|scope| {
        let session = scope.spawn(|| {
            let mut stream = Stream::from(SocketTransport::from_unix(near).unwrap());
            serve(&mut stream, &observed)
        });
        let seen = guest(Guest { stream: far });
        let end = session.join().expect("no panic");
        (seen, end, observed.counters.usage())
    })
}

pub(crate) fn on_cpu<T>(
    settings: &Settings,
    guest: impl FnOnce(Guest) -> T,
) -> (T, SessionEnd, Usage) {
    let serve = |stream: &mut Stream, observed: &Observed| {
        let mut open = || Ok(Box::new(CpuExecutor::new("its own reason")) as _);
        serve(stream, &mut open, settings, observed, &StopFlag::default())
    };
    session(serve, guest)
}

/// A device that does what the test says, when it says so.
#[derive(Clone)]
pub(crate) struct Held(Arc<HeldState>);

struct HeldState {
    waker: Arc<Waker>,
    inner: Mutex<HeldInner>,
}

#[derive(Default)]
pub(crate) struct HeldInner {
    /// No further request may be started.
    pub(crate) full: bool,
    pub(crate) started: Vec<Request>,
    pub(crate) cancelled: Vec<u32>,
    pub(crate) events: VecDeque<Event>,
    /// Room for the data of every request.
    pub(crate) room: Vec<u8>,
    pub(crate) output: HashMap<u32, Vec<u8>>,
}

impl Held {
    pub(crate) fn new() -> Self {
        Self(Arc::new(HeldState {
            waker: Arc::new(Waker::new().unwrap()),
            inner: Mutex::default(),
        }))
    }

    /// Has the device do something, from another thread than the session's.
    pub(crate) fn now<T>(&self, act: impl FnOnce(&mut HeldInner) -> T) -> T {
        let done = act(&mut self.0.inner.lock().unwrap());
        self.0.waker.raise();
        done
    }

    pub(crate) fn done(&self, id: u32, body: Vec<u8>) {
        self.now(|inner| inner.events.push_back(Event::Done(id, Ok(body))));
    }

    pub(crate) fn wait_for(&self, what: impl Fn(&HeldInner) -> bool) {
        let deadline = Instant::now() + WATCHDOG;
        while !what(&self.0.inner.lock().unwrap()) {
            assert!(Instant::now() < deadline);
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The session's side of it.
pub(crate) struct HeldBackend {
    held: Held,
    waker: Arc<Waker>,
    room: Vec<u8>,
    output: Vec<u8>,
}

impl HeldBackend {
    pub(crate) fn new(held: &Held) -> Self {
        Self {
            held: held.clone(),
            waker: Arc::clone(&held.0.waker),
            room: Vec::new(),
            output: Vec::new(),
        }
    }
}

impl Backend for HeldBackend {
    fn start(&mut self, header: &FrameHeader, request: Request) {
        self.held.now(|inner| {
            if let Request::Ping(ping) = &request {
                let payload = ping.payload.clone();
                let body = PingReply { payload }.encode();
                inner
                    .events
                    .push_back(Event::Done(header.request_id, Ok(body)));
            }
            if let Request::MemoryInfo(_) = &request {
                let body = MemoryInfoReply { free: 1, total: 1 }.encode();
                inner
                    .events
                    .push_back(Event::Done(header.request_id, Ok(body)));
            }
            if let Request::Info(_) = &request {
                let text = |text: &str| text.into();
                let info = InfoReply {
                    total_memory: 1,
                    executor: text("held"),
                    device: text("test"),
                    driver: text(""),
                    reason: text("a test"),
                    mediator: text("a test"),
                };
                let done = Event::Done(header.request_id, Ok(info.encode()));
                inner.events.push_back(done);
                return;
            }
            if let Request::Fence(_) = &request {
                let failures = Default::default();
                let body = FenceReply {
                    dropped: 0,
                    failures,
                }
                .encode();
                inner
                    .events
                    .push_back(Event::Done(header.request_id, Ok(body)));
            }
            inner.started.push(request);
        });
    }

    fn input(&mut self, _: u32) -> &mut [u8] {
        let len = self.held.0.inner.lock().unwrap().room.len();
        self.room.resize(len, 0);
        &mut self.room
    }

    fn filled(&mut self, _: u32, n: usize) {
        self.held.now(|inner| drop(inner.room.drain(..n)));
    }

    fn output(&mut self, id: u32) -> &[u8] {
        let inner = self.held.0.inner.lock().unwrap();
        self.output = inner.output.get(&id).cloned().unwrap_or_default();
        &self.output
    }

    fn sent(&mut self, id: u32, n: usize) {
        self.held
            .now(|inner| drop(inner.output.entry(id).or_default().drain(..n)));
    }

    fn cancel(&mut self, id: u32) {
        self.held.now(|inner| inner.cancelled.push(id));
    }

    fn may_start(&self) -> bool {
        !self.held.0.inner.lock().unwrap().full
    }

    fn next_event(&mut self) -> Option<Event> {
        self.held.0.waker.lower();
        self.held.0.inner.lock().unwrap().events.pop_front()
    }

    fn also(&mut self) -> Also<'_> {
        Also::Awaited(&mut self.waker)
    }
}

impl SessionBackend for HeldBackend {
    fn open(&mut self, _: Duration) -> Result<Opened, NotOpened> {
        Ok(Opened {
            terms: None,
            features: Features::ALL,
        })
    }
}

fn on_held<T>(
    settings: &Settings,
    stop: &StopFlag,
    guest: impl FnOnce(Guest, &Held) -> T,
) -> (T, SessionEnd, Usage) {
    let held = Held::new();
    let mut backend = HeldBackend::new(&held);
    let serve = |stream: &mut Stream, observed: &Observed| {
        run(stream, &mut backend, settings, observed, stop)
    };
    session(serve, |mut session| {
        assert!(session.hello().0.is_ok());
        guest(session, &held)
    })
}

/// 8 bytes up and 4 down for each element.
pub(crate) fn exchange(elements: u64) -> Exchange {
    Exchange {
        up: 8 * elements,
        down: 4 * elements,
    }
}

/// Data for that.
pub(crate) fn data(elements: usize) -> Vec<u8> {
    (0..8 * elements)
        .map(|i| (i.wrapping_mul(0x9e37_79b9) >> 13).to_le_bytes()[0])
        .collect()
}

pub(crate) fn assert_answer(elements: usize, answer: &[u8]) {
    assert!(answer == &data(elements)[..4 * elements], "{elements}");
}

pub(crate) fn ping(payload: &[u8]) -> Ping {
    let payload = vgpu_protocol::op::field::Bytes::new(payload).unwrap();
    Ping { payload }
}

#[test]
fn hello_info_ping_goodbye() {
    let ((), end, usage) = on_cpu(&settings(), |mut guest| {
        let (status, body) = guest.hello();
        assert!(status.is_ok());
        let reply = HelloReply::decode(&body).unwrap();
        assert_eq!(
            (reply.version.get(), reply.epoch, reply.max_lanes.get()),
            (1, 77, 8)
        );
        guest.ask(2, 0, Info {});
        let info = InfoReply::decode(&guest.reply().1).unwrap();
        assert_eq!(
            (info.executor.as_str(), info.reason.as_str()),
            ("cpu", "a test")
        );
        guest.ask(3, 7, ping(b"abc"));
        let (header, body, _) = guest.reply();
        assert_eq!((header.request_id, header.lane), (3, 7));
        assert_eq!(PingReply::decode(&body).unwrap().payload.as_slice(), b"abc");
        guest.ask(4, 0, Goodbye {});
        assert!(guest.status_of(4).is_ok());
        assert!(guest.try_next().is_none());
    });
    assert!(matches!(end, SessionEnd::Goodbye), "{end}");
    assert_eq!((usage.requests, usage.failed_requests), (4, 0));
}

/// Sends the data of an exchange as its credit allows, and returns what comes back.
pub(crate) fn stream_exchange(
    guest: &mut Guest,
    id: u32,
    elements: usize,
    frame: usize,
    initial_credit: usize,
) -> Vec<u8> {
    let up = data(elements);
    guest.ask(id, 0, exchange(elements as u64));
    let (mut sent, mut credit, mut down) = (0, initial_credit, Vec::new());
    loop {
        while sent < up.len() && credit > 0 {
            let n = frame.min(credit).min(up.len() - sent);
            let more = sent + n < up.len();
            let of = FrameHeader::request(Op::Exchange, id);
            guest.send(FrameHeader::data_up(&of, 0, more), &up[sent..sent + n]);
            sent += n;
            credit -= n;
        }
        let (header, body) = guest.next();
        if header.op != Op::Data {
            assert!(header.status.is_ok(), "{}", decode_error_text(&body));
            ExchangeReply::decode(&body).unwrap();
            return down;
        }
        credit += header.credit as usize;
        down.extend(body);
    }
}

#[test]
fn exchanges_of_all_sizes_in_frames_of_all_sizes() {
    on_cpu(&settings(), |mut guest| {
        guest.hello();
        let mut id = 2;
        for elements in [1, 1000, 65_535, 65_537, 300_000] {
            for frame in [700, 4096, 1 << 20] {
                let answer = stream_exchange(&mut guest, id, elements, frame, 1000);
                assert_answer(elements, &answer);
                id += 1;
            }
        }
    });
}

/// Any number of bytes may be sent back, from none to all, and none may be sent.
#[test]
fn exchanges_send_back_as_much_as_is_asked_for() {
    on_cpu(&settings(), |mut guest| {
        guest.hello();
        for (id, up, down) in [
            (2, 0, 0),
            (3, 3_000_000, 0),
            (4, 3_000_000, 3_000_000),
            (5, 1, 1),
            (6, 2_500_000, 7),
        ] {
            guest.ask(id, 0, Exchange { up, down });
            let of = FrameHeader::request(Op::Exchange, id);
            let bytes: Vec<u8> = (0..up).map(|i| (i % 251) as u8).collect();
            let (mut sent, mut credit, mut back) = (0, 1000, Vec::new());
            loop {
                let n = credit.min(bytes.len() - sent);
                if n > 0 {
                    let more = sent + n < bytes.len();
                    guest.send(FrameHeader::data_up(&of, 0, more), &bytes[sent..sent + n]);
                    (sent, credit) = (sent + n, credit - n);
                }
                let (header, body) = guest.next();
                if header.op != Op::Data {
                    assert!(header.status.is_ok(), "{}", decode_error_text(&body));
                    break;
                }
                credit += header.credit as usize;
                back.extend(body);
            }
            assert!(
                back == bytes[..back.len()] && back.len() as u64 == down,
                "{up} {down}"
            );
        }
    });
}

/// Adds vectors by a kernel, as a guest does; the session's time on the device is counted.
pub(crate) fn add_on_the_device(guest: Guest) {
    let transport = SocketTransport::from_unix(guest.stream).unwrap();
    let options = vgpu_guest::Options::default();
    let mut client = vgpu_guest::Client::over(Box::new(transport), &options).unwrap();
    let mut sums = [0.0; 1000];
    client
        .vector_add(&[1.0; 1000], &[2.5; 1000], &mut sums)
        .unwrap();
    assert_eq!(sums, [3.5; 1000]);
    client.goodbye().unwrap();
}

#[test]
fn what_the_device_works_is_counted() {
    let ((), end, usage) = on_cpu(&as_in_a_worker(), add_on_the_device);
    assert!(matches!(end, SessionEnd::Goodbye), "{end}");
    assert!(usage.device_ns > 0);
}

#[test]
fn a_request_that_waits_for_the_device_holds_up_no_other_lane() {
    let ((), end, _) = on_held(&settings(), &StopFlag::default(), |mut guest, held| {
        guest.ask(2, 0, exchange(500));
        // All that its credit allows has come, and there is no room for it.
        let of = FrameHeader::request(Op::Exchange, 2);
        held.wait_for(|inner| inner.started.len() == 1);
        held.now(|inner| inner.room.resize(1000, 0));
        guest.send(FrameHeader::data_up(&of, 0, true), &[0; 1000]);
        guest.ask(3, 1, ping(b"one"));
        assert!(guest.status_of(3).is_ok());
        guest.ask(4, 0, ping(b"the same lane"));
        assert!(guest.status_of(4).is_ok());
        // A fence of its lane waits, another's does not.
        guest.ask(5, 0, Fence {});
        guest.ask(6, 1, Fence {});
        assert!(guest.status_of(6).is_ok());
        // The device has room again: the guest gets credit, and sends the rest.
        held.now(|inner| {
            inner.room.resize(3000, 0);
            inner.events.push_back(Event::Room(2, 3000));
        });
        let (header, _) = guest.next();
        assert_eq!(
            (header.op, header.request_id, header.credit),
            (Op::Data, 2, 3000)
        );
        guest.send(FrameHeader::data_up(&of, 0, false), &[0; 3000]);
        held.wait_for(|inner| inner.room.is_empty());
        held.now(|inner| inner.output.insert(2, vec![1; 2000]));
        held.done(2, ExchangeReply {}.encode());
        let (header, _, data) = guest.reply();
        assert_eq!((header.request_id, data[&2].len()), (2, 2000));
        assert!(guest.status_of(5).is_ok());
    });
    assert!(matches!(end, SessionEnd::GuestClosed(false)), "{end}");
}

#[test]
fn data_of_two_lanes_takes_turns() {
    on_held(&settings(), &StopFlag::default(), |mut guest, held| {
        for (id, lane) in [(2, 0), (3, 1)] {
            guest.ask(id, lane, exchange(125_000));
        }
        held.wait_for(|inner| inner.started.len() == 2);
        held.now(|inner| {
            for id in [2, 3] {
                inner.output.insert(id, vec![0; 500_000]);
            }
        });
        let mut order = Vec::new();
        while order.len() < 2 {
            let (header, body) = guest.next();
            if !body.is_empty() {
                order.push(header.request_id);
            }
        }
        order.sort_unstable();
        assert_eq!(order, [2, 3]);
    });
}

#[test]
fn a_guest_that_gives_up_is_told_so_and_goes_on() {
    let ((), end, usage) = on_cpu(&settings(), |mut guest| {
        guest.hello();
        guest.ask(2, 0, exchange(100_000));
        let of = FrameHeader::request(Op::Exchange, 2);
        guest.send(FrameHeader::data_up(&of, 0, true), &[0; 800]);
        guest.send(FrameHeader::data_up(&of, 0, false), &[]);
        assert_eq!(guest.status_of(2), ErrorCode::Cancelled.into());
        let answer = stream_exchange(&mut guest, 3, 1000, 1000, 1000);
        assert_answer(1000, &answer);
        guest.ask(4, 0, Goodbye {});
        assert!(guest.status_of(4).is_ok());
    });
    assert!(matches!(end, SessionEnd::Goodbye), "{end}");
    assert_eq!(usage.failed_requests, 1);
}

#[test]
fn a_failure_in_the_middle_leaves_the_session() {
    on_held(&settings(), &StopFlag::default(), |mut guest, held| {
        guest.ask(2, 0, exchange(1000));
        held.wait_for(|inner| inner.started.len() == 1);
        let failure = Failure {
            status: Status::Cuda(700),
            text: "an illegal address".into(),
        };
        held.now(|inner| inner.events.push_back(Event::Done(2, Err(failure))));
        let (header, body, _) = guest.reply();
        assert_eq!(header.status, Status::Cuda(700));
        assert_eq!(decode_error_text(&body), "an illegal address");
        // Data under way is dropped, room or not.
        let of = FrameHeader::request(Op::Exchange, 2);
        guest.send(FrameHeader::data_up(&of, 0, true), &[0; 900]);
        guest.send(FrameHeader::data_up(&of, 0, false), &[]);
        guest.ask(3, 0, ping(b"go on"));
        assert!(guest.status_of(3).is_ok());
    });
}

#[test]
fn a_lost_device_ends_the_session_with_its_reason() {
    let ((), end, _) = on_held(&settings(), &StopFlag::default(), |mut guest, held| {
        guest.ask(2, 0, exchange(1000));
        held.wait_for(|inner| inner.started.len() == 1);
        held.now(|inner| {
            inner.events.push_back(Event::Lost(Box::new(NotOpened {
                code: ErrorCode::BackendLost,
                text: "it fell off the bus".into(),
                end: SessionEnd::ExecutorLost("it fell off the bus".into()),
            })));
        });
        let (status, text) = guest.last_words();
        assert_eq!(
            (status, &*text),
            (ErrorCode::BackendLost.into(), "it fell off the bus")
        );
    });
    assert!(matches!(end, SessionEnd::ExecutorLost(_)), "{end}");
}

#[test]
fn a_stop_waits_for_what_is_under_way_and_lets_nothing_new_begin() {
    let stop = StopFlag::default();
    let ((), end, _) = on_held(&settings(), &stop, |mut guest, held| {
        guest.ask(2, 0, exchange(1));
        let of = FrameHeader::request(Op::Exchange, 2);
        held.now(|inner| inner.room.resize(8, 0));
        guest.send(FrameHeader::data_up(&of, 0, false), &[0; 8]);
        held.wait_for(|inner| inner.started.len() == 1 && inner.room.is_empty());
        stop.set(StopReason::Draining);
        // Not at once: the session looks for it when it waits.
        let mut id = 3;
        loop {
            guest.ask(id, 1, ping(b"?"));
            let status = guest.status_of(id);
            if !status.is_ok() {
                assert_eq!(status, ErrorCode::Busy.into());
                break;
            }
            id += 1;
            thread::sleep(Duration::from_millis(5));
        }
        held.now(|inner| inner.output.insert(2, vec![0; 4]));
        held.done(2, ExchangeReply {}.encode());
        assert!(guest.status_of(2).is_ok());
        assert_eq!(guest.last_words().0, ErrorCode::Busy.into());
    });
    assert!(
        matches!(end, SessionEnd::Stopped(StopReason::Draining)),
        "{end}"
    );
}

#[test]
fn nothing_waits_for_ever() {
    let short = Duration::from_millis(40);
    let mut quick = settings();
    quick.timeouts.hello = short;
    let (words, end, _) = on_cpu(&quick, |mut guest| guest.last_words());
    assert_eq!(words.0, ErrorCode::Timeout.into());
    assert!(
        end.to_string().contains("no complete Hello within 40 ms"),
        "{end}"
    );

    let mut quick = settings();
    quick.timeouts.idle = short;
    let (words, end, _) = on_cpu(&quick, |mut guest| {
        guest.hello();
        guest.last_words()
    });
    assert_eq!(words.0, ErrorCode::Timeout.into());
    assert!(end.to_string().contains("no request within 40 ms"), "{end}");

    let mut quick = settings();
    quick.timeouts.stall = short;
    let (words, end, _) = on_cpu(&quick, |mut guest| {
        guest.hello();
        let header = FrameHeader::request(Op::Info, 2).encode();
        guest.stream.write_all(&header[..9]).unwrap();
        guest.last_words()
    });
    assert_eq!(words.0, ErrorCode::Timeout.into());
    assert!(end.to_string().contains("half a frame"), "{end}");

    // A request whose data does not come fails, and the session with it if nothing comes then.
    let (status, end, _) = on_cpu(&quick, |mut guest| {
        guest.hello();
        guest.ask(2, 0, exchange(1000));
        let status = guest.status_of(2);
        guest.last_words();
        status
    });
    assert_eq!(status, ErrorCode::Timeout.into());
    assert!(end.to_string().contains("half a request"), "{end}");

    // One that the device does not finish is cancelled.
    let ((), end, _) = on_held(&quick, &StopFlag::default(), |mut guest, held| {
        guest.ask(2, 0, exchange(1));
        held.now(|inner| inner.room.resize(8, 0));
        let of = FrameHeader::request(Op::Exchange, 2);
        guest.send(FrameHeader::data_up(&of, 0, false), &[0; 8]);
        assert_eq!(guest.status_of(2), ErrorCode::Timeout.into());
        held.wait_for(|inner| inner.cancelled == [2]);
        guest.ask(3, 0, Goodbye {});
        assert!(guest.status_of(3).is_ok());
    });
    assert!(matches!(end, SessionEnd::Goodbye), "{end}");
}

/// Requests that were sent behind it wait longer than a guest may be silent.
#[test]
fn a_backend_that_can_start_nothing_is_shown_to_work() {
    let mut quick = settings();
    quick.timeouts.stall = Duration::from_secs(1);
    quick.timeouts.idle = Duration::from_secs(1);
    let ((), end, _) = on_held(&quick, &StopFlag::default(), |mut guest, held| {
        held.now(|inner| inner.full = true);
        // The second is read together with the first, or not at all.
        guest.ask(2, 0, MemoryInfo {});
        guest.ask(3, 0, MemoryInfo {});
        for _ in 0..30 {
            held.now(|inner| inner.events.push_back(Event::Working));
            thread::sleep(Duration::from_millis(100));
        }
        for _ in 0..2 {
            assert_eq!(guest.next().0, FrameHeader::working());
        }
        held.now(|inner| inner.full = false);
        assert!(guest.status_of(2).is_ok());
        assert!(guest.status_of(3).is_ok());
        guest.ask(4, 0, Goodbye {});
        assert!(guest.status_of(4).is_ok());
    });
    assert!(matches!(end, SessionEnd::Goodbye), "{end}");
}

/// A cancel is found behind the requests that it is to release, and the launches that it cancels do not start.
#[test]
fn a_cancel_reaches_a_backend_that_can_start_nothing_else() {
    let stream = StreamRef::of(Handle::new(HandleKind::Stream, 1, 1).unwrap());
    let launch = Launch {
        module: Handle::new(HandleKind::Module, 1, 1).unwrap(),
        function: 0,
        grid: [1; 3],
        block: [1; 3],
        shared_bytes: 0,
        stream,
        deadline_ms: 0,
        parameters: Default::default(),
        attributes: Default::default(),
    };
    let ((), end, usage) = on_held(&settings(), &StopFlag::default(), |mut guest, held| {
        held.now(|inner| inner.full = true);
        for id in 2..500 {
            guest.ask(id, 0, MemoryInfo {});
        }
        guest.ask(500, 1, launch);
        guest.ask(501, 2, StreamCancel { stream });
        held.wait_for(|inner| !inner.started.is_empty());
        held.now(|inner| {
            assert!(matches!(inner.started[..], [Request::StreamCancel(_)]));
            // It ends what keeps the others, but until it is answered they wait.
            inner.full = false;
        });
        held.done(501, StreamCancelReply { kernels: 3 }.encode());
        let (header, body) = guest.next();
        assert_eq!((header.request_id, header.lane), (501, 2));
        assert_eq!(StreamCancelReply::decode(&body).unwrap().kernels, 4);
        for id in 2..500 {
            assert!(guest.status_of(id).is_ok());
        }
        assert_eq!(guest.status_of(500), ErrorCode::Cancelled.into());
        held.now(|inner| assert_eq!(inner.started.len(), 1 + 498));
        guest.ask(502, 0, Goodbye {});
        assert!(guest.status_of(502).is_ok());
    });
    assert!(matches!(end, SessionEnd::Goodbye), "{end}");
    assert_eq!((usage.requests, usage.failed_requests), (502, 1));
}

/// Requests that do not touch the device are answered while the device keeps another lane waiting, in the order of their lane.
#[test]
fn a_lane_that_cannot_start_holds_up_no_ping_and_no_fence_of_another() {
    let ((), end, usage) = on_held(&settings(), &StopFlag::default(), |mut guest, held| {
        held.now(|inner| inner.full = true);
        guest.ask(2, 0, MemoryInfo {});
        guest.ask(3, 0, ping(b"behind it"));
        guest.ask(4, 1, ping(b"beside it"));
        guest.ask(5, 1, Fence {});
        guest.ask(6, 2, Info {});
        guest.ask(7, 2, MemoryInfo {});
        guest.ask(8, 2, Fence {});
        for id in [4, 5, 6] {
            assert!(guest.status_of(id).is_ok());
        }
        held.now(|inner| {
            assert!(matches!(
                inner.started[..],
                [Request::Ping(_), Request::Fence(_)]
            ));
            inner.full = false;
        });
        for id in [2, 3, 7, 8] {
            assert!(guest.status_of(id).is_ok());
        }
        guest.ask(9, 0, Goodbye {});
        assert!(guest.status_of(9).is_ok());
    });
    assert!(matches!(end, SessionEnd::Goodbye), "{end}");
    assert_eq!((usage.requests, usage.failed_requests), (9, 0));
}

/// The same on a device whose turn the session waits for.
#[test]
fn work_that_waits_for_its_turn_holds_up_no_other_lane() {
    let turns = Arc::new(Turns::shared(|_| {}));
    let settings = settings();
    let serve = |stream: &mut Stream, observed: &Observed| {
        let mut open = || {
            let mut executor = CpuExecutor::new("its own reason");
            executor.set_turns(&turns);
            Ok(Box::new(executor) as _)
        };
        serve(stream, &mut open, &settings, observed, &StopFlag::default())
    };
    let ((), end, usage) = session(serve, |mut guest| {
        assert!(guest.hello().0.is_ok());
        let bytes = 64.try_into().unwrap();
        guest.ask(2, 0, MemoryAllocate { bytes });
        let (header, body, _) = guest.reply();
        assert!(header.status.is_ok(), "{header:?}");
        let to = MemoryAllocateReply::decode(&body).unwrap().address;
        let fill = FillRange {
            to,
            value: 7,
            element_bytes: 1,
            count: bytes,
            stream: StreamRef::DEFAULT,
        };
        guest.ask(3, 0, fill.clone());
        guest.ask(4, 0, fill);
        guest.ask(5, 0, Fence {});
        guest.ask(6, 1, ping(b"beside it"));
        guest.ask(7, 1, Fence {});
        guest.ask(8, 2, Statistics {});
        guest.ask(9, 3, DeviceInfo { device: 0 });
        guest.ask(10, 3, TakePrinted {});
        for id in 6..=10 {
            assert!(guest.status_of(id).is_ok());
        }
        turns.give(None);
        for id in 3..=5 {
            assert!(guest.status_of(id).is_ok());
        }
        guest.ask(11, 0, Goodbye {});
        assert!(guest.status_of(11).is_ok());
    });
    assert!(matches!(end, SessionEnd::Goodbye), "{end}");
    assert_eq!((usage.requests, usage.failed_requests), (11, 0));
}

/// The end of a guest is noticed however much it has sent that cannot start, and none of that is done.
#[test]
fn a_dead_guest_is_noticed_behind_what_it_has_sent() {
    for most in [100, usize::MAX] {
        let (sent, end, usage) = on_held(&settings(), &StopFlag::default(), |guest, held| {
            held.now(|inner| inner.full = true);
            let mut body = Vec::new();
            ping(&[7; 4000]).encode_to(&mut body);
            let len = u32::try_from(body.len()).unwrap();
            let mut stream = &guest.stream;
            // As much as there is room for, where it never ends.
            let patience = Some(Duration::from_millis(200));
            stream.set_write_timeout(patience).unwrap();
            let mut sent = 0;
            for id in (2..).take(most) {
                // Quiet, so that it overtakes nothing.
                let header = FrameHeader::request(Op::Ping, id).with_body_len(len);
                let header = header.with_flags(Flags::QUIET);
                let frame = [&header.encode()[..], &body].concat();
                if stream.write_all(&frame).is_err() {
                    break;
                }
                sent += 1;
            }
            assert!(held.0.inner.lock().unwrap().started.is_empty());
            sent
        });
        assert!(sent == most || sent > 500, "{sent}");
        assert!(matches!(end, SessionEnd::GuestClosed(_)), "{end}");
        assert!(usage.requests <= 2, "{} of {sent}", usage.requests);
    }
}

/// A guest that never pauses is stopped all the same, and another lane of its is still late.
#[test]
fn a_flood_of_requests_holds_up_neither_a_stop_nor_a_deadline() {
    let stop = StopFlag::default();
    let mut quick = settings();
    quick.timeouts.stall = Duration::from_millis(40);
    let (late, end, _) = on_held(&quick, &stop, |mut guest, held| {
        guest.ask(2, 0, exchange(1));
        let mut flood = guest.stream.try_clone().unwrap();
        let flooding = thread::spawn(move || {
            let mut body = Vec::new();
            ping(b"").encode_to(&mut body);
            for id in 3.. {
                let len = u32::try_from(body.len()).unwrap();
                let header = FrameHeader::request(Op::Ping, id)
                    .with_lane(1)
                    .with_body_len(len);
                if flood
                    .write_all(&[&header.encode()[..], &body].concat())
                    .is_err()
                {
                    return;
                }
            }
        });
        // Between the answers to the flood.
        let late = loop {
            let (header, _) = guest.next();
            if header.request_id == 2 {
                break header.status;
            }
        };
        held.wait_for(|inner| inner.cancelled == [2]);
        // The data of the request that failed ends, so that nothing is left under way.
        stop.set(StopReason::Kicked);
        while guest.try_next_unless_cut().is_some() {}
        flooding.join().unwrap();
        late
    });
    assert_eq!(late, ErrorCode::Timeout.into());
    assert!(
        matches!(end, SessionEnd::Stopped(_) | SessionEnd::TimedOut(_)),
        "{end}"
    );
}

#[test]
fn a_guest_that_takes_no_replies_is_let_go() {
    let mut quick = settings();
    quick.timeouts.stall = Duration::from_millis(40);
    let (_, end, _) = on_cpu(&quick, |mut guest| {
        guest.hello();
        guest.stream.set_nonblocking(true).unwrap();
        let mut body = Vec::new();
        ping(&[0; 4000]).encode_to(&mut body);
        let mut id = 2;
        let deadline = Instant::now() + WATCHDOG;
        // As many pings as anybody takes.
        loop {
            let len = u32::try_from(body.len()).unwrap();
            let header = FrameHeader::request(Op::Ping, id).with_body_len(len);
            let frame = [&header.encode()[..], &body].concat();
            let mut sent = 0;
            while sent < frame.len() {
                match guest.stream.write(&frame[sent..]) {
                    Ok(n) => sent += n,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        assert!(Instant::now() < deadline);
                        thread::sleep(Duration::from_millis(1));
                    }
                    Err(_) => return,
                }
            }
            id += 1;
        }
    });
    assert!(
        matches!(&end, SessionEnd::TimedOut(text) if text.contains("no reply taken")),
        "{end}"
    );
}

#[test]
fn broken_protocol_and_early_ends_are_told_apart() {
    let (words, end, _) = on_cpu(&settings(), |mut guest| {
        guest.hello();
        guest.stream.write_all(&[0x55; 64]).unwrap();
        guest.last_words()
    });
    assert_eq!(words.0, ErrorCode::Protocol.into());
    assert!(matches!(end, SessionEnd::GuestFault(_)), "{end}");

    let ((), end, _) = on_cpu(&settings(), |mut guest| {
        guest.hello();
        guest.ask(2, 0, exchange(1000));
        guest.stream.shutdown(Shutdown::Both).unwrap();
    });
    assert!(matches!(end, SessionEnd::GuestClosed(true)), "{end}");

    let ((), end, _) = on_cpu(&settings(), drop);
    assert!(matches!(end, SessionEnd::GuestClosed(false)), "{end}");
}

#[test]
fn a_refused_guest_is_told_why() {
    let refusal = Refusal {
        code: ErrorCode::Denied,
        text: "not you".into(),
    };
    let mut denied = settings();
    denied.refusal = Some(refusal.clone());
    let ((status, body), end, _) = on_cpu(&denied, |mut guest| guest.hello());
    assert_eq!(
        (status, &*decode_error_text(&body)),
        (ErrorCode::Denied.into(), "not you")
    );
    assert!(matches!(end, SessionEnd::Refused(told) if told == refusal));
}

#[test]
fn an_executor_that_cannot_be_opened_is_named() {
    let serve = |stream: &mut Stream, observed: &Observed| {
        let mut open = || Err(OpenError::from("no such device".to_owned()));
        serve(
            stream,
            &mut open,
            &settings(),
            observed,
            &StopFlag::default(),
        )
    };
    let ((status, body), end, _) = session(serve, |mut guest| guest.hello());
    assert_eq!(status, ErrorCode::BackendLost.into());
    assert!(decode_error_text(&body).contains("no such device"));
    assert!(matches!(end, SessionEnd::ExecutorLost(_)), "{end}");
}

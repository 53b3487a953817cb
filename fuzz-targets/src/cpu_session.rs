//! A whole session on the processor: the mediator's loop, its rules and its executor, against a guest that asks for
//! anything.
//!
//! The input chooses what is asked, out of requests that mostly make sense, with handles, addresses and sizes that
//! often do not; and bytes of any kind in between. At its end the guest gives everything back that it knows of. Then
//! the device's memory must be as free as at the beginning, whatever came before.

use std::collections::VecDeque;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use vchan::region::{Access, OwnedRegion};
use vchan::{Channel, local};
use vgpu_mediator::executor::Executor;
use vgpu_mediator::executor::cpu::CpuExecutor;
use vgpu_mediator::policy::Share;
use vgpu_mediator::session::{INITIAL_CREDIT, Settings, StopFlag, Stream, Terms, Timeouts, serve};
use vgpu_mediator::usage::Observed;
use vgpu_protocol::frame::{Flags, FrameHeader};
use vgpu_protocol::handle::{Handle, HandleKind};
use vgpu_protocol::op::field::{Bytes, PoolRef, StreamRef};
use vgpu_protocol::op::{
    Body, CopyFromDevice, CopyRowsFromDevice, CopyRowsToDevice, CopyRowsWithinDevice, CopyToDevice,
    CopyWithinDevice, DeviceInfo, DeviceSelect, EventCreate, EventDestroy, EventElapsed,
    EventQuery, EventRecord, EventSynchronize, Exchange, Features, Fence, FieldSpec, FillRange,
    FillRows, FunctionSetAttribute, Goodbye, GraphDestroy, GraphExecDestroy, GraphInstantiate,
    GraphLaunch, Hello, Info, Launch, MemoryAllocate, MemoryAllocateAsync,
    MemoryAllocateAsyncReply, MemoryAllocateReply, MemoryAllocateRows, MemoryAllocateRowsReply,
    MemoryFree, MemoryFreeAsync, MemoryInfo, MemoryInfoReply, MemoryPoolCreate, MemoryPoolDestroy,
    MemoryPoolInfo, MemoryPoolSetAttribute, MemoryPoolTrim, ModuleFunction, ModuleGlobal,
    ModuleLoad, ModuleUnload, Op, OpSet, Ping, RegionUnmap, Request, Statistics,
    StreamBeginCapture, StreamCancel, StreamCaptureInfo, StreamCreate, StreamDestroy,
    StreamEndCapture, StreamQuery, StreamSynchronize, StreamWaitEvent, Synchronize, TakePrinted,
};
use vgpu_protocol::session::inbox::{Inbox, Received};
use vgpu_protocol::{MIN_VERSION, VERSION};
use vgpu_transport::{Interest, Transport, TransportError};

use crate::input::Input;

/// Far beyond what a session takes whose kernels end after some milliseconds.
const SESSION_LIMIT: Duration = Duration::from_secs(120);
/// How long a guest stays that waits for nothing.
const IDLE_GUEST_TIME: Duration = Duration::from_millis(5);
/// How long it sleeps between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// Handles and events of each kind that the guest names.
const OBJECTS: u32 = 3;
/// Requests of one input.
const MOST: u32 = 200;

/// Bytes of each of its regions.
const REGION: u64 = 8192;

/// Data for copies to the device.
const DATA: [u8; 5000] = [0x5a; 5000];

const MODULE: &str = ".version 8.0
.target sm_80
.address_size 64
.extern .func (.param .b32 n) vprintf (.param .b64 form, .param .b64 arguments);
.visible .global .align 4 .u32 counter = 41;
.global .align 1 .b8 text[4] = {104, 105, 10, 0};
.visible .entry put(.param .u64 to, .param .u32 value) {
    .reg .b64 %to; .reg .b32 %v, %t; .reg .b64 %at;
    ld.param.u64 %to, [to]; ld.param.u32 %v, [value];
    mov.u32 %t, %tid.x; mul.wide.u32 %at, %t, 4; add.s64 %to, %to, %at;
    st.global.u32 [%to], %v; ret;
}
.visible .entry spin(.param .u64 word) {
    .reg .b64 %w; .reg .b32 %v; .reg .pred %p;
    ld.param.u64 %w, [word];
L:  ld.volatile.global.u32 %v, [%w]; setp.ne.u32 %p, %v, 7; @%p bra L; ret;
}
.visible .entry say() {
    .reg .b64 %f, %z; .reg .b32 %r;
    mov.u64 %f, text; cvta.global.u64 %f, %f; mov.u64 %z, 0;
    { .param .b64 a; .param .b64 b; .param .b32 c; st.param.b64 [a], %f; st.param.b64 [b], %z; call.uni (c), vprintf, (a, b); ld.param.b32 %r, [c]; }
    ret;
}
.visible .entry stop() { trap; }
";

/// The mediator's replies, as far as the guest needs them.
struct Heard {
    inbox: Inbox,
    addresses: Vec<u64>,
    /// Hello was answered.
    open: bool,
    /// The request whose answer is awaited.
    awaited: u32,
    /// Whether that request succeeded, once it is answered.
    answer: Option<bool>,
    /// The last answer to MemoryInfo.
    memory: Option<(u64, u64)>,
    closing: bool,
}

impl Heard {
    fn new() -> Self {
        Self {
            inbox: Inbox::of_replies(),
            addresses: Vec::new(),
            open: false,
            awaited: 0,
            answer: None,
            memory: None,
            closing: false,
        }
    }

    /// Takes bytes, all of which must be valid frames. Nobody looks at data.
    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let space = self.inbox.space();
            let n = space.len().min(bytes.len());
            space[..n].copy_from_slice(&bytes[..n]);
            self.inbox.received(n);
            bytes = &bytes[n..];
            loop {
                self.inbox.drop_data();
                if self.inbox.data_left() > 0 {
                    break;
                }
                match self.inbox.next().expect("only valid headers are sent") {
                    Some(Received::Frame(header)) => {
                        let body = self.inbox.body().to_vec();
                        self.frame(&header, &body);
                    }
                    Some(Received::Data(_)) => {}
                    None => break,
                }
            }
        }
    }

    fn frame(&mut self, header: &FrameHeader, body: &[u8]) {
        let ok = header.status.is_ok();
        self.open = true;
        if header.request_id == self.awaited {
            self.answer = Some(ok);
        }
        match header.op {
            Op::Closing => self.closing = true,
            Op::MemoryAllocate if ok => {
                let reply = MemoryAllocateReply::decode(body).expect("a valid body");
                self.addresses.push(reply.address);
            }
            Op::MemoryAllocateRows if ok => {
                let reply = MemoryAllocateRowsReply::decode(body).expect("a valid body");
                self.addresses.push(reply.address);
            }
            Op::MemoryAllocateAsync if ok => {
                let reply = MemoryAllocateAsyncReply::decode(body).expect("a valid body");
                self.addresses.push(reply.address);
            }
            Op::MemoryInfo if ok => {
                let reply = MemoryInfoReply::decode(body).expect("a valid body");
                self.memory = Some((reply.free, reply.total));
            }
            _ => {}
        }
    }
}

/// The guest, and its end of the stream.
struct Guest {
    input: Vec<u8>,
    at: usize,
    out: VecDeque<u8>,
    portion: usize,
    /// It takes nothing that the mediator says.
    never_reads: bool,
    /// Bytes that were no request have been sent: the mediator may have ended the session, or take what follows for
    /// something else.
    raw: bool,
    next_id: u32,
    asked: u32,
    generations: u32,
    /// Requests at the end, one after the other.
    end: Option<VecDeque<Request>>,
    giving_back: bool,
    /// When the input was used up.
    since: Option<Instant>,
    over: bool,
    /// The end was reached, and everything was given back on a device that is sound.
    whole: Arc<Mutex<Option<(u64, u64)>>>,
    heard: Heard,
    /// Memory that the mediator may map.
    regions: Vec<OwnedRegion>,
}

impl Guest {
    fn new(data: &[u8], whole: Arc<Mutex<Option<(u64, u64)>>>, regions: Vec<OwnedRegion>) -> Self {
        let (first, rest) = data.split_first().unwrap_or((&0, &[]));
        let mut guest = Self {
            input: rest.to_vec(),
            at: 0,
            out: VecDeque::new(),
            portion: match first & 0x3f {
                0 => usize::MAX,
                n => usize::from(n) * 7,
            },
            never_reads: first & 0xc0 == 0xc0,
            raw: false,
            next_id: 1,
            asked: 0,
            generations: 1,
            end: None,
            giving_back: false,
            since: None,
            over: false,
            whole,
            heard: Heard::new(),
            regions,
        };
        let hello = Hello {
            min_version: MIN_VERSION.try_into().expect("not 0"),
            max_version: VERSION,
            features: Features::ALL,
            client_name: "fuzz".into(),
        };
        guest.ask(hello.into(), false, &[]);
        guest
    }

    /// Sends a request and its data.
    fn ask(&mut self, request: Request, quiet: bool, data: &[u8]) -> u32 {
        let id = self.next_id;
        self.next_id += 1;
        let may = request.op().spec().is_some_and(|spec| spec.quiet);
        let flags = match quiet && may {
            true => Flags::QUIET,
            false => Flags::NONE,
        };
        let lane = u16::from(id.is_multiple_of(5));
        let header = FrameHeader::request(request.op(), id)
            .with_flags(flags)
            .with_lane(if request.op() == Op::Hello { 0 } else { lane });
        let mut body = Vec::new();
        request.encode_to(&mut body);
        let len = u32::try_from(body.len()).expect("bodies are short");
        self.out.extend(header.with_body_len(len).encode());
        self.out.extend(body);
        let (up, _) = request.data();
        if up > 0 {
            // Less than is due ends it early.
            let n = data.len().min(usize::try_from(up).unwrap_or(usize::MAX));
            let n = n.min(INITIAL_CREDIT as usize);
            let len = u32::try_from(n).expect("less than the credit");
            self.out
                .extend(FrameHeader::data_up(&header, len, false).encode());
            self.out.extend(&data[..n]);
        }
        id
    }

    fn handle(&self, kind: HandleKind, input: &mut Input<'_>) -> Handle {
        let n = u32::from(input.u8());
        // Mostly the newest of its place, now and then an old one or one to come.
        let generation = match n / 16 {
            0 => self.generations.saturating_sub(1).max(1),
            1 => self.generations + 1,
            _ => self.generations,
        };
        Handle::new(kind, n % OBJECTS, generation).expect("a small slot")
    }

    fn stream(&self, input: &mut Input<'_>) -> StreamRef {
        match input.u8() % 3 {
            0 => StreamRef::of(self.handle(HandleKind::Stream, input)),
            _ => StreamRef::DEFAULT,
        }
    }

    fn pool(&self, input: &mut Input<'_>) -> PoolRef {
        match input.u8() % 3 {
            0 => PoolRef::DEFAULT,
            _ => PoolRef::of(self.handle(HandleKind::MemoryPool, input)),
        }
    }

    fn address(&self, input: &mut Input<'_>) -> u64 {
        let n = usize::from(input.u8());
        let known = &self.heard.addresses;
        let known = known.get(n % known.len().max(1)).copied();
        match input.u8() {
            0 => u64::from(input.u32()),
            1 => u64::from(input.u32()) << 32 | 0x7f00_0000_0000,
            2 => u64::MAX - u64::from(input.u8()),
            3 => known.unwrap_or(0) + 4 * u64::from(input.u16()),
            _ => known.unwrap_or(0x7f00_0000_0000),
        }
    }

    fn size(input: &mut Input<'_>) -> u64 {
        match input.u8() % 8 {
            0 => u64::from(input.u32()) << 16 | 1,
            1 => u64::MAX,
            2 => u64::from(input.u32()) + 1,
            3 => 4096,
            n => u64::from(n) * 100 + u64::from(input.u8()),
        }
    }

    /// The next request that the input asks for.
    fn next(&mut self) {
        let input = std::mem::take(&mut self.input);
        let mut rest = Input::new(&input[self.at..]);
        let request = self.choose(&mut rest);
        self.at = input.len() - rest.left();
        self.input = input;
        if let Some((request, quiet, up)) = request {
            self.ask(request, quiet, up);
        }
    }

    /// A request and its data; none where bytes of no kind were sent in its place.
    #[expect(clippy::too_many_lines, reason = "one arm for each operation")]
    fn choose(&mut self, i: &mut Input<'_>) -> Option<(Request, bool, &'static [u8])> {
        let quiet = i.u8() & 1 != 0;
        let bytes = |i: &mut Input<'_>| Self::size(i).max(1).try_into().expect("not 0");
        let rows = |i: &mut Input<'_>| u64::from(i.u8() % 9).max(1).try_into().expect("not 0");
        // A width of more bytes than any request may have would end the session.
        let width = |i: &mut Input<'_>| {
            let bytes = Self::size(i) & 0xffff_ffff;
            bytes.max(1).try_into().expect("not 0")
        };
        let mut up: &[u8] = match i.u8() % 8 {
            0 => &[],
            1 => &DATA[..10],
            _ => &DATA,
        };
        let request: Request = match i.u8() % 48 {
            46 | 47 => return Some((self.of_table(i)?, quiet, up)),
            0 | 1 => MemoryAllocate { bytes: bytes(i) }.into(),
            2 => MemoryFree {
                address: self.address(i),
            }
            .into(),
            3 => CopyToDevice {
                to: self.address(i),
                bytes: bytes(i),
                stream: self.stream(i),
            }
            .into(),
            4 => CopyFromDevice {
                from: self.address(i),
                bytes: bytes(i),
                stream: self.stream(i),
            }
            .into(),
            5 => CopyWithinDevice {
                to: self.address(i),
                from: self.address(i),
                bytes: bytes(i),
                stream: self.stream(i),
            }
            .into(),
            6 => FillRange {
                to: self.address(i),
                value: i.u32(),
                element_bytes: 1 << (i.u8() % 3),
                count: bytes(i),
                stream: self.stream(i),
            }
            .into(),
            7 | 8 => {
                up = MODULE.as_bytes();
                let image = match i.u8() % 8 {
                    0 => &up[..up.len() - 300],
                    _ => up,
                };
                up = image;
                ModuleLoad {
                    module: self.handle(HandleKind::Module, i),
                    bytes: (image.len() as u64).try_into().expect("not 0"),
                }
                .into()
            }
            9 => ModuleUnload {
                module: self.handle(HandleKind::Module, i),
            }
            .into(),
            10 | 11 => ModuleFunction {
                module: self.handle(HandleKind::Module, i),
                name: ["put", "spin", "say", "stop", "none"][usize::from(i.u8() % 5)].into(),
            }
            .into(),
            12 => ModuleGlobal {
                module: self.handle(HandleKind::Module, i),
                name: ["counter", "none"][usize::from(i.u8() % 2)].into(),
            }
            .into(),
            13 => FunctionSetAttribute {
                module: self.handle(HandleKind::Module, i),
                function: (i.u8() % 5).into(),
                attribute: (i.u8() % 12).into(),
                value: i.u32().cast_signed(),
            }
            .into(),
            14..=17 => {
                let mut parameters = self.address(i).to_le_bytes().to_vec();
                parameters.extend(i.u32().to_le_bytes());
                parameters.truncate([12, 8, 0, 12][usize::from(i.u8() % 4)]);
                Launch {
                    module: self.handle(HandleKind::Module, i),
                    function: (i.u8() % 5).into(),
                    grid: [u32::from(i.u8()), 1, u32::from(i.u8() % 2) + 1],
                    block: [u32::from(i.u8()), 1, 1],
                    shared_bytes: u32::from(i.u16()),
                    stream: self.stream(i),
                    deadline_ms: u32::from(i.u8() % 20) + 1,
                    parameters: Bytes::new(&parameters).expect("short"),
                    attributes: Default::default(),
                }
                .into()
            }
            18 => Synchronize {}.into(),
            19 => StreamSynchronize {
                stream: self.stream(i),
            }
            .into(),
            20 => StreamCreate {
                stream: self.handle(HandleKind::Stream, i),
                flags: (i.u8() % 3).into(),
                priority: i.u8().into(),
            }
            .into(),
            21 => StreamDestroy {
                stream: self.handle(HandleKind::Stream, i),
            }
            .into(),
            22 => StreamQuery {
                stream: self.stream(i),
            }
            .into(),
            23 => StreamWaitEvent {
                stream: self.stream(i),
                event: self.handle(HandleKind::Event, i),
            }
            .into(),
            24 => EventCreate {
                event: self.handle(HandleKind::Event, i),
                flags: (i.u8() % 5).into(),
            }
            .into(),
            25 => EventDestroy {
                event: self.handle(HandleKind::Event, i),
            }
            .into(),
            26 => EventRecord {
                event: self.handle(HandleKind::Event, i),
                stream: self.stream(i),
            }
            .into(),
            27 => match i.u8() % 3 {
                0 => EventQuery {
                    event: self.handle(HandleKind::Event, i),
                }
                .into(),
                1 => EventSynchronize {
                    event: self.handle(HandleKind::Event, i),
                }
                .into(),
                _ => EventElapsed {
                    start: self.handle(HandleKind::Event, i),
                    end: self.handle(HandleKind::Event, i),
                }
                .into(),
            },
            28 => match i.u8() % 8 {
                0 => Fence {}.into(),
                1 => Info {}.into(),
                2 => DeviceInfo {
                    device: (i.u8() % 2).into(),
                }
                .into(),
                3 => MemoryInfo {}.into(),
                4 => TakePrinted {}.into(),
                5 => Ping {
                    payload: Bytes::new(b"ping").expect("short"),
                }
                .into(),
                6 => DeviceSelect {
                    device: (i.u8() % 2).into(),
                }
                .into(),
                _ => Goodbye {}.into(),
            },
            29 => Exchange {
                up: u64::from(i.u16() % 6000),
                down: u64::from(i.u16() % 6000),
            }
            .into(),
            32 => MemoryAllocateRows {
                width: width(i),
                height: u64::from(i.u8()).max(1).try_into().expect("not 0"),
                element_bytes: [4, 8, 16, 3][usize::from(i.u8() % 4)],
            }
            .into(),
            33 => CopyRowsToDevice {
                to: self.address(i),
                pitch: Self::size(i),
                width: width(i),
                height: rows(i),
                stream: self.stream(i),
            }
            .into(),
            34 => CopyRowsFromDevice {
                from: self.address(i),
                pitch: Self::size(i),
                width: width(i),
                height: rows(i),
                stream: self.stream(i),
            }
            .into(),
            35 => CopyRowsWithinDevice {
                to: self.address(i),
                to_pitch: Self::size(i),
                from: self.address(i),
                from_pitch: Self::size(i),
                width: width(i),
                height: rows(i),
                stream: self.stream(i),
            }
            .into(),
            36 => FillRows {
                to: self.address(i),
                pitch: Self::size(i),
                value: i.u32(),
                element_bytes: 1 << (i.u8() % 3),
                width: width(i),
                height: rows(i),
                stream: self.stream(i),
            }
            .into(),
            37 => MemoryAllocateAsync {
                bytes: bytes(i),
                pool: self.pool(i),
                stream: self.stream(i),
            }
            .into(),
            38 => MemoryFreeAsync {
                address: self.address(i),
                stream: self.stream(i),
            }
            .into(),
            39 => match i.u8() % 5 {
                0 => MemoryPoolInfo { pool: self.pool(i) }.into(),
                1 => MemoryPoolSetAttribute {
                    pool: self.pool(i),
                    attribute: u32::from(i.u8() % 10),
                    value: Self::size(i),
                }
                .into(),
                2 => MemoryPoolTrim {
                    pool: self.pool(i),
                    keep: u64::from(i.u16()),
                }
                .into(),
                3 => MemoryPoolCreate {
                    pool: self.handle(HandleKind::MemoryPool, i),
                    max_bytes: u64::from(i.u16()),
                }
                .into(),
                _ => MemoryPoolDestroy {
                    pool: self.handle(HandleKind::MemoryPool, i),
                }
                .into(),
            },
            40 => StreamBeginCapture {
                stream: StreamRef::of(self.handle(HandleKind::Stream, i)),
                mode: i.u8() % 4,
            }
            .into(),
            41 => StreamEndCapture {
                stream: StreamRef::of(self.handle(HandleKind::Stream, i)),
                graph: self.handle(HandleKind::Graph, i),
            }
            .into(),
            42 => GraphInstantiate {
                graph: self.handle(HandleKind::Graph, i),
                exec: self.handle(HandleKind::GraphExec, i),
                flags: u32::from(i.u8() % 5),
            }
            .into(),
            43 | 44 => GraphLaunch {
                exec: self.handle(HandleKind::GraphExec, i),
                stream: self.stream(i),
            }
            .into(),
            45 => match i.u8() % 5 {
                0 => GraphDestroy {
                    graph: self.handle(HandleKind::Graph, i),
                }
                .into(),
                1 => GraphExecDestroy {
                    exec: self.handle(HandleKind::GraphExec, i),
                }
                .into(),
                2 => StreamCaptureInfo {
                    stream: self.stream(i),
                }
                .into(),
                3 => Statistics {}.into(),
                _ => StreamCancel {
                    stream: self.stream(i),
                }
                .into(),
            },
            30 => {
                self.generations += 1;
                Fence {}.into()
            }
            _ => {
                let n = usize::from(i.u8());
                self.raw = true;
                self.out.extend(i.take(n));
                return None;
            }
        };
        Some((request, quiet, up))
    }

    /// Any operation of the table, with fields by what the table says of them; none where they break a rule.
    fn of_table(&self, i: &mut Input<'_>) -> Option<Request> {
        let op = Op::REQUESTS[usize::from(i.u8()) % Op::REQUESTS.len()];
        let fields = op.spec()?.request.iter();
        let body: Vec<u8> = fields.flat_map(|field| self.field(field, i)).collect();
        Request::decode(op, &body).ok()
    }

    /// A value of a field, as it is encoded.
    fn field(&self, field: &FieldSpec, i: &mut Input<'_>) -> Vec<u8> {
        let number: u64 = match (field.name, field.wire) {
            ("stream", "stream") => match self.stream(i).handle() {
                Some(handle) => handle.to_bits(),
                None => 0,
            },
            ("stream", _) => self.handle(HandleKind::Stream, i).to_bits(),
            ("pool", "pool") => match self.pool(i).handle() {
                Some(handle) => handle.to_bits(),
                None => 0,
            },
            ("pool", _) => self.handle(HandleKind::MemoryPool, i).to_bits(),
            ("module", _) => self.handle(HandleKind::Module, i).to_bits(),
            ("event" | "start" | "end", _) => self.handle(HandleKind::Event, i).to_bits(),
            ("graph", _) => self.handle(HandleKind::Graph, i).to_bits(),
            ("exec", _) => self.handle(HandleKind::GraphExec, i).to_bits(),
            ("region", _) => self.handle(HandleKind::Region, i).to_bits(),
            ("to" | "from" | "address", _) => self.address(i),
            // A kernel that spins is to end soon.
            ("deadline_ms", _) => u64::from(i.u8() % 20) + 1,
            ("ticket", _) => {
                let n = usize::from(i.u8());
                let ticket = self.regions.get(n % 4).map(OwnedRegion::ticket);
                let ticket = ticket.unwrap_or_else(|| i.array());
                let len = u16::try_from(ticket.len()).expect("short");
                return [&len.to_le_bytes()[..], &ticket].concat();
            }
            (_, "text") => {
                let name = ["put", "counter", "none"][usize::from(i.u8() % 3)];
                let len = u16::try_from(name.len()).expect("short");
                return [&len.to_le_bytes()[..], name.as_bytes()].concat();
            }
            (_, "bytes") => {
                let n = usize::from(i.u8() % 17);
                let bytes = i.take(n);
                let len = u16::try_from(bytes.len()).expect("short");
                return [&len.to_le_bytes()[..], bytes].concat();
            }
            ("attributes", _) if i.u8() & 3 == 0 => {
                let attribute: [u8; 12] = i.array();
                let mut list = vec![1, 0, i.u8() % 18, 0, 0, 0];
                list.extend(attribute);
                list.resize(2 + 4 + 64, 0);
                return list;
            }
            (_, "list") => return vec![0; 2],
            (_, "three u32: x, y, z") => {
                let n = [i.u8(), i.u8() % 3, i.u8() % 3].map(u32::from);
                return n.map(u32::to_le_bytes).concat();
            }
            // Of a region, as likely as not.
            _ if field.max_len == 8 && i.u8() & 1 == 0 => u64::from(i.u16()) % (REGION + 2),
            _ if field.max_len == 8 => Self::size(i),
            _ => i.u8().into(),
        };
        number.to_le_bytes()[..field.max_len].to_vec()
    }

    /// Requests that give back everything the guest knows of.
    fn give_back(&mut self) -> VecDeque<Request> {
        let mut all = VecDeque::new();
        for address in std::mem::take(&mut self.heard.addresses) {
            all.push_back(MemoryFree { address }.into());
        }
        for generation in 1..=self.generations + 1 {
            for slot in 0..OBJECTS {
                let handle = |kind| Handle::new(kind, slot, generation).expect("a small slot");
                let (stream, event) = (handle(HandleKind::Stream), handle(HandleKind::Event));
                let (module, graph) = (handle(HandleKind::Module), handle(HandleKind::Graph));
                let exec = handle(HandleKind::GraphExec);
                let region = handle(HandleKind::Region);
                all.push_back(RegionUnmap { region }.into());
                let pool = handle(HandleKind::MemoryPool);
                all.push_back(MemoryPoolDestroy { pool }.into());
                all.push_back(GraphExecDestroy { exec }.into());
                all.push_back(GraphDestroy { graph }.into());
                all.push_back(ModuleUnload { module }.into());
                all.push_back(StreamDestroy { stream }.into());
                all.push_back(EventDestroy { event }.into());
            }
        }
        all.push_back(Synchronize {}.into());
        all.push_back(
            MemoryPoolTrim {
                pool: PoolRef::DEFAULT,
                keep: 0,
            }
            .into(),
        );
        all.push_back(MemoryInfo {}.into());
        all.push_back(Synchronize {}.into());
        all
    }

    /// Makes what comes next, if anything does.
    fn produce(&mut self) {
        // Nobody asks for anything before Hello is answered.
        if !self.out.is_empty() || self.over || (!self.heard.open && !self.never_reads) {
            return;
        }
        while self.out.is_empty() && self.at < self.input.len() && self.asked < MOST {
            self.asked += 1;
            self.next();
        }
        if !self.out.is_empty() {
            return;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        assert!(since.elapsed() < SESSION_LIMIT, "an answer never comes");
        if self.heard.closing || self.raw || self.never_reads {
            self.over = self.heard.closing || since.elapsed() > IDLE_GUEST_TIME;
            return;
        }
        let request = match &mut self.end {
            // First of all what the script has asked for is done.
            None => {
                self.end = Some(VecDeque::new());
                Synchronize {}.into()
            }
            Some(_) if self.heard.answer.is_none() => return,
            Some(end) => match end.pop_front() {
                Some(request) => request,
                None if !self.giving_back => {
                    self.giving_back = true;
                    let mut all = self.give_back();
                    let first = all.pop_front().expect("there is always something");
                    self.end = Some(all);
                    first
                }
                None => {
                    if self.heard.answer == Some(true) {
                        let mut whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
                        *whole = self.heard.memory;
                    }
                    self.over = true;
                    return;
                }
            },
        };
        self.heard.answer = None;
        self.heard.awaited = self.ask(request, false, &[]);
    }
}

impl Transport for Guest {
    fn try_read(&mut self, buf: &mut [u8]) -> Result<Option<usize>, TransportError> {
        self.produce();
        let n = self.out.len().min(self.portion).min(buf.len());
        for (to, byte) in buf.iter_mut().zip(self.out.drain(..n)) {
            *to = byte;
        }
        Ok((n > 0 || self.over).then_some(n))
    }

    fn try_write(&mut self, buf: &[u8]) -> Result<usize, TransportError> {
        if self.never_reads {
            return Ok(0);
        }
        let n = buf.len().min(self.portion);
        self.heard.take(&buf[..n]);
        Ok(n)
    }

    fn wait(&mut self, interest: Interest, deadline: Instant) -> Result<(), TransportError> {
        loop {
            self.produce();
            let readable = interest != Interest::Write && (!self.out.is_empty() || self.over);
            let writable = interest != Interest::Read && !self.never_reads;
            if readable || writable {
                return Ok(());
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(TransportError::TimedOut("the guest"));
            }
            thread::sleep(LOOK_INTERVAL.min(deadline - now));
        }
    }

    fn flush(&mut self, _: Instant) -> Result<(), TransportError> {
        Ok(())
    }

    fn close(&mut self, _: Instant) -> Result<(), TransportError> {
        Ok(())
    }

    fn describe(&self) -> String {
        "a guest".to_owned()
    }
}

/// Both ends of a channel, the guest's first.
fn channels() -> (Channel, Channel) {
    let deadline = Instant::now() + SESSION_LIMIT;
    let (one, other) = UnixStream::pair().expect("a pair");
    let guest = thread::spawn(move || local::serve_on(one, 4096, deadline));
    let mediator = local::connect_on(other, deadline).expect("a channel");
    let guest = guest.join().expect("no panic");
    (guest.expect("a channel"), mediator)
}

/// A session of a guest that asks for what the input says.
pub(crate) fn run(data: &[u8]) {
    let whole = Arc::new(Mutex::new(None));
    // Its memory beside the ring is of a channel that carries nothing else.
    let (channel, mediator) = channels();
    let made = |_| {
        let bytes = usize::try_from(REGION).expect("few");
        let region = channel.create_region(bytes, Access::Both);
        region.expect("memory")
    };
    let guest = Guest::new(data, Arc::clone(&whole), (0..2).map(made).collect());
    let mut stream = Stream::Other(Box::new(guest));
    let time = Duration::from_secs(30);
    let settings = Settings {
        terms: Terms {
            max_lanes: 2.try_into().expect("not 0"),
            max_requests: 8.try_into().expect("not 0"),
            max_handles: 16,
            initial_credit: INITIAL_CREDIT,
            features: Features::ALL,
        },
        timeouts: Timeouts {
            hello: time,
            idle: time,
            stall: time,
            request: None,
        },
        epoch: 1,
        operations: OpSet::ALL,
        reason: None,
        refusal: None,
    };
    let mut open = || {
        let mut executor = CpuExecutor::new("fuzz");
        executor.set_share(Share {
            memory_mib: Some(16),
            kernel_timeout_s: Some(1),
            pinned_mib: Some(1),
            ..Share::default()
        });
        executor.set_regions(mediator.regions());
        Ok(Box::new(executor) as Box<dyn Executor>)
    };
    let (observed, stop) = (Observed::default(), StopFlag::default());
    let _end = serve(&mut stream, &mut open, &settings, &observed, &stop);
    if let Some((free, total)) = whole.lock().unwrap_or_else(PoisonError::into_inner).take() {
        assert_eq!(free, total, "everything was given back");
    }
}

/// Requests in a row that go deep.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let allocate = &[0, 2, 0, 3][..];
    let load = &[0, 2, 7, 1, 33];
    let function = |n: u8| vec![0, 2, 10, 33, n];
    let launch = |n: u8| vec![0, 2, 14, 0, 4, 9, 0, 0, 0, n, 33, n, 1, 0, 8, 0, 0, 1, 5];
    let wait = &[0, 2, 18];
    let copy = &[0, 2, 4, 0, 4, 3, 1];
    let stream = &[0, 2, 20, 33, 1, 0];
    let event = &[0, 2, 24, 33, 0];
    let record = &[1, 2, 26, 33, 0, 33];
    let printed = &[0, 2, 28, 4];
    let pool = &[0, 2, 37, 3, 1, 0, 2, 38, 1, 4, 1, 0, 2, 39, 0];
    let graph = |launch: Vec<u8>| {
        [
            // Relaxed: the requests are of two lanes.
            &[0, 2, 40, 33, 2][..],
            &launch,
            &[
                0, 2, 41, 33, 33, 0, 2, 42, 33, 33, 0, 0, 2, 43, 33, 0, 33, 0, 2, 18,
            ],
        ]
        .concat()
    };
    let rows = &[0, 2, 32, 4, 10, 3, 0, 0, 2, 33, 0, 4, 3, 4, 10, 2, 1];
    let mut all = Vec::new();
    for first in [0, 1, 9, 0xc1] {
        for kernel in 0..3 {
            let mut seed = vec![first];
            seed.extend_from_slice(allocate);
            seed.extend_from_slice(load);
            seed.extend(function(kernel));
            seed.extend_from_slice(stream);
            seed.extend_from_slice(event);
            seed.extend(launch(0));
            seed.extend(launch(kernel));
            seed.extend_from_slice(record);
            seed.extend_from_slice(copy);
            seed.extend_from_slice(wait);
            seed.extend_from_slice(printed);
            seed.extend_from_slice(pool);
            seed.extend_from_slice(rows);
            let mut captured = launch(0);
            // In the stream, not in the default one.
            captured.splice(17..18, [0, 33]);
            seed.extend(graph(captured));
            all.push(seed);
        }
    }
    // By the table: a region is mapped, copied from and to, and let go, beside a compilation; and each operation.
    let of = |op: Op, fields: &[u8]| {
        let place = Op::REQUESTS.iter().position(|it| *it == op);
        let place = u8::try_from(place.expect("a request")).expect("few");
        [&[0, 2, 46, place][..], fields].concat()
    };
    let mapped = [
        allocate,
        // Handle, bytes, address, ticket.
        &of(Op::RegionMap, &[33, 0, 0, 32, 0, 0, 0, 0, 0, 0, 0]),
        // Address, handle, offset, bytes, word, value, stream.
        &of(
            Op::CopyFromRegion,
            &[0, 4, 33, 0, 8, 0, 0, 64, 0, 0, 16, 0, 0, 7, 0, 1],
        ),
        &of(
            Op::CopyToRegion,
            &[0, 4, 33, 0, 8, 0, 0, 64, 0, 0, 24, 0, 0, 9, 0, 1],
        ),
        wait,
        &of(Op::RegionUnmap, &[33]),
        &of(Op::ModuleCompile, &[33, 0, 0, 9, 0, 0]),
        wait,
    ]
    .concat();
    all.push([&[0][..], &mapped].concat());
    for op in Op::REQUESTS {
        let rest = [of(*op, &[32; 30]), wait.to_vec()].concat();
        all.push([&[0][..], allocate, load, stream, event, &rest].concat());
    }
    // Bytes of no kind.
    all.push([&[0, 0, 0, 31, 40][..], &[0xff; 40]].concat());
    all
}

//! Lies that follow from the table of operations: each operation with each of its fields at its bounds and beside them,
//! with bodies that are too short and too long, with flags that it may not have, and cut off at every place.

use std::collections::HashSet;

use vchan::region::{Access, OwnedRegion};
use vgpu_protocol::frame::{Flags, FrameHeader, HEADER_LEN};
use vgpu_protocol::handle::{Handle, HandleKind};
use vgpu_protocol::op::field::{Bytes, Field, StreamRef};
use vgpu_protocol::op::{
    EventCreate, Features, Fence, FieldSpec, GraphInstantiate, MemoryPoolCreate, ModuleFunction,
    ModuleLoad, Op, RegionMap, Request, StreamBeginCapture, StreamCreate, StreamEndCapture,
};
use vgpu_protocol::status::{ErrorCode, Status};

use crate::edges::{handles, lengths};
use crate::guest::Guest;
use crate::{Lie, Over, Place};

/// Bytes of the memory on the device, and of the region.
const BYTES: u64 = 4096;

/// A kernel without parameters, named like every sound text in here.
const MODULE: &[u8] =
    b".version 6.0\n.target sm_50\n.address_size 64\n.visible .entry k()\n{\nret;\n}\n";

pub(crate) fn lies() -> Vec<Lie> {
    let of_op = |op: &Op| {
        let op = *op;
        Lie {
            name: format!("{op}: every field, every length, every cut"),
            over: match op
                .spec()
                .is_some_and(|spec| spec.feature == Features::REGIONS)
            {
                true => Over::Local,
                false => Over::Rules,
            },
            tell: Box::new(move |place| {
                if let Op::Hello = op {
                    return hellos(place, op);
                }
                let session = fields(place, op);
                no_frame(session, op);
                cuts(place, op);
            }),
        }
    };
    Op::REQUESTS.iter().map(of_op).collect()
}

/// A session with something of everything.
struct Session {
    guest: Guest,
    address: u64,
    elsewhere: u64,
    ticket: Vec<u8>,
    /// Their tickets are good as long as they are there.
    regions: Vec<OwnedRegion>,
}

fn own(kind: HandleKind) -> Handle {
    Handle::new(kind, 0, 1).expect("a small slot")
}

impl Session {
    fn open(place: &Place<'_>) -> Self {
        let mut guest = place.open();
        let address = guest.allocate(BYTES);
        let module = own(HandleKind::Module);
        let bytes = (MODULE.len() as u64).try_into().expect("not 0");
        let load = ModuleLoad { module, bytes }.into();
        let header = guest.header(Op::ModuleLoad);
        let id = guest.send_as(header, &load, MODULE);
        assert!(guest.answer(id).0.is_ok());
        guest.done(ModuleFunction {
            module,
            name: "k".into(),
        });
        let (stream, event) = (own(HandleKind::Stream), own(HandleKind::Event));
        let (graph, exec) = (own(HandleKind::Graph), own(HandleKind::GraphExec));
        guest.done(StreamCreate {
            stream,
            flags: 0,
            priority: 0,
        });
        guest.done(EventCreate { event, flags: 0 });
        let of = StreamRef::of(stream);
        guest.done(StreamBeginCapture {
            stream: of,
            mode: 0,
        });
        guest.done(StreamEndCapture { stream: of, graph });
        guest.done(GraphInstantiate {
            graph,
            exec,
            flags: 0,
        });
        guest.done(MemoryPoolCreate {
            pool: own(HandleKind::MemoryPool),
            max_bytes: 0,
        });
        let mut session = Self {
            guest,
            address,
            elsewhere: place.elsewhere,
            ticket: vec![0; 48],
            regions: Vec::new(),
        };
        session.map();
        session
    }

    /// Maps a region where the endpoint has them, and makes another for a ticket that is good.
    fn map(&mut self) {
        let Some(regions) = &self.guest.regions else {
            return;
        };
        let bytes = usize::try_from(BYTES).expect("few");
        let made = || regions.create(bytes, Access::Both).expect("memory");
        self.regions = vec![made(), made()];
        self.ticket = self.regions[1].ticket().to_vec();
        self.guest.done(RegionMap {
            region: own(HandleKind::Region),
            bytes: BYTES.try_into().expect("not 0"),
            address: 0,
            ticket: Bytes::new(&self.regions[0].ticket()).expect("short"),
        });
    }

    /// A value of a field that makes sense.
    fn sound(&self, op: Op, field: &FieldSpec) -> Vec<u8> {
        let number: u64 = match field.name {
            "min_version" | "max_version" => 1,
            "to" | "from" | "address" if op != Op::RegionMap => self.address,
            "bytes" if op == Op::RegionMap => BYTES,
            "module" => own(HandleKind::Module).to_bits(),
            "event" | "start" | "end" => own(HandleKind::Event).to_bits(),
            "graph" => own(HandleKind::Graph).to_bits(),
            "exec" => own(HandleKind::GraphExec).to_bits(),
            "region" => own(HandleKind::Region).to_bits(),
            "pool" => own(HandleKind::MemoryPool).to_bits(),
            "stream" => own(HandleKind::Stream).to_bits(),
            "pitch" | "to_pitch" | "from_pitch" => 64,
            "height" => 2,
            "word" => 16,
            "element_bytes" => 4,
            "grid" | "block" => 1,
            "address" | "device" | "function" | "flags" | "shared_bytes" | "deadline_ms" => 0,
            _ => 8,
        };
        let low = |n: usize| number.to_le_bytes()[..n].to_vec();
        match field.wire {
            "text" => [&[1, 0][..], b"k"].concat(),
            "bytes" if field.name == "ticket" => [&[48, 0][..], &self.ticket].concat(),
            "bytes" | "list" => vec![0; 2],
            "three u32: x, y, z" => low(4).repeat(3),
            _ => low(field.max_len),
        }
    }

    /// Values of a field at its bounds and beyond, and lies of every other kind.
    fn edges(&self, op: Op, field: &FieldSpec) -> Vec<Vec<u8>> {
        let sound = self.sound(op, field);
        let number = sound
            .iter()
            .rev()
            .fold(0u64, |n, byte| n << 8 | u64::from(*byte));
        if let "text" | "bytes" | "list" = field.wire {
            return lengths(field);
        }
        if field.wire == <[u32; 3]>::NAME {
            let most = u32::MAX.to_le_bytes();
            let one = |at: usize, value: [u8; 4]| {
                let mut all = sound.clone();
                all[4 * at..][..4].copy_from_slice(&value);
                all
            };
            return (0..3)
                .flat_map(|at| {
                    [[0; 4], most, [0, 0, 0, 0x80], [1, 0, 1, 0]].map(|value| one(at, value))
                })
                .filter(|grid| grid[..4] != [1, 0, 1, 0])
                .collect();
        }
        let top = 8 * u32::try_from(field.max_len).expect("few") - 1;
        let mut values = vec![
            0,
            1,
            number.wrapping_add(1),
            number.wrapping_sub(1),
            u64::MAX,
            u64::MAX - 7,
            1 << top,
            (1 << top) - 1,
        ];
        if field.max_len == 8 {
            values.extend([1 << 32, 1 << 60, BYTES, BYTES + 1]);
            values.extend([
                self.address + BYTES - 1,
                self.address + BYTES,
                self.elsewhere,
            ]);
        }
        if let "handle" | "stream" | "pool" = field.wire {
            values.extend(handles());
        }
        if field.name == "deadline_ms" {
            // Where processors are busy, a kernel misses a deadline of 1 ms, and ends its session as it should.
            let ms = |value: u64| value & u64::from(u32::MAX);
            values.retain(|value| ms(*value) == 0 || ms(*value) > 60_000);
        }
        let mut all: Vec<Vec<u8>> = values
            .iter()
            .map(|value| value.to_le_bytes()[..field.max_len].to_vec())
            .collect();
        all.sort();
        all.dedup();
        all
    }

    /// Sends the operation with this body, sound or not. Returns whether the session goes on, as it does unless the
    /// amount of data that follows is unknown.
    fn tell(&mut self, op: Op, flags: Flags, body: &[u8]) -> bool {
        let header = self.guest.header(op).with_flags(flags);
        self.guest.frame(header, body);
        let takes_data = op.spec().is_some_and(|spec| spec.data.0);
        let up = match Request::decode(op, body) {
            Ok(request) => request.data().0,
            Err(_) if takes_data => {
                self.guest.ended(ErrorCode::Protocol);
                return false;
            }
            Err(_) => 0,
        };
        if up > 0 {
            let n = usize::try_from(up.min(64)).expect("few");
            self.guest
                .frame(FrameHeader::data_up(&header, 0, false), &vec![0; n]);
        }
        if !flags.contains(Flags::QUIET) {
            let (status, _) = self.guest.answer(header.request_id);
            if Request::decode(op, body).is_err() {
                // The endpoint may have no such thing at all.
                let agreed = self.guest.terms.features.contains(header.needs());
                let code = if agreed {
                    ErrorCode::Range
                } else {
                    ErrorCode::Unsupported
                };
                assert_eq!(status, Status::from(code));
            }
        }
        true
    }
}

/// Every field at every edge, the others sound; and the sound body with a byte less, none, and one more.
fn fields(place: &Place<'_>, op: Op) -> Session {
    let spec = op.spec().expect("it can be requested");
    let mut session = Session::open(place);
    let sound: Vec<Vec<u8>> = spec
        .request
        .iter()
        .map(|field| session.sound(op, field))
        .collect();
    let whole = sound.concat();
    let mut bodies = vec![whole[..whole.len().saturating_sub(1)].to_vec(), Vec::new()];
    if whole.len() < spec.max_request {
        bodies.push([&whole[..], &[0]].concat());
    }
    for (at, field) in spec.request.iter().enumerate() {
        for edge in session.edges(op, field) {
            let mut fields = sound.clone();
            fields[at] = edge;
            bodies.push(fields.concat());
        }
    }
    if spec.data.0 {
        // Each that is broken takes a session of its own: of what is wrong with a field once is enough.
        let mut known = HashSet::new();
        bodies.retain(|body| match Request::decode(op, body) {
            Ok(_) => true,
            Err(wrong) => known.insert((wrong.field, std::mem::discriminant(&wrong.error))),
        });
    }
    if op == Op::Goodbye {
        // It has no fields, and would end the session in good order.
        bodies.clear();
    }
    for body in &bodies {
        if !session.tell(op, Flags::NONE, body) {
            session = Session::open(place);
        }
    }
    if spec.quiet {
        for body in bodies
            .iter()
            .filter(|body| !spec.data.0 || Request::decode(op, body).is_ok())
        {
            session.tell(op, Flags::QUIET, body);
        }
        session.guest.done(Fence {});
    }
    session.guest.serves();
    session
}

/// The same of Hello, which is the first of each session and ends it where it is wrong.
fn hellos(place: &Place<'_>, op: Op) {
    let spec = op.spec().expect("it can be requested");
    let sound = [
        &1u16.to_le_bytes()[..],
        &1u16.to_le_bytes(),
        &[0xff; 8],
        &[1, 0, b'k'],
    ];
    let whole = sound.concat();
    let mut bodies = vec![
        Vec::new(),
        whole[..whole.len() - 1].to_vec(),
        [&whole[..], &[0]].concat(),
    ];
    for (at, values) in [(0, [0u16, 2, u16::MAX]), (1, [0, 0, 0])] {
        for value in values {
            let mut body = whole.clone();
            body[2 * at..][..2].copy_from_slice(&value.to_le_bytes());
            bodies.push(body);
        }
    }
    let name = &spec.request[3];
    bodies.extend(
        lengths(name)
            .iter()
            .map(|text| [&whole[..12], text].concat()),
    );
    bodies.dedup();
    for body in bodies {
        let mut guest = place.connect();
        let header = guest.header(op);
        guest.frame(header, &body);
        match Request::decode(op, &body) {
            Ok(Request::Hello(hello)) if hello.min_version.get() > 1 => {
                guest.ended(ErrorCode::Version)
            }
            Ok(_) => {
                assert!(guest.answer(header.request_id).0.is_ok());
                guest.serves();
            }
            Err(_) => guest.ended(ErrorCode::Protocol),
        }
    }
}

/// A frame that is none ends the session: one that is longer than any of the operation, a reply, or one with a flag that
/// it cannot have.
fn no_frame(mut session: Session, op: Op) {
    let spec = op.spec().expect("it can be requested");
    let longest = u32::try_from(spec.max_request).expect("bounded");
    let header = session.guest.header(op);
    let mut more = header.encode();
    more[6] = u8::try_from(Flags::MORE.bits()).expect("few");
    let mut all = vec![
        header.with_body_len(longest + 1).encode(),
        header.with_body_len(u32::MAX).encode(),
        FrameHeader::reply_to(&header, Status::OK).encode(),
        more,
    ];
    if !spec.quiet {
        all.push(header.with_flags(Flags::QUIET).encode());
    }
    // Each with every few of the operations.
    let wrong = all[usize::from(op.code()) % all.len()];
    session.guest.raw(&[&wrong[..], &[0; 64]].concat());
    session.guest.ended(ErrorCode::Protocol);
}

/// The end of the stream in the middle of a frame, before data that is due, and in the middle of that.
fn cuts(place: &Place<'_>, op: Op) {
    let spec = op.spec().expect("it can be requested");
    let mut session = Session::open(place);
    let body: Vec<u8> = spec
        .request
        .iter()
        .flat_map(|field| session.sound(op, field))
        .collect();
    let header = session.guest.header(op);
    let len = u32::try_from(body.len()).expect("short");
    let whole = [&header.with_body_len(len).encode()[..], &body].concat();
    session.guest.raw(&whole[..(HEADER_LEN + body.len()) / 2]);
    drop(session);
    if spec.data.0 {
        let data = FrameHeader::data_up(&header, 8, false).encode();
        let cut = [&whole[..], &data, &[0; 4]].concat();
        Session::open(place).guest.raw(&cut);
    }
    if spec.data.0 || spec.data.1 {
        Session::open(place).guest.raw(&whole);
    }
}

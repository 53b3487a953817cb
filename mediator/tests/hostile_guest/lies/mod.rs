//! Lies about more than a field: floods, orders that are wrong, others' memory, code that does harm, and silence.

mod code;
mod floods;
mod memory;
mod objects;
mod rules;
mod silence;

use std::thread;

use vgpu_guest::Endpoint;
use vgpu_protocol::frame::Flags;
use vgpu_protocol::handle::{Handle, HandleKind};
use vgpu_protocol::op::field::{Bytes, StreamRef};
use vgpu_protocol::op::{
    Exchange, FillRange, Launch, ModuleFunction, ModuleLoad, Op, Ping, Request, Synchronize,
};
use vgpu_protocol::status::{ErrorCode, Status};

use crate::Over::{self, All, Both, Rules};
use crate::guest::{Guest, Heard};
use crate::{KERNELS, Lie, Place};

const STREAM: StreamRef = StreamRef::DEFAULT;
const INVALID_VALUE: Status = Status::Cuda(1);
const HANDLE: Status = Status::Mediator(ErrorCode::Handle);
const RANGE: Status = Status::Mediator(ErrorCode::Range);
const UNSUPPORTED: Status = Status::Mediator(ErrorCode::Unsupported);
/// As the limits of the test have it.
const QUOTA: u64 = 64 << 20;
const OBJECTS: u32 = 50;

/// The lie that is over when the mediator has waited long enough.
pub(crate) const SILENCE: &str = "silence of every kind";

type Tell = fn(&Place<'_>);

pub(crate) fn lies() -> Vec<Lie> {
    let lie = |(name, over, tell): &(&str, Over, Tell)| Lie {
        name: (*name).to_owned(),
        over: *over,
        tell: Box::new(*tell),
    };
    LIES.iter().map(lie).collect()
}

const LIES: &[(&str, Over, Tell)] = &[
    ("noise in place of Hello", All, rules::noise),
    ("a request before Hello", Rules, rules::before_hello),
    ("Hello twice", Rules, rules::hello_twice),
    ("what Hello did not agree on", Rules, rules::not_agreed),
    ("headers that are none", Rules, rules::headers),
    ("lanes that were not offered", Rules, rules::lanes),
    ("an id that is in use", Rules, rules::id_in_use),
    ("data that is not due", Rules, rules::data_not_due),
    (
        "more requests than may be under way",
        Both,
        floods::too_many,
    ),
    (
        "requests that fail and whose data is never ended",
        Rules,
        rules::never_ended,
    ),
    (
        "a flood of quiet requests that fail",
        All,
        floods::quiet_flood,
    ),
    ("a flood of pings and cancels", Rules, floods::ping_flood),
    ("a storm of sessions", Rules, rules::storm),
    ("objects up to the cap and past it", Both, floods::objects),
    ("generations that were used", Both, floods::generations),
    ("memory up to the quota and past it", All, floods::quota),
    (
        "the quota by several sessions at once",
        Both,
        floods::quota_of_sessions,
    ),
    ("ranges one byte outside", Both, memory::one_byte_outside),
    ("memory of others in copies", Both, memory::others_in_copies),
    ("wild writes of kernels", Both, memory::wild_writes),
    ("kernels that trap", All, memory::traps),
    ("launches out of all proportion", Both, code::launches),
    ("occupancies of no kernel", Both, code::occupancies),
    ("limits beyond the quota", Both, memory::limits),
    ("modules that are none", Both, code::modules),
    ("modules that never come whole", Both, code::half_modules),
    (
        "sources that name the mediator's files",
        Rules,
        code::sources,
    ),
    ("regions", Both, objects::regions),
    ("graphs of another session", Both, objects::graphs),
    ("memory pools", Both, objects::pools),
    ("captures that never end", Both, objects::captures),
    ("a capture of more and more", Both, floods::endless_capture),
    ("a flood of printed lines", Both, floods::printed),
    (
        "a session dropped with everything under way",
        Both,
        silence::dropped,
    ),
    (SILENCE, All, silences),
];

/// Lies that take seconds each: they are told at the same time.
const SILENCES: &[(&str, Over, Tell)] = &[
    ("kernels without an end", All, silence::endless),
    ("nothing at all, and half a Hello", Rules, silence::silence),
    ("data that never comes", All, silence::never_sent),
    ("half a frame", Rules, silence::half_a_frame),
    ("results that are never read", Both, silence::never_read),
    ("answers that are never read", Both, silence::answers_unread),
];

fn silences(place: &Place<'_>) {
    let over_tcp = matches!(place.endpoint, Endpoint::Tcp { .. });
    let told = SILENCES
        .iter()
        .filter(|(_, over, _)| *over == All || !over_tcp);
    thread::scope(|scope| {
        let all: Vec<_> = told
            .map(|(name, _, tell)| (name, scope.spawn(|| tell(place))))
            .collect();
        for (name, told) in all {
            assert!(told.join().is_ok(), "{name}");
        }
    });
}

fn handle(kind: HandleKind, slot: u32, generation: u32) -> Handle {
    Handle::new(kind, slot, generation).expect("sound")
}

fn bytes(n: u64) -> std::num::NonZeroU64 {
    n.try_into().expect("not 0")
}

fn ping() -> Ping {
    Ping {
        payload: Bytes::new(b"ping").expect("short"),
    }
}

fn fill(to: u64, count: u64) -> FillRange {
    FillRange {
        to,
        value: 7,
        element_bytes: 1,
        count: bytes(count),
        stream: STREAM,
    }
}

fn exchange(up: u64) -> Request {
    Exchange { up, down: 0 }.into()
}

/// Sends requests over and over, quietly or not, and takes what comes meanwhile.
fn flood(guest: &mut Guest, flags: Flags, requests: &[Request], times: usize) {
    let mut bytes = Vec::new();
    for request in requests.iter().cycle().take(times) {
        let mut body = Vec::new();
        request.encode_to(&mut body);
        let len = u32::try_from(body.len()).expect("short");
        let header = guest.header(request.op()).with_flags(flags);
        bytes.extend(header.with_body_len(len).encode());
        bytes.extend(body);
    }
    guest.raw(&bytes);
}

/// Loads the kernels and looks one up.
fn kernel(guest: &mut Guest, name: &str) -> (Handle, u32) {
    kernel_of(guest, KERNELS, name)
}

/// A launch that does not end while the word at the address beside it is 0, as it is.
fn endless(guest: &mut Guest) -> (u64, Launch) {
    let (module, spin) = kernel(guest, "spin");
    let word = guest.allocate(8);
    guest.done(FillRange {
        value: 0,
        ..fill(word, 8)
    });
    (word, launch(module, spin, &word.to_le_bytes()))
}

fn kernel_of(guest: &mut Guest, image: &str, name: &str) -> (Handle, u32) {
    let module = handle(HandleKind::Module, 0, 1);
    let (status, _) = load(guest, module, image.as_bytes());
    assert!(status.is_ok());
    let function = guest
        .done(ModuleFunction {
            module,
            name: name.into(),
        })
        .function;
    (module, function)
}

fn load(guest: &mut Guest, module: Handle, image: &[u8]) -> (Status, Vec<u8>) {
    let header = guest.header(Op::ModuleLoad);
    let request = ModuleLoad {
        module,
        bytes: bytes(image.len() as u64),
    }
    .into();
    let id = guest.send_as(header, &request, image);
    guest.answer(id)
}

fn launch(module: Handle, function: u32, parameters: &[u8]) -> Launch {
    Launch {
        module,
        function,
        grid: [1; 3],
        block: [1; 3],
        shared_bytes: 0,
        stream: STREAM,
        deadline_ms: 0,
        parameters: Bytes::new(parameters).expect("short"),
        attributes: Default::default(),
    }
}

/// It costs the session what it has on the device, and nobody else anything.
fn faults(guest: &mut Guest, request: Launch, with: &[i32]) {
    guest.send(request);
    let id = guest.send(Synchronize {});
    let status = loop {
        match guest.hear() {
            Heard::Answer(header, _) if header.request_id == id => break header.status,
            Heard::Answer(..) => {}
            Heard::Closing(status, _) => break status,
            Heard::End => panic!("the session ended without a reason"),
        }
    };
    let lost = Status::from(ErrorCode::BackendLost);
    assert!(
        status == lost || with.contains(&status.to_raw()),
        "{status:?}"
    );
}

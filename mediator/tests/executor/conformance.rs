//! The suite: what a session may expect of any executor.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use vgpu_mediator::executor::Executor;
use vgpu_mediator::session::backend::{Also, Event};
use vgpu_protocol::frame::FrameHeader;
use vgpu_protocol::handle::{Handle, HandleKind};
use vgpu_protocol::op::field::{Bytes, StreamRef};
use vgpu_protocol::op::{
    Body, CopyFromDevice, CopyToDevice, Info, Launch, MemoryAllocate, MemoryAllocateReply,
    MemoryFree, ModuleFunction, ModuleFunctionReply, ModuleLoad, ModuleUnload, Op, Request,
    Synchronize, SynchronizeReply,
};
use vgpu_protocol::session::server::Failure;
use vgpu_protocol::status::ErrorCode;

use crate::graphs;

/// No wait of a test is longer.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(60);

/// Floats that a copy takes at once.
pub(crate) const CHUNK: usize = 128 << 10;

const KERNEL: &[u8] = include_bytes!("../../src/executor/vector_add.ptx");

/// How soon an executor is asked, though it has not raised its waker.
const CHECK: Duration = Duration::from_millis(20);

/// Runs everything that needs no particular device. The executor is usable afterwards.
pub(crate) fn run(executor: &mut dyn Executor) {
    assert!(!executor.info().device.is_empty());
    assert!(!executor.info().reason.is_empty());
    assert!(executor.info().total_memory > 0);
    for elements in [
        1,
        63,
        64,
        65,
        1000,
        CHUNK - 1,
        CHUNK,
        CHUNK + 1,
        5 * CHUNK,
        11 * CHUNK + 1,
    ] {
        add(executor, elements);
    }
    several_at_once(executor);
    special_numbers(executor);
    work_that_nobody_waits_for(executor);
    graphs::run(executor);
    long_chains(executor);
    unknown_operations(executor);
}

/// Kernels one behind the other: what the executor has for each of them is given back as they end.
fn long_chains(executor: &mut dyn Executor) {
    const N: u32 = 1_000_000;
    let (module, function) = load(executor, Instant::now() + WATCHDOG).expect("a module");
    let bytes = (u64::from(N) * 4).try_into().expect("not 0");
    let body = ask(executor, MemoryAllocate { bytes }).expect("memory");
    let address = MemoryAllocateReply::decode(&body).expect("a reply").address;
    let launch = |n: u32| {
        let parameters = [address, address, address, n.into()].map(u64::to_le_bytes);
        Launch {
            module,
            function,
            grid: [n.div_ceil(256), 1, 1],
            block: [256, 1, 1],
            shared_bytes: 0,
            stream: StreamRef::DEFAULT,
            deadline_ms: 0,
            parameters: Bytes::new(parameters.as_flattened()).expect("short"),
            attributes: Default::default(),
        }
    };
    for _ in 0..15 {
        // A long one, behind which the others gather.
        let sizes = std::iter::once(N).chain(std::iter::repeat_n(64, 100));
        let asked = sizes.map(|n| (launch(n).into(), Vec::new())).collect();
        run_all(executor, asked, Instant::now() + WATCHDOG).expect("launched");
    }
    ask(executor, Synchronize {}).expect("done");
    ask(executor, MemoryFree { address }).expect("freed");
    ask(executor, ModuleUnload { module }).expect("unloaded");
}

/// The numbers at `i`: halves, so that every sum is exact, and different at each place of a chunk.
fn numbers(i: usize) -> (f32, f32) {
    ((i % 100_003) as f32 * 0.5, (i % 70_001) as f32 - 30_000.0)
}

/// How requests end that did not all go well: the first failure, or nothing where one was not done in time.
pub(crate) type Ended<T> = Result<T, Option<Failure>>;

/// Runs requests beside each other, as a session does, each with its data up; they have the ids from 1 on. Their
/// replies' bodies, and their data down.
fn run_all(
    executor: &mut dyn Executor,
    asked: Vec<(Request, Vec<u8>)>,
    deadline: Instant,
) -> Ended<Vec<(Vec<u8>, Vec<u8>)>> {
    let ids: Vec<u32> = (1..).take(asked.len()).collect();
    let mut started = 0;
    let mut given = vec![0; asked.len()];
    let mut downs = vec![Vec::new(); asked.len()];
    let mut bodies: HashMap<u32, Vec<u8>> = HashMap::new();
    loop {
        let late = Instant::now() >= deadline;
        let mut moved = false;
        while started < ids.len() && executor.may_start() {
            let request = asked[started].0.clone();
            executor.start(&FrameHeader::request(request.op(), ids[started]), request);
            started += 1;
        }
        while let Some(event) = executor.next_event() {
            moved = true;
            match event {
                Event::Done(id, outcome) => {
                    assert!(bodies.insert(id, outcome?).is_none(), "{id} ends twice");
                }
                Event::Lost(lost) => {
                    return Err(Some(Failure {
                        status: lost.code.into(),
                        text: lost.text,
                    }));
                }
                Event::Room(..)
                | Event::Moved(_)
                | Event::Working
                | Event::Worked(_)
                | Event::Beside(..)
                | Event::Failures(_)
                | Event::FailedLater(_)
                | Event::Uses(_)
                | Event::Printed(_) => {}
            }
        }
        for (at, id) in ids[..started].iter().enumerate() {
            if bodies.contains_key(id) {
                continue;
            }
            let left = &asked[at].1[given[at]..];
            let room = executor.input(*id);
            let n = room.len().min(left.len());
            room[..n].copy_from_slice(&left[..n]);
            given[at] += n;
            if n > 0 {
                executor.filled(*id, n);
            }
            let output = executor.output(*id);
            let taken = output.len();
            downs[at].extend_from_slice(output);
            if taken > 0 {
                executor.sent(*id, taken);
            }
            moved |= n > 0 || taken > 0;
        }
        if bodies.len() == ids.len() {
            let bodies = ids
                .iter()
                .map(|id| bodies.remove(id).expect("all are there"));
            return Ok(bodies.zip(downs).collect());
        }
        if late && !moved {
            return Err(None);
        }
        if !moved {
            let until = deadline.min(Instant::now() + CHECK);
            match executor.also() {
                Also::Awaited(awaited) => drop(awaited.wait(until)),
                // A request that has just failed.
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

/// The reply's body to a request without data.
pub(crate) fn ask(executor: &mut dyn Executor, request: impl Into<Request>) -> Ended<Vec<u8>> {
    let asked = vec![(request.into(), Vec::new())];
    let mut answers = run_all(executor, asked, Instant::now() + WATCHDOG)?;
    Ok(answers.remove(0).0)
}

/// The bytes at an address of the device.
pub(crate) fn copy_down(executor: &mut dyn Executor, from: u64, bytes: NonZeroU64) -> Vec<u8> {
    let stream = StreamRef::DEFAULT;
    let copy = CopyFromDevice {
        from,
        bytes,
        stream,
    };
    let asked = vec![(copy.into(), Vec::new())];
    let mut answers = run_all(executor, asked, Instant::now() + WATCHDOG).expect("a copy");
    answers.remove(0).1
}

fn bytes(n: usize) -> NonZeroU64 {
    NonZeroU64::new(n as u64).expect("not 0")
}

/// A module of the executor's with the kernel.
pub(crate) fn load(executor: &mut dyn Executor, deadline: Instant) -> Ended<(Handle, u32)> {
    static GENERATION: AtomicU32 = AtomicU32::new(1 << 20);
    let generation = GENERATION.fetch_add(1, Ordering::Relaxed);
    let module = Handle::new(HandleKind::Module, 1, generation).expect("sound");
    let bytes = bytes(KERNEL.len());
    let load = ModuleLoad { module, bytes };
    run_all(executor, vec![(load.into(), KERNEL.to_vec())], deadline)?;
    let name = "vector_add".into();
    let look = vec![(ModuleFunction { module, name }.into(), Vec::new())];
    let found = run_all(executor, look, deadline)?;
    let function = ModuleFunctionReply::decode(&found[0].0)
        .expect("its reply")
        .function;
    Ok((module, function))
}

/// A launch of the suite's kernel for no elements.
fn nothing_to_do(module: Handle, function: u32) -> Launch {
    Launch {
        module,
        function,
        grid: [1; 3],
        block: [1; 3],
        shared_bytes: 0,
        stream: StreamRef::DEFAULT,
        deadline_ms: 0,
        parameters: Bytes::new(&[0; 32]).expect("short"),
        attributes: Default::default(),
    }
}

/// Begins a launch, of a kernel that has nothing to do, and does not look what becomes of it.
pub(crate) fn begin_a_launch(executor: &mut dyn Executor) {
    let deadline = Instant::now() + WATCHDOG;
    let (module, function) = load(executor, deadline).expect("a module");
    let launch = nothing_to_do(module, function);
    executor.start(&FrameHeader::request(Op::Launch, 1), launch.into());
}

/// Launches a kernel that has nothing to do so many times, and waits for each; the nanoseconds that the answers tell.
pub(crate) fn launches(executor: &mut dyn Executor, times: usize) -> Vec<u64> {
    let (module, function) = load(executor, Instant::now() + WATCHDOG).expect("a module");
    let mut each = || {
        ask(executor, nothing_to_do(module, function)).expect("launched");
        let body = ask(executor, Synchronize {}).expect("done");
        SynchronizeReply::decode(&body).expect("a reply").device_ns
    };
    let told = (0..times).map(|_| each()).collect();
    ask(executor, ModuleUnload { module }).expect("unloaded");
    told
}

/// Adds vectors beside each other: all copies at once, all launches, all copies back.
pub(crate) fn run_adds(
    executor: &mut dyn Executor,
    adds: &[Vec<(f32, f32)>],
    deadline: Instant,
) -> Ended<Vec<Vec<f32>>> {
    let (module, function) = load(executor, deadline)?;
    let mut addresses = Vec::new();
    let sums = add_with(executor, (module, function), adds, &mut addresses, deadline);
    let free = addresses
        .iter()
        .map(|address| MemoryFree { address: *address }.into());
    let mut back: Vec<(Request, Vec<u8>)> = free.map(|request| (request, Vec::new())).collect();
    back.push((ModuleUnload { module }.into(), Vec::new()));
    let given_back = run_all(executor, back, deadline);
    let sums = sums?;
    given_back.map(|_| sums)
}

fn add_with(
    executor: &mut dyn Executor,
    (module, function): (Handle, u32),
    adds: &[Vec<(f32, f32)>],
    addresses: &mut Vec<u64>,
    deadline: Instant,
) -> Ended<Vec<Vec<f32>>> {
    let stream = StreamRef::DEFAULT;
    for pairs in adds {
        let bytes = bytes(12 * pairs.len());
        let allocate = vec![(MemoryAllocate { bytes }.into(), Vec::new())];
        let allocated = run_all(executor, allocate, deadline)?;
        let reply = MemoryAllocateReply::decode(&allocated[0].0).expect("its reply");
        addresses.push(reply.address);
    }
    let (mut up, mut launches, mut down) = (Vec::new(), Vec::new(), Vec::new());
    for (pairs, a) in adds.iter().zip(addresses.iter()) {
        let size = bytes(4 * pairs.len());
        let (b, c) = (a + size.get(), a + 2 * size.get());
        for (to, half) in [
            (*a, (|pair| pair.0) as fn(&(f32, f32)) -> f32),
            (b, |pair| pair.1),
        ] {
            let copy = CopyToDevice {
                to,
                bytes: size,
                stream,
            };
            let data = pairs
                .iter()
                .flat_map(|pair| half(pair).to_le_bytes())
                .collect();
            up.push((copy.into(), data));
        }
        let parameters = [*a, b, c, pairs.len() as u64].map(u64::to_le_bytes);
        let blocks = u32::try_from(pairs.len().div_ceil(256))
            .unwrap()
            .min(65_535);
        let launch = Launch {
            module,
            function,
            grid: [blocks, 1, 1],
            block: [256, 1, 1],
            shared_bytes: 0,
            stream,
            deadline_ms: 0,
            parameters: Bytes::new(parameters.as_flattened()).expect("short"),
            attributes: Default::default(),
        };
        launches.push((launch.into(), Vec::new()));
        let copy = CopyFromDevice {
            from: c,
            bytes: size,
            stream,
        };
        down.push((copy.into(), Vec::new()));
    }
    run_all(executor, up, deadline)?;
    run_all(
        executor,
        vec![(Synchronize {}.into(), Vec::new())],
        deadline,
    )?;
    run_all(executor, launches, deadline)?;
    let sums = run_all(executor, down, deadline)?;
    let floats = |data: &[u8]| {
        let (floats, rest) = data.as_chunks::<4>();
        assert!(rest.is_empty());
        floats
            .iter()
            .map(|float| f32::from_le_bytes(*float))
            .collect()
    };
    Ok(sums.iter().map(|(_, data)| floats(data)).collect())
}

/// Runs vector adds of these lengths beside each other and compares every element.
pub(crate) fn add_all(executor: &mut dyn Executor, lengths: &[usize]) {
    let adds: Vec<Vec<_>> = lengths
        .iter()
        .map(|n| (0..*n).map(numbers).collect())
        .collect();
    let ended = run_adds(executor, &adds, Instant::now() + WATCHDOG).expect("sums");
    for (pairs, sums) in adds.iter().zip(ended) {
        assert_eq!(sums.len(), pairs.len());
        for (i, (sum, (a, b))) in sums.iter().zip(pairs).enumerate() {
            assert_eq!(
                sum.to_bits(),
                (a + b).to_bits(),
                "element {i} of {}",
                pairs.len()
            );
        }
    }
}

pub(crate) fn add(executor: &mut dyn Executor, elements: usize) {
    add_all(executor, &[elements]);
}

/// A vector add of `elements` that fails, and why.
pub(crate) fn failure(executor: &mut dyn Executor, elements: usize, deadline: Instant) -> Failure {
    let adds = [(0..elements).map(numbers).collect()];
    let ended = run_adds(executor, &adds, deadline);
    ended.expect_err("a failure").expect("an end")
}

fn several_at_once(executor: &mut dyn Executor) {
    add_all(executor, &[5 * CHUNK, 1, 2 * CHUNK + 7, 1000]);
    add_all(executor, &[10; 16]);
}

/// One rounding to nearest, subnormal numbers, infinities and signed zeros, as IEEE 754 has them.
fn special_numbers(executor: &mut dyn Executor) {
    let values = [
        0.0,
        -0.0,
        1.0,
        f32::EPSILON / 2.0,
        f32::EPSILON,
        f32::MIN_POSITIVE,
        f32::from_bits(1),
        -f32::from_bits(3),
        f32::MAX,
        f32::MIN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        16_777_217.0,
    ];
    let pairs: Vec<(f32, f32)> = values
        .iter()
        .flat_map(|a| values.iter().map(|b| (*a, *b)))
        .collect();
    let mut ended = run_adds(
        executor,
        std::slice::from_ref(&pairs),
        Instant::now() + WATCHDOG,
    )
    .expect("sums");
    let sums = ended.remove(0);
    for ((a, b), sum) in pairs.iter().zip(sums) {
        let right = a + b;
        // The payload of a NaN is not preserved by every device.
        assert!(
            sum.to_bits() == right.to_bits() || (sum.is_nan() && right.is_nan()),
            "{a:e} + {b:e} gave {sum:e}"
        );
    }
}

/// A request is cancelled with work under way, as when a guest goes away; the next one is not
/// disturbed by it.
fn work_that_nobody_waits_for(executor: &mut dyn Executor) {
    let size = bytes(10 * 4 * CHUNK);
    let allocate = vec![(MemoryAllocate { bytes: size }.into(), Vec::new())];
    let deadline = Instant::now() + WATCHDOG;
    let allocated = run_all(executor, allocate, deadline).expect("memory");
    let address = MemoryAllocateReply::decode(&allocated[0].0)
        .expect("its reply")
        .address;
    let stream = StreamRef::DEFAULT;
    for _ in 0..3 {
        let header = FrameHeader::request(Op::CopyToDevice, 9);
        let (to, bytes) = (address, size);
        executor.start(&header, CopyToDevice { to, bytes, stream }.into());
        // As much as there is room for.
        loop {
            let n = executor.input(9).len();
            if n == 0 {
                break;
            }
            executor.filled(9, n);
        }
        executor.cancel(9);
        let header = FrameHeader::request(Op::CopyFromDevice, 9);
        let (from, bytes) = (address, size);
        executor.start(
            &header,
            CopyFromDevice {
                from,
                bytes,
                stream,
            }
            .into(),
        );
        executor.cancel(9);
        while let Some(event) = executor.next_event() {
            assert!(matches!(event, Event::Worked(_)), "{event:?}");
        }
        add(executor, 2 * CHUNK + 1);
    }
    let free = vec![(MemoryFree { address }.into(), Vec::new())];
    run_all(executor, free, deadline).expect("freed");
}

fn unknown_operations(executor: &mut dyn Executor) {
    executor.start(&FrameHeader::request(Op::Info, 3), Request::Info(Info {}));
    let Some(Event::Done(3, Err(failure))) = executor.next_event() else {
        panic!("not refused");
    };
    assert_eq!(failure.status, ErrorCode::Unsupported.into());
    assert!(failure.text.contains("Info"), "{}", failure.text);
}

//! The suite: what a session may expect of any executor.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use vgpu_mediator::executor::Executor;
use vgpu_mediator::session::backend::{Also, Event};
use vgpu_protocol::frame::FrameHeader;
use vgpu_protocol::op::{Body, Info, Op, Request, VECTOR_ADD_CHUNK, VectorAdd, VectorAddReply};
use vgpu_protocol::session::server::Failure;
use vgpu_protocol::status::ErrorCode;

/// No wait of a test is longer.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(60);

/// Elements of a chunk.
#[allow(clippy::cast_possible_truncation)]
pub(crate) const CHUNK: usize = VECTOR_ADD_CHUNK as usize;

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
    unknown_operations(executor);
}

/// The numbers at `i`: halves, so that every sum is exact, and different at each place of a chunk.
fn numbers(i: usize) -> (f32, f32) {
    ((i % 100_003) as f32 * 0.5, (i % 70_001) as f32 - 30_000.0)
}

/// The data of a vector add of these numbers.
fn data(pairs: &[(f32, f32)]) -> Vec<u8> {
    let half = |half: fn(&(f32, f32)) -> f32, chunk: &[(f32, f32)]| -> Vec<u8> {
        chunk
            .iter()
            .flat_map(|pair| half(pair).to_le_bytes())
            .collect()
    };
    let chunks = pairs.chunks(CHUNK);
    chunks
        .flat_map(|chunk| [half(|pair| pair.0, chunk), half(|pair| pair.1, chunk)].concat())
        .collect()
}

/// How a vector add ended: its sums.
type Ended = Result<Vec<f32>, Failure>;

/// Runs vector adds beside each other, as a session does; they have the ids from 1 on.
///
/// Returns what came of each until `deadline`; an executor that is lost fails them all.
pub(crate) fn run_adds(
    executor: &mut dyn Executor,
    adds: &[Vec<(f32, f32)>],
    deadline: Instant,
) -> Vec<Option<Ended>> {
    let ups: Vec<Vec<u8>> = adds.iter().map(|pairs| data(pairs)).collect();
    let ids: Vec<u32> = (1..).take(adds.len()).collect();
    for (id, pairs) in ids.iter().zip(adds) {
        let elements = NonZeroU64::new(pairs.len() as u64).expect("elements");
        let header = FrameHeader::request(Op::VectorAdd, *id);
        executor.start(&header, VectorAdd { elements }.into());
    }
    let mut given = vec![0; adds.len()];
    let mut downs = vec![Vec::new(); adds.len()];
    let mut ended: HashMap<u32, Ended> = HashMap::new();
    loop {
        let late = Instant::now() >= deadline;
        let mut moved = false;
        while let Some(event) = executor.next_event() {
            moved = true;
            match event {
                Event::Done(id, outcome) => {
                    let at = id as usize - 1;
                    let sums = outcome.map(|body| {
                        assert!(VectorAddReply::decode(&body).expect("its reply").device_ns > 0);
                        let (sums, rest) = downs[at].as_chunks::<4>();
                        assert!(rest.is_empty());
                        sums.iter().map(|sum| f32::from_le_bytes(*sum)).collect()
                    });
                    assert!(ended.insert(id, sums).is_none(), "{id} ends twice");
                }
                Event::Lost(lost) => {
                    for id in &ids {
                        ended.entry(*id).or_insert_with(|| {
                            Err(Failure {
                                status: lost.code.into(),
                                text: lost.text.clone(),
                            })
                        });
                    }
                }
                Event::Room(..) | Event::Moved(_) | Event::Worked(_) | Event::Failures(_) => {}
            }
        }
        for (at, id) in ids
            .iter()
            .enumerate()
            .filter(|(_, id)| !ended.contains_key(id))
        {
            let left = &ups[at][given[at]..];
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
        if ended.len() == ids.len() || (late && !moved) {
            return ids.iter().map(|id| ended.remove(id)).collect();
        }
        if !moved {
            let until = deadline.min(Instant::now() + CHECK);
            match executor.also() {
                Also::Waker(waker) => drop(waker.wait(until)),
                // A request that has just failed.
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

/// Runs vector adds of these lengths beside each other and compares every element.
pub(crate) fn add_all(executor: &mut dyn Executor, lengths: &[usize]) {
    let adds: Vec<Vec<_>> = lengths
        .iter()
        .map(|n| (0..*n).map(numbers).collect())
        .collect();
    let ended = run_adds(executor, &adds, Instant::now() + WATCHDOG);
    for (pairs, ended) in adds.iter().zip(ended) {
        let sums = ended.expect("in time").expect("sums");
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
    let mut ended = run_adds(executor, &adds, deadline);
    ended.remove(0).expect("an end").expect_err("a failure")
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
    );
    let sums = ended.remove(0).expect("in time").expect("sums");
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
    for _ in 0..3 {
        let elements = NonZeroU64::new(10 * VECTOR_ADD_CHUNK).expect("elements");
        let header = FrameHeader::request(Op::VectorAdd, 9);
        executor.start(&header, VectorAdd { elements }.into());
        // As much as there is room for.
        loop {
            let n = executor.input(9).len();
            if n == 0 {
                break;
            }
            executor.filled(9, n);
        }
        executor.cancel(9);
        while let Some(event) = executor.next_event() {
            assert!(matches!(event, Event::Worked(_)), "{event:?}");
        }
        add(executor, 2 * CHUNK + 1);
    }
}

fn unknown_operations(executor: &mut dyn Executor) {
    executor.start(&FrameHeader::request(Op::Info, 3), Request::Info(Info {}));
    let Some(Event::Done(3, Err(failure))) = executor.next_event() else {
        panic!("not refused");
    };
    assert_eq!(failure.status, ErrorCode::Unsupported.into());
    assert!(failure.text.contains("Info"), "{}", failure.text);
}

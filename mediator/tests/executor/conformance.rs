//! The suite: what a session may expect of any executor.

use std::time::{Duration, Instant};

use vgpu_mediator::executor::{Executor, ExecutorError, VectorAddPipeline};

/// No wait of a test is longer.
const WATCHDOG: Duration = Duration::from_secs(60);

/// Runs everything that needs no particular device. The executor is usable afterwards.
pub(crate) fn run(executor: &mut dyn Executor) {
    assert!(!executor.info().device.is_empty());
    assert!(!executor.info().reason.is_empty());
    assert!(executor.info().total_memory > 0);
    for chunk in [1, 63, 64, 1000, 30_000] {
        for elements in [1, chunk - 1, chunk, chunk + 1, 11 * chunk, 11 * chunk + 1] {
            if elements > 0 {
                add(executor, chunk, elements);
            }
        }
    }
    // Smaller chunks again, in buffers that are larger by now.
    add(executor, 10, 95);
    all_slots_at_once(executor);
    a_result_stays_until_the_next_input(executor);
    special_numbers(executor);
    work_that_nobody_waits_for(executor);
    too_much_memory(executor);
}

/// Adds two vectors as a session does: fills slots in turn, takes each result before it fills the
/// slot again, and compares every element.
pub(crate) fn add(executor: &mut dyn Executor, chunk: usize, elements: usize) {
    let mut pipeline = executor.vector_add(chunk).expect("a pipeline");
    let slots = pipeline.slots();
    assert!(slots >= 1);
    let chunks = elements.div_ceil(chunk);
    let length = |k: usize| chunk.min(elements - k * chunk);
    for k in 0..chunks + slots {
        if let Some(earlier) = k.checked_sub(slots).filter(|earlier| *earlier < chunks) {
            take(
                &mut *pipeline,
                earlier % slots,
                earlier * chunk,
                length(earlier),
            );
        }
        if k < chunks {
            fill(&mut *pipeline, k % slots, k * chunk, length(k));
        }
    }
    assert!(pipeline.device_ns() > 0);
}

/// The numbers at `i`: halves, so that every sum is exact, and different at each place of a chunk.
fn numbers(i: usize) -> (f32, f32) {
    ((i % 100_003) as f32 * 0.5, (i % 70_001) as f32 - 30_000.0)
}

fn fill(pipeline: &mut dyn VectorAddPipeline, slot: usize, first: usize, elements: usize) {
    let (a, b) = pipeline.input(slot, elements);
    assert_eq!((a.len(), b.len()), (elements, elements));
    for (i, (a, b)) in a.iter_mut().zip(b).enumerate() {
        (*a, *b) = numbers(first + i);
    }
    pipeline.submit(slot, elements).expect("submitted");
}

fn take(pipeline: &mut dyn VectorAddPipeline, slot: usize, first: usize, elements: usize) {
    let sums = pipeline
        .result(slot, Instant::now() + WATCHDOG)
        .expect("a result");
    assert_eq!(sums.len(), elements);
    for (i, sum) in sums.iter().enumerate() {
        let (a, b) = numbers(first + i);
        assert_eq!(sum.to_bits(), (a + b).to_bits(), "element {}", first + i);
    }
}

fn all_slots_at_once(executor: &mut dyn Executor) {
    let mut pipeline = executor.vector_add(5000).expect("a pipeline");
    let slots = pipeline.slots();
    for slot in 0..slots {
        fill(&mut *pipeline, slot, slot * 5000, 5000 - slot);
    }
    let deadline = Instant::now() + WATCHDOG;
    for slot in 0..slots {
        while !pipeline.is_done(slot).expect("no error") {
            assert!(Instant::now() < deadline, "slot {slot} does not end");
            std::thread::yield_now();
        }
        take(&mut *pipeline, slot, slot * 5000, 5000 - slot);
    }
}

fn a_result_stays_until_the_next_input(executor: &mut dyn Executor) {
    let mut pipeline = executor.vector_add(100).expect("a pipeline");
    fill(&mut *pipeline, 0, 7, 100);
    take(&mut *pipeline, 0, 7, 100);
    if pipeline.slots() > 1 {
        fill(&mut *pipeline, 1, 1000, 50);
    }
    let device_ns = pipeline.device_ns();
    take(&mut *pipeline, 0, 7, 100);
    assert!(pipeline.is_done(0).expect("no error"));
    assert_eq!(pipeline.device_ns(), device_ns, "a chunk counts once");
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
    let mut pipeline = executor.vector_add(pairs.len()).expect("a pipeline");
    let (a, b) = pipeline.input(0, pairs.len());
    for (i, pair) in pairs.iter().enumerate() {
        (a[i], b[i]) = *pair;
    }
    pipeline.submit(0, pairs.len()).expect("submitted");
    let sums = pipeline
        .result(0, Instant::now() + WATCHDOG)
        .expect("a result");
    for ((a, b), sum) in pairs.iter().zip(sums) {
        let right = a + b;
        // The payload of a NaN is not preserved by every device.
        assert!(
            sum.to_bits() == right.to_bits() || (sum.is_nan() && right.is_nan()),
            "{a:e} + {b:e} gave {sum:e}"
        );
    }
}

/// A pipeline is dropped with work under way, as when a guest goes away; the next one is not
/// disturbed by it.
fn work_that_nobody_waits_for(executor: &mut dyn Executor) {
    for _ in 0..3 {
        let mut pipeline = executor.vector_add(50_000).expect("a pipeline");
        for slot in 0..pipeline.slots() {
            fill(&mut *pipeline, slot, 1, 50_000);
        }
        drop(pipeline);
        add(executor, 50_000, 125_000);
    }
}

/// More than there are addresses for; the executor works on.
fn too_much_memory(executor: &mut dyn Executor) {
    let error = executor
        .vector_add(usize::MAX / 8)
        .err()
        .expect("no machine has it");
    assert!(
        matches!(error, ExecutorError::OutOfMemory { .. }),
        "{error}"
    );
    assert!(!error.ends_session());
    add(executor, 1000, 2500);
}

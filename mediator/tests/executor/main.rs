//! What every executor must do, and what the CUDA executor does when the driver does not play along.
//!
//! The same suite runs on the CPU, on a GPU (ignored unless asked for) and on the CUDA executor over
//! a stand-in for NVIDIA's library, which also plays its failures.

mod conformance;
mod end_to_end;
mod stand_in;

use std::time::{Duration, Instant};

use vgpu_mediator::executor::{Executor, ExecutorError, cpu::CpuExecutor, cuda};

#[test]
fn cpu() {
    conformance::run(&mut CpuExecutor::new("a test"));
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_on_a_gpu() {
    let mut executor = cuda::open("a test").expect("a GPU");
    println!("{:?}", executor.info());
    conformance::run(&mut executor);
    // 12 TiB: more than any GPU has, and no reason to give up.
    let error = executor.vector_add(1 << 40).err().expect("no such GPU");
    assert!(
        matches!(error, ExecutorError::OutOfMemory { .. }),
        "{error}"
    );
    conformance::run(&mut executor);
    // Large enough for the grid's limit, so that threads take several elements each.
    conformance::add(&mut executor, 1 << 25, (1 << 26) + 12_345);
}

/// What the pipeline itself takes, without a session that fills and reads the buffers: prints, and
/// compares nothing.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_speed_on_a_gpu() {
    const ELEMENTS: usize = 1 << 26;
    let start = Instant::now();
    let mut executor = cuda::open("a test").expect("a GPU");
    println!(
        "opened and proved in {:?}: {:?}",
        start.elapsed(),
        executor.info()
    );
    println!("{ELEMENTS} elements; chunk, buffers allocated in, then three runs (of the device)");
    for chunk in [1 << 16, 1 << 18, 1 << 20, 1 << 21] {
        let start = Instant::now();
        drop(executor.vector_add(chunk).expect("a pipeline"));
        let allocated = start.elapsed();
        let mut runs = Vec::new();
        for _ in 0..3 {
            let start = Instant::now();
            let mut pipeline = executor.vector_add(chunk).expect("a pipeline");
            let (slots, chunks) = (pipeline.slots(), ELEMENTS / chunk);
            for k in 0..chunks + slots {
                if k >= slots {
                    let deadline = Instant::now() + Duration::from_secs(60);
                    pipeline.result(k % slots, deadline).expect("a result");
                }
                if k < chunks {
                    pipeline.input(k % slots, chunk);
                    pipeline.submit(k % slots, chunk).expect("submitted");
                }
            }
            let device = Duration::from_nanos(pipeline.device_ns());
            runs.push(format!("{:?} ({device:?})", start.elapsed()));
        }
        println!("{chunk:>8} {allocated:>12?}  {}", runs.join("  "));
    }
}

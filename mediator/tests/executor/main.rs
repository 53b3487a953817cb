//! What every executor must do, and what the CUDA executor does when the driver does not play along.
//!
//! The same suite runs on the CPU, on a GPU (ignored unless asked for) and on the CUDA executor over
//! a stand-in for NVIDIA's library, which also plays its failures.

mod conformance;
mod stand_in;

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
    // 12 TiB of page-locked memory: more than the machine has, and no reason to give up.
    let error = executor.vector_add(1 << 40).err().expect("no such machine");
    assert!(
        matches!(error, ExecutorError::OutOfMemory { .. }),
        "{error}"
    );
    conformance::run(&mut executor);
    // Large enough for the grid's limit, so that threads take several elements each.
    conformance::add(&mut executor, 1 << 25, (1 << 26) + 12_345);
}

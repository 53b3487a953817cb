//! Tests of every executor, and of the CUDA executor with a driver that fails.
//!
//! The same suite runs on the CPU, on a GPU (ignored unless asked for) and on the CUDA executor over
//! a stand-in for NVIDIA's library, which also plays its failures.

mod conformance;
mod devices;
mod end_to_end;
mod gpus;
mod graphs;
mod regions;
mod stand_in;
#[path = "../support/mod.rs"]
mod support;
mod warm;

use std::time::Instant;

use vgpu_mediator::executor::{Executor, cpu::CpuExecutor, cuda};

#[test]
fn cpu() {
    conformance::run(&mut CpuExecutor::new("a test"));
}

/// The cases of regions, each for an executor of its own.
const REGIONS: [fn(&mut dyn Executor); 4] = [
    regions::copies,
    regions::lies,
    regions::quota,
    regions::reached,
];

#[test]
fn regions_of_the_processor() {
    for run in REGIONS {
        run(&mut CpuExecutor::new("a test"));
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn regions_of_a_gpu() {
    for run in REGIONS {
        run(&mut cuda::open("a test", None).expect("a GPU"));
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_on_a_gpu() {
    let mut executor = cuda::open("a test", None).expect("a GPU");
    println!("{:?}", executor.info());
    conformance::run(&mut executor);
    conformance::add(&mut executor, (1 << 26) + 12_345);
}

/// Time of the executor alone, without a session.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_speed_on_a_gpu() {
    const ELEMENTS: usize = 1 << 26;
    let start = Instant::now();
    let mut executor = cuda::open("a test", None).expect("a GPU");
    println!(
        "opened and proved in {:?}: {:?}",
        start.elapsed(),
        executor.info()
    );
    let pairs = [vec![(1.0, 2.0); ELEMENTS]];
    for _ in 0..4 {
        let start = Instant::now();
        let ended = conformance::run_adds(&mut executor, &pairs, start + conformance::WATCHDOG);
        assert!(ended.is_ok());
        println!("{ELEMENTS} elements in {:?}", start.elapsed());
    }
}

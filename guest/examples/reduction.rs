//! The sum of many numbers: `cargo run -p vgpu-guest --example reduction -- local:/run/vgpu/vgpu.sock`
//!
//! Without an argument, `VGPU_ENDPOINT` is used, or `xen:`.

use std::error::Error;

use vgpu_guest::{Client, Device, LaunchConfig, Options, parse_list};

const N: u32 = 1_000_003;

/// Threads of a block, as the kernel has it.
const THREADS: u32 = 256;

/// Blocks of the first launch; the second adds up their sums.
const BLOCKS: u32 = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::default();
    let client = match std::env::args().nth(1) {
        Some(endpoints) => Client::connect(&parse_list(&endpoints)?, &options)?,
        None => Client::from_env(&options)?,
    };
    let device = Device::new(client)?;
    add_up(&device)?;
    // The result is here whatever becomes of the session.
    if let Err(error) = device.goodbye() {
        eprintln!("warning: {error}");
    }
    Ok(())
}

/// Adds up and checks the sum.
pub(crate) fn add_up(device: &Device) -> Result<(), Box<dyn Error>> {
    // Whole numbers, whose sum is exact in whatever order they are added.
    let numbers: Vec<f32> = (0..N).map(|i| (i % 29) as f32).collect();
    let module = device.load_module(include_bytes!("reduction.ptx"))?;
    let reduce = module.load_function("reduce")?;
    let on_device = device.clone_htod(&numbers)?;
    let sums = device.alloc::<f32>(BLOCKS as usize)?;
    let sum = device.alloc::<f32>(1)?;
    // The second launch begins when the first is done: nobody waits here.
    for (from, to, n, blocks) in [(&on_device, &sums, N, BLOCKS), (&sums, &sum, BLOCKS, 1)] {
        device
            .launch_builder(&reduce)
            .arg(from)
            .arg(to)
            .arg(&n)
            .launch(LaunchConfig {
                grid_dim: (blocks, 1, 1),
                block_dim: (THREADS, 1, 1),
                shared_mem_bytes: 0,
            })?;
    }
    let found = device.clone_dtoh(&sum)?[0];
    let wanted: f32 = numbers.iter().sum();
    if found != wanted {
        return Err(format!("the sum is {found}, not {wanted}").into());
    }
    let took = device.synchronize()?;
    println!("{N} numbers on {}: {took:?} on the device", device.name());
    Ok(())
}

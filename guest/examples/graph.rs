//! Many small kernels as one graph, which is launched by one short request, and the same kernels launched one by one:
//! `cargo run --release -p vgpu-guest --example graph -- local:/run/vgpu/vgpu.sock`
//!
//! Without an argument, `VGPU_ENDPOINT` is used, or `xen:`.

use std::error::Error;
use std::time::{Duration, Instant};

use vgpu_guest::{
    CaptureMode, Client, Device, DeviceBuffer, Function, LaunchConfig, Options, Stream, parse_list,
};

/// Kernels of a round: as many steps of some iteration.
const KERNELS: usize = 200;
const ROUNDS: usize = 20;
const N: usize = 256;

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::default();
    let client = match std::env::args().nth(1) {
        Some(endpoints) => Client::connect(&parse_list(&endpoints)?, &options)?,
        None => Client::from_env(&options)?,
    };
    let device = Device::new(client)?;
    both_ways(&device)?;
    // The result is here whatever becomes of the session.
    if let Err(error) = device.goodbye() {
        eprintln!("warning: {error}");
    }
    Ok(())
}

/// One round: y = y + x, many times.
fn round(
    stream: &Stream,
    saxpy: &Function,
    x: &DeviceBuffer<f32>,
    y: &DeviceBuffer<f32>,
) -> vgpu_guest::Result<()> {
    let n = u32::try_from(N).expect("a small number");
    for _ in 0..KERNELS {
        stream
            .launch_builder(saxpy)
            .arg(&1.0f32)
            .arg(x)
            .arg(y)
            .arg(&n)
            .launch(LaunchConfig::for_num_elems(n))?;
    }
    Ok(())
}

/// How long `work` takes to be sent, and until it is done.
fn timed(
    stream: &Stream,
    work: impl FnOnce() -> vgpu_guest::Result<()>,
) -> vgpu_guest::Result<(Duration, Duration)> {
    stream.synchronize()?;
    let start = Instant::now();
    work()?;
    let sent = start.elapsed();
    stream.synchronize()?;
    Ok((sent, start.elapsed()))
}

/// Runs the rounds both ways and checks every element.
pub(crate) fn both_ways(device: &Device) -> Result<(), Box<dyn Error>> {
    let module = device.load_module(include_bytes!("saxpy.ptx"))?;
    let saxpy = module.load_function("saxpy")?;
    let stream = device.new_stream()?;
    let x = stream.clone_htod(&[0.5f32; N])?;
    let y = stream.alloc_zeros::<f32>(N)?;
    stream.begin_capture(CaptureMode::Global)?;
    round(&stream, &saxpy, &x, &y)?;
    let graph = stream.end_capture()?.instantiate()?;
    let by_graph = timed(&stream, || {
        (0..ROUNDS).try_for_each(|_| graph.launch(&stream))
    })?;
    let one_by_one = timed(&stream, || {
        (0..ROUNDS).try_for_each(|_| round(&stream, &saxpy, &x, &y))
    })?;
    let wanted = (2 * ROUNDS * KERNELS) as f32 * 0.5;
    let found = stream.clone_dtoh(&y)?;
    if let Some(at) = found.iter().position(|y| *y != wanted) {
        return Err(format!("element {at} is {}, not {wanted}", found[at]).into());
    }
    println!(
        "{ROUNDS} rounds of {KERNELS} kernels on {}: as a graph sent in {:?} and done in {:?}, \
         one by one sent in {:?} and done in {:?}",
        device.name(),
        by_graph.0,
        by_graph.1,
        one_by_one.0,
        one_by_one.1,
    );
    Ok(())
}

//! Pieces of a vector through two streams, so that one is copied while the device works on the other:
//! `cargo run -p vgpu-guest --example two_streams -- local:/run/vgpu/vgpu.sock`
//!
//! Without an argument, `VGPU_ENDPOINT` is used, or `xen:`.

use std::error::Error;
use std::time::Duration;

use vgpu_guest::{Client, Device, Event, Function, LaunchConfig, Options, Stream, parse_list};

/// Elements of a piece.
const PIECE: usize = 50_000;
const PIECES: usize = 8;

/// How often each element is multiplied and added to.
const TIMES: u32 = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::default();
    let client = match std::env::args().nth(1) {
        Some(endpoints) => Client::connect(&parse_list(&endpoints)?, &options)?,
        None => Client::from_env(&options)?,
    };
    let device = Device::new(client)?;
    by_turns(&device)?;
    // The result is here whatever becomes of the session.
    if let Err(error) = device.goodbye() {
        eprintln!("warning: {error}");
    }
    Ok(())
}

/// One element's result, as the kernel computes it.
fn repeated(mut x: f32) -> f32 {
    for _ in 0..TIMES {
        x = x.mul_add(0.5, 1.5);
    }
    x
}

/// Sends a piece's work to `stream`, without a wait; its beginning and end.
fn begin(
    stream: &Stream,
    kernel: &Function,
    piece: &[f32],
    on_device: &mut vgpu_guest::DeviceBuffer<f32>,
) -> vgpu_guest::Result<(Event, Event)> {
    let began = stream.record_event()?;
    stream.memcpy_htod(piece, on_device)?;
    let n = u32::try_from(piece.len()).expect("a small number");
    stream
        .launch_builder(kernel)
        .arg(on_device)
        .arg(&0.5f32)
        .arg(&1.5f32)
        .arg(&TIMES)
        .arg(&n)
        .launch(LaunchConfig::for_num_elems(n))?;
    Ok((began, stream.record_event()?))
}

/// Sends the pieces through two streams by turns and checks every element.
pub(crate) fn by_turns(device: &Device) -> Result<(), Box<dyn Error>> {
    let x: Vec<f32> = (0..PIECE * PIECES).map(|i| (i % 1013) as f32).collect();
    let mut y = vec![0.0; x.len()];
    let module = device.load_module(include_bytes!("two_streams.ptx"))?;
    let kernel = module.load_function("repeat")?;
    let streams = [device.new_stream()?, device.new_stream()?];
    let mut buffers = [device.alloc::<f32>(PIECE)?, device.alloc::<f32>(PIECE)?];
    let mut times = Vec::new();
    for pair in 0..PIECES / 2 {
        for k in 0..2 {
            let at = (2 * pair + k) * PIECE;
            let piece = &x[at..at + PIECE];
            times.push(begin(&streams[k], &kernel, piece, &mut buffers[k])?);
        }
        // The first comes back while the device is at the second.
        for k in 0..2 {
            let at = (2 * pair + k) * PIECE;
            streams[k].memcpy_dtoh(&buffers[k], &mut y[at..at + PIECE])?;
        }
    }
    for (at, (x, found)) in x.iter().zip(&y).enumerate() {
        let wanted = repeated(*x);
        if *found != wanted {
            return Err(format!("element {at} is {found}, not {wanted}").into());
        }
    }
    let mut alone = Duration::ZERO;
    for (began, ended) in &times {
        alone += ended.elapsed_since(began)?;
    }
    let whole = times[PIECES - 1].1.elapsed_since(&times[0].0)?;
    println!(
        "{PIECES} pieces on {}: {whole:?} altogether, {alone:?} if one had waited for the other",
        device.name()
    );
    Ok(())
}

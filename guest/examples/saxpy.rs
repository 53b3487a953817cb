//! A kernel of one's own: `cargo run -p vgpu-guest --example saxpy -- local:/run/vgpu/vgpu.sock`
//!
//! Without an argument, `VGPU_ENDPOINT` is used, or `xen:`.

use std::error::Error;

use vgpu_guest::{Client, Device, LaunchConfig, Options, parse_list};

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::default();
    let client = match std::env::args().nth(1) {
        Some(endpoints) => Client::connect(&parse_list(&endpoints)?, &options)?,
        None => Client::from_env(&options)?,
    };
    let device = Device::new(client)?;
    run(&device)?;
    // The result is here whatever becomes of the session.
    if let Err(error) = device.goodbye() {
        eprintln!("warning: {error}");
    }
    Ok(())
}

/// Computes and checks every element.
pub(crate) fn run(device: &Device) -> Result<(), Box<dyn Error>> {
    let n = 1_000_000u32;
    let module = device.load_module(include_bytes!("saxpy.ptx"))?;
    let saxpy = module.load_function("saxpy")?;
    let x = device.clone_htod(&vec![1.0f32; n as usize])?;
    let y = device.clone_htod(&vec![2.0f32; n as usize])?;
    device
        .launch_builder(&saxpy)
        .arg(&3.0f32)
        .arg(&x)
        .arg(&y)
        .arg(&n)
        .launch(LaunchConfig::for_num_elems(n))?;
    let sums = device.clone_dtoh(&y)?;
    if let Some(at) = sums.iter().position(|sum| *sum != 5.0) {
        return Err(format!("element {at} is {}, not 5", sums[at]).into());
    }
    let took = device.synchronize()?;
    println!("{n} elements on {}: {took:?} on the device", device.name());
    Ok(())
}

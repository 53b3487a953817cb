//! Adds two vectors: `cargo run -p vgpu-guest --example vector_add -- local:/run/vgpu/vgpu.sock`
//!
//! Without an argument, `VGPU_ENDPOINT` is used, or `xen:`.

use std::error::Error;

use vgpu_guest::{Client, Options, parse_list};

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::default();
    let mut gpu = match std::env::args().nth(1) {
        Some(endpoints) => Client::connect(&parse_list(&endpoints)?, &options)?,
        None => Client::from_env(&options)?,
    };
    add(&mut gpu)?;
    // The sum is complete whatever becomes of the session.
    if let Err(error) = gpu.goodbye() {
        eprintln!("warning: {error}");
    }
    Ok(())
}

/// Adds and checks every element.
pub(crate) fn add(gpu: &mut Client) -> Result<(), Box<dyn Error>> {
    let info = gpu.info()?;
    println!("{} on {}: {}", info.executor, info.device, info.reason);

    let a: Vec<f32> = (0..1_000_000).map(|i| i as f32).collect();
    let b = vec![0.5; a.len()];
    let mut sum = vec![0.0; a.len()];
    let report = gpu.vector_add(&a, &b, &mut sum)?;
    for (at, found) in sum.iter().enumerate() {
        let wanted = a[at] + b[at];
        if *found != wanted {
            return Err(format!("element {at} is {found}, not {wanted}").into());
        }
    }
    println!("{} elements in {:?}", report.elements, report.elapsed);
    Ok(())
}

//! Adds two vectors: `cargo run -p vgpu-guest --example vector_add -- local:/run/vgpu/vgpu.sock`
//!
//! Without an argument, `VGPU_ENDPOINT` is used, or `xen:`.

use std::io::Write as _;

use vgpu_guest::{Client, Options, parse_list};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::default();
    let mut gpu = match std::env::args().nth(1) {
        Some(endpoints) => Client::connect(&parse_list(&endpoints)?, &options)?,
        None => Client::from_env(&options)?,
    };
    let info = gpu.info()?;
    println!("{} on {}: {}", info.executor, info.device, info.reason);

    let a: Vec<f32> = (0..1_000_000).map(|i| i as f32).collect();
    let b = vec![0.5; a.len()];
    let mut sum = vec![0.0; a.len()];
    let report = gpu.vector_add(&a, &b, &mut sum)?;
    println!(
        "{} elements in {:?}, the last is {}",
        report.elements, report.elapsed, sum[999_999]
    );
    // The sum is complete whatever becomes of the session.
    if let Err(error) = gpu.goodbye() {
        // Not by eprintln, which would panic where nobody reads any more.
        let _ = writeln!(std::io::stderr(), "warning: {error}");
    }
    Ok(())
}

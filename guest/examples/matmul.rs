//! Two matrices multiplied, by way of shared memory:
//! `cargo run -p vgpu-guest --example matmul -- local:/run/vgpu/vgpu.sock`
//!
//! Without an argument, `VGPU_ENDPOINT` is used, or `xen:`.

use std::error::Error;

use vgpu_guest::{Client, Device, LaunchConfig, Options, parse_list};

/// Rows and columns: no multiple of the kernel's tiles.
const N: u32 = 150;

/// Rows and columns of a tile.
const TILE: u32 = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::default();
    let client = match std::env::args().nth(1) {
        Some(endpoints) => Client::connect(&parse_list(&endpoints)?, &options)?,
        None => Client::from_env(&options)?,
    };
    let device = Device::new(client)?;
    multiply(&device)?;
    // The result is here whatever becomes of the session.
    if let Err(error) = device.goodbye() {
        eprintln!("warning: {error}");
    }
    Ok(())
}

/// Multiplies two matrices and checks every element.
pub(crate) fn multiply(device: &Device) -> Result<(), Box<dyn Error>> {
    let n = N as usize;
    // Whole numbers, whose sums of products are exact in whatever order they are added.
    let a: Vec<f32> = (0..n * n).map(|i| (i % 17) as f32 - 8.0).collect();
    let b: Vec<f32> = (0..n * n).map(|i| (i % 23) as f32 - 11.0).collect();

    let module = device.load_module(include_bytes!("matmul.ptx"))?;
    let matmul = module.load_function("matmul")?;
    let on_device = (device.clone_htod(&a)?, device.clone_htod(&b)?);
    let product = device.alloc::<f32>(n * n)?;
    device
        .launch_builder(&matmul)
        .arg(&on_device.0)
        .arg(&on_device.1)
        .arg(&product)
        .arg(&N)
        .launch(LaunchConfig {
            grid_dim: (N.div_ceil(TILE), N.div_ceil(TILE), 1),
            block_dim: (TILE, TILE, 1),
            shared_mem_bytes: 0,
        })?;
    let c = device.clone_dtoh(&product)?;

    for (at, found) in c.iter().enumerate() {
        let (row, column) = (at / n, at % n);
        let wanted: f32 = (0..n).map(|k| a[row * n + k] * b[k * n + column]).sum();
        if *found != wanted {
            return Err(format!("row {row}, column {column}: {found}, not {wanted}").into());
        }
    }
    let took = device.synchronize()?;
    println!("{n} x {n} on {}: {took:?} on the device", device.name());
    Ok(())
}

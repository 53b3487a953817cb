//! The Mandelbrot set as a PNG:
//! `cargo run -p vgpu-guest --example mandelbrot -- local:/run/vgpu/vgpu.sock mandelbrot.png`
//!
//! Without the first argument, `VGPU_ENDPOINT` is used, or `xen:`; without the second, `mandelbrot.png`.

use std::error::Error;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use vgpu_guest::{Client, Device, LaunchConfig, Options, parse_list};

const WIDTH: u32 = 480;
const HEIGHT: u32 = 320;
const LEFT: f32 = -2.25;
const TOP: f32 = 1.0;
/// Of a pixel.
const SIZE: f32 = 2.0 / HEIGHT as f32;

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::default();
    let client = match std::env::args().nth(1) {
        Some(endpoints) => Client::connect(&parse_list(&endpoints)?, &options)?,
        None => Client::from_env(&options)?,
    };
    let device = Device::new(client)?;
    let path = std::env::args().nth(2);
    draw(
        &device,
        Path::new(path.as_deref().unwrap_or("mandelbrot.png")),
    )?;
    // The picture is here whatever becomes of the session.
    if let Err(error) = device.goodbye() {
        eprintln!("warning: {error}");
    }
    Ok(())
}

/// Draws it, checks every pixel and writes the picture.
pub(crate) fn draw(device: &Device, path: &Path) -> Result<(), Box<dyn Error>> {
    let module = device.load_module(include_bytes!("mandelbrot.ptx"))?;
    let mandelbrot = module.load_function("mandelbrot")?;
    let steps = device.alloc::<u8>((WIDTH * HEIGHT) as usize)?;
    device
        .launch_builder(&mandelbrot)
        .arg(&steps)
        .arg(&WIDTH)
        .arg(&HEIGHT)
        .arg(&LEFT)
        .arg(&TOP)
        .arg(&SIZE)
        .launch(LaunchConfig {
            grid_dim: (WIDTH.div_ceil(16), HEIGHT.div_ceil(16), 1),
            block_dim: (16, 16, 1),
            shared_mem_bytes: 0,
        })?;
    let steps = device.clone_dtoh(&steps)?;
    let took = device.synchronize()?;
    for (at, found) in steps.iter().enumerate() {
        let (x, y) = (at % WIDTH as usize, at / WIDTH as usize);
        let wanted = steps_of(LEFT + x as f32 * SIZE, TOP - y as f32 * SIZE);
        if *found != wanted {
            return Err(format!("pixel {x}, {y} left after {found} steps, not {wanted}").into());
        }
    }

    let mut picture = png::Encoder::new(BufWriter::new(File::create(path)?), WIDTH, HEIGHT);
    picture.set_color(png::ColorType::Grayscale);
    picture.set_depth(png::BitDepth::Eight);
    let mut writer = picture.write_header()?;
    // What never leaves is black, what leaves at once white.
    let grey: Vec<u8> = steps.iter().map(|steps| 255 - steps).collect();
    writer.write_image_data(&grey)?;
    writer.finish()?;
    println!(
        "{} x {HEIGHT} on {}: {took:?} on the device; see {}",
        WIDTH,
        device.name(),
        path.display()
    );
    Ok(())
}

/// As the kernel computes it.
fn steps_of(cr: f32, ci: f32) -> u8 {
    let (mut zr, mut zi, mut steps) = (0.0f32, 0.0f32, 0u8);
    loop {
        let (rr, ii) = (zr * zr, zi * zi);
        if rr + ii > 4.0 || steps == 255 {
            return steps;
        }
        let product = zr * zi;
        zi = product + product + ci;
        zr = rr - ii + cr;
        steps += 1;
    }
}

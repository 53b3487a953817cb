//! The results of an H100 compared with those of this crate: see `tests/corpus/README.md`.
#![allow(clippy::cast_possible_truncation, reason = "bits of values")]

mod errors;
mod instructions;
mod kernels;
mod modules;

use std::path::PathBuf;

/// A file of the corpus.
fn corpus(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/corpus")
        .join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn corpus_text(name: &str) -> String {
    String::from_utf8(corpus(name)).unwrap()
}

/// One worker, so that every run is the same.
fn device() -> vgpu_ptx::Device {
    vgpu_ptx::Device::new(vgpu_ptx::Config {
        workers: 1,
        ..vgpu_ptx::Config::default()
    })
}

fn hex(s: &str) -> Vec<u8> {
    (0..s.len() / 2)
        .map(|k| u8::from_str_radix(&s[2 * k..2 * k + 2], 16).unwrap())
        .collect()
}

/// The distance between two floats, in units of the last place of f32.
fn ulps(a: u32, b: u32) -> u32 {
    let order = |x: u32| {
        if x >> 31 != 0 {
            -i64::from(x & 0x7fff_ffff)
        } else {
            i64::from(x)
        }
    };
    u32::try_from((order(a) - order(b)).abs()).unwrap_or(u32::MAX)
}

/// The 33 files, compiled and hand-written.
fn all_files() -> Vec<String> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut list = Vec::new();
    for folder in ["", "variants", "triton"] {
        for e in std::fs::read_dir(root.join(folder)).unwrap() {
            let name = e.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".ptx") {
                list.push(if folder.is_empty() {
                    name
                } else {
                    format!("{folder}/{name}")
                });
            }
        }
    }
    list.sort();
    list
}

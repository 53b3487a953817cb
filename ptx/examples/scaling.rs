//! Scaling of blocks over processors, beside plain Rust on the same machine in the same run:
//! `cargo run --release -p vgpu-ptx --example scaling`.
//!
//! Each line is a number of threads. The work is a grid of independent blocks of 256 points of the
//! Mandelbrot set, dealt out by one counter: by this crate, by plain Rust with one point at a time
//! (one chain of dependent operations), and by plain Rust with 32 points at a time (which keeps the
//! units of a core busy, as lanes in lock-step do). Efficiency is the speed divided by that of one
//! thread and by the number of threads. Two hardware threads of a core share its units, which
//! limits plain Rust with 32 points as well: the last column is the loss due to this crate.
#![allow(clippy::cast_precision_loss, reason = "figures for people")]

use std::hint::black_box;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use vgpu_ptx::{Config, Device, Launch, Module};

const ROUNDS: usize = 5;
const BLOCKS: u32 = 2048;
const TURNS: i32 = 1000;
/// Instructions of the kernel's loop.
const LOOP: f64 = 13.0;

fn best(mut f: impl FnMut()) -> f64 {
    let round = |_| {
        let t = Instant::now();
        f();
        t.elapsed().as_secs_f64()
    };
    (0..ROUNDS).map(round).fold(f64::MAX, f64::min)
}

fn point(cx: f32, cy: f32) -> i32 {
    let (mut xx, mut yy, mut x, mut y) = (0f32, 0f32, 0f32, 0f32);
    let mut k = 0;
    loop {
        let next = cx + (xx - yy);
        y = (x + x) * y + cy;
        k += 1;
        (xx, yy, x) = (next * next, y * y, next);
        if !(k < TURNS && xx + yy <= 4.0) {
            return k;
        }
    }
}

/// 32 points at once: plain loops over arrays, which the compiler makes vector code of.
fn points(cx: f32, cy: f32) -> i32 {
    let (mut xx, mut yy, mut x, mut y) = ([0f32; 32], [0f32; 32], [0f32; 32], [0f32; 32]);
    let mut k = 0;
    loop {
        let mut all = 0u32;
        for l in 0..32 {
            let next = cx + (xx[l] - yy[l]);
            y[l] = (x[l] + x[l]) * y[l] + cy;
            (xx[l], yy[l], x[l]) = (next * next, y[l] * y[l], next);
            all |= u32::from(xx[l] + yy[l] <= 4.0);
        }
        k += 1;
        if k == TURNS || all == 0 {
            return k;
        }
    }
}

/// Seconds for the blocks of 256 points on `threads` threads.
fn plain(threads: u32, block: impl Fn() + Sync) -> f64 {
    best(|| {
        let next = AtomicU32::new(0);
        std::thread::scope(|s| {
            for _ in 0..threads {
                s.spawn(|| {
                    while next.fetch_add(1, Ordering::Relaxed) < BLOCKS {
                        block();
                    }
                });
            }
        });
    })
}

/// The same with this crate.
fn ours(workers: u32, wide_vectors: bool) -> f64 {
    let module = Module::load(include_bytes!("../tests/corpus/mandelbrot.ptx"));
    let module = module.expect("the corpus loads");
    let device = Device::new(Config {
        workers,
        wide_vectors,
        ..Config::default()
    });
    let loaded = device.load(&module).expect("it fits");
    let kernel = module.kernel("mandelbrot_f32").expect("it is there");
    let out = device.allocate(u64::from(BLOCKS) * 1024).expect("memory");
    // Points that never escape: all lanes do the same number of rounds.
    let height = i32::try_from(8 * BLOCKS).unwrap_or(i32::MAX);
    let words = [
        out.to_le_bytes().to_vec(),
        [32i32, height].map(i32::to_le_bytes).concat(),
    ];
    let floats = [-0.1f32, 0.1, 0.0, 0.0].map(f32::to_le_bytes).concat();
    let parameters = [words.concat(), floats, TURNS.to_le_bytes().to_vec()].concat();
    let how = Launch::new([1, BLOCKS, 1], [32, 8, 1]);
    best(|| {
        let done = device.launch(&loaded, &kernel, &how, &parameters);
        done.expect("it runs");
    })
}

/// Blocks of one thread that do nothing: the cost of dealing them out.
fn nothing(workers: u32) -> f64 {
    let text = b".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k() { ret; }";
    let module = Module::load(text).expect("it loads");
    let device = Device::new(Config {
        workers,
        ..Config::default()
    });
    let loaded = device.load(&module).expect("it fits");
    let kernel = module.kernel("k").expect("it is there");
    let how = Launch::new([1 << 20, 1, 1], [1; 3]);
    best(|| {
        let done = device.launch(&loaded, &kernel, &how, &[]);
        done.expect("it runs");
    })
}

fn main() {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let model = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = model.lines().find_map(|l| l.strip_prefix("model name"));
    let shared = "/sys/devices/system/cpu/cpu0/topology/thread_siblings_list";
    let shared = std::fs::read_to_string(shared).unwrap_or_default();
    println!(
        "{cores} processors{}; processor 0 shares its core with: {}",
        model.map_or("", |m| m.trim_start_matches([' ', '\t'])),
        shared.trim()
    );
    println!(
        "G/s: thousand million instructions of a thread, 13 a turn; in brackets: efficiency\n\
         {:>7} | {:>14} | {:>14} | {:>14} | {:>14} | {:>14} | baseline / plain, 32 points",
        "threads", "this, AVX2", "this, baseline", "plain, 1 point", "plain, 32", "M blocks/s"
    );
    let work = f64::from(BLOCKS) * 256.0 * f64::from(TURNS) * LOOP / 1e9;
    let mut first: Option<[f64; 5]> = None;
    let mut threads = 1;
    while threads as usize <= cores.max(2) {
        let one = || {
            for _ in 0..256 {
                black_box(point(black_box(-0.1), black_box(0.1)));
            }
        };
        let many = || {
            for _ in 0..8 {
                black_box(points(black_box(-0.1), black_box(0.1)));
            }
        };
        let speeds = [
            work / ours(threads, true),
            work / ours(threads, false),
            work / plain(threads, one),
            work / plain(threads, many),
            1.048_576 / nothing(threads),
        ];
        let alone = *first.get_or_insert(speeds);
        let efficiency = |k: usize| speeds[k] / alone[k] / f64::from(threads);
        let cell = |k: usize| format!("{:6.2} ({:.2})", speeds[k], efficiency(k));
        println!(
            "{threads:7} | {:>14} | {:>14} | {:>14} | {:>14} | {:>14} | {:.2}",
            cell(0),
            cell(1),
            cell(2),
            cell(3),
            cell(4),
            efficiency(1) / efficiency(3)
        );
        threads *= 2;
    }
}

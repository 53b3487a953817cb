//! The time to stop a launch: `cargo run --release -p vgpu-ptx --example latency`.
//!
//! Kernels that never end, each busy in another way, are cancelled by hand after some milliseconds,
//! or run into a deadline. The program prints the time from there until the end is reported. Some
//! kernels run beside others of their kind, each in a stream of its own. Arguments select kernels
//! by name.

#[path = "../tests/hostile/mod.rs"]
mod hostile;

use std::sync::mpsc;
use std::time::{Duration, Instant};

use vgpu_ptx::{Cancel, Config, Device, Launch, Module, Work};

const ROUNDS: usize = 6;
/// Launches beside the one that is stopped, for some kinds.
const BESIDE: usize = 63;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let cores =
        std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1));
    println!(
        "{:44} {:>7} {:>7} {:>9} {:>9} {:>9} {:>9}",
        "ms from the word to the end",
        "threads",
        "beside",
        "by hand",
        "at most",
        "deadline",
        "at most"
    );
    let mut worst = 0f64;
    for kind in hostile::kinds() {
        if !words.iter().all(|w| kind.name.contains(w.as_str())) {
            continue;
        }
        let module =
            Module::load(kind.text.as_bytes()).unwrap_or_else(|e| panic!("{}: {e}", kind.name));
        let mut ways = vec![(1, 0), (cores.max(2), 0)];
        if matches!(kind.name, "arithmetic" | "loads from anywhere") {
            ways.push((1, BESIDE));
        }
        for (workers, beside) in ways {
            let (mut by_hand, mut deadline) = (Vec::new(), Vec::new());
            for round in 0..2 * ROUNDS {
                let device = Device::new(Config {
                    workers,
                    ..Config::default()
                });
                let loaded = device.load(&module).expect("it fits");
                let buffer = device.allocate(kind.buffer).expect("it fits");
                let mut how = Launch::new(kind.grid, kind.block);
                (how.shared, how.cooperative) = (kind.shared, kind.cooperative);
                // Spread over the kernel's first and later phases.
                let after = Duration::from_micros(500 + 3500 * (round as u64 / 2));
                if round % 2 == 0 {
                    how.deadline = Some(after);
                }
                let cancel = how.cancel.clone();
                let launch = |how: Launch, tell: mpsc::Sender<_>| {
                    let work = Work::Launch {
                        kernel: module.kernel("k").expect("it is there"),
                        loaded: loaded.clone(),
                        how,
                        parameters: buffer.to_le_bytes().to_vec(),
                    };
                    let said = device
                        .stream()
                        .submit(work, move |d| drop(tell.send((Instant::now(), d))));
                    said.expect("it can be launched");
                };
                let (tell, told) = mpsc::channel();
                let (others, _not_read) = mpsc::channel();
                for k in 0..beside {
                    let mut other = how.clone();
                    (other.deadline, other.cancel) = (None, Cancel::default());
                    if k == beside / 2 {
                        launch(how.clone(), tell.clone());
                    }
                    launch(other, others.clone());
                }
                if beside == 0 {
                    launch(how, tell);
                }
                let from = if round % 2 == 0 {
                    None
                } else {
                    std::thread::sleep(after);
                    cancel.cancel();
                    Some(Instant::now())
                };
                let (now, done) = told.recv().expect("it ends");
                assert!(done.result.is_err(), "{}: {:?}", kind.name, done.result);
                let from = from.unwrap_or(done.began + after);
                let took = now.saturating_duration_since(from).as_secs_f64() * 1e3;
                if round % 2 == 0 {
                    deadline.push(took);
                } else {
                    by_hand.push(took);
                }
            }
            let show = |v: &mut Vec<f64>| {
                v.sort_by(f64::total_cmp);
                (v[v.len() / 2], v[v.len() - 1])
            };
            let ((a, b), (c, d)) = (show(&mut by_hand), show(&mut deadline));
            worst = worst.max(b).max(d);
            println!(
                "{:44} {workers:7} {beside:7} {a:9.2} {b:9.2} {c:9.2} {d:9.2}",
                kind.name
            );
        }
    }
    println!("worst: {worst:.2} ms (aim: 10)");
}

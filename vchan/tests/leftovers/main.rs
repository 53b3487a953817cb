//! Nothing is left behind, and nothing is allocated without need.
//!
//! A program of their own, run one after the other, because they count resources of the whole
//! process.

#[path = "../liar/mod.rs"]
mod liar;

mod channels;
mod regions;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use liar::soon;

fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// (open descriptors, mappings of channel memory)
fn held() -> (usize, usize) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let memory = maps
        .lines()
        .filter(|line| line.contains("memfd:vchan"))
        .count();
    (std::fs::read_dir("/proc/self/fd").unwrap().count(), memory)
}

/// The resources held once nothing is being closed any more.
fn settled() -> (usize, usize) {
    loop {
        let before = held();
        thread::sleep(Duration::from_millis(100));
        if held() == before {
            return before;
        }
    }
}

/// Waits until no more than `before` is held: a thread closes descriptors that a peer may have
/// filled.
#[track_caller]
fn assert_nothing_left(before: (usize, usize)) {
    let deadline = soon();
    while held() != before && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(held(), before);
}

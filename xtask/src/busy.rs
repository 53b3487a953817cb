//! Processors kept busy on purpose, to test on a machine that is short of processors, as most hosts
//! are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Busy loops on this machine. They are threads of this process, so they end with it at the latest;
/// dropping this ends them.
pub(crate) struct Busy {
    stop: Arc<AtomicBool>,
    loops: Vec<JoinHandle<()>>,
}

impl Busy {
    /// Starts `loops` of them.
    pub(crate) fn start(loops: usize) -> Self {
        Self::start_with(loops, |_| {})
    }

    /// Starts `loops` of them, each kept on one processor, in turn.
    pub(crate) fn start_spread(loops: usize) -> Self {
        // A loop that cannot be kept there is still a busy loop.
        Self::start_with(loops, |number| {
            let _ = keep_on(Pid::from_raw(0), number);
        })
    }

    fn start_with(loops: usize, begin: fn(usize)) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let loops = (0..loops)
            .map(|number| {
                let stop = Arc::clone(&stop);
                std::thread::spawn(move || {
                    begin(number);
                    // Relaxed: the flag guards no other data; its partner is the store in `drop`.
                    // Without a spin hint, which would yield the processor to its hyper-thread.
                    while !stop.load(Ordering::Relaxed) {}
                })
            })
            .collect();
        Busy { stop, loops }
    }
}

/// Keeps a thread on one of the processors that this process may use: the one at `number`, modulo
/// how many there are. Thread 0 is the calling one.
///
/// # Errors
/// The kernel refuses, or there is no such thread.
pub(crate) fn keep_on(thread: Pid, number: usize) -> Result<(), Errno> {
    let usable = sched_getaffinity(Pid::from_raw(std::process::id().cast_signed()))?;
    let usable: Vec<usize> = (0..CpuSet::count())
        .filter(|cpu| usable.is_set(*cpu).unwrap_or(false))
        .collect();
    let mut one = CpuSet::new();
    one.set(usable[number % usable.len()])?;
    sched_setaffinity(thread, &one)
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for one in self.loops.drain(..) {
            let _ = one.join();
        }
    }
}

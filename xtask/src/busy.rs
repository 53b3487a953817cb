//! Processors kept busy on purpose, to test on a machine that is short of processors, as most hosts
//! are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Busy loops on this machine. They are threads of this process, so they end with it at the latest;
/// dropping this ends them.
pub(crate) struct Busy {
    stop: Arc<AtomicBool>,
    loops: Vec<JoinHandle<()>>,
}

impl Busy {
    /// Starts `loops` of them.
    pub(crate) fn start(loops: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let loops = (0..loops)
            .map(|_| {
                let stop = Arc::clone(&stop);
                // Relaxed: the flag guards no other data; its partner is the store in `drop`.
                // Without a spin hint, which would yield the processor to its hyper-thread.
                std::thread::spawn(move || while !stop.load(Ordering::Relaxed) {})
            })
            .collect();
        Busy { stop, loops }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for one in self.loops.drain(..) {
            let _ = one.join();
        }
    }
}

//! Kernels that never end, each busy in another way, yield the thread often, and end when told to.
//!
//! Nothing here depends on time: one thread executes the kernel and a stream of small work in turn,
//! so between two items of small work there is one step of the kernel, and the kernel counts its
//! rounds.

mod hostile;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use vgpu_ptx::{Cancel, Code, Config, Device, Launch, Module, Stream, Work};

/// Far beyond what anything here takes.
const PATIENCE: Duration = Duration::from_secs(300);

/// The observations between two steps of a kernel.
#[derive(Debug)]
struct Watch {
    device: Device,
    stream: Stream,
    buffer: u64,
    cancel: Cancel,
    /// Rounds of the kernel's first thread at each visit.
    rounds: Mutex<Vec<u32>>,
    /// Visits since the kernel was told to end.
    after: AtomicU32,
    over: AtomicBool,
}

/// Visits before the kernel is told to end.
const VISITS: usize = 24;
/// The same for kernels that do not count, or whose memory is still being allocated.
const LATEST: usize = 4000;

impl Watch {
    fn visit(self: &Arc<Self>) {
        let watch = Arc::clone(self);
        let look = Work::Host(Box::new(move || {
            let mut word = [0; 4];
            watch.device.read(watch.buffer, &mut word)?;
            let mut rounds = watch.rounds.lock().unwrap();
            rounds.push(u32::from_le_bytes(word));
            let busy = rounds.iter().filter(|n| **n > 0).count();
            if busy >= VISITS || rounds.len() >= LATEST {
                watch.cancel.cancel();
                watch.after.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        }));
        let watch = Arc::clone(self);
        // An error: the kernel has ended, and the device with it.
        let _ = self.stream.submit(look, move |d| {
            if d.result.is_ok() && !watch.over.load(Ordering::Relaxed) {
                watch.visit();
            }
        });
    }
}

#[test]
fn every_kernel_looks_up_before_much_is_done_and_ends_when_it_is_told() {
    let mut wrong = Vec::new();
    for kind in hostile::kinds() {
        let module = Module::load(kind.text.as_bytes()).unwrap();
        let device = Device::new(Config {
            workers: 1,
            ..Config::default()
        });
        let loaded = device.load(&module).unwrap();
        let buffer = device.allocate(kind.buffer).unwrap();
        let mut how = Launch::new(kind.grid, kind.block);
        (how.shared, how.cooperative) = (kind.shared, kind.cooperative);
        let watch = Arc::new(Watch {
            stream: device.stream(),
            device: device.clone(),
            buffer,
            cancel: how.cancel.clone(),
            rounds: Mutex::default(),
            after: AtomicU32::new(0),
            over: AtomicBool::new(false),
        });
        let (tell, told) = mpsc::channel();
        let work = Work::Launch {
            kernel: module.kernel("k").unwrap(),
            loaded,
            how,
            parameters: buffer.to_le_bytes().to_vec(),
        };
        let watching = Arc::clone(&watch);
        device
            .stream()
            .submit(work, move |d| {
                watching.over.store(true, Ordering::Relaxed);
                tell.send(d.result).unwrap();
            })
            .unwrap();
        watch.visit();
        let e = told
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|_| panic!("'{}' does not end", kind.name))
            .unwrap_err();
        assert_eq!(e.code, Code::LaunchTimeout, "{}: {e}", kind.name);
        let rounds = watch.rounds.lock().unwrap();
        let most = rounds.windows(2).map(|r| r[1] - r[0]).max().unwrap_or(0);
        let after = watch.after.load(Ordering::Relaxed);
        println!(
            "{:44} {most:6} of {:6} rounds a step, {after} steps after the word",
            kind.name, kind.rounds
        );
        if most > kind.rounds || after > 2 {
            wrong.push(format!(
                "'{}': {most} rounds in a step, at most {}; {after} steps after the word",
                kind.name, kind.rounds
            ));
        }
        if kind.rounds > 0 && rounds.last().is_none_or(|n| *n == 0) {
            wrong.push(format!("'{}' never began", kind.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

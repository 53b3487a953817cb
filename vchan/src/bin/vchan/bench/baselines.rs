//! Baselines for the channel's figures, measured by the same program.

use std::hint::black_box;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use vchan::layout::PAGE;
use vgpu_cli::Failure;

use super::amount::Amount;
use super::points::Threads;

/// The rate at which this machine copies on one processor, from one block into a page-aligned
/// buffer of the ring's size. Alignment matters: a block and its copy at nearly the same offset in
/// their pages slow each other down.
///
/// # Errors
/// None of its own; the signature is that of the other baselines.
pub(crate) fn memcpy(
    block: usize,
    ring_bytes: usize,
    amount: Amount,
) -> Result<(u64, Duration), Failure> {
    let from = vec![0x5A_u8; block];
    let bytes = ring_bytes.max(block);
    let mut memory = vec![0x5A_u8; bytes + PAGE];
    let start = memory.as_ptr().align_offset(PAGE);
    let to = &mut memory[start..start + bytes];
    amount.run(block, |count| {
        let start = Instant::now();
        for i in 0..count {
            let places = (to.len() / block) as u64;
            let offset = usize::try_from(i % places).unwrap_or(0) * block;
            to[offset..offset + block].copy_from_slice(black_box(&from));
            black_box(&mut *to);
        }
        Ok(start.elapsed())
    })
}

/// An echo over a Unix socket pair between two threads.
///
/// # Errors
/// No socket or thread can be created.
pub(crate) fn socket_pair(
    size: usize,
    threads: Threads,
    amount: Amount,
) -> Result<(u64, Duration), Failure> {
    let failed = |error| Failure::standard("socket pair", &error);
    let (mut near, mut far) = UnixStream::pair().map_err(failed)?;
    let echo = std::thread::spawn(move || {
        if threads == Threads::Apart {
            leave_the_only_processor();
        }
        let mut buf = vec![0; size];
        while far.read_exact(&mut buf).is_ok() && far.write_all(&buf).is_ok() {}
    });
    let mut buf = vec![0; size];
    let measured = amount.run(size, |count| {
        let start = Instant::now();
        for _ in 0..count {
            near.write_all(&buf)
                .and_then(|()| near.read_exact(&mut buf))
                .map_err(failed)?;
        }
        Ok(start.elapsed())
    });
    drop(near);
    let _ = echo.join();
    measured
}

/// Lets the calling thread run anywhere but on the one processor it is pinned to, if it is pinned
/// to one and there are others; otherwise changes nothing.
fn leave_the_only_processor() {
    let this_thread = Pid::from_raw(0);
    let Ok(kept) = sched_getaffinity(this_thread) else {
        return;
    };
    let of = |set: &CpuSet| -> Vec<usize> {
        let all = 0..CpuSet::count();
        all.filter(|cpu| set.is_set(*cpu).unwrap_or(false))
            .collect()
    };
    let [only] = of(&kept)[..] else { return };
    let mut others = CpuSet::new();
    for cpu in (0..CpuSet::count()).filter(|cpu| *cpu != only) {
        let _ = others.set(cpu); // within the set's size
    }
    // Fails where there is no other processor.
    let _ = sched_setaffinity(this_thread, &others);
}

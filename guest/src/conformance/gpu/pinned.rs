//! Page-locked memory, and large copies of ordinary memory, which go by way of it where the endpoint has it.

use std::num::NonZeroUsize;
use std::thread;

use vgpu_protocol::op::Features;
use vgpu_protocol::status::Status;

use crate::client::{CaptureMode, Client, Device, Module, PinnedBuffer};
use crate::conformance::{Ground, at, check, fails};
use crate::error::Cause;
use crate::options::Options;

use super::{Outcome, config, device_word, end, kernel, open, open_with_kernels, pattern, same};

/// Around the sizes at which copies take another way, or another piece.
const SIZES: [usize; 9] = [
    (256 << 10) - 1,
    256 << 10,
    (256 << 10) + 1,
    (1 << 20) + 3,
    (2 << 20) - 1,
    (4 << 20) + 4097,
    (4 << 20) + (256 << 10),
    (5 << 20) + 12_347,
    (9 << 20) + 1,
];

/// Of copies that several threads make, with one of them beside the caller's, and with two.
const SHARED: [usize; 3] = [4 << 20, (9 << 20) + 4097, (32 << 20) + 1];

/// Whether the session has memory beside its stream.
fn has_regions(device: &Device) -> bool {
    device.with_client(|client| client.limits().features.contains(Features::REGIONS))
}

pub(in crate::conformance) fn large_copies(ground: &Ground<'_>) -> Outcome {
    let device = open(ground)?;
    if !has_regions(&device) {
        // Copies of all sizes have a case of their own.
        return end(device);
    }
    for (n, seed) in SIZES.into_iter().zip(1..) {
        let bytes = pattern(n, seed);
        let buffer = device.clone_htod(&bytes).map_err(at("up"))?;
        let back = device.clone_dtoh(&buffer).map_err(at("down"))?;
        same(&format!("{n} bytes there and back"), &back, &bytes)?;
    }
    // Several threads make a copy, also where there are too few processors for that.
    let options = Options {
        copy_threads: NonZeroUsize::new(3),
        ..ground.options.clone()
    };
    let shared = ground.connect_with(&options).map_err(at("connect"))?;
    let shared = Device::new(shared).map_err(at("device"))?;
    for (n, seed) in SHARED.into_iter().zip(20..) {
        let bytes = pattern(n, seed);
        let buffer = shared.clone_htod(&bytes).map_err(at("up, shared"))?;
        let back = shared.clone_dtoh(&buffer).map_err(at("down, shared"))?;
        same(&format!("{n} bytes by several threads"), &back, &bytes)?;
    }
    end(shared)?;
    // Threads of one session, each in a stream of its own: there are fewer pieces under way than both would like.
    let streams = [device.new_stream(), device.new_stream()];
    thread::scope(|scope| {
        let threads = streams.into_iter().zip(40..).map(|(stream, seed)| {
            let device = &device;
            scope.spawn(move || -> Outcome {
                let stream = stream.map_err(at("stream"))?;
                let lane = device.lane().map_err(at("lane"))?;
                let stream = lane.on_stream(&stream).map_err(at("stream"))?;
                for n in SIZES {
                    let bytes = pattern(n, seed);
                    let buffer = stream.clone_htod(&bytes).map_err(at("up"))?;
                    let back = stream.clone_dtoh(&buffer).map_err(at("down"))?;
                    same(&format!("{n} bytes beside others"), &back, &bytes)?;
                }
                Ok(())
            })
        });
        let threads: Vec<_> = threads.collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("no panic"))
    })?;
    end(device)
}

fn read(buffer: &PinnedBuffer<u8>, from: usize, n: usize) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; n];
    buffer.read(from, &mut bytes).map_err(at("read"))?;
    Ok(bytes)
}

pub(in crate::conformance) fn pinned(ground: &Ground<'_>) -> Outcome {
    let device = open(ground)?;
    // Elsewhere it is memory like any other, and copies of all sizes have a case of their own.
    let (rounds, step) = if has_regions(&device) {
        (4, 40_000)
    } else {
        (1, 500)
    };
    let n = if has_regions(&device) {
        (3 << 20) + 77
    } else {
        70_003
    };
    let mut memory = device.alloc_pinned::<u8>(n).map_err(at("allocate"))?;
    let mut there = device.alloc_zeros::<u8>(n).map_err(at("zeros"))?;
    for (seed, range) in (1..).zip([0..n, 0..1, 1..4098, 65_536..n, n - 1..n, 5..5]) {
        let bytes = pattern(range.len(), seed);
        memory.write(range.start, &bytes).map_err(at("write"))?;
        device
            .memcpy_htod_pinned(&memory, range.clone(), &mut there)
            .map_err(at("up"))?;
        // Written at once: the copy is to have the bytes from before.
        let other = pattern(range.len(), !seed);
        memory.write(range.start, &other).map_err(at("write"))?;
        let back = device.clone_dtoh(&there.slice(..range.len()));
        same("up", &back.map_err(at("down"))?, &bytes)?;
        device
            .memcpy_dtoh_pinned(&there, &mut memory, range.clone())
            .map_err(at("down"))?;
        same("down", &read(&memory, range.start, range.len())?, &bytes)?;
    }
    // Rows: with something between them on both sides, on one, and on none.
    let (width, height) = (100, 37);
    let mut pitched = device
        .alloc_pitched::<u32>(width, height)
        .map_err(at("rows"))?;
    let mut dense = device
        .alloc_zeros::<u32>(width * height)
        .map_err(at("rows"))?;
    let numbers = |seed: u32| (seed..).step_by(7);
    for (seed, pitch) in [(1, width + 3), (2, width)] {
        let len = 5 + pitch * height;
        let given: Vec<u32> = numbers(seed).take(len).collect();
        let mut host = device.alloc_pinned::<u32>(len).map_err(at("rows"))?;
        let mut back = device.alloc_pinned::<u32>(len).map_err(at("rows"))?;
        host.write(0, &given).map_err(at("write"))?;
        back.write(0, &vec![u32::MAX; len]).map_err(at("write"))?;
        device
            .memcpy_2d_htod_pinned(&host, 5.., pitch, &mut pitched)
            .map_err(at("rows up"))?;
        let requests = device.last_requests().len();
        check(
            requests == if host.is_page_locked() { height } else { 1 },
            || format!("{requests} requests for {height} rows"),
        )?;
        device
            .memcpy_2d_dtod(&pitched, &mut dense.rows_mut(width))
            .map_err(at("rows"))?;
        device
            .memcpy_2d_dtoh_pinned(&dense.rows(width), &mut back, 5.., pitch)
            .map_err(at("rows down"))?;
        let requests = device.last_requests().len();
        check(pitch > width || requests == 1, || {
            format!("{requests} requests for rows in one piece")
        })?;
        let mut found = vec![0; len];
        back.read(0, &mut found).map_err(at("read"))?;
        let in_row = |at: usize| at >= 5 && (at - 5) % pitch < width;
        let wanted: Vec<u32> = (0..len)
            .map(|at| if in_row(at) { given[at] } else { u32::MAX })
            .collect();
        same("rows", &found, &wanted)?;
        let wrong = [
            device.memcpy_2d_htod_pinned(&host, 6.., pitch, &mut pitched.slice_mut(.., ..)),
            device.memcpy_2d_dtoh_pinned(&pitched, &mut back, .., width - 1),
            device.memcpy_2d_dtoh_pinned(&pitched, &mut back, ..len + 1, pitch),
        ];
        for wrong in wrong.into_iter().skip(usize::from(pitch > width)) {
            let error = fails("rows that do not fit", wrong)?;
            check(matches!(error.cause(), Cause::Input(_)), || {
                error.to_string()
            })?;
        }
    }
    // Many at once, of which some go while copies use them, and their memory serves the next.
    for round in 0..rounds {
        let mut buffers = Vec::new();
        for k in 0..20u8 {
            let len = 1 + step * usize::from(k);
            let mut buffer = device.alloc_pinned::<u8>(len).map_err(at("allocate"))?;
            buffer
                .write(0, &pattern(len, k ^ round))
                .map_err(at("write"))?;
            buffers.push(buffer);
        }
        for (k, buffer) in (0..).zip(buffers) {
            let len = buffer.len();
            let mut there = device.alloc::<u8>(len).map_err(at("memory"))?;
            device
                .memcpy_htod_pinned(&buffer, .., &mut there)
                .map_err(at("up"))?;
            drop(buffer);
            let back = device.clone_dtoh(&there).map_err(at("down"))?;
            same("many", &back, &pattern(len, k ^ round))?;
        }
    }
    // What cannot be is noticed here.
    let nothing = device.alloc_pinned::<u64>(0).map_err(at("nothing"))?;
    check(nothing.is_empty() && !nothing.is_page_locked(), || {
        "memory of no bytes".to_owned()
    })?;
    let wrong = [
        fails("beyond", memory.write(n, &[1])),
        fails("beyond", memory.read(1, &mut vec![0; n])),
        fails(
            "beyond",
            device.memcpy_htod_pinned(&memory, ..=n, &mut there),
        ),
        fails(
            "too long",
            device.memcpy_dtoh_pinned(&there.slice(..10), &mut memory, ..11),
        ),
    ];
    for error in wrong {
        let error = error?;
        check(matches!(error.cause(), Cause::Input(_)), || {
            error.to_string()
        })?;
    }
    end(device)
}

/// Kernels read and write the memory itself, at the address at which this program has it, or are refused it.
pub(in crate::conformance) fn by_kernels(ground: &Ground<'_>) -> Outcome {
    let (device, module) = open_with_kernels(ground)?;
    let saxpy = kernel(&module, "saxpy")?;
    let n = 5000u16;
    let floats: Vec<f32> = (0..n).map(f32::from).collect();
    // Of a size that has a region of its own, and of one that is a part of another.
    let sizes = match has_regions(&device) {
        true => [17 << 18, floats.len()],
        false => [floats.len(); 2],
    };
    let mut same_address = false;
    // The mediator may have something else at an address.
    for len in sizes.repeat(3) {
        let allocate = || device.alloc_pinned::<f32>(len).map_err(at("allocate"));
        let (mut x, mut y) = (allocate()?, allocate()?);
        x.write(0, &floats).map_err(at("write"))?;
        y.write(0, &floats).map_err(at("write"))?;
        let launched = device
            .launch_builder(&saxpy)
            .arg(&2.0f32)
            .arg(&x)
            .arg(&y)
            .arg(&u32::from(n))
            .launch(config(40, 128));
        let Some(address) = y.device_address() else {
            check(!has_regions(&device), || {
                "no kernel reaches page-locked memory".to_owned()
            })?;
            let error = fails("memory that no kernel can reach", launched)?;
            check(matches!(error.cause(), Cause::Input(_)), || {
                error.to_string()
            })?;
            return end(device);
        };
        launched.map_err(at("launch"))?;
        let mut sums = vec![0.0; floats.len()];
        y.read(0, &mut sums).map_err(at("read"))?;
        for (sum, x) in sums.iter().zip(&floats) {
            check(*sum == 3.0 * x, || format!("{sum} where {x} was tripled"))?;
        }
        same_address |= y.as_ptr().addr().get() as u64 == address.get();
    }
    check(same_address, || {
        "no buffer has the same address for kernels and program".to_owned()
    })?;
    end(device)
}

/// Kernels of another session do not reach the memory, nor do the session's own once it was given back.
pub(in crate::conformance) fn out_of_reach(ground: &Ground<'_>) -> Outcome {
    let (device, module) = open_with_kernels(ground)?;
    if !has_regions(&device) {
        return end(device);
    }
    let mut memory = device
        .alloc_pinned::<u8>(17 << 20)
        .map_err(at("allocate"))?;
    memory.write(0, &[7; 64]).map_err(at("write"))?;
    let Some(address) = memory.device_address() else {
        return Err("no kernel reaches page-locked memory".to_owned());
    };
    let poked = |device: &Device, module: &Module| -> Outcome {
        device
            .launch_builder(&kernel(module, "poke")?)
            .arg(&address.get())
            .launch(config(1, 1))
            .map_err(at("launch"))?;
        let error = fails("memory out of reach", device.synchronize())?;
        let results = [700, 719].map(|code| Some(Status::Cuda(code)));
        check(results.contains(&error.status()), || error.to_string())
    };
    let (other, others) = open_with_kernels(ground)?;
    poked(&other, &others)?;
    same(
        "memory of another session",
        &read(&memory, 0, 64)?,
        &[7; 64],
    )?;
    drop(memory);
    device.synchronize().map_err(at("synchronize"))?;
    poked(&device, &module)
}

/// A copy behind a kernel that faults never comes, and whoever waits for it is told.
pub(in crate::conformance) fn behind_a_fault(ground: &Ground<'_>) -> Outcome {
    for large in [false, true] {
        let (device, module) = open_with_kernels(ground)?;
        let poke = kernel(&module, "poke")?;
        let there = device.alloc_zeros::<u8>(1 << 20).map_err(at("zeros"))?;
        let mut memory = device.alloc_pinned::<u8>(1 << 20).map_err(at("pinned"))?;
        device.synchronize().map_err(at("synchronize"))?;
        device
            .launch_builder(&poke)
            .arg(&0x10u64)
            .launch(config(1, 1))
            .map_err(at("launch"))?;
        let failed = match large {
            true => device.clone_dtoh(&there).map(drop),
            false => device
                .memcpy_dtoh_pinned(&there, &mut memory, ..)
                .and_then(|()| memory.read(0, &mut [0])),
        };
        let error = fails("behind a fault", failed)?;
        let results = [700, 719].map(|code| Some(Status::Cuda(code)));
        check(results.contains(&error.status()), || error.to_string())?;
    }
    Ok(())
}

/// A large copy leaves alone what captures in another stream, though that has copied before and is not done.
pub(in crate::conformance) fn beside_a_capture(ground: &Ground<'_>) -> Outcome {
    let (device, module) = open_with_kernels(ground)?;
    let info = device.with_client(Client::info).map_err(at("info"))?;
    if !has_regions(&device) || &*info.executor != "cuda" {
        // Elsewhere a copy behind a kernel that does not end waits for it in the stream of bytes.
        return end(device);
    }
    let (spin, work) = (kernel(&module, "spin")?, kernel(&module, "work")?);
    let mut word = device_word(&device)?;
    let count = device_word(&device)?;
    let streams = [device.new_stream(), device.new_stream()];
    let [one, other] = streams.map(|stream| stream.map_err(at("stream")));
    let (one, other) = (one?, other?);
    let bytes = pattern(4 << 20, 5);
    let mut there = device.alloc::<u8>(bytes.len()).map_err(at("memory"))?;
    let mut beside = device.alloc::<u8>(bytes.len()).map_err(at("memory"))?;
    device.synchronize().map_err(at("synchronize"))?;
    one.launch_builder(&spin)
        .arg(&word)
        .launch(config(1, 1))
        .map_err(at("launch"))?;
    one.memcpy_htod(&bytes, &mut there).map_err(at("up"))?;
    one.begin_capture(CaptureMode::Global)
        .map_err(at("begin a capture"))?;
    one.launch_builder(&work)
        .arg(&count)
        .arg(&1u32)
        .launch(config(1, 1))
        .map_err(at("launch"))?;
    other
        .memcpy_htod(&bytes, &mut beside)
        .map_err(at("up beside it"))?;
    let back = other.clone_dtoh(&beside).map_err(at("down beside it"))?;
    same("beside it", &back, &bytes)?;
    one.end_capture().map_err(at("end the capture"))?;
    other.memset(&mut word, 1).map_err(at("release"))?;
    let back = one.clone_dtoh(&there).map_err(at("down"))?;
    same("before it", &back, &bytes)?;
    end(device)
}

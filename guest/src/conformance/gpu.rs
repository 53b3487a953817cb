//! The conformance suite for devices: memory, copies, modules, launches, and their errors.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vgpu_protocol::op::{Features, Op};
use vgpu_protocol::status::{ErrorCode, Status};

use crate::client::{Device, DeviceBuffer, DevicePtr, Function, LaunchConfig, Module};
use crate::error::{Cause, Error};
use crate::printed::Printed;

use super::{Ground, at, check, fails};

const KERNELS: &[u8] = include_bytes!("kernels.ptx");

const PRINTING: &[u8] = include_bytes!("printed.ptx");

/// More than the mediator takes at once of one copy, and no round number.
const LONG: usize = (5 << 20) + 12_347;

/// A kernel that never ends gets so long.
const DEADLINE: Duration = Duration::from_millis(500);

type Outcome = Result<(), String>;

fn open(ground: &Ground<'_>) -> Result<Device, String> {
    Device::new(ground.connect()?).map_err(at("device"))
}

fn open_with_kernels(ground: &Ground<'_>) -> Result<(Device, Module), String> {
    let device = open(ground)?;
    let module = device.load_module(KERNELS).map_err(at("load a module"))?;
    Ok((device, module))
}

fn kernel(module: &Module, name: &str) -> Result<Function, String> {
    module.load_function(name).map_err(at(name))
}

fn config(grid: u32, block: u32) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (grid, 1, 1),
        block_dim: (block, 1, 1),
        shared_mem_bytes: 0,
    }
}

/// Bytes that tell their place.
fn pattern(n: usize, seed: u8) -> Vec<u8> {
    (0..n)
        .map(|i| (i.wrapping_mul(167) >> 3).to_le_bytes()[0] ^ seed)
        .collect()
}

fn same<T: PartialEq>(what: &str, found: &[T], wanted: &[T]) -> Outcome {
    check(found.len() == wanted.len(), || {
        format!("{what}: {} elements, not {}", found.len(), wanted.len())
    })?;
    let wrong = found.iter().zip(wanted).position(|(a, b)| a != b);
    check(wrong.is_none(), || {
        format!("{what}: element {wrong:?} is wrong")
    })
}

/// The error is this status.
fn is(error: &Error, status: impl Into<Status>) -> Outcome {
    let status = status.into();
    check(error.status() == Some(status), || {
        format!("{status} was due, and came: {error}")
    })
}

fn is_cuda(error: &Error, result: i32) -> Outcome {
    is(error, Status::Cuda(result))
}

fn end(device: Device) -> Outcome {
    device.goodbye().map_err(at("goodbye"))
}

pub(super) fn info(ground: &Ground<'_>) -> Outcome {
    let device = open(ground)?;
    check(!device.name().is_empty(), || "no name".to_owned())?;
    let (major, _) = device.compute_capability();
    check(major >= 5, || format!("compute capability {major}"))?;
    for (attribute, least) in [(1, 1024), (2, 1024), (8, 48 << 10), (10, 32), (16, 1)] {
        let value = device.attribute(attribute);
        check(value.is_some_and(|value| value >= least), || {
            format!("attribute {attribute} is {value:?}")
        })?;
    }
    for none in [0, 10_000, u32::MAX] {
        check(device.attribute(none).is_none(), || {
            format!("there is an attribute {none}")
        })?;
    }
    let (free, total) = device.memory_info().map_err(at("memory info"))?;
    check(
        0 < free && free <= total && total == device.total_memory(),
        || {
            format!(
                "{free} of {total} bytes are free, of {}",
                device.total_memory()
            )
        },
    )?;
    end(device)
}

pub(super) fn memory(ground: &Ground<'_>) -> Outcome {
    let device = open(ground)?;
    let free = || {
        device
            .memory_info()
            .map(|(free, _)| free)
            .map_err(at("memory info"))
    };
    let mut buffers: Vec<DeviceBuffer<u8>> = Vec::new();
    for bytes in [1, 511, 512, 513, 1 << 20] {
        buffers.push(device.alloc(bytes).map_err(at("allocate"))?);
    }
    let mut places: Vec<(u64, u64)> = buffers
        .iter()
        .map(|buffer| (buffer.address(), buffer.len() as u64))
        .collect();
    places.sort_unstable();
    check(
        places.windows(2).all(|two| two[0].0 + two[0].1 <= two[1].0),
        || format!("allocations overlap: {places:x?}"),
    )?;
    check(places.iter().all(|(address, _)| address % 256 == 0), || {
        format!("an allocation is not aligned: {places:x?}")
    })?;
    drop(buffers);
    device.synchronize().map_err(at("synchronize"))?;
    // Of a GPU that others use at the same time the free memory changes by itself, and small pieces
    // may come out of what the driver has in hand: one try of several must show both.
    let mut seen = (0, 0, 0);
    for _ in 0..10 {
        let before = free()?;
        let large = device.alloc::<u8>(64 << 20).map_err(at("allocate"))?;
        let during = free()?;
        drop(large);
        device.synchronize().map_err(at("synchronize"))?;
        seen = (before, during, free()?);
        if seen.1 < seen.0 && seen.2 == seen.0 {
            break;
        }
    }
    let (before, during, after) = seen;
    check(during < before, || "allocations cost nothing".to_owned())?;
    check(after == before, || "freeing gave nothing back".to_owned())?;
    // No bytes need no memory, and more than there is cannot be allocated.
    let mut nothing = device.alloc_zeros::<u64>(0).map_err(at("nothing"))?;
    device
        .memcpy_htod(&[], &mut nothing)
        .map_err(at("nothing"))?;
    check(
        device
            .clone_dtoh(&nothing)
            .map_err(at("nothing"))?
            .is_empty(),
        || "nothing came to something".to_owned(),
    )?;
    let total = usize::try_from(device.total_memory()).unwrap_or(usize::MAX);
    for too_much in [total.saturating_add(1), usize::MAX] {
        let error = fails("all memory and more", device.alloc::<u8>(too_much))?;
        is(&error, ErrorCode::QuotaMemory)?;
    }
    let error = fails("more than numbers have", device.alloc::<u64>(usize::MAX))?;
    check(matches!(error.cause(), Cause::Input(_)), || {
        error.to_string()
    })?;
    device.alloc::<u8>(1).map_err(at("after too much"))?;
    end(device)
}

pub(super) fn copies(ground: &Ground<'_>) -> Outcome {
    let device = open(ground)?;
    for n in [1, 3, 4096, 65_535, 65_536, 65_537, 524_288, 600_001, LONG] {
        let bytes = pattern(n, 1);
        let buffer = device.clone_htod(&bytes).map_err(at("up"))?;
        let back = device.clone_dtoh(&buffer).map_err(at("down"))?;
        same(&format!("{n} bytes there and back"), &back, &bytes)?;
    }
    // Parts, at places that are aligned to nothing.
    let mut whole = pattern(100_003, 2);
    let mut buffer = device.clone_htod(&whole).map_err(at("up"))?;
    for (from, n) in [(0, 1), (1, 4_097), (777, 70_001), (100_002, 1), (50_000, 0)] {
        let part = pattern(n, 9);
        whole[from..from + n].copy_from_slice(&part);
        device
            .memcpy_htod(&part, &mut buffer.slice_mut(from..from + n))
            .map_err(at("a part up"))?;
        let back = device
            .clone_dtoh(&buffer.slice(from..from + n))
            .map_err(at("a part down"))?;
        same("a part", &back, &part)?;
    }
    same(
        "the whole",
        &device.clone_dtoh(&buffer).map_err(at("down"))?,
        &whole,
    )?;
    // Within the device.
    let mut other = device.alloc_zeros::<u8>(100_003).map_err(at("zeros"))?;
    device
        .memcpy_dtod(&buffer.slice(13..90_013), &mut other.slice_mut(5..))
        .map_err(at("across"))?;
    let mut wanted = vec![0; 100_003];
    wanted[5..90_005].copy_from_slice(&whole[13..90_013]);
    same(
        "across",
        &device.clone_dtoh(&other).map_err(at("down"))?,
        &wanted,
    )?;
    // More than there is room for is noticed here.
    let error = fails(
        "too long",
        device.memcpy_htod(&[0; 11], &mut other.slice_mut(..10)),
    )?;
    check(matches!(error.cause(), Cause::Input(_)), || {
        error.to_string()
    })?;
    end(device)
}

pub(super) fn fills(ground: &Ground<'_>) -> Outcome {
    let device = open(ground)?;
    let mut bytes = device.alloc_zeros::<u8>(70_001).map_err(at("zeros"))?;
    device
        .memset(&mut bytes.slice_mut(3..70_000), 0xa5)
        .map_err(at("bytes"))?;
    let mut wanted = vec![0xa5; 70_001];
    wanted[..3].fill(0);
    wanted[70_000] = 0;
    same(
        "bytes",
        &device.clone_dtoh(&bytes).map_err(at("down"))?,
        &wanted,
    )?;
    let mut halves = device.alloc::<u16>(10_001).map_err(at("allocate"))?;
    device.memset(&mut halves, 0x1234).map_err(at("halves"))?;
    let back = device.clone_dtoh(&halves).map_err(at("down"))?;
    same("halves", &back, &[0x1234; 10_001])?;
    let mut floats = device.alloc::<f32>(300_007).map_err(at("allocate"))?;
    device.memset(&mut floats, -1.5).map_err(at("floats"))?;
    let back = device.clone_dtoh(&floats).map_err(at("down"))?;
    same("floats", &back, &vec![-1.5; 300_007])?;
    end(device)
}

pub(super) fn launches(ground: &Ground<'_>) -> Outcome {
    let (device, module) = open_with_kernels(ground)?;
    // In order behind each other, without a wait between.
    let saxpy = kernel(&module, "saxpy")?;
    let n: u32 = 100_003;
    let x: Vec<f32> = (0..n).map(|i| (i % 1021) as f32).collect();
    let on_device = device.clone_htod(&x).map_err(at("up"))?;
    let mut y = device.alloc_zeros::<f32>(x.len()).map_err(at("zeros"))?;
    for a in [1.0f32, 2.0, 4.0] {
        let launch = device
            .launch_builder(&saxpy)
            .arg(&a)
            .arg(&on_device)
            .arg(&y)
            .arg(&n);
        launch
            .launch(LaunchConfig::for_num_elems(n))
            .map_err(at("launch"))?;
    }
    let wanted: Vec<f32> = x.iter().map(|x| 7.0 * x).collect();
    same(
        "saxpy",
        &device.clone_dtoh(&y).map_err(at("down"))?,
        &wanted,
    )?;
    // Parts of buffers are parameters as well.
    device.memset_zeros(&mut y).map_err(at("zeros"))?;
    let (from, count) = (1000, 500u32);
    let part = y.slice_mut(from..);
    let launch = device.launch_builder(&saxpy).arg(&1.0f32);
    let launch = launch.arg(&on_device.slice(from..)).arg(&part).arg(&count);
    launch
        .launch(LaunchConfig::for_num_elems(count))
        .map_err(at("launch"))?;
    let mut wanted = vec![0.0; x.len()];
    wanted[from..from + 500].copy_from_slice(&x[from..from + 500]);
    same(
        "a part",
        &device.clone_dtoh(&y).map_err(at("down"))?,
        &wanted,
    )?;
    // Three dimensions.
    let places = kernel(&module, "places")?;
    let out = device
        .alloc_zeros::<u32>(4 * 3 * 2 * 5 * 4 * 3)
        .map_err(at("zeros"))?;
    let three = LaunchConfig {
        grid_dim: (4, 3, 2),
        block_dim: (5, 4, 3),
        shared_mem_bytes: 0,
    };
    device
        .launch_builder(&places)
        .arg(&out)
        .launch(three)
        .map_err(at("launch"))?;
    let wanted: Vec<u32> = (0..1440).collect();
    same(
        "places",
        &device.clone_dtoh(&out).map_err(at("down"))?,
        &wanted,
    )?;
    // Dynamic shared memory, and more of it than is given without asking.
    let turn = kernel(&module, "turn_round")?;
    let numbers: Vec<u32> = (0..2048).collect();
    let wanted: Vec<u32> = (0..2048).map(|i| i / 256 * 256 + 255 - i % 256).collect();
    for shared_mem_bytes in [1024, 60 << 10] {
        if shared_mem_bytes > 48 << 10 {
            let bytes = i32::try_from(shared_mem_bytes).expect("small");
            turn.set_attribute(8, bytes)
                .map_err(at("more shared memory"))?;
        }
        let data = device.clone_htod(&numbers).map_err(at("up"))?;
        let how = LaunchConfig {
            shared_mem_bytes,
            ..config(8, 256)
        };
        device
            .launch_builder(&turn)
            .arg(&data)
            .launch(how)
            .map_err(at("launch"))?;
        same(
            "turned round",
            &device.clone_dtoh(&data).map_err(at("down"))?,
            &wanted,
        )?;
    }
    let ran = device.synchronize().map_err(at("synchronize"))?;
    check(ran > Duration::ZERO, || {
        "no kernel took any time".to_owned()
    })?;
    end(device)
}

pub(super) fn parameters(ground: &Ground<'_>) -> Outcome {
    let (device, module) = open_with_kernels(ground)?;
    let function = kernel(&module, "parameters")?;
    let places: Vec<(u32, u32)> = function
        .parameters()
        .iter()
        .map(|place| (place.offset, place.size))
        .collect();
    let wanted = [(0, 1), (8, 8), (16, 2), (32, 40), (72, 1), (80, 8)];
    same("the parameters' places", &places, &wanted)?;
    let out = device.alloc_zeros::<u64>(1).map_err(at("zeros"))?;
    let mut block = [0u32; 10];
    (block[0], block[9]) = (1000, 20_000);
    let launch = device
        .launch_builder(&function)
        .arg(&3u8)
        .arg(&out)
        .arg(&400u16);
    let launch = launch.arg(&block).arg(&7u8).arg(&3e9f64);
    launch.launch(config(1, 1)).map_err(at("launch"))?;
    let sum = device.clone_dtoh(&out).map_err(at("down"))?;
    same("the sum of the parameters", &sum, &[3_000_021_410])?;
    let threads = function.attribute(0);
    check(threads.is_some_and(|n| n >= 32), || {
        format!("{threads:?} threads")
    })?;
    // What does not fit is refused before anything is sent.
    let begin = || device.launch_builder(&function).arg(&3u8);
    let wrong = [
        begin().launch(config(1, 1)),
        begin().arg(&out).arg(&400u32).launch(config(1, 1)),
        begin()
            .arg(&out)
            .arg(&400u16)
            .arg(&block)
            .arg(&7u8)
            .arg(&3e9f64)
            .arg(&0u8)
            .launch(config(1, 1)),
        device
            .launch_builder(&kernel(&module, "give_up")?)
            .launch(config(0, 1)),
        device
            .launch_builder(&kernel(&module, "give_up")?)
            .launch(config(1, 1025)),
    ];
    for wrong in wrong {
        let error = fails("arguments that do not fit", wrong)?;
        check(matches!(error.cause(), Cause::Input(_)), || {
            error.to_string()
        })?;
    }
    device
        .synchronize()
        .map_err(at("after what was not sent"))?;
    end(device)
}

pub(super) fn modules(ground: &Ground<'_>) -> Outcome {
    let device = open(ground)?;
    // Each has variables of its own.
    let modules = [0, 1].map(|_| device.load_module(KERNELS).map_err(at("load")));
    let [one, other] = modules;
    let (one, other) = (one?, other?);
    let out = device.alloc_zeros::<u32>(4).map_err(at("zeros"))?;
    for module in [&one, &one, &other] {
        let count = kernel(module, "count")?;
        device
            .launch_builder(&count)
            .arg(&out)
            .launch(config(4, 1))
            .map_err(at("launch"))?;
    }
    same(
        "the table",
        &device.clone_dtoh(&out).map_err(at("down"))?,
        &[1, 2, 3, 4],
    )?;
    for (module, wanted) in [(&one, 49), (&other, 45)] {
        let mut counter = module.variable::<u32>("counter").map_err(at("counter"))?;
        same(
            "a counter",
            &device.clone_dtoh(&counter).map_err(at("down"))?,
            &[wanted],
        )?;
        device.memcpy_htod(&[7], &mut counter).map_err(at("up"))?;
        same(
            "a counter",
            &device.clone_dtoh(&counter).map_err(at("down"))?,
            &[7],
        )?;
    }
    drop(one);
    device.synchronize().map_err(at("synchronize"))?;
    // Names that are not there, and images that are none.
    is_cuda(&fails("a kernel", other.load_function("nowhere"))?, 500)?;
    is_cuda(&fails("a kernel", other.load_function("x\0y"))?, 500)?;
    is_cuda(&fails("a variable", other.variable::<u8>("nowhere"))?, 500)?;
    let cut = KERNELS.len() / 2;
    for image in [
        &b"this is no module"[..],
        &[0; 100],
        &KERNELS[..cut],
        b"\x7fELF",
        b"\x50\xed\x55\xba",
    ] {
        let error = fails("an image", device.load_module(image))?;
        let known = [200, 201, 209, 218].map(|code| Some(Status::Cuda(code)));
        check(known.contains(&error.status()), || {
            format!("an image: {error}")
        })?;
    }
    let count = kernel(&other, "count")?;
    device
        .launch_builder(&count)
        .arg(&out)
        .launch(config(4, 1))
        .map_err(at("launch"))?;
    device
        .synchronize()
        .map_err(at("after what could not be loaded"))?;
    end(device)
}

pub(super) fn late_failures(ground: &Ground<'_>) -> Outcome {
    let (device, module) = open_with_kernels(ground)?;
    let turn = kernel(&module, "turn_round")?;
    let data = device.alloc_zeros::<u32>(256).map_err(at("zeros"))?;
    // More shared memory than any device has; the session does not end by it.
    let too_much = LaunchConfig {
        shared_mem_bytes: 1 << 30,
        ..config(1, 256)
    };
    device
        .launch_builder(&turn)
        .arg(&data)
        .launch(too_much)
        .map_err(at("launch"))?;
    let error = fails(
        "synchronize after a launch that cannot be",
        device.synchronize(),
    )?;
    is_cuda(&error, 1)?;
    let failures: Vec<Op> = error.failures().iter().map(|failed| failed.op).collect();
    same("what failed", &failures, &[Op::Launch])?;
    device
        .synchronize()
        .map_err(at("what was told is told once"))?;
    let error = fails(
        "the same, waited for",
        device
            .launch_builder(&turn)
            .arg(&data)
            .launch_checked(too_much),
    )?;
    is_cuda(&error, 1)?;
    let ok = LaunchConfig {
        shared_mem_bytes: 1024,
        ..config(1, 256)
    };
    device
        .launch_builder(&turn)
        .arg(&data)
        .launch(ok)
        .map_err(at("launch"))?;
    device
        .synchronize()
        .map_err(at("after a launch that could not be"))?;
    end(device)
}

/// What kernels of a session have printed.
#[derive(Default)]
struct Heard {
    lines: Vec<Vec<u8>>,
    lost: u64,
}

type Hearing = (Device, Module, Arc<Mutex<Heard>>);

/// A device whose kernels print to the last of these; none where this mediator does not bring what they print.
fn open_to_hear(ground: &Ground<'_>) -> Result<Option<Hearing>, String> {
    let device = open(ground)?;
    if !device.with_client(|client| client.limits().features.contains(Features::PRINTED)) {
        end(device)?;
        return Ok(None);
    }
    let heard = Arc::<Mutex<Heard>>::default();
    let to = Arc::clone(&heard);
    device.on_printed(move |printed| {
        let mut heard = to.lock().unwrap_or_else(PoisonError::into_inner);
        match printed {
            Printed::Line(line) => heard.lines.push(line.to_vec()),
            Printed::Lost(bytes) => heard.lost += bytes,
        }
    });
    let module = device.load_module(PRINTING).map_err(at("load a module"))?;
    Ok(Some((device, module, heard)))
}

fn take_lines(heard: &Mutex<Heard>) -> Vec<String> {
    let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
    let lines = std::mem::take(&mut heard.lines);
    let mut lines: Vec<String> = lines
        .iter()
        .map(|line| String::from_utf8_lossy(line).into_owned())
        .collect();
    // Threads print in any order.
    lines.sort();
    lines
}

pub(super) fn printed(ground: &Ground<'_>) -> Outcome {
    let Some((device, module, heard)) = open_to_hear(ground)? else {
        return Ok(());
    };
    let say = kernel(&module, "say")?;
    let wanted = ["thread 0 of 3", "thread 1 of 3", "thread 2 of 3"];
    let data = device.alloc_zeros::<u32>(1).map_err(at("zeros"))?;
    for way in ["synchronize", "copy"] {
        let launched = device.launch_builder(&say).launch(config(1, 3));
        launched.map_err(at("launch"))?;
        match way {
            "copy" => device.clone_dtoh(&data).map(drop),
            _ => device.synchronize().map(drop),
        }
        .map_err(at(way))?;
        same(way, &take_lines(&heard), &wanted.map(str::to_owned))?;
    }
    // What one session's kernels print no other hears.
    let Some((other, _module, others)) = open_to_hear(ground)? else {
        return Err("the next session does not offer it".to_owned());
    };
    let no_end = kernel(&module, "say_no_end")?;
    let launched = device.launch_builder(&no_end).launch(config(1, 1));
    launched.map_err(at("launch"))?;
    device.synchronize().map_err(at("synchronize"))?;
    other.synchronize().map_err(at("synchronize"))?;
    check(take_lines(&others).is_empty(), || {
        "another session's kernels were heard".to_owned()
    })?;
    end(other)?;
    end(device)?;
    same("at the end", &take_lines(&heard), &["no end".to_owned()])
}

/// Lines of the flood: some times what is kept.
const FLOOD: u32 = 5000;
/// Bytes of each, with its end.
const FLOOD_LINE: u64 = 1009;

pub(super) fn printed_flood(ground: &Ground<'_>) -> Outcome {
    let Some((device, module, heard)) = open_to_hear(ground)? else {
        return Ok(());
    };
    let much = kernel(&module, "say_much")?;
    // Nothing of it is asked for until all is printed: launches are not answered.
    let launched = device
        .launch_builder(&much)
        .arg(&FLOOD)
        .launch(config(1, 1));
    launched.map_err(at("launch"))?;
    // Others go on.
    let (other, kernels) = open_with_kernels(ground)?;
    let word = device_word(&other)?;
    let work = kernel(&kernels, "work")?;
    let launched = other
        .launch_builder(&work)
        .arg(&word)
        .arg(&5u32)
        .launch(config(1, 1));
    launched.map_err(at("launch"))?;
    let found = other.clone_dtoh(&word).map_err(at("down"))?;
    same("beside a flood", &found, &[5])?;
    end(other)?;
    device.synchronize().map_err(at("synchronize"))?;
    let lines = take_lines(&heard);
    let lost = heard.lock().unwrap_or_else(PoisonError::into_inner).lost;
    let came: u64 = lines.iter().map(|line| line.len() as u64 + 1).sum();
    let all = u64::from(FLOOD) * FLOOD_LINE;
    check(lost > 0 && came > 0 && lost + came == all, || {
        format!("{came} bytes came and {lost} are said to be lost, of {all} that were printed")
    })?;
    check(
        lines.iter().any(|line| line.ends_with(" 1 of many")),
        || "the newest line is lost".to_owned(),
    )?;
    end(device)
}

fn device_word(device: &Device) -> Result<DeviceBuffer<u32>, String> {
    device.alloc_zeros(1).map_err(at("zeros"))
}

pub(super) fn faults(ground: &Ground<'_>) -> Outcome {
    // What a fault costs is its own session.
    let bystander = open(ground)?;
    let kept = bystander
        .clone_htod(&pattern(10_000, 3))
        .map_err(at("up"))?;
    for (name, address, results) in [
        ("poke", Some(0x10u64), [700, 719]),
        ("poke", Some(u64::MAX - 3), [700, 719]),
        ("poke", None, [716, 700]),
        ("give_up", None, [719, 710]),
    ] {
        let (device, module) = open_with_kernels(ground)?;
        let mut data = device.alloc_zeros::<u32>(4).map_err(at("zeros"))?;
        let function = kernel(&module, name)?;
        let mut launch = device.launch_builder(&function);
        if name == "poke" {
            launch = launch.arg(&address.unwrap_or(data.address() + 1));
        }
        launch.launch(config(1, 1)).map_err(at("launch"))?;
        let error = fails("synchronize after a fault", device.synchronize())?;
        let found = error.status();
        check(
            results
                .map(|code| Some(Status::Cuda(code)))
                .contains(&found),
            || format!("{name} at {address:x?}: {error}"),
        )?;
        let first = error
            .failures()
            .first()
            .map(|failed| (failed.op, Some(failed.status)));
        check(first == Some((Op::Launch, found)), || {
            format!("{name}: the failure is told as {first:?}")
        })?;
        // From here on everything is answered in the same way.
        let again = [
            device.synchronize().map(drop),
            device.alloc::<u8>(1).map(drop),
            device.clone_dtoh(&data).map(drop),
            device.load_module(KERNELS).map(drop),
        ];
        for again in again {
            let error = fails("after a fault", again)?;
            check(error.status() == found, || {
                format!("after {found:?}: {error}")
            })?;
        }
        device.memset_zeros(&mut data).map_err(at("a quiet one"))?;
        check(device.synchronize().is_err(), || {
            "a fault was forgotten".to_owned()
        })?;
        end(device)?;
    }
    let back = bystander.clone_dtoh(&kept).map_err(at("down"))?;
    same("the bystander's data", &back, &pattern(10_000, 3))?;
    end(bystander)
}

pub(super) fn endless(ground: &Ground<'_>) -> Outcome {
    let bystander = open(ground)?;
    let (device, module) = open_with_kernels(ground)?;
    let word = device.alloc_zeros::<u32>(1).map_err(at("zeros"))?;
    let spin = kernel(&module, "spin")?;
    let launch = device.launch_builder(&spin).arg(&word).deadline(DEADLINE);
    launch.launch(config(1, 1)).map_err(at("launch"))?;
    // It runs beside what others do.
    let kept = bystander.clone_htod(&pattern(1000, 5)).map_err(at("up"))?;
    let back = bystander.clone_dtoh(&kept).map_err(at("down"))?;
    same("the bystander's data", &back, &pattern(1000, 5))?;
    let error = fails("synchronize", device.synchronize())?;
    is_cuda(&error, 702)?;
    drop((word, module));
    // Where only the end of its process ends a kernel, the session is over.
    let _ = device.goodbye();
    let (next, module) = open_with_kernels(ground)?;
    let saxpy = kernel(&module, "saxpy")?;
    check(saxpy.parameters().len() == 4, || "saxpy".to_owned())?;
    drop((saxpy, module));
    end(next)?;
    end(bystander)
}

pub(super) fn long_work(ground: &Ground<'_>) -> Outcome {
    let (device, module) = open_with_kernels(ground)?;
    let work = kernel(&module, "work")?;
    let mut word = device.alloc_zeros::<u32>(1).map_err(at("zeros"))?;
    let times = 300_000u32;
    for _ in 0..3 {
        device
            .launch_builder(&work)
            .arg(&word)
            .arg(&times)
            .launch(config(1, 1))
            .map_err(at("launch"))?;
    }
    // What is freed and copied while the device works comes after it.
    let source = device.clone_htod(&[17u32]).map_err(at("up"))?;
    device
        .memcpy_dtod(&source, &mut word)
        .map_err(at("across"))?;
    drop(source);
    drop((work, module));
    same(
        "the word",
        &device.clone_dtoh(&word).map_err(at("down"))?,
        &[17],
    )?;
    device.synchronize().map_err(at("synchronize"))?;
    end(device)
}

pub(super) fn many_launches(ground: &Ground<'_>) -> Outcome {
    let (device, module) = open_with_kernels(ground)?;
    let count = kernel(&module, "count")?;
    let out = device.alloc_zeros::<u32>(4).map_err(at("zeros"))?;
    // More than any queue holds, and than requests may be under way.
    for _ in 0..3000 {
        device
            .launch_builder(&count)
            .arg(&out)
            .launch(config(1, 1))
            .map_err(at("launch"))?;
    }
    let counter = module.variable::<u32>("counter").map_err(at("counter"))?;
    same(
        "the counter",
        &device.clone_dtoh(&counter).map_err(at("down"))?,
        &[3041],
    )?;
    end(device)
}

pub(super) fn lanes(ground: &Ground<'_>) -> Outcome {
    let (device, module) = open_with_kernels(ground)?;
    let saxpy = kernel(&module, "saxpy")?;
    let work = |device: &Device, seed: u32| -> Outcome {
        let n = 60_001 + seed;
        for round in 0..4u32 {
            let x: Vec<f32> = (0..n).map(|i| ((i + seed + round) % 4093) as f32).collect();
            let on_device = device.clone_htod(&x).map_err(at("up"))?;
            let y = device.clone_htod(&x).map_err(at("up"))?;
            let launch = device.launch_builder(&saxpy).arg(&2.0f32);
            let launch = launch.arg(&on_device).arg(&y).arg(&n);
            launch
                .launch(LaunchConfig::for_num_elems(n))
                .map_err(at("launch"))?;
            let wanted: Vec<f32> = x.iter().map(|x| 3.0 * x).collect();
            same(
                "saxpy",
                &device.clone_dtoh(&y).map_err(at("down"))?,
                &wanted,
            )?;
        }
        Ok(())
    };
    std::thread::scope(|scope| -> Outcome {
        let mut threads = Vec::new();
        for seed in 1..4 {
            let lane = device.lane().map_err(at("a lane"))?;
            let work = &work;
            threads.push(scope.spawn(move || work(&lane, seed)));
        }
        let own = work(&device, 0);
        for thread in threads {
            thread.join().map_err(|_| "a thread panicked")??;
        }
        own
    })?;
    end(device)
}

pub(super) fn streams(ground: &Ground<'_>) -> Outcome {
    let (device, module) = open_with_kernels(ground)?;
    let spin = kernel(&module, "spin")?;
    let mut word = device.alloc_zeros::<u32>(1).map_err(at("zeros"))?;
    let mut data = device.clone_htod(&pattern(100_003, 4)).map_err(at("up"))?;
    device.synchronize().map_err(at("synchronize"))?;
    let (one, other) = (device.new_stream(), device.new_stream());
    let (one, other) = (one.map_err(at("a stream"))?, other.map_err(at("a stream"))?);
    // A kernel of one stream runs until another stream has written what it waits for.
    one.launch_builder(&spin)
        .arg(&word)
        .launch(config(1, 1))
        .map_err(at("launch"))?;
    let after = one.record_event().map_err(at("record"))?;
    check(!one.is_done().map_err(at("look"))?, || {
        "an endless kernel is done".to_owned()
    })?;
    check(!after.is_done().map_err(at("look"))?, || {
        "what comes after an endless kernel has come".to_owned()
    })?;
    let back = other.clone_dtoh(&data).map_err(at("beside it"))?;
    same("beside a kernel that runs", &back, &pattern(100_003, 4))?;
    other
        .memcpy_htod(&pattern(100_003, 8), &mut data)
        .map_err(at("beside it"))?;
    other.synchronize().map_err(at("beside it"))?;
    check(other.is_done().map_err(at("look"))?, || {
        "a stream is never done".to_owned()
    })?;
    check(!one.is_done().map_err(at("look"))?, || {
        "an endless kernel is done".to_owned()
    })?;
    // What waits for the one comes after it, on whatever stream.
    other.wait(&after).map_err(at("wait"))?;
    let third = device.new_stream().map_err(at("a stream"))?;
    third.memset(&mut word, 1).map_err(at("its end"))?;
    after.synchronize().map_err(at("its end"))?;
    let back = other.clone_dtoh(&data).map_err(at("down"))?;
    same("after it", &back, &pattern(100_003, 8))?;
    for stream in [&one, &other, &third] {
        stream.synchronize().map_err(at("synchronize"))?;
        check(stream.is_done().map_err(at("look"))?, || {
            "a stream is never done".to_owned()
        })?;
    }
    end(device)
}

pub(super) fn events(ground: &Ground<'_>) -> Outcome {
    let (device, module) = open_with_kernels(ground)?;
    let work = kernel(&module, "work")?;
    let word = device.alloc_zeros::<u32>(1).map_err(at("zeros"))?;
    let stream = device.new_stream().map_err(at("a stream"))?;
    device.synchronize().map_err(at("synchronize"))?;
    let never = device.new_event().map_err(at("an event"))?;
    check(never.is_done().map_err(at("look"))?, || {
        "what was never recorded is awaited".to_owned()
    })?;
    never.synchronize().map_err(at("what was never recorded"))?;
    stream.wait(&never).map_err(at("what was never recorded"))?;
    let before = stream.record_event().map_err(at("record"))?;
    let run = |times: u32| {
        let launch = stream.launch_builder(&work).arg(&word).arg(&times);
        launch.launch(config(1, 1)).map_err(at("launch"))
    };
    run(100_000)?;
    let between = stream.record_event().map_err(at("record"))?;
    run(200_000)?;
    let after = stream.record_event().map_err(at("record"))?;
    after.synchronize().map_err(at("synchronize"))?;
    for event in [&before, &between, &after] {
        check(event.is_done().map_err(at("look"))?, || {
            "an event never comes".to_owned()
        })?;
    }
    let first = between.elapsed_since(&before).map_err(at("a time"))?;
    let both = after.elapsed_since(&before).map_err(at("a time"))?;
    check(first > Duration::ZERO && both > first, || {
        format!("the first took {first:?}, both {both:?}")
    })?;
    is_cuda(&fails("a time", after.elapsed_since(&never))?, 400)?;
    // Recorded anew, it is as it was recorded last.
    run(300_000)?;
    stream.record(&before).map_err(at("record"))?;
    before.synchronize().map_err(at("synchronize"))?;
    let count = device.clone_dtoh(&word).map_err(at("down"))?;
    same("the word", &count, &[600_000])?;
    // Many come and go.
    for _ in 0..300 {
        let stream = device.new_stream().map_err(at("a stream"))?;
        let event = stream.record_event().map_err(at("record"))?;
        device.wait(&event).map_err(at("wait"))?;
    }
    device.synchronize().map_err(at("synchronize"))?;
    // More streams than a session has are refused, and cost nothing.
    let most = 600;
    let mut streams = Vec::new();
    for _ in 0..most {
        match device.new_stream() {
            Ok(stream) => streams.push(stream),
            // Known here, where handles are few.
            Err(error) => check(matches!(error.cause(), Cause::Input(_)), || {
                error.to_string()
            })?,
        }
    }
    if streams.len() == most {
        let error = fails("too many streams", device.synchronize())?;
        is(&error, ErrorCode::QuotaHandles)?;
        let last = streams.pop().ok_or("no stream")?;
        let error = fails("on a stream that is none", last.synchronize())?;
        is(&error, ErrorCode::QuotaHandles)?;
    }
    drop(streams);
    device.synchronize().map_err(at("after too many"))?;
    let stream = device.new_stream().map_err(at("a stream"))?;
    stream.synchronize().map_err(at("after too many"))?;
    end(device)
}

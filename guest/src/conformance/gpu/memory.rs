//! Memory: what is allocated, counted and given back.

use vgpu_protocol::status::ErrorCode;

use crate::client::{Device, DeviceBuffer, DevicePtr, MemoryPool, Module, OUT_OF_MEMORY, Stream};
use crate::conformance::{Ground, at, check, fails};
use crate::error::Cause;

use super::{
    DEADLINE, KERNELS, Outcome, config, device_word, end, is, is_cuda, kernel, open,
    open_with_kernels, pattern, same,
};

pub(in crate::conformance) fn info(device: &Device, _: &Module) -> Outcome {
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
    Ok(())
}

pub(in crate::conformance) fn memory(device: &Device, _: &Module) -> Outcome {
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
    Ok(())
}

pub(in crate::conformance) fn ordered(ground: &Ground<'_>) -> Outcome {
    const LEN: usize = 100_003;
    let (device, module) = open_with_kernels(ground)?;
    let spin = kernel(&module, "spin")?;
    let mut word = device.alloc_zeros::<u32>(1).map_err(at("zeros"))?;
    let (one, other) = (device.new_stream(), device.new_stream());
    let (one, other) = (one.map_err(at("a stream"))?, other.map_err(at("a stream"))?);
    let default = device.memory_pool();
    let pool = || default.statistics().map_err(at("the pool"));
    let none = pool()?;
    check(none.reserved == 0 && none.used == 0, || {
        format!("{none:?} at the beginning")
    })?;
    let alloc = |stream: &Stream| stream.alloc_async::<u32>(LEN).map_err(at("allocate"));
    let mut first = alloc(&one)?;
    one.memset(&mut first, 7).map_err(at("fill"))?;
    let back = one.clone_dtoh(&first).map_err(at("down"))?;
    same("memory of a stream", &back, &[7; LEN])?;
    let used = pool()?;
    check(
        used.used >= 4 * LEN as u64 && used.used <= used.reserved,
        || format!("{used:?} with {LEN} numbers"),
    )?;
    // Freed behind a kernel that runs: its own stream has it again at once, another one does not.
    one.launch_builder(&spin)
        .arg(&word)
        .launch(config(1, 1))
        .map_err(at("launch"))?;
    let place = first.address();
    drop(first);
    let beside = alloc(&other)?;
    check(beside.address() != place, || {
        "memory of a stream that still runs was given away".to_owned()
    })?;
    let mut again = alloc(&one)?;
    check(again.address() == place, || {
        "a stream does not have again what it has freed".to_owned()
    })?;
    one.memset(&mut again, 9).map_err(at("fill"))?;
    let third = device.new_stream().map_err(at("a stream"))?;
    third.memset(&mut word, 1).map_err(at("its end"))?;
    let back = one.clone_dtoh(&again).map_err(at("down"))?;
    same("memory had again", &back, &[9; LEN])?;
    // Freed in another stream than its own, and used by it until then.
    let done = one.record_event().map_err(at("record"))?;
    other.wait(&done).map_err(at("wait"))?;
    other.free_async(again).map_err(at("free"))?;
    other.free_async(beside).map_err(at("free"))?;
    check(pool()?.used == 0, || format!("{:?} is in use", pool()))?;
    device.synchronize().map_err(at("synchronize"))?;
    let after = pool()?;
    check(
        after.reserved == 0 && after.used_high >= 2 * used.used,
        || format!("{after:?} after everything was freed"),
    )?;
    // What may be kept is kept, until it is trimmed; and plain memory goes to the pool where it is from there.
    default
        .set_release_threshold(u64::MAX)
        .map_err(at("keep"))?;
    drop((alloc(&one)?, alloc(&one)?, alloc(&other)?));
    device.synchronize().map_err(at("synchronize"))?;
    let kept = pool()?;
    check(kept.reserved > 0 && kept.used == 0, || {
        format!("{kept:?} where everything may be kept")
    })?;
    default.trim(0).map_err(at("trim"))?;
    default.reset_high().map_err(at("reset"))?;
    let trimmed = pool()?;
    check(
        (trimmed.reserved, trimmed.reserved_high, trimmed.used_high) == (0, 0, 0),
        || format!("{trimmed:?} after a trim"),
    )?;
    drop(device.alloc_async::<u8>(0).map_err(at("nothing"))?);
    let total = usize::try_from(device.total_memory()).unwrap_or(usize::MAX);
    let error = fails("too much", one.alloc_async::<u8>(total.saturating_add(1)))?;
    is(&error, ErrorCode::QuotaMemory)?;
    // A buffer outlives the handle of its stream.
    let last = alloc(&third)?;
    drop(third);
    drop(last);
    device.synchronize().map_err(at("synchronize"))?;
    end(device)
}

/// Pools beside the default one keep what is theirs, count against the quota, and leave their buffers when they go.
pub(in crate::conformance) fn pools(ground: &Ground<'_>) -> Outcome {
    const LEN: usize = 100_003;
    const BYTES: u64 = (LEN as u64).next_multiple_of(512);
    let device = open(ground)?;
    let stream = device.new_stream().map_err(at("a stream"))?;
    let in_use = || device.statistics().map(|it| it.memory).map_err(at("count"));
    let before = in_use()?;
    let made = || device.new_memory_pool().map_err(at("a pool"));
    let (one, other) = (made()?, made()?);
    let alloc = |pool: &MemoryPool| pool.alloc_async::<u8>(&stream, LEN).map_err(at("allocate"));
    let holds = |pool: &MemoryPool, used: u64, reserved: u64, when: &str| {
        let held = pool.statistics().map_err(at("look at a pool"))?;
        check((held.used, held.reserved) == (used, reserved), || {
            format!("{held:?} {when}, where {used} of {reserved} bytes are in use")
        })
    };
    // What one has freed is had again from it, and from no other.
    one.set_release_threshold(u64::MAX).map_err(at("keep"))?;
    let first = alloc(&one)?;
    let place = first.address();
    drop(first);
    let mut beside = alloc(&other)?;
    check(beside.address() != place, || {
        "a pool has given what another one has".to_owned()
    })?;
    stream.memset(&mut beside, 3).map_err(at("fill"))?;
    holds(&one, 0, BYTES, "after all was freed")?;
    holds(&other, BYTES, BYTES, "with one buffer")?;
    holds(&device.memory_pool(), 0, 0, "without a buffer of it")?;
    device.synchronize().map_err(at("synchronize"))?;
    holds(&one, 0, BYTES, "where it may keep everything")?;
    let again = alloc(&one)?;
    check(again.address() == place, || {
        "a pool does not give again what it has".to_owned()
    })?;
    check(in_use()? == before + 2 * BYTES, || {
        format!("{:?} bytes in use, before {before}", in_use())
    })?;
    // A pool may go before its buffers: what it kept is free then, they are free later.
    drop(alloc(&other)?);
    drop(other);
    stream.memset(&mut beside, 4).map_err(at("fill"))?;
    let back = stream.clone_dtoh(&beside).map_err(at("down"))?;
    same("memory of a pool that is gone", &back, &[4; LEN])?;
    device.synchronize().map_err(at("synchronize"))?;
    check(in_use()? == before + 2 * BYTES, || {
        format!("{:?} bytes in use without a pool", in_use())
    })?;
    drop(beside);
    device.synchronize().map_err(at("synchronize"))?;
    check(in_use()? == before + BYTES, || {
        format!("{:?} bytes in use, the last of a pool freed", in_use())
    })?;
    // One with a limit gives back what it keeps before it refuses, and refuses for itself alone.
    let error = fails("nothing", device.new_memory_pool_of(0))?;
    check(matches!(error.cause(), Cause::Input(_)), || {
        error.to_string()
    })?;
    let small = device.new_memory_pool_of(BYTES).map_err(at("a pool"))?;
    let refused = |len| {
        let error = fails("too much", small.alloc_async::<u8>(&stream, len))?;
        is_cuda(&error, OUT_OF_MEMORY)
    };
    refused(LEN + 512)?;
    let all = alloc(&small)?;
    refused(1)?;
    drop(all);
    drop(small.alloc_async::<u8>(&stream, 1).map_err(at("less"))?);
    holds(&small, 0, 512, "after it had to make room")?;
    small.trim(0).map_err(at("trim"))?;
    holds(&small, 0, 0, "after a trim")?;
    end(device)
}

/// How a session ends.
enum Ends {
    Well,
    Died,
    Late,
}

/// Contents of a session's device memory are never visible to another session, whether it said goodbye, died, or was
/// ended at a kernel's deadline.
pub(in crate::conformance) fn left_behind(ground: &Ground<'_>) -> Outcome {
    const PATTERN: u32 = 0x5ec2_e75a;
    // More on a GPU, where it has to be the same place to show something.
    const ON_A_GPU: u64 = 1 << 30;
    const ELSEWHERE: u64 = 4 << 20;
    for ends in [Ends::Well, Ends::Died, Ends::Late] {
        let device = open(ground)?;
        let info = device
            .with_client(|client| client.info())
            .map_err(at("info"))?;
        let most = match info.executor.as_str() {
            "cuda" => ON_A_GPU,
            _ => ELSEWHERE,
        };
        let (free, _) = device.memory_info().map_err(at("memory info"))?;
        let words = usize::try_from(most.min(free / 2) / 4).unwrap_or_default();
        check(words > 0, || "no memory is free".to_owned())?;
        let mut kept = device.alloc::<u32>(words).map_err(at("allocate"))?;
        device.memset(&mut kept, PATTERN).map_err(at("fill"))?;
        let back = device
            .clone_dtoh(&kept.slice(words - 1..))
            .map_err(at("down"))?;
        same("what was filled", &back, &[PATTERN])?;
        match ends {
            Ends::Well => end(device)?,
            // The buffer is not freed: the session ends with it.
            Ends::Died => drop((device, kept)),
            Ends::Late => {
                let kernels = device.load_module(KERNELS).map_err(at("load a module"))?;
                let spin = kernel(&kernels, "spin")?;
                let word = device_word(&device)?;
                let launch = device.launch_builder(&spin).arg(&word).deadline(DEADLINE);
                launch.launch(config(1, 1)).map_err(at("launch"))?;
                let error = fails("wait for an endless kernel", device.synchronize())?;
                is_cuda(&error, 702)?;
                drop((device, kept));
            }
        }
        let next = open(ground)?;
        let found = next.alloc::<u32>(words).map_err(at("allocate after it"))?;
        let found = next.clone_dtoh(&found).map_err(at("down after it"))?;
        let seen = found.iter().filter(|word| **word == PATTERN).count();
        check(seen == 0, || {
            format!("{seen} of {words} words are those of a session that is over")
        })?;
        end(next)?;
    }
    Ok(())
}

/// The mediator's figures are those of what this session has done.
pub(in crate::conformance) fn statistics(ground: &Ground<'_>) -> Outcome {
    const BYTES: usize = 100_000;
    let (device, module) = open_with_kernels(ground)?;
    let ask = || device.statistics().map_err(at("statistics"));
    let before = ask()?;
    check(before.memory_limit == device.total_memory(), || {
        format!("a limit of {} bytes", before.memory_limit)
    })?;
    check(
        before.failed_requests == 0 && before.kernels_killed == 0,
        || format!("{before:?} at first"),
    )?;
    let next = ask()?;
    check(next.requests > before.requests, || {
        format!(
            "{} requests and one more are {}",
            before.requests, next.requests
        )
    })?;
    check(next.queue == 1, || format!("a queue of {}", next.queue))?;
    let buffer = device.clone_htod(&pattern(BYTES, 1)).map_err(at("up"))?;
    let back = device.clone_dtoh(&buffer).map_err(at("down"))?;
    same("there and back", &back, &pattern(BYTES, 1))?;
    let word = device_word(&device)?;
    let work = kernel(&module, "work")?;
    let launch = device.launch_builder(&work).arg(&word).arg(&20_000u32);
    launch.launch(config(1, 1)).map_err(at("launch"))?;
    // Reading the device's time takes nothing away from what a wait tells, nor the other way round.
    device.synchronize().map_err(at("synchronize"))?;
    let with = ask()?;
    let moved = BYTES as u64;
    let least = [
        ("in", before.bytes_in, with.bytes_in),
        ("out", before.bytes_out, with.bytes_out),
    ];
    for (way, before, after) in least {
        check((moved..moved + 10_000).contains(&(after - before)), || {
            format!("{moved} bytes {way} are counted as {}", after - before)
        })?;
    }
    check(with.device_time > before.device_time, || {
        format!("a kernel took nothing: {with:?}")
    })?;
    check(with.memory >= before.memory + moved, || {
        format!("{} bytes of memory with one of {moved}", with.memory)
    })?;
    fails("nothing's function", module.load_function("none"))?;
    drop(buffer);
    device.synchronize().map_err(at("synchronize"))?;
    let after = ask()?;
    check(after.failed_requests == 1, || {
        format!("{} requests failed, of 1", after.failed_requests)
    })?;
    check(after.memory < with.memory, || {
        "what was freed counts".to_owned()
    })?;
    end(device)
}

//! Failures: told late, faults, kernels without an end.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use vgpu_protocol::op::{MAX_QUIET_FAILURES, Op, QuietFailure};
use vgpu_protocol::status::{ErrorCode, Status};

use crate::client::{CaptureMode, Client, Device, DevicePtr, LaunchConfig, Stream};
use crate::conformance::{Ground, at, check, fails};
use crate::error::Error;

use super::{
    DEADLINE, KERNELS, Outcome, config, device_word, end, is, is_cuda, kernel, open,
    open_with_kernels, pattern, same,
};

pub(in crate::conformance) fn late_failures(ground: &Ground<'_>) -> Outcome {
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
        .beyond_limits()
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
            .beyond_limits()
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

/// A goodbye is the last that can tell of a failure, and waits for what has not failed yet.
pub(in crate::conformance) fn told_at_the_end(ground: &Ground<'_>) -> Outcome {
    const LAUNCHES: u32 = 100;
    const NAMED: usize = MAX_QUIET_FAILURES;
    // A context that ends with the session.
    let (device, module) = open_with_kernels(ground)?;
    let poke = kernel(&module, "poke")?;
    let launch = device.launch_builder(&poke).arg(&0x10u64);
    launch.launch(config(1, 1)).map_err(at("launch"))?;
    let launched = device.last_requests();
    drop((poke, module));
    let error = fails("a goodbye behind a fault", device.goodbye())?;
    let results = [700, 719].map(|code| Some(Status::Cuda(code)));
    check(results.contains(&error.status()), || error.to_string())?;
    let failures = error.failures().iter();
    let told: Vec<u32> = failures.map(|failed| failed.request_id).collect();
    same("what failed", &told, &launched)?;
    // More than are named.
    let (device, module) = open_with_kernels(ground)?;
    let stream = device.new_stream().map_err(at("a stream"))?;
    let mut word = device_word(&device)?;
    stream
        .begin_capture(CaptureMode::Global)
        .map_err(at("capture"))?;
    stream.memset_zeros(&mut word).map_err(at("fill"))?;
    let graph = stream.end_capture().map_err(at("end a capture"))?;
    let exec = graph.instantiate().map_err(at("instantiate"))?;
    device.synchronize().map_err(at("before"))?;
    drop((graph, word, module));
    let mut launched = Vec::new();
    for _ in 0..LAUNCHES {
        exec.launch(&stream).map_err(at("launch"))?;
        launched.extend(stream.last_requests());
    }
    let error = fails("a goodbye behind many failures", device.goodbye())?;
    is_cuda(&error, 1)?;
    let failures = error.failures().iter();
    let told: Vec<u32> = failures.map(|failed| failed.request_id).collect();
    same("the first of them", &told, &launched[..NAMED])?;
    let (more, wanted) = (error.failures_unnamed(), launched.len() - NAMED);
    check(more as usize == wanted, || {
        format!("{more} more failures of {wanted}")
    })?;
    let all = format!("{} more", LAUNCHES - 1);
    check(error.to_string().contains(&all), || error.to_string())
}

pub(in crate::conformance) fn faults(ground: &Ground<'_>) -> Outcome {
    // A fault costs only its own session.
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

pub(in crate::conformance) fn endless(ground: &Ground<'_>) -> Outcome {
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
    // If only the end of its process ends a kernel, the session is over.
    let _ = device.goodbye();
    let (next, module) = open_with_kernels(ground)?;
    let saxpy = kernel(&module, "saxpy")?;
    check(saxpy.parameters().len() == 4, || "saxpy".to_owned())?;
    drop((saxpy, module));
    end(next)?;
    end(bystander)
}

/// Kernels that nobody wants any more are ended, and nothing else is.
pub(in crate::conformance) fn cancelled(ground: &Ground<'_>) -> Outcome {
    let (device, module) = open_with_kernels(ground)?;
    let (spin, work) = (kernel(&module, "spin")?, kernel(&module, "work")?);
    let mut word = device_word(&device)?;
    let sum = device_word(&device)?;
    let [one, two] = [device.new_stream(), device.new_stream()];
    let (one, two) = (one.map_err(at("a stream"))?, two.map_err(at("a stream"))?);
    device.synchronize().map_err(at("synchronize"))?;
    let cancel = |stream: &Stream| stream.cancel().map_err(at("cancel"));
    let none = cancel(&one)?;
    check(none == 0, || format!("{none} kernels of none"))?;
    let start = |stream: &Stream| -> Outcome {
        let launch = stream.launch_builder(&spin).arg(&word);
        launch.launch(config(1, 1)).map_err(at("launch"))
    };
    let add = |stream: &Stream, times: u32| -> Outcome {
        let launch = stream.launch_builder(&work).arg(&sum).arg(&times);
        launch.launch(config(1, 1)).map_err(at("launch"))
    };
    start(&one)?;
    add(&one, 5)?;
    add(&one, 7)?;
    add(&two, 11)?;
    let ended = match one.cancel() {
        // Of a GPU it runs on, as it would.
        Err(error) if error.status() == Some(Status::Cuda(801)) => {
            two.memset(&mut word, 1).map_err(at("its end"))?;
            device.synchronize().map_err(at("its end"))?;
            let found = device.clone_dtoh(&sum).map_err(at("down"))?;
            same("all of them", &found, &[23])?;
            return end(device);
        }
        ended => ended.map_err(at("cancel"))?,
    };
    check(ended == 3, || format!("{ended} kernels of 3"))?;
    let are_cancelled = |step: &str, error: &Error, op: Op, how_many: usize| -> Outcome {
        let failures = error.failures();
        let wanted =
            |failed: &QuietFailure| failed.op == op && failed.status == ErrorCode::Cancelled.into();
        check(
            failures.len() == how_many && failures.iter().all(wanted),
            || format!("{step}: {failures:?}"),
        )
    };
    let error = fails("cancelled", one.synchronize())?;
    are_cancelled("three", &error, Op::Launch, 3)?;
    let found = two.clone_dtoh(&sum).map_err(at("down"))?;
    same("the other stream's", &found, &[11])?;
    // What comes later is done, and a thread that waits is let go.
    add(&one, 100)?;
    start(&one)?;
    let waits = one.lane().map_err(at("a lane"))?;
    let waited = thread::scope(|scope| {
        let waiting = scope.spawn(|| waits.synchronize());
        // However soon it waits: the kernel does not end before.
        let ended = cancel(&one);
        let waited = waiting.join().map_err(|_| "a wait panicked".to_owned())?;
        ended?;
        Ok::<_, String>(waited)
    })?;
    // Which of the two threads hears of it depends on which asks first.
    match waited {
        Err(error) => is(&error, ErrorCode::Cancelled)?,
        Ok(_) => is(&fails("a wait", one.synchronize())?, ErrorCode::Cancelled)?,
    }
    check(device.synchronize().is_ok(), || "told twice".to_owned())?;
    // Those of a graph, in all of its branches.
    let before = device.clone_dtoh(&sum).map_err(at("down"))?;
    one.begin_capture(CaptureMode::Global)
        .map_err(at("capture"))?;
    let fork = one.record_event().map_err(at("record"))?;
    two.wait(&fork).map_err(at("wait"))?;
    start(&two)?;
    let join = two.record_event().map_err(at("record"))?;
    one.wait(&join).map_err(at("wait"))?;
    add(&one, 3)?;
    let graph = one.end_capture().map_err(at("end a capture"))?;
    let exec = graph.instantiate().map_err(at("instantiate"))?;
    exec.launch(&one).map_err(at("launch"))?;
    let ended = cancel(&two)?;
    check(ended == 0, || format!("{ended} kernels of another stream"))?;
    let ended = cancel(&one)?;
    check(ended == 2, || format!("{ended} kernels of 2"))?;
    let error = fails("a graph", one.synchronize())?;
    are_cancelled("a graph", &error, Op::GraphLaunch, 2)?;
    let found = device.clone_dtoh(&sum).map_err(at("down"))?;
    same("nothing of the graph", &found, &before)?;
    add(&two, 1)?;
    let found = two.clone_dtoh(&sum).map_err(at("down"))?;
    same("afterwards", &found, &[before[0] + 1])?;
    end(device)
}

/// Requests of this lane that are not for the device wait for no other lane.
fn answers(lane: &mut Client) -> Outcome {
    lane.ping(b"beside").map_err(at("a ping beside"))?;
    let fence = lane.fence().map_err(at("a fence beside"))?;
    check(fence.failures.as_slice().is_empty(), || {
        format!("nothing failed, the fence told {fence:?}")
    })
}

/// A GPU runs the kernels that it was given to their end. Those that the mediator still has, of a graph or behind it, are
/// ended.
fn cancelled_on_a_gpu(ground: &Ground<'_>) -> Outcome {
    // More than a queue takes.
    const NODES: u32 = 3000;
    const BEHIND: u32 = 100;
    let (device, module) = open_with_kernels(ground)?;
    let (spin, work) = (kernel(&module, "spin")?, kernel(&module, "work")?);
    let (word, sum) = (device_word(&device)?, device_word(&device)?);
    let stream = device.new_stream().map_err(at("a stream"))?;
    device.synchronize().map_err(at("synchronize"))?;
    let add = || -> Outcome {
        let launch = stream.launch_builder(&work).arg(&sum).arg(&1u32);
        launch.launch(config(1, 1)).map_err(at("launch"))
    };
    stream
        .begin_capture(CaptureMode::Global)
        .map_err(at("capture"))?;
    (0..NODES).try_for_each(|_| add())?;
    let graph = stream.end_capture().map_err(at("end a capture"))?;
    let exec = graph.instantiate().map_err(at("instantiate"))?;
    let launch = stream.launch_builder(&spin).arg(&word);
    launch.launch(config(1, 1)).map_err(at("launch"))?;
    exec.launch(&stream).map_err(at("launch"))?;
    (0..BEHIND).try_for_each(|_| add())?;
    let ended = stream.cancel().map_err(at("cancel what the GPU has not"))?;
    check((BEHIND + 1..=BEHIND + NODES).contains(&ended), || {
        format!("{ended} kernels of {NODES} in a graph and {BEHIND} behind it")
    })?;
    is_cuda(&fails("cancel what the GPU has", stream.cancel())?, 801)
    // No goodbye, which would wait for the kernel.
}

/// The end of kernels reaches them while others wait behind them, more than the mediator takes: those that it has queued,
/// those that it has not looked at, and those of a graph of which only a part is queued. Meanwhile other lanes go on with what
/// is not for the device.
pub(in crate::conformance) fn cancelled_behind_others(ground: &Ground<'_>) -> Outcome {
    const LANES: u32 = 3;
    // Of each lane: together more than are sent without an answer, which are a queue's and 1 MiB.
    const LAUNCHES: u32 = 800;
    // So many are sent, whatever the mediator does with them, and no queue takes them.
    const SENT: u32 = 1200;
    const PADDING: [u64; 256] = [0; 256];
    let client = ground.connect()?;
    let mut beside = client.lane().map_err(at("a lane"))?;
    let device = Device::new(client).map_err(at("device"))?;
    let module = device.load_module(KERNELS).map_err(at("load a module"))?;
    let (spin, count) = (kernel(&module, "spin")?, kernel(&module, "count_padded")?);
    let mut word = device_word(&device)?;
    let sum = device_word(&device)?;
    let [one, two] = [device.new_stream(), device.new_stream()];
    let (one, two) = (one.map_err(at("a stream"))?, two.map_err(at("a stream"))?);
    device.synchronize().map_err(at("synchronize"))?;
    let start = || -> Outcome {
        let launch = one.launch_builder(&spin).arg(&word);
        launch.launch(config(1, 1)).map_err(at("launch"))
    };
    let add = |lane: &Device| -> Outcome {
        let launch = lane.launch_builder(&count).arg(&sum).arg(&PADDING);
        launch.launch(config(1, 1)).map_err(at("launch"))
    };
    start()?;
    match one.cancel() {
        Err(error) if error.status() == Some(Status::Cuda(801)) => {
            two.memset(&mut word, 1).map_err(at("its end"))?;
            device.synchronize().map_err(at("its end"))?;
            end(device)?;
            return cancelled_on_a_gpu(ground);
        }
        ended => check(ended.map_err(at("cancel"))? == 1, || "not one".to_owned())?,
    }
    fails("cancelled", device.synchronize())?;

    start()?;
    let sent = AtomicU32::new(0);
    let ended = thread::scope(|scope| {
        let threads: Vec<_> = (0..LANES)
            .map(|_| {
                let lane = device.lane().map_err(at("a lane"))?;
                let lane = lane.on_stream(&one).map_err(at("a stream"))?;
                let (sent, add) = (&sent, &add);
                Ok::<_, String>(scope.spawn(move || -> Outcome {
                    for _ in 0..LAUNCHES {
                        add(&lane)?;
                        sent.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                }))
            })
            .collect::<Result<_, _>>()?;
        while sent.load(Ordering::Relaxed) < SENT && !threads.iter().all(|it| it.is_finished()) {
            thread::sleep(Duration::from_millis(1));
        }
        let answered = answers(&mut beside);
        let ended = one.cancel().map_err(at("cancel"));
        answered?;
        for thread in threads {
            thread.join().map_err(|_| "a lane panicked".to_owned())??;
        }
        ended
    })?;
    check(ended > SENT, || {
        format!("{ended} kernels of more than {SENT}")
    })?;
    let error = fails("cancelled", device.synchronize())?;
    let all = |error: &Error, op: Op| -> Outcome {
        let wanted =
            |failed: &QuietFailure| failed.op == op && failed.status == ErrorCode::Cancelled.into();
        check(error.failures().iter().all(wanted), || error.to_string())
    };
    all(&error, Op::Launch)?;
    // Each has either run or was ended.
    let found = device.clone_dtoh(&sum).map_err(at("down"))?;
    same("what was not", &found, &[LANES * LAUNCHES + 1 - ended])?;

    // A graph of more kernels than a queue takes.
    const NODES: u32 = 1200;
    one.begin_capture(CaptureMode::Global)
        .map_err(at("capture"))?;
    (0..NODES).try_for_each(|_| add(&one))?;
    let graph = one.end_capture().map_err(at("end a capture"))?;
    let exec = graph.instantiate().map_err(at("instantiate"))?;
    start()?;
    exec.launch(&one).map_err(at("launch"))?;
    exec.launch(&one).map_err(at("launch"))?;
    let ended = one.cancel().map_err(at("cancel"))?;
    // The second has not begun.
    check(ended == 1 + NODES + 1, || format!("{ended} kernels"))?;
    let error = fails("a graph", device.synchronize())?;
    let of_launch = |failed: &QuietFailure| failed.op == Op::Launch;
    check(
        error.failures().iter().filter(|it| of_launch(it)).count() == 1,
        || error.to_string(),
    )?;
    let after = device.clone_dtoh(&sum).map_err(at("down"))?;
    same("nothing of the graph", &after, &found)?;
    exec.launch(&one).map_err(at("launch"))?;
    one.synchronize().map_err(at("again"))?;
    let after = device.clone_dtoh(&sum).map_err(at("down"))?;
    same("all of the graph", &after, &[found[0] + NODES])?;

    // One that waits for its session's turn, with others behind it.
    start()?;
    let client = ground.connect()?;
    let mut beside = client.lane().map_err(at("a lane"))?;
    let other = Device::new(client).map_err(at("device"))?;
    let others = other.load_module(KERNELS).map_err(at("load a module"))?;
    let (spin, word) = (kernel(&others, "spin")?, device_word(&other)?);
    for _ in 0..3 {
        let launch = other.launch_builder(&spin).arg(&word);
        launch.launch(config(1, 1)).map_err(at("launch"))?;
    }
    answers(&mut beside)?;
    let ended = other.cancel().map_err(at("cancel"))?;
    check(ended == 3, || format!("{ended} kernels of 3"))?;
    all(&fails("in turn", other.synchronize())?, Op::Launch)?;
    end(other)?;
    check(one.cancel().map_err(at("cancel"))? == 1, || {
        "of the session itself".to_owned()
    })?;
    fails("cancelled", device.synchronize())?;
    end(device)
}

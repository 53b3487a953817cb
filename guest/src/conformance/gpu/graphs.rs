//! Graphs: captured, launched, refused.

use vgpu_protocol::op::Op;
use vgpu_protocol::status::{ErrorCode, Status};

use crate::client::{CaptureMode, CaptureStatus, Device, Graph, Module, Stream};
use crate::conformance::{Ground, at, check, fails};
use crate::error::Error;

use super::{
    DEADLINE, Outcome, config, device_word, end, is, is_cuda, kernel, open_with_kernels, pattern,
    same,
};

fn stream(device: &Device) -> Result<Stream, String> {
    device.new_stream().map_err(at("a stream"))
}

fn begin(stream: &Stream) -> Outcome {
    stream
        .begin_capture(CaptureMode::Global)
        .map_err(at("begin a capture"))
}

/// The graph of the work that `work` sends to a stream.
fn captured(stream: &Stream, work: impl FnOnce() -> Outcome) -> Result<Graph, String> {
    begin(stream)?;
    work()?;
    stream.end_capture().map_err(at("end a capture"))
}

fn status(stream: &Stream, wanted: CaptureStatus) -> Outcome {
    let found = stream.capture_status().map_err(at("capture status"))?;
    check(found == wanted, || format!("{found:?}, not {wanted:?}"))
}

pub(in crate::conformance) fn graphs(device: &Device, module: &Module) -> Outcome {
    let work = kernel(module, "work")?;
    let mut word = device_word(device)?;
    let mut copy = device_word(device)?;
    let (one, other) = (stream(device)?, stream(device)?);
    device.synchronize().map_err(at("synchronize"))?;
    status(&one, CaptureStatus::None)?;
    let add = |stream: &Stream, times: u32, word| {
        let launch = stream.launch_builder(&work).arg(word).arg(&times);
        launch.launch(config(1, 1)).map_err(at("launch"))
    };
    begin(&one)?;
    add(&one, 5, &word)?;
    status(&one, CaptureStatus::Active)?;
    status(&other, CaptureStatus::None)?;
    // What others do meanwhile is done, and nothing of the capture is.
    let seen = other.clone_dtoh(&word).map_err(at("meanwhile"))?;
    same("meanwhile", &seen, &[0])?;
    add(&one, 7, &word)?;
    one.memcpy_dtod(&word, &mut copy).map_err(at("copy"))?;
    let graph = one.end_capture().map_err(at("end a capture"))?;
    status(&one, CaptureStatus::None)?;
    check(graph.len() == 3, || format!("{} nodes", graph.len()))?;
    let first = graph.instantiate().map_err(at("instantiate"))?;
    let second = graph.instantiate().map_err(at("instantiate"))?;
    drop(graph);
    let read = |step: &str, stream: &Device, wanted: u32| -> Outcome {
        let found = stream.clone_dtoh(&copy).map_err(at(step))?;
        same(step, &found, &[wanted])
    };
    read("never launched", device, 0)?;
    first.launch(&one).map_err(at("launch"))?;
    read("launched once", &one, 12)?;
    for _ in 0..50 {
        first.launch(&one).map_err(at("launch"))?;
    }
    read("launched again", &one, 51 * 12)?;
    // A launch comes after the one before it, whatever the streams.
    for _ in 0..20 {
        first.launch(&one).map_err(at("launch"))?;
        first.launch(&other).map_err(at("launch"))?;
        first.launch(device).map_err(at("launch"))?;
    }
    read("by turns", device, 111 * 12)?;
    drop(first);
    second.launch_checked(&other).map_err(at("launch"))?;
    other.synchronize().map_err(at("synchronize"))?;
    read("the other", &other, 112 * 12)?;
    // Between launches its memory is anybody's.
    device.memset(&mut word, 1000).map_err(at("fill"))?;
    device.synchronize().map_err(at("synchronize"))?;
    second.launch(&other).map_err(at("launch"))?;
    drop(second);
    other.synchronize().map_err(at("synchronize"))?;
    read("after a fill", device, 1012)?;
    // One with nothing in it.
    let nothing = captured(&one, || Ok(()))?;
    check(nothing.is_empty(), || "it has nodes".to_owned())?;
    let exec = nothing.instantiate().map_err(at("instantiate"))?;
    exec.launch_checked(&one).map_err(at("launch"))?;
    Ok(())
}

pub(in crate::conformance) fn streams(device: &Device, module: &Module) -> Outcome {
    const N: usize = 3001;
    let saxpy = kernel(module, "saxpy")?;
    let mut x = device.alloc::<f32>(N).map_err(at("allocate"))?;
    let mut y = device.alloc_zeros::<f32>(N).map_err(at("zeros"))?;
    let z = device.alloc_zeros::<f32>(N).map_err(at("zeros"))?;
    let mut rows = device
        .alloc_pitched::<u8>(33, 9)
        .map_err(at("rows of bytes"))?;
    device.synchronize().map_err(at("synchronize"))?;
    let streams = [stream(device)?, stream(device)?, stream(device)?];
    let [one, two, three] = &streams;
    let add = |stream: &Stream, a: f32, x: &_, y: &_| {
        let launch = stream.launch_builder(&saxpy).arg(&a).arg(x).arg(y);
        let launch = launch.arg(&u32::try_from(N).expect("small"));
        launch.launch(config(12, 256)).map_err(at("launch"))
    };
    let graph = captured(one, || {
        // y += 2x beside z += 3x, then z += y.
        one.memset(&mut x, 1.0f32).map_err(at("fill"))?;
        let filled = one.record_event().map_err(at("record"))?;
        two.wait(&filled).map_err(at("wait"))?;
        three.wait(&filled).map_err(at("wait"))?;
        status(two, CaptureStatus::Active)?;
        add(one, 3.0, &x, &z)?;
        add(two, 2.0, &x, &y)?;
        three.memset_2d(&mut rows, 7u8).map_err(at("fill rows"))?;
        for stream in [two, three] {
            let done = stream.record_event().map_err(at("record"))?;
            one.wait(&done).map_err(at("wait"))?;
        }
        add(one, 1.0, &y, &z)
    })?;
    status(two, CaptureStatus::None)?;
    check(graph.len() == 5, || format!("{} nodes", graph.len()))?;
    let exec = graph.instantiate().map_err(at("instantiate"))?;
    let launches = 40;
    for k in 0..launches {
        exec.launch(&streams[k % 3]).map_err(at("launch"))?;
    }
    device.synchronize().map_err(at("synchronize"))?;
    // After k launches y is 2k, and z has grown by 3 and by y each time.
    let sum: usize = (1..=launches).map(|k| 3 + 2 * k).sum();
    let found = device.clone_dtoh(&z).map_err(at("down"))?;
    same("the sum", &found, &vec![sum as f32; N])?;
    let mut found = [0; 33 * 9];
    device
        .memcpy_2d_dtoh(&rows, &mut found, 33)
        .map_err(at("down"))?;
    same("the rows", &found, &[7; 33 * 9])?;
    // As ordinary streams they go on, together with others.
    device.memset(&mut y, 0.5f32).map_err(at("fill"))?;
    device.synchronize().map_err(at("synchronize"))?;
    add(two, 1.0, &x, &y)?;
    let after = two.record_event().map_err(at("record"))?;
    three.wait(&after).map_err(at("wait"))?;
    let found = three.clone_dtoh(&y).map_err(at("down"))?;
    same("without a graph", &found, &vec![1.5f32; N])?;
    Ok(())
}

pub(in crate::conformance) fn many_nodes(device: &Device, module: &Module) -> Outcome {
    let count = kernel(module, "count")?;
    let mut counter = module.variable::<u32>("counter").map_err(at("counter"))?;
    device.memcpy_htod(&[41], &mut counter).map_err(at("up"))?;
    let out = device.alloc_zeros::<u32>(4).map_err(at("zeros"))?;
    let stream = stream(device)?;
    device.synchronize().map_err(at("synchronize"))?;
    // More than any queue holds.
    let graph = captured(&stream, || {
        for _ in 0..2000 {
            let launch = stream.launch_builder(&count).arg(&out);
            launch.launch(config(1, 1)).map_err(at("launch"))?;
        }
        Ok(())
    })?;
    let exec = graph.instantiate().map_err(at("instantiate"))?;
    for _ in 0..3 {
        exec.launch(&stream).map_err(at("launch"))?;
    }
    let found = stream.clone_dtoh(&counter).map_err(at("down"))?;
    same("the counter", &found, &[6041])?;
    Ok(())
}

/// A request before the error failed with this result.
fn has_failed(error: &Error, result: i32) -> Outcome {
    let mut failed = error.failures().iter();
    check(
        failed.any(|failed| failed.status == Status::Cuda(result)),
        || format!("{result} was due, and came: {error}"),
    )
}

/// An operation that cannot be captured is refused, makes the capture invalid, and leaves the session.
pub(in crate::conformance) fn refused(device: &Device, module: &Module) -> Outcome {
    let work = kernel(module, "work")?;
    let word = device_word(device)?;
    let mut other_word = device_word(device)?;
    let (one, two) = (stream(device)?, stream(device)?);
    let outside = two.record_event().map_err(at("record"))?;
    device.synchronize().map_err(at("synchronize"))?;
    is_cuda(&fails("no capture", one.end_capture())?, 401)?;
    let add = |stream: &Stream| {
        let launch = stream.launch_builder(&work).arg(&word).arg(&1u32);
        launch.launch(config(1, 1)).map_err(at("launch"))
    };
    let spoils = |step: &str, code: i32, wrong: &mut dyn FnMut() -> crate::Result<()>| -> Outcome {
        begin(&one)?;
        add(&one)?;
        // Told by the call, or by the next that waits.
        let told = match wrong() {
            Err(error) => error,
            Ok(()) => fails(step, two.synchronize())?,
        };
        if told.status() != Some(Status::Cuda(code)) {
            has_failed(&told, code).map_err(|error| format!("{step}: {error}"))?;
        }
        status(&one, CaptureStatus::Invalidated)?;
        is_cuda(&fails(step, one.clone_dtoh(&word))?, 901)?;
        is_cuda(&fails(step, one.end_capture())?, 901)?;
        status(&one, CaptureStatus::None)?;
        let found = one.clone_dtoh(&word).map_err(at(step))?;
        same(step, &found, &[0])
    };
    spoils("a copy down", 900, &mut || one.clone_dtoh(&word).map(drop))?;
    spoils("a copy up", 900, &mut || {
        one.memcpy_htod(&[1], &mut other_word)
    })?;
    spoils("a wait", 900, &mut || one.synchronize().map(drop))?;
    spoils("a wait for all", 900, &mut || {
        device.synchronize().map(drop)
    })?;
    spoils("a look", 900, &mut || one.is_done().map(drop))?;
    spoils("an allocation", 900, &mut || {
        device.alloc::<u8>(1).map(drop)
    })?;
    spoils("one in its order", 900, &mut || {
        one.alloc_async::<u8>(1).map(drop)
    })?;
    spoils("an event from outside", 905, &mut || one.wait(&outside))?;
    spoils("a wait for its event", 907, &mut || {
        one.record_event()?.synchronize()
    })?;
    spoils("a look at its event", 907, &mut || {
        one.record_event()?.is_done().map(drop)
    })?;
    spoils("the default stream", 900, &mut || {
        device.wait(&one.record_event()?)
    })?;
    // Two captures, which cannot become one.
    begin(&two)?;
    let theirs = two.record_event().map_err(at("record"))?;
    begin(&one)?;
    one.wait(&theirs).map_err(at("wait"))?;
    let error = fails("a merge", one.end_capture())?;
    is_cuda(&error, 901)?;
    has_failed(&error, 902)?;
    is_cuda(&fails("a merge", two.end_capture())?, 901)?;
    // An event of a capture that is over is no good for anything.
    two.wait(&theirs).map_err(at("wait"))?;
    has_failed(&fails("an old event", device.synchronize())?, 907)?;
    // Work that is not waited for, and the end in the wrong stream.
    begin(&one)?;
    let fork = one.record_event().map_err(at("record"))?;
    two.wait(&fork).map_err(at("wait"))?;
    add(&two)?;
    is_cuda(&fails("unjoined", one.end_capture())?, 904)?;
    status(&two, CaptureStatus::None)?;
    begin(&one)?;
    let fork = one.record_event().map_err(at("record"))?;
    two.wait(&fork).map_err(at("wait"))?;
    is_cuda(&fails("unmatched", two.end_capture())?, 903)?;
    is_cuda(&fails("unmatched", one.end_capture())?, 901)?;
    // By another thread, unless it is relaxed; allocating is allowed then.
    begin(&one)?;
    let elsewhere = one.lane().map_err(at("a lane"))?;
    is_cuda(&fails("another thread", elsewhere.end_capture())?, 908)?;
    one.end_capture().map_err(at("its own thread"))?;
    one.begin_capture(CaptureMode::Relaxed)
        .map_err(at("begin"))?;
    drop(device.alloc::<u8>(1).map_err(at("meanwhile"))?);
    add(&one)?;
    let graph = elsewhere.end_capture().map_err(at("another thread"))?;
    // Twice begun.
    begin(&one)?;
    begin(&one)?;
    has_failed(&fails("twice", two.synchronize())?, 401)?;
    one.end_capture().map_err(at("after twice"))?;
    let exec = graph.instantiate().map_err(at("instantiate"))?;
    // Its stream goes, and the capture with it.
    begin(&one)?;
    drop((elsewhere, one));
    device.synchronize().map_err(at("after all that"))?;
    exec.launch(&two).map_err(at("launch"))?;
    let found = two.clone_dtoh(&word).map_err(at("down"))?;
    same("after all that", &found, &[1])?;
    Ok(())
}

/// A graph whose memory or kernels are gone does not run, not even a part of it.
pub(in crate::conformance) fn gone(ground: &Ground<'_>) -> Outcome {
    let (device, module) = open_with_kernels(ground)?;
    let work = kernel(&module, "work")?;
    let word = device_word(&device)?;
    let mut target = device.clone_htod(&pattern(1000, 1)).map_err(at("up"))?;
    let source = device.clone_htod(&pattern(1000, 2)).map_err(at("up"))?;
    let stream = stream(&device)?;
    device.synchronize().map_err(at("synchronize"))?;
    let add = || {
        let launch = stream.launch_builder(&work).arg(&word).arg(&1u32);
        launch.launch(config(1, 1)).map_err(at("launch"))
    };
    let copies = captured(&stream, || {
        add()?;
        stream.memcpy_dtod(&source, &mut target).map_err(at("copy"))
    })?;
    let kernels = captured(&stream, add)?;
    let copies = copies.instantiate().map_err(at("instantiate"))?;
    let kernels = kernels.instantiate().map_err(at("instantiate"))?;
    copies.launch(&stream).map_err(at("launch"))?;
    kernels.launch(&stream).map_err(at("launch"))?;
    let count = |step: &str, wanted: u32| -> Outcome {
        let found = stream.clone_dtoh(&word).map_err(at(step))?;
        same(step, &found, &[wanted])
    };
    count("both", 2)?;
    // Freed behind a launch, it is there until that is done.
    copies.launch(&stream).map_err(at("launch"))?;
    drop(source);
    count("before it is freed", 3)?;
    is_cuda(&fails("freed", copies.launch_checked(&stream))?, 1)?;
    copies.launch(&stream).map_err(at("a quiet launch"))?;
    let error = fails("freed", stream.synchronize())?;
    let first = error
        .failures()
        .first()
        .map(|failed| (failed.op, failed.status));
    check(first == Some((Op::GraphLaunch, Status::Cuda(1))), || {
        format!("{first:?}")
    })?;
    count("nothing of it", 3)?;
    let found = device.clone_dtoh(&target).map_err(at("down"))?;
    same("copied before", &found, &pattern(1000, 2))?;
    drop((work, module));
    let error = fails("unloaded", kernels.launch_checked(&stream))?;
    is(&error, ErrorCode::Handle)?;
    count("after it is unloaded", 3)?;
    end(device)
}

pub(in crate::conformance) fn faults(ground: &Ground<'_>) -> Outcome {
    for name in ["poke", "spin"] {
        let (device, module) = open_with_kernels(ground)?;
        let function = kernel(&module, name)?;
        let word = device_word(&device)?;
        let stream = stream(&device)?;
        device.synchronize().map_err(at("synchronize"))?;
        let graph = captured(&stream, || {
            let mut launch = stream.launch_builder(&function).deadline(DEADLINE);
            launch = match name {
                "poke" => launch.arg(&0x10u64),
                _ => launch.arg(&word),
            };
            launch.launch(config(1, 1)).map_err(at("launch"))
        })?;
        let exec = graph.instantiate().map_err(at("instantiate"))?;
        exec.launch(&stream).map_err(at("launch"))?;
        let error = fails(name, stream.synchronize())?;
        let results: &[i32] = match name {
            "poke" => &[700, 719],
            _ => &[702],
        };
        let wanted = results
            .iter()
            .any(|code| error.status() == Some(Status::Cuda(*code)));
        check(wanted, || format!("{name}: {error}"))?;
        let first = error.failures().first().map(|failed| failed.op);
        check(first == Some(Op::GraphLaunch) || name == "spin", || {
            format!("{name}: {first:?} is said to have failed")
        })?;
        drop((exec, graph, word, function, module, stream));
        // If only the end of its process ends a kernel, the session is over.
        let _ = device.goodbye();
    }
    let (device, _module) = open_with_kernels(ground)?;
    end(device)
}

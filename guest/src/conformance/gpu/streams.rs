//! Lanes, streams and events.

use std::time::Duration;

use vgpu_protocol::status::ErrorCode;

use crate::client::{Device, LaunchConfig, Module, Stream, StreamOptions};
use crate::conformance::{at, check, fails};
use crate::error::Cause;

use super::{Outcome, config, is, is_cuda, kernel, pattern, same};

pub(in crate::conformance) fn lanes(device: &Device, module: &Module) -> Outcome {
    let saxpy = kernel(module, "saxpy")?;
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
        let own = work(device, 0);
        for thread in threads {
            thread.join().map_err(|_| "a thread panicked")??;
        }
        own
    })?;
    Ok(())
}

pub(in crate::conformance) fn streams(device: &Device, module: &Module) -> Outcome {
    let spin = kernel(module, "spin")?;
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
    // Work that waits for the event comes after it, on any stream.
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
    Ok(())
}

pub(in crate::conformance) fn events(device: &Device, module: &Module) -> Outcome {
    let work = kernel(module, "work")?;
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
    run(10_000)?;
    let between = stream.record_event().map_err(at("record"))?;
    run(20_000)?;
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
    let untimed = device.new_event_without_timing().map_err(at("no timing"))?;
    stream.record(&untimed).map_err(at("record"))?;
    untimed.synchronize().map_err(at("synchronize"))?;
    is_cuda(&fails("a time", untimed.elapsed_since(&before))?, 400)?;
    // A stream of any priority, and one that the default stream waits for.
    let sum = device.alloc_zeros::<u32>(1).map_err(at("zeros"))?;
    let add = |stream: &Stream, times: u32| {
        let launch = stream.launch_builder(&work).arg(&sum).arg(&times);
        launch.launch(config(1, 1)).map_err(at("launch"))
    };
    device.synchronize().map_err(at("zeros"))?;
    for priority in [i32::MIN, -1, 0, i32::MAX] {
        let options = StreamOptions {
            priority,
            ..StreamOptions::default()
        };
        let other = device.new_stream_with(options).map_err(at("a priority"))?;
        add(&other, 1)?;
        other.synchronize().map_err(at("a priority"))?;
    }
    let options = StreamOptions {
        non_blocking: false,
        ..StreamOptions::default()
    };
    let blocking = device
        .new_stream_with(options)
        .map_err(at("a blocking stream"))?;
    add(&blocking, 100_000)?;
    let found = device.clone_dtoh(&sum).map_err(at("down"))?;
    same("what the default stream waits for", &found, &[100_004])?;
    // Recorded anew, it is as it was recorded last.
    run(30_000)?;
    stream.record(&before).map_err(at("record"))?;
    before.synchronize().map_err(at("synchronize"))?;
    let count = device.clone_dtoh(&word).map_err(at("down"))?;
    same("the word", &count, &[60_000])?;
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
    Ok(())
}

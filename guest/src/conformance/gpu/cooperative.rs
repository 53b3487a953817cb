//! Launches with attributes: grids whose blocks wait for each other, and attributes that are refused.

use vgpu_protocol::op::{LaunchAttribute, MAX_LAUNCH_ATTRIBUTES};
use vgpu_protocol::status::ErrorCode;

use crate::attributes::{
    CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH as CLUSTER_LAUNCH,
    CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH as COOPERATIVE_LAUNCH,
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as MULTIPROCESSORS,
};
use crate::client::{
    CaptureMode, Device, DeviceBuffer, DevicePtr, Function, LaunchBuilder, Module,
};
use crate::conformance::{at, check, fails};
use crate::error::Cause;

use super::{Outcome, config, is, is_cuda, kernel, same};

const INVALID_VALUE: i32 = 1;
const COOPERATIVE_LAUNCH_TOO_LARGE: i32 = 720;
const INVALID_CLUSTER_SIZE: i32 = 912;

/// Threads of a block.
const THREADS: u32 = 64;

/// A grid that meets, and its memory.
struct Meeting {
    blocks: u32,
    data: DeviceBuffer<u32>,
    arrived: DeviceBuffer<u32>,
}

impl Meeting {
    fn new(device: &Device) -> Result<Self, String> {
        let multiprocessors = device.attribute(MULTIPROCESSORS).unwrap_or(1);
        let blocks = 2 * u32::try_from(multiprocessors).unwrap_or(1);
        let n = blocks * THREADS;
        let numbers: Vec<u32> = (0..2 * n).collect();
        Ok(Self {
            blocks,
            data: device.clone_htod(&numbers).map_err(at("up"))?,
            arrived: device.alloc_zeros(1).map_err(at("zeros"))?,
        })
    }

    fn launch<'l>(&self, on: &'l Device, meet: &'l Function, rounds: u32) -> LaunchBuilder<'l> {
        let launch = on.launch_builder(meet).arg(&self.data).arg(&self.arrived);
        launch.arg(&rounds)
    }

    /// After so many rounds in all, of launches with an even number each.
    fn has_met(&self, device: &Device, what: &str, rounds: u32) -> Outcome {
        let n = self.blocks * THREADS;
        let found = device.clone_dtoh(&self.data).map_err(at("down"))?;
        let wanted: Vec<u32> = (0..n)
            .map(|i| (i + rounds * THREADS) % n + rounds)
            .collect();
        same(what, &found[..wanted.len()], &wanted)
    }
}

pub(in crate::conformance) fn cooperative(device: &Device, module: &Module) -> Outcome {
    let meet = kernel(module, "meet")?;
    check(device.attribute(COOPERATIVE_LAUNCH) == Some(1), || {
        "the device says that it has no cooperative launches".to_owned()
    })?;
    let mut meeting = Meeting::new(device)?;
    let grid = config(meeting.blocks, THREADS);
    let rounds = 8;
    let launch = meeting.launch(device, &meet, rounds).cooperative();
    launch.launch_checked(grid).map_err(at("a meeting"))?;
    meeting.has_met(device, "a meeting", rounds)?;
    // One that only a graph launches, twice.
    let stream = device.new_stream().map_err(at("a stream"))?;
    let capture = stream.begin_capture(CaptureMode::Global);
    capture.map_err(at("begin a capture"))?;
    let zeros = stream.memset_zeros(&mut meeting.arrived);
    zeros.map_err(at("a fill in a capture"))?;
    let launch = meeting.launch(&stream, &meet, rounds).cooperative();
    launch.launch(grid).map_err(at("a captured meeting"))?;
    let graph = stream.end_capture().map_err(at("end a capture"))?;
    let exec = graph.instantiate().map_err(at("instantiate"))?;
    for _ in 0..2 {
        exec.launch(&stream).map_err(at("a graph with a meeting"))?;
    }
    stream.synchronize().map_err(at("graphs with a meeting"))?;
    meeting.has_met(device, "a meeting in a graph", 3 * rounds)?;
    // No more blocks than the device has at once.
    let most = meet
        .max_active_blocks(THREADS, 0)
        .map_err(at("occupancy"))?;
    let multiprocessors = meeting.blocks / 2;
    check(most >= 2, || format!("{most} blocks at once"))?;
    let launch = meeting.launch(device, &meet, 1).cooperative();
    let one_more = launch.launch_checked(config(most * multiprocessors + 1, THREADS));
    is_cuda(
        &fails("a meeting of one too many", one_more)?,
        COOPERATIVE_LAUNCH_TOO_LARGE,
    )?;
    // More blocks than any device has at once; refused at the launch, and nothing of it runs.
    let launch = meeting.launch(device, &meet, 1).cooperative();
    let too_large = launch.launch_checked(config(1 << 20, THREADS));
    is_cuda(
        &fails("a meeting of too many", too_large)?,
        COOPERATIVE_LAUNCH_TOO_LARGE,
    )?;
    meeting.has_met(device, "after one of too many", 3 * rounds)
}

pub(in crate::conformance) fn attributes(device: &Device, module: &Module) -> Outcome {
    let saxpy = kernel(module, "saxpy")?;
    let n = 8 * THREADS;
    let x = vec![2.0f32; n as usize];
    let x = device.clone_htod(&x).map_err(at("up"))?;
    let y = device.alloc_zeros::<f32>(x.len()).map_err(at("zeros"))?;
    let launch = || {
        let launch = device.launch_builder(&saxpy).arg(&0.5f32);
        launch.arg(&x).arg(&y).arg(&n)
    };
    let grid = config(8, THREADS);
    let new = |id, value: &[u8]| LaunchAttribute::new(id, value).expect("short");
    let word = |id, value: u32| new(id, &value.to_le_bytes());
    let window = |base: u64, bytes: u64| {
        let range = [base, bytes].map(u64::to_le_bytes);
        // All of it passes by the cache: the ratio, the policy of these accesses, and that of the others.
        let how = [1.0f32.to_bits(), 1, 0].map(u32::to_le_bytes);
        let value = [range.as_flattened(), how.as_flattened()].concat();
        new(LaunchAttribute::ACCESS_POLICY_WINDOW, &value)
    };
    // Those that change nothing about the result.
    let own = window(x.address(), u64::from(n) * 4);
    for attributes in [
        vec![new(LaunchAttribute::IGNORE, &[])],
        vec![word(LaunchAttribute::PRIORITY, 0)],
        vec![word(LaunchAttribute::COOPERATIVE, 0)],
        vec![new(
            LaunchAttribute::CLUSTER_DIMENSION,
            [1u32; 3].map(u32::to_le_bytes).as_flattened(),
        )],
        vec![own, word(LaunchAttribute::PRIORITY, 0)],
    ] {
        let ids: Vec<u32> = attributes.iter().map(|attribute| attribute.id).collect();
        let launch = attributes
            .into_iter()
            .fold(launch(), LaunchBuilder::attribute);
        let launched = launch.launch_checked(grid);
        launched.map_err(|error| format!("attributes {ids:?}: {error}"))?;
    }
    let clusters = device.attribute(CLUSTER_LAUNCH) == Some(1);
    let launched = launch().cluster([2, 1, 1]).launch_checked(grid);
    match clusters {
        true => launched.map_err(at("clusters of 2"))?,
        false => is_cuda(&fails("clusters of 2", launched)?, INVALID_CLUSTER_SIZE)?,
    }
    let sum = 5.0 + f32::from(u8::from(clusters));
    let found = device.clone_dtoh(&y).map_err(at("down"))?;
    same("launches with attributes", &found, &vec![sum; found.len()])?;
    // Objects of the mediator's process cannot be named by a guest; unknown attributes might name some.
    for id in [
        LaunchAttribute::PROGRAMMATIC_EVENT,
        LaunchAttribute::LAUNCH_COMPLETION_EVENT,
        LaunchAttribute::DEVICE_UPDATABLE_KERNEL_NODE,
        15,
        1000,
        u32::MAX,
    ] {
        let launched = launch().attribute(new(id, &[1])).launch_checked(grid);
        is(
            &fails("an attribute with an object", launched)?,
            ErrorCode::Unsupported,
        )?;
    }
    for (base, bytes) in [
        (8, 64),
        (x.address(), u64::from(n) * 4 + 1),
        (x.address(), u64::MAX),
    ] {
        let launched = launch().attribute(window(base, bytes)).launch_checked(grid);
        is_cuda(&fails("a window of other memory", launched)?, INVALID_VALUE)?;
    }
    let many = (0..).take(MAX_LAUNCH_ATTRIBUTES + 1).map(|id| new(id, &[]));
    let launched = many.fold(launch(), LaunchBuilder::attribute).launch(grid);
    let error = fails("too many attributes", launched)?;
    check(matches!(error.cause(), Cause::Input(_)), || {
        format!("too many attributes: {error}")
    })?;
    // None of those ran.
    let found = device.clone_dtoh(&y).map_err(at("down"))?;
    same("after refused launches", &found, &vec![sum; found.len()])
}

pub(in crate::conformance) fn occupancy(device: &Device, module: &Module) -> Outcome {
    let turn = kernel(module, "turn_round")?;
    let blocks = |threads, shared| {
        let blocks = turn.max_active_blocks(threads, shared);
        blocks.map_err(at("occupancy"))
    };
    let (small, large) = (blocks(32, 0)?, blocks(1024, 0)?);
    check(large >= 1 && small > large, || {
        format!("{small} blocks of 32 threads, {large} of 1024")
    })?;
    let shared = blocks(32, 40 << 10)?;
    check(shared >= 1 && shared < small, || {
        format!("{shared} blocks of 32 threads with 40 KiB, {small} without")
    })?;
    // Sizes that no block can have: a driver may also call them a wrong value.
    for (threads, shared) in [(32, u32::MAX), (1025, 0), (1 << 30, 0)] {
        match turn.max_active_blocks(threads, shared) {
            Ok(found) => check(found == 0, || {
                format!("{found} blocks of {threads} threads")
            })?,
            Err(error) => is_cuda(&error, INVALID_VALUE)?,
        }
    }
    let error = fails("blocks of no threads", turn.max_active_blocks(0, 0))?;
    is_cuda(&error, INVALID_VALUE)?;
    // The best size, with and without a limit, and with shared memory that grows with the block.
    let multiprocessors = device.attribute(MULTIPROCESSORS).unwrap_or(1);
    for (limit, per_thread) in [(0, 0), (100, 0), (0, 40), (1, 1)] {
        let sizes = turn.max_potential_block_size(|threads| threads * per_thread, limit);
        let (grid, threads) = sizes.map_err(at("the best size"))?;
        let at_once = blocks(threads, threads * per_thread)?;
        let most = if limit == 0 { 1024 } else { limit };
        check(
            (1..=most).contains(&threads)
                && i64::from(grid) == i64::from(at_once) * i64::from(multiprocessors),
            || format!("{grid} blocks of {threads} threads, where {at_once} are there at once"),
        )?;
    }
    let sizes = turn.max_potential_block_size(|_| u32::MAX, 0);
    fails("no size at all", sizes).map(drop)
}

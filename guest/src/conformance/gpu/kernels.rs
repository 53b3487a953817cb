//! Modules, launches and their parameters.

use std::time::{Duration, Instant};

use vgpu_protocol::status::Status;

use crate::client::{Device, DeviceBuffer, Function, LaunchConfig, Module};
use crate::conformance::{Ground, at, check, fails};
use crate::error::Cause;

use super::{KERNELS, Outcome, config, end, is_cuda, kernel, open_with_kernels, same};

/// A kernel with 40 KiB of shared memory.
const FIXED: &str = ".version 6.0
.target sm_50
.address_size 64
.extern .shared .align 4 .b8 more[];
.visible .entry fixed()
{
    .reg .b32 %v;
    .shared .align 4 .b8 own[40960];
    mov.u32 %v, %tid.x;
    st.volatile.shared.u32 [own], %v;
    ret;
}
";

pub(in crate::conformance) fn launches(device: &Device, module: &Module) -> Outcome {
    // In order behind each other, without a wait between.
    let saxpy = kernel(module, "saxpy")?;
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
    let places = kernel(module, "places")?;
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
    let turn = kernel(module, "turn_round")?;
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
    let data = device.clone_htod(&numbers).map_err(at("up"))?;
    let fixed = device
        .load_module(FIXED.as_bytes())
        .map_err(at("memory of its own"))?;
    let fixed = kernel(&fixed, "fixed")?;
    let how = |shared_mem_bytes| LaunchConfig {
        shared_mem_bytes,
        ..config(1, 1)
    };
    // What was allowed, and what a kernel's own memory leaves of 48 KiB.
    let refused = [
        (device.launch_builder(&turn).arg(&data), (60 << 10) + 1),
        (device.launch_builder(&fixed), (8 << 10) + 1),
    ];
    for (launch, bytes) in refused {
        let error = fails("too much shared memory", launch.launch(how(bytes)))?;
        check(matches!(error.cause(), Cause::Input(_)), || {
            error.to_string()
        })?;
    }
    let launch = device.launch_builder(&fixed);
    launch
        .launch_checked(how(8 << 10))
        .map_err(at("all of it"))?;
    let ran = device.synchronize().map_err(at("synchronize"))?;
    check(ran > Duration::ZERO, || {
        "no kernel took any time".to_owned()
    })?;
    Ok(())
}

pub(in crate::conformance) fn parameters(device: &Device, module: &Module) -> Outcome {
    let function = kernel(module, "parameters")?;
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
    // Arguments that do not fit are refused before anything is sent.
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
            .launch_builder(&kernel(module, "give_up")?)
            .launch(config(0, 1)),
        device
            .launch_builder(&kernel(module, "give_up")?)
            .launch(config(1, 1025)),
    ];
    for wrong in wrong {
        let error = fails("arguments that do not fit", wrong)?;
        check(matches!(error.cause(), Cause::Input(_)), || {
            error.to_string()
        })?;
    }
    // So is what no device takes, axis by axis.
    let give_up = kernel(module, "give_up")?;
    let sizes = |grid_dim, block_dim, shared_mem_bytes| LaunchConfig {
        grid_dim,
        block_dim,
        shared_mem_bytes,
    };
    for (config, word) in [
        (sizes((1 << 31, 1, 1), (1, 1, 1), 0), "in x"),
        (sizes((1, 1 << 16, 1), (1, 1, 1), 0), "in y"),
        (sizes((1, 1, 1 << 16), (1, 1, 1), 0), "in z"),
        (sizes((1, 1, 1), (1, 1, 65), 0), "in z"),
        (sizes((1, 1, 1), (1, 1, 1), (48 << 10) + 1), "shared"),
        (sizes((1, 1, 1), (1, 1, 1), u32::MAX), "shared"),
    ] {
        let launch = device.launch_builder(&give_up);
        let error = fails("beyond the device's limits", launch.launch(config))?;
        check(
            matches!(error.cause(), Cause::Input(_)) && error.to_string().contains(word),
            || format!("{config:?}: {error}"),
        )?;
    }
    device
        .synchronize()
        .map_err(at("after what was not sent"))?;
    Ok(())
}

pub(in crate::conformance) fn modules(device: &Device, _: &Module) -> Outcome {
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
    Ok(())
}

/// How long the device works while requests follow that must wait for it: longer than these take to arrive, also where
/// processors are busy with other things.
const LONG_WORK: Duration = Duration::from_millis(100);

/// How often the kernel `work` has to count, so that it takes as long as `wanted` here.
fn times_for(
    device: &Device,
    word: &DeviceBuffer<u32>,
    work: &Function,
    wanted: Duration,
) -> Result<u32, String> {
    let mut times = 1000u32;
    loop {
        let start = Instant::now();
        device
            .launch_builder(work)
            .arg(word)
            .arg(&times)
            .launch(config(1, 1))
            .map_err(at("launch"))?;
        device.synchronize().map_err(at("synchronize"))?;
        if start.elapsed() >= wanted || times > u32::MAX / 4 {
            return Ok(times);
        }
        times *= 2;
    }
}

pub(in crate::conformance) fn long_work(ground: &Ground<'_>) -> Outcome {
    let (device, module) = open_with_kernels(ground)?;
    let work = kernel(&module, "work")?;
    let mut word = device.alloc_zeros::<u32>(1).map_err(at("zeros"))?;
    let times = times_for(&device, &word, &work, LONG_WORK)?;
    for _ in 0..3 {
        device
            .launch_builder(&work)
            .arg(&word)
            .arg(&times)
            .launch(config(1, 1))
            .map_err(at("launch"))?;
    }
    // Frees and copies requested while the device works take effect after that work.
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

pub(in crate::conformance) fn many_launches(device: &Device, module: &Module) -> Outcome {
    let count = kernel(module, "count")?;
    let mut counter = module.variable::<u32>("counter").map_err(at("counter"))?;
    device.memcpy_htod(&[41], &mut counter).map_err(at("up"))?;
    let out = device.alloc_zeros::<u32>(4).map_err(at("zeros"))?;
    // More than any queue holds, and than requests may be under way.
    for _ in 0..3000 {
        device
            .launch_builder(&count)
            .arg(&out)
            .launch(config(1, 1))
            .map_err(at("launch"))?;
    }
    same(
        "the counter",
        &device.clone_dtoh(&counter).map_err(at("down"))?,
        &[3041],
    )?;
    Ok(())
}

//! Figures of each guest in `vgpuctl status` and `top`.

use std::time::Duration;

use vgpu_guest::{Client, Device, Function};

use crate::support::sockets::Sockets;
use crate::support::{Mediator, ONE, run, stdout, wait_until};

/// One that ends, one that does not, and one that writes to nowhere.
const PTX: &[u8] = b".version 6.0\n.target sm_50\n.address_size 64\n\
    .visible .entry quick()\n{\nret;\n}\n\
    .visible .entry endless()\n{\nagain:\nbra again;\n}\n\
    .visible .entry stray()\n{\n.reg .b64 %at;\nmov.u64 %at, 64;\nst.global.u32 [%at], 7;\nret;\n}\n";

fn device(sockets: &Sockets, name: &str) -> Device {
    let client = Client::connect(&[sockets.tcp()], &sockets.options_of(name)).unwrap();
    Device::new(client).unwrap()
}

fn kernel(device: &Device, name: &str) -> Function {
    let module = device.load_module(PTX).unwrap();
    module.load_function(name).unwrap()
}

fn guest(mediator: &Mediator, name: &str) -> serde_json::Value {
    let status = mediator.status();
    let guests = status["guests"].as_array().unwrap();
    let guest = guests.iter().find(|guest| guest["guest"] == name);
    guest.cloned().unwrap_or_default()
}

#[test]
fn each_guest_has_its_memory_queue_time_errors_and_kills() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = Sockets::new(directory.path());
    let rules = directory.path().join("rules.toml");
    let lines = "[limits]\nmemory_mib = 8\n[guests]\ntester = { allow = true, memory_mib = 4 }\n";
    std::fs::write(&rules, lines).unwrap();
    let mediator = sockets.start(&["--config", rules.to_str().unwrap()]);
    let (tester, other) = (device(&sockets, "tester"), device(&sockets, "other"));
    let data = tester.alloc_zeros::<u8>(1 << 20).unwrap();
    tester.synchronize().unwrap();
    let of = |name: &str| guest(&mediator, name);
    let shown = of("tcp tester");
    let used = shown["memory"].as_u64().unwrap();
    assert!((1 << 20..4 << 20).contains(&used), "{shown}");
    assert_eq!(shown["memory_limit"], 4 << 20);
    assert_eq!(shown["queue"], 0);
    assert_eq!(of("tcp other")["memory_limit"], 8 << 20);
    assert_eq!(of("tcp other")["memory"], 0);

    // While a kernel runs, it and whoever waits for it are the queue.
    let endless = kernel(&tester, "endless");
    let launch = tester
        .launch_builder(&endless)
        .deadline(Duration::from_secs(2));
    launch.launch(ONE).unwrap();
    let waiter = tester.lane().unwrap();
    let waiting = std::thread::spawn(move || waiter.synchronize().unwrap_err().to_string());
    wait_until("the queue is seen", || {
        of("tcp tester")["queue"].as_u64() >= Some(2)
    });
    assert_eq!(of("tcp other")["queue"], 0);
    let error = waiting.join().unwrap();
    assert!(error.contains("CUDA_ERROR_LAUNCH_TIMEOUT"), "{error}");
    // It is a kill, and an error of a request that had no answer.
    let shown = of("tcp tester");
    assert_eq!(shown["usage"]["kernels_killed"], 1, "{shown}");
    assert!(
        shown["usage"]["failed_requests"].as_u64() >= Some(2),
        "{shown}"
    );
    assert!(
        shown["usage"]["device_ns"].as_u64() > Some(1_000_000_000),
        "{shown}"
    );
    assert_eq!(shown["sessions_killed"], 0);

    // A stray write is an error and no kill; nothing of it is anybody else's.
    let stray = kernel(&other, "stray");
    other.launch_builder(&stray).launch(ONE).unwrap();
    other.synchronize().unwrap_err();
    let shown = of("tcp other");
    assert_eq!(shown["usage"]["kernels_killed"], 0);
    assert!(
        shown["usage"]["failed_requests"].as_u64() >= Some(1),
        "{shown}"
    );
    // A launch is over before its kernel is: it went well, and failed later. Who waited for it failed at once.
    let metrics = stdout(&run(mediator.vgpuctl().arg("metrics")));
    for (name, op, result) in [
        ("tester", "launch", "ok"),
        ("tester", "launch", "failed_later"),
        ("other", "launch", "failed_later"),
    ] {
        let of = format!("{{guest=\"tcp:{name}\",op=\"{op}\",result=\"{result}\"}} 1");
        let line = format!("vgpu_requests_total{of}");
        assert!(metrics.lines().any(|it| it == line), "{line}: {metrics}");
    }
    let failed = metrics.lines().filter(|line| {
        line.starts_with("vgpu_requests_total{guest=\"tcp:tester\"")
            && line.contains("result=\"failed\"")
    });
    assert!(failed.count() >= 1, "{metrics}");
    let status = mediator.status();
    let sum: u64 = ["tcp tester", "tcp other"]
        .map(|name| of(name)["usage"]["device_ns"].as_u64().unwrap())
        .iter()
        .sum();
    assert_eq!(status["usage"]["device_ns"], sum);

    // A kick is a kill.
    let kicked = run(mediator.vgpuctl().args(["kick", "other"]));
    assert!(kicked.status.success());
    wait_until("it is over", || of("tcp other")["sessions"] == 0);
    assert_eq!(of("tcp other")["sessions_killed"], 1);
    assert_eq!(of("tcp other")["memory_limit"], 0, "nothing is left of it");

    let table = stdout(&run(mediator.vgpuctl().arg("status")));
    for word in ["KILLS", "MEMORY", "QUEUE", "SHARE", " MB of 4.2 MB"] {
        assert!(table.contains(word), "{table}");
    }
    drop((data, endless, stray));
    drop((tester, other));
    mediator.stop();
}

#[test]
fn time_counts_while_a_kernel_still_runs() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = Sockets::new(directory.path());
    let mediator = sockets.start(&[]);
    let tester = device(&sockets, "tester");
    let endless = kernel(&tester, "endless");
    let launch = tester.launch_builder(&endless);
    launch
        .deadline(3 * crate::support::WATCHDOG)
        .launch(ONE)
        .unwrap();
    let waiter = tester.lane().unwrap();
    let waiting = std::thread::spawn(move || waiter.synchronize().unwrap_err());
    // Over two beats of half a second, so that it goes on growing.
    let usage = || guest(&mediator, "tcp tester")["usage"].clone();
    let mut last = 0;
    for _grown in 0..2 {
        wait_until("it is seen at work", || {
            let now = usage()["device_ns"].as_u64().unwrap_or(0);
            std::mem::replace(&mut last, now) < now
        });
    }
    assert_eq!(usage()["kernels_killed"], 0);
    let out = run(mediator.vgpuctl().args(["kick", "tcp tester"]));
    assert!(out.status.success(), "{}", stdout(&out));
    waiting.join().unwrap();
    drop((endless, tester));
    mediator.stop();
}

#[test]
fn top_shows_guests_before_their_sessions() {
    let directory = tempfile::tempdir().unwrap();
    let mediator = Mediator::start(directory.path(), &[]);
    let device = Device::new(mediator.connect().unwrap()).unwrap();
    let quick = kernel(&device, "quick");
    device.launch_builder(&quick).launch(ONE).unwrap();
    device.synchronize().unwrap();
    let top = run(mediator.vgpuctl().args(["--json", "top", "--once"]));
    let top: serde_json::Value = serde_json::from_slice(&top.stdout).unwrap();
    let guest = &top["guests"][0];
    for name in [
        "guest",
        "sessions",
        "memory",
        "memory_limit",
        "queue",
        "device_percent",
        "device_share_percent",
        "requests_per_s",
        "failed_per_s",
        "bytes_in_per_s",
        "bytes_out_per_s",
        "kills",
    ] {
        assert!(guest.get(name).is_some(), "{name}: {top}");
    }
    assert_eq!(
        (&guest["sessions"], &guest["kills"]),
        (&1.into(), &0.into())
    );
    let text = stdout(&run(mediator.vgpuctl().args(["top", "--once"])));
    assert!(text.find("KILLS") < text.find("PROGRAM"), "{text}");
    drop((quick, device));
    mediator.stop();
}

#[test]
fn a_worker_that_is_killed_counts_against_its_guest() {
    let directory = tempfile::tempdir().unwrap();
    let mediator = Mediator::start(directory.path(), &[]);
    let client = mediator.connect().unwrap();
    let worker = mediator.wait_for_workers(1)[0];
    crate::support::signal(worker, nix::sys::signal::Signal::SIGKILL);
    wait_until("it is booked", || {
        mediator.status()["guests"][0]["sessions"] == 0
    });
    assert_eq!(mediator.status()["guests"][0]["sessions_killed"], 1);
    drop(client);
    // One that ends well does not.
    mediator.connect().unwrap().goodbye().unwrap();
    mediator.wait_for_workers(0);
    assert_eq!(mediator.status()["guests"][0]["sessions_killed"], 1);
    mediator.stop();
}

//! Real mediators one behind the other: guest → mediator with `--executor relay:local:` → mediator.

use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;
use vgpu_guest::{Client, Device, Options};
use vgpu_protocol::status::ErrorCode;

use crate::refusal;
use crate::support::{
    Mediator, ONE, add, exchange_and, is_running, options, run, signal, stderr, stdout, wait_until,
};

/// A mediator with the CPU, and one that relays to it.
struct Chain {
    near: Mediator,
    far: Option<Mediator>,
    directories: [TempDir; 2],
}

impl Chain {
    fn start(near_flags: &[&str], far_flags: &[&str]) -> Self {
        let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let far = Mediator::start(directories[1].path(), far_flags);
        let near = relay_to(&directories[0], &far, near_flags);
        Self {
            near,
            far: Some(far),
            directories,
        }
    }

    fn far(&self) -> &Mediator {
        self.far.as_ref().expect("the far mediator runs")
    }

    fn crash_far(&mut self) {
        self.far.take().expect("it runs").crash();
    }

    fn start_far(&mut self) {
        self.far = Some(Mediator::start(self.directories[1].path(), &[]));
    }
}

fn relay_to(directory: &TempDir, far: &Mediator, flags: &[&str]) -> Mediator {
    let executor = format!("relay:{}", far.endpoint());
    let flags = [&["--executor", &executor], flags].concat();
    Mediator::start(directory.path(), &flags)
}

/// A configuration file with these limits.
fn limits(directory: &TempDir, limits: &str) -> String {
    let path = directory.path().join("limits.toml");
    std::fs::write(&path, format!("[limits]\n{limits}\n")).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Both mediators' workers end.
fn wait_for_no_workers(chain: &Chain) {
    chain.near.wait_for_workers(0);
    chain.far().wait_for_workers(0);
}

#[test]
fn vectors_of_all_sizes_by_two_guests_at_once() {
    let chain = Chain::start(&[], &[]);
    let sizes = [1, 7, 1000, 65_535, 65_537, 1_048_576, 1_000_003];
    thread::scope(|scope| {
        for _guest in 0..2 {
            scope.spawn(|| {
                let mut client = chain.near.connect().unwrap();
                for n in sizes {
                    add(&mut client, n).unwrap();
                    client.ping(b"between").unwrap();
                }
                client.goodbye().unwrap();
            });
        }
    });
    wait_for_no_workers(&chain);
    for mediator in [&chain.near, chain.far()] {
        assert_eq!(mediator.status()["usage"]["failed_requests"], 0);
    }
    assert_eq!(chain.near.status()["sessions_started"], 2);
    // One more there: what the near one asked when it started.
    assert_eq!(chain.far().status()["sessions_started"], 3);
    assert!(chain.near.status()["usage"]["device_ns"].as_u64() > Some(0));
}

#[test]
fn a_relay_to_a_relay() {
    let chain = Chain::start(&[], &[]);
    let directory = tempfile::tempdir().unwrap();
    let first = relay_to(&directory, &chain.near, &[]);
    let mut client = first.connect().unwrap();
    for n in [1, 1_048_576] {
        add(&mut client, n).unwrap();
    }
    client.ping(&[7; 4096]).unwrap();
    assert_eq!(client.info().unwrap().executor, "relay");
    client.goodbye().unwrap();
}

#[test]
fn info_says_what_is_behind_and_so_does_status() {
    let chain = Chain::start(&[], &[]);
    let mut client = chain.near.connect().unwrap();
    let info = client.info().unwrap();
    let theirs = chain.far().connect().unwrap().info().unwrap();
    assert_eq!(info.executor, "relay");
    assert_eq!(info.device, theirs.device);
    let wanted = format!("cpu at {}: {}", chain.far().endpoint(), theirs.reason);
    assert_eq!(info.reason.as_str(), wanted);
    let executor = &chain.near.status()["executor"];
    assert_eq!(executor["kind"], "relay");
    assert_eq!(executor["device"], theirs.device.as_str());
    assert_eq!(executor["reason"], wanted);
    let text = stdout(&run(chain.near.vgpuctl().arg("status")));
    assert!(text.contains("relay") && text.contains("cpu at "), "{text}");
    // What CUDA needs is the other machine's business.
    let text = stdout(&run(chain.near.vgpuctl().arg("doctor")));
    assert!(text.contains("CUDA: not needed here: cpu at "), "{text}");
}

/// Hello reports the limits of both mediators: see the relay's own tests for terms that differ.
#[test]
fn the_limits_of_the_one_in_front_come_first() {
    let near = tempfile::tempdir().unwrap();
    let near_limits = limits(&near, "max_sessions_per_guest = 1\nmax_sessions = 1");
    let chain = Chain::start(&["--config", &near_limits], &[]);
    let mut client = chain.near.connect().unwrap();
    add(&mut client, 5000).unwrap();
    // The mediator in front turns the second one away; the one behind never hears of it.
    let started = chain.far().status()["sessions_started"].clone();
    let (status, _) = refusal(&chain.near.connect().unwrap_err());
    assert_eq!(status, ErrorCode::Busy.into());
    assert_eq!(chain.far().status()["sessions_started"], started);
    client.goodbye().unwrap();
}

#[test]
fn a_far_mediator_that_is_full_is_busy() {
    let directory = tempfile::tempdir().unwrap();
    let far_limits = limits(&directory, "max_sessions = 1\nmax_sessions_per_guest = 1");
    let chain = Chain::start(&[], &["--config", &far_limits]);
    // The session by which the near one found out what is behind it may still be ending.
    chain.far().wait_for_workers(0);
    let first = chain.near.connect().unwrap();
    let error = chain.near.connect().unwrap_err();
    let (status, text) = refusal(&error);
    assert_eq!(status, ErrorCode::Busy.into(), "{text}");
    assert!(text.contains("limit of sessions"), "{text}");
    first.goodbye().unwrap();
    chain.far().wait_for_workers(0);
    add(&mut chain.near.connect().unwrap(), 10).unwrap();
}

#[test]
fn a_far_mediator_killed_in_the_middle_is_named_and_its_successor_serves() {
    let mut chain = Chain::start(&[], &[]);
    let mut client = chain.near.connect().unwrap();
    let mut idle = chain.near.connect().unwrap();
    idle.ping(b"").unwrap();
    let place = chain.far().endpoint().to_string();
    let error = exchange_and(&mut client, || chain.crash_far()).unwrap_err();
    let (status, text) = refusal(&error);
    assert_eq!(status, ErrorCode::BackendLost.into(), "{text}");
    assert!(text.contains(&place) && text.contains("is gone"), "{text}");
    assert!(text.contains("connect again"), "{text}");
    // A session without a request ends as well, and a new one is refused at Hello.
    chain.near.wait_for_workers(0);
    let (status, _) = refusal(&idle.ping(b"").unwrap_err());
    assert_eq!(status, ErrorCode::BackendLost.into());
    let error = chain.near.connect().unwrap_err();
    let (status, text) = refusal(&error);
    assert_eq!(status, ErrorCode::BackendLost.into(), "{text}");
    assert!(text.contains("cannot be reached"), "{text}");

    chain.start_far();
    add(&mut chain.near.connect().unwrap(), 100_000).unwrap();
}

#[test]
fn a_far_worker_killed_in_the_middle_harms_no_other_session() {
    let chain = Chain::start(&[], &[]);
    let mut client = chain.near.connect().unwrap();
    let worker = chain.far().wait_for_workers(1)[0];
    let mut other = chain.near.connect().unwrap();
    let kill_it = || signal(worker, Signal::SIGKILL);
    let (status, _) = refusal(&exchange_and(&mut client, kill_it).unwrap_err());
    assert_eq!(status, ErrorCode::BackendLost.into());
    add(&mut other, 100_000).unwrap();
    add(&mut chain.near.connect().unwrap(), 10).unwrap();
}

/// One kernel that runs for five seconds, and more behind it than a device is given at once.
#[test]
fn a_call_behind_a_full_queue_is_waited_for() {
    const PTX: &[u8] = b".version 6.0\n.target sm_50\n.address_size 64\n\
        .visible .entry wait(.param .u64 ns)\n{\n.reg .pred %p;\n.reg .b64 %n, %end, %now;\n\
        ld.param.u64 %n, [ns];\nmov.u64 %end, %globaltimer;\nadd.u64 %end, %end, %n;\n\
        more:\nmov.u64 %now, %globaltimer;\nsetp.lt.u64 %p, %now, %end;\n@%p bra more;\nret;\n}\n";
    let chain = Chain::start(&[], &[]);
    let hurried = Options {
        stall_timeout: Duration::from_secs(2),
        ..options()
    };
    for mediator in [chain.far(), &chain.near] {
        let client = Client::connect(&[mediator.endpoint()], &hurried).unwrap();
        let device = Device::new(client).unwrap();
        let wait = device
            .load_module(PTX)
            .unwrap()
            .load_function("wait")
            .unwrap();
        for launch in 0..1500u64 {
            let ns = if launch == 0 { 5_000_000_000u64 } else { 0 };
            device.launch_builder(&wait).arg(&ns).launch(ONE).unwrap();
        }
        device.synchronize().unwrap();
    }
}

#[test]
fn a_far_mediator_that_hangs_is_named_within_the_deadline() {
    let chain = Chain::start(&[], &[]);
    let patient = Options {
        stall_timeout: Duration::from_secs(2),
        ..options()
    };
    let connect = || Client::connect(&[chain.near.endpoint()], &patient).unwrap();
    let mut client = connect();
    let worker = chain.far().wait_for_workers(1)[0];
    let error = exchange_and(&mut client, || signal(worker, Signal::SIGSTOP)).unwrap_err();
    let (status, text) = refusal(&error);
    assert_eq!(status, ErrorCode::BackendLost.into(), "{text}");
    assert!(text.contains("has not moved for 1500 ms"), "{text}");
    signal(worker, Signal::SIGCONT);
    wait_for_no_workers(&chain);
    add(&mut connect(), 1000).unwrap();
}

#[test]
fn a_far_mediator_that_does_not_answer_is_named_in_the_guests_own_time() {
    let chain = Chain::start(&[], &[]);
    chain.far().signal(Signal::SIGSTOP);
    let hurried = Options {
        connect_timeout: Duration::from_secs(3),
        ..options()
    };
    let error = Client::connect(&[chain.near.endpoint()], &hurried).unwrap_err();
    chain.far().signal(Signal::SIGCONT);
    let (status, text) = refusal(&error);
    assert_eq!(status, ErrorCode::BackendLost.into(), "{text}");
    assert!(text.contains("the mediator behind this one"), "{text}");
    wait_for_no_workers(&chain);
    add(&mut chain.near.connect().unwrap(), 1000).unwrap();
}

#[test]
fn a_guest_killed_or_kicked_in_the_middle_leaves_nothing_behind() {
    let chain = Chain::start(&[], &[]);
    let mut client = chain.near.connect().unwrap();
    let kick = || {
        let kicked = run(chain.near.vgpuctl().args(["kick", "local"]));
        assert!(kicked.status.success(), "{}", stderr(&kicked));
    };
    // It may finish before it is noticed; the session is over either way.
    let _ = exchange_and(&mut client, kick);
    wait_for_no_workers(&chain);
    assert!(client.ping(b"").is_err());

    let client = chain.near.connect().unwrap();
    chain.far().wait_for_workers(1);
    drop(client);
    wait_for_no_workers(&chain);
}

#[test]
fn stopping_the_near_one_says_so_and_ends_both_sessions() {
    let chain = Chain::start(&[], &[]);
    let mut client = chain.near.connect().unwrap();
    client.ping(b"").unwrap();
    let Chain { near, far, .. } = &chain;
    near.signal(Signal::SIGTERM);
    wait_until("the near mediator stops", || !is_running(near.pid()));
    let (status, _) = refusal(&client.ping(b"").unwrap_err());
    assert_eq!(status, ErrorCode::Busy.into());
    far.as_ref().unwrap().wait_for_workers(0);
}

#[test]
fn a_far_mediator_that_stops_in_good_order_lets_its_requests_finish() {
    let mut chain = Chain::start(&[], &[]);
    let mut client = chain.near.connect().unwrap();
    let far = chain.far.take().unwrap();
    exchange_and(&mut client, || far.signal(Signal::SIGTERM)).unwrap();
    chain.far = Some(far);
    let error = client.ping(b"").unwrap_err();
    let (status, text) = refusal(&error);
    assert_eq!(status, ErrorCode::BackendLost.into(), "{text}");
}

#[test]
fn a_relay_may_start_first() {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let endpoint = format!(
        "relay:local:{}",
        directories[1].path().join("vgpu.sock").display()
    );
    let near = Mediator::start(directories[0].path(), &["--executor", &endpoint]);
    wait_until("the near mediator says so", || {
        near.log().contains("cannot be reached")
    });
    assert_eq!(near.status()["executor"]["kind"], "relay");
    refusal(&near.connect().unwrap_err());
    let _far = Mediator::start(directories[1].path(), &[]);
    add(&mut near.connect().unwrap(), 1000).unwrap();
    // What is behind is found out, too.
    wait_until("the status tells the device", || {
        near.status()["executor"]["reason"]
            .as_str()
            .is_some_and(|reason| reason.starts_with("cpu at local:"))
    });
}

#[test]
fn commands_of_the_two_files_are_run_behind_as_well() {
    let mut chain = Chain::start(&[], &[]);
    let served = chain.directories[0].path().join("served");
    std::fs::create_dir(&served).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let listen = format!("file:{}", served.display());
    let _guide = relay_to(&directory, chain.far(), &["--listen", &listen]);
    let ask = |command: &str, wanted: &str| {
        std::fs::write(served.join("command.txt"), command).unwrap();
        wait_until(wanted, || {
            let response = std::fs::read_to_string(served.join("response.txt"));
            response.unwrap_or_default().starts_with(wanted)
        });
    };
    let passed = "1:Vector add PASSED: 1024 elements, 0 errors (relay executor, ";
    wait_until("the directory is served", || {
        served.join("response.txt").exists()
    });
    ask("1\n", passed);
    chain.crash_far();
    ask("1\n", "2:");
    ask("2\n", "2:");
    chain.start_far();
    ask("1\n", passed);
}

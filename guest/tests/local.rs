//! Sessions over the real `local:` ring, with the mediator's own session code at the other end, in
//! this process.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vchan::Channel;
use vchan::local::{Listener, connect_on};
use vchan::region::Regions;
use vgpu_guest::{Cause, Client, Device, Endpoint, LaunchConfig, Options, Retry, Side};
use vgpu_mediator::executor::Executor;
use vgpu_mediator::executor::cpu::CpuExecutor;
use vgpu_mediator::session::{
    INITIAL_CREDIT, Refusal, SessionEnd, Settings, StopFlag, Stream, Terms, Timeouts, serve,
};
use vgpu_mediator::usage::Observed;
use vgpu_protocol::op::{Features, OpSet};
use vgpu_protocol::status::ErrorCode;

/// Longer than any wait that is expected to succeed.
const WATCHDOG: Duration = Duration::from_secs(30);

fn settings() -> Settings {
    Settings {
        terms: Terms {
            max_lanes: 16.try_into().unwrap(),
            max_requests: 64.try_into().unwrap(),
            max_handles: 4,
            initial_credit: INITIAL_CREDIT,
            features: Features::ALL,
        },
        timeouts: Timeouts {
            hello: WATCHDOG,
            idle: WATCHDOG,
            stall: WATCHDOG,
            request: None,
        },
        operations: OpSet::ALL,
        epoch: 77,
        reason: None,
        refusal: None,
    }
}

/// A mediator that serves one session at `socket`.
fn mediator(socket: &Path, settings: Settings) -> JoinHandle<SessionEnd> {
    let listener = Listener::bind(socket).expect("a free path");
    thread::spawn(move || serve_one(&listener, &settings))
}

fn serve_one(listener: &Listener, settings: &Settings) -> SessionEnd {
    let deadline = Instant::now() + WATCHDOG;
    let stream = listener.accept(deadline).expect("a guest");
    let channel = connect_on(stream, deadline).expect("a channel");
    serve_channel(channel, settings, None)
}

/// Serves a session, with memory beside the ring where there are `regions`.
fn serve_channel(channel: Channel, settings: &Settings, regions: Option<Regions>) -> SessionEnd {
    let mut stream = Stream::from(channel);
    let mut executor = || {
        let mut cpu = CpuExecutor::new("for a test");
        if let Some(regions) = regions.clone() {
            cpu.set_regions(regions);
        }
        Ok(Box::new(cpu) as _)
    };
    let (observed, stop) = (Observed::default(), StopFlag::default());
    serve(&mut stream, &mut executor, settings, &observed, &stop)
}

fn place() -> (TempDir, PathBuf, Endpoint) {
    let directory = TempDir::new().expect("a directory");
    let socket = directory.path().join("v.sock");
    let endpoint = Endpoint::Local(socket.clone());
    (directory, socket, endpoint)
}

fn vectors(elements: usize) -> (Vec<f32>, Vec<f32>) {
    (0..elements)
        .map(|i| (i as f32 * 0.37, 1e6 / (i as f32 + 1.0)))
        .unzip()
}

fn add_and_check(client: &mut Client, elements: usize) {
    let (a, b) = vectors(elements);
    let mut out = vec![f32::NAN; elements];
    let report = client.vector_add(&a, &b, &mut out).expect("a sum");
    assert_eq!(report.elements, elements);
    assert!(
        out.iter()
            .zip(a.iter().zip(&b))
            .all(|(out, (a, b))| out.to_bits() == (a + b).to_bits())
    );
}

#[test]
fn a_whole_session() {
    let (_directory, socket, endpoint) = place();
    let mediator = mediator(&socket, settings());
    let mut client =
        Client::connect(std::slice::from_ref(&endpoint), &Options::default()).expect("a session");
    assert_eq!(client.endpoint(), Some(&endpoint));
    assert_eq!(client.epoch(), 77);
    assert_eq!(client.info().expect("info").executor.as_str(), "cpu");
    client.ping(&[1; 4096]).expect("an echo");
    client.ping_quiet(b"hush").expect("sent");
    let fence = client.fence().expect("a fence");
    assert!(fence.failures.as_slice().is_empty());
    for elements in [1, 1000, (1 << 14) + 1, 1_000_003] {
        add_and_check(&mut client, elements);
    }
    client.goodbye().expect("a goodbye");
    assert!(matches!(mediator.join(), Ok(SessionEnd::Goodbye)));
}

/// What `vgpu info` says of copies, as an object and to people, in sessions with these settings.
fn copies_by_info(settings: &Settings) -> (String, String) {
    let info = |flags: &[&str]| {
        let (_directory, socket, endpoint) = place();
        let listener = Listener::bind(&socket).expect("a free path");
        let settings = settings.clone();
        let mediator = thread::spawn(move || {
            let deadline = Instant::now() + WATCHDOG;
            let stream = listener.accept(deadline).expect("a guest");
            let channel = connect_on(stream, deadline).expect("a channel");
            let regions = channel.regions();
            serve_channel(channel, &settings, Some(regions))
        });
        let output = Command::new(env!("CARGO_BIN_EXE_vgpu"))
            .args(["--endpoint", &endpoint.to_string()])
            .args(flags)
            .arg("info")
            .output()
            .expect("vgpu runs");
        assert!(output.status.success(), "{output:?}");
        assert!(matches!(mediator.join(), Ok(SessionEnd::Goodbye)));
        String::from_utf8(output.stdout).expect("text")
    };
    let object: serde_json::Value = serde_json::from_str(&info(&["--json"])).expect("an object");
    let text = info(&[]);
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("copies    "));
    (
        object["copies"].as_str().expect("a word").to_owned(),
        line.expect("a line of its own").to_owned(),
    )
}

#[test]
fn info_says_how_copies_go() {
    // A processor copies nothing by itself.
    let (word, line) = copies_by_info(&settings());
    assert_eq!(
        (word.as_str(), line.as_str()),
        (
            "shared",
            "by the mediator: pinned buffers in memory that both sides share, others through the stream"
        )
    );
    let mut without_regions = settings();
    without_regions.terms.features = Features(Features::ALL.0 & !Features::REGIONS.0);
    let (word, line) = copies_by_info(&without_regions);
    assert_eq!(
        (word.as_str(), line.as_str()),
        ("stream", "through the session's stream")
    );
}

#[test]
fn a_ring_smaller_than_a_chunk() {
    let (_directory, socket, endpoint) = place();
    let mediator = mediator(&socket, settings());
    let options = Options {
        ring_bytes: Some(4096),
        ..Options::default()
    };
    let mut client = Client::connect(&[endpoint], &options).expect("a session");
    add_and_check(&mut client, 300_000);
    // Without a goodbye: no fault of the guest's.
    drop(client);
    assert!(matches!(
        mediator.join(),
        Ok(SessionEnd::GuestClosed(false))
    ));
}

#[test]
fn several_threads_share_a_session_over_rings_of_any_size() {
    for ring_bytes in [Some(4096), None] {
        let (_directory, socket, endpoint) = place();
        let mediator = mediator(&socket, settings());
        let options = Options {
            ring_bytes,
            ..Options::default()
        };
        let client = Client::connect(&[endpoint], &options).expect("a session");
        thread::scope(|scope| {
            for number in 0..5 {
                let mut lane = client.lane().expect("one more lane");
                scope.spawn(move || {
                    for elements in [1, 1000, (1 << 14) + 1, 200_003] {
                        add_and_check(&mut lane, elements + number);
                        lane.ping(&vec![7; 800 * number]).expect("an echo");
                        lane.ping_quiet(b"hush").expect("sent");
                        lane.fence().expect("a fence");
                    }
                });
            }
        });
        client.goodbye().expect("a goodbye");
        assert!(matches!(mediator.join(), Ok(SessionEnd::Goodbye)));
    }
}

#[test]
fn the_first_endpoint_that_answers_is_taken_and_the_others_are_told() {
    let (directory, socket, endpoint) = place();
    let _mediator = mediator(&socket, settings());
    let absent = Endpoint::Local(directory.path().join("absent.sock"));
    let files = Endpoint::File(directory.path().to_owned());
    let endpoints = [absent.clone(), files.clone(), endpoint.clone()];
    let client = Client::connect(&endpoints, &Options::default()).expect("a session");
    assert_eq!(client.endpoint(), Some(&endpoint));
    let skipped: Vec<_> = client.skipped().iter().map(|at| &at.endpoint).collect();
    assert_eq!(skipped, [&absent, &files]);
    assert!(
        client.skipped()[0]
            .to_string()
            .contains("no mediator listens")
    );
}

#[test]
fn a_refused_guest_hears_why() {
    let (_directory, socket, endpoint) = place();
    let refusal = Refusal {
        code: ErrorCode::Denied,
        text: "no guests on Sundays".into(),
    };
    let _mediator = mediator(
        &socket,
        Settings {
            refusal: Some(refusal),
            ..settings()
        },
    );
    let error = Client::connect(&[endpoint], &Options::default()).expect_err("denied");
    assert!(
        error.to_string().contains("E_DENIED: no guests on Sundays"),
        "{error}"
    );
    let Cause::NoEndpoint(skipped) = error.cause() else {
        panic!("{error}")
    };
    assert_eq!(
        (skipped[0].error.side(), skipped[0].error.retry()),
        (Side::Mediator, Retry::No)
    );
}

#[test]
fn a_vector_add_tells_how_far_it_is_and_how_long_the_device_worked() {
    let (_directory, socket, endpoint) = place();
    let _mediator = mediator(&socket, settings());
    let mut client = Client::connect(&[endpoint], &Options::default()).expect("a session");
    let n = 1_200_000;
    let (a, b) = vectors(n);
    let (mut out, mut seen) = (vec![f32::NAN; n], Vec::new());
    let report = client
        .vector_add_watched(&a, &b, &mut out, |done| seen.push(done))
        .expect("a sum");
    assert_eq!((report.elements, seen.last()), (n, Some(&n)));
    assert!(seen.is_sorted());
    assert!(Duration::ZERO < report.device_time && report.device_time < report.elapsed);
}

#[test]
fn kernels_that_run_side_by_side_count_once_in_the_devices_time() {
    let (_directory, socket, endpoint) = place();
    let _mediator = mediator(&socket, settings());
    let client = Client::connect(&[endpoint], &Options::default()).expect("a session");
    let device = Device::new(client).expect("a device");
    let kernels = include_bytes!("../src/conformance/kernels.ptx");
    let module = device.load_module(kernels).expect("a module");
    let work = module.load_function("work").expect("a kernel");
    let words = [(); 2].map(|()| device.clone_htod(&[0u32]).expect("up"));
    let streams = [(); 2].map(|()| device.new_stream().expect("a stream"));
    let one = LaunchConfig {
        grid_dim: (1, 1, 1),
        block_dim: (1, 1, 1),
        shared_mem_bytes: 0,
    };
    let start = Instant::now();
    for _ in 0..4 {
        for (stream, word) in streams.iter().zip(&words) {
            let launch = stream.launch_builder(&work).arg(word).arg(&100_000u32);
            launch.launch(one).expect("a launch");
        }
    }
    let worked = device.synchronize().expect("done");
    assert!(Duration::ZERO < worked && worked <= start.elapsed());
}

/// Each would otherwise name its modules as the other does.
#[test]
fn two_devices_of_one_session_share_its_handles() {
    let (_directory, socket, endpoint) = place();
    let _mediator = mediator(&socket, settings());
    let client = Client::connect(&[endpoint], &Options::default()).expect("a session");
    let kernels = include_bytes!("../examples/saxpy.ptx");
    let devices = [(); 2].map(|()| Device::new(client.lane().expect("a lane")).expect("a device"));
    let modules = devices
        .each_ref()
        .map(|device| device.load_module(kernels).expect("a module"));
    let saxpy = modules[0].load_function("saxpy").expect("a kernel");
    let y = devices[0].clone_htod(&[1.0f32; 100]).expect("up");
    let x = devices[1].clone_htod(&[2.0f32; 100]).expect("up");
    let launch = devices[1]
        .launch_builder(&saxpy)
        .arg(&3.0f32)
        .arg(&x)
        .arg(&y);
    launch
        .arg(&100u32)
        .launch(LaunchConfig::for_num_elems(100))
        .expect("a launch");
    assert_eq!(devices[0].clone_dtoh(&y).expect("down"), [7.0; 100]);
}

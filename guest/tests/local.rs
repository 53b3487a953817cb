//! Sessions over the real `local:` ring, with the mediator's own session code at the other end, in
//! this process.

use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vchan::local::{Listener, connect_on};
use vgpu_guest::{Cause, Client, Endpoint, Options, Retry, Side};
use vgpu_mediator::executor::cpu::CpuExecutor;
use vgpu_mediator::session::{Refusal, SessionEnd, Settings, StopFlag, serve};
use vgpu_mediator::usage::Observed;
use vgpu_protocol::message::Limits;
use vgpu_protocol::status::ErrorCode;

/// Longer than any wait that is expected to succeed.
const WATCHDOG: Duration = Duration::from_secs(30);

fn settings() -> Settings {
    Settings {
        limits: Limits {
            max_body: 1 << 20,
            max_lanes: 1,
            max_requests: 4,
            max_handles: 4,
            max_chunk_elements: 1 << 16,
            preferred_chunk_elements: 1 << 14,
            max_elements: 1 << 28,
        },
        epoch: 77,
        hello_timeout: WATCHDOG,
        idle_timeout: WATCHDOG,
        stall_timeout: WATCHDOG,
        reason: None,
        refusal: None,
    }
}

/// A mediator that serves one session at `socket`.
fn mediator(socket: &Path, settings: Settings) -> JoinHandle<SessionEnd> {
    let listener = Listener::bind(socket).expect("a free path");
    thread::spawn(move || {
        let deadline = Instant::now() + WATCHDOG;
        let stream = listener.accept(deadline).expect("a guest");
        let mut channel = connect_on(stream, deadline).expect("a channel");
        let mut executor = || Ok(Box::new(CpuExecutor::new("for a test")) as _);
        let (observed, stop) = (Observed::default(), StopFlag::default());
        serve(&mut channel, &mut executor, &settings, &observed, &stop)
    })
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
    assert_eq!(client.info().expect("info").executor, "cpu");
    client.ping(&[1; 4096]).expect("an echo");
    client.ping_quiet(b"hush").expect("sent");
    assert!(client.fence().expect("a fence").failures.is_empty());
    for elements in [1, 1000, (1 << 14) + 1, 1_000_003] {
        add_and_check(&mut client, elements);
    }
    client.goodbye().expect("a goodbye");
    assert!(matches!(mediator.join(), Ok(SessionEnd::Goodbye)));
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
fn more_than_the_mediator_takes_is_refused_and_the_session_goes_on() {
    let (_directory, socket, endpoint) = place();
    let mut settings = settings();
    settings.limits.max_elements = 1000;
    let mediator = mediator(&socket, settings);
    let mut client = Client::connect(&[endpoint], &Options::default()).expect("a session");
    let (a, b) = vectors(1001);
    let error = client
        .vector_add(&a, &b, &mut [0.0; 1001])
        .expect_err("too many");
    assert_eq!((error.side(), error.epoch()), (Side::Guest, Some(77)));
    add_and_check(&mut client, 1000);
    client.goodbye().expect("a goodbye");
    assert!(matches!(mediator.join(), Ok(SessionEnd::Goodbye)));
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
    let left: Vec<_> = client.left().iter().map(|left| &left.endpoint).collect();
    assert_eq!(left, [&absent, &files]);
    assert!(client.left()[0].to_string().contains("no mediator listens"));
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
    let Cause::NoEndpoint(left) = error.cause() else {
        panic!("{error}")
    };
    assert_eq!(
        (left[0].error.side(), left[0].error.retry()),
        (Side::Mediator, Retry::No)
    );
}

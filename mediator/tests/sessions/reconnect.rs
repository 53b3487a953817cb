//! A connection that is lost in the middle of a request, over every endpoint that needs no Xen: a
//! typed error with the session's epoch, and the next session works.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use vgpu_guest::{Cause, Client, Endpoint, Error, Retry, Side};
use vgpu_transport::TransportError;

use crate::support::sockets::Sockets;
use crate::support::{Mediator, add, signal, wait_until};

/// Begins a long vector add, does `harm` once it is under way, and returns the error.
fn harmed(client: &mut Client, harm: impl FnOnce()) -> Error {
    let n = 1 << 22;
    let (a, mut sum) = (vec![1.0; n], vec![0.0; n]);
    let mut harm = Some(harm);
    client
        .vector_add_watched(&a, &a, &mut sum, |complete| {
            if complete > 0
                && let Some(harm) = harm.take()
            {
                harm();
            }
        })
        .expect_err("the other side is gone")
}

/// Asserts that the error tells a caller everything needed to go on.
fn check_lost(error: &Error, epoch: u64, endpoint: &Endpoint) {
    assert!(
        matches!(error.cause(), Cause::Transport(TransportError::Closed)),
        "{endpoint}: {error:?}"
    );
    assert_eq!(error.epoch(), Some(epoch), "{endpoint}");
    assert_eq!(error.side(), Side::Connection, "{endpoint}");
    assert_eq!(error.retry(), Retry::NewSession, "{endpoint}");
    assert_eq!(error.doing(), "vector add");
}

/// The session is over; so says every later call, in the same words and with the same epoch.
fn check_over(client: &mut Client, epoch: u64) {
    let error = client.ping(b"x").unwrap_err();
    assert!(matches!(error.cause(), Cause::SessionOver(_)), "{error:?}");
    assert_eq!(error.epoch(), Some(epoch));
}

#[test]
fn a_mediator_that_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = Sockets::new(directory.path());
    let mut mediator = sockets.start(&[]);
    for endpoint in sockets.endpoints(&mediator) {
        let mut client = sockets.connect(&endpoint).unwrap();
        let epoch = client.epoch();
        let mut victim = Some(mediator);
        let error = harmed(&mut client, || {
            if let Some(victim) = victim.take() {
                Mediator::crash(victim);
            }
        });
        check_lost(&error, epoch, &endpoint);
        check_over(&mut client, epoch);
        // Until it runs again, there is nobody, and the error says so.
        let absent = sockets.connect(&endpoint).unwrap_err();
        assert!(matches!(absent.cause(), Cause::NoEndpoint(_)), "{absent:?}");
        assert_eq!((absent.epoch(), absent.retry()), (None, Retry::NewSession));
        mediator = sockets.start(&[]);
        let mut next = sockets.connect(&endpoint).unwrap();
        assert_ne!(next.epoch(), epoch, "{endpoint}: its state is gone");
        add(&mut next, 100_000).unwrap();
        next.goodbye().unwrap();
    }
    mediator.stop();
}

#[test]
fn a_worker_that_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = Sockets::new(directory.path());
    let mediator = sockets.start(&[]);
    for endpoint in sockets.endpoints(&mediator) {
        mediator.wait_for_workers(0);
        let mut client = sockets.connect(&endpoint).unwrap();
        let epoch = client.epoch();
        let worker = mediator.wait_for_workers(1)[0];
        let error = harmed(&mut client, || signal(worker, Signal::SIGKILL));
        check_lost(&error, epoch, &endpoint);
        let mut next = sockets.connect(&endpoint).unwrap();
        assert_ne!(next.epoch(), epoch);
        add(&mut next, 100_000).unwrap();
        next.goodbye().unwrap();
    }
    let log = fs::read_to_string(directory.path().join("log")).unwrap();
    assert_eq!(log.matches("the worker died").count(), 3, "{log}");
    mediator.stop();
}

#[test]
fn a_worker_that_stands_still() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = Sockets::new(directory.path());
    let mediator = sockets.start(&[]);
    for endpoint in sockets.endpoints(&mediator) {
        mediator.wait_for_workers(0);
        let mut options = sockets.options();
        options.stall_timeout = Duration::from_secs(1);
        let mut client = Client::connect(std::slice::from_ref(&endpoint), &options).unwrap();
        let epoch = client.epoch();
        let worker = mediator.wait_for_workers(1)[0];
        let error = harmed(&mut client, || signal(worker, Signal::SIGSTOP));
        assert!(
            matches!(error.cause(), Cause::Stalled(_)),
            "{endpoint}: {error:?}"
        );
        assert_eq!(
            (error.epoch(), error.retry()),
            (Some(epoch), Retry::NewSession)
        );
        drop(client);
        // The others are not held up by it, and it ends once it runs again.
        let mut next = sockets.connect(&endpoint).unwrap();
        add(&mut next, 100_000).unwrap();
        next.goodbye().unwrap();
        signal(worker, Signal::SIGCONT);
        wait_until("it ends", || !mediator.workers().contains(&worker));
    }
    mediator.stop();
}

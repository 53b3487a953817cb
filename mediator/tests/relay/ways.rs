//! The sessions' conformance suite through a relay, over every way that needs no Xen.

use vgpu_guest::Endpoint;

use crate::support::Mediator;
use crate::support::sockets::{Sockets, run_conformance};

/// Runs all cases over one endpoint of a mediator that relays over another.
fn conforms(near: fn(&Sockets) -> Option<Endpoint>, far: fn(&Sockets, &Mediator) -> Endpoint) {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [front, behind] = [0, 1].map(|index| Sockets::new(directories[index].path()));
    let far_mediator = behind.start(&[]);
    let executor = format!("relay:{}", far(&behind, &far_mediator));
    let secret = behind.secret("tester");
    let secret = secret.to_str().unwrap();
    let mut flags = vec!["--executor", &executor, "--relay-secret", secret];
    let endpoint = near(&front);
    let listen = endpoint.iter().map(Endpoint::to_string);
    let file: Vec<String> = listen.filter(|text| text.starts_with("file:")).collect();
    file.iter()
        .for_each(|text| flags.extend(["--listen", text]));
    let mediator = front.start(&flags);
    let endpoint = endpoint.unwrap_or_else(|| mediator.endpoint());
    let options = front.options();
    run_conformance(&endpoint, &options, &format!("{endpoint} and {executor}"));
    far_mediator.wait_for_workers(0);
    mediator.stop();
    far_mediator.stop();
}

#[test]
fn from_ring_to_ring() {
    conforms(|_| None, |_, far| far.endpoint());
}

#[test]
fn from_ring_to_tcp() {
    conforms(|_| None, |sockets, _| sockets.tcp());
}

#[test]
fn from_tcp_to_ring() {
    conforms(|sockets| Some(sockets.tcp()), |_, far| far.endpoint());
}

#[test]
fn from_unix_to_unix() {
    conforms(|sockets| Some(sockets.unix()), |sockets, _| sockets.unix());
}

#[test]
fn from_file_to_ring() {
    conforms(|sockets| Some(sockets.file()), |_, far| far.endpoint());
}

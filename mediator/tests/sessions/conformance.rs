//! The sessions' conformance suite over every endpoint that needs no Xen, against a real mediator.

use vgpu_guest::Endpoint;

use crate::support::sockets::{Sockets, run_conformance};

/// Runs all cases over one endpoint of a mediator that has several. `idle` is how many workers it
/// has without sessions.
fn conforms(choose: fn(&Sockets) -> Option<Endpoint>, idle: usize) {
    conforms_with(choose, idle, 0);
}

/// The same with `warm` workers that are there before their sessions.
fn conforms_with(choose: fn(&Sockets) -> Option<Endpoint>, idle: usize, warm: usize) {
    let directory = tempfile::tempdir().unwrap();
    let sockets = Sockets::new(directory.path());
    let files = match choose(&sockets) {
        Some(endpoint @ Endpoint::File(_)) => vec!["--listen".to_owned(), endpoint.to_string()],
        _ => Vec::new(),
    };
    let config = directory.path().join("mediatord.toml");
    std::fs::write(&config, format!("[worker]\nwarm_workers = {warm}\n")).unwrap();
    let config = ["--config", config.to_str().unwrap()];
    let flags: Vec<&str> = files.iter().map(String::as_str).chain(config).collect();
    let mediator = sockets.start(&flags);
    let endpoint = choose(&sockets).unwrap_or_else(|| mediator.endpoint());
    let options = sockets.options();
    run_conformance(&endpoint, &options, &endpoint.to_string());
    mediator.wait_for_workers(idle + warm);
    mediator.stop();
}

#[test]
fn over_local() {
    conforms(|_| None, 0);
}

#[test]
fn over_unix() {
    conforms(|sockets| Some(sockets.unix()), 0);
}

#[test]
fn over_tcp() {
    conforms(|sockets| Some(sockets.tcp()), 0);
}

#[test]
fn over_file() {
    conforms(|sockets| Some(sockets.file()), 1);
}

#[test]
fn over_local_with_warm_workers() {
    conforms_with(|_| None, 0, 2);
}

#[test]
fn over_tcp_with_warm_workers() {
    conforms_with(|sockets| Some(sockets.tcp()), 0, 2);
}

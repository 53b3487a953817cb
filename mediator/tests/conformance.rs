//! The sessions' conformance suite over every endpoint that needs no Xen, against a real mediator.

mod support;

use support::sockets::Sockets;
use vgpu_guest::Endpoint;
use vgpu_guest::conformance::{self, CASES, Ground};

/// Runs all cases over one endpoint of a mediator that has several. `idle` is how many workers it
/// has without sessions.
fn conforms(choose: fn(&Sockets) -> Option<Endpoint>, idle: usize) {
    let directory = tempfile::tempdir().unwrap();
    let sockets = Sockets::new(directory.path());
    let files = match choose(&sockets) {
        Some(endpoint @ Endpoint::File(_)) => vec!["--listen".to_owned(), endpoint.to_string()],
        _ => Vec::new(),
    };
    let flags: Vec<&str> = files.iter().map(String::as_str).collect();
    let mediator = sockets.start(&flags);
    let endpoint = choose(&sockets).unwrap_or_else(|| mediator.endpoint());
    let options = sockets.options();
    let ground = Ground {
        endpoint: &endpoint,
        options: &options,
    };
    let mut run = 0;
    for outcome in conformance::run(&ground, "") {
        let name = outcome.case.name;
        if let Err(error) = outcome.result {
            panic!("{name} over {endpoint}: {error}");
        }
        println!("{name}: {:?}", outcome.elapsed);
        run += 1;
    }
    assert_eq!(run, CASES.len());
    mediator.wait_for_workers(idle);
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

//! Full sessions over `file:` with a real mediator, real workers and the real guest library.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use vgpu_guest::{Client, Endpoint};

use crate::support::{Mediator, add, only_ours_to_change, options, wait_until};

/// A mediator that serves a directory, with these guests' directories.
fn start(directory: &Path, guests: &[&str]) -> (Mediator, PathBuf) {
    start_with(directory, guests, "")
}

fn start_with(directory: &Path, guests: &[&str], config: &str) -> (Mediator, PathBuf) {
    let file = directory.join("m.toml");
    fs::write(&file, config).unwrap();
    let served = directory.join("served");
    for guest in guests {
        fs::create_dir_all(served.join(guest)).unwrap();
        only_ours_to_change(&served);
    }
    let listen = format!("file:{}", served.display());
    let flags = ["--config", file.to_str().unwrap(), "--listen", &listen];
    let mediator = Mediator::start(directory, &flags);
    (mediator, served)
}

fn connect(place: &Path) -> Client {
    Client::connect(&[Endpoint::File(place.to_owned())], &options()).unwrap()
}

fn sessions(place: &Path) -> usize {
    fs::read_dir(place.join("sessions")).map_or(0, Iterator::count)
}

#[test]
fn vectors_of_all_sizes_by_two_guests_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let (mediator, served) = start(directory.path(), &["web-1", "web-2"]);
    let places = [served.join("web-1"), served.join("web-2")];
    thread::scope(|scope| {
        for place in &places {
            scope.spawn(|| {
                let mut client = connect(place);
                for n in [1, 1024, 1_048_576, 1024] {
                    add(&mut client, n).unwrap();
                }
                client.ping(b"there and back").unwrap();
                client.goodbye().unwrap();
            });
        }
    });
    let mut client = connect(&served);
    add(&mut client, 1024).unwrap();
    client.goodbye().unwrap();
    // Each session ends in good order, for its own account, and leaves nothing behind.
    for place in ["/web-1", "/web-2", ""] {
        let name = format!("file:{}{place}: session", served.display());
        wait_until("the session has ended", || {
            let log = mediator.log();
            log.lines()
                .any(|line| line.contains(&name) && line.contains("goodbye"))
        });
    }
    for place in [&places[0], &places[1], &served] {
        assert_eq!(sessions(place), 0, "{}", place.display());
    }
    let status = mediator.status();
    let elements = 2 * (1 + 2 * 1024 + 1_048_576) + 1024;
    assert!(
        status["usage"]["bytes_out"].as_u64() > Some(4 * elements),
        "{status}"
    );
    assert_eq!(status["usage"]["failed_requests"], 0);
    mediator.stop();
}

#[test]
fn an_endpoint_has_a_limit_of_sessions_over_all_its_guests() {
    let directory = tempfile::tempdir().unwrap();
    let config = "[limits]\nmax_file_sessions = 2\nmax_sessions_per_guest = 8\n";
    let (mediator, served) = start_with(directory.path(), &["web-1", "web-2", "web-3"], config);
    let mut first = connect(&served.join("web-1"));
    let second = connect(&served.join("web-2"));
    for name in ["web-1", "web-3"] {
        let place = Endpoint::File(served.join(name));
        let error = Client::connect(&[place], &options()).unwrap_err();
        let text = format!("{error:?} {error}");
        assert!(text.contains("limits.max_file_sessions is 2"), "{text}");
    }
    // Other ways in have their own, and those that are there go on.
    let mut local = mediator.connect().unwrap();
    add(&mut local, 1024).unwrap();
    add(&mut first, 1024).unwrap();
    second.goodbye().unwrap();
    wait_until("there is room again", || {
        let place = Endpoint::File(served.join("web-3"));
        let connected = Client::connect(&[place], &options());
        connected.is_ok_and(|client| client.goodbye().is_ok())
    });
    mediator.stop();
}

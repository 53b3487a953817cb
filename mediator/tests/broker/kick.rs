//! `vgpuctl kick` takes every name that `vgpuctl status` prints.

use std::fs;

use vgpu_guest::Endpoint;

use crate::support::sockets::Sockets;
use crate::support::{run, stderr, stdout, wait_until};

#[test]
fn whatever_status_prints_for_a_guest_can_be_kicked() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = Sockets::new(directory.path());
    // Longer than any column of a table that would be cut.
    let served = directory
        .path()
        .join("a directory with a name of more than forty characters");
    let guest = served.join("web-1");
    fs::create_dir_all(&guest).unwrap();
    crate::support::only_ours_to_change(&served);
    let listen = format!("file:{}", served.display());
    let mediator = sockets.start(&["--listen", &listen]);
    let endpoints = [
        mediator.endpoint(),
        sockets.unix(),
        sockets.tcp(),
        Endpoint::File(served),
        Endpoint::File(guest),
    ];
    for endpoint in &endpoints {
        // By the name of the account, and by the name of the one session.
        for by in ["guests", "sessions"] {
            let mut client = sockets.connect(endpoint).unwrap();
            let status = mediator.status();
            let session = status["sessions"].as_array().unwrap().iter();
            let session = session
                .filter(|session| session["client"] == "end to end")
                .map(|session| session["guest"].as_str().unwrap().to_owned())
                .next()
                .expect("the session is listed");
            let name = match by {
                "sessions" => session,
                _ => {
                    let mut names = status["guests"].as_array().unwrap().iter();
                    // `unix uid 0 pid 5` is of the account `local uid 0`.
                    let begin = session.replace("unix uid", "local uid");
                    let found = names.find(|guest| {
                        let name = guest["guest"].as_str().unwrap();
                        guest["sessions"] != 0
                            && (begin == name || begin.starts_with(&format!("{name} ")))
                    });
                    found.unwrap()["guest"].as_str().unwrap().to_owned()
                }
            };
            let table = run(mediator.vgpuctl().arg("status"));
            assert!(stdout(&table).contains(&name), "{name}: {}", stdout(&table));
            let kicked = run(mediator.vgpuctl().args(["--json", "kick", &name]));
            assert!(kicked.status.success(), "{name}: {}", stderr(&kicked));
            let kicked: serde_json::Value = serde_json::from_slice(&kicked.stdout).unwrap();
            assert!(kicked["kicked"].as_u64() >= Some(1), "{name}: {kicked}");
            wait_until("the session is over", || client.ping(b"x").is_err());
            drop(client);
            wait_until("the session is not listed", || {
                let status = mediator.status();
                let mut sessions = status["sessions"].as_array().unwrap().iter();
                !sessions.any(|session| session["client"] == "end to end")
            });
        }
    }
    mediator.stop();
}

/// Its worker says goodbye and ends by itself, though the client does not answer; the client finds the reason later.
#[test]
fn an_idle_client_is_kicked_and_learns_it_afterwards() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = Sockets::new(directory.path());
    let mediator = sockets.start(&[]);
    for endpoint in [sockets.unix(), sockets.tcp()] {
        let mut client = sockets.connect(&endpoint).unwrap();
        client.ping(b"x").unwrap();
        let id = mediator.status()["sessions"][0]["session"].clone();
        let kicked = run(mediator.vgpuctl().args(["kick", &format!("session:{id}")]));
        assert!(kicked.status.success(), "{}", stderr(&kicked));
        mediator.wait_for_workers(0);
        let ended = format!("session {id} ended after ");
        wait_until("its end is logged", || mediator.log().contains(&ended));
        let log = mediator.log();
        let line = log.lines().find(|line| line.contains(&ended)).unwrap();
        assert!(line.contains("an administrator ended"), "{line}");
        let error = client.ping(b"x").unwrap_err();
        let why = format!("{error}: {:?}", error);
        assert!(why.contains("an administrator ended"), "{endpoint}: {why}");
    }
    mediator.stop();
}

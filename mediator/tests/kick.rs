//! `vgpuctl kick` takes every name that `vgpuctl status` prints.

mod support;

use std::fs;

use support::sockets::Sockets;
use support::{run, stderr, stdout, wait_until};
use vgpu_guest::Endpoint;

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
    support::only_ours_to_change(&served);
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

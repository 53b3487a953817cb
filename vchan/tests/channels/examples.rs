//! The programs in `examples/`, run over a channel of this machine.

use std::thread;

#[allow(dead_code, reason = "main is not called")]
#[path = "../../examples/echo_client.rs"]
mod echo_client;
#[allow(dead_code, reason = "main is not called")]
#[path = "../../examples/echo_server.rs"]
mod echo_server;
#[allow(dead_code, reason = "main is not called")]
#[path = "../../examples/send_file.rs"]
mod send_file;

fn arguments(line: &str) -> impl Iterator<Item = String> {
    line.split(' ')
        .map(str::to_owned)
        .collect::<Vec<_>>()
        .into_iter()
}

#[test]
fn echo() {
    let dir = tempfile::tempdir().unwrap();
    let address = format!("local:{}/socket", dir.path().display());
    let server = format!("{address} 3");
    let server = thread::spawn(move || echo_server::run(arguments(&server)).unwrap());
    for _ in 0..3 {
        echo_client::run(arguments(&format!("{address} hello again"))).unwrap();
    }
    server.join().unwrap();
}

#[test]
fn file() {
    let dir = tempfile::tempdir().unwrap();
    let shown = dir.path().display().to_string();
    for bytes in [0, 1, 5_000_003] {
        let content = vec![0xA5; bytes];
        std::fs::write(dir.path().join("from"), &content).unwrap();
        let sender = format!("local:{shown}/socket {shown}/from");
        let sender = thread::spawn(move || send_file::run(arguments(&sender)).unwrap());
        send_file::run(arguments(&format!(
            "--receive local:{shown}/socket {shown}/to"
        )))
        .unwrap();
        sender.join().unwrap();
        assert!(std::fs::read(dir.path().join("to")).unwrap() == content);
    }
}

#[test]
fn usage() {
    for run in [
        echo_server::run(arguments("--help")),
        echo_client::run(arguments("--help")),
        send_file::run(arguments("--help")),
    ] {
        run.unwrap();
    }
    for run in [
        echo_server::run(arguments("nowhere")),
        echo_client::run(arguments("local:/tmp/x")),
        send_file::run(arguments("a b c d")),
    ] {
        run.unwrap_err();
    }
}

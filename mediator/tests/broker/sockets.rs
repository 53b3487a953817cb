//! Admission over `unix:` and `tcp:`, and the mediator's messages about rejected clients.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::Duration;

use vgpu_guest::{Cause, Client, Endpoint, Retry};
use vgpu_socket_transport::Secret;

use crate::support::sockets::{Sockets, write_private};
use crate::support::{MEDIATORD, VGPUCTL, add, run, stderr, stdout, wait_until};

/// A configuration with these lines, as a flag.
fn config(sockets: &Sockets, lines: &str) -> String {
    let path = sockets.secrets().with_file_name("mediatord.toml");
    fs::write(&path, lines).unwrap();
    path.to_str().unwrap().to_owned()
}

fn raw(sockets: &Sockets) -> TcpStream {
    TcpStream::connect(sockets.address()).unwrap()
}

/// The one line of why nobody was reached.
fn why(error: &vgpu_guest::Error) -> String {
    match error.cause() {
        Cause::NoEndpoint(left) => left[0].error.cause().to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn sessions_are_known_by_the_name_of_their_secret() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = Sockets::new(directory.path());
    let rules = "[guests]\nother = 'deny'\ntester = { allow = true, max_sessions = 1 }\n";
    let mediator = sockets.start(&["--config", &config(&sockets, rules)]);
    let mut client = sockets.connect(&sockets.tcp()).unwrap();
    add(&mut client, 1000).unwrap();
    let local = sockets.connect(&sockets.unix()).unwrap();
    let status = mediator.status();
    let guests: Vec<_> = status["sessions"].as_array().unwrap().clone();
    let name = |index: usize| guests[index]["guest"].as_str().unwrap().to_owned();
    assert!(name(0).starts_with("tcp tester (127."), "{}", name(0));
    assert!(name(1).starts_with("unix uid "), "{}", name(1));
    local.goodbye().unwrap();

    // A rule denies a name, and limits another.
    let denied = Client::connect(&[sockets.tcp()], &sockets.options_of("other")).unwrap_err();
    assert!(
        why(&denied).contains("the rule for name:other denies it"),
        "{denied}"
    );
    let busy = sockets.connect(&sockets.tcp()).unwrap_err();
    assert!(
        why(&busy).contains("at its limit of sessions (1)"),
        "{busy}"
    );
    assert_eq!(busy.retry(), Retry::NewSession);

    let kicked = run(mediator.vgpuctl().args(["kick", "tester"]));
    assert!(kicked.status.success(), "{}", stderr(&kicked));
    wait_until("the session is over", || client.ping(b"x").is_err());
    let mut client = loop {
        // The session that was kicked may still count.
        match sockets.connect(&sockets.tcp()) {
            Ok(client) => break client,
            Err(error) => assert!(why(&error).contains("at its limit"), "{error}"),
        }
        thread::sleep(Duration::from_millis(20));
    };
    add(&mut client, 1000).unwrap();
    client.goodbye().unwrap();
    mediator.wait_for_workers(0);
    let status = mediator.status();
    let account = |name: &str| {
        let guests = status["guests"].as_array().unwrap();
        guests
            .iter()
            .find(|at| at["guest"] == name)
            .cloned()
            .unwrap()
    };
    assert_eq!(account("tcp tester")["sessions_started"], 2);
    let usage = account("tcp tester")["usage"].clone();
    assert!(usage["bytes_out"].as_u64() > Some(4 * 2000), "{usage}");
    assert_eq!(account("tcp other")["refused"], 1);
    mediator.stop();
}

#[test]
fn strangers_are_logged_and_learn_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = Sockets::new(directory.path());
    let mediator = sockets.start(&[]);
    let logged = |line: &str| {
        wait_until(line, || mediator.log().contains(line));
    };
    // A port scanner, a browser, and somebody with a name but no key.
    drop(raw(&sockets));
    logged("not let in: it closed the connection without a word");
    let mut browser = raw(&sockets);
    browser.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(browser.read(&mut [0]).unwrap_or(0), 0, "no answer");
    logged("not let in: it is no vgpu client: it began with \"GET / \"");

    let stranger = directory.path().join("stranger.secret");
    let mut told = Vec::new();
    for name in ["tester", "nobody"] {
        write_private(&stranger, &Secret::generate(name).unwrap().to_line());
        let error = Client::connect(&[sockets.tcp()], &sockets.options_of("stranger")).unwrap_err();
        assert!(error.advice().contains("NAME KEY"), "{}", error.advice());
        told.push(why(&error).replace(name, "NAME"));
    }
    assert_eq!(told[0], told[1], "nobody learns which names exist");
    logged("not let in: its key is not the one of tester");
    logged("not let in: there is no secret for the name nobody");

    let mut options = sockets.options();
    options.secret_file = Some(directory.path().join("none"));
    let error = Client::connect(&[sockets.tcp()], &options).unwrap_err();
    assert!(why(&error).contains("cannot read the secrets"), "{error}");

    let status = mediator.status();
    let strangers = &status["guests"][0];
    assert_eq!(strangers["guest"], "tcp, without a secret");
    assert_eq!(strangers["refused"], 4);
    assert_eq!(status["sessions_started"], 0);
    add(&mut sockets.connect(&sockets.tcp()).unwrap(), 1000).unwrap();
    mediator.stop();
}

#[test]
fn a_crowd_of_silent_strangers_is_bounded_and_passes() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = Sockets::new(directory.path());
    let limits = config(&sockets, "[limits]\nconnect_timeout_s = 1\n");
    let mediator = sockets.start(&["--config", &limits]);
    let crowd: Vec<TcpStream> = (0..100).map(|_| raw(&sockets)).collect();
    wait_until("workers look at the first", || {
        mediator.workers().len() >= 4
    });
    // The broker answers, guests of other endpoints are served, and the process count stays.
    add(&mut sockets.connect(&sockets.unix()).unwrap(), 1000).unwrap();
    assert!(mediator.workers().len() <= 9);
    assert!(mediator.status()["sessions"].as_array().unwrap().len() <= 1);
    wait_until("the slow ones are given up", || {
        mediator
            .log()
            .contains("not let in: it was too slow: time ran out without a word")
    });
    wait_until("who found no room was told so in the log", || {
        mediator
            .log()
            .contains("too many wait to show their secret")
    });
    drop(crowd);
    // Who has a secret gets in as soon as there is a place.
    wait_until("a client is let in", || {
        sockets
            .connect(&sockets.tcp())
            .is_ok_and(|client| client.goodbye().is_ok())
    });
    mediator.stop();
}

#[test]
fn a_stop_does_not_wait_for_strangers() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = Sockets::new(directory.path());
    let patience = "[limits]\nconnect_timeout_s = 600\ndrain_timeout_s = 600\n";
    let mediator = sockets.start(&["--config", &config(&sockets, patience)]);
    let _silent = raw(&sockets);
    mediator.wait_for_workers(1);
    mediator.stop();
}

#[test]
fn a_secret_for_what_is_no_name_is_misuse() {
    for name in ["", "a b", "ä", &"a".repeat(65)] {
        let refused = run(Command::new(VGPUCTL).args(["secret", name]));
        assert_eq!(refused.status.code(), Some(2), "{name:?}");
        assert!(stderr(&refused).contains("use 1 to 64"), "{name:?}");
        assert_eq!(stdout(&refused), "");
    }
}

#[test]
fn secrets_count_from_the_next_connection_on() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = Sockets::new(directory.path());
    let mediator = sockets.start(&[]);
    let made = run(Command::new(VGPUCTL).args(["secret", "late"]));
    assert!(made.status.success());
    assert!(stderr(&made).contains("chmod 600"), "{}", stderr(&made));
    let line = stdout(&made);
    write_private(&sockets.secret("late"), &line);
    let connect = || Client::connect(&[sockets.tcp()], &sockets.options_of("late"));
    assert!(connect().is_err());
    let before = fs::read_to_string(sockets.secrets()).unwrap();
    write_private(&sockets.secrets(), &format!("{before}{line}"));
    let mut client = connect().unwrap();
    write_private(&sockets.secrets(), &before);
    assert!(connect().is_err());
    add(&mut client, 1000).unwrap();
    client.goodbye().unwrap();
    mediator.stop();
}

#[test]
fn without_sound_secrets_it_does_not_start() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = Sockets::new(directory.path());
    let refused = |secrets: &[&str], wanted: &str| {
        let listen = sockets.tcp().to_string();
        for check in [&["--check-config"][..], &[]] {
            let output = run(Command::new(MEDIATORD)
                .args(["--listen", &listen, "--executor", "cpu", "--control"])
                .arg(directory.path().join("control.sock"))
                .args(secrets)
                .args(check));
            assert_eq!(output.status.code(), Some(2), "{wanted}");
            let said = stderr(&output);
            assert!(said.contains(wanted) && said.contains("help: "), "{said}");
        }
    };
    let path = sockets.secrets();
    let secrets = ["--secrets", path.to_str().unwrap()];
    refused(&[], "vgpuctl secret NAME");
    write_private(&path, "tester 1234\n");
    refused(&secrets, "line 1: the key of tester");
    write_private(&path, "# nobody yet\n");
    refused(&secrets, "no secret in it");
    fs::remove_file(&path).unwrap();
    refused(&secrets, "cannot read the secrets");
    let line = Secret::generate("tester").unwrap().to_line();
    fs::write(&path, line.as_bytes()).unwrap();
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(&path, readable).unwrap();
    refused(&secrets, "others than its user can read");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = Sockets::new(directory.path());
    let _taken = std::net::TcpListener::bind(sockets.address()).unwrap();
    let output = run(Command::new(MEDIATORD)
        .args(["--listen", &sockets.tcp().to_string(), "--executor", "cpu"])
        .arg("--secrets")
        .arg(sockets.secrets())
        .arg("--control")
        .arg(directory.path().join("control.sock")));
    assert!(!output.status.success());
    let wanted = format!("cannot listen on {}", sockets.tcp());
    assert!(stderr(&output).contains(&wanted), "{}", stderr(&output));
}

#[test]
fn endpoints_are_tried_in_order_each_within_its_time() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = Sockets::new(directory.path());
    let mediator = sockets.start(&[]);
    // Nobody there; one that takes connections and never answers; the wrong kind of listener.
    let nobody = Endpoint::Unix(directory.path().join("nobody.sock"));
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = mute.local_addr().unwrap().port();
    let mute_endpoint: Endpoint = format!("tcp:127.0.0.1:{port}").parse().unwrap();
    let mut options = sockets.options();
    options.connect_timeout = Duration::from_millis(500);
    let list = [
        nobody.clone(),
        mute_endpoint.clone(),
        sockets.tcp(),
        sockets.unix(),
    ];
    let client = loop {
        // Half a second is little for the third on a busy machine.
        match Client::connect(&list[..3], &options) {
            Ok(client) => break client,
            Err(error) => assert!(
                options.connect_timeout < crate::support::WATCHDOG,
                "{error}"
            ),
        }
        options.connect_timeout *= 2;
    };
    assert_eq!(client.endpoint(), Some(&sockets.tcp()));
    let left: Vec<_> = client
        .skipped()
        .iter()
        .map(|skipped| (skipped.endpoint.clone(), skipped.error.cause().to_string()))
        .collect();
    assert_eq!(left[0].0, nobody);
    assert!(left[0].1.contains("no mediator listens"), "{}", left[0].1);
    assert_eq!(left[1].0, mute_endpoint);
    assert!(
        left[1].1.contains("did not answer in time"),
        "{}",
        left[1].1
    );
    client.goodbye().unwrap();
    mediator.stop();
}

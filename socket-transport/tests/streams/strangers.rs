//! Clients that are not admitted over TCP, and attackers between the two sides.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::ends::{raw, secrets, soon, tcp_through};
use vgpu_socket_transport::handshake::Refused;
use vgpu_socket_transport::{
    AcceptError, Secret, accept_tcp, connect_tcp, connect_unix, connect_unix_stream,
};
use vgpu_transport::{Transport, TransportError};

/// The mediator's error for a client that knows `theirs`, and the client's error.
fn meet(theirs: &Secret, ours: &Secret) -> (AcceptError, String, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            let error =
                connect_tcp("localhost", port, Some(theirs), soon(), &|| false).unwrap_err();
            (error.to_string(), error.advice().to_owned())
        });
        // `localhost` may be ::1 first, where nobody listens.
        let (stream, _) = listener.accept().unwrap();
        let refused =
            accept_tcp(stream, |name| secrets(&[ours]).expected(name), soon()).unwrap_err();
        let (what, advice) = client.join().unwrap();
        (refused, what.replace(&port.to_string(), "PORT"), advice)
    })
}

#[test]
fn a_wrong_key_and_an_unknown_name_look_the_same_from_outside() {
    let ours = Secret::generate("web").unwrap();
    let (refused, wrong_key, advice) = meet(&Secret::generate("web").unwrap(), &ours);
    assert!(
        matches!(&refused, AcceptError::Refused(Refused::WrongKey(name)) if name == "web"),
        "{refused}"
    );
    let (refused, unknown, same) = meet(&Secret::generate("wob").unwrap(), &ours);
    assert!(
        matches!(&refused, AcceptError::Refused(Refused::Unknown(name)) if name == "wob"),
        "{refused}"
    );
    assert_eq!(wrong_key, unknown.replace("wob", "web"));
    assert_eq!(advice, same);
    assert_eq!(
        wrong_key,
        "what listens at tcp:localhost:PORT did not accept the secret web"
    );
}

#[test]
fn no_secret_is_an_error_that_says_how_to_get_one() {
    let error = connect_tcp("127.0.0.1", 9, None, soon(), &|| false).unwrap_err();
    assert!(error.to_string().contains("needs a secret"), "{error}");
    assert!(error.advice().contains("vgpuctl secret NAME"));
}

#[test]
fn strangers_cost_little_and_are_named() {
    let ours = secrets(&[&Secret::generate("web").unwrap()]);
    let asked = Cell::new(0);
    let said = |bytes: &[u8], then: Shutdown| {
        let expected = |name: &str| {
            asked.set(asked.get() + 1);
            ours.expected(name)
        };
        let (mut client, accepted) = raw();
        client.write_all(bytes).unwrap();
        client.shutdown(then).unwrap();
        let error = accept_tcp(accepted, expected, soon()).unwrap_err();
        // A stranger gets no answer.
        assert_eq!(client.read(&mut [0]).unwrap_or(0), 0);
        error.to_string()
    };
    assert_eq!(
        said(b"", Shutdown::Both),
        "it closed the connection without a word"
    );
    assert_eq!(
        said(b"vgpu\x01", Shutdown::Write),
        "it closed the connection after 5 bytes of its greeting"
    );
    assert_eq!(
        said(b"GET / HTTP/1.1\r\n\r\n", Shutdown::Write),
        "it is no vgpu client: it began with \"GET / \""
    );
    assert_eq!(
        said(b"\x16\x03\x01\x02\x00\x01", Shutdown::Write),
        "it is no vgpu client: it began with \"\\x16\\x03\\x01\\x02\\x00\\x01\""
    );
    let greeting = [&b"vgpu\x01\x03web"[..], &[0; 48]].concat();
    assert_eq!(asked.get(), 0, "no key is touched before there is a name");
    assert_eq!(
        said(&greeting, Shutdown::Write),
        "its key is not the one of web"
    );
}

#[test]
fn a_slow_stranger_is_bounded_by_the_deadline() {
    let ours = secrets(&[&Secret::generate("web").unwrap()]);
    let (mut client, accepted) = raw();
    let writer = thread::spawn(move || {
        for byte in b"vgpu\x01\x03web".iter().chain(&[0; 48]) {
            if client.write_all(&[*byte]).is_err() {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
    });
    let deadline = Instant::now() + Duration::from_millis(200);
    let error = accept_tcp(accepted, |name| ours.expected(name), deadline).unwrap_err();
    assert!(matches!(error, AcceptError::TimedOut { .. }), "{error}");
    assert!(Instant::now() >= deadline);
    writer.join().unwrap();
}

#[test]
fn a_client_is_bounded_by_its_deadline_and_by_interrupts() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let secret = Secret::generate("web").unwrap();
    let until = Instant::now() + Duration::from_millis(100);
    let error = connect_tcp("127.0.0.1", port, Some(&secret), until, &|| false).unwrap_err();
    assert!(
        error.to_string().contains("did not answer in time"),
        "{error}"
    );
    let error = connect_tcp("127.0.0.1", port, Some(&secret), soon(), &|| true).unwrap_err();
    assert!(error.is_interrupted());
    drop(listener);
    let error = connect_tcp("127.0.0.1", port, Some(&secret), soon(), &|| false).unwrap_err();
    assert!(
        error.to_string().contains("127.0.0.1: Connection refused"),
        "{error}"
    );
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("none");
    let error = connect_unix(&path, soon(), &|| false).unwrap_err();
    assert!(error.to_string().contains("no mediator listens"), "{error}");
    assert!(error.advice().contains("--listen unix:"));
    let error = connect_unix_stream("local", &path, soon(), &|| false).unwrap_err();
    assert!(error.to_string().contains("no mediator listens"), "{error}");
    assert!(error.advice().contains("--listen local:"));
}

/// Reads one record, length and all.
fn record(stream: &mut TcpStream) -> Vec<u8> {
    let mut record = vec![0; 2];
    stream.read_exact(&mut record).unwrap();
    let length = usize::from(u16::from_be_bytes([record[0], record[1]]));
    record.resize(2 + length, 0);
    stream.read_exact(&mut record[2..]).unwrap();
    record
}

/// An attacker between a client and the mediator, who passes the handshake on and then applies
/// `what` to the client's records. Returns the mediator's result.
fn tampered(what: fn(&mut TcpStream, &mut TcpStream)) -> Result<Vec<u8>, TransportError> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let between = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, target) = (
        between.local_addr().unwrap().port(),
        listener.local_addr().unwrap(),
    );
    let meddler = thread::spawn(move || {
        let mut client = between.accept().unwrap().0;
        let mut mediator = TcpStream::connect(target).unwrap();
        let mut greeting = [0; 6 + "tester".len() + 48];
        client.read_exact(&mut greeting).unwrap();
        mediator.write_all(&greeting).unwrap();
        let mut answer = [0; 48];
        mediator.read_exact(&mut answer).unwrap();
        client.write_all(&answer).unwrap();
        let ready = record(&mut client);
        mediator.write_all(&ready).unwrap();
        what(&mut client, &mut mediator);
    });
    let (mut client, mut mediator) = tcp_through(port, &listener);
    let writing = thread::spawn(move || {
        // The connection may be cut at any point of this.
        for word in [b"first ", b"second"] {
            let _ = client.write_all(word, soon());
            let _ = client.flush(soon());
        }
        let _ = client.close(Instant::now() + Duration::from_millis(300));
    });
    let mut got = Vec::new();
    let mut buf = [0; 64];
    let end = loop {
        match mediator.try_read(&mut buf) {
            Ok(Some(0)) => break Ok(got),
            Ok(Some(n)) => got.extend_from_slice(&buf[..n]),
            Ok(None) => mediator
                .wait(vgpu_transport::Interest::Read, soon())
                .unwrap(),
            Err(error) => {
                assert!(b"first second".starts_with(&got), "only what was sent");
                let again = mediator.try_read(&mut buf).unwrap_err();
                assert_eq!(again.to_string(), error.to_string(), "it stays");
                break Err(error);
            }
        }
    };
    drop(mediator);
    meddler.join().unwrap();
    writing.join().unwrap();
    end
}

#[test]
fn a_stream_that_is_left_alone_ends_whole() {
    let got = tampered(|client, mediator| {
        for _record in 0..3 {
            let record = record(client);
            mediator.write_all(&record).unwrap();
        }
    });
    assert_eq!(got.unwrap(), b"first second");
}

#[test]
fn changed_repeated_and_missing_records_are_violations() {
    let cases: [fn(&mut TcpStream, &mut TcpStream); 4] = [
        |client, mediator| {
            let mut changed = record(client);
            changed[5] ^= 1;
            mediator.write_all(&changed).unwrap();
        },
        |client, mediator| {
            let first = record(client);
            mediator.write_all(&[&first[..], &first].concat()).unwrap();
        },
        |client, mediator| {
            record(client);
            let second = record(client);
            mediator.write_all(&second).unwrap();
        },
        |_, mediator| mediator.write_all(&[0, 3, 1, 2, 3]).unwrap(),
    ];
    for case in cases {
        let error = tampered(case).unwrap_err();
        assert!(matches!(error, TransportError::PeerViolation(_)), "{error}");
    }
}

#[test]
fn a_stream_that_is_cut_off_does_not_end_whole() {
    let cases: [fn(&mut TcpStream, &mut TcpStream); 3] = [
        |_, _| {},
        |client, mediator| {
            for _record in 0..2 {
                let record = record(client);
                mediator.write_all(&record).unwrap();
            }
        },
        |client, mediator| {
            let record = record(client);
            mediator.write_all(&record[..9]).unwrap();
        },
    ];
    for case in cases {
        let error = tampered(case).unwrap_err();
        assert!(matches!(error, TransportError::Closed), "{error}");
    }
}

//! The command `vchan` where xenstored is absent, hangs, hangs up, or sends nonsense.
//!
//! The real program against real sockets; the lab tests real xenstoreds.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::xenstore_rs;

/// Runs `vchan ARGUMENTS` with xenstored's socket at `socket`.
fn vchan(socket: &Path, arguments: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vchan"))
        .args(arguments.split(' '))
        .env("XENSTORED_PATH", socket)
        .output()
        .expect("vchan starts")
}

/// Checks that the program failed as documented: status 1, one line of what, one of what to do.
fn assert_failed(output: &Output, what: &str) {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with('[')) // log lines
        .collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].contains(what), "{text}");
}

/// A socket on which `answer` talks to everyone who connects.
fn xenstored(
    answer: impl Fn(UnixStream) + Send + Sync + 'static,
) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        let answer = Arc::new(answer);
        for stream in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            thread::spawn(move || answer(stream));
        }
    });
    (folder, path)
}

// The client's side, which reads xenstore first; a server also needs devices that only Xen has.
const CONNECT: &str = "connect --peer 1 --path data/x --timeout 1 --echo";
const SERVE: &str = "serve --peer 1 --path data/x --timeout 1 --echo";

#[test]
fn case_45_no_xenstored() {
    if Path::new("/dev/xen/xenbus").exists() {
        test_skip::skipped("this machine has a xenstore");
        return;
    }
    for arguments in [CONNECT, SERVE] {
        let output = vchan(Path::new("/nonexistent/socket"), arguments);
        assert_failed(&output, "cannot reach xenstore");
    }
}

#[test]
fn case_42_xenstored_never_answers() {
    let (_folder, socket) = xenstored(|mut stream| {
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    assert_failed(&vchan(&socket, CONNECT), "did not answer in time");
}

/// The socket of a xenstored that was killed stays. The error must name it, and not that
/// `/dev/xen/xenbus` is missing here or does not answer.
#[test]
fn case_42_a_socket_that_refuses_is_an_error_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    drop(UnixListener::bind(&socket).unwrap());
    for arguments in [CONNECT, SERVE] {
        let output = vchan(&socket, arguments);
        assert_failed(&output, "nobody answers at xenstored's socket");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("start it again"), "{text}");
    }
}

/// It answers at first and then stops: whether anything was published is not known.
#[test]
fn case_42_xenstored_falls_silent() {
    let (_folder, socket) = xenstored(|mut stream| {
        let mut keys = 0;
        let mut header = [0; 16];
        while stream.read_exact(&mut header).is_ok() {
            let len = u32::from_ne_bytes(header[12..].try_into().unwrap());
            let mut payload = vec![0; len as usize];
            if stream.read_exact(&mut payload).is_err() {
                return;
            }
            let of_keys = payload.starts_with(b"/local/domain/1/data/x");
            keys += usize::from(of_keys);
            if keys > 3 {
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
                return;
            }
            // The domain is there, and its nodes are not.
            let is_watch = header[..4] == 4u32.to_ne_bytes();
            let answer: &[u8] = match (of_keys, is_watch) {
                (true, _) => b"ENOENT\0",
                (false, true) => b"OK\0",
                (false, false) => b"/vm/1",
            };
            if of_keys {
                header[..4].copy_from_slice(&16u32.to_ne_bytes());
            }
            let len = u32::try_from(answer.len()).unwrap();
            header[12..].copy_from_slice(&len.to_ne_bytes());
            if stream.write_all(&[&header[..], answer].concat()).is_err() {
                return;
            }
        }
    });
    let arguments = "connect --peer 1 --path data/x --timeout 4 --echo";
    assert_failed(&vchan(&socket, arguments), "did not answer in time");
}

/// Closed standard error: there is nowhere to report to, and the status says that it failed.
#[test]
fn a_closed_standard_error_is_no_panic() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = Command::new(env!("CARGO_BIN_EXE_vchan"))
        .args(SERVE.split(' '))
        .env("XENSTORED_PATH", "/dev/null/socket")
        .stderr(writer)
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(1));
}

/// Every node is refused, slowly: the deadline falls into a look that has no answer yet.
#[test]
fn a_denied_node_is_not_a_xenstored_that_does_not_answer() {
    for pause in [5, 70, 150] {
        let (_folder, socket) = xenstored(move |mut stream| {
            let mut header = [0; 16];
            while stream.read_exact(&mut header).is_ok() {
                let len = u32::from_ne_bytes(header[12..].try_into().unwrap());
                let mut payload = vec![0; len as usize];
                if stream.read_exact(&mut payload).is_err() {
                    return;
                }
                thread::sleep(Duration::from_millis(pause));
                let code = b"EACCES\0";
                header[..4].copy_from_slice(&16u32.to_ne_bytes());
                header[12..].copy_from_slice(&7u32.to_ne_bytes());
                if stream.write_all(&[&header[..], code].concat()).is_err() {
                    return;
                }
            }
        });
        let output = vchan(&socket, CONNECT);
        assert_failed(&output, "xenstore denies access to");
        // To xenstored the client is a domain, not a user.
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            text.contains("let the guest serve") && !text.contains("root"),
            "{text}"
        );
    }
}

#[test]
fn case_42_xenstored_hangs_up() {
    let (_folder, socket) = xenstored(drop);
    assert_failed(&vchan(&socket, CONNECT), "cannot reach xenstore");
}

#[test]
fn xenstored_that_talks_nonsense() {
    let (_folder, socket) = xenstored(|mut stream| {
        let mut request = [0; 16];
        while stream.read_exact(&mut request).is_ok() {
            // An unknown message type, no payload.
            let mut reply = request;
            reply[..4].copy_from_slice(&99u32.to_ne_bytes());
            reply[12..].copy_from_slice(&0u32.to_ne_bytes());
            if stream.write_all(&reply).is_err() {
                return;
            }
        }
    });
    assert_failed(&vchan(&socket, CONNECT), "cannot reach xenstore");
}

#[test]
fn the_same_with_xenstore_rs() {
    xenstore_rs::run_again(&["xenstore_absent::"], "the_same_with_xenstore_rs");
}

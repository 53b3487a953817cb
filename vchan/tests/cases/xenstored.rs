//! A xenstored scripted by a test: the wire format of Xen's `io/xs_wire.h` on a Unix socket, for
//! the real client and the real program `vchan`.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

/// Message types, as far as they matter here.
pub(crate) const READ: u32 = 2;
pub(crate) const WATCH: u32 = 4;
pub(crate) const TRANSACTION_START: u32 = 6;
pub(crate) const WRITE: u32 = 11;
pub(crate) const REMOVE: u32 = 13;
const ERROR: u32 = 16;

/// The answer to a request: bytes, or the name of an error.
pub(crate) type Answer = Result<Vec<u8>, &'static str>;

/// A request: its type, and its payload up to the first NUL.
pub(crate) type Request = (u32, String);

/// A xenstored whose answers come from a function, which may also hang up (`None`).
pub(crate) struct Xenstored {
    folder: tempfile::TempDir,
    /// All requests so far.
    pub(crate) asked: Arc<Mutex<Vec<Request>>>,
}

impl Xenstored {
    pub(crate) fn new(
        answer: impl Fn(u32, &str) -> Option<Answer> + Send + Sync + 'static,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        let asked: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (answer, log) = (Arc::new(answer), Arc::clone(&asked));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
                thread::spawn(move || serve(stream, &*answer, &log));
            }
        });
        Self { folder, asked }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// The nodes that were read.
    pub(crate) fn nodes_read(&self) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        asked
            .iter()
            .filter(|(kind, _)| *kind == READ)
            .map(|(_, node)| node.clone())
            .collect()
    }
}

/// Answers requests until the other side, or the answer, hangs up.
fn serve(
    mut stream: UnixStream,
    answer: &dyn Fn(u32, &str) -> Option<Answer>,
    log: &Mutex<Vec<Request>>,
) {
    let mut head = [0; 16];
    while stream.read_exact(&mut head).is_ok() {
        let number = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().unwrap());
        let mut payload = vec![0; number(12) as usize];
        if stream.read_exact(&mut payload).is_err() {
            return;
        }
        let text = payload.split(|byte| *byte == 0).next().unwrap_or_default();
        let text = String::from_utf8_lossy(text).into_owned();
        log.lock().unwrap().push((number(0), text.clone()));
        let (kind, body) = match answer(number(0), &text) {
            None => return,
            Some(Ok(body)) => (number(0), body),
            Some(Err(code)) => (ERROR, [code.as_bytes(), b"\0"].concat()),
        };
        let length = u32::try_from(body.len()).unwrap();
        let mut reply = Vec::new();
        for word in [kind, number(4), number(8), length] {
            reply.extend_from_slice(&word.to_ne_bytes());
        }
        reply.extend_from_slice(&body);
        if stream.write_all(&reply).is_err() {
            return;
        }
    }
}

/// Answers as a xenstored in which domain 1 exists; `node` answers for all other nodes.
pub(crate) fn domain_one(
    kind: u32,
    path: &str,
    node: impl Fn(&str) -> Option<Answer>,
) -> Option<Answer> {
    match (kind, path) {
        (READ, "/local/domain/1" | "/local/domain/1/vm") => Some(Ok(b"/vm/1".to_vec())),
        (READ, path) => node(path),
        (WATCH | WRITE | REMOVE, _) => Some(Ok(b"OK\0".to_vec())),
        _ => Some(Err("ENOENT")),
    }
}

/// Starts `vchan ARGUMENTS` with its xenstored at `socket`.
pub(crate) fn start(socket: &Path, arguments: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_vchan"))
        .args(arguments.split(' '))
        .env("XENSTORED_PATH", socket)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Checks that the program failed as documented: status 1, one line of what, one of what to do.
/// Returns the former.
#[track_caller]
pub(crate) fn failed(child: Child) -> String {
    let output: Output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('[')).collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].starts_with("error: "), "{text}");
    lines[0].to_owned()
}

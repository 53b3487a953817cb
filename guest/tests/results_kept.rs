//! The command `vgpu` keeps a result that it has, however the session ends and whoever reads.

mod script;

use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use script::{LIMITS, Script, WATCHDOG};
use vgpu_protocol::frame::FrameHeader;
use vgpu_protocol::message::{InfoReply, Op};
use vgpu_protocol::status::{ErrorCode, Status, encode_error_text};
use vgpu_protocol::transport::TransportError;
use vgpu_socket_transport::SocketTransport;

/// How a mediator behaves when it shall answer Goodbye.
#[derive(Debug, Clone, Copy)]
enum End {
    Properly,
    Closes,
    /// It stops at that moment, in good order.
    Stops,
    Hangs,
}

/// A mediator at `unix:PATH` that serves one session and ends it like `end`.
fn mediator(path: &Path, end: End) -> JoinHandle<()> {
    let listener = UnixListener::bind(path).expect("a free path");
    thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a guest");
        let transport = SocketTransport::from_unix(stream).expect("a socket");
        let mut script = Script {
            end: Box::new(transport),
        };
        match serve(&mut script, end) {
            Ok(()) | Err(TransportError::Closed) => {}
            Err(error) => panic!("{error}"),
        }
    })
}

fn serve(script: &mut Script, end: End) -> Result<(), TransportError> {
    script.welcome(LIMITS)?;
    loop {
        let (header, body) = script.receive()?;
        let reply = FrameHeader::reply_to(&header, Status::OK);
        match header.op {
            Op::VectorAdd => script.add(&header, &body)?,
            Op::Info => script.send(reply, &InfoReply::default().encode())?,
            Op::Goodbye => {
                match end {
                    End::Properly => script.send(reply, &[])?,
                    End::Closes => {}
                    End::Stops => {
                        let closing = FrameHeader::closing(ErrorCode::Busy.into());
                        script.send(closing, encode_error_text("the mediator is stopping"))?;
                    }
                    // Until the guest gives up.
                    End::Hangs => drop(script.receive()),
                }
                return script.end.close(Instant::now() + WATCHDOG);
            }
            _ => script.send(reply, &body)?,
        }
    }
}

fn vgpu(path: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vgpu"));
    command
        .args(["--endpoint", &format!("unix:{}", path.display())])
        .args(["--timeout", "3"])
        .args(arguments)
        .env_remove("RUST_LOG");
    command
}

#[test]
fn a_result_outlives_a_goodbye_that_fails() {
    for end in [End::Properly, End::Closes, End::Stops, End::Hangs] {
        for arguments in [
            &["info"][..],
            &["ping", "--count", "3"],
            &["bench", "--sizes", "10", "--repeats", "1", "--pings", "3"],
            &["doctor"],
            &["vector-add", "--n", "1000", "--output", "OUTPUT"],
        ] {
            // Each waits for the time limit; two are enough.
            if matches!(end, End::Hangs) && !["info", "vector-add"].contains(&arguments[0]) {
                continue;
            }
            let directory = tempfile::tempdir().expect("a directory");
            let path = directory.path().join("vgpu.sock");
            let mediator = mediator(&path, end);
            let output_path = directory.path().join("c.f32");
            let arguments: Vec<&str> = arguments
                .iter()
                .map(|argument| match *argument {
                    "OUTPUT" => output_path.to_str().expect("a plain path"),
                    argument => argument,
                })
                .collect();
            let output = vgpu(&path, &arguments).output().expect("vgpu runs");
            mediator.join().expect("the mediator saw nothing wrong");
            let case = format!("{arguments:?}, {end:?}: {output:?}");
            assert!(output.status.success(), "{case}");
            assert!(!output.stdout.is_empty(), "{case}");
            if arguments[0] == "vector-add" {
                let written = std::fs::metadata(&output_path).expect("the result");
                assert_eq!(written.len(), 4000, "{case}");
            }
            let told = String::from_utf8_lossy(&output.stderr).contains("in good order")
                || String::from_utf8_lossy(&output.stdout).contains("! goodbye");
            assert_eq!(told, !matches!(end, End::Properly), "{case}");
        }
    }
}

#[test]
fn a_result_is_written_although_nobody_reads_what_is_printed() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("vgpu.sock");
    let mediator = mediator(&path, End::Properly);
    let output_path = directory.path().join("c.f32");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = vgpu(&path, &["vector-add", "--n", "1000", "--output"])
        .arg(&output_path)
        .stdout(writer)
        .stderr(Stdio::piped())
        .output()
        .expect("vgpu runs");
    mediator.join().expect("a goodbye all the same");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("cannot print the result"), "{stderr}");
    let written = std::fs::metadata(&output_path).expect("the result");
    assert_eq!(written.len(), 4000);
}

#[test]
fn a_pipe_that_does_not_block_gets_everything() {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("vgpu.sock");
    let mediator = mediator(&path, End::Properly);
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("a flag");
    // One page of room, nearly full.
    let size = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).expect("a size");
    let filler = usize::try_from(size).expect("a size") - 10;
    nix::unistd::write(&writer, &vec![b'x'; filler]).expect("room");
    let child = vgpu(&path, &["info"])
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .expect("vgpu runs");
    let mut printed = String::new();
    reader.read_to_string(&mut printed).expect("text");
    mediator.join().expect("a goodbye");
    let output = child.wait_with_output().expect("its end");
    assert!(output.status.success(), "{output:?}");
    assert!(printed[filler..].contains("limits"), "{printed}");
}

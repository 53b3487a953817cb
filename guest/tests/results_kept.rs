//! The command `vgpu` keeps a result that it has, however the session ends and whoever reads.

mod script;

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use script::device::Device;
use script::{Script, TERMS, WATCHDOG, info_reply};
use vgpu_protocol::frame::FrameHeader;
use vgpu_protocol::op::Op;
use vgpu_protocol::status::{ErrorCode, Status, encode_error_text};
use vgpu_socket_transport::{Secrets, SocketTransport, accept_tcp};
use vgpu_transport::{Transport, TransportError};

/// A mediator's reactions to Goodbye.
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
    script.welcome(TERMS)?;
    let mut device = Device::default();
    loop {
        let (header, body) = script.receive()?;
        let reply = FrameHeader::reply_to(&header, Status::OK);
        match header.op {
            Op::Info => script.reply(&header, &info_reply())?,
            Op::Ping => script.echo(&header, &body)?,
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
            _ => device.answer(script, &header, &body)?,
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
                let written = fs::metadata(&output_path).expect("the result");
                assert_eq!(written.len(), 4000, "{case}");
            }
            let told = String::from_utf8_lossy(&output.stderr).contains("in good order")
                || String::from_utf8_lossy(&output.stdout).contains("! goodbye");
            assert_eq!(told, !matches!(end, End::Properly), "{case}");
        }
    }
}

/// A mediator for one session over `scheme` that is gone when the guest says goodbye; its endpoint.
fn mediator_over(scheme: &str, directory: &Path) -> (String, JoinHandle<()>) {
    const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    let deadline = Instant::now() + WATCHDOG;
    let path = directory.join("v.sock");
    let closes = |transport: Box<dyn Transport>| {
        let mut script = Script { end: transport };
        match serve(&mut script, End::Closes) {
            Ok(()) | Err(TransportError::Closed) => {}
            Err(error) => panic!("{error}"),
        }
    };
    match scheme {
        "local" => {
            let listener = vchan::local::Listener::bind(&path).expect("a free path");
            let mediator = thread::spawn(move || {
                let stream = listener.accept(deadline).expect("a guest");
                let ring = vchan::local::connect_on(stream, deadline).expect("a ring");
                closes(Box::new(ring));
            });
            (format!("local:{}", path.display()), mediator)
        }
        "unix" => (
            format!("unix:{}", path.display()),
            mediator(&path, End::Closes),
        ),
        "tcp" => {
            let line = format!("tester {KEY}\n");
            let secret = directory.join("secret");
            fs::write(&secret, &line).expect("written");
            fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("our own");
            let secrets = Secrets::parse(&line).expect("a secret");
            let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
            let address = listener.local_addr().expect("an address");
            let mediator = thread::spawn(move || {
                let (stream, _) = listener.accept().expect("a guest");
                let expected = |name: &str| secrets.expected(name);
                let (transport, _) = accept_tcp(stream, expected, deadline).expect("a client");
                closes(Box::new(transport));
            });
            (format!("tcp:{address}"), mediator)
        }
        "file" => {
            let exchange = directory.join("exchange");
            fs::create_dir_all(exchange.join("sessions")).expect("made");
            let endpoint = format!("file:{}", exchange.display());
            let mediator = thread::spawn(move || {
                let name = loop {
                    assert!(Instant::now() < deadline, "no session");
                    let mut found = fs::read_dir(exchange.join("sessions")).expect("listed");
                    match found.next() {
                        Some(entry) => break entry.expect("an entry").file_name(),
                        None => thread::sleep(Duration::from_millis(5)),
                    }
                };
                let session = name.to_str().expect("text").parse().expect("a session");
                let transport = vgpu_file_transport::session::accept(
                    &exchange, None, session, 7, WATCHDOG, deadline,
                );
                closes(Box::new(transport.expect("a guest")));
            });
            (endpoint, mediator)
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_result_outlives_a_goodbye_that_fails_over_every_endpoint() {
    for scheme in ["local", "unix", "tcp", "file"] {
        for arguments in [
            &["info"][..],
            &["ping", "--count", "3"],
            &["bench", "--sizes", "10", "--repeats", "1", "--pings", "3"],
            &["vector-add", "--n", "100000", "--output", "sum"],
        ] {
            let directory = tempfile::tempdir().expect("a directory");
            let (endpoint, mediator) = mediator_over(scheme, directory.path());
            let output = Command::new(env!("CARGO_BIN_EXE_vgpu"))
                .args(["--endpoint", &endpoint, "--timeout", "20"])
                .args(["--secret-file", "secret"])
                .args(arguments)
                .current_dir(directory.path())
                .env_remove("RUST_LOG")
                .output()
                .expect("vgpu runs");
            let case = format!("{endpoint} {arguments:?}: {output:?}");
            assert!(output.status.success(), "{case}");
            assert!(!output.stdout.is_empty(), "{case}");
            let told = String::from_utf8_lossy(&output.stderr);
            assert!(told.contains("in good order"), "{case}");
            if arguments[0] == "vector-add" {
                let sum = fs::metadata(directory.path().join("sum")).expect("the result");
                assert_eq!(sum.len(), 400_000, "{case}");
            }
            mediator.join().expect("the mediator saw nothing wrong");
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
    assert!(stderr.contains("cannot use standard output"), "{stderr}");
    let written = fs::metadata(&output_path).expect("the result");
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

//! The command `vgpu` with a list of endpoints: which it takes, and what it says about the others.

mod script;

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use script::TERMS;
use vgpu_mediator::executor::cpu::CpuExecutor;
use vgpu_mediator::session::{self, SessionEnd, Stream, Timeouts};
use vgpu_mediator::usage::Observed;
use vgpu_socket_transport::SocketTransport;

/// One session of a mediator at `unix:PATH`.
fn serve_once(path: &Path) -> JoinHandle<SessionEnd> {
    let listener = UnixListener::bind(path).expect("a free path");
    thread::spawn(move || {
        let time = Duration::from_secs(60);
        let (stream, _) = listener.accept().expect("a guest");
        let mut stream = Stream::from(SocketTransport::from_unix(stream).expect("a socket"));
        let settings = session::Settings {
            terms: TERMS,
            timeouts: Timeouts {
                hello: time,
                idle: time,
                stall: time,
                request: None,
            },
            operations: session::OpSet::ALL,
            epoch: 0xABC,
            reason: None,
            refusal: None,
        };
        let mut cpu = || Ok(Box::new(CpuExecutor::new("a test")) as _);
        session::serve(
            &mut stream,
            &mut cpu,
            &settings,
            &Observed::default(),
            &Default::default(),
        )
    })
}

#[test]
fn the_list_is_tried_in_order_and_what_was_left_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vgpu.sock");
    let absent = directory.path().join("absent.sock");
    let list = format!(
        "local:{0},tcp:127.0.0.1:9,unix:{0},unix:{1}",
        absent.display(),
        path.display()
    );
    for arguments in [&["info"][..], &["vector-add", "--n", "1000"]] {
        let mediator = serve_once(&path);
        let output = Command::new(env!("CARGO_BIN_EXE_vgpu"))
            .arg("--json")
            .args(arguments)
            .env("VGPU_ENDPOINT", &list)
            .env_remove("VGPU_SECRET_FILE")
            .env_remove("RUST_LOG")
            .output()
            .expect("vgpu runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        assert!(matches!(mediator.join().unwrap(), SessionEnd::Goodbye));
        std::fs::remove_file(&path).unwrap();
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(told["endpoint"], format!("unix:{}", path.display()));
        let left = told["left"].as_array().unwrap();
        let wanted = [
            (format!("local:{}", absent.display()), "no mediator listens"),
            ("tcp:127.0.0.1:9".to_owned(), "needs a secret"),
            (format!("unix:{}", absent.display()), "no mediator listens"),
        ];
        assert_eq!(left.len(), wanted.len(), "{told}");
        for (left, (endpoint, reason)) in left.iter().zip(&wanted) {
            assert_eq!(left["endpoint"], *endpoint);
            let why = left["reason"].as_str().unwrap();
            assert!(why.contains(reason), "{why}");
            assert!(
                stderr.contains(&format!("skipped {endpoint} (")),
                "{stderr}"
            );
        }
    }
}

#[test]
fn the_conformance_suite_is_a_command() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vgpu.sock");
    let conformance = |more: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_vgpu"))
            .arg("--endpoint")
            .arg(format!("unix:{}", path.display()))
            .args(more)
            .env_remove("RUST_LOG")
            .output()
            .expect("vgpu runs")
    };
    let mediator = serve_once(&path);
    let passed = conformance(&["--json", "conformance", "--only", "pings_of_all_sizes"]);
    assert_eq!(passed.status.code(), Some(0));
    assert!(matches!(mediator.join().unwrap(), SessionEnd::Goodbye));
    let lines: Vec<serde_json::Value> = String::from_utf8_lossy(&passed.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(lines[0]["case"], "pings_of_all_sizes");
    assert_eq!(lines[0]["ok"], true);
    assert_eq!(
        lines[1],
        serde_json::json!({"schema": 2, "passed": 1, "failed": 0})
    );
    // Nobody listens there any more.
    let failed = conformance(&["conformance", "--only", "pings_of_all_sizes"]);
    assert_eq!(failed.status.code(), Some(1));
    let told = String::from_utf8_lossy(&failed.stdout);
    assert!(
        told.starts_with("FAILED pings_of_all_sizes over unix:"),
        "{told}"
    );
    assert!(
        told.ends_with("conformance: 0 passed, 1 failed\n"),
        "{told}"
    );
    let unknown = conformance(&["conformance", "--only", "no such case"]);
    assert_eq!(unknown.status.code(), Some(2));
}

//! The command `vchan connect` whose server takes another client first.

use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use vchan::local;

#[test]
fn a_client_that_is_left_for_another_waits_for_the_next_server() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_vchan"))
        .args(["connect", "--backend", "local", "--timeout", "60", "--echo"])
        .arg("--path")
        .arg(&path)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    // A server that has its client closes the connections of the others without reading them.
    for _ in 0..2 {
        drop(listener.accept().unwrap());
    }
    let (stream, _) = listener.accept().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut channel = local::serve_on(stream, 64 << 10, deadline).unwrap();
    channel.write_all(b"there", deadline).unwrap();
    let mut echo = [0; 5];
    channel.read_exact(&mut echo, deadline).unwrap();
    assert_eq!(&echo, b"there");
    channel.close(deadline).unwrap();
    assert!(child.wait().unwrap().success());
}

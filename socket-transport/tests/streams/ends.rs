//! Two ends of a connection, over each kind of socket.
#![allow(dead_code, reason = "each test program uses its part of this")]

use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use vgpu_socket_transport::{Secret, Secrets, SocketTransport, accept_tcp, connect_tcp};

/// Deadline of every step of a test.
pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

pub(crate) fn secrets(of: &[&Secret]) -> Secrets {
    let lines: Vec<String> = of
        .iter()
        .map(|secret| secret.to_line().to_string())
        .collect();
    Secrets::parse(&lines.join("\n")).unwrap()
}

pub(crate) fn unix() -> (SocketTransport, SocketTransport) {
    let (a, b) = UnixStream::pair().unwrap();
    let end = |stream| SocketTransport::from_unix(stream).unwrap();
    (end(a), end(b))
}

/// A client and the stream that the mediator accepted.
pub(crate) fn tcp() -> (SocketTransport, SocketTransport) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    tcp_through(listener.local_addr().unwrap().port(), &listener)
}

/// As [`tcp`], the client connecting to `port`.
pub(crate) fn tcp_through(port: u16, listener: &TcpListener) -> (SocketTransport, SocketTransport) {
    let secret = Secret::generate("tester").unwrap();
    let secrets = secrets(&[&secret]);
    thread::scope(|scope| {
        let client = scope
            .spawn(|| connect_tcp("127.0.0.1", port, Some(&secret), soon(), &|| false).unwrap());
        let (stream, _) = listener.accept().unwrap();
        let (mediator, name) = accept_tcp(stream, |name| secrets.expected(name), soon()).unwrap();
        assert_eq!(name, "tester");
        (client.join().unwrap(), mediator)
    })
}

/// Both kinds, with a name for messages.
pub(crate) fn both() -> [(&'static str, (SocketTransport, SocketTransport)); 2] {
    [("unix", unix()), ("tcp", tcp())]
}

/// A raw connection to a listener, and the accepted end.
pub(crate) fn raw() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

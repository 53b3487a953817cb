//! An HTTP server for one page, `/metrics`: bounded connections, nothing that waits.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::PollFd;
use nix::unistd::read;
use vchan::local::{Listener, Stranger};
use vgpu_cli::Failure;

use super::connections::Connections;
use crate::config::MetricsAddress;

/// Connections at once; more wait in the kernel's queue.
const MOST_CONNECTIONS: usize = 8;

/// Longest request in bytes: Prometheus sends a few hundred.
const MAX_REQUEST: usize = 8192;

/// Header lines that are read at most.
const MOST_HEADERS: usize = 64;

/// Time for one request and its answer.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// Time without another attempt after one that failed.
const PAUSE: Duration = Duration::from_secs(1);

const TEXT: &str = "text/plain; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The listening socket and its connections.
#[derive(Debug)]
pub(super) struct MetricsServer {
    door: Door,
    /// With the beginning of a request.
    connections: Connections<OwnedFd, Vec<u8>>,
    /// No connection is taken before: taking one has failed.
    not_before: Option<Instant>,
}

#[derive(Debug)]
enum Door {
    Unix(Listener),
    Tcp(TcpListener),
}

impl Door {
    /// A connection that waits, which blocks nobody.
    fn take(&self) -> io::Result<Option<Stranger<OwnedFd>>> {
        use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
        let stream = match self {
            Self::Unix(listener) => match listener.try_accept().map_err(io::Error::other)? {
                Some(stream) => OwnedFd::from(stream),
                None => return Ok(None),
            },
            Self::Tcp(listener) => match listener.accept() {
                Ok((stream, _)) => OwnedFd::from(stream),
                Err(error)
                    if matches!(error.kind(), ConnectionAborted | Interrupted | WouldBlock) =>
                {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            },
        };
        let stream = Stranger::from(stream);
        rustix::io::ioctl_fionbio(stream.as_fd(), true)?;
        Ok(Some(stream))
    }
}

impl MetricsServer {
    pub(super) fn bind(address: &MetricsAddress) -> Result<Self, Failure> {
        let failed = |error: io::Error| {
            Failure::system(
                format!("cannot listen on {address} for metrics"),
                error,
                "set `metrics` to unix:PATH or to a loopback address and a free port, such as 127.0.0.1:9835",
            )
        };
        let door = match address {
            MetricsAddress::Unix(path) => {
                let listener = Listener::bind_private(path);
                Door::Unix(listener.map_err(io::Error::other).map_err(failed)?)
            }
            MetricsAddress::Tcp(address) => {
                let listener = TcpListener::bind(address).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                Door::Tcp(listener)
            }
        };
        Ok(Self {
            door,
            connections: Connections::new(MOST_CONNECTIONS),
            not_before: None,
        })
    }

    /// The listening socket, while another connection can be taken.
    pub(super) fn listener(&self, now: Instant) -> Option<BorrowedFd<'_>> {
        let room = self.connections.has_room() && self.not_before.is_none_or(|at| at <= now);
        room.then(|| match &self.door {
            Door::Unix(listener) => listener.as_fd(),
            Door::Tcp(listener) => listener.as_fd(),
        })
    }

    /// The connections, and what each waits for; a hang-up is always reported.
    pub(super) fn connections(&self) -> impl Iterator<Item = (u64, PollFd<'_>)> {
        self.connections.polled()
    }

    /// When the first connection's time is over.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let connections = self.connections.deadline();
        connections.into_iter().chain(self.not_before).min()
    }

    /// Closes connections whose time is over.
    pub(super) fn expire(&mut self, now: Instant) {
        self.connections.expire(now);
        self.not_before = self.not_before.filter(|at| *at > now);
    }

    /// Takes one connection that waits.
    pub(super) fn accept(&mut self, now: Instant) {
        let stream = match self.door.take() {
            Ok(Some(stream)) => stream,
            Ok(None) => return,
            Err(error) => {
                // Out of descriptors, most likely: the connection still waits, so do not spin.
                log::warn!("metrics: no connection can be taken: {error}");
                self.not_before = Some(now + PAUSE);
                return;
            }
        };
        self.connections
            .take(stream, Vec::new(), now + REQUEST_LIMIT);
    }

    /// Moves what a connection has; whether it asks for the metrics now.
    pub(super) fn serve(&mut self, id: u64) -> bool {
        let Some((stream, request)) = self.connections.asking(id) else {
            return false;
        };
        let mut buffer = [0; 4096];
        let n = match read(stream, &mut buffer) {
            Ok(n) if n > 0 => n,
            Err(Errno::EAGAIN | Errno::EINTR) => return false,
            Ok(_) | Err(_) => {
                self.connections.close(id);
                return false;
            }
        };
        request.extend_from_slice(&buffer[..n]);
        let verdict = match judge(request) {
            Some(verdict) => verdict,
            None if request.len() > MAX_REQUEST => Err("431 Request Header Fields Too Large"),
            None => return false,
        };
        self.connections.has_asked(id);
        match verdict {
            Ok(()) => true,
            Err(status) => {
                self.respond(id, status, TEXT, &format!("{status}\n"));
                false
            }
        }
    }

    /// Answers a request for the metrics. The connection may be gone.
    pub(super) fn answer(&mut self, id: u64, text: &str) {
        self.respond(id, "200 OK", OPEN_METRICS, text);
    }

    fn respond(&mut self, id: u64, status: &str, kind: &str, body: &str) {
        let response = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        self.connections.answer(id, response.into_bytes());
    }
}

/// The answer to a request: the metrics, or a status. None yet if it is not complete.
fn judge(request: &[u8]) -> Option<Result<(), &'static str>> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    match parsed.parse(request) {
        Ok(httparse::Status::Partial) => None,
        Err(_) => Some(Err("400 Bad Request")),
        Ok(httparse::Status::Complete(_)) => {
            let page = parsed.path.and_then(|path| path.split('?').next());
            Some(match (parsed.method, page) {
                (Some("GET"), Some("/metrics")) => Ok(()),
                (Some("GET"), _) => Err("404 Not Found"),
                _ => Err("405 Method Not Allowed"),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_page_is_served() {
        let complete = |line: &str| judge(format!("{line}\r\nHost: a\r\n\r\n").as_bytes());
        assert_eq!(complete("GET /metrics HTTP/1.1"), Some(Ok(())));
        assert_eq!(complete("GET /metrics?name=a HTTP/1.0"), Some(Ok(())));
        assert_eq!(complete("GET / HTTP/1.1"), Some(Err("404 Not Found")));
        let refused = Some(Err("405 Method Not Allowed"));
        assert_eq!(complete("POST /metrics HTTP/1.1"), refused);
        assert_eq!(complete("\x01\x02"), Some(Err("400 Bad Request")));
        assert_eq!(judge(b"GET /metrics HTTP/1.1\r\nHost:"), None);
        let many = format!("GET /metrics HTTP/1.1{}\r\n\r\n", "\r\na: b".repeat(65));
        assert_eq!(judge(many.as_bytes()), Some(Err("400 Bad Request")));
    }
}

//! From a host and a port to an authenticated, encrypted stream, and the same from the other side.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, getsockopt, socket, sockopt,
};

use crate::error::{AcceptError, ConnectError};
use crate::handshake::{
    Answered, GREETING_START, Greeting, MESSAGE, READY_RECORD, greeting_length,
};
use crate::resolve::resolve;
use crate::secret::Secret;
use crate::secret_line::SecretError;
use crate::secrets::Expected;
use crate::socket::{Ready, Received, Socket, is_gone, poll};
use crate::transport::SocketTransport;

/// Interval at which a wait checks whether to give up.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// Connects to the mediator at `host` and `port` and proves knowledge of `secret`, until `deadline`
/// at the latest. All addresses of `host` are tried. `interrupted` is called now and then; the
/// attempt ends once it returns true.
///
/// # Errors
/// No address, nobody there, or no mediator that knows the secret. `None` as secret is an error
/// that says how to get one, since no mediator accepts a connection without.
pub fn connect_tcp(
    host: &str,
    port: u16,
    secret: Option<&Secret>,
    deadline: Instant,
    interrupted: &dyn Fn() -> bool,
) -> Result<SocketTransport, ConnectError> {
    let place = match host.contains(':') {
        true => format!("tcp:[{host}]:{port}"),
        false => format!("tcp:{host}:{port}"),
    };
    let secret = secret.ok_or_else(|| {
        ConnectError::new(
            format!("{place} needs a secret, and none is configured"),
            "make one with vgpuctl secret NAME, add its line to the mediator's secrets, and name \
             a file with the same line by --secret-file or VGPU_SECRET_FILE",
        )
    })?;
    let addresses = resolve(host, port, deadline, interrupted)?;
    let mut failures = Vec::new();
    for (index, address) in addresses.iter().enumerate() {
        // Each address gets a share of the time, so that one that does not answer leaves some to
        // the next.
        let left = deadline.saturating_duration_since(Instant::now());
        let others = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
        match reach(address, Instant::now() + left / others, interrupted) {
            Ok(stream) => {
                let socket = Socket::tcp(stream, place)
                    .map_err(|error| ConnectError::new(error.to_string(), "try again"))?;
                return greet(socket, secret, deadline, interrupted);
            }
            Err(Errno::EINTR) => return Err(ConnectError::interrupted()),
            Err(errno) => failures.push((address, errno)),
        }
    }
    Err(unreachable(&place, &failures))
}

/// A TCP connection; `EINTR`: the caller gives up.
fn reach(
    address: &SocketAddr,
    deadline: Instant,
    interrupted: &dyn Fn() -> bool,
) -> Result<TcpStream, Errno> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd: OwnedFd = socket(family, SockType::Stream, flags, None)?;
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(*address)) {
        Ok(()) => return Ok(TcpStream::from(fd)),
        // EINTR: the connection attempt goes on.
        Err(Errno::EINPROGRESS | Errno::EINTR) => {}
        Err(errno) => return Err(errno),
    }
    let write = Ready {
        read: false,
        write: true,
    };
    loop {
        if interrupted() {
            return Err(Errno::EINTR);
        }
        let until = deadline.min(Instant::now() + STOP_CHECK_INTERVAL);
        match poll(&fd, write, until) {
            Ok(Some(_)) => break,
            // Until the wait for the deadline itself has ended, and so checked after it.
            Ok(None) if until < deadline => {}
            Ok(None) => return Err(Errno::ETIMEDOUT),
            Err(error) => return Err(Errno::from_raw(error.raw_os_error().unwrap_or_default())),
        }
    }
    match getsockopt(&fd, sockopt::SocketError)? {
        0 => Ok(TcpStream::from(fd)),
        errno => Err(Errno::from_raw(errno)),
    }
}

fn unreachable(place: &str, failures: &[(&SocketAddr, Errno)]) -> ConnectError {
    let reasons: Vec<String> = failures
        .iter()
        .map(|(address, errno)| format!("{}: {}", with_zone(address), errno.desc()))
        .collect();
    let no_zone = |address: &SocketAddr| matches!(address, SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() && v6.scope_id() == 0);
    let advice = match failures.first().map(|(_, errno)| errno) {
        _ if failures.iter().any(|(address, _)| no_zone(address)) => {
            "a link-local address says nothing without its interface: write that behind a %, as in \
             [fe80::1%eth0] (ip link)"
        }
        Some(Errno::ECONNREFUSED) => {
            "start a mediator there (vgpu-mediatord --listen tcp:…), \
                                      and check the port"
        }
        Some(Errno::ETIMEDOUT | Errno::EHOSTUNREACH | Errno::ENETUNREACH) => {
            "check the address, the route and the firewalls between here and there"
        }
        _ => "check the address",
    };
    ConnectError::new(
        format!("cannot connect to {place} ({})", reasons.join(", ")),
        advice,
    )
}

/// The address as people write it, with its zone if it has one.
fn with_zone(address: &SocketAddr) -> String {
    match address {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{}%{}", v6.ip(), v6.scope_id()),
        _ => address.ip().to_string(),
    }
}

fn greet(
    socket: Socket,
    secret: &Secret,
    deadline: Instant,
    interrupted: &dyn Fn() -> bool,
) -> Result<SocketTransport, ConnectError> {
    let place = socket.place();
    let failed = |failure: Failure| match failure {
        Failure::Interrupted => ConnectError::interrupted(),
        Failure::TimedOut => ConnectError::new(
            format!("what listens at {place} did not answer in time"),
            "check that it is a vgpu-mediatord, and whether it is busy or stopped \
             (vgpuctl status there)",
        ),
        // The mediator gives its reason only in its own log.
        Failure::Gone => ConnectError::new(
            format!(
                "what listens at {place} did not accept the secret {}",
                secret.name()
            ),
            "look at the mediator's log for why; the same NAME KEY line must be in its secrets \
             and in this side's secret file, and the port must be a vgpu-mediatord's",
        ),
        Failure::Io(error) => ConnectError::new(format!("{place}: {error}"), "try again"),
    };
    let give_up = || interrupted();
    let exchange = Exchange {
        socket: &socket,
        deadline,
        give_up: &give_up,
    };
    let (greeting, bytes) = Greeting::new(secret);
    exchange.send(&bytes).map_err(failed)?;
    let mut answer = [0; MESSAGE];
    exchange.receive(&mut answer, &mut 0).map_err(failed)?;
    let (records, ready) = greeting.finish(&answer).map_err(|wrong| {
        ConnectError::new(
            format!("{place} is not to be trusted: {wrong}"),
            "check the address, and that both sides have the same NAME KEY line",
        )
    })?;
    exchange.send(&ready).map_err(failed)?;
    Ok(SocketTransport::sealed(socket, records))
}

/// Authenticates a client, until `deadline` at the latest. Returns the stream, and the client's
/// name.
///
/// `expected` is called for the key of a name once a whole greeting was read that could be a
/// client's, see [`Secrets::expected`](crate::Secrets::expected). It should have dropped all other
/// secrets when it returns, since this then waits for the client.
///
/// Costs little until the client has proved that it has a secret: at most two hundred bytes and a
/// few milliseconds of arithmetic.
///
/// # Errors
/// The client has no secret, or does not prove it in time, or `expected` fails.
pub fn accept_tcp(
    stream: TcpStream,
    expected: impl FnOnce(&str) -> Result<Expected, SecretError>,
    deadline: Instant,
) -> Result<(SocketTransport, String), AcceptError> {
    let place = match stream.peer_addr() {
        Ok(address) => format!("tcp:{address}"),
        Err(error) if is_gone(&error) => return Err(AcceptError::Gone { received: 0 }),
        Err(error) => return Err(error.into()),
    };
    let socket = Socket::tcp(stream, place)?;
    let exchange = Exchange {
        socket: &socket,
        deadline,
        give_up: &|| false,
    };
    let mut received = 0;
    let mut take = |bytes: &mut [u8]| {
        exchange
            .receive(bytes, &mut received)
            .map_err(|failure| failure.of_client(received))
    };
    let mut greeting = vec![0; GREETING_START];
    take(&mut greeting)?;
    let start = greeting.first_chunk().copied().unwrap_or_default();
    greeting.resize(greeting_length(&start)?, 0);
    take(&mut greeting[GREETING_START..])?;
    let (answered, answer) = Answered::new(&greeting, |name| {
        expected(name).map_err(|error| AcceptError::Secrets { error })
    })?;
    exchange
        .send(&answer)
        .map_err(|failure| failure.of_client(greeting.len()))?;
    let mut ready = [0; READY_RECORD];
    take(&mut ready)?;
    let (name, records) = answered.finish(&ready)?;
    Ok((SocketTransport::sealed(socket, records), name))
}

/// The exchange of a handshake's bytes, before there are records.
struct Exchange<'a> {
    socket: &'a Socket,
    deadline: Instant,
    give_up: &'a dyn Fn() -> bool,
}

enum Failure {
    Gone,
    TimedOut,
    Interrupted,
    Io(io::Error),
}

impl Failure {
    fn of_client(self, received: usize) -> AcceptError {
        match self {
            Self::Gone => AcceptError::Gone { received },
            Self::TimedOut | Self::Interrupted => AcceptError::TimedOut { received },
            Self::Io(error) => AcceptError::Io(error),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if is_gone(&error) {
            Self::Gone
        } else {
            Self::Io(error)
        }
    }
}

impl Exchange<'_> {
    fn send(&self, mut bytes: &[u8]) -> Result<(), Failure> {
        while !bytes.is_empty() {
            match self.socket.send(bytes, &[])? {
                0 => self.wait(Ready {
                    read: false,
                    write: true,
                })?,
                n => bytes = &bytes[n..],
            }
        }
        Ok(())
    }

    /// Fills `bytes`, and never takes more; adds to `received`.
    fn receive(&self, bytes: &mut [u8], received: &mut usize) -> Result<(), Failure> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.socket.receive(&mut bytes[filled..], &mut [])? {
                Received::Bytes(n) => {
                    filled += n;
                    *received += n;
                }
                Received::Nothing => self.wait(Ready {
                    read: true,
                    write: false,
                })?,
                // TCP passes no descriptors.
                Received::End | Received::Descriptors => return Err(Failure::Gone),
            }
        }
        Ok(())
    }

    fn wait(&self, wanted: Ready) -> Result<(), Failure> {
        loop {
            if (self.give_up)() {
                return Err(Failure::Interrupted);
            }
            let until = self.deadline.min(Instant::now() + STOP_CHECK_INTERVAL);
            if poll(self.socket, wanted, until)?.is_some() {
                return Ok(());
            }
            // Not the clock: the last check must come after the deadline.
            if until >= self.deadline {
                return Err(Failure::TimedOut);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV6;

    use super::*;

    #[test]
    fn a_link_local_address_needs_its_zone_and_failures_show_it() {
        let at = |zone| SocketAddr::from(SocketAddrV6::new("fe80::1".parse().unwrap(), 7, 0, zone));
        let said = |zone, errno| {
            let error = unreachable("tcp:[fe80::1]:7", &[(&at(zone), errno)]);
            (error.to_string(), error.advice().to_owned())
        };
        let (_, advice) = said(0, Errno::EINVAL);
        assert!(advice.contains("fe80::1%eth0"), "{advice}");
        let (what, advice) = said(3, Errno::EHOSTUNREACH);
        assert!(what.contains("fe80::1%3: "), "{what}");
        assert!(advice.contains("route"), "{advice}");
    }
}

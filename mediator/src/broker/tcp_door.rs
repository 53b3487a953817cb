//! `unix:` and `tcp:` endpoints: who connects, and what the broker decides about it.
//!
//! The broker accepts and hands the socket to a worker; it reads no byte of it. A Unix socket says
//! at once whose process is at the other end. Over TCP nobody is known at first: the worker finds
//! out by the handshake, tells the client's name, and waits for the broker's decision.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use vgpu_cli::Failure;
use vgpu_socket_transport::{Secret, Secrets};

use super::accounts::Refusal;
use super::peer::{EndpointKind, Peer};
use super::session_worker::SessionWorker;
use super::unauthenticated::Unauthenticated;
use super::{Broker, KICK_TIME};
use crate::worker::link::{Ask, Key};
use crate::worker::spec::{Carrier, Turned};

/// A listening TCP socket.
#[derive(Debug)]
pub(super) struct TcpDoor {
    socket: TcpListener,
    /// As it was configured.
    name: String,
}

impl TcpDoor {
    /// Listens at `host` and `port`.
    pub(super) fn open(host: &str, port: u16, name: String) -> Result<Self, Failure> {
        let bound = TcpListener::bind((host, port)).and_then(|socket| {
            socket.set_nonblocking(true)?;
            Ok((socket.local_addr()?, socket))
        });
        let (address, socket) = bound.map_err(|error| {
            Failure::system(
                format!("cannot listen on {name}"),
                error,
                "name an address of this machine and a free port above 1023, such as \
                 tcp:127.0.0.1:7070",
            )
        })?;
        if !address.ip().is_loopback() {
            log::info!(
                "{name} can be reached from other machines: who knows no secret learns nothing, \
                 but let a firewall decide who may try"
            );
        }
        Ok(Self { socket, name })
    }
}

impl AsFd for TcpDoor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Connections that wait to be looked at.
pub(super) type Newcomers = Unauthenticated<(TcpStream, SocketAddr)>;

impl Broker<'_> {
    pub(super) fn accept_tcp(&mut self, index: usize, now: Instant) {
        use std::io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
        let Some(door) = self.tcps.get(index) else {
            return;
        };
        match door.socket.accept() {
            Ok((stream, address)) => {
                self.newcomers.arrive(address.ip(), (stream, address), now);
                self.look_at_newcomers(now);
            }
            Err(error) if matches!(error.kind(), ConnectionAborted | Interrupted | WouldBlock) => {}
            Err(error) => {
                let line = format!("{}: {error}", door.name);
                self.accounts.log_of_kind(&EndpointKind::Tcp, &line, now);
                // Out of descriptors, most likely: the connection still waits, so do not spin.
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    /// Starts workers for those who have a place, and disconnects those for whom there is no room.
    pub(super) fn look_at_newcomers(&mut self, now: Instant) {
        for (_, address) in self.newcomers.out_of_patience(now) {
            self.disconnected(address, "nobody could look at it in time", now);
        }
        while let Some(turn) = self.newcomers.next(now) {
            if let Some(id) = turn.instead_of
                && let Some(session) = self.sessions.get_mut(&id)
            {
                session.put_out("it was silent, and its place was needed for others");
            }
            let (stream, address) = turn.connection;
            self.look_at(stream, address, now);
        }
        while let Some((_, address)) = self.newcomers.crowded_out() {
            self.disconnected(address, "too many wait to show their secret", now);
        }
    }

    fn disconnected(&mut self, address: SocketAddr, why: &str, now: Instant) {
        let peer = Peer::Tcp {
            name: None,
            address,
        };
        self.accounts.refuse(&peer, Refusal::Rate, now);
        let line = format!("disconnected: {why}");
        self.accounts.log(&peer, log::Level::Warn, &line, now);
    }

    fn look_at(&mut self, stream: TcpStream, address: SocketAddr, now: Instant) {
        let peer = Peer::Tcp {
            name: None,
            address,
        };
        let from: IpAddr = address.ip();
        let guest = OwnedFd::from(stream).into();
        if let Some(id) = self.start(peer, Carrier::Tcp, Some(guest), None, now)
            && let Some(session) = self.sessions.get_mut(&id)
        {
            let limit = Duration::from_secs(self.config.limits.connect_timeout_s.into());
            session.stranger = true;
            // It keeps its own time; this is for one that cannot.
            session.kill_at = Some(now + limit + KICK_TIME);
            self.newcomers.begin(from, id, now);
        }
    }

    /// The client of session `id` says that it is `name`: gives its worker what to hold it to. The file is
    /// read for every client, so that a new secret counts from the next one on, and what is not needed
    /// of it is wiped at once.
    pub(super) fn on_name(&mut self, id: u64, name: &str) {
        let Some(session) = self.sessions.get_mut(&id).filter(|at| at.stranger) else {
            return;
        };
        let file = self.config.secrets.as_deref();
        session.give_key(|| {
            // For every name, so that the two kinds of name take the same time.
            let decoy = Secret::generate(name);
            let found = file.map(|file| Ok(Secrets::read(file)?.find(name)));
            match (found.transpose(), decoy) {
                (Ok(Some(Some(secret))), _) => Key::Known(secret),
                (Ok(_), Ok(decoy)) => Key::Decoy(decoy),
                (Err(error), _) | (_, Err(error)) => Key::None(error.to_string()),
            }
        });
    }

    /// The client of session `id` has shown the secret of `name`: decides whether it is served.
    pub(super) fn on_client(&mut self, id: u64, name: &str, now: Instant) {
        let Some(Peer::Tcp { address, .. }) = self
            .sessions
            .get(&id)
            .filter(|session| session.stranger)
            .map(|session| &session.peer)
        else {
            let line =
                format!("session {id}: its worker names a client where there is none to name");
            if let Some(peer) = self.sessions.get(&id).map(|session| session.peer.clone()) {
                self.accounts.log(&peer, log::Level::Warn, &line, now);
            }
            return;
        };
        let peer = Peer::Tcp {
            name: Some(name.to_owned()),
            address: *address,
        };
        let paid = self.accounts.charge_start(&peer, now);
        self.newcomers.let_in(id, paid, now);
        let judgement = self.config.policy.judge_name(name);
        let most = judgement
            .max_sessions
            .unwrap_or(self.config.limits.max_sessions_per_guest);
        // Until the decision it is no session that counts.
        let refusal = match judgement.allow {
            false => Some(Turned::Denied(judgement.why)),
            true => self.check_limits(&peer, Some(most)),
        };
        let told = match &refusal {
            None => true,
            Some(turned) => self.note_refusal(&peer, turned, now),
        };
        let share = self.share(&peer);
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        session.peer = peer.clone();
        session.stranger = false;
        session.weight = share.weight.unwrap_or(1);
        session.devices = share.devices;
        session.kill_at = None;
        if session.was_warm {
            self.warm.no_stranger();
        }
        match refusal {
            None => {
                session.ask(Ask::Admit(Box::new(share)));
                let line = format!("session {id} begins (worker {})", session.pid());
                self.accounts.begin(&peer, now);
                self.accounts.log(&peer, log::Level::Info, &line, now);
            }
            Some(turned) => {
                session.refusing = true;
                session.ask(Ask::TurnAway(turned));
                if !told {
                    session.process.end();
                }
            }
        }
        self.give_memory(id, now);
        self.look_at_newcomers(now);
    }

    /// A worker has ended before it knew whom it served.
    pub(super) fn stranger_ended(&mut self, session: &SessionWorker, why: &str, now: Instant) {
        self.newcomers.refused(session.id, now);
        self.accounts.refuse(&session.peer, Refusal::Secret, now);
        let line = format!("not let in: {why}");
        self.accounts
            .log(&session.peer, log::Level::Warn, &line, now);
        self.look_at_newcomers(now);
    }
}

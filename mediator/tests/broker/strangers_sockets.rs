//! Clients that leave sockets behind whose last close sleeps: they hold up the broker at no time.
//!
//! Each connects, sends a TCP socket with a full send buffer and a long `SO_LINGER`, and goes away.
//! Whoever then closes the connection, closes that socket too, and sleeps, unless it exits.

use std::fs;
use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;

use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg, setsockopt, sockopt};
use vgpu_guest::Client;

use crate::support::{Mediator, WATCHDOG, add, options, wait_until};

/// How long the last close sleeps, in seconds: far longer than any watchdog.
const LINGER: i32 = 1000;

/// Endpoints, and warm workers, which are given such a connection in another way.
const WAYS: [(&str, usize); 4] = [("local", 0), ("unix", 0), ("local", 2), ("unix", 2)];

/// Leaves a connection with such a socket behind. What it returns keeps the socket full.
fn leave_behind(path: &Path) -> Option<TcpStream> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut filled = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    filled.set_nonblocking(true).unwrap();
    while filled.write(&[0; 64 << 10]).is_ok() {}
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: LINGER,
    };
    setsockopt(&filled, sockopt::Linger, &linger).unwrap();
    let stream = UnixStream::connect(path).ok()?;
    let rights = [filled.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&rights)];
    let bytes = [IoSlice::new(b"x")];
    let flags = MsgFlags::MSG_NOSIGNAL;
    // It may have been refused already.
    let _ = sendmsg::<()>(stream.as_raw_fd(), &bytes, &control, flags, None);
    // Where it was refused or let go of already, this one is the last.
    thread::spawn(move || drop(filled));
    Some(peer)
}

/// Names the socket for [`attacker`].
const ATTACK: &str = "VGPU_TEST_ATTACK";

/// A process of its own: what this program starts would inherit the sockets for a moment.
#[test]
fn attacker() {
    let Ok(path) = std::env::var(ATTACK) else {
        return;
    };
    let _peers: Vec<_> = (0..30)
        .map_while(|_| leave_behind(Path::new(&path)))
        .collect();
    println!("attacked");
    // Killed before that.
    thread::sleep(20 * WATCHDOG);
}

struct Attacker {
    child: Child,
    /// Kept open: it ends when it cannot print.
    _output: BufReader<ChildStdout>,
}

impl Attacker {
    /// Leaves 30 connections behind at `path`.
    fn attack(path: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "strangers_sockets::attacker", "--nocapture"])
            .env(ATTACK, path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let attacked = output
            .by_ref()
            .lines()
            .map_while(Result::ok)
            .any(|line| line.contains("attacked"));
        assert!(attacked);
        Self {
            child,
            _output: output,
        }
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_guest_is_served_while_what_strangers_left_lingers() {
    for (scheme, warm) in WAYS {
        let directory = tempfile::tempdir().unwrap();
        let unix = directory.path().join("unix.sock");
        let listen = format!("unix:{}", unix.display());
        let config = directory.path().join("config.toml");
        let text = format!("[limits]\nmax_sessions = 1\n[worker]\nwarm_workers = {warm}\n");
        fs::write(&config, text).unwrap();
        let flags = ["--config", config.to_str().unwrap(), "--listen", &listen];
        let mut mediator = Mediator::start(directory.path(), &flags);
        let (path, endpoint) = match scheme {
            "unix" => (unix, listen.parse().unwrap()),
            _ => (directory.path().join("vgpu.sock"), mediator.endpoint()),
        };
        // Far more than may wait to be let in, so that many are just disconnected.
        let _attackers = [(); 5].map(|()| Attacker::attack(&path));
        // Those who came before it have to be turned away first.
        let mut client = None;
        wait_until("a guest is let in", || {
            client = Client::connect(std::slice::from_ref(&endpoint), &options()).ok();
            client.is_some()
        });
        add(&mut client.unwrap(), 100).unwrap();
        wait_until("no child is left", || mediator.workers().len() == warm);
        mediator.signal(Signal::SIGTERM);
        assert!(mediator.wait().success(), "{scheme}: {}", mediator.log());
    }
}

#[test]
fn the_broker_answers_and_stops_while_what_strangers_left_is_closed() {
    for (scheme, warm) in WAYS {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("config.toml");
        let text = "[limits]\nmax_sessions = 1\ndrain_timeout_s = 5\n[worker]\nwarm_workers";
        fs::write(&config, format!("{text} = {warm}\n")).unwrap();
        let unix = directory.path().join("unix.sock");
        let listen = format!("unix:{}", unix.display());
        let flags = ["--config", config.to_str().unwrap(), "--listen", &listen];
        let mut mediator = Mediator::start(directory.path(), &flags);
        let path = match scheme {
            "unix" => unix,
            _ => directory.path().join("vgpu.sock"),
        };
        let _attackers = [Attacker::attack(&path), Attacker::attack(&path)];
        for _ in 0..5 {
            mediator.status();
        }
        // More than it closes at once: some are in the queue of the listening socket.
        mediator.signal(Signal::SIGTERM);
        let status = mediator.wait();
        assert!(status.success(), "{scheme}: {status}: {}", mediator.log());
    }
}

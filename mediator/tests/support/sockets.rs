//! A mediator with every kind of endpoint that needs no Xen.

use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, setsockopt, socket, sockopt,
};
use vgpu_guest::conformance::{self, CASES, Ground};
use vgpu_guest::{Client, Endpoint, Error, Options};
use vgpu_socket_transport::Secret;

use super::{Mediator, options};

/// Runs every case of the sessions' conformance suite over `endpoint`; `over` is for messages.
pub(crate) fn run_conformance(endpoint: &Endpoint, options: &Options, over: &str) {
    assert_eq!(run_some(endpoint, options, "", over), CASES.len());
}

/// Runs those of its cases whose names contain one of `names`.
pub(crate) fn run_cases(endpoint: &Endpoint, options: &Options, names: &[&str]) {
    for name in names {
        let run = run_some(endpoint, options, name, &endpoint.to_string());
        assert!(run > 0, "{name}");
    }
}

fn run_some(endpoint: &Endpoint, options: &Options, only: &str, over: &str) -> usize {
    let ground = Ground { endpoint, options };
    let mut run = 0;
    for outcome in conformance::run(&ground, only) {
        let name = outcome.case.name;
        if let Err(error) = outcome.result {
            panic!("{name} over {over}: {error}");
        }
        println!("{name}: {:?}", outcome.elapsed);
        run += 1;
    }
    run
}

/// Addresses given to mediators of this process.
static ADDRESSES: AtomicU8 = AtomicU8::new(1);

/// Endpoints, and what a client needs to use them.
pub(crate) struct Sockets {
    directory: PathBuf,
    tcp: Endpoint,
    _kept: OwnedFd,
}

impl Sockets {
    /// Secrets, paths and a port for a mediator in `directory`.
    pub(crate) fn new(directory: &Path) -> Self {
        let (tcp, kept) = free_tcp();
        let sockets = Self {
            directory: directory.to_owned(),
            tcp,
            _kept: kept,
        };
        let mut lines = String::from("# clients of a test\n");
        for name in ["tester", "other"] {
            let line = Secret::generate(name).unwrap().to_line();
            write_private(&sockets.secret(name), &line);
            lines.push_str(&line);
            lines.push('\n');
        }
        write_private(&sockets.secrets(), &lines);
        sockets
    }

    /// The file of the client `name`.
    pub(crate) fn secret(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.secret"))
    }

    /// The mediator's file.
    pub(crate) fn secrets(&self) -> PathBuf {
        self.directory.join("secrets")
    }

    pub(crate) fn unix(&self) -> Endpoint {
        Endpoint::Unix(self.directory.join("unix.sock"))
    }

    /// A directory, for a mediator to serve.
    pub(crate) fn file(&self) -> Endpoint {
        Endpoint::File(self.directory.join("exchange"))
    }

    pub(crate) fn tcp(&self) -> Endpoint {
        self.tcp.clone()
    }

    /// Host and port of [`tcp`](Self::tcp).
    pub(crate) fn address(&self) -> (String, u16) {
        match &self.tcp {
            Endpoint::Tcp { host, port } => (host.clone(), *port),
            other => panic!("{other} is not of TCP"),
        }
    }

    /// Starts a mediator with this configuration, which is in the file beside the sockets.
    pub(crate) fn start_configured(&self, text: &str, flags: &[&str]) -> (Mediator, PathBuf) {
        let file = self.directory.join("mediatord.toml");
        fs::write(&file, text).unwrap();
        let own = ["--config", file.to_str().unwrap()];
        (self.start(&[&own[..], flags].concat()), file)
    }

    /// Starts a mediator that listens on `local:`, `unix:` and `tcp:`.
    pub(crate) fn start(&self, flags: &[&str]) -> Mediator {
        self.start_with(flags, |_| {})
    }

    /// The same, after `prepare` has changed what it is started with.
    pub(crate) fn start_with(
        &self,
        flags: &[&str],
        prepare: impl FnOnce(&mut Command),
    ) -> Mediator {
        let listen = format!("{},{}", self.unix(), self.tcp());
        let secrets = self.secrets();
        let secrets = secrets.to_str().expect("a path of text");
        let own = ["--listen", &listen, "--secrets", secrets];
        Mediator::start_with(&self.directory, &[&own[..], flags].concat(), prepare)
    }

    /// Options of the client `tester`.
    pub(crate) fn options(&self) -> Options {
        self.options_of("tester")
    }

    pub(crate) fn options_of(&self, name: &str) -> Options {
        Options {
            secret_file: Some(self.secret(name)),
            ..options()
        }
    }

    pub(crate) fn connect(&self, endpoint: &Endpoint) -> Result<Client, Error> {
        Client::connect(std::slice::from_ref(endpoint), &self.options())
    }

    /// All endpoints that can be listened on and connected to here.
    pub(crate) fn endpoints(&self, mediator: &Mediator) -> Vec<Endpoint> {
        vec![mediator.endpoint(), self.unix(), self.tcp()]
    }
}

pub(crate) fn write_private(path: &Path, text: &str) {
    fs::write(path, text).expect("a directory of the test's own");
    fs::set_permissions(path, Permissions::from_mode(0o600)).expect("our own file");
}

/// A port that nothing uses, at a loopback address that no other test is likely to use; and what keeps others
/// from getting it, which is in nobody's way who listens there.
fn free_tcp() -> (Endpoint, OwnedFd) {
    // Relaxed: only this counter counts.
    let last = ADDRESSES.fetch_add(1, Ordering::Relaxed);
    let [.., high, low] = std::process::id().to_be_bytes();
    let address = Ipv4Addr::new(
        127,
        high.clamp(1, 254),
        low.clamp(1, 254),
        last.clamp(1, 254),
    );
    let kept = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .expect("a socket");
    setsockopt(&kept, sockopt::ReuseAddr, &true).expect("every system has it");
    let any = SockaddrIn::from(SocketAddrV4::new(address, 0));
    bind(kept.as_raw_fd(), &any).expect("a free port");
    let bound: SockaddrIn = getsockname(kept.as_raw_fd()).expect("it has an address");
    let endpoint = Endpoint::Tcp {
        host: address.to_string(),
        port: bound.port(),
    };
    (endpoint, kept)
}

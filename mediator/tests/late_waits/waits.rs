//! The waits, and what each waits for.

use std::any::Any;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use vchan::Channel;
use vchan::local;
use vchan::two_channels::{Side, TwoChannels};
use vchan::xen::store::Store;
use vgpu_guest::{Client, Endpoint, Options};
use vgpu_mediator::control::{Ask, client};
use vgpu_socket_transport::{
    Secret, Secrets, SocketTransport, accept_tcp, connect_tcp, connect_unix,
};
use vgpu_transport::{Interest, Transport, Waker};

use crate::support::sockets::{Sockets, write_private};
use crate::support::{Mediator, WATCHDOG, only_ours_to_change, wait_until};
use crate::{begin, signal, stands_still};

/// How long each may take: enough to stop it before.
const TIME: Duration = Duration::from_secs(2);

/// How long `vgpuctl` gives a mediator.
const CONTROL_TIME: Duration = Duration::from_secs(5);

type Outcome = Result<(), Box<dyn std::error::Error>>;

pub(crate) struct Wait {
    pub(crate) name: &'static str,
    /// The side that gives what is waited for.
    pub(crate) other: fn(&Path) -> Box<dyn Other>,
    /// Makes the wait, in a process of its own.
    pub(crate) make: fn(&Path) -> Outcome,
}

/// The side that gives what is waited for.
pub(crate) trait Other {
    /// Environment of the waiting process.
    fn environment(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
    /// The process that waits is ready.
    fn meet(&mut self) {}
    /// The wait has begun.
    fn begun(&mut self) {}
    /// The process that waits is stopped: gives it what it waits for.
    fn give(&mut self);
}

pub(crate) const WAITS: &[Wait] = &[
    Wait {
        name: "a_socket_to_read",
        other: unix_giver,
        make: |directory| {
            let mut stream = unix(directory)?;
            Ok(stream.wait(Interest::Read, begin(TIME))?)
        },
    },
    Wait {
        name: "a_socket_to_read_or_a_waker",
        other: unix_giver,
        make: |directory| {
            let mut stream = unix(directory)?;
            Ok(stream.wait_or(Some(Interest::Read), &Waker::new()?, begin(TIME))?)
        },
    },
    Wait {
        name: "a_socket_to_write",
        other: unix_taker,
        make: |directory| {
            let mut stream = unix(directory)?;
            while stream.try_write(&[0; 1 << 16])? > 0 {}
            Ok(stream.wait(Interest::Write, begin(TIME))?)
        },
    },
    Wait {
        name: "a_socket_to_take_everything",
        other: tcp_taker,
        make: |directory| {
            let mut stream = tcp(directory, Instant::now() + WATCHDOG)?;
            // The kernel finds more room as it goes.
            for _ in 0..10 {
                while stream.try_write(&[0; 1 << 16])? > 0 {}
                thread::sleep(Duration::from_millis(20));
            }
            Ok(stream.flush(begin(TIME))?)
        },
    },
    Wait {
        name: "the_answer_to_a_handshake",
        other: handshake,
        make: |directory| tcp(directory, begin(TIME)).map(drop),
    },
    Wait {
        name: "an_encrypted_stream_to_read",
        other: tcp_giver,
        make: |directory| {
            let mut stream = tcp(directory, Instant::now() + WATCHDOG)?;
            Ok(stream.read_exact(&mut [0], begin(TIME))?)
        },
    },
    Wait {
        name: "a_channel_to_read",
        other: channel_giver,
        make: |directory| {
            let mut channel = channel(directory)?;
            Ok(channel.wait(Interest::Read, begin(TIME))?)
        },
    },
    Wait {
        name: "a_channel_or_a_socket",
        other: channel_giver,
        make: |directory| {
            let mut channel = channel(directory)?;
            let sides = [Side::Channel(&mut channel, Interest::Read), Side::Nothing];
            Ok(TwoChannels::new().wait(sides, begin(TIME))?)
        },
    },
    Wait {
        name: "a_client_to_connect",
        other: |directory| later(directory, |path| Box::new(UnixStream::connect(path))),
        make: |directory| {
            let listener = local::Listener::bind(&directory.join("socket"))?;
            Ok(listener.accept(begin(TIME)).map(drop)?)
        },
    },
    Wait {
        name: "a_server_to_listen",
        other: |directory| later(directory, |path| Box::new(UnixListener::bind(path))),
        make: |directory| {
            let deadline = begin(TIME);
            Ok(local::connect_stream(&directory.join("socket"), deadline).map(drop)?)
        },
    },
    Wait {
        name: "xenstored_to_answer",
        other: xenstored,
        make: |_| {
            let store = Store::open(Instant::now() + WATCHDOG)?;
            let value = store.read("domid", begin(TIME))?;
            assert_eq!(&*value, "7");
            Ok(())
        },
    },
    Wait {
        name: "the_mediator_to_answer_vgpuctl",
        other: |directory| served(directory, None),
        make: |directory| {
            begin(CONTROL_TIME);
            Ok(client::ask(&directory.join("control.sock"), Ask::Status).map(drop)?)
        },
    },
    Wait {
        name: "a_reply_over_local",
        other: |directory| {
            served(
                directory,
                Some(Endpoint::Local(directory.join("vgpu.sock"))),
            )
        },
        make: one_lane,
    },
    Wait {
        name: "a_reply_over_unix",
        other: |directory| served(directory, Some(Sockets::new(directory).unix())),
        make: one_lane,
    },
    Wait {
        name: "a_reply_over_file",
        other: |directory| served(directory, Some(Sockets::new(directory).file())),
        make: one_lane,
    },
    Wait {
        name: "replies_on_several_lanes",
        other: |directory| served(directory, Some(Sockets::new(directory).unix())),
        make: several_lanes,
    },
];

fn unix(directory: &Path) -> Result<SocketTransport, Box<dyn std::error::Error>> {
    let soon = Instant::now() + WATCHDOG;
    Ok(connect_unix(&directory.join("socket"), soon, &|| false)?)
}

fn tcp(directory: &Path, deadline: Instant) -> Result<SocketTransport, Box<dyn std::error::Error>> {
    let secret = Secret::read(&directory.join("tester.secret"))?;
    let port = std::env::var("PORT")?.parse()?;
    Ok(connect_tcp(
        "127.0.0.1",
        port,
        Some(&secret),
        deadline,
        &|| false,
    )?)
}

fn channel(directory: &Path) -> Result<Channel, Box<dyn std::error::Error>> {
    let mut channel = local::connect(&directory.join("socket"), Instant::now() + WATCHDOG)?;
    // It sleeps, and does not look.
    channel.set_spin(Duration::ZERO);
    Ok(channel)
}

/// A session in which nothing may stand still for longer than [`TIME`].
fn session() -> Result<Client, Box<dyn std::error::Error>> {
    let endpoint = std::env::var("ENDPOINT")?.parse()?;
    let options = Options {
        connect_timeout: WATCHDOG,
        stall_timeout: TIME,
        ..Options::default()
    };
    Ok(Client::connect(&[endpoint], &options)?)
}

fn one_lane(_: &Path) -> Outcome {
    let mut client = session()?;
    begin(TIME);
    client.ping(b"late")?;
    Ok(())
}

fn several_lanes(_: &Path) -> Outcome {
    let mut client = session()?;
    let mut others = [client.lane()?, client.lane()?, client.lane()?];
    begin(TIME);
    thread::scope(|scope| {
        let lanes: Vec<_> = others
            .iter_mut()
            .map(|lane| scope.spawn(|| lane.ping(b"late")))
            .collect();
        client.ping(b"late")?;
        for lane in lanes {
            lane.join().expect("no panic")?;
        }
        Ok(())
    })
}

/// A side that is connected to by a process that waits.
struct Peer<S> {
    environment: Vec<(&'static str, String)>,
    meeting: Option<JoinHandle<S>>,
    stream: Option<S>,
    /// Returns once the process that waits has nothing more to do than that.
    until_it_waits: fn(&S),
    /// Makes the value to keep open.
    give: fn(S) -> Box<dyn Any>,
    given: Option<Box<dyn Any>>,
}

impl<S: Send + 'static> Peer<S> {
    fn boxed(
        meet: impl FnOnce() -> S + Send + 'static,
        give: fn(S) -> Box<dyn Any>,
        environment: Vec<(&'static str, String)>,
        until_it_waits: fn(&S),
    ) -> Box<dyn Other> {
        Box::new(Self {
            environment,
            meeting: Some(thread::spawn(meet)),
            stream: None,
            until_it_waits,
            give,
            given: None,
        })
    }
}

impl<S: Send + 'static> Other for Peer<S> {
    fn environment(&self) -> Vec<(&'static str, String)> {
        self.environment.clone()
    }

    fn begun(&mut self) {
        let meeting = self.meeting.take().expect("it meets once");
        let stream = meeting.join().expect("they meet");
        (self.until_it_waits)(&stream);
        self.stream = Some(stream);
    }

    fn give(&mut self) {
        let stream = self.stream.take().expect("they have met");
        self.given = Some((self.give)(stream));
    }
}

fn unix_peer(directory: &Path, give: fn(UnixStream) -> Box<dyn Any>) -> Box<dyn Other> {
    let listener = UnixListener::bind(directory.join("socket")).expect("a socket");
    let meet = move || listener.accept().expect("a client").0;
    Peer::boxed(meet, give, Vec::new(), |_| {})
}

fn unix_giver(directory: &Path) -> Box<dyn Other> {
    unix_peer(directory, |mut stream| {
        stream.write_all(b"x").expect("it has room");
        Box::new(stream)
    })
}

fn unix_taker(directory: &Path) -> Box<dyn Other> {
    unix_peer(directory, |mut stream| {
        stream.set_nonblocking(true).expect("our own");
        while stream.read(&mut [0; 1 << 16]).is_ok_and(|n| n > 0) {}
        Box::new(stream)
    })
}

/// A listener, and the port in the environment of who is to connect; with the secret of both.
fn tcp_listener(directory: &Path) -> (TcpListener, Vec<(&'static str, String)>, Secrets) {
    let secret = Secret::generate("tester").expect("random numbers");
    write_private(&directory.join("tester.secret"), &secret.to_line());
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its own").port();
    let secrets = Secrets::parse(&secret.to_line()).expect("its own line");
    (listener, vec![("PORT", port.to_string())], secrets)
}

fn tcp_peer(directory: &Path, give: fn(SocketTransport) -> Box<dyn Any>) -> Box<dyn Other> {
    let (listener, environment, secrets) = tcp_listener(directory);
    let meet = move || {
        let (stream, _) = listener.accept().expect("a client");
        accept(stream, &secrets)
    };
    Peer::boxed(meet, give, environment, |_| {})
}

fn accept(stream: TcpStream, secrets: &Secrets) -> SocketTransport {
    let deadline = Instant::now() + WATCHDOG;
    let accepted = accept_tcp(stream, |name| secrets.expected(name), deadline);
    accepted.expect("it has the secret").0
}

fn tcp_giver(directory: &Path) -> Box<dyn Other> {
    tcp_peer(directory, |mut stream| {
        stream.try_write(b"x").expect("it has room");
        stream
            .flush(Instant::now() + WATCHDOG)
            .expect("it has room");
        Box::new(stream)
    })
}

/// It goes on taking while the other side stands still and afterwards.
fn tcp_taker(directory: &Path) -> Box<dyn Other> {
    tcp_peer(directory, |mut stream| {
        Box::new(thread::spawn(move || {
            let mut scrap = [0; 1 << 16];
            let soon = Instant::now() + WATCHDOG;
            while stream.wait(Interest::Read, soon).is_ok() {
                if !matches!(stream.try_read(&mut scrap), Ok(Some(1..) | None)) {
                    break;
                }
            }
        }))
    })
}

/// Answers the client's greeting while the client stands still.
fn handshake(directory: &Path) -> Box<dyn Other> {
    let (listener, environment, secrets) = tcp_listener(directory);
    let meet = move || (listener.accept().expect("a client").0, secrets);
    let greeted = |(stream, _): &(TcpStream, Secrets)| {
        stream.peek(&mut [0]).expect("its greeting");
    };
    let give = |(stream, secrets): (TcpStream, Secrets)| -> Box<dyn Any> {
        Box::new(thread::spawn(move || accept(stream, &secrets)))
    };
    Peer::boxed(meet, give, environment, greeted)
}

fn channel_giver(directory: &Path) -> Box<dyn Other> {
    let path = directory.join("socket");
    let meet =
        move || local::serve(&path, 4096.into(), Instant::now() + WATCHDOG).expect("a client");
    let give = |mut channel: Channel| -> Box<dyn Any> {
        channel
            .write_all(b"x", Instant::now() + WATCHDOG)
            .expect("it has room");
        Box::new(channel)
    };
    Peer::boxed(meet, give, Vec::new(), |_| {})
}

/// Does something with the socket's path while the other side stands still.
struct Later {
    path: PathBuf,
    give: fn(&Path) -> Box<dyn Any>,
    given: Option<Box<dyn Any>>,
}

fn later(directory: &Path, give: fn(&Path) -> Box<dyn Any>) -> Box<dyn Other> {
    Box::new(Later {
        path: directory.join("socket"),
        give,
        given: None,
    })
}

impl Other for Later {
    fn give(&mut self) {
        self.given = Some((self.give)(&self.path));
    }
}

/// An xenstored that answers every request with 7, the first on a signal.
fn xenstored(directory: &Path) -> Box<dyn Other> {
    let path = directory.join("socket");
    let environment = vec![("XENSTORED_PATH", path.display().to_string())];
    let listener = UnixListener::bind(path).expect("a socket");
    let meet = move || {
        let mut stream = listener.accept().expect("a client").0;
        let request = request(&mut stream);
        (stream, request)
    };
    let give = |(mut stream, header): (UnixStream, [u8; 16])| -> Box<dyn Any> {
        let mut answer = header;
        answer[12..].copy_from_slice(&1u32.to_ne_bytes());
        stream
            .write_all(&[&answer[..], b"7"].concat())
            .expect("it has room");
        Box::new(stream)
    };
    Peer::boxed(meet, give, environment, |_| {})
}

/// Reads a request, of whose header the last four bytes are the length of what follows.
fn request(stream: &mut UnixStream) -> [u8; 16] {
    let mut header = [0; 16];
    stream.read_exact(&mut header).expect("a request");
    let length = u32::from_ne_bytes(*header.last_chunk().expect("four bytes"));
    let mut rest = vec![0; length as usize];
    stream.read_exact(&mut rest).expect("the rest of it");
    header
}

/// A mediator with a process stopped until the wait is over.
struct Served {
    mediator: Mediator,
    /// Endpoint on which workers serve sessions; `None` if the broker itself is tested.
    endpoint: Option<Endpoint>,
    stopped: Vec<u32>,
}

fn served(directory: &Path, endpoint: Option<Endpoint>) -> Box<dyn Other> {
    let own = Endpoint::Local(directory.join("vgpu.sock"));
    let listen = endpoint.as_ref().filter(|endpoint| **endpoint != own);
    let listen = listen.map(ToString::to_string);
    if let Some(Endpoint::File(path)) = &endpoint {
        std::fs::create_dir(path).expect("a directory");
        only_ours_to_change(path);
    }
    let flags = listen.as_ref().map(|listen| ["--listen", listen]);
    let flags = flags.as_ref().map_or(&[][..], |flags| flags);
    Box::new(Served {
        mediator: Mediator::start(directory, flags),
        endpoint,
        stopped: Vec::new(),
    })
}

impl Other for Served {
    fn environment(&self) -> Vec<(&'static str, String)> {
        let endpoint = self.endpoint.as_ref();
        endpoint
            .map(|it| ("ENDPOINT", it.to_string()))
            .into_iter()
            .collect()
    }

    fn meet(&mut self) {
        self.stopped = match self.endpoint {
            Some(_) => self.mediator.workers(),
            None => vec![self.mediator.pid()],
        };
        for pid in &self.stopped {
            signal(*pid, Signal::SIGSTOP);
            wait_until("it stands still", || stands_still(*pid));
        }
    }

    fn give(&mut self) {
        for pid in self.stopped.drain(..) {
            signal(pid, Signal::SIGCONT);
        }
    }
}

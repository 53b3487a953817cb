//! The own client: requests and one watch over xenstored's socket or the kernel's device.
//!
//! All waits here have a deadline, with two exceptions over `/dev/xen/xenbus`: the kernel takes
//! part of a request's memory while another domain's save is under way, and it makes the request
//! for a watch itself, on its caller's thread. [`Watching::start`] therefore reads a node first,
//! which shows that xenstored answers.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, socket,
};

use super::interface::{Failed, Requests, Waited, Watch};
use super::route::{self, DEVICE, DEVICE_ANSWER, RETRY_PAUSE};
use super::wire::{self, Inbox, Kind, Message};
use crate::waiting::poll::poll_fds;

/// Time limit for making the connection for a watch.
const WATCH_SETUP: Duration = Duration::from_secs(5);

/// Most messages read beyond a deadline, in search of an answer that came in time behind them.
const MOST_LATE_MESSAGES: usize = 64;

/// Most events that are merged into one.
const EVENTS_AT_ONCE: usize = 256;

/// Longest error code that is passed on, in bytes; the longest known has seven.
const CODE_MAX: usize = 32;

/// The token of the only watch on a connection.
const TOKEN: &[u8] = b"1\0";

/// A connection on which one request is under way at a time.
#[derive(Debug)]
pub(super) struct Client {
    file: OwnedFd,
    over_device: bool,
    inbox: Inbox,
    last_request: u32,
    /// An event arrived while the client waited for an answer.
    fired: bool,
}

impl Client {
    /// Connects to the socket, or opens the device where there is none.
    ///
    /// # Errors
    /// There is neither, or there is a socket and it does not answer by `deadline`.
    pub(super) fn connect(deadline: Instant) -> io::Result<Self> {
        loop {
            // Read before checking, here and below, so that one check follows the deadline.
            let late = Instant::now() >= deadline;
            match connect_socket() {
                // Its accept queue is full.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if late {
                        return Err(route::no_room());
                    }
                    thread::sleep(RETRY_PAUSE);
                }
                outcome => {
                    return Ok(match route::decide(outcome)? {
                        Some(socket) => Self::over(socket, false),
                        None => Self::over(open_device()?, true),
                    });
                }
            }
        }
    }

    fn over(file: OwnedFd, over_device: bool) -> Self {
        Self {
            file,
            over_device,
            inbox: Inbox::default(),
            last_request: 0,
            fired: false,
        }
    }

    /// Makes one request; returns the payload of its answer.
    fn call(&mut self, kind: Kind, parts: &[&[u8]], deadline: Instant) -> Result<Vec<u8>, Failed> {
        self.last_request = self.last_request.wrapping_add(1);
        let id = self.last_request;
        let request =
            wire::encode(kind, id, parts).ok_or_else(|| Failed::Refused("E2BIG".into()))?;
        self.send(&request, deadline)?;
        let mut beyond = 0;
        loop {
            let message = self.receive(deadline)?;
            beyond += usize::from(Instant::now() >= deadline);
            if beyond > MOST_LATE_MESSAGES {
                return Err(Failed::TimedOut);
            }
            if message.is(Kind::WatchEvent) {
                self.fired = true;
            } else if message.request != id {
                // The answer to a request that was given up.
                log::debug!(
                    "a late answer from xenstored to request {}",
                    message.request
                );
            } else if message.is(kind) {
                return Ok(message.payload);
            } else if message.is(Kind::Error) {
                return Err(Failed::Refused(code(&message.payload)));
            } else {
                let text = format!("a message of type {} answers one of {kind:?}", message.kind);
                return Err(Failed::Broken(nonsense(text)));
            }
        }
    }

    fn send(&mut self, mut bytes: &[u8], deadline: Instant) -> Result<(), Failed> {
        let whole = bytes.len();
        while !bytes.is_empty() {
            let late = Instant::now() >= deadline;
            let written = if self.over_device {
                nix::unistd::write(&self.file, bytes)
            } else {
                // A C program that links this may not ignore SIGPIPE, as Rust programs do.
                send(self.file.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL)
            };
            match written {
                Ok(n) => bytes = &bytes[n..],
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if !late => {
                    self.poll(PollFlags::POLLOUT, deadline)?;
                }
                // Half a request cannot be followed by another.
                Err(Errno::EAGAIN) if bytes.len() < whole => {
                    return Err(Failed::Broken(io::ErrorKind::TimedOut.into()));
                }
                Err(Errno::EAGAIN) => return Err(Failed::TimedOut),
                Err(errno) => return Err(Failed::Broken(errno.into())),
            }
        }
        Ok(())
    }

    fn receive(&mut self, deadline: Instant) -> Result<Message, Failed> {
        loop {
            let late = Instant::now() >= deadline;
            if let Some(message) = self.try_receive()? {
                return Ok(message);
            }
            if late {
                return Err(Failed::TimedOut);
            }
            self.poll(PollFlags::POLLIN, deadline)?;
        }
    }

    /// The next message, if all of it is there.
    fn try_receive(&mut self) -> Result<Option<Message>, Failed> {
        loop {
            let n = match nix::unistd::read(&self.file, self.inbox.unfilled()) {
                Ok(0) => {
                    let text = "xenstored has closed the connection";
                    let error = io::Error::new(io::ErrorKind::BrokenPipe, text);
                    return Err(Failed::Broken(error));
                }
                Ok(n) => n,
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return Ok(None),
                Err(errno) => return Err(Failed::Broken(errno.into())),
            };
            match self.inbox.advance(n) {
                Ok(None) => {}
                Ok(message) => return Ok(message),
                Err(len) => {
                    let text = format!("a message from xenstored says that it has {len} bytes");
                    return Err(Failed::Broken(nonsense(text)));
                }
            }
        }
    }

    fn poll(&self, events: PollFlags, deadline: Instant) -> Result<(), Failed> {
        poll_fds(&[(self.file.as_fd(), events)], deadline)
            .map(drop)
            .map_err(|error| Failed::Broken(io::Error::other(error.to_string())))
    }

    /// The names right below `path`, in as many answers as needed.
    fn directory_in_parts(
        &mut self,
        path: &str,
        deadline: Instant,
    ) -> Result<Vec<Box<str>>, Failed> {
        let mut asked = false;
        'again: loop {
            let mut listed = Vec::new();
            let mut generation = None;
            loop {
                // A list that changes all the time would never end.
                if std::mem::replace(&mut asked, true) && Instant::now() >= deadline {
                    return Err(Failed::TimedOut);
                }
                let offset = format!("{}\0", listed.len());
                let parts = [path.as_bytes(), b"\0", offset.as_bytes()];
                let part = match self.call(Kind::DirectoryPart, &parts, deadline) {
                    // This xenstored cannot list in parts; its first error is the reason to report.
                    Err(Failed::Refused(code)) if code == "ENOSYS" || code == "EINVAL" => {
                        return Err(Failed::Refused("E2BIG".into()));
                    }
                    part => part?,
                };
                let (now, names) = split_part(&part)?;
                // The list has changed between two parts of it.
                if generation.get_or_insert_with(|| now.to_vec()) != now {
                    continue 'again;
                }
                // The last part ends with an empty name.
                let (names, last) = match names {
                    [] => (names, true),
                    [names @ .., 0] if names.is_empty() || names.ends_with(&[0]) => (names, true),
                    names => (names, false),
                };
                listed.extend_from_slice(names);
                if last {
                    return wire::names(&listed).map_err(|_| Failed::NotText);
                }
                if listed.len() > wire::ANSWER_MAX {
                    return Err(Failed::Refused("E2BIG".into()));
                }
            }
        }
    }
}

/// Splits the payload of an answer to [`Kind::DirectoryPart`] into generation and names.
fn split_part(payload: &[u8]) -> Result<(&[u8], &[u8]), Failed> {
    let end = payload.iter().position(|byte| *byte == 0);
    let end = end.ok_or_else(|| Failed::Broken(nonsense("a list without generation".into())))?;
    Ok((&payload[..end], &payload[end + 1..]))
}

/// The error code at the start of `payload`, as xenstored marks it.
fn code(payload: &[u8]) -> String {
    let code = payload.split(|byte| *byte == 0).next().unwrap_or_default();
    code[..code.len().min(CODE_MAX)].escape_ascii().to_string()
}

fn nonsense(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn text(payload: &[u8]) -> Result<Box<str>, Failed> {
    // Some writers end their values with a NUL.
    let payload = payload.strip_suffix(&[0]).unwrap_or(payload);
    std::str::from_utf8(payload)
        .map(Box::from)
        .map_err(|_| Failed::NotText)
}

impl Requests for Client {
    fn directory(&mut self, path: &str, deadline: Instant) -> Result<Vec<Box<str>>, Failed> {
        match self.call(Kind::Directory, &[path.as_bytes(), b"\0"], deadline) {
            Ok(payload) => wire::names(&payload).map_err(|_| Failed::NotText),
            Err(Failed::Refused(code)) if code == "E2BIG" => {
                self.directory_in_parts(path, deadline)
            }
            Err(failed) => Err(failed),
        }
    }

    fn read(&mut self, path: &str, deadline: Instant) -> Result<Box<str>, Failed> {
        text(&self.call(Kind::Read, &[path.as_bytes(), b"\0"], deadline)?)
    }

    fn write(&mut self, path: &str, value: &str, deadline: Instant) -> Result<(), Failed> {
        let parts = [path.as_bytes(), b"\0", value.as_bytes()];
        self.call(Kind::Write, &parts, deadline).map(drop)
    }

    fn remove(&mut self, path: &str, deadline: Instant) -> Result<(), Failed> {
        self.call(Kind::Remove, &[path.as_bytes(), b"\0"], deadline)
            .map(drop)
    }
}

/// A connection with one watch on it.
#[derive(Debug)]
pub(super) struct Watching(Client);

impl Watching {
    /// Connects and sets the watch.
    pub(super) fn start(path: &str) -> io::Result<Self> {
        let deadline = Instant::now() + WATCH_SETUP;
        let mut client = Client::connect(deadline)?;
        if client.over_device {
            // It does not matter whether this node exists.
            match client.read("domid", Instant::now() + DEVICE_ANSWER) {
                Err(Failed::TimedOut) => return Err(route::no_answer()),
                Err(Failed::Broken(error)) => return Err(error),
                Ok(_) | Err(Failed::Refused(_) | Failed::NotText) => {}
            }
        }
        match client.call(Kind::Watch, &[path.as_bytes(), b"\0", TOKEN], deadline) {
            Ok(_) => Ok(Self(client)),
            Err(Failed::TimedOut) => Err(io::ErrorKind::TimedOut.into()),
            Err(Failed::Broken(error)) => Err(error),
            Err(Failed::Refused(code)) => {
                Err(io::Error::other(format!("xenstored refused it: {code}")))
            }
            Err(Failed::NotText) => Err(nonsense("the answer is not text".into())),
        }
    }
}

impl Watch for Watching {
    fn wait(&mut self, limit: Option<Duration>) -> Waited {
        let client = &mut self.0;
        let deadline = limit.map(|limit| Instant::now() + limit);
        loop {
            let now = Instant::now();
            // Any number of events counts as one; those beyond the limit are there for the next
            // call.
            let mut fired = std::mem::take(&mut client.fired);
            let mut ended = false;
            for _ in 0..EVENTS_AT_ONCE {
                match client.try_receive() {
                    Ok(Some(message)) => fired |= message.is(Kind::WatchEvent),
                    Ok(None) => break,
                    Err(failed) => {
                        log::debug!("the connection for a watch ended: {failed:?}");
                        ended = true;
                        break;
                    }
                }
            }
            match (fired, ended) {
                // The next call reports it, after the earlier event has been handled.
                (true, _) => return Waited::Fired,
                (false, true) => return Waited::Ended,
                (false, false) => {}
            }
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Waited::TimedOut;
            }
            let until = deadline.unwrap_or(now + Duration::from_secs(3600));
            if client.poll(PollFlags::POLLIN, until).is_err() {
                return Waited::Ended;
            }
        }
    }
}

fn connect_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let stream = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let address = UnixAddr::new(&route::socket_path())?;
    connect(stream.as_raw_fd(), &address)?;
    Ok(stream)
}

fn open_device() -> io::Result<OwnedFd> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(DEVICE)?;
    Ok(device.into())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A client whose xenstored is `serve`, which gets each request as (kind, id, payload).
    fn client(
        mut serve: impl FnMut(u32, u32, &[u8]) -> Vec<Vec<u8>> + Send + 'static,
    ) -> (Client, thread::JoinHandle<()>) {
        let (near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let server = thread::spawn(move || {
            let mut header = [0; wire::HEADER_LEN];
            while far.read_exact(&mut header).is_ok() {
                let word = |i: usize| u32::from_ne_bytes(header[4 * i..][..4].try_into().unwrap());
                let mut payload = vec![0; word(3) as usize];
                far.read_exact(&mut payload).unwrap();
                for answer in serve(word(0), word(1), &payload) {
                    // One byte at a time: the client has to put the message together.
                    for byte in answer {
                        if far.write_all(&[byte]).is_err() {
                            return;
                        }
                    }
                }
            }
        });
        (Client::over(near.into(), false), server)
    }

    fn answer(kind: u32, id: u32, payload: &[u8]) -> Vec<u8> {
        let mut message = wire::encode(Kind::Error, id, &[payload]).unwrap();
        message[..4].copy_from_slice(&kind.to_ne_bytes());
        message
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn requests_and_answers_follow_the_wire_format() {
        let (mut client, _server) = client(|kind, id, payload| match (kind, payload) {
            (2, b"/a\0") => vec![answer(2, id, b"value")],
            (2, b"/old\0") => vec![answer(2, id, b"value\0")],
            (2, b"/bytes\0") => vec![answer(2, id, b"\xff")],
            (1, b"/\0") => vec![answer(1, id, b"x\0yz\0")],
            (11, b"/a\0v") | (13, b"/a\0") => vec![answer(kind, id, b"OK\0")],
            _ => vec![answer(16, id, b"ENOENT\0")],
        });
        assert_eq!(&*client.read("/a", soon()).unwrap(), "value");
        assert_eq!(&*client.read("/old", soon()).unwrap(), "value");
        assert!(matches!(
            client.read("/bytes", soon()),
            Err(Failed::NotText)
        ));
        let names = client.directory("/", soon()).unwrap();
        assert_eq!(names, [Box::from("x"), "yz".into()]);
        client.write("/a", "v", soon()).unwrap();
        client.remove("/a", soon()).unwrap();
        match client.read("/none", soon()) {
            Err(Failed::Refused(code)) => assert_eq!(code, "ENOENT"),
            other => panic!("{other:?}"),
        }
        let long = "x".repeat(wire::PAYLOAD_MAX);
        assert!(matches!(
            client.write("/a", &long, soon()),
            Err(Failed::Refused(code)) if code == "E2BIG"
        ));
    }

    #[test]
    fn an_answer_that_comes_late_is_not_the_next_ones() {
        let mut asked = 0;
        let (mut client, _server) = client(move |kind, id, _| {
            asked += 1;
            match asked {
                1 => vec![],
                _ => vec![answer(kind, 1, b"late"), answer(kind, id, b"in time")],
            }
        });
        let now = Instant::now();
        assert!(matches!(client.read("/a", now), Err(Failed::TimedOut)));
        assert_eq!(&*client.read("/a", soon()).unwrap(), "in time");
    }

    #[test]
    fn an_answer_that_is_there_at_the_deadline_counts() {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let mut client = Client::over(near.into(), false);
        // Behind what else has come.
        let event = answer(15, 0, b"/w\0t\0");
        let waiting = [&event, &event, &answer(2, 1, b"there")[..]].concat();
        (&far).write_all(&waiting).unwrap();
        assert_eq!(&*client.read("/a", Instant::now()).unwrap(), "there");
    }

    /// A xenstored that keeps sending other messages.
    #[test]
    fn a_flood_ends_at_the_deadline() {
        let (near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let mut client = Client::over(near.into(), false);
        let events = answer(15, 0, b"/w\0t\0").repeat(2 * MOST_LATE_MESSAGES);
        far.write_all(&events).unwrap();
        far.write_all(&answer(2, 1, b"behind all that")).unwrap();
        let now = Instant::now();
        assert!(matches!(client.read("/a", now), Err(Failed::TimedOut)));
        // A sender that is faster than this side reads still counts as one event.
        let events = answer(15, 0, b"/w\0t\0").repeat(500);
        let flood = thread::spawn(move || while far.write_all(&events).is_ok() {});
        let mut watch = Watching(client);
        for _ in 0..3 {
            assert!(matches!(watch.wait(None), Waited::Fired));
        }
        drop(watch);
        flood.join().unwrap();
    }

    #[test]
    fn a_list_that_is_never_the_same_twice_ends_at_the_deadline() {
        let mut generation = 0;
        let (mut client, _server) = client(move |kind, id, _| {
            if kind == 1 {
                return vec![answer(16, id, b"E2BIG\0")];
            }
            generation += 1;
            vec![answer(kind, id, format!("{generation}\0a\0").as_bytes())]
        });
        let soon = Instant::now() + Duration::from_millis(50);
        assert!(matches!(client.directory("/", soon), Err(Failed::TimedOut)));
    }

    #[test]
    fn a_xenstored_that_knows_no_lists_in_parts_has_refused_a_long_one() {
        for unknown in ["EINVAL", "ENOSYS"] {
            let (mut client, _server) = client(move |kind, id, _| {
                let code = if kind == 1 { "E2BIG" } else { unknown };
                vec![answer(16, id, format!("{code}\0").as_bytes())]
            });
            let failed = client.directory("/", soon()).unwrap_err();
            assert!(
                matches!(&failed, Failed::Refused(code) if code == "E2BIG"),
                "{failed:?}"
            );
        }
    }

    #[test]
    fn an_error_code_is_short_and_printable_whatever_was_sent() {
        assert_eq!(code(b"ENOENT\0"), "ENOENT");
        assert_eq!(code(b""), "");
        assert_eq!(code(b"E\n\xff\0rest"), "E\\n\\xff");
        assert_eq!(code(&[b'x'; wire::PAYLOAD_MAX]), "x".repeat(CODE_MAX));
    }

    #[test]
    fn a_long_list_comes_in_parts_and_again_when_it_changes() {
        let mut asked = 0;
        let (mut client, _server) = client(move |kind, id, payload| {
            if kind == 1 {
                return vec![answer(16, id, b"E2BIG\0")];
            }
            asked += 1;
            let part: &[u8] = match (asked, payload) {
                (1, b"/\x000\0") => b"7\0a\0",
                // Something was added meanwhile.
                (2, b"/\x002\0") => b"8\0zz\0",
                (3, b"/\x000\0") => b"8\0a\0b\0",
                (4, b"/\x004\0") => b"8\0c\0\0",
                other => panic!("{other:?}"),
            };
            vec![answer(kind, id, part)]
        });
        let names = client.directory("/", soon()).unwrap();
        assert_eq!(names, [Box::from("a"), "b".into(), "c".into()]);
    }

    #[test]
    fn a_watch_fires_and_tells_of_the_end() {
        let (mut client, server) = client(|kind, id, payload| {
            assert_eq!((kind, payload), (4, &b"@releaseDomain\x001\0"[..]));
            let event = answer(15, 0, b"@releaseDomain\x001\0");
            // The first event may come before the answer.
            vec![event.clone(), answer(4, id, b"OK\0"), event.clone(), event]
        });
        let parts = [&b"@releaseDomain\0"[..], TOKEN];
        client.call(Kind::Watch, &parts, soon()).unwrap();
        let mut watch = Watching(client);
        assert!(matches!(watch.wait(None), Waited::Fired));
        // The other two events: once or twice, as they come.
        while let Waited::Fired = watch.wait(Some(Duration::from_millis(100))) {}
        assert!(matches!(watch.wait(Some(Duration::ZERO)), Waited::TimedOut));
        // The far end goes with its thread, which ends when this end shuts down writing.
        let fd = watch.0.file.try_clone().unwrap();
        UnixStream::from(fd)
            .shutdown(std::net::Shutdown::Write)
            .unwrap();
        server.join().unwrap();
        assert!(matches!(watch.wait(None), Waited::Ended));
    }

    #[test]
    fn nonsense_breaks_the_connection() {
        for wrong in [answer(99, 1, b""), {
            let mut long = answer(2, 1, b"");
            long[12..].copy_from_slice(&u32::MAX.to_ne_bytes());
            long
        }] {
            let (near, far) = UnixStream::pair().unwrap();
            near.set_nonblocking(true).unwrap();
            let mut client = Client::over(near.into(), false);
            (&far).write_all(&wrong).unwrap();
            let failed = client.read("/a", soon()).unwrap_err();
            assert!(matches!(failed, Failed::Broken(_)), "{failed:?}");
        }
    }
}

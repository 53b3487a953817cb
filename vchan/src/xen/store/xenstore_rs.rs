//! The crate xenstore-rs as provider.
//!
//! xenstore-rs tries xenstored's socket and, whatever went wrong there, takes the device: it can
//! neither be told which to take nor says which it took. The decision of `route` is therefore
//! enforced around it: the socket is connected to first, and afterwards the kernel is asked whether
//! xenstore-rs opened the device, which it does when xenstored dies, or has no room for one more
//! connection, between the two.
//!
//! Its blocking client has no time limits, and its tokio client delivers events and replies through
//! one task with short queues: each has a thread or a connection of its own.

use std::fs;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::thread;
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio_stream::{Stream, StreamExt};
use xenstore_rs::tokio::XsTokio;
use xenstore_rs::unix::XsUnix;
use xenstore_rs::{AsyncWatch, AsyncXs, Xs};

use super::interface::{Failed, Requests, Waited, Watch};
use super::route::{self, DEVICE, DEVICE_ANSWER, RETRY_PAUSE, socket_path};

/// Tries to connect while xenstored has no room for one more connection.
const TRIES: u32 = 100;

/// Connects for requests that are made one after the other.
///
/// # Errors
/// There is neither a socket nor a device, or there is a socket and it does not answer.
pub(super) fn for_requests() -> io::Result<XsUnix> {
    for _ in 0..TRIES {
        let socket = std::os::unix::net::UnixStream::connect(socket_path());
        let Some(_held) = route::decide(socket)? else {
            return XsUnix::new();
        };
        let before = devices_open();
        // An error is the device's, which the next look at the socket explains.
        if let Ok(xenstore) = XsUnix::new()
            && devices_open() <= before
        {
            return Ok(xenstore);
        }
        thread::sleep(RETRY_PAUSE);
    }
    Err(route::no_room())
}

/// Connects for watches. The second value reports when xenstored has gone away, which xenstore-rs
/// does not report to those that wait for events.
///
/// # Errors
/// There is neither a socket nor a device, or there is one and it does not answer.
pub async fn for_watches() -> io::Result<(XsTokio, Presence)> {
    for _ in 0..TRIES {
        match UnixStream::connect(socket_path()).await {
            // The accept queue is short, and a task does not wait there.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            socket => {
                let Some(held) = route::decide(socket)? else {
                    return Ok((through_device().await?, Presence(None)));
                };
                let before = devices_open();
                if let Ok(xenstore) = XsTokio::new().await
                    && devices_open() <= before
                {
                    return Ok((xenstore, Presence(Some(held))));
                }
            }
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
    Err(route::no_room())
}

/// The device, once xenstored has answered a request there: a request for a node can be given up,
/// one for a watch cannot.
async fn through_device() -> io::Result<XsTokio> {
    let xenstore = XsTokio::new().await?;
    match tokio::time::timeout(DEVICE_ANSWER, xenstore.read("domid")).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => Err(error),
        // It does not matter whether this node exists.
        Ok(_) => Ok(xenstore),
        Err(_) => Err(route::no_answer()),
    }
}

/// xenstored's presence, as far as it can be detected.
#[derive(Debug)]
pub struct Presence(Option<UnixStream>);

impl Presence {
    /// Waits until xenstored hangs up. Through the device that cannot be detected, and this waits
    /// for ever.
    pub async fn ended(&self) {
        let Some(socket) = &self.0 else {
            return std::future::pending().await;
        };
        // No request is ever sent on this connection.
        while socket.readable().await.is_ok() {
            match socket.try_read(&mut [0; 16]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(1..) => {}
                Ok(0) | Err(_) => return,
            }
        }
    }
}

/// Descriptors of this process that lead to the device; 0 where that cannot be determined.
fn devices_open() -> usize {
    let Ok(descriptors) = fs::read_dir("/proc/self/fd") else {
        return 0;
    };
    descriptors
        .flatten()
        .filter(|entry| fs::read_link(entry.path()).is_ok_and(|path| path == Path::new(DEVICE)))
        .count()
}

impl Requests for XsUnix {
    fn directory(&mut self, path: &str, _deadline: Instant) -> Result<Vec<Box<str>>, Failed> {
        Xs::directory(self, path).map_err(sort)
    }

    fn read(&mut self, path: &str, _deadline: Instant) -> Result<Box<str>, Failed> {
        Xs::read(self, path).map_err(sort)
    }

    fn write(&mut self, path: &str, value: &str, _deadline: Instant) -> Result<(), Failed> {
        Xs::write(self, path, value).map_err(sort)
    }

    fn remove(&mut self, path: &str, _deadline: Instant) -> Result<(), Failed> {
        Xs::rm(self, path).map_err(sort)
    }
}

/// Classifies an error.
///
/// xenstore-rs folds xenstored's codes into [`io::ErrorKind`]s, several to one; its text keeps
/// them. A value that is not UTF-8 comes as `InvalidData` and leaves the connection in order.
fn sort(error: io::Error) -> Failed {
    let is_text_error = |error: &io::Error| {
        error.kind() == io::ErrorKind::InvalidData
            && error
                .get_ref()
                .is_some_and(|inner| inner.is::<std::str::Utf8Error>())
    };
    if is_text_error(&error) {
        return Failed::NotText;
    }
    match error.to_string().strip_prefix("XS interface error ") {
        Some(code) => Failed::Refused(code.to_owned()),
        None => Failed::Broken(error),
    }
}

/// A connection with one watch on it.
pub(super) struct Watching {
    events: Pin<Box<dyn Stream<Item = Box<str>>>>,
    presence: Presence,
    /// It has not reported yet that it is set. xenstored sends an event of its own for that, which
    /// xenstore-rs loses if it comes before the watch is entered in its table.
    fresh: bool,
    /// Ends with it: the events come out of its task.
    _connection: XsTokio,
    /// Dropped last: the fields above live in it.
    runtime: Runtime,
}

impl Watching {
    /// Connects and sets the watch.
    pub(super) fn start(path: &str) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (connection, presence, events) = runtime.block_on(async {
            let (connection, presence) = for_watches().await?;
            let events = tokio::select! {
                events = connection.watch(path) => events?,
                () = presence.ended() => return Err(io::ErrorKind::BrokenPipe.into()),
            };
            let events: Pin<Box<dyn Stream<Item = Box<str>>>> = Box::pin(events);
            Ok::<_, io::Error>((connection, presence, events))
        })?;
        Ok(Self {
            events,
            presence,
            fresh: true,
            _connection: connection,
            runtime,
        })
    }
}

impl Watch for Watching {
    fn wait(&mut self, limit: Option<Duration>) -> Waited {
        if std::mem::take(&mut self.fresh) {
            return Waited::Fired;
        }
        let Self {
            events, presence, ..
        } = self;
        self.runtime.block_on(async {
            tokio::select! {
                event = events.next() => match event {
                    Some(_) => Waited::Fired,
                    None => Waited::Ended,
                },
                () = tokio::time::sleep(limit.unwrap_or_default()), if limit.is_some() => Waited::TimedOut,
                () = presence.ended() => Waited::Ended,
            }
        })
    }
}

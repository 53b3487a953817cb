//! A session's files as a [`Transport`].
//!
//! A thread of the transport does all I/O, since I/O on a mount whose server is away can block for
//! ever: the caller waits for the thread with a deadline, and never for the file system. Between
//! the two are an outbox and an inbox of bounded size.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use vgpu_protocol::transport::{Interest, Transport, TransportError};

use super::caches::CacheTest;
use super::directory::SessionDirectory;
use super::exchange::{Exchange, Fault, Looked, Piece, SILENCE, Taken};
use super::mount::Remark;
use super::pace::{self, pause};
use super::segment::{HEADER, MAX_FILE, MAX_PAYLOAD, Role};

/// Bytes that wait to be written to files, at most.
const OUTBOX: usize = 2 * MAX_PAYLOAD;

/// Bytes read from files that wait to be taken; one segment more may be there.
const INBOX: usize = 2 * MAX_PAYLOAD;

/// How long a transport that is dropped waits for its thread to say so to the other side.
const LAST_WORD: Duration = Duration::from_millis(500);

/// An ordered stream of bytes each way, in files of a directory.
#[derive(Debug)]
pub struct FileTransport {
    shared: Arc<Shared>,
    /// The session's directory.
    path: PathBuf,
    closed: bool,
}

/// Between the caller and the thread. Nobody does I/O while it holds the lock.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Something for the caller: bytes, room, an end.
    for_caller: Condvar,
    /// Something for the thread: bytes to send, room for what comes, an end.
    for_thread: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Files without their headers, all but the last full.
    outbox: VecDeque<Vec<u8>>,
    outbox_bytes: usize,
    /// All that is in the outbox is to be written, however little, until it is empty.
    flushed: bool,
    /// Nothing comes into the outbox any more.
    closing: bool,
    inbox: VecDeque<Taken>,
    inbox_bytes: usize,
    /// The thread holds back what it could read, for lack of room.
    inbox_full: bool,
    connected: bool,
    /// What the guest's test of its mount has found.
    remarks: Vec<Remark>,
    /// The other side's stream has ended.
    ended: bool,
    /// The other side has taken all, the end included.
    was_read_whole: bool,
    fault: Option<Broken>,
    /// Nobody wants the session any more.
    dropped: bool,
    /// The thread has ended.
    over: bool,
}

impl State {
    /// Appends to the last file of the outbox, and begins another when it is full.
    fn put(&mut self, mut bytes: &[u8]) {
        self.outbox_bytes += bytes.len();
        while !bytes.is_empty() {
            let room = self.outbox.back().map_or(0, |file| MAX_FILE - file.len());
            if room == 0 {
                let mut file = Vec::with_capacity(HEADER + bytes.len().min(MAX_PAYLOAD));
                file.resize(HEADER, 0);
                self.outbox.push_back(file);
                continue;
            }
            let (now, later) = bytes.split_at(bytes.len().min(room));
            if let Some(file) = self.outbox.back_mut() {
                file.extend_from_slice(now);
            }
            bytes = later;
        }
    }

    fn has_full(&self) -> bool {
        self.outbox
            .front()
            .is_some_and(|file| file.len() == MAX_FILE)
    }

    fn has_to_send(&self) -> bool {
        self.has_full() || self.closing || self.flushed && !self.outbox.is_empty()
    }
}

/// What ended the session, to be told at every later call.
#[derive(Debug, Clone)]
enum Broken {
    Closed,
    Violation(String),
    Io {
        context: String,
        kind: io::ErrorKind,
        errno: Option<i32>,
    },
}

impl From<Fault> for Broken {
    fn from(fault: Fault) -> Self {
        let context = fault.to_string();
        let io = |kind| Self::Io {
            context,
            kind,
            errno: None,
        };
        match fault {
            Fault::GaveUp(_) => Self::Closed,
            Fault::Violation(what) => Self::Violation(what),
            Fault::Vanished => io(io::ErrorKind::NotFound),
            Fault::Silent(..) => io(io::ErrorKind::TimedOut),
            Fault::MediatorGone => io(io::ErrorKind::ConnectionAborted),
            Fault::Io { context, source } => Self::Io {
                context,
                kind: source.kind(),
                errno: source.raw_os_error(),
            },
        }
    }
}

impl From<Broken> for TransportError {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Closed => Self::Closed,
            Broken::Violation(what) => Self::PeerViolation(what),
            Broken::Io {
                context,
                kind,
                errno,
            } => Self::Io {
                context,
                source: errno.map_or_else(|| kind.into(), io::Error::from_raw_os_error),
            },
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A thread that panicked left whole bytes behind; what it did not do, the other side tells.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the thread begins with; the test is the guest's.
pub(super) type Prepared = (SessionDirectory, Exchange, Option<CacheTest>);

/// How far a session has come on its way up.
#[derive(Debug)]
pub(super) enum Progress {
    /// The other side has answered.
    Connected(FileTransport),
    /// Not yet.
    Waiting(FileTransport),
    /// It never will.
    Failed(TransportError),
}

impl FileTransport {
    /// Starts the thread. `prepare` runs on it first, and gives the directory.
    pub(super) fn start<E: Send + 'static>(
        path: PathBuf,
        prepare: impl FnOnce() -> Result<Prepared, E> + Send + 'static,
        failed: impl FnOnce(E) + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            for_caller: Condvar::new(),
            for_thread: Condvar::new(),
        });
        let theirs = Arc::clone(&shared);
        thread::Builder::new()
            .name("file-session".into())
            .spawn(move || {
                let end = OnEnd(&theirs);
                match prepare() {
                    Ok((directory, exchange, test)) => work(&theirs, directory, exchange, test),
                    Err(error) => failed(error),
                }
                drop(end);
            })?;
        Ok(Self {
            shared,
            path,
            closed: false,
        })
    }

    /// Waits until the other side has answered, for at most `patience`.
    pub(super) fn wait_connected(self, patience: Duration) -> Progress {
        let state = self.shared.lock();
        let waiting = |state: &mut State| !state.connected && !state.over && state.fault.is_none();
        let (state, _) = self
            .shared
            .for_caller
            .wait_timeout_while(state, patience, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        let fault = state.fault.clone();
        let (connected, over) = (state.connected, state.over);
        drop(state);
        match fault {
            Some(broken) => Progress::Failed(broken.into()),
            None if connected => Progress::Connected(self),
            None if over => Progress::Failed(TransportError::Closed),
            None => Progress::Waiting(self),
        }
    }

    /// What is to be said about the mount: what its options and a test of it show. Nothing of a
    /// mediator's transport.
    pub fn remarks(&self) -> Vec<Remark> {
        self.shared.lock().remarks.clone()
    }

    fn broken(state: &State) -> Result<(), TransportError> {
        match &state.fault {
            Some(broken) => Err(broken.clone().into()),
            None if state.over => Err(TransportError::Closed),
            None => Ok(()),
        }
    }
}

impl Transport for FileTransport {
    fn try_read(&mut self, buf: &mut [u8]) -> Result<Option<usize>, TransportError> {
        if self.closed {
            return Err(TransportError::Closed);
        }
        let mut state = self.shared.lock();
        let mut filled = 0;
        while filled < buf.len() {
            let Some(piece) = state.inbox.front_mut() else {
                break;
            };
            let n = piece.bytes().len().min(buf.len() - filled);
            buf[filled..filled + n].copy_from_slice(&piece.bytes()[..n]);
            filled += n;
            piece.advance(n);
            if piece.bytes().is_empty() {
                state.inbox.pop_front();
            }
        }
        if filled > 0 || buf.is_empty() {
            state.inbox_bytes -= filled;
            if state.inbox_full && state.inbox_bytes < INBOX {
                state.inbox_full = false;
                self.shared.for_thread.notify_one();
            }
            return Ok(Some(filled));
        }
        if state.ended {
            return Ok(Some(0));
        }
        Self::broken(&state)?;
        Ok(None)
    }

    fn try_write(&mut self, buf: &[u8]) -> Result<usize, TransportError> {
        if self.closed {
            return Err(TransportError::Closed);
        }
        let mut state = self.shared.lock();
        Self::broken(&state)?;
        let n = buf.len().min(OUTBOX - state.outbox_bytes);
        state.put(&buf[..n]);
        if state.has_full() {
            self.shared.for_thread.notify_one();
        }
        Ok(n)
    }

    fn wait(&mut self, interest: Interest, deadline: Instant) -> Result<(), TransportError> {
        let (read, write) = match interest {
            Interest::Read => (true, false),
            Interest::Write => (false, true),
            Interest::ReadOrWrite => (true, true),
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let waiting = |state: &mut State| {
            let readable = !state.inbox.is_empty() || state.ended;
            let writable = state.outbox_bytes < OUTBOX;
            let over = state.fault.is_some() || state.over;
            !(over || read && readable || write && writable)
        };
        let state = self.shared.lock();
        let (_state, waited) = self
            .shared
            .for_caller
            .wait_timeout_while(state, left, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return Err(TransportError::TimedOut(match interest {
                Interest::Read => "read",
                Interest::Write => "write",
                Interest::ReadOrWrite => "read or write",
            }));
        }
        Ok(())
    }

    /// Hands all to the thread, which writes it as soon as the other side's window and the file
    /// system allow, whatever the caller does meanwhile. So this never waits: waiting for a window
    /// without reading could hold up both sides for ever.
    fn flush(&mut self, _deadline: Instant) -> Result<(), TransportError> {
        if self.closed {
            return Err(TransportError::Closed);
        }
        let mut state = self.shared.lock();
        Self::broken(&state)?;
        state.flushed = true;
        self.shared.for_thread.notify_one();
        Ok(())
    }

    fn close(&mut self, deadline: Instant) -> Result<(), TransportError> {
        if std::mem::replace(&mut self.closed, true) {
            return Ok(());
        }
        let mut state = self.shared.lock();
        // Nobody reads any more: what still comes is taken and thrown away.
        state.inbox.clear();
        (state.inbox_bytes, state.inbox_full) = (0, false);
        Self::broken(&state)?;
        state.closing = true;
        self.shared.for_thread.notify_one();
        let left = deadline.saturating_duration_since(Instant::now());
        let waiting =
            |state: &mut State| !state.was_read_whole && state.fault.is_none() && !state.over;
        let (state, waited) = self
            .shared
            .for_caller
            .wait_timeout_while(state, left, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        if state.was_read_whole {
            return Ok(());
        }
        if waited.timed_out() {
            return Err(TransportError::TimedOut("close"));
        }
        Self::broken(&state)
    }

    fn describe(&self) -> String {
        format!("file:{}", self.path.display())
    }
}

impl Drop for FileTransport {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.dropped = true;
        self.shared.for_thread.notify_one();
        // A process that ends now would take the thread with it before it could say so.
        let _unless_the_file_system_hangs =
            self.shared
                .for_caller
                .wait_timeout_while(state, LAST_WORD, |state| !state.over);
    }
}

/// Tells the caller that the thread has ended, also when it panicked.
struct OnEnd<'a>(&'a Shared);

impl Drop for OnEnd<'_> {
    fn drop(&mut self) {
        self.0.lock().over = true;
        self.0.for_caller.notify_all();
    }
}

/// The thread: looks, writes, rests.
fn work(
    shared: &Shared,
    mut directory: SessionDirectory,
    mut exchange: Exchange,
    mut test: Option<CacheTest>,
) {
    let role = exchange.role();
    let end = run(shared, &mut directory, &mut exchange, &mut test);
    match end {
        Ok(()) => {}
        // The guest removes the directory as soon as it has read all.
        Err(Fault::Vanished) if role == Role::Mediator && exchange.has_ended() => {
            shared.lock().was_read_whole = true;
        }
        Err(fault) => {
            log::debug!("{}: {fault}", directory.path().display());
            shared.lock().fault = Some(fault.into());
        }
    }
    shared.for_caller.notify_all();
    // The guest made the directory. What it cannot remove, a mediator sweeps.
    if role == Role::Guest {
        directory.clear();
    }
}

fn run(
    shared: &Shared,
    directory: &mut SessionDirectory,
    exchange: &mut Exchange,
    test: &mut Option<CacheTest>,
) -> Result<(), Fault> {
    let role = exchange.role();
    if let Some(test) = test {
        // The first beat is what a mediator waits for.
        exchange.beat(directory, Instant::now())?;
        test.before_listing(directory, || shared.lock().dropped);
    }
    let mut moved_at = Instant::now();
    let mut dropped_at = None;
    loop {
        let (space, dropped, closing) = {
            let state = shared.lock();
            let space = if state.closing || state.dropped {
                usize::MAX
            } else {
                INBOX.saturating_sub(state.inbox_bytes)
            };
            (space, state.dropped, state.closing)
        };
        let over = exchange.is_finished();
        // Nobody waits for the other side to take the rest, but it has the time to.
        let since = dropped.then(|| *dropped_at.get_or_insert_with(Instant::now));
        let late = since.is_some_and(|since| since.elapsed() >= SILENCE);
        if dropped && (!closing || over || late) {
            if !over {
                exchange.give_up(directory, Instant::now())?;
            }
            return Ok(());
        }
        let looked = exchange.look(directory, space, Instant::now())?;
        let mut moved = looked.news;
        if looked.probed && role == Role::Mediator {
            directory.change_probe();
        }
        let tested = test
            .as_mut()
            .is_some_and(|test| test.look(directory, exchange.is_connected(), looked.probed));
        if tested && let Some(test) = test.take() {
            shared.lock().remarks = test.remarks();
        }
        deliver(shared, exchange, looked, test.is_none());
        let mut next = || next_piece(shared);
        moved |= exchange.send(directory, &mut next, Instant::now())?;
        exchange.beat(directory, Instant::now())?;
        deliver(shared, exchange, Looked::default(), test.is_none());
        let now = Instant::now();
        if moved {
            moved_at = now;
        }
        rest(shared, exchange, moved, moved_at, now);
    }
}

/// Hands to the caller what a look has brought.
fn deliver(shared: &Shared, exchange: &Exchange, looked: Looked, tested: bool) {
    let mut state = shared.lock();
    let before = (state.connected, state.ended, state.was_read_whole);
    let something = !looked.pieces.is_empty();
    if !state.closing && !state.dropped {
        for piece in looked.pieces {
            state.inbox_bytes += piece.bytes().len();
            state.inbox.push_back(piece);
        }
        state.inbox_full = looked.more;
    }
    state.connected |= exchange.is_connected() && tested;
    state.ended |= exchange.has_read_all();
    state.was_read_whole |= exchange.was_read_whole();
    if something || before != (state.connected, state.ended, state.was_read_whole) {
        shared.for_caller.notify_all();
    }
}

/// Takes the next piece out of the outbox: a full one, or what there is if that was asked for.
fn next_piece(shared: &Shared) -> Option<Piece> {
    let mut state = shared.lock();
    if !state.has_to_send() {
        return None;
    }
    let file = state.outbox.pop_front().unwrap_or_else(|| vec![0; HEADER]);
    state.outbox_bytes -= file.len() - HEADER;
    state.flushed &= !state.outbox.is_empty();
    let last = state.closing && state.outbox.is_empty();
    shared.for_caller.notify_all();
    Some(Piece { file, last })
}

/// Waits until there is something to do, or it is time to look again.
fn rest(shared: &Shared, exchange: &Exchange, moved: bool, moved_at: Instant, now: Instant) {
    if moved {
        return;
    }
    let mut time = pause(now.saturating_duration_since(moved_at));
    if exchange.is_held_up() {
        time = time.max(pace::SLOWEST / 5);
    }
    let due = exchange.beat_due_at().saturating_duration_since(now);
    let time = time.min(due.max(pace::FASTEST));
    let can_send = exchange.has_room() && !exchange.is_held_up();
    let state = shared.lock();
    let idle = |state: &mut State| !(state.dropped || can_send && state.has_to_send());
    // With room in the inbox again there is something to read at once; the notification says so.
    if state.inbox_full {
        drop(shared.for_thread.wait_timeout(state, time));
    } else {
        drop(shared.for_thread.wait_timeout_while(state, time, idle));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As on a mount whose server is away: the thread never comes back from the kernel.
    #[test]
    fn a_file_system_that_hangs_holds_up_nobody() {
        let hang = || -> Result<Prepared, ()> {
            loop {
                thread::park();
            }
        };
        let transport = FileTransport::start(PathBuf::from("/mnt"), hang, |()| {}).unwrap();
        let began = Instant::now();
        let patience = Duration::from_millis(50);
        let Progress::Waiting(mut transport) = transport.wait_connected(patience) else {
            panic!("nobody can have answered");
        };
        let soon = || Instant::now() + Duration::from_millis(50);
        assert_eq!(transport.try_read(&mut [0; 8]).unwrap(), None);
        // Room is bounded, and then there is none.
        let much = vec![0; OUTBOX + 1];
        assert_eq!(transport.try_write(&much).unwrap(), OUTBOX);
        assert_eq!(transport.try_write(&much).unwrap(), 0);
        transport.flush(soon()).unwrap();
        for interest in [Interest::Read, Interest::Write, Interest::ReadOrWrite] {
            let waited = transport.wait(interest, soon());
            assert!(matches!(waited, Err(TransportError::TimedOut(_))));
        }
        let closed = transport.close(soon());
        assert!(matches!(closed, Err(TransportError::TimedOut("close"))));
        drop(transport);
        assert!(began.elapsed() >= patience * 5);
    }
}

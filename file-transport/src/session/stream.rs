//! A session's files as a [`Transport`].
//!
//! A thread of the transport does all I/O, since I/O on a mount whose server is unreachable can
//! block for ever: the caller waits for the thread with a deadline, and never for the file system.
//! Between the two are an outbox and an inbox of bounded size.

mod queues;
mod thread;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use vgpu_transport::{Interest, Transport, TransportError, Waker};

use super::directory::SessionDirectory;
use super::mount::Remark;
use super::mount_cache_test::CacheTest;
use super::rules::Exchange;
use super::segment::MAX_PAYLOAD;
use queues::{Shared, State};
use thread::{OnEnd, work};

/// The thread's initial state; the test exists on the guest's side only.
pub(super) type Prepared = (SessionDirectory, Exchange, Option<CacheTest>);

/// Most bytes that wait to be written to files.
const OUTBOX: usize = 2 * MAX_PAYLOAD;

/// Most bytes read from files that wait for the caller; one segment more may be there.
const INBOX: usize = 2 * MAX_PAYLOAD;

/// Time for which a dropped transport waits for its thread to notify the other side.
const LAST_WORD_LIMIT: Duration = Duration::from_millis(500);

/// An ordered stream of bytes each way, in files of a directory.
#[derive(Debug)]
pub struct FileTransport {
    shared: Arc<Shared>,
    /// The session's directory.
    path: PathBuf,
    closed: bool,
}

/// The progress of setting up a session.
#[derive(Debug)]
pub(super) enum Progress {
    /// The other side has answered.
    Connected(FileTransport),
    /// Not yet.
    Waiting(FileTransport),
    /// It cannot be set up.
    Failed(TransportError),
}

impl FileTransport {
    /// Starts the thread. `prepare` runs on it first, and returns the directory.
    pub(super) fn start<E: Send + 'static>(
        path: PathBuf,
        prepare: impl FnOnce() -> Result<Prepared, E> + Send + 'static,
        failed: impl FnOnce(E) + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            for_caller: Condvar::new(),
            news: Waker::new()?,
            for_thread: Condvar::new(),
        });
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new()
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

    /// Waits until the other side has answered, until `deadline`.
    pub(super) fn wait_connected(self, deadline: Instant) -> Progress {
        let waiting = |state: &mut State| !state.connected && !state.over && state.fault.is_none();
        let (state, _) = self
            .shared
            .wait_until(self.shared.lock(), deadline, waiting);
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

    /// The findings about the mount, from its options and a test of it. Empty for a mediator's
    /// transport.
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
        let (_state, waited) =
            self.shared
                .wait_until(self.shared.lock(), deadline, is_waiting(interest));
        match waited.timed_out() {
            true => Err(TransportError::TimedOut(doing(interest))),
            false => Ok(()),
        }
    }

    fn wait_or(
        &mut self,
        interest: Option<Interest>,
        waker: &Waker,
        deadline: Instant,
    ) -> Result<(), TransportError> {
        let Some(interest) = interest else {
            return waker.wait(deadline);
        };
        let waited = self
            .shared
            .wait_until_or(waker, deadline, is_waiting(interest));
        waited.map_err(|error| match error {
            TransportError::TimedOut(_) => TransportError::TimedOut(doing(interest)),
            error => error,
        })
    }

    /// Hands all bytes to the thread, which writes them as soon as the other side's window and the
    /// file system allow, whatever the caller does meanwhile. So this never waits: waiting for a
    /// window without reading could hold up both sides for ever.
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
        // The caller no longer reads: further bytes are taken and dropped.
        state.inbox.clear();
        (state.inbox_bytes, state.inbox_full) = (0, false);
        Self::broken(&state)?;
        state.closing = true;
        self.shared.for_thread.notify_one();
        let waiting =
            |state: &mut State| !state.was_read_whole && state.fault.is_none() && !state.over;
        let (state, waited) = self.shared.wait_until(state, deadline, waiting);
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

/// Whether no operation of `interest` can go on and there is nothing to report.
fn is_waiting(interest: Interest) -> impl Fn(&mut State) -> bool {
    move |state| {
        let readable = !state.inbox.is_empty() || state.ended;
        let writable = state.outbox_bytes < OUTBOX;
        let over = state.fault.is_some() || state.over;
        !(over || interest != Interest::Write && readable || interest != Interest::Read && writable)
    }
}

fn doing(interest: Interest) -> &'static str {
    match interest {
        Interest::Read => "read",
        Interest::Write => "write",
        Interest::ReadOrWrite => "read or write",
    }
}

impl Drop for FileTransport {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.dropped = true;
        self.shared.for_thread.notify_one();
        // A process that ends now would take the thread with it before it could notify the other
        // side.
        let _unless_the_file_system_hangs =
            self.shared
                .for_caller
                .wait_timeout_while(state, LAST_WORD_LIMIT, |state| !state.over);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As on a mount whose server is unreachable: the thread never returns from the kernel.
    #[test]
    fn a_file_system_that_hangs_holds_up_nobody() {
        let hang = || -> Result<Prepared, ()> {
            loop {
                std::thread::park();
            }
        };
        let transport = FileTransport::start(PathBuf::from("/mnt"), hang, |()| {}).unwrap();
        let began = Instant::now();
        let patience = Duration::from_millis(50);
        let Progress::Waiting(mut transport) = transport.wait_connected(began + patience) else {
            panic!("nobody can have answered");
        };
        let soon = || Instant::now() + Duration::from_millis(50);
        assert_eq!(transport.try_read(&mut [0; 8]).unwrap(), None);
        // The outbox is bounded; this exceeds it.
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

//! xenstore: four requests, each with a deadline that holds.
//!
//! One thread per process owns the connection and makes the requests one after the other; callers
//! wait for its answer until their deadline. When xenstored is stuck, and that thread with it,
//! every caller still returns at most a tenth of a second after its deadline. A request whose
//! caller has given up is skipped, except a removal: callers queue those to clean up, and they run
//! as soon as xenstored is back.
//!
//! | file | what it holds |
//! |---|---|
//! | `interface` | the small traits of a provider: requests, and a watch |
//! | [`provider`] | the choice between the two providers |
//! | `client`, [`wire`] | our own client, and its messages |
//! | `xenstore_rs` | the crate xenstore-rs, behind a feature |
//! | `route` | socket or device |
//!
//! Through `/dev/xen/xenbus` the thread waits for answers in calls that a signal interrupts: there
//! too a process ends when its `main` does, or when it is killed, whether or not xenstored still
//! lives.

mod client;
mod interface;
pub mod provider;
mod route;
pub mod wire;
#[cfg(feature = "xenstore-rs")]
pub mod xenstore_rs;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender, SyncSender};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use super::path::{self, PathError};
use interface::{Failed, Requests};
pub use interface::{Waited, Watch};
use provider::Provider;

/// Largest value that is written, in bytes: with it a node stays within the 2,048 bytes that are
/// the default quota of an unprivileged domain. C xenstored counts permissions and the names of the
/// nodes right below as well.
pub const VALUE_MAX: usize = 1920;

/// Time for the thread's last look once a caller's deadline has passed.
const LAST_LOOK_LIMIT: Duration = Duration::from_millis(100);

/// Time for xenstored to make a removal whose caller has left.
const LATE_REMOVAL: Duration = Duration::from_secs(5);

/// The process's connection to xenstored.
///
/// Cheap to copy: all copies share one connection and one thread, made at the first request and
/// again after the connection broke. The thread does not survive `fork`.
#[derive(Debug, Clone, Copy)]
pub struct Store(&'static Sender<Request>);

#[derive(Debug)]
struct Request {
    what: What,
    path: Box<str>,
    /// The caller's deadline.
    deadline: Instant,
    /// Set by the caller when its deadline passed.
    abandoned: Arc<AtomicBool>,
    reply: SyncSender<Result<Answer, Failed>>,
}

#[derive(Debug)]
enum What {
    Open,
    Leave,
    Directory,
    Read,
    Write(Box<str>),
    Remove,
}

#[derive(Debug)]
enum Answer {
    Done,
    Value(Box<str>),
    Names(Vec<Box<str>>),
}

impl Store {
    /// Connects to xenstored, unless this process has done so before.
    ///
    /// # Errors
    /// [`StoreError::Unreachable`] when there is no xenstored socket and no `/dev/xen/xenbus`, or
    /// the socket does not answer.
    pub fn open(deadline: Instant) -> Result<Self, StoreError> {
        static QUEUE: OnceLock<Sender<Request>> = OnceLock::new();
        let store = Self(QUEUE.get_or_init(|| {
            let (queue, requests) = mpsc::channel();
            let body = move || serve(&requests);
            if let Err(error) = thread::Builder::new().name("xenstore".into()).spawn(body) {
                // The receiver is gone with the closure: every request reports it.
                log::error!("cannot start the xenstore thread: {error}");
            }
            queue
        }));
        store.request(What::Open, "/", deadline)?;
        Ok(store)
    }

    /// Closes the connection, for a process that gives up the right to have one. A later request
    /// connects again, if this process still may.
    ///
    /// # Errors
    /// The thread did not get to it in time.
    pub fn leave(self, deadline: Instant) -> Result<(), StoreError> {
        self.request(What::Leave, "/", deadline).map(drop)
    }

    /// The value of the node `path`, less one trailing NUL byte if it has one.
    pub fn read(&self, path: &str, deadline: Instant) -> Result<Box<str>, StoreError> {
        path::check(path)?;
        match self.request(What::Read, path, deadline)? {
            Answer::Value(value) => Ok(value),
            _ => unreachable!("a read answers with a value"),
        }
    }

    /// The value of the node `path`, or `None` where there is no such node.
    pub fn read_if_present(
        &self,
        path: &str,
        deadline: Instant,
    ) -> Result<Option<Box<str>>, StoreError> {
        match self.read(path, deadline) {
            Ok(value) => Ok(Some(value)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets the node `path`, making it and its parents where they do not exist.
    pub fn write(&self, path: &str, value: &str, deadline: Instant) -> Result<(), StoreError> {
        path::check(path)?;
        if value.len() > VALUE_MAX {
            return Err(StoreError::ValueTooLong {
                path: path.into(),
                bytes: value.len(),
            });
        }
        self.request(What::Write(value.into()), path, deadline)
            .map(drop)
    }

    /// Removes the node `path` and everything below it; a missing node is not an error.
    ///
    /// When this gives up waiting for a stuck xenstored, the removal still happens, late.
    pub fn remove(&self, path: &str, deadline: Instant) -> Result<(), StoreError> {
        path::check(path)?;
        match self.request(What::Remove, path, deadline) {
            Ok(_) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The names of the nodes right below `path`.
    pub fn list(&self, path: &str, deadline: Instant) -> Result<Vec<Box<str>>, StoreError> {
        path::check(path)?;
        match self.request(What::Directory, path, deadline)? {
            Answer::Names(names) => Ok(names),
            _ => unreachable!("a directory request answers with names"),
        }
    }

    fn request(&self, what: What, path: &str, deadline: Instant) -> Result<Answer, StoreError> {
        let (reply, answer) = mpsc::sync_channel(1);
        let abandoned = Arc::new(AtomicBool::new(false));
        let request = Request {
            what,
            path: path.into(),
            deadline,
            abandoned: abandoned.clone(),
            reply,
        };
        let gone = || StoreError::Unreachable {
            source: io::Error::new(io::ErrorKind::BrokenPipe, "the xenstore thread is gone"),
        };
        self.0.send(request).map_err(|_| gone())?;
        let left = deadline.saturating_duration_since(Instant::now());
        let answer = match answer.recv_timeout(left) {
            // The thread looks once more at the deadline, and must run to do so. Measured from now:
            // this process may not have run for a while.
            Err(RecvTimeoutError::Timeout) => answer.recv_timeout(LAST_LOOK_LIMIT),
            answer => answer,
        };
        match answer {
            Ok(result) => result.map_err(|failed| StoreError::of(path, failed)),
            Err(RecvTimeoutError::Timeout) => {
                // Relaxed: a request that slips through is as if the caller had given up later.
                abandoned.store(true, Ordering::Relaxed);
                Err(StoreError::TimedOut { path: path.into() })
            }
            Err(RecvTimeoutError::Disconnected) => Err(gone()),
        }
    }
}

/// The thread: makes the requests in order until the process ends.
fn serve(requests: &mpsc::Receiver<Request>) {
    let mut connection = None;
    while let Ok(request) = requests.recv() {
        let abandoned = request.abandoned.load(Ordering::Relaxed);
        if abandoned && !matches!(request.what, What::Remove) {
            continue;
        }
        // A removal may be made late, when xenstored is back: allow it the time it needs then.
        let deadline = match request.what {
            What::Remove => request.deadline.max(Instant::now() + LATE_REMOVAL),
            _ => request.deadline,
        };
        // The caller may have left: the answer is dropped then.
        let _ = request
            .reply
            .send(answer(&mut connection, &request, deadline));
    }
}

/// Makes one request, on a new connection if the old one turns out to be broken.
///
/// All four requests may be repeated without harm.
fn answer(
    connection: &mut Option<Box<dyn Requests>>,
    request: &Request,
    deadline: Instant,
) -> Result<Answer, Failed> {
    if matches!(request.what, What::Leave) {
        *connection = None;
        return Ok(Answer::Done);
    }
    if let Some(xs) = connection {
        match make(xs.as_mut(), request, deadline) {
            Err(Failed::Broken(error)) => {
                log::warn!("the connection to xenstored broke ({error}); connecting again");
                *connection = None;
            }
            answered => return answered,
        }
    }
    let mut xs = Provider::current()
        .and_then(|provider| provider.connect(deadline))
        .map_err(Failed::Broken)?;
    let answered = make(xs.as_mut(), request, deadline);
    if !matches!(answered, Err(Failed::Broken(_))) {
        *connection = Some(xs);
    }
    answered
}

fn make(xs: &mut dyn Requests, request: &Request, deadline: Instant) -> Result<Answer, Failed> {
    let path = &*request.path;
    match &request.what {
        What::Open | What::Leave => Ok(Answer::Done),
        What::Directory => xs.directory(path, deadline).map(Answer::Names),
        What::Read => xs.read(path, deadline).map(Answer::Value),
        What::Write(value) => xs.write(path, value, deadline).map(|()| Answer::Done),
        What::Remove => xs.remove(path, deadline).map(|()| Answer::Done),
    }
}

/// The reasons why a xenstore request failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The path is not a xenstore path.
    #[error(transparent)]
    Path(#[from] PathError),
    /// There is no xenstored here, or it cannot be reached.
    #[error("cannot reach xenstore: {source}")]
    Unreachable {
        /// The system's error.
        source: io::Error,
    },
    /// xenstored did not answer in time.
    #[error("xenstore did not answer in time (node {path})")]
    TimedOut {
        /// The node asked for.
        path: Box<str>,
    },
    /// No such node.
    #[error("xenstore has no node {path}")]
    NotFound {
        /// The node asked for.
        path: Box<str>,
    },
    /// This domain lacks the permission for it.
    #[error("xenstore denies access to {path}")]
    Denied {
        /// The node asked for.
        path: Box<str>,
    },
    /// The node's value is not text.
    #[error("the value of {path} is not UTF-8 text")]
    NotText {
        /// The node asked for.
        path: Box<str>,
    },
    /// A quota of this domain is used up: nodes, bytes per node or requests.
    #[error("xenstore quota reached at {path} ({code})")]
    Quota {
        /// The node asked for.
        path: Box<str>,
        /// xenstored's error code.
        code: String,
    },
    /// The value is longer than xenstore's default quota lets a guest write.
    #[error("the value for {path} has {bytes} bytes; xenstore takes {VALUE_MAX}")]
    ValueTooLong {
        /// The node it was meant for.
        path: Box<str>,
        /// Its length.
        bytes: usize,
    },
    /// Any other answer.
    #[error("xenstore refused the request for {path} ({code})")]
    Refused {
        /// The node asked for.
        path: Box<str>,
        /// xenstored's error code.
        code: String,
    },
}

impl StoreError {
    fn of(path: &str, failed: Failed) -> Self {
        let path = path.into();
        match failed {
            Failed::Broken(source) => Self::Unreachable { source },
            Failed::TimedOut => Self::TimedOut { path },
            Failed::NotText => Self::NotText { path },
            Failed::Refused(code) => match code.as_str() {
                "ENOENT" => Self::NotFound { path },
                "EACCES" | "EPERM" => Self::Denied { path },
                "ENOSPC" | "EDQUOT" | "EQUOTA" | "E2BIG" => Self::Quota { path, code },
                _ => Self::Refused { path, code },
            },
        }
    }

    /// One line: the remedy, for people.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Path(error) => error.advice(),
            Self::Unreachable { source } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run as root, or give this user access to /run/xenstored/socket or /dev/xen/xenbus"
            }
            Self::Unreachable { source } if source.kind() == io::ErrorKind::InvalidInput => {
                "unset VCHAN_XENSTORE, or set it to own"
            }
            Self::Unreachable { source } if source.kind() != io::ErrorKind::NotFound => {
                "xenstored has ended or hangs up: see its log in dom0 and start it again (a guest that \
                 ran before may need a restart then)"
            }
            Self::Unreachable { .. } => {
                "this must run on Xen: in dom0 start xenstored, in a guest load xenfs (modprobe \
                 xenfs) so that /dev/xen/xenbus exists; without Xen use --backend local"
            }
            Self::TimedOut { .. } => "look whether xenstored runs and answers: xenstore-ls /",
            Self::NotFound { .. } => "check the path and that the other side has published it",
            Self::Denied { .. } => {
                "xenstored lets a guest use its own nodes only: let the guest serve, at a path such as \
                 data/demo, and dom0 connect"
            }
            Self::NotText { .. } => "look at the node with xenstore-ls; remove it if it is stale",
            Self::Quota { .. } => {
                "remove stale nodes below data/ (xenstore-ls data), or raise xenstored's quota"
            }
            Self::ValueTooLong { .. } | Self::Refused { .. } => {
                "this is not expected; run with RUST_LOG=debug and report it"
            }
        }
    }
}

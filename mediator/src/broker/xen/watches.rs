//! xenstore watches as marks on a board.
//!
//! xenstore-rs' tokio client delivers events and replies through one task with short queues, so a
//! watch that nobody empties would hold up every other one. Here each watch has a task that does
//! nothing but leave a mark; however many events come, the board holds one mark for each watch.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use vchan::xen::store::xenstore_rs::{self as connection, Presence};
use xenstore_rs::AsyncWatch;
use xenstore_rs::tokio::XsTokio;

use super::guest::home;

/// Pause before a watch that ended, or could not be set, is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject {
    /// Domains begin.
    Introduced,
    /// Domains end.
    Released,
    /// A domain's name, which dom0 may change.
    Name(u16),
    /// A guest's channels.
    Channels(u16),
}

impl Subject {
    fn path(self) -> String {
        match self {
            Self::Introduced => "@introduceDomain".to_owned(),
            Self::Released => "@releaseDomain".to_owned(),
            Self::Name(domid) => format!("{}/name", home(domid)),
            Self::Channels(domid) => format!("{}/data/vgpu", home(domid)),
        }
    }
}

/// Marks left by events.
#[derive(Debug, Default)]
struct Board {
    marks: Mutex<BTreeSet<Subject>>,
    marked: Notify,
}

impl Board {
    fn marks(&self) -> MutexGuard<'_, BTreeSet<Subject>> {
        // Nothing panics while it holds the marks.
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mark(&self, subject: Subject) {
        self.marks().insert(subject);
        self.marked.notify_one();
    }
}

/// The connection for watches, used for nothing else, and the tasks of all watches.
#[derive(Debug)]
pub(super) struct Watches {
    xenstore: XsTokio,
    presence: Presence,
    board: Arc<Board>,
    tasks: BTreeMap<Subject, JoinHandle<()>>,
}

impl Watches {
    /// Connects.
    pub(super) async fn open() -> io::Result<Self> {
        let (xenstore, presence) = connection::for_watches().await?;
        Ok(Self {
            xenstore,
            presence,
            board: Arc::default(),
            tasks: BTreeMap::new(),
        })
    }

    /// Watches `subject`, which gets its first mark as soon as the watch is set.
    pub(super) fn add(&mut self, subject: Subject) {
        let (xenstore, board) = (self.xenstore.clone(), Arc::clone(&self.board));
        self.tasks
            .entry(subject)
            .or_insert_with(|| tokio::spawn(watch(xenstore, board, subject)));
    }

    /// Ends the watch of `subject`, if there is one.
    pub(super) fn remove(&mut self, subject: Subject) {
        if let Some(task) = self.tasks.remove(&subject) {
            // Dropping the stream takes the watch back.
            task.abort();
            self.board.marks().remove(&subject);
        }
    }

    /// Waits until there is a mark.
    pub(super) async fn marked(&self) {
        while self.board.marks().is_empty() {
            self.board.marked.notified().await;
        }
    }

    /// Waits until xenstored has gone away. These watches tell nothing from then on.
    pub(super) async fn ended(&self) {
        self.presence.ended().await;
    }

    /// Takes all marks off the board.
    pub(super) fn take(&self) -> BTreeSet<Subject> {
        std::mem::take(&mut self.board.marks())
    }
}

impl Drop for Watches {
    fn drop(&mut self) {
        self.tasks.values().for_each(JoinHandle::abort);
    }
}

async fn watch(xenstore: XsTokio, board: Arc<Board>, subject: Subject) {
    loop {
        match xenstore.watch(&subject.path()).await {
            Ok(mut events) => {
                // Changes before the watch was set are found by reading.
                board.mark(subject);
                while events.next().await.is_some() {
                    board.mark(subject);
                }
                log::warn!("the watch on {} has ended; trying again", subject.path());
            }
            Err(error) => log::warn!("cannot watch {}: {error}", subject.path()),
        }
        tokio::time::sleep(RETRY).await;
    }
}

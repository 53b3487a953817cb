//! Handles of C programs: numbers in the form of pointers, looked up and never followed. A handle that was freed,
//! or that is of another kind, is found to be one, since no number is given twice.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::failure::{Failure, VgpuError};

/// A new number, for a handle or a session. Above page 0, and a multiple of the largest alignment, so that it looks
/// like any other pointer to C.
pub(crate) fn new_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0x1_0000);
    // Relaxed: only that all are different matters.
    NEXT.fetch_add(16, Ordering::Relaxed)
}

/// The object behind a handle.
#[derive(Debug, Clone)]
pub(crate) struct Held<T> {
    /// The session that it is gone with.
    pub(crate) session: usize,
    pub(crate) object: T,
}

/// All handles of a kind.
#[derive(Debug)]
pub(crate) struct Table<T> {
    /// The kind, as errors say it.
    kind: &'static str,
    held: RwLock<BTreeMap<usize, Held<T>>>,
}

impl<T: Clone> Table<T> {
    pub(crate) const fn new(kind: &'static str) -> Self {
        Self {
            kind,
            held: RwLock::new(BTreeMap::new()),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<usize, Held<T>>> {
        // No step leaves the map half done.
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<usize, Held<T>>> {
        self.held.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A handle for `object`.
    pub(crate) fn insert<H>(&self, session: usize, object: T) -> *mut H {
        let number = new_number();
        self.write().insert(number, Held { session, object });
        std::ptr::without_provenance_mut(number)
    }

    /// The object behind `handle`.
    pub(crate) fn get<H>(&self, handle: *mut H) -> Result<Held<T>, Failure> {
        let found = self.read().get(&handle.addr()).cloned();
        found.ok_or_else(|| self.unknown(handle))
    }

    /// Takes the handle away; nothing where it is NULL.
    pub(crate) fn remove<H>(&self, handle: *mut H) -> Result<Option<T>, Failure> {
        if handle.is_null() {
            return Ok(None);
        }
        let found = self.write().remove(&handle.addr());
        match found {
            Some(held) => Ok(Some(held.object)),
            None => Err(self.unknown(handle)),
        }
    }

    /// Takes away all handles of a session. They are dropped by the caller, when the table is open to others again.
    #[must_use]
    pub(crate) fn remove_session(&self, session: usize) -> Vec<T> {
        let mut held = self.write();
        let (gone, kept): (BTreeMap<_, _>, _) = std::mem::take(&mut *held)
            .into_iter()
            .partition(|(_, held)| held.session == session);
        *held = kept;
        drop(held);
        gone.into_values().map(|held| held.object).collect()
    }

    fn unknown<H>(&self, handle: *mut H) -> Failure {
        let kind = self.kind;
        match handle.is_null() {
            true => Failure::new(VgpuError::InvalidHandle, format!("the {kind} is NULL")),
            false => Failure::new(
                VgpuError::InvalidHandle,
                format!(
                    "{handle:p} is no {kind}, or one that was freed or whose session was closed"
                ),
            ),
        }
    }
}

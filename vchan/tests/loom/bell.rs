//! The doorbell of one side, as loom sees it.

use loom::sync::Condvar;

use crate::sync::{Without, is_left_out};

#[derive(Debug, Default)]
struct State {
    rung: bool,
    cancelled: bool,
}

/// Up from the ring until it is acknowledged, like an eventfd.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    state: loom::sync::Mutex<State>,
    changed: Condvar,
}

impl Bell {
    pub(crate) fn ring(&self) {
        if is_left_out(Without::UnaskedRing) {
            return;
        }
        self.state.lock().unwrap().rung = true;
        self.changed.notify_all();
    }

    pub(crate) fn cancel(&self) {
        self.state.lock().unwrap().cancelled = true;
        self.changed.notify_all();
    }

    /// Takes the ring.
    pub(crate) fn take(&self) -> bool {
        std::mem::take(&mut self.state.lock().unwrap().rung)
    }

    /// Whether polling would return at once.
    pub(crate) fn is_up(&self) -> bool {
        let state = self.state.lock().unwrap();
        state.rung || state.cancelled
    }

    /// Sleeps until the bell is up.
    pub(crate) fn wait(&self) {
        let mut state = self.state.lock().unwrap();
        while !(state.rung || state.cancelled) {
            state = self.changed.wait(state).unwrap();
        }
    }
}

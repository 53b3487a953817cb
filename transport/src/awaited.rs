//! What ends a wait beside the transport.

use std::fmt::Debug;
use std::ops::Deref;
use std::time::Instant;

use crate::transport::TransportError;
use crate::waker::Waker;

/// Something that a thread waits for along with a transport: another thread's work, or a device's.
///
/// A transport that polls before it sleeps asks [`has_come`](Self::has_come), so that work which is over soon needs
/// nobody to wake this thread; before it sleeps it calls [`arm`](Self::arm).
pub trait Awaited: Debug {
    /// Raised when it has come, if that is after [`arm`](Self::arm).
    fn waker(&self) -> &Waker;

    /// Whether it has come. Called over and over while a transport polls: a few loads.
    fn has_come(&self) -> bool;

    /// This thread is about to sleep: from here on the [`waker`](Self::waker) is raised when it has come.
    fn arm(&mut self);
}

impl dyn Awaited + '_ {
    /// Waits for it alone.
    ///
    /// # Errors
    /// [`TransportError::TimedOut`] at `deadline`.
    pub fn wait(&mut self, deadline: Instant) -> Result<(), TransportError> {
        self.arm();
        match self.has_come() {
            true => Ok(()),
            false => self.waker().wait(deadline),
        }
    }
}

/// A waker that other threads raise anyway.
impl<W: Deref<Target = Waker> + Debug> Awaited for W {
    fn waker(&self) -> &Waker {
        self
    }

    fn has_come(&self) -> bool {
        self.is_raised()
    }

    fn arm(&mut self) {}
}

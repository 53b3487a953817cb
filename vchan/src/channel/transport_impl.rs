#![forbid(unsafe_code)]
//! A channel behind foreign traits: standard input and output, and the transport of a session.

use std::io;
use std::time::Instant;

use vgpu_transport::{Awaited, Interest, Transport, TransportError, Waker};

use crate::channel::Channel;

impl io::Read for Channel {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        io::Read::read(self.halves().0, buf)
    }
}

impl io::Write for Channel {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        io::Write::write(self.halves().1, buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Code that uses a channel as a [`Transport`] waits with [`Transport::wait`]; the descriptor is
/// for callers of [`Channel::try_read`] and [`Channel::try_write`] only.
impl Transport for Channel {
    fn try_read(&mut self, buf: &mut [u8]) -> Result<Option<usize>, TransportError> {
        Ok(self.halves().0.read_now(buf)?)
    }

    fn try_write(&mut self, buf: &[u8]) -> Result<usize, TransportError> {
        Ok(self.halves().1.write_now(buf)?)
    }

    /// If the parts together are no longer than one copy step, the peer sees them all at once and
    /// is rung once.
    fn try_write_parts(&mut self, parts: &[&[u8]]) -> Result<usize, TransportError> {
        Ok(self.halves().1.write_parts_now(parts)?)
    }

    fn wait(&mut self, interest: Interest, deadline: Instant) -> Result<(), TransportError> {
        Ok(Self::wait(self, interest, deadline)?)
    }

    fn wait_or(
        &mut self,
        interest: Option<Interest>,
        waker: &Waker,
        deadline: Instant,
    ) -> Result<(), TransportError> {
        match interest {
            Some(interest) => Ok(Self::wait_or(self, interest, waker, deadline)?),
            None => waker.wait(deadline),
        }
    }

    fn wait_with(
        &mut self,
        interest: Option<Interest>,
        awaited: &mut dyn Awaited,
        deadline: Instant,
    ) -> Result<(), TransportError> {
        match interest {
            Some(interest) => Ok(self.wait_until(interest, Some(awaited), deadline)?),
            None => awaited.wait(deadline),
        }
    }

    /// Every byte is visible to the peer as soon as it is written.
    fn flush(&mut self, _deadline: Instant) -> Result<(), TransportError> {
        Ok(())
    }

    fn close(&mut self, deadline: Instant) -> Result<(), TransportError> {
        Ok(Self::close(self, deadline)?)
    }

    fn count_beside(&mut self, bytes: u64) {
        self.halves().0.count_beside(bytes);
    }

    fn describe(&self) -> String {
        Self::describe(self)
    }

    fn read_exact(&mut self, buf: &mut [u8], deadline: Instant) -> Result<(), TransportError> {
        Ok(Self::read_exact(self, buf, deadline)?)
    }

    fn write_all(&mut self, buf: &[u8], deadline: Instant) -> Result<(), TransportError> {
        Ok(Self::write_all(self, buf, deadline)?)
    }
}

//! The interface of a carrier of channels: memory that both ends see, a doorbell each way, and a way
//! to learn that the peer is gone.
//!
//! A backend does the rendezvous in its own way and then makes a
//! [`Channel`](crate::channel::Channel) from [`Parts`], which only this crate can do. From then on
//! the channel owns the control page: the backend never touches it again, except that dropping the
//! [`Region`]s' owner unmaps it (and, on Xen, has the kernel clear the live byte and ring the
//! peer's doorbell).

use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::error::{Error, RegionError, Result};
use crate::reactor::token::Token;
use crate::region::memory::{OwnerMemory, PeerMemory};
use crate::region::ticket::{Access, Ticket};
use crate::waiting::poll::poll_readable;
use crate::wire::control_page::ControlPage;
use crate::wire::extension_page::ExtensionPage;
use crate::wire::layout::{Orders, Role};
use crate::wire::shm::Region;

/// Interval at which a server checks for its client without having been rung: clients of
/// libxenvchan before Xen 4.14 do not ring when they connect.
const CLIENT_LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// The doorbell and the death notice of one connected channel.
///
/// Methods may be called from two threads at once (the two halves of a split channel).
/// Dropping it stops the doorbell and withdraws whatever the rendezvous left behind.
pub trait Backend: Debug + Send + Sync {
    /// Rings the peer's doorbell. Never waits. Succeeds also when the peer is gone.
    fn notify(&self) -> io::Result<()>;

    /// One descriptor that is readable from the moment the peer rings or is found dead until
    /// [`acknowledge`](Self::acknowledge) is called. May be an epoll descriptor.
    fn poll_fd(&self) -> BorrowedFd<'_>;

    /// Takes note of what made [`poll_fd`](Self::poll_fd) readable and arms it again. Never
    /// waits, and is harmless when nothing happened. Returns whether the doorbell had rung.
    ///
    /// A ring or a death that comes after this call began makes the descriptor readable again.
    fn acknowledge(&self) -> io::Result<bool>;

    /// False once the peer's process or domain is known to be gone. Asks memory, not the system:
    /// the answer changes in [`acknowledge`](Self::acknowledge) or on a thread of the backend's,
    /// which then makes [`poll_fd`](Self::poll_fd) readable. Never turns true again.
    fn peer_alive(&self) -> bool;

    /// Whether the peer's whole domain is gone, so that an end without a close is not the orderly
    /// end of the stream. May be true only if [`peer_alive`](Self::peer_alive) is false.
    fn peer_lost(&self) -> bool {
        false
    }

    /// Whether polling the ring for the peer's next step can help, which needs a processor for each
    /// side.
    fn spin_helps(&self) -> bool;

    /// This channel's token on its [`Reactor`](crate::reactor::Reactor); `None` if it is on none.
    fn token(&self) -> Option<Token> {
        None
    }

    /// Called after each step of an index of ours, if there is a [`token`](Self::token): a peer
    /// whose rings lead to such steps may ring as often as it likes. Must cost next to nothing.
    fn moved(&self) {}

    /// The peer's address for messages: `xen:7/data/x` or `local:/run/x.sock`.
    fn describe(&self) -> String;

    /// Pages that a [region](crate::region) with `data` pages of bytes takes in all.
    fn region_pages(&self, data: usize) -> usize {
        data.saturating_add(1)
    }

    /// Makes memory for a region of `data` pages that the peer can get. Never waits.
    ///
    /// # Errors
    /// The system's error; nothing stays allocated then.
    fn share_region(&self, _data: usize, _access: Access) -> Result<OwnerMemory> {
        Err(RegionError::Unsupported(self.describe()).into())
    }

    /// Sends the peer what it needs beside the ticket to map `memory`. Never waits.
    ///
    /// # Errors
    /// The system's error.
    fn hand_over_region(&self, _memory: &OwnerMemory, _ticket: &Ticket) -> Result<()> {
        Ok(())
    }

    /// Maps the memory of a region of the peer's. Only the ticket's own fields have been checked so
    /// far. Once the header is mapped writable, unmapping it notifies its owner. `at` is where the first byte had
    /// better be.
    ///
    /// # Errors
    /// [`Error::Region`] for anything that does not match the ticket, [`Error::TimedOut`],
    /// [`Error::Os`].
    fn map_region(
        &self,
        _ticket: &Ticket,
        _at: Option<usize>,
        _deadline: Instant,
    ) -> Result<PeerMemory> {
        Err(RegionError::Unsupported(self.describe()).into())
    }
}

/// The pieces of a connected channel.
///
/// Fields drop in order: memory first, so that the peer gets an unmap notification while the
/// doorbell still exists.
#[derive(Debug)]
pub struct Parts {
    /// This side's end of the channel.
    pub role: Role,
    /// The rings' sizes, latched by the caller: read from the page once, then checked.
    pub orders: Orders,
    /// The index at which both rings start. A server passes what it initialised the page with; a
    /// client passes `None` and takes over what it finds there, checked.
    pub first_index: Option<u32>,
    /// The control page, writable.
    pub control: ControlPage,
    /// The extension page, writable, if both sides use it.
    pub extension: Option<ExtensionPage>,
    /// Client to server; exactly `orders.left_bytes()` long; writable at least for the client.
    pub left: Region,
    /// Server to client; exactly `orders.right_bytes()` long; writable at least for the server.
    pub right: Region,
    /// Doorbell and death notice.
    pub backend: Box<dyn Backend>,
}

/// Server: waits until a client has declared itself connected in the control page.
///
/// # Errors
/// [`Error::TimedOut`] at `deadline`, [`Error::PeerClosed`] if the peer dies first, [`Error::Os`].
pub fn wait_for_client(
    control: &ControlPage,
    backend: &dyn Backend,
    deadline: Instant,
) -> Result<()> {
    loop {
        // Read before checking, so that one check follows the deadline.
        let now = Instant::now();
        if control.client_arrived() {
            return Ok(());
        }
        if !backend.peer_alive() {
            return Err(Error::PeerClosed { unread: 0 });
        }
        if now >= deadline {
            return Err(Error::TimedOut("see a client connect"));
        }
        if poll_readable(
            &[backend.poll_fd()],
            deadline.min(now + CLIENT_LOOK_INTERVAL),
        )? {
            backend
                .acknowledge()
                .map_err(|source| Error::os("cannot acknowledge the doorbell", source))?;
        }
    }
}

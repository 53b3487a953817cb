#![forbid(unsafe_code)]
//! The socket after the rendezvous: the peer's death notice, and the carrier of regions'
//! descriptors.
//!
//! The owner of a region sends one message with two memfds, header and data, before it gives the
//! ticket out. No event announces it on this side: the socket is read only while a region is being
//! mapped. Then messages are taken in until the one for the ticket has come; a few others are kept
//! until their tickets come.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use super::stranger::Stranger;
use super::{descriptors, memory};
use crate::error::{Error, PeerError, Result};
use crate::region::header::Header;
use crate::region::ledger::MOST_REGIONS;
use crate::region::{
    Carrier, OwnerMemory, PeerMemory, RegionError, TICKET_BYTES, Ticket, TicketError,
};
use crate::waiting::poll::{poll_now, poll_readable};
use crate::wire::layout::PAGE;

/// The code of the other carrier, grants.
const CARRIER_GRANTS: u8 = 1;

/// Interval at which to check whether another thread has taken the message in.
const TAKEN_CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// The connected stream of a channel.
#[derive(Debug)]
pub(super) struct Handover {
    stream: Arc<Stranger<UnixStream>>,
    inbox: Mutex<Inbox>,
}

#[derive(Debug, Default)]
struct Inbox {
    /// Newest last; of more than [`MOST_REGIONS`] the oldest is forgotten.
    waiting: VecDeque<Offer>,
    /// The reason why no further message can be understood.
    broken: Option<PeerError>,
}

#[derive(Debug)]
struct Offer {
    ticket: [u8; TICKET_BYTES],
    header: Stranger<OwnedFd>,
    data: Stranger<OwnedFd>,
}

impl Handover {
    pub(super) fn new(stream: Arc<Stranger<UnixStream>>) -> Self {
        Self {
            stream,
            inbox: Mutex::default(),
        }
    }

    /// Owner: sends the descriptors of a region. Does not wait.
    pub(super) fn send(&self, memory: &OwnerMemory, ticket: &Ticket) -> Result<()> {
        let Some([header, data]) = &memory.descriptors else {
            return Err(RegionError::Stale.into());
        };
        let fds = [header.as_fd(), data.as_fd()];
        // One small message, which the kernel takes whole or not at all.
        match descriptors::send(&self.stream, &ticket.encode(), &fds, Instant::now()) {
            Err(Error::TimedOut(_)) => Err(Error::setup(
                "the peer has not taken the regions that it was offered before",
                "offer no more regions than the other side maps",
            )),
            outcome => outcome,
        }
    }

    /// Peer: maps the memory of a ticket whose descriptors have come, or come until `deadline`; at `at`, if nothing is
    /// there.
    pub(super) fn map(
        &self,
        ticket: &Ticket,
        at: Option<usize>,
        deadline: Instant,
    ) -> Result<PeerMemory> {
        if ticket.carrier != Carrier::Descriptors {
            return Err(TicketError::Carrier(CARRIER_GRANTS).into());
        }
        let offer = self.wait_for(&ticket.encode(), deadline)?;
        let header = memory::map(&offer.header, PAGE)?;
        Header::new(header.share()).check(ticket)?;
        let bytes = ticket.pages().saturating_mul(PAGE);
        let data = memory::map_start(&offer.data, bytes, ticket.access.peer_writes(), at)?;
        Ok(PeerMemory {
            header,
            data,
            kernel_tells: false,
        })
    }

    fn wait_for(&self, ticket: &[u8; TICKET_BYTES], deadline: Instant) -> Result<Offer> {
        loop {
            // Read before checking, so that one check follows the deadline.
            let now = Instant::now();
            if let Some(offer) = self.take_in(ticket)? {
                return Ok(offer);
            }
            if now >= deadline {
                return Err(Error::TimedOut("receive the memory of a region"));
            }
            poll_readable(
                &[self.stream.as_fd()],
                deadline.min(now + TAKEN_CHECK_INTERVAL),
            )?;
        }
    }

    /// Takes in the messages that are there, up to a bound, and searches for that of `ticket`.
    fn take_in(&self, ticket: &[u8; TICKET_BYTES]) -> Result<Option<Offer>> {
        let mut inbox = self.lock();
        for _ in 0..MOST_REGIONS {
            if let Some(at) = inbox
                .waiting
                .iter()
                .position(|offer| offer.ticket == *ticket)
            {
                return Ok(inbox.waiting.remove(at));
            }
            if let Some(error) = &inbox.broken {
                return Err(error.clone().into());
            }
            if !poll_now(&[(self.stream.as_fd(), PollFlags::POLLIN)])? {
                return Ok(None);
            }
            match self.receive() {
                Ok(offer) => {
                    if inbox.waiting.len() == MOST_REGIONS {
                        inbox.waiting.pop_front();
                    }
                    inbox.waiting.push_back(offer);
                }
                // After a part of a message the start of the next cannot be found.
                Err(error) => {
                    inbox.broken = match &error {
                        Error::Peer(error) => Some(error.clone()),
                        Error::PeerClosed { .. } => None,
                        other => Some(PeerError::Rendezvous(other.to_string())),
                    };
                    return Err(error);
                }
            }
        }
        Ok(None)
    }

    /// Receives one message; there must be something to receive.
    fn receive(&self) -> Result<Offer> {
        let mut ticket = [0; TICKET_BYTES];
        let refuse = |why: &str| Err(PeerError::Rendezvous(why.to_owned()).into());
        let fds = match descriptors::receive(&self.stream, &mut ticket, 2, Instant::now()) {
            Err(Error::TimedOut(_)) => return refuse("part of a message about a region"),
            outcome => outcome?,
        };
        match <[Stranger<OwnedFd>; 2]>::try_from(fds) {
            Ok([header, data]) => Ok(Offer {
                ticket,
                header,
                data,
            }),
            Err(_) => refuse("a message about a region does not come with two descriptors"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        // Messages are added and removed whole.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Handover {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

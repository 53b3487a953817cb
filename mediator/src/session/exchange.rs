//! Data that is sent back: no device has to do with it.

use std::collections::VecDeque;

use vgpu_protocol::op::{Body, Exchange, ExchangeReply};
use vgpu_protocol::session::server::Failure;
use vgpu_protocol::status::ErrorCode;

use super::INITIAL_CREDIT;
use super::backend::Event;

/// Bytes that wait of one exchange, at most: what may come before any room is granted, and as much again,
/// so that the guest need not stop before it hears of more.
const CAPACITY: usize = 2 * INITIAL_CREDIT as usize;

/// Credit is granted in steps of this many bytes.
const STEP: u64 = (CAPACITY / 4) as u64;

/// The exchanges of a session.
#[derive(Debug, Default)]
pub(super) struct Exchanges {
    under_way: Vec<UnderWay>,
    pub(super) events: VecDeque<Event>,
}

#[derive(Debug)]
struct UnderWay {
    id: u32,
    what: Exchange,
    /// Ring buffer of bytes received and not sent back yet.
    ring: Vec<u8>,
    /// Bytes that have come, and that were sent, since the beginning.
    come: u64,
    sent: u64,
    /// Bytes of room not granted to the guest yet.
    untold: u64,
}

impl Exchanges {
    pub(super) fn start(&mut self, id: u32, what: Exchange) {
        // For small ones no more than they need; at least a byte, so that there is a place for nothing.
        let wanted = what.up.clamp(1, CAPACITY as u64);
        let bytes = usize::try_from(wanted).expect("no more than the capacity");
        let mut ring = Vec::new();
        if ring.try_reserve_exact(bytes).is_err() {
            let failure = Failure {
                status: ErrorCode::QuotaMemory.into(),
                text: format!("no memory for {bytes} bytes that wait"),
            };
            return self.events.push_back(Event::Done(id, Err(failure)));
        }
        ring.resize(bytes, 0);
        let exchange = UnderWay {
            id,
            what,
            ring,
            come: 0,
            sent: 0,
            untold: 0,
        };
        // Beyond what every request may send at once.
        let beyond = (CAPACITY as u64).saturating_sub(INITIAL_CREDIT.into());
        self.events.push_back(Event::Room(id, beyond));
        self.under_way.push(exchange);
        self.look(id);
    }

    pub(super) fn has(&self, id: u32) -> bool {
        self.under_way.iter().any(|exchange| exchange.id == id)
    }

    fn find(&mut self, id: u32) -> Option<&mut UnderWay> {
        self.under_way.iter_mut().find(|exchange| exchange.id == id)
    }

    pub(super) fn input(&mut self, id: u32) -> &mut [u8] {
        self.find(id).map(UnderWay::input).unwrap_or_default()
    }

    pub(super) fn filled(&mut self, id: u32, n: usize) {
        if let Some(exchange) = self.find(id) {
            if exchange.come >= exchange.what.down {
                exchange.untold += n as u64;
            }
            exchange.come += n as u64;
        }
        self.look(id);
    }

    pub(super) fn output(&mut self, id: u32) -> &[u8] {
        self.find(id).map_or(&[], |exchange| exchange.output())
    }

    pub(super) fn sent(&mut self, id: u32, n: usize) {
        if let Some(exchange) = self.find(id) {
            exchange.sent += n as u64;
            exchange.untold += n as u64;
        }
        self.look(id);
    }

    pub(super) fn cancel(&mut self, id: u32) {
        self.under_way.retain(|exchange| exchange.id != id);
        self.events.retain(|event| event.request() != Some(id));
    }

    /// Tells of room, and of the end.
    fn look(&mut self, id: u32) {
        let Some(exchange) = self.find(id) else {
            return;
        };
        if exchange.is_over() {
            self.under_way.retain(|exchange| exchange.id != id);
            let body = ExchangeReply {}.encode();
            return self.events.push_back(Event::Done(id, Ok(body)));
        }
        if exchange.untold >= STEP {
            let room = std::mem::take(&mut exchange.untold);
            self.events.push_back(Event::Room(id, room));
        }
    }
}

impl UnderWay {
    fn is_over(&self) -> bool {
        self.come == self.what.up && self.sent == self.what.down
    }

    /// Bytes that have come to be sent back.
    fn kept(&self) -> u64 {
        self.come.min(self.what.down)
    }

    fn input(&mut self) -> &mut [u8] {
        let capacity = self.ring.len() as u64;
        let free = capacity - (self.kept() - self.sent);
        let left = match self.what.down.checked_sub(self.come) {
            Some(kept) if kept > 0 => kept,
            // Bytes that are not sent back are overwritten by the next ones.
            _ => self.what.up - self.come,
        };
        let at = self.kept() % capacity;
        self.part(at, free.min(left))
    }

    fn output(&mut self) -> &mut [u8] {
        let waiting = self.kept() - self.sent;
        self.part(self.sent % self.ring.len() as u64, waiting)
    }

    /// Up to this many bytes from this place on, as far as they are contiguous.
    fn part(&mut self, at: u64, bytes: u64) -> &mut [u8] {
        let at = usize::try_from(at).expect("within the ring");
        let bytes = usize::try_from(bytes).expect("no more than the ring has");
        let end = self.ring.len().min(at + bytes);
        &mut self.ring[at..end]
    }
}

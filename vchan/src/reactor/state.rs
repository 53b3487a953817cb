#![forbid(unsafe_code)]
//! A reactor's state of its channels, updated by their rings and deaths.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use xen_sys::{ErrorKind, EventChannels, Port};

use super::limiter::Limiter;
use super::slot::Slot;
use super::watched::{Bell, Death};

/// The most events that one turn takes from each source, and tokens that it hands out.
pub(super) const BATCH: usize = 64;

#[derive(Debug, Default)]
pub(super) struct State {
    /// Opened with the first channel over Xen.
    pub(super) events: Option<Arc<dyn EventChannels>>,
    pub(super) ports: HashMap<Port, u64>,
    pub(super) channels: HashMap<u64, Entry>,
    pub(super) last_id: u64,
    /// Tokens to hand out, in order. May name channels that are gone.
    pub(super) ready: VecDeque<u64>,
    /// `queued` is readable.
    pub(super) signalled: bool,
    /// The channels whose bells are off, by the time at which they go on again.
    pub(super) off: BTreeSet<(Instant, u64)>,
    /// The time that the timer is set to.
    pub(super) timer: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) slot: Arc<Slot>,
    pub(super) bell: Bell,
    pub(super) death: Option<Death>,
    pub(super) limiter: Limiter,
    /// It is in `ready`.
    pub(super) queued: bool,
    /// The bell is off until then.
    pub(super) off: Option<Instant>,
    /// The bell was turned on again, which looks like a ring.
    pub(super) turned_on: bool,
}

impl State {
    pub(super) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Puts a channel at the end of the queue, unless it is queued already.
    pub(super) fn push(&mut self, id: u64) {
        if let Some(entry) = self.channels.get_mut(&id)
            && !std::mem::replace(&mut entry.queued, true)
        {
            self.ready.push_back(id);
        }
    }

    /// Notes a ring. Returns how long the peer must be kept from ringing again, if at all.
    pub(super) fn rang(&mut self, id: u64, now: Instant) -> Option<Duration> {
        self.push(id);
        let entry = self.channels.get_mut(&id)?;
        // Pairs with the swap in `Member::acknowledge`.
        entry.slot.rang.store(true, Ordering::Release);
        entry.slot.wake();
        let moved = entry.slot.moved.swap(false, Ordering::Relaxed);
        if std::mem::take(&mut entry.turned_on) {
            return None;
        }
        let delay = entry.limiter.ring(moved, now);
        (!delay.is_zero()).then_some(delay)
    }

    pub(super) fn died(&mut self, id: u64) {
        self.push(id);
        if let Some(entry) = self.channels.get(&id) {
            // Pairs with the load in `Member::hung_up`.
            entry.slot.hung_up.store(true, Ordering::Release);
            entry.slot.wake();
        }
    }

    /// Reads pending ports and unmasks them, at once or later.
    pub(super) fn take_ports(&mut self, now: Instant) -> io::Result<()> {
        let Some(events) = self.events.clone() else {
            return Ok(());
        };
        let mut ports = [Port(0); BATCH];
        let count = match events.pending_many(&mut ports) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::EventsLost => return self.recover(&*events),
            Err(error) => return Err(error.into()),
        };
        let mut kept = 0;
        for index in 0..count {
            let port = ports[index];
            // A port that was unbound while pending belongs to no channel.
            let Some(&id) = self.ports.get(&port) else {
                continue;
            };
            match self.rang(id, now) {
                None => {
                    ports[kept] = port;
                    kept += 1;
                }
                Some(delay) => {
                    if let Some(entry) = self.channels.get_mut(&id) {
                        entry.off = Some(now + delay);
                        self.off.insert((now + delay, id));
                    }
                }
            }
        }
        // Before any ring is looked at: a later event rings again.
        events.unmask_many(&ports[..kept])?;
        Ok(())
    }

    /// The kernel's list of ports overflowed: any peer may have rung. Those whose bells are off
    /// have been noted already.
    fn recover(&mut self, events: &dyn EventChannels) -> io::Result<()> {
        log::warn!("more events than the kernel's list holds: looking at every channel");
        events.reset()?;
        let ports: Vec<(Port, u64)> = self.ports.iter().map(|(&port, &id)| (port, id)).collect();
        for (port, id) in ports {
            self.push(id);
            let Some(entry) = self.channels.get(&id) else {
                continue;
            };
            entry.slot.rang.store(true, Ordering::Release);
            entry.slot.wake();
            if entry.off.is_none() {
                events.unmask(port)?;
            }
        }
        Ok(())
    }
}

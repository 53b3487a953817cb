#![forbid(unsafe_code)]
//! The reactor's descriptors, and the channels registered on them.
//!
//! Two epoll descriptors. `sources` has the external events (event channels, doorbells, deaths, the
//! timer) and is drained by [`Core::turn`] alone, under the lock, by whichever thread comes first.
//! `public` has `sources` and `queued`; the latter says that tokens wait for [`Reactor::wait`].
//!
//! [`Reactor::wait`]: super::Reactor::wait

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use xen_sys::{EventChannels, Port};

use super::limiter::Limiter;
use super::slot::Slot;
use super::state::{BATCH, Entry, State};
use super::token::Token;
use super::watched::{Bell, Death};
use crate::error::{Error, Result};
use crate::local::bell;
use crate::local::stranger::Stranger;

/// Marks of the sources. Those of channel N are 2N (doorbell) and 2N + 1 (death); N starts at 1.
const EVENT_CHANNELS: u64 = 0;
const TIMER: u64 = 1;

/// State that a reactor and its channels share.
#[derive(Debug)]
pub(crate) struct Core {
    sources: Epoll,
    public: Epoll,
    queued: EventFd,
    timer: TimerFd,
    state: Mutex<State>,
}

/// A channel's place on a reactor, to be given up with [`Core::remove`].
#[derive(Debug)]
pub(super) struct Place {
    pub(super) token: Token,
    pub(super) slot: Arc<Slot>,
}

impl Core {
    pub(super) fn new() -> nix::Result<Self> {
        let epoll = || Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC);
        let (sources, public) = (epoll()?, epoll()?);
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let queued = EventFd::from_value_and_flags(0, flags)?;
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        sources.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, TIMER))?;
        for fd in [sources.0.as_fd(), queued.as_fd()] {
            public.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        }
        Ok(Self {
            sources,
            public,
            queued,
            timer,
            state: Mutex::default(),
        })
    }

    /// The descriptor of external events, without the tokens that wait.
    pub(super) fn sources(&self) -> BorrowedFd<'_> {
        self.sources.0.as_fd()
    }

    pub(super) fn len(&self) -> usize {
        self.lock().channels.len()
    }

    /// Does one turn's work and moves tokens to `ready`.
    pub(super) fn poll(&self, ready: &mut Vec<Token>) -> io::Result<()> {
        let mut state = self.lock();
        self.take_events(&mut state)?;
        ready.clear();
        while ready.len() < BATCH
            && let Some(id) = state.ready.pop_front()
        {
            if let Some(entry) = state.channels.get_mut(&id) {
                entry.queued = false;
                ready.push(Token(id));
            }
        }
        // Left readable while there is work, to save system calls.
        if ready.is_empty() && state.signalled {
            state.signalled = false;
            let _ = self.queued.read();
        }
        self.signal(&mut state);
        Ok(())
    }

    /// Does one turn's work; its tokens wait for [`poll`](Self::poll).
    pub(super) fn turn(&self) -> io::Result<()> {
        let mut state = self.lock();
        let outcome = self.take_events(&mut state);
        self.signal(&mut state);
        outcome
    }

    pub(super) fn again(&self, token: Token) {
        let mut state = self.lock();
        state.push(token.0);
        self.signal(&mut state);
    }

    /// Runs `f` while no thread takes events.
    pub(super) fn between_turns<T>(&self, f: impl FnOnce() -> T) -> T {
        let _state = self.lock();
        f()
    }

    /// Puts a channel with a local bell on the reactor.
    pub(super) fn add_bell(
        &self,
        bell: Arc<bell::Bell>,
        stream: Arc<Stranger<UnixStream>>,
    ) -> Result<Place> {
        let mut state = self.lock();
        let id = state.next_id();
        let death = Death::Stream(stream);
        self.watch(id, Some(&death))?;
        if let Err(errno) = self.sources.add(&bell, edges(id)) {
            self.unwatch(Some(&death));
            return Err(cannot_watch(errno));
        }
        Ok(insert(&mut state, id, Bell::Local(bell), Some(death)))
    }

    /// Puts a channel with an event channel on the reactor. `open` makes the handle for the first
    /// one; `bind` binds the port.
    pub(super) fn add_port<E: From<Error>>(
        &self,
        death: Option<Death>,
        open: impl FnOnce() -> Result<Box<dyn EventChannels>>,
        bind: impl FnOnce(&dyn EventChannels) -> Result<Port, E>,
    ) -> Result<(Place, Arc<dyn EventChannels>, Port), E> {
        // Held until the port is known: its first event may come before `bind` returns.
        let mut state = self.lock();
        let events = match &state.events {
            Some(events) => Arc::clone(events),
            None => {
                let events: Arc<dyn EventChannels> = open()?.into();
                let readable = EpollEvent::new(EpollFlags::EPOLLIN, EVENT_CHANNELS);
                self.sources.add(&events, readable).map_err(cannot_watch)?;
                Arc::clone(state.events.insert(events))
            }
        };
        let id = state.next_id();
        self.watch(id, death.as_ref())?;
        let port = bind(&*events).inspect_err(|_| self.unwatch(death.as_ref()))?;
        state.ports.insert(port, id);
        let place = insert(&mut state, id, Bell::Port(port), death);
        Ok((place, events, port))
    }

    /// Takes a channel off: its descriptors are no longer watched, its port is unbound.
    pub(super) fn remove(&self, id: u64) {
        let mut state = self.lock();
        let Some(entry) = state.channels.remove(&id) else {
            return;
        };
        if let Some(at) = entry.off {
            state.off.remove(&(at, id));
        }
        match &entry.bell {
            Bell::Port(port) => {
                state.ports.remove(port);
                if let Some(events) = &state.events
                    && let Err(error) = events.unbind(*port)
                {
                    log::warn!("{error}");
                }
            }
            // Not left to the close: the peer holds the same file open.
            Bell::Local(bell) => drop(self.sources.delete(bell)),
        }
        self.unwatch(entry.death.as_ref());
    }

    fn watch(&self, id: u64, death: Option<&Death>) -> Result<()> {
        let (fd, flags) = match death {
            None => return Ok(()),
            Some(Death::Domain(domain)) => (domain.as_fd(), EpollFlags::EPOLLIN),
            // Error and hang-up are always reported.
            Some(Death::Stream(stream)) => (stream.as_fd(), EpollFlags::EPOLLRDHUP),
        };
        let event = EpollEvent::new(flags | EpollFlags::EPOLLET, 2 * id + 1);
        self.sources.add(fd, event).map_err(cannot_watch)
    }

    fn unwatch(&self, death: Option<&Death>) {
        // Fails only if it is not watched.
        let _ = match death {
            None => Ok(()),
            Some(Death::Domain(domain)) => self.sources.delete(domain),
            Some(Death::Stream(stream)) => self.sources.delete(stream),
        };
    }

    /// Turns a bounded number of events into tokens and flags.
    fn take_events(&self, state: &mut State) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); BATCH];
        let count = match self.sources.wait(&mut events, EpollTimeout::ZERO) {
            Ok(0) | Err(Errno::EINTR) => return Ok(()),
            Ok(count) => count,
            Err(errno) => return Err(errno.into()),
        };
        let now = Instant::now();
        for event in &events[..count] {
            match event.data() {
                EVENT_CHANNELS => state.take_ports(now)?,
                TIMER => {
                    // Read so that it stays silent until it is set again.
                    let _ = self.timer.wait();
                    state.timer = None;
                }
                data if data % 2 == 0 => {
                    if let Some(delay) = state.rang(data / 2, now) {
                        self.turn_off(state, data / 2, now + delay)?;
                    }
                }
                data => state.died(data / 2),
            }
        }
        self.turn_on(state, now)?;
        self.set_timer(state, now)
    }

    /// Silences a local bell until `until` by taking it off the epoll descriptor, so that no ring
    /// costs anything here.
    fn turn_off(&self, state: &mut State, id: u64, until: Instant) -> io::Result<()> {
        if let Some(entry) = state.channels.get_mut(&id)
            && let Bell::Local(bell) = &entry.bell
        {
            self.sources.delete(bell)?;
            entry.off = Some(until);
            state.off.insert((until, id));
        }
        Ok(())
    }

    /// Restores the bells whose silence is over.
    fn turn_on(&self, state: &mut State, now: Instant) -> io::Result<()> {
        while let Some(&(at, id)) = state.off.first()
            && at <= now
        {
            state.off.pop_first();
            let Some(entry) = state.channels.get_mut(&id) else {
                continue;
            };
            entry.off = None;
            match &entry.bell {
                Bell::Port(port) => {
                    if let Some(events) = &state.events {
                        events.unmask(*port)?;
                    }
                }
                Bell::Local(bell) => {
                    // A bell is always readable, so this reports a ring that came meanwhile, if
                    // there was one.
                    entry.turned_on = true;
                    self.sources.add(bell, edges(id))?;
                }
            }
        }
        Ok(())
    }

    fn set_timer(&self, state: &mut State, now: Instant) -> io::Result<()> {
        let Some(&(at, _)) = state.off.first() else {
            return Ok(());
        };
        if state.timer.is_some_and(|set| set <= at) {
            return Ok(());
        }
        // Zero would disarm it.
        let left = at
            .saturating_duration_since(now)
            .max(Duration::from_nanos(1));
        let once = Expiration::OneShot(TimeSpec::from_duration(left));
        self.timer.set(once, TimerSetTimeFlags::empty())?;
        state.timer = Some(at);
        Ok(())
    }

    /// Makes `queued` readable if tokens wait.
    fn signal(&self, state: &mut State) {
        if !state.ready.is_empty() && !state.signalled {
            state.signalled = true;
            // A counter of 1 cannot overflow.
            let _ = self.queued.write(1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics half-way through a change of the state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Core {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.public.0.as_fd()
    }
}

fn insert(state: &mut State, id: u64, bell: Bell, death: Option<Death>) -> Place {
    let slot = Arc::new(Slot::default());
    let entry = Entry {
        slot: Arc::clone(&slot),
        bell,
        death,
        limiter: Limiter::default(),
        queued: false,
        off: None,
        turned_on: false,
    };
    state.channels.insert(id, entry);
    Place {
        token: Token(id),
        slot,
    }
}

/// The epoll events of the local bell of channel `id`.
fn edges(id: u64) -> EpollEvent {
    EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 2 * id)
}

fn cannot_watch(errno: Errno) -> Error {
    Error::os("cannot watch a channel with epoll", errno)
}

#[cfg(test)]
#[path = "core_tests.rs"]
pub(crate) mod tests;

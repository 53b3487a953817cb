//! The reactor over an event-channel device in memory, which keeps the rules of the real one: a
//! port that was read stays masked until it is written back, and a full list loses events.

use std::collections::{HashSet, VecDeque};

use xen_sys::{DomId, ErrorKind};

use super::super::{Handle, Member, Reactor};
use super::*;

#[derive(Debug)]
pub(crate) struct Device {
    readable: EventFd,
    state: Mutex<DeviceState>,
}

#[derive(Debug, Default)]
pub(crate) struct DeviceState {
    bound: HashSet<Port>,
    pub(crate) masked: HashSet<Port>,
    /// Rung while masked.
    held: HashSet<Port>,
    pending: VecDeque<Port>,
    room: usize,
    overflown: bool,
    pub(crate) resets: u32,
}

/// The same device for the reactor and for the test that rings.
#[derive(Debug, Clone)]
pub(crate) struct Shared(Arc<Device>);

impl Shared {
    pub(crate) fn new(room: usize) -> Self {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        Self(Arc::new(Device {
            readable: EventFd::from_value_and_flags(0, flags).unwrap(),
            state: Mutex::new(DeviceState {
                room,
                ..Default::default()
            }),
        }))
    }

    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut DeviceState) -> T) -> T {
        let mut state = self.0.state.lock().unwrap();
        let value = f(&mut state);
        let _ = self.0.readable.read();
        if state.overflown || !state.pending.is_empty() {
            self.0.readable.write(1).unwrap();
        }
        value
    }

    /// Rings as a peer does.
    pub(crate) fn ring(&self, port: u32) {
        self.with(|state| state.ring(Port(port)));
    }
}

impl DeviceState {
    fn ring(&mut self, port: Port) {
        if self.masked.contains(&port) {
            self.held.insert(port);
        } else if self.bound.contains(&port) {
            self.masked.insert(port);
            match self.pending.len() < self.room {
                true => self.pending.push_back(port),
                false => self.overflown = true,
            }
        }
    }
}

impl AsFd for Shared {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.readable.as_fd()
    }
}

impl EventChannels for Shared {
    fn provider(&self) -> &str {
        "memory"
    }

    fn bind_unbound(&self, _: DomId) -> xen_sys::Result<Port> {
        Ok(self.with(|state| {
            let port = (1..).map(Port).find(|port| !state.bound.contains(port));
            let port = port.expect("more than enough numbers");
            state.bound.insert(port);
            port
        }))
    }

    fn bind_interdomain(&self, peer: DomId, _: Port) -> xen_sys::Result<Port> {
        self.bind_unbound(peer)
    }

    fn notify(&self, _: Port) -> xen_sys::Result<()> {
        Ok(())
    }

    fn pending(&self) -> xen_sys::Result<Option<Port>> {
        self.with(|state| match state.overflown {
            true => Err(xen_sys::Error::new(ErrorKind::EventsLost, "overflow")),
            false => Ok(state.pending.pop_front()),
        })
    }

    fn unmask(&self, port: Port) -> xen_sys::Result<()> {
        self.with(|state| {
            if state.masked.remove(&port) && state.held.remove(&port) {
                state.ring(port);
            }
        });
        Ok(())
    }

    fn unbind(&self, port: Port) -> xen_sys::Result<()> {
        self.with(|state| {
            state.bound.remove(&port);
            state.masked.remove(&port);
            state.held.remove(&port);
        });
        Ok(())
    }

    fn reset(&self) -> xen_sys::Result<()> {
        self.with(|state| {
            state.pending.clear();
            state.overflown = false;
            state.resets += 1;
        });
        Ok(())
    }

    fn restrict(&self, _: DomId) -> xen_sys::Result<()> {
        Ok(())
    }
}

fn add(reactor: &Handle, device: &Shared, death: Option<Death>) -> (Member, Port) {
    let open = || Ok(Box::new(device.clone()) as _);
    let bind = |events: &dyn EventChannels| Ok::<_, Error>(events.bind_unbound(DomId(0)).unwrap());
    let (member, _, port) = Member::with_port(reactor.core(), death, open, bind).unwrap();
    (member, port)
}

fn look(reactor: &mut Reactor) -> Vec<Token> {
    let mut ready = Vec::new();
    reactor.wait(&mut ready, Instant::now()).unwrap();
    ready
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

#[test]
fn ports_become_tokens_in_the_order_in_which_they_rang() {
    let (mut reactor, device) = (Reactor::new().unwrap(), Shared::new(1000));
    let members: Vec<Member> = (0..200)
        .map(|_| add(reactor.handle(), &device, None).0)
        .collect();
    assert!(look(&mut reactor).is_empty());
    for port in (1..=200).rev() {
        device.ring(port);
        device.ring(port);
    }
    let mut all = Vec::new();
    loop {
        let ready = look(&mut reactor);
        if ready.is_empty() {
            break;
        }
        assert!(ready.len() <= BATCH);
        all.extend(ready);
    }
    let expected: Vec<Token> = members.iter().rev().map(Member::token).collect();
    // Each rang twice before it was read: the second ring came when it was unmasked.
    assert_eq!(all.len(), 400);
    assert_eq!(all[..200], expected);
    assert_eq!(all[200..], expected);
}

#[test]
fn asking_again_puts_a_channel_behind_the_others() {
    let (mut reactor, device) = (Reactor::new().unwrap(), Shared::new(1000));
    let (one, first) = add(reactor.handle(), &device, None);
    let (other, second) = add(reactor.handle(), &device, None);
    device.ring(first.0);
    device.ring(second.0);
    assert_eq!(look(&mut reactor), [one.token(), other.token()]);
    reactor.handle().again(other.token());
    reactor.handle().again(other.token());
    reactor.handle().again(one.token());
    assert_eq!(look(&mut reactor), [other.token(), one.token()]);
    reactor.handle().again(one.token());
    drop(one);
    assert!(look(&mut reactor).is_empty(), "a token of nobody");
}

#[test]
fn an_overflow_makes_every_channel_ready_and_unmasks_every_port() {
    let (mut reactor, device) = (Reactor::new().unwrap(), Shared::new(3));
    let members: Vec<Member> = (0..10)
        .map(|_| add(reactor.handle(), &device, None).0)
        .collect();
    for port in 1..=10 {
        device.ring(port);
    }
    let mut ready = look(&mut reactor);
    ready.sort_unstable();
    assert_eq!(
        ready,
        members.iter().map(Member::token).collect::<Vec<Token>>()
    );
    assert_eq!(device.with(|state| state.resets), 1);
    assert!(device.with(|state| state.masked.is_empty()));
    device.ring(10);
    assert_eq!(look(&mut reactor), [members[9].token()]);
}

#[test]
fn a_storm_is_slowed_down_and_others_are_heard() {
    let (mut reactor, device) = (Reactor::new().unwrap(), Shared::new(1000));
    let (noisy, storm) = add(reactor.handle(), &device, None);
    let (calm, other) = add(reactor.handle(), &device, None);
    let (mut heard, mut calm_heard) = (0u32, 0u32);
    while calm_heard < 20_000 {
        device.ring(storm.0);
        device.ring(other.0);
        for token in look(&mut reactor) {
            if token == noisy.token() {
                heard += 1;
            } else {
                assert_eq!(token, calm.token());
                calm.moved();
                calm_heard += 1;
            }
        }
    }
    // 64 at once, and then one each 32 ms.
    assert!((65..2_000).contains(&heard), "{heard} of the storm");
    // Its rings while it is off arrive once it is on again, by the timer alone.
    device.ring(storm.0);
    let mut ready = Vec::new();
    while !ready.contains(&noisy.token()) {
        reactor.wait(&mut ready, soon()).unwrap();
    }
    noisy.moved();
    device.ring(storm.0);
    reactor.wait(&mut ready, soon()).unwrap();
    device.ring(storm.0);
    assert_eq!(look(&mut reactor), [noisy.token()], "forgiven at once");
}

#[test]
fn the_death_of_a_domain_is_a_token_and_wakes_who_sleeps_on_the_channel() {
    let (mut reactor, device) = (Reactor::new().unwrap(), Shared::new(10));
    let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
    let gone = Arc::new(EventFd::from_value_and_flags(0, flags).unwrap());
    let death = Death::Domain(Box::new(Arc::clone(&gone)));
    let (member, _) = add(reactor.handle(), &device, Some(death));
    let (_other, _) = add(reactor.handle(), &device, None);
    std::thread::scope(|scope| {
        let sleeper = scope.spawn(|| {
            while !member.hung_up() {
                assert!(crate::waiting::poll::poll_readable(&[member.poll_fd()], soon()).unwrap());
                member.acknowledge().unwrap();
            }
        });
        gone.write(1).unwrap();
        let mut ready = Vec::new();
        reactor.wait(&mut ready, soon()).unwrap();
        assert_eq!(ready, [member.token()]);
        sleeper.join().unwrap();
    });
    assert!(look(&mut reactor).is_empty(), "once is enough");
}

#[test]
fn a_sleeper_hears_what_another_thread_took_and_leaves_others_their_tokens() {
    let (mut reactor, device) = (Reactor::new().unwrap(), Shared::new(10));
    let (one, first) = add(reactor.handle(), &device, None);
    let (other, second) = add(reactor.handle(), &device, None);
    // Taken by the reactor before the sleeper has a descriptor of its own.
    device.ring(first.0);
    assert_eq!(look(&mut reactor), [one.token()]);
    assert!(crate::waiting::poll::poll_readable(&[one.poll_fd()], Instant::now()).unwrap());
    assert!(one.acknowledge().unwrap());
    assert!(!crate::waiting::poll::poll_readable(&[one.poll_fd()], Instant::now()).unwrap());
    // Taken by the sleeper, for another channel.
    device.ring(second.0);
    assert!(!one.acknowledge().unwrap());
    assert!(crate::waiting::poll::poll_readable(&[reactor.as_fd()], Instant::now()).unwrap());
    assert_eq!(look(&mut reactor), [other.token()]);
    assert!(look(&mut reactor).is_empty());
    assert!(!crate::waiting::poll::poll_readable(&[reactor.as_fd()], Instant::now()).unwrap());
    drop(other);
    device.ring(second.0);
    assert!(look(&mut reactor).is_empty(), "a port of nobody");
}

#[test]
fn a_number_that_is_bound_again_belongs_to_the_new_channel() {
    let (mut reactor, device) = (Reactor::new().unwrap(), Shared::new(10));
    let (old, port) = add(reactor.handle(), &device, None);
    let token = old.token();
    device.ring(port.0);
    drop(old);
    let (new, again) = add(reactor.handle(), &device, None);
    assert_eq!((again, reactor.handle().len()), (port, 1));
    assert_ne!(new.token(), token);
    // The old ring is still in the list; it is harmless.
    assert_eq!(look(&mut reactor), [new.token()]);
}

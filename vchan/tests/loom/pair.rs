//! A connected pair of channels over one model of the memory.

use std::cell::Cell;
use std::time::{Duration, Instant};

use loom::sync::atomic::AtomicBool;

use crate::backend::{Doorbell, Parts};
use crate::bell::Bell;
use crate::channel::Channel;
use crate::sync::Arc;
use crate::wire::control_page::ControlPage;
use crate::wire::extension_page::ExtensionPage;
use crate::wire::layout::{Format, Orders, Role};
use crate::wire::shm::Region;

/// Bytes of the left ring, which the client writes.
pub(crate) const LEFT: u32 = 1 << 10;

thread_local! {
    // loom runs all threads of a model on one thread of the system.
    pub(crate) static FORMAT: Cell<Format> = const { Cell::new(Format::Classic) };
}

pub(crate) fn far() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

/// The initial state of the model.
pub(crate) struct Start {
    /// Bytes in the left ring that the server has not read yet.
    pub(crate) unread: u32,
}

pub(crate) struct Pair {
    pub(crate) server: Channel,
    pub(crate) client: Channel,
    pub(crate) servers_bell: Arc<Bell>,
    pub(crate) clients_bell: Arc<Bell>,
    /// Set when the peer's domain is destroyed.
    pub(crate) dead: Arc<AtomicBool>,
}

/// A connected pair. The left ring's write index is 0.
pub(crate) fn pair(start: Start) -> Pair {
    let bells = [Arc::new(Bell::default()), Arc::new(Bell::default())];
    let dead = Arc::new(AtomicBool::new(false));
    let (left_indexes, right_indexes) = ((0u32.wrapping_sub(start.unread), 0), (0, 0));
    let control = ControlPage::connected(left_indexes, right_indexes);
    let extension = match FORMAT.get() {
        Format::Classic => None,
        Format::Extended => Some(ExtensionPage::connected(left_indexes, right_indexes)),
    };
    let orders = Orders::check(10, 11).unwrap();
    let (left, right) = (
        Region::new(orders.left_bytes()),
        Region::new(orders.right_bytes()),
    );
    let shared_memory = Arc::default();
    let side = |role, own: usize| {
        let parts = Parts {
            role,
            orders,
            first_index: None,
            control: control.clone(),
            extension: extension.clone(),
            left: left.clone(),
            right: right.clone(),
            backend: Box::new(Doorbell {
                shared_memory: Arc::clone(&shared_memory),
                own: Arc::clone(&bells[own]),
                peers: Arc::clone(&bells[1 - own]),
                dead: Arc::clone(&dead),
            }),
        };
        Channel::from_parts(parts).unwrap()
    };
    Pair {
        server: side(Role::Server, 0),
        client: side(Role::Client, 1),
        servers_bell: Arc::clone(&bells[0]),
        clients_bell: Arc::clone(&bells[1]),
        dead,
    }
}

/// Reads until the end of the stream.
pub(crate) fn read_all(channel: &mut Channel) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut buf = [0; 2];
    loop {
        match channel.read(&mut buf, far()).unwrap() {
            0 => return bytes,
            n => bytes.extend(&buf[..n]),
        }
    }
}

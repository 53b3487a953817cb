//! A doorbell that loom can see, under the names of `src/backend.rs`.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;
// std's: handing memory over through the kernel orders nothing here.
use std::sync::Mutex;
use std::time::Instant;

use loom::sync::atomic::{AtomicBool, Ordering};

use crate::bell::Bell;
use crate::error::Result;
use crate::region::{Access, Carrier, OwnerMemory, PeerMemory, Ticket};
use crate::sync::{Arc, Without, is_left_out};
use crate::wire::control_page::ControlPage;
use crate::wire::extension_page::ExtensionPage;
use crate::wire::layout::{Orders, PAGE, Role};
use crate::wire::shm::Region;

/// The part of a backend that the channel's files need.
pub(crate) trait Backend: Debug + Send + Sync {
    fn notify(&self) -> io::Result<()>;
    fn poll_fd(&self) -> BorrowedFd<'_>;
    fn acknowledge(&self) -> io::Result<bool>;
    fn peer_alive(&self) -> bool;
    fn peer_lost(&self) -> bool {
        !self.peer_alive()
    }
    fn spin_helps(&self) -> bool {
        false
    }
    fn describe(&self) -> String {
        "a model".to_owned()
    }
    fn token(&self) -> Option<crate::reactor::token::Token> {
        None
    }
    fn moved(&self) {}
    fn region_pages(&self, data: usize) -> usize {
        data + 1
    }
    fn share_region(&self, data: usize, _access: Access) -> Result<OwnerMemory> {
        Ok(OwnerMemory {
            header: Region::header(),
            data: Region::new(data * PAGE),
            list: None,
            carrier: Carrier::Descriptors,
            descriptors: None,
        })
    }
    fn hand_over_region(&self, memory: &OwnerMemory, ticket: &Ticket) -> Result<()>;
    fn map_region(
        &self,
        ticket: &Ticket,
        at: Option<usize>,
        deadline: Instant,
    ) -> Result<PeerMemory>;
    /// Stands in for the descriptor.
    fn bell(&self) -> &Bell;
}

/// The pieces of a channel.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) role: Role,
    pub(crate) orders: Orders,
    pub(crate) first_index: Option<u32>,
    pub(crate) control: ControlPage,
    pub(crate) extension: Option<ExtensionPage>,
    pub(crate) left: Region,
    pub(crate) right: Region,
    pub(crate) backend: Box<dyn Backend>,
}

/// Header and data of the regions handed over, by the region's number.
pub(crate) type SharedMemory = Arc<Mutex<BTreeMap<u64, [Region; 2]>>>;

thread_local! {
    /// Whether a kernel reports the end of a mapping, as on Xen.
    pub(crate) static KERNEL_TELLS: Cell<bool> = const { Cell::new(false) };
}

/// One side's two bells.
#[derive(Debug)]
pub(crate) struct Doorbell {
    pub(crate) own: Arc<Bell>,
    pub(crate) peers: Arc<Bell>,
    /// The peer's domain was destroyed.
    pub(crate) dead: Arc<AtomicBool>,
    pub(crate) shared_memory: SharedMemory,
}

impl Backend for Doorbell {
    fn notify(&self) -> io::Result<()> {
        self.peers.ring();
        Ok(())
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        unreachable!("a model sleeps on `bell`")
    }

    fn acknowledge(&self) -> io::Result<bool> {
        // A twin acknowledges when it sleeps instead.
        Ok(!is_left_out(Without::AcknowledgeFirst) && self.own.take())
    }

    fn peer_alive(&self) -> bool {
        !self.dead.load(Ordering::SeqCst)
    }

    fn hand_over_region(&self, memory: &OwnerMemory, ticket: &Ticket) -> Result<()> {
        let handed = [memory.header.clone(), memory.data.clone()];
        self.shared_memory.lock().unwrap().insert(ticket.id, handed);
        Ok(())
    }

    fn map_region(
        &self,
        ticket: &Ticket,
        _at: Option<usize>,
        _deadline: Instant,
    ) -> Result<PeerMemory> {
        let all = self.shared_memory.lock().unwrap();
        let [header, data] = &all[&ticket.id];
        Ok(PeerMemory {
            header: header.mapped(KERNEL_TELLS.get().then(|| Arc::clone(&self.peers))),
            data: data.clone(),
            kernel_tells: KERNEL_TELLS.get(),
        })
    }

    fn bell(&self) -> &Bell {
        &self.own
    }
}

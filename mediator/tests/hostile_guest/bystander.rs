//! Another guest, whose sessions stay open while lies are told.

use vgpu_guest::Client;
use vgpu_protocol::handle::{Handle, HandleKind};
use vgpu_protocol::op::field::StreamRef;
use vgpu_protocol::op::{
    CopyFromDevice, EventCreate, EventDestroy, FillRange, Goodbye, GraphDestroy, GraphExecDestroy,
    GraphInstantiate, MemoryFree, MemoryPoolCreate, MemoryPoolDestroy, StreamBeginCapture,
    StreamCreate, StreamDestroy, StreamEndCapture,
};

use crate::guest::Guest;
use crate::support::sockets::Sockets;
use crate::support::{Mediator, add};

/// The place of its objects in their tables. No lie has objects of its own there.
pub(crate) const SLOT: u32 = 40;

/// Bytes of its memory, each with [`VALUE`].
const BYTES: u64 = 64 << 10;
const VALUE: u8 = 0xb5;

pub(crate) struct Bystander {
    /// Computes again and again, in memory that comes and goes.
    client: Client,
    /// Has memory at a known place, and an object of each kind.
    session: Guest,
    address: u64,
}

/// The object of this kind that a session of the bystander's has.
pub(crate) fn object(kind: HandleKind) -> Handle {
    Handle::new(kind, SLOT, 1).expect("a small slot")
}

impl Bystander {
    pub(crate) fn new(sockets: &Sockets) -> Self {
        let options = sockets.options_of("other");
        let client = Client::connect(&[sockets.tcp()], &options).expect("a session");
        let mut session = Guest::open(&sockets.tcp(), &options);
        // Where sessions allocate alike, the addresses of no lie's own memory.
        session.allocate(8 << 20);
        let address = session.allocate(BYTES);
        let stream = object(HandleKind::Stream);
        let graph = object(HandleKind::Graph);
        session.done(FillRange {
            to: address,
            value: VALUE.into(),
            element_bytes: 1,
            count: BYTES.try_into().expect("not 0"),
            stream: StreamRef::DEFAULT,
        });
        session.done(StreamCreate {
            stream,
            flags: 0,
            priority: 0,
        });
        session.done(EventCreate {
            event: object(HandleKind::Event),
            flags: 0,
        });
        session.done(StreamBeginCapture {
            stream: StreamRef::of(stream),
            mode: 0,
        });
        session.done(StreamEndCapture {
            stream: StreamRef::of(stream),
            graph,
        });
        let exec = object(HandleKind::GraphExec);
        session.done(GraphInstantiate {
            graph,
            exec,
            flags: 0,
        });
        session.done(MemoryPoolCreate {
            pool: object(HandleKind::MemoryPool),
            max_bytes: 0,
        });
        Self {
            client,
            session,
            address,
        }
    }

    /// Where its memory is.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// It computes as always, and has its memory for itself.
    pub(crate) fn check(&mut self) {
        add(&mut self.client, 1000).expect("a session that nobody disturbs");
        self.session.done(CopyFromDevice {
            from: self.address,
            bytes: BYTES.try_into().expect("not 0"),
            stream: StreamRef::DEFAULT,
        });
        assert_eq!(self.session.data.len() as u64, BYTES);
        assert!(
            self.session.data.iter().all(|byte| *byte == VALUE),
            "its memory is changed"
        );
    }

    /// Its workers.
    pub(crate) fn workers(&self, mediator: &Mediator) -> Vec<u32> {
        let status = mediator.status();
        let sessions = status["sessions"].as_array().expect("a list");
        let own = sessions.iter().filter(|it| it["guest"] == "tcp other");
        own.map(|it| u32::try_from(it["pid"].as_u64().expect("a number")).expect("a pid"))
            .collect()
    }

    /// Its objects are there to the end.
    pub(crate) fn end(mut self) {
        self.session.done(MemoryPoolDestroy {
            pool: object(HandleKind::MemoryPool),
        });
        self.session.done(GraphExecDestroy {
            exec: object(HandleKind::GraphExec),
        });
        self.session.done(GraphDestroy {
            graph: object(HandleKind::Graph),
        });
        self.session.done(EventDestroy {
            event: object(HandleKind::Event),
        });
        self.session.done(StreamDestroy {
            stream: object(HandleKind::Stream),
        });
        self.session.done(MemoryFree {
            address: self.address,
        });
        self.session.done(Goodbye {});
        self.client
            .goodbye()
            .expect("a session that nobody disturbs");
    }
}

#![forbid(unsafe_code)]
//! One end of one ring in shared memory: indexes, requests to be woken, bytes.
//!
//! The two wire formats differ in where the indexes lie and in how a sleeper asks to be woken. Both
//! are decided once, when the channel is made; a transfer then follows pointers.

use crate::error::RingName;
use crate::sync::atomic::Ordering;
use crate::wire::control_page::ControlPage;
use crate::wire::extension_page::{ExtensionPage, RingWords};
use crate::wire::layout::{Role, bit, offset};
use crate::wire::notify;
use crate::wire::shm::{Region, SharedU8, SharedU32};

/// A place where one side asks the other to be woken.
#[derive(Debug)]
pub(crate) enum Request {
    /// libxenvchan's: a bit, for any step of the index.
    Bit { byte: SharedU8, bit: u8 },
    /// The extension's: the index to reach.
    Threshold(SharedU32),
}

impl Request {
    /// Sleeper: asks to be woken once the peer's index reaches `wanted`, or earlier. The caller
    /// looks at the index again before it sleeps.
    pub(crate) fn arm(&self, wanted: u32) {
        match self {
            Self::Bit { byte, bit } => notify::request(&**byte, *bit),
            Self::Threshold(word) => notify::arm(&**word, wanted),
        }
    }

    /// Sleeper: withdraws the request.
    pub(crate) fn disarm(&self) {
        match self {
            Self::Bit { byte, bit } => notify::withdraw(&**byte, *bit),
            Self::Threshold(word) => notify::disarm(&**word),
        }
    }

    /// Whether the request is set. A hint.
    pub(crate) fn is_armed(&self) -> bool {
        match self {
            Self::Bit { byte, bit } => notify::NotifyByte::load(&**byte) & bit != 0,
            Self::Threshold(word) => notify::WaitWord::load(&**word) & notify::ARMED != 0,
        }
    }
}

/// This side's end of a ring.
#[derive(Debug)]
pub(crate) struct RingEnd {
    pub(crate) name: RingName,
    /// The index that this side moves.
    own: SharedU32,
    /// The index that the peer moves.
    peers: SharedU32,
    /// The peer's request to be woken at a step of ours.
    asked: Request,
    /// Our request to be woken at a step of the peer's.
    pub(crate) ask: Request,
    /// Set by the writer when the stream is complete; absent in libxenvchan's format.
    ended: Option<SharedU32>,
    /// The bytes.
    pub(crate) memory: Region,
}

impl RingEnd {
    /// Publishes our index. Returns whether the peer has asked to be woken by that: the request is
    /// taken then, and the caller must ring.
    #[inline]
    pub(crate) fn publish(&self, index: u32) -> bool {
        match &self.asked {
            Request::Threshold(word) => notify::publish_past(&*self.own, index, &**word),
            Request::Bit { byte, bit } => notify::publish(&*self.own, index, &**byte, *bit),
        }
    }

    /// The peer's index as it is now: unchecked, and read once.
    #[inline]
    pub(crate) fn peers_index(&self) -> u32 {
        notify::RingIndex::observe(&*self.peers)
    }

    /// Our own index from shared memory, for a client that takes over a ring in use.
    pub(crate) fn own_index(&self) -> u32 {
        notify::RingIndex::observe(&*self.own)
    }

    /// Writer: marks the stream as complete. The caller closes next, which publishes this.
    pub(crate) fn end_stream(&self) {
        if let Some(word) = &self.ended {
            word.store(1, Ordering::Relaxed);
        }
    }

    /// Reader that has seen the peer close: whether the peer had completed the stream. `None`: the
    /// format does not tell.
    pub(crate) fn stream_ended(&self) -> Option<bool> {
        self.ended
            .as_ref()
            .map(|word| word.load(Ordering::Relaxed) != 0)
    }

    /// Whether the peer waits for a step of ours. A hint.
    pub(crate) fn peer_waits(&self) -> bool {
        self.asked.is_armed()
    }
}

/// The end that `role` has of `ring`: the server reads the left one and writes the right one.
pub(crate) fn ring_end(
    role: Role,
    name: RingName,
    control: &ControlPage,
    extension: Option<&ExtensionPage>,
    memory: Region,
) -> RingEnd {
    let reads = (role == Role::Server) == (name == RingName::Left);
    if let Some(page) = extension {
        let RingWords {
            prod,
            cons,
            reader_wait,
            writer_wait,
            ended,
        } = page.words(name);
        let ended = Some(ended);
        let (reader_wait, writer_wait) = (
            Request::Threshold(reader_wait),
            Request::Threshold(writer_wait),
        );
        return match reads {
            true => RingEnd {
                name,
                own: cons,
                peers: prod,
                asked: writer_wait,
                ask: reader_wait,
                ended,
                memory,
            },
            false => RingEnd {
                name,
                own: prod,
                peers: cons,
                asked: reader_wait,
                ask: writer_wait,
                ended,
                memory,
            },
        };
    }
    let (prod, cons) = match name {
        RingName::Left => (offset::LEFT_PROD, offset::LEFT_CONS),
        RingName::Right => (offset::RIGHT_PROD, offset::RIGHT_CONS),
    };
    // Each side's byte says what that side must tell the other.
    let (ours, theirs) = match role {
        Role::Server => (offset::SRV_NOTIFY, offset::CLI_NOTIFY),
        Role::Client => (offset::CLI_NOTIFY, offset::SRV_NOTIFY),
    };
    let ((own, peers), (told, asks)) = match reads {
        true => ((cons, prod), (bit::READ, bit::WRITE)),
        false => ((prod, cons), (bit::WRITE, bit::READ)),
    };
    RingEnd {
        name,
        own: control.word(own),
        peers: control.word(peers),
        asked: Request::Bit {
            byte: control.byte(ours),
            bit: told,
        },
        ask: Request::Bit {
            byte: control.byte(theirs),
            bit: asks,
        },
        ended: None,
        memory,
    }
}

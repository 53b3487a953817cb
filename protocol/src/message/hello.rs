//! Hello: which version, which features, which limits.

use bytemuck::{Pod, Zeroable};

use super::{MessageError, bounded, exact, split_front, take_text};
use crate::le::{U16, U32, U64};

/// Longest client name, in bytes.
pub const MAX_CLIENT_NAME: usize = 64;

/// Optional parts of the protocol, one bit each. Bits nobody knows are ignored in offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Features(pub u64);

impl Features {
    /// [`Op::VectorAdd`](super::Op::VectorAdd) with 32-bit floats.
    pub const VECTOR_ADD_F32: Features = Features(1 << 0);
    /// Quiet requests and [`Op::Fence`](super::Op::Fence).
    pub const QUIET: Features = Features(1 << 1);

    /// Everything this crate knows.
    pub const ALL: Features = Features(Self::VECTOR_ADD_F32.0 | Self::QUIET.0);

    /// Whether every feature of `other` is there.
    pub const fn contains(self, other: Features) -> bool {
        self.0 & other.0 == other.0
    }

    /// What both sides have.
    #[must_use]
    pub const fn common(self, other: Features) -> Features {
        Features(self.0 & other.0)
    }
}

/// The guest's first words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Oldest version the guest speaks.
    pub min_version: u16,
    /// Newest version the guest speaks.
    pub max_version: u16,
    /// What the guest can use.
    pub features: Features,
    /// Which program this is, for logs; at most [`MAX_CLIENT_NAME`] bytes.
    pub client_name: String,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RawHello {
    min_version: U16,
    max_version: U16,
    name_len: U16,
    reserved: U16,
    features: U64,
}

impl Hello {
    /// The body; a name that is too long is cut.
    pub fn encode(&self) -> Vec<u8> {
        let name = bounded(&self.client_name, MAX_CLIENT_NAME);
        let raw = RawHello {
            min_version: self.min_version.into(),
            max_version: self.max_version.into(),
            // At most MAX_CLIENT_NAME.
            name_len: u16::try_from(name.len()).unwrap_or(0).into(),
            reserved: 0.into(),
            features: self.features.0.into(),
        };
        [bytemuck::bytes_of(&raw), name.as_bytes()].concat()
    }

    /// Reads the body.
    ///
    /// # Errors
    /// Wrong length, a version range that is empty, a name that is too long or not UTF-8.
    pub fn decode(body: &[u8]) -> Result<Self, MessageError> {
        const MESSAGE: &str = "Hello";
        let (raw, mut rest): (RawHello, _) = split_front(MESSAGE, body)?;
        let (min_version, max_version) = (raw.min_version.get(), raw.max_version.get());
        let name_len = usize::from(raw.name_len.get());
        let field = |field, value, rule| MessageError::Field {
            message: MESSAGE,
            field,
            value: u64::from(value),
            rule,
        };
        if min_version == 0 {
            return Err(field("min_version", min_version, "versions start at 1"));
        }
        if max_version < min_version {
            return Err(field("max_version", max_version, "below min_version"));
        }
        if name_len > MAX_CLIENT_NAME {
            return Err(field("name_len", raw.name_len.get(), "at most 64"));
        }
        if raw.reserved.get() != 0 {
            return Err(field("reserved", raw.reserved.get(), "not 0"));
        }
        let client_name = take_text(MESSAGE, "client name", &mut rest, name_len)?.to_owned();
        if !rest.is_empty() {
            let wanted = size_of::<RawHello>() + name_len;
            return Err(MessageError::Length {
                message: MESSAGE,
                len: body.len(),
                wanted,
            });
        }
        Ok(Self {
            min_version,
            max_version,
            features: Features(raw.features.get()),
            client_name,
        })
    }
}

/// The highest version that both `hello` and this crate speak.
pub fn negotiate_version(hello: &Hello) -> Option<u16> {
    let version = hello.max_version.min(crate::VERSION);
    (version >= hello.min_version && version >= crate::MIN_VERSION).then_some(version)
}

/// What one session may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest Data body, in bytes; at most [`MAX_BODY`](crate::frame::MAX_BODY).
    pub max_body: u32,
    /// Lanes are numbered from 0 to one below this.
    pub max_lanes: u16,
    /// Requests that may be under way at once.
    pub max_requests: u16,
    /// Objects of each kind that may be open at once.
    pub max_handles: u32,
    /// Most elements in one chunk of a vector.
    pub max_chunk_elements: u32,
    /// The chunk the executor works best with; not above `max_chunk_elements`.
    pub preferred_chunk_elements: u32,
    /// Most elements of one vector.
    pub max_elements: u64,
}

/// The mediator's answer to [`Hello`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HelloReply {
    /// The version both will speak.
    pub version: u16,
    /// The features both have.
    pub features: Features,
    /// What this session may ask for.
    pub limits: Limits,
    /// Different for every session the mediator ever opens; state of another epoch is gone.
    pub epoch: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RawHelloReply {
    version: U16,
    reserved: U16,
    max_body: U32,
    features: U64,
    epoch: U64,
    max_elements: U64,
    max_lanes: U16,
    max_requests: U16,
    max_handles: U32,
    max_chunk_elements: U32,
    preferred_chunk_elements: U32,
}

impl HelloReply {
    /// The body.
    pub fn encode(&self) -> Vec<u8> {
        let raw = RawHelloReply {
            version: self.version.into(),
            reserved: 0.into(),
            max_body: self.limits.max_body.into(),
            features: self.features.0.into(),
            epoch: self.epoch.into(),
            max_elements: self.limits.max_elements.into(),
            max_lanes: self.limits.max_lanes.into(),
            max_requests: self.limits.max_requests.into(),
            max_handles: self.limits.max_handles.into(),
            max_chunk_elements: self.limits.max_chunk_elements.into(),
            preferred_chunk_elements: self.limits.preferred_chunk_elements.into(),
        };
        bytemuck::bytes_of(&raw).to_vec()
    }

    /// Reads the body.
    ///
    /// # Errors
    /// Wrong length, or limits with which no session could work.
    pub fn decode(body: &[u8]) -> Result<Self, MessageError> {
        const MESSAGE: &str = "HelloReply";
        let raw: RawHelloReply = exact(MESSAGE, body)?;
        let field = |field, value, rule| {
            Err(MessageError::Field {
                message: MESSAGE,
                field,
                value,
                rule,
            })
        };
        let limits = Limits {
            max_body: raw.max_body.get(),
            max_lanes: raw.max_lanes.get(),
            max_requests: raw.max_requests.get(),
            max_handles: raw.max_handles.get(),
            max_chunk_elements: raw.max_chunk_elements.get(),
            preferred_chunk_elements: raw.preferred_chunk_elements.get(),
            max_elements: raw.max_elements.get(),
        };
        if raw.version.get() == 0 {
            return field("version", 0, "versions start at 1");
        }
        if raw.reserved.get() != 0 {
            return field("reserved", raw.reserved.get().into(), "not 0");
        }
        if limits.max_body > crate::frame::MAX_BODY {
            return field("max_body", limits.max_body.into(), "above 16777216");
        }
        if limits.max_lanes == 0 {
            return field("max_lanes", 0, "at least 1 needed");
        }
        if limits.max_requests == 0 {
            return field("max_requests", 0, "at least 1 needed");
        }
        if limits.preferred_chunk_elements > limits.max_chunk_elements {
            let value = limits.preferred_chunk_elements.into();
            return field(
                "preferred_chunk_elements",
                value,
                "above max_chunk_elements",
            );
        }
        Ok(Self {
            version: raw.version.get(),
            features: Features(raw.features.get()),
            limits,
            epoch: raw.epoch.get(),
        })
    }
}

//! The operations: one table, and what is generated from it.
//!
//! [`table`] has one row per operation. From a row come the numbers and names ([`Op`]), the two
//! bodies with their codec ([`Body`]), the facts that the rules of a session need ([`Spec`], the
//! data of a [`Request`]), the inputs of the fuzz targets, and the table in `docs/protocol.md`,
//! which a test compares. `CONTRIBUTING.md` shows the steps for a new operation.
//!
//! A reply whose status is not 0 carries a text in place of its body
//! ([`decode_error_text`](crate::status::decode_error_text)).

mod failures;
pub mod field;
mod set;

use std::fmt;

use field::{Field, FieldError, Reader};
pub use set::OpSet;

/// Optional parts of the protocol, one bit each. Unknown bits are ignored in offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Features(pub u64);

impl Features {
    /// No optional part; every session has the rest.
    pub const NONE: Features = Features(0);
    /// [`Exchange`].
    pub const EXCHANGE: Features = Features(1 << 0);
    /// Quiet requests and [`Fence`].
    pub const QUIET: Features = Features(1 << 1);
    /// Device memory, copies, modules and launches.
    pub const GPU: Features = Features(1 << 2);
    /// [`TakePrinted`], and replies that tell when to use it.
    pub const PRINTED: Features = Features(1 << 3);

    /// [`RegionMap`], and copies from and to regions.
    pub const REGIONS: Features = Features(1 << 4);

    /// All features known to this crate.
    pub const ALL: Features = Features(
        Self::EXCHANGE.0 | Self::QUIET.0 | Self::GPU.0 | Self::PRINTED.0 | Self::REGIONS.0,
    );

    /// Whether every feature of `other` is there.
    pub const fn contains(self, other: Features) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Features) -> Features {
        Features(self.0 | other.0)
    }

    /// This set without the features of `other`.
    #[must_use]
    pub const fn without(self, other: Features) -> Features {
        Features(self.0 & !other.0)
    }

    /// The features in both sets.
    #[must_use]
    pub const fn common(self, other: Features) -> Features {
        Features(self.0 & other.0)
    }
}

impl Field for Features {
    const NAME: &'static str = "features";
    const MAX_LEN: usize = 8;

    fn write(&self, body: &mut Vec<u8>) {
        self.0.write(body);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FieldError> {
        u64::read(reader).map(Self)
    }
}

/// The reason why a body is refused. The frame around it was valid, so the session can go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{message}: {field} {error}")]
pub struct BodyError {
    /// The body's name.
    pub message: &'static str,
    /// The field's name; `end` for bytes after the last field.
    pub field: &'static str,
    /// The field's error.
    pub error: FieldError,
}

/// The body of a request or a reply.
pub trait Body: Sized {
    /// Its name.
    const NAME: &'static str;
    /// Its fields, in order.
    const FIELDS: &'static [FieldSpec];
    /// Most bytes of its encoding.
    const MAX_LEN: usize;

    /// Appends it to `out`.
    fn encode_to(&self, out: &mut Vec<u8>);

    /// Reads a whole body.
    ///
    /// # Errors
    /// The first field that breaks a rule.
    fn decode(body: &[u8]) -> Result<Self, BodyError>;

    /// Checks the rules for more than one field; a decoded body keeps them.
    ///
    /// # Errors
    /// The first field that breaks a rule.
    fn check(&self) -> Result<(), BodyError>;

    /// The body alone.
    fn encode(&self) -> Vec<u8> {
        // Enough for most, so that it need not grow.
        let mut body = Vec::with_capacity(64);
        self.encode_to(&mut body);
        body
    }
}

/// A request that can be sent, with its operation and reply.
pub trait Operation: Body {
    /// Its operation.
    const OP: Op;
    /// The body of a successful reply.
    type Reply: Body;

    /// Bytes of data that follow the request.
    fn data_up(&self) -> u64;

    /// Bytes of data that come before the reply.
    fn data_down(&self) -> u64;
}

/// A field's description in the table.
#[derive(Debug, Clone, Copy)]
pub struct FieldSpec {
    /// Its name.
    pub name: &'static str,
    /// Its encoding on the wire.
    pub wire: &'static str,
    /// Most bytes it takes.
    pub max_len: usize,
    /// For a list: the most values, and the name of each value's type.
    pub list: Option<(usize, &'static str)>,
    /// Its meaning.
    pub doc: &'static str,
}

/// An operation's description in the table.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// The number on the wire.
    pub code: u16,
    /// Its name.
    pub name: &'static str,
    /// Its effect.
    pub doc: &'static str,
    /// The feature that it needs.
    pub feature: Features,
    /// Whether a request may have the flag QUIET.
    pub quiet: bool,
    /// Whether data goes up and down.
    pub data: (bool, bool),
    /// Most bytes of a request's body.
    pub max_request: usize,
    /// Most bytes of a reply's body.
    pub max_reply: usize,
    /// The request's fields.
    pub request: &'static [FieldSpec],
    /// The reply's fields.
    pub reply: &'static [FieldSpec],
}

macro_rules! allowed {
    (yes) => {
        true
    };
    (no) => {
        false
    };
}

macro_rules! body {
    (
        #[doc = $title:expr] $name:ident, $check:expr,
        { $($(#[doc = $doc:expr])+ $field:ident : $type:ty,)* }
    ) => {
        #[doc = $title]
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name {
            $($(#[doc = $doc])+ pub $field: $type,)*
        }

        impl Body for $name {
            const NAME: &'static str = stringify!($name);
            const FIELDS: &'static [$crate::op::FieldSpec] = &[
                $($crate::op::FieldSpec {
                    name: stringify!($field),
                    wire: <$type as Field>::NAME,
                    max_len: <$type as Field>::MAX_LEN,
                    list: <$type as Field>::LIST,
                    doc: concat!($($doc),+),
                },)*
            ];
            const MAX_LEN: usize = 0 $(+ <$type as Field>::MAX_LEN)*;

            #[allow(unused_variables, reason = "some bodies have no fields")]
            fn encode_to(&self, out: &mut Vec<u8>) {
                $(Field::write(&self.$field, out);)*
            }

            fn decode(body: &[u8]) -> Result<Self, $crate::op::BodyError> {
                let wrong = $crate::op::wrong::<Self>;
                #[allow(unused_mut, reason = "some bodies have no fields")]
                let mut reader = Reader::new(body);
                let read = Self {
                    $($field: Field::read(&mut reader)
                        .map_err(|error| wrong(stringify!($field), error))?,)*
                };
                if reader.left() > 0 {
                    let (len, max) = (body.len(), body.len() - reader.left());
                    return Err(wrong("end", FieldError::TooLong { len, max }));
                }
                read.check()?;
                Ok(read)
            }

            fn check(&self) -> Result<(), $crate::op::BodyError> {
                let check: fn(&Self) -> Result<(), (&'static str, FieldError)> = $check;
                check(self).map_err(|(field, error)| $crate::op::wrong::<Self>(field, error))
            }
        }
    };
}

macro_rules! operations {
    ($(
        $(#[doc = $doc:expr])+
        $code:literal => $name:ident / $reply:ident {
            feature: $feature:ident, quiet: $quiet:ident,
            request { $($request:tt)* } $(check $check:path,)?
            reply { $($answer:tt)* }
            $(data up $up:expr,)?
            $(data down $down:expr,)?
        }
    )+) => {
        /// The operation that a frame requests, answers or carries.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum Op {
            /// The mediator ends the session on its own initiative; a reply to no request.
            Closing = 3,
            /// A part of a request's data, in either direction.
            Data = 4,
            $($(#[doc = $doc])+ $name = $code,)+
        }

        impl Op {
            /// The operations that can be requested.
            pub const REQUESTS: &'static [Op] = &[$(Op::$name),+];

            /// The operation or frame with this number.
            pub const fn from_code(code: u16) -> Option<Self> {
                match code {
                    3 => Some(Self::Closing),
                    4 => Some(Self::Data),
                    $($code => Some(Self::$name),)+
                    _ => None,
                }
            }

            /// Its row of the table; `None` for [`Closing`](Self::Closing) and
            /// [`Data`](Self::Data), which are frames that cannot be requested.
            pub const fn spec(self) -> Option<&'static $crate::op::Spec> {
                match self {
                    Self::Closing | Self::Data => None,
                    $(Self::$name => Some(&$crate::op::Spec {
                        code: $code,
                        name: stringify!($name),
                        doc: concat!($($doc),+),
                        feature: Features::$feature,
                        quiet: allowed!($quiet),
                        data: (operations!(@given $($up)?), operations!(@given $($down)?)),
                        max_request: <$name as Body>::MAX_LEN,
                        max_reply: <$reply as Body>::MAX_LEN,
                        request: <$name as Body>::FIELDS,
                        reply: <$reply as Body>::FIELDS,
                    }),)+
                }
            }
        }

        impl Op {
            /// Checks the body of a successful reply.
            ///
            /// # Errors
            /// The first field that breaks a rule.
            ///
            /// # Panics
            /// It is not an operation that can be requested.
            pub fn check_reply(self, body: &[u8]) -> Result<(), $crate::op::BodyError> {
                Reply::decode(self, body).map(drop)
            }
        }

        $(
            body! {
                #[doc = concat!("Request:", $($doc),+)] $name,
                operations!(@check $($check)?), { $($request)* }
            }
            body! {
                #[doc = concat!("The answer to [`", stringify!($name), "`].")] $reply,
                operations!(@check), { $($answer)* }
            }

            impl Operation for $name {
                const OP: Op = Op::$name;
                type Reply = $reply;

                fn data_up(&self) -> u64 {
                    let bytes: fn(&Self) -> u64 = operations!(@bytes $($up)?);
                    bytes(self)
                }

                fn data_down(&self) -> u64 {
                    let bytes: fn(&Self) -> u64 = operations!(@bytes $($down)?);
                    bytes(self)
                }
            }
        )+

        /// A request of any operation.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Request {
            $($(#[doc = $doc])+ $name($name),)+
        }

        impl Request {
            /// Reads the body of a request.
            ///
            /// # Errors
            /// The first field that breaks a rule.
            ///
            /// # Panics
            /// `op` is not one that can be requested.
            pub fn decode(op: Op, body: &[u8]) -> Result<Self, $crate::op::BodyError> {
                match op {
                    $(Op::$name => Body::decode(body).map(Self::$name),)+
                    Op::Closing | Op::Data => panic!("{op} cannot be requested"),
                }
            }

            /// Its operation.
            pub const fn op(&self) -> Op {
                match self {
                    $(Self::$name(_) => Op::$name,)+
                }
            }

            /// Appends the body to `out`.
            pub fn encode_to(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$name(request) => request.encode_to(out),)+
                }
            }

            /// Checks the rules for more than one field.
            ///
            /// # Errors
            /// The first field that breaks a rule.
            pub fn check(&self) -> Result<(), $crate::op::BodyError> {
                match self {
                    $(Self::$name(request) => request.check(),)+
                }
            }

            /// Bytes of data that follow it, and that come before its reply.
            pub fn data(&self) -> (u64, u64) {
                match self {
                    $(Self::$name(request) => (request.data_up(), request.data_down()),)+
                }
            }
        }

        /// The body of a successful reply to any operation.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Reply {
            $(#[doc = concat!("The answer to [`", stringify!($name), "`].")] $name($reply),)+
        }

        impl Reply {
            /// Reads the body of a reply to `op`.
            ///
            /// # Errors
            /// The first field that breaks a rule.
            ///
            /// # Panics
            /// `op` is not one that can be requested.
            pub fn decode(op: Op, body: &[u8]) -> Result<Self, $crate::op::BodyError> {
                match op {
                    $(Op::$name => Body::decode(body).map(Self::$name),)+
                    Op::Closing | Op::Data => panic!("{op} is answered by nothing"),
                }
            }

            /// Appends the body to `out`.
            pub fn encode_to(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$name(reply) => reply.encode_to(out),)+
                }
            }
        }

        $(impl From<$name> for Request {
            fn from(request: $name) -> Self {
                Self::$name(request)
            }
        })+
    };
    (@given) => { false };
    (@given $bytes:expr) => { true };
    (@check) => { $crate::op::anything };
    (@check $check:path) => { $check };
    (@bytes) => { |_| 0 };
    (@bytes $bytes:expr) => { $bytes };
}

pub mod table;

pub use table::*;

/// The error for a field of a body.
fn wrong<B: Body>(field: &'static str, error: FieldError) -> BodyError {
    let message = B::NAME;
    BodyError {
        message,
        field,
        error,
    }
}

/// The check of bodies whose fields have no rules in common.
#[allow(clippy::unnecessary_wraps, reason = "one signature for all checks")]
fn anything<T>(_: &T) -> Result<(), (&'static str, FieldError)> {
    Ok(())
}

const fn max(a: usize, b: usize) -> usize {
    if a > b { a } else { b }
}

/// Longest body of a frame that is not [`Op::Data`], in bytes.
pub const MAX_CONTROL_BODY: usize = {
    let mut longest = crate::status::MAX_ERROR_TEXT;
    let mut i = 0;
    while i < Op::REQUESTS.len() {
        if let Some(spec) = Op::REQUESTS[i].spec() {
            longest = max(longest, max(spec.max_request, spec.max_reply));
        }
        i += 1;
    }
    longest
};

impl Op {
    /// The number on the wire.
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// Its place in [`REQUESTS`](Self::REQUESTS); `None` for a frame that is no request.
    #[inline]
    pub fn index(self) -> Option<usize> {
        const PLACES: [Option<usize>; set::MOST] = {
            let mut places = [None; set::MOST];
            let mut at = 0;
            while at < Op::REQUESTS.len() {
                places[Op::REQUESTS[at].code() as usize] = Some(at);
                at += 1;
            }
            places
        };
        *PLACES.get(usize::from(self.code()))?
    }

    /// Its name in kebab case, as policies and metrics have it: `module-load` for ModuleLoad.
    pub fn name(self) -> String {
        let mut name = String::new();
        for letter in self.to_string().chars() {
            if letter.is_ascii_uppercase() && !name.is_empty() {
                name.push('-');
            }
            name.push(letter.to_ascii_lowercase());
        }
        name
    }

    /// Nanoseconds of device work for a request, from the body of a successful reply: its first
    /// field, where the table names that `device_ns`.
    pub fn device_ns(self, reply: &[u8]) -> Option<u64> {
        let first = self.spec()?.reply.first()?;
        match first.name == "device_ns" && first.wire == <u64 as Field>::NAME {
            true => u64::read(&mut Reader::new(reply)).ok(),
            false => None,
        }
    }

    /// Longest body of its frames, in bytes; an error's text fits every reply.
    pub const fn max_body(self, reply: bool) -> usize {
        match self.spec() {
            Some(spec) if reply => max(spec.max_reply, crate::status::MAX_ERROR_TEXT),
            Some(spec) => spec.max_request,
            None => match self {
                Self::Data => crate::frame::MAX_DATA as usize,
                _ => crate::status::MAX_ERROR_TEXT,
            },
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The highest version that both `hello` and this crate speak.
pub fn negotiate_version(hello: &Hello) -> Option<std::num::NonZeroU16> {
    let version = hello.max_version.min(crate::VERSION);
    let sound = version >= hello.min_version.get() && version >= crate::MIN_VERSION;
    std::num::NonZeroU16::new(version).filter(|_| sound)
}

//! Bodies generated from the table alone, so that a new operation is tested by having a row.

use proptest::prelude::*;
use vgpu_protocol::handle::{Handle, HandleKind, MAX_SLOTS};
use vgpu_protocol::op::field::Field;
use vgpu_protocol::op::{
    BodyError, FieldSpec, Op, QuietFailure, Reply, Request, SourceHeader, Spec,
};

/// Requests or replies of an operation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bodies {
    pub(crate) op: Op,
    pub(crate) reply: bool,
}

impl Bodies {
    /// Those of all operations.
    pub(crate) fn all() -> Vec<Self> {
        let of = |op| [false, true].map(|reply| Self { op, reply });
        Op::REQUESTS.iter().copied().flat_map(of).collect()
    }

    pub(crate) fn spec(self) -> &'static Spec {
        self.op.spec().expect("it can be requested")
    }

    pub(crate) fn fields(self) -> &'static [FieldSpec] {
        match self.reply {
            true => self.spec().reply,
            false => self.spec().request,
        }
    }

    pub(crate) fn max_len(self) -> usize {
        match self.reply {
            true => self.spec().max_reply,
            false => self.spec().max_request,
        }
    }

    /// Decodes the bytes and encodes the result again.
    pub(crate) fn again(self, body: &[u8]) -> Result<Vec<u8>, BodyError> {
        let mut out = Vec::new();
        match self.reply {
            true => Reply::decode(self.op, body)?.encode_to(&mut out),
            false => Request::decode(self.op, body)?.encode_to(&mut out),
        }
        Ok(out)
    }

    /// The values of its fields, each as bytes; they may break only rules for more than one field.
    pub(crate) fn values(self) -> BoxedStrategy<Vec<Vec<u8>>> {
        let fields: Vec<_> = self.fields().iter().map(value).collect();
        fields.boxed()
    }
}

fn with_len(bytes: &[u8], count: usize) -> Vec<u8> {
    let count = u16::try_from(count).expect("lengths have 16 bits");
    [&count.to_le_bytes()[..], bytes].concat()
}

/// A value of a field.
fn value(field: &FieldSpec) -> BoxedStrategy<Vec<u8>> {
    let most = field.max_len.saturating_sub(2);
    if let Some((count, element)) = field.list {
        let len = (field.max_len - 2) / count;
        let element = match element {
            "text" => text(len - 2),
            element if element == <SourceHeader as Field>::NAME => {
                (text(len - 6), any::<u32>())
                    .prop_map(|(name, bytes)| {
                        // Small ones, as all of them count to the same limit.
                        [name, (bytes % 1000).to_le_bytes().to_vec()].concat()
                    })
                    .boxed()
            }
            element => numbers(element, len),
        };
        let list = prop::collection::vec(element, 0..=count);
        return list
            .prop_map(|list| with_len(&list.concat(), list.len()))
            .boxed();
    }
    match field.wire {
        "text" => text(most),
        "bytes" => prop::collection::vec(any::<u8>(), 0..=most)
            .prop_map(|bytes| with_len(&bytes, bytes.len()))
            .boxed(),
        wire => numbers(wire, field.max_len),
    }
}

/// A text of at most so many bytes.
fn text(most: usize) -> BoxedStrategy<Vec<u8>> {
    let cut = move |mut text: String| {
        while text.len() > most {
            text.pop();
        }
        with_len(text.as_bytes(), text.len())
    };
    "\\PC{0,600}".prop_map(cut).boxed()
}

/// A handle of this kind.
fn handles(kind: HandleKind) -> BoxedStrategy<Vec<u8>> {
    (0..MAX_SLOTS, 1..=u32::MAX)
        .prop_map(move |(slot, generation)| {
            let handle = Handle::new(kind, slot, generation);
            handle
                .expect("within bounds")
                .to_bits()
                .to_le_bytes()
                .to_vec()
        })
        .boxed()
}

/// A value of this many bytes.
fn numbers(wire: &'static str, len: usize) -> BoxedStrategy<Vec<u8>> {
    let bytes = prop::collection::vec(any::<u8>(), len);
    match wire {
        "u8" | "u16" | "u32" | "u64" | "i32" | "status" | "features" | "three u32: x, y, z" => {
            bytes.boxed()
        }
        "id u32, value 64 bytes" => bytes.boxed(),
        "offset u32, size u32" => (0..16_000u32, 0..16_000u32)
            .prop_map(|(offset, size)| [offset.to_le_bytes(), size.to_le_bytes()].concat())
            .boxed(),
        "stream" => prop_oneof![
            (0..=2u64).prop_map(|n| n.to_le_bytes().to_vec()),
            handles(HandleKind::Stream),
        ]
        .boxed(),
        "pool" => prop_oneof![Just(vec![0; 8]), handles(HandleKind::MemoryPool),].boxed(),
        "u16, at least 1" | "u32, at least 1" | "u64, at least 1" => {
            // Small ones too, which rules may require.
            let small = (1..=u8::MAX).prop_map(move |n| {
                let mut bytes = vec![0; len];
                bytes[0] = n;
                bytes
            });
            let not_0 = bytes.prop_filter("0", |bytes| bytes.iter().any(|byte| *byte != 0));
            prop_oneof![small, not_0].boxed()
        }
        "handle" => handles(HandleKind::Stream),
        wire if wire == <QuietFailure as Field>::NAME => {
            let op = proptest::sample::select(Op::REQUESTS);
            (any::<u32>(), op, prop_oneof![1..=i32::MAX, i32::MIN..=-1])
                .prop_map(|(id, op, status)| {
                    let mut bytes = id.to_le_bytes().to_vec();
                    bytes.extend(op.code().to_le_bytes());
                    bytes.extend(status.to_le_bytes());
                    bytes
                })
                .boxed()
        }
        other => panic!("tell this test how '{other}' lies on the wire"),
    }
}

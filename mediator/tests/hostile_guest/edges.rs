//! Values of fields that lie about objects and about lengths.

use vgpu_protocol::handle::{Handle, HandleKind, MAX_SLOTS};
use vgpu_protocol::op::FieldSpec;

use crate::bystander::object;

/// Numbers of objects that are none, or not the session's.
pub(crate) fn handles() -> Vec<u64> {
    let mut all = Vec::new();
    let kinds = [
        HandleKind::Stream,
        HandleKind::Module,
        HandleKind::Event,
        HandleKind::Graph,
        HandleKind::GraphExec,
        HandleKind::Region,
        HandleKind::MemoryPool,
    ];
    for kind in kinds {
        all.push(object(kind).to_bits());
        for (slot, generation) in [(0, 1), (0, 2), (0, u32::MAX), (1, 1), (MAX_SLOTS - 1, 1)] {
            let handle = Handle::new(kind, slot, generation).expect("sound");
            all.push(handle.to_bits());
        }
    }
    // No kind, and no generation.
    all.extend([1 << 32, 1 << 32 | 8 << 24, 1 << 32 | 0xff << 24, 1 << 24]);
    all
}

/// A text, bytes or a list with as much as there may be, more, and less than announced.
pub(crate) fn lengths(field: &FieldSpec) -> Vec<Vec<u8>> {
    let most = field.list.map_or(field.max_len - 2, |(most, _)| most);
    let announced = |n: usize, there: usize, byte: u8| {
        let n = u16::try_from(n).expect("a length");
        [&n.to_le_bytes()[..], &vec![byte; there]].concat()
    };
    let mut all = vec![
        announced(0, 0, 0),
        announced(1, 0, 0),
        announced(most, most - 1, b'k'),
        announced(most, field.max_len - 2, b'k'),
        announced(most + 1, field.max_len - 2, b'k'),
        announced(65_535, field.max_len - 2, 0),
    ];
    // NULs, what is not UTF-8, what moves a cursor.
    for text in [
        &b"\0"[..],
        b"k\0",
        b"\xff\xfe",
        b"\x1b[2J\n",
        "\u{202e}k".as_bytes(),
    ] {
        let n = u16::try_from(text.len()).expect("short");
        all.push([&n.to_le_bytes()[..], text].concat());
    }
    all.retain(|bytes| bytes.len() <= field.max_len);
    all
}

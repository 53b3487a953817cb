//! Any bytes at all.

use proptest::prelude::*;

use super::*;

/// Frames a hostile guest may put together: sound ones, slightly broken ones, and noise.
fn hostile_bytes() -> impl Strategy<Value = Vec<u8>> {
    let header = (0..9u16, 0..8u16, 0..6u32, 0..3u16, any::<bool>(), 0..200u32).prop_map(
        |(op, flags, id, lane, handle, len)| {
            let mut bytes = FrameHeader::request(Op::Ping, 1).encode();
            bytes[4..6].copy_from_slice(&op.to_le_bytes());
            bytes[6..8].copy_from_slice(&flags.to_le_bytes());
            bytes[8..12].copy_from_slice(&id.to_le_bytes());
            bytes[12..14].copy_from_slice(&lane.to_le_bytes());
            if handle {
                bytes[16..24].copy_from_slice(&stream(0, id.max(1)).to_bits().to_le_bytes());
            }
            bytes[24..28].copy_from_slice(&len.to_le_bytes());
            bytes.to_vec()
        },
    );
    let part = prop_oneof![
        3 => header,
        1 => prop::collection::vec(any::<u8>(), 0..100),
        2 => (1..6u32, 1..40u16, 1..40u16).prop_map(|(id, n, chunk)| vector_add(id, n, chunk)),
        2 => (1..6u32, 0..3usize).prop_map(|(id, cut)| {
            let mut bytes = vector_add(id, 10, 5);
            bytes.truncate(bytes.len() - cut * 45);
            bytes
        }),
        1 => (1..6u32).prop_map(|id| request(Op::Fence, id, b"")),
    ];
    prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn no_bytes_panic_a_session(
        greet in any::<bool>(),
        bytes in hostile_bytes(),
        portion in 1..300usize,
        stalls in any::<bool>(),
    ) {
        let script = if greet { [hello(), bytes].concat() } else { bytes };
        let at_end = if stalls { AtEnd::Stalls } else { AtEnd::Closes };
        let mut transport = Scripted::new(script, portion, at_end);
        let mut settings = settings();
        settings.hello_timeout = Duration::from_millis(1);
        settings.idle_timeout = Duration::from_millis(1);
        settings.stall_timeout = Duration::from_millis(1);
        let observed = Observed::default();
        let mut open = || Ok(Box::new(CpuExecutor::new("a test")) as _);
        serve(&mut transport, &mut open, &settings, &observed, &StopFlag::default());
        prop_assert!(transport.closed);
    }
}

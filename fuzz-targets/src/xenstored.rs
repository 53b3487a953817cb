//! xenstored's messages, decoded by `vchan`'s own client.

use vchan::xen::store::wire::{ANSWER_MAX, HEADER_LEN, Inbox, Kind, Message, encode, names};

/// A stream of messages; the first byte determines the portions in which it arrives.
pub(crate) fn messages(data: &[u8]) {
    let Some((portion, stream)) = data.split_first() else {
        return;
    };
    let (came, end) = receive(stream, usize::from(*portion) + 1);
    assert_eq!((&came, end), (&receive(stream, usize::MAX).0, end));
    let mut rest = stream;
    for message in &came {
        let (header, behind) = rest.split_at(HEADER_LEN);
        let (payload, behind) = behind.split_at(message.payload.len());
        rest = behind;
        let word = |i: usize| u32::from_ne_bytes(header[4 * i..][..4].try_into().unwrap());
        assert_eq!((message.kind, message.request), (word(0), word(1)));
        assert_eq!(message.payload, payload);
        assert!(word(3) as usize == payload.len() && payload.len() <= ANSWER_MAX);
        if let Ok(names) = names(payload) {
            assert!(
                names
                    .iter()
                    .all(|name| !name.is_empty() && !name.contains('\0'))
            );
        }
    }
}

/// The messages, and the length of the payload at which the stream was refused.
fn receive(mut stream: &[u8], portion: usize) -> (Vec<Message>, Option<u32>) {
    let mut inbox = Inbox::default();
    let mut messages = Vec::new();
    while !stream.is_empty() {
        let room = inbox.unfilled();
        assert!(!room.is_empty());
        let n = room.len().min(portion).min(stream.len());
        let (now, later) = stream.split_at(n);
        room[..n].copy_from_slice(now);
        stream = later;
        match inbox.advance(n) {
            Ok(message) => messages.extend(message),
            Err(len) => return (messages, Some(len)),
        }
    }
    (messages, None)
}

pub(crate) fn messages_seeds() -> Vec<Vec<u8>> {
    let message = |kind, payload: &[u8]| encode(kind, 7, &[payload]).unwrap_or_default();
    let stream = [
        message(Kind::WatchEvent, b"@releaseDomain\x001\0"),
        message(Kind::Directory, b"a\0bc\0"),
        message(Kind::Error, b"ENOENT\0"),
        message(Kind::Read, &[b'v'; 300]),
    ]
    .concat();
    [0, 15, 255]
        .map(|portion| [&[portion][..], &stream].concat())
        .to_vec()
}

//! Messages of xenstore's protocol, without I/O: a header of 16 bytes and at most 4,096 of payload.
//!
//! Follows Xen's `public/io/xs_wire.h` and `docs/misc/xenstore.txt`. Numbers are in the machine's
//! own byte order: both ends run on it.

/// Bytes of a header: type, request id, transaction id, payload length.
pub(super) const HEADER_LEN: usize = 16;

/// Longest payload, in bytes (`XENSTORE_PAYLOAD_MAX`).
pub(super) const PAYLOAD_MAX: usize = 4096;

/// The message types in use (`enum xsd_sockmsg_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    /// The names of the nodes right below a path.
    Directory = 1,
    /// The value of a node.
    Read = 2,
    /// Asks for an event at every change of a path.
    Watch = 4,
    /// Sets the value of a node.
    Write = 11,
    /// Removes a node and everything below it.
    Remove = 13,
    /// Something that is watched has changed; never an answer.
    WatchEvent = 15,
    /// The answer to a request that failed.
    Error = 16,
    /// [`Directory`](Self::Directory) from a given offset, for lists longer than one payload.
    DirectoryPart = 22,
}

/// A message as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    /// Its type, which may be one that is not in use here.
    pub(super) kind: u32,
    /// The id of the request it answers.
    pub(super) request: u32,
    /// What the type calls for.
    pub(super) payload: Vec<u8>,
}

impl Message {
    /// Whether the message is of this type.
    pub(super) fn is(&self, kind: Kind) -> bool {
        self.kind == kind as u32
    }
}

/// A request outside any transaction; `None` where `parts` together exceed a payload.
pub(super) fn encode(kind: Kind, request: u32, parts: &[&[u8]]) -> Option<Vec<u8>> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let payload_len = u32::try_from(len).ok().filter(|_| len <= PAYLOAD_MAX)?;
    let mut message = Vec::with_capacity(HEADER_LEN + len);
    for word in [kind as u32, request, 0, payload_len] {
        message.extend_from_slice(&word.to_ne_bytes());
    }
    parts
        .iter()
        .for_each(|part| message.extend_from_slice(part));
    Some(message)
}

/// Puts messages together from a stream that delivers bytes in any portions.
#[derive(Debug)]
pub(super) struct Inbox {
    bytes: [u8; HEADER_LEN + PAYLOAD_MAX],
    filled: usize,
    /// Bytes of the whole message, as far as that is known.
    wanted: usize,
}

impl Default for Inbox {
    fn default() -> Self {
        Self {
            bytes: [0; HEADER_LEN + PAYLOAD_MAX],
            filled: 0,
            wanted: HEADER_LEN,
        }
    }
}

impl Inbox {
    /// Where the next bytes of the message belong; never empty.
    pub(super) fn unfilled(&mut self) -> &mut [u8] {
        &mut self.bytes[self.filled..self.wanted]
    }

    /// Notes that `n` bytes were put into [`unfilled`](Self::unfilled); returns the message once it
    /// is complete.
    ///
    /// # Errors
    /// The length of a payload that no message has: the stream is unusable from here on.
    pub(super) fn advance(&mut self, n: usize) -> Result<Option<Message>, u32> {
        self.filled = self.wanted.min(self.filled.saturating_add(n));
        if self.filled == HEADER_LEN && self.wanted == HEADER_LEN {
            let len = self.word(3);
            let payload = usize::try_from(len).map_err(|_| len)?;
            if payload > PAYLOAD_MAX {
                return Err(len);
            }
            self.wanted = HEADER_LEN + payload;
        }
        if self.filled < self.wanted {
            return Ok(None);
        }
        let message = Message {
            kind: self.word(0),
            request: self.word(1),
            payload: self.bytes[HEADER_LEN..self.wanted].to_vec(),
        };
        (self.filled, self.wanted) = (0, HEADER_LEN);
        Ok(Some(message))
    }

    fn word(&self, index: usize) -> u32 {
        let mut word = [0; 4];
        word.copy_from_slice(&self.bytes[4 * index..][..4]);
        u32::from_ne_bytes(word)
    }
}

/// The names in the payload of an answer to [`Kind::Directory`]: each ends with a NUL.
///
/// # Errors
/// A name that is not UTF-8.
pub(super) fn names(payload: &[u8]) -> Result<Vec<Box<str>>, std::str::Utf8Error> {
    payload
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| std::str::from_utf8(name).map(Box::from))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(mut bytes: &[u8], portion: usize) -> Result<Vec<Message>, u32> {
        let mut inbox = Inbox::default();
        let mut messages = Vec::new();
        while !bytes.is_empty() {
            let room = inbox.unfilled();
            let n = room.len().min(portion).min(bytes.len());
            room[..n].copy_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            messages.extend(inbox.advance(n)?);
        }
        Ok(messages)
    }

    #[test]
    fn messages_come_out_whatever_the_portions() {
        let longest = vec![7; PAYLOAD_MAX];
        let bytes = [
            encode(Kind::Read, 1, &[b"/a", b"\0"]).unwrap(),
            encode(Kind::Write, 2, &[]).unwrap(),
            encode(Kind::Error, 3, &[&longest]).unwrap(),
        ]
        .concat();
        for portion in [1, 15, 16, 17, 5000] {
            let messages = feed(&bytes, portion).unwrap();
            assert_eq!(messages.len(), 3);
            assert!(messages[0].is(Kind::Read) && messages[0].payload == b"/a\0");
            assert!(messages[1].is(Kind::Write) && messages[1].payload.is_empty());
            assert_eq!((messages[2].request, &messages[2].payload), (3, &longest));
        }
    }

    #[test]
    fn a_payload_longer_than_any_is_refused_at_its_header() {
        let mut header = encode(Kind::Read, 1, &[]).unwrap();
        header[12..].copy_from_slice(&4097u32.to_ne_bytes());
        assert_eq!(feed(&header, 16), Err(4097));
        assert_eq!(encode(Kind::Write, 1, &[&[0; 4096], b"x"]), None);
    }

    #[test]
    fn names_are_split_at_their_ends() {
        assert_eq!(names(b"").unwrap(), []);
        assert_eq!(names(b"a\0bc\0").unwrap(), [Box::from("a"), "bc".into()]);
        assert!(names(b"\xff\0").is_err());
    }
}

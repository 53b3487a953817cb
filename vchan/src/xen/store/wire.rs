//! Messages of xenstore's protocol, without I/O: a header of 16 bytes and at most 4,096 of payload.
//! Only oxenstored's answers over its socket are longer: as long as the list that was requested.
//!
//! Follows Xen's `public/io/xs_wire.h` and `docs/misc/xenstore.txt`. Numbers are in the machine's
//! own byte order: both ends run on it.

/// Bytes of a header: type, request id, transaction id, payload length.
pub const HEADER_LEN: usize = 16;

/// Longest payload of a request, in bytes (`XENSTORE_PAYLOAD_MAX`).
pub const PAYLOAD_MAX: usize = 4096;

/// Longest payload accepted, in bytes, so that a guest cannot fill dom0 with the names of its
/// nodes. The default quota of 1,000 nodes, each with the longest possible name (1,024 bytes),
/// stays below it.
pub const ANSWER_MAX: usize = 4 << 20;

/// The message types in use (`enum xsd_sockmsg_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// The names of the nodes right below a path.
    Directory = 1,
    /// The value of a node.
    Read = 2,
    /// Requests an event at every change of a path.
    Watch = 4,
    /// Sets the value of a node.
    Write = 11,
    /// Removes a node and everything below it.
    Remove = 13,
    /// A watched node has changed; never an answer.
    WatchEvent = 15,
    /// The answer to a request that failed.
    Error = 16,
    /// [`Directory`](Self::Directory) from a given offset, for lists longer than one payload.
    DirectoryPart = 22,
}

/// A message as received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its type, which may be one that [`Kind`] lacks.
    pub kind: u32,
    /// The id of the request it answers.
    pub request: u32,
    /// The payload; its form depends on the type.
    pub payload: Vec<u8>,
}

impl Message {
    /// Whether the message is of this type.
    pub fn is(&self, kind: Kind) -> bool {
        self.kind == kind as u32
    }
}

/// A request outside any transaction; `None` where `parts` together exceed a payload.
pub fn encode(kind: Kind, request: u32, parts: &[&[u8]]) -> Option<Vec<u8>> {
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

/// Assembles messages from a stream that delivers bytes in any portions.
#[derive(Debug)]
pub struct Inbox {
    /// Room for a message of the usual length; for a longer one it grows as its bytes come.
    bytes: Vec<u8>,
    filled: usize,
    /// Bytes of the whole message, as far as known.
    wanted: usize,
}

impl Default for Inbox {
    fn default() -> Self {
        Self {
            bytes: vec![0; HEADER_LEN + PAYLOAD_MAX],
            filled: 0,
            wanted: HEADER_LEN,
        }
    }
}

impl Inbox {
    /// The buffer for the next bytes of the message; never empty.
    pub fn unfilled(&mut self) -> &mut [u8] {
        if self.filled == self.bytes.len() {
            self.bytes.resize(self.wanted.min(2 * self.filled), 0);
        }
        let end = self.wanted.min(self.bytes.len());
        &mut self.bytes[self.filled..end]
    }

    /// Notes that `n` bytes were put into [`unfilled`](Self::unfilled); returns the message once it
    /// is complete.
    ///
    /// # Errors
    /// The length of a payload that exceeds the limit: the stream is unusable from then on.
    pub fn advance(&mut self, n: usize) -> Result<Option<Message>, u32> {
        self.filled = self.wanted.min(self.filled.saturating_add(n));
        if self.filled == HEADER_LEN && self.wanted == HEADER_LEN {
            let len = self.word(3);
            let payload = usize::try_from(len).map_err(|_| len)?;
            if payload > ANSWER_MAX {
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
        self.bytes.truncate(HEADER_LEN + PAYLOAD_MAX);
        self.bytes.shrink_to_fit();
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
pub fn names(payload: &[u8]) -> Result<Vec<Box<str>>, std::str::Utf8Error> {
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

    fn header(payload: usize) -> Vec<u8> {
        let mut header = encode(Kind::Directory, 1, &[]).unwrap();
        let payload = u32::try_from(payload).unwrap();
        header[12..].copy_from_slice(&payload.to_ne_bytes());
        header
    }

    #[test]
    fn a_payload_longer_than_any_is_refused_at_its_header() {
        for len in [ANSWER_MAX + 1, u32::MAX as usize] {
            assert_eq!(feed(&header(len), 16), Err(u32::try_from(len).unwrap()));
        }
        assert_eq!(encode(Kind::Write, 1, &[&[0; PAYLOAD_MAX], b"x"]), None);
    }

    /// As oxenstored sends it.
    #[test]
    fn a_long_list_in_one_message_takes_memory_as_its_bytes_come() {
        let names: Vec<u8> = (0..5_520u32).map(|n| b'a' + (n % 26) as u8).collect();
        let bytes = [
            &header(names.len())[..],
            &names,
            &encode(Kind::Read, 2, &[]).unwrap(),
        ]
        .concat();
        for portion in [1, 4096, 10_000] {
            let messages = feed(&bytes, portion).unwrap();
            assert_eq!(messages.len(), 2);
            assert_eq!(messages[0].payload, names);
        }
        let mut inbox = Inbox::default();
        inbox.unfilled().copy_from_slice(&header(ANSWER_MAX));
        assert_eq!(inbox.advance(HEADER_LEN), Ok(None));
        let mut taken = 0;
        while taken < ANSWER_MAX {
            assert!(inbox.bytes.len() <= 2 * (HEADER_LEN + PAYLOAD_MAX + taken));
            let room = inbox.unfilled().len();
            assert!(room > 0);
            taken += room;
            let message = inbox.advance(room).unwrap();
            assert_eq!(message.is_some(), taken == ANSWER_MAX);
        }
        assert_eq!(inbox.bytes.capacity(), HEADER_LEN + PAYLOAD_MAX);
    }

    #[test]
    fn names_are_split_at_their_ends() {
        assert_eq!(names(b"").unwrap(), []);
        assert_eq!(names(b"a\0bc\0").unwrap(), [Box::from("a"), "bc".into()]);
        assert!(names(b"\xff\0").is_err());
    }
}

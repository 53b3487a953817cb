//! The benchmark's wire protocol; `docs/vchan-bench.md` describes it. Pure.

use std::time::Duration;

use super::words::{Access, WORD_BYTES};

/// First bytes of every command, "VBN1" in memory order.
const MAGIC: u32 = u32::from_le_bytes(*b"VBN1");
/// Bytes of a command: magic u32, kind u32, message bytes u32, flags u32, count u64.
pub(crate) const COMMAND_BYTES: usize = 24;
/// Flag of kinds 5 and 6: the server works in the ring itself.
const IN_PLACE: u32 = 1;
/// The longest a single point may take.
pub(crate) const POINT_LIMIT: Duration = Duration::from_secs(120);
/// The largest message a server accepts.
pub(crate) const MAX_MESSAGE: u32 = 1 << 24;

/// The server's next action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Read the messages, then answer with the number of bytes read (u64).
    Sink,
    /// Write the messages.
    Source,
    /// Read a message and write it back, repeatedly.
    Echo,
    /// Close.
    End,
    /// Add up the words of the messages, then answer with the number of bytes read and the sum
    /// (u64 each).
    Produce(Access),
    /// Write messages of the words 0, 1, 2 and so on.
    Consume(Access),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Command {
    pub(crate) kind: Kind,
    pub(crate) message_bytes: u32,
    pub(crate) count: u64,
}

impl Command {
    pub(crate) fn encode(self) -> [u8; COMMAND_BYTES] {
        let kind: u32 = match self.kind {
            Kind::Sink => 1,
            Kind::Source => 2,
            Kind::Echo => 3,
            Kind::End => 4,
            Kind::Produce(_) => 5,
            Kind::Consume(_) => 6,
        };
        let flags = match self.kind {
            Kind::Produce(Access::InPlace) | Kind::Consume(Access::InPlace) => IN_PLACE,
            _ => 0,
        };
        let mut bytes = [0; COMMAND_BYTES];
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&kind.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.message_bytes.to_le_bytes());
        bytes[12..16].copy_from_slice(&flags.to_le_bytes());
        bytes[16..].copy_from_slice(&self.count.to_le_bytes());
        bytes
    }

    /// The error is one line.
    pub(crate) fn decode(bytes: &[u8; COMMAND_BYTES]) -> Result<Self, String> {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        if word(0) != MAGIC {
            return Err("the client does not speak the benchmark's protocol".to_owned());
        }
        let access = match word(12) {
            IN_PLACE => Access::InPlace,
            _ => Access::Copy,
        };
        let kind = match word(4) {
            1 => Kind::Sink,
            2 => Kind::Source,
            3 => Kind::Echo,
            4 => Kind::End,
            5 => Kind::Produce(access),
            6 => Kind::Consume(access),
            other => return Err(format!("the client asks for the unknown kind {other}")),
        };
        let message_bytes = word(8);
        let words = matches!(kind, Kind::Produce(_) | Kind::Consume(_));
        let most_flags = if words { IN_PLACE } else { 0 };
        if word(12) > most_flags
            || message_bytes > MAX_MESSAGE
            || (message_bytes == 0 && kind != Kind::End)
            || (words && !message_bytes.is_multiple_of(WORD_BYTES))
        {
            return Err(format!(
                "the client asks for messages of {message_bytes} bytes"
            ));
        }
        let count = u64::from(word(16)) | u64::from(word(20)) << 32;
        Ok(Self {
            kind,
            message_bytes,
            count,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_come_back_and_others_are_refused() {
        for kind in [
            Kind::Sink,
            Kind::Source,
            Kind::Echo,
            Kind::End,
            Kind::Produce(Access::Copy),
            Kind::Consume(Access::InPlace),
        ] {
            let command = Command {
                kind,
                message_bytes: 4096,
                count: 1 << 40,
            };
            assert_eq!(Command::decode(&command.encode()), Ok(command));
        }
        let mut bytes = Command {
            kind: Kind::Sink,
            message_bytes: 1,
            count: 1,
        }
        .encode();
        bytes[12] = 1;
        assert!(Command::decode(&bytes).is_err(), "a sink has no flags");
        bytes[4] = 5;
        assert!(Command::decode(&bytes).is_err(), "one byte is no word");
        bytes[4] = 9;
        assert!(Command::decode(&bytes).is_err());
        assert!(Command::decode(&[0; COMMAND_BYTES]).is_err());
        let large = Command {
            kind: Kind::Sink,
            message_bytes: MAX_MESSAGE + 1,
            count: 1,
        };
        assert!(Command::decode(&large.encode()).is_err());
    }
}

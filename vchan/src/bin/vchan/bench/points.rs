//! The points to measure.

use std::fmt;
use std::str::FromStr;

use super::messages::MAX_MESSAGE;
use super::words::{Access, WORD_BYTES};

/// The work done with the messages of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// To the server, which discards them.
    Sink,
    /// From the server.
    Source,
    /// To the server and back, one at a time.
    Echo,
    /// To the server: one side makes words, the other adds them up.
    Produce(Access),
    /// The reverse, from the server.
    Consume(Access),
    /// No channel: one processor copies from a block into a ring-sized buffer.
    Memcpy,
    /// No channel: an echo over a Unix socket pair between two threads.
    SocketPair(Threads),
}

/// The processors on which two threads run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// On processors of their own, like the two sides of the channel.
    Apart,
    /// Wherever this process may run: on one processor, if it is pinned to one.
    Together,
}

const NAMES: [(Work, &str); 10] = [
    (Work::Sink, "sink"),
    (Work::Source, "source"),
    (Work::Echo, "echo"),
    (Work::Produce(Access::Copy), "produce"),
    (Work::Produce(Access::InPlace), "produce-in-place"),
    (Work::Consume(Access::Copy), "consume"),
    (Work::Consume(Access::InPlace), "consume-in-place"),
    (Work::Memcpy, "memcpy"),
    (Work::SocketPair(Threads::Apart), "socket-pair"),
    (Work::SocketPair(Threads::Together), "socket-pair-together"),
];

impl Work {
    /// The name used on the command line and in the results.
    pub(crate) fn name(self) -> &'static str {
        let named = NAMES.iter().find(|(work, _)| *work == self);
        named.map_or("", |(_, name)| name)
    }

    /// Whether the result is a time per message rather than a rate.
    pub(crate) fn is_round_trip(self) -> bool {
        matches!(self, Self::Echo | Self::SocketPair(_))
    }

    /// Whether it needs no channel.
    pub(crate) fn is_baseline(self) -> bool {
        matches!(self, Self::Memcpy | Self::SocketPair(_))
    }

    /// The usual message sizes.
    fn sizes(self) -> &'static [u32] {
        match self {
            Self::Sink | Self::Source => &[64, 1 << 10, 4 << 10, 16 << 10, 64 << 10],
            Self::Echo | Self::SocketPair(_) => &[16, 1 << 10],
            Self::Produce(_) | Self::Consume(_) | Self::Memcpy => &[64 << 10],
        }
    }

    /// Message sizes must be a multiple of this many bytes.
    fn unit(self) -> u32 {
        match self {
            Self::Produce(_) | Self::Consume(_) => WORD_BYTES,
            _ => 1,
        }
    }
}

/// One thing to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) work: Work,
    pub(crate) message_bytes: u32,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.work.name(), self.message_bytes)
    }
}

/// Points in the order in which they are measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Points(pub(crate) Vec<Point>);

impl Points {
    /// The usual sizes of each kind of work.
    pub(crate) fn usual(works: &[Work]) -> Self {
        let points = works.iter().flat_map(|work| {
            work.sizes().iter().map(|&message_bytes| Point {
                work: *work,
                message_bytes,
            })
        });
        Self(points.collect())
    }
}

impl FromStr for Points {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut points = Vec::new();
        for word in text.split(',') {
            let (name, bytes) = match word.split_once(':') {
                Some((name, bytes)) => (name, Some(bytes)),
                None => (word, None),
            };
            let Some((work, _)) = NAMES.iter().find(|(_, known)| *known == name) else {
                let names: Vec<&str> = NAMES.iter().map(|(_, name)| *name).collect();
                return Err(format!("a point is one of {}", names.join(", ")));
            };
            match bytes {
                None => points.extend(Self::usual(&[*work]).0),
                Some(bytes) => match bytes.parse() {
                    Ok(message_bytes @ 1..=MAX_MESSAGE)
                        if message_bytes.is_multiple_of(work.unit()) =>
                    {
                        points.push(Point {
                            work: *work,
                            message_bytes,
                        });
                    }
                    _ => {
                        return Err(format!(
                            "a message has 1 to {MAX_MESSAGE} bytes, and of words a multiple of \
                             {WORD_BYTES}"
                        ));
                    }
                },
            }
        }
        Ok(Self(points))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_names_kinds_and_sizes() {
        let points: Points = "echo,sink:4096".parse().unwrap();
        let written: Vec<String> = points.0.iter().map(Point::to_string).collect();
        assert_eq!(written, ["echo:16", "echo:1024", "sink:4096"]);
        for text in [
            "",
            "other",
            "sink:",
            "sink:0",
            "sink:16777217",
            "sink:-1",
            "produce:12",
        ] {
            assert!(text.parse::<Points>().is_err(), "{text:?}");
        }
    }
}

#![forbid(unsafe_code)]
//! Many channels of one reactor, in one thread: an echo, and the side that asks it and checks the
//! answers.
//!
//! Neither side ever waits for one channel, and each gives a channel a bounded amount of work at a
//! time.

use std::collections::HashMap;
use std::time::Instant;

use super::Sequence;
use vchan::Channel;
use vchan::error::{Error, Result};
use vchan::reactor::{Reactor, Token};

/// Most bytes that one channel moves, each way, in its turn.
const TURN_BYTES: usize = 16 << 10;
/// Most bytes that one call moves.
const STEP: usize = 4096;
/// Bytes after which the pattern repeats: a prime, so that no ring's size is a multiple.
const PERIOD: usize = 8191;

/// One end of many channels, each with a piece of work of its own.
#[derive(Debug)]
pub struct Many<W> {
    channels: HashMap<Token, (Channel, W)>,
    /// Channels added since the last turn, which get a step without a token.
    new: Vec<Token>,
    ready: Vec<Token>,
    ended: Vec<(Token, Result<()>)>,
}

/// The work done with a channel.
pub trait Work {
    /// Does a bounded part, without waiting.
    ///
    /// # Errors
    /// The error that ends the work on this channel early.
    fn step(&mut self, channel: &mut Channel) -> Result<Progress>;
}

/// The outcome of a step of [`Work`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The channel would block; its token will come.
    Blocked,
    /// There is more to do.
    More,
    /// The work is complete.
    Done,
}

impl<W> Default for Many<W> {
    fn default() -> Self {
        Self {
            channels: HashMap::new(),
            new: Vec::new(),
            ready: Vec::new(),
            ended: Vec::new(),
        }
    }
}

impl<W: Work> Many<W> {
    /// Adds a channel of the reactor that [`turn`](Self::turn) will be given.
    ///
    /// # Panics
    /// If the channel is on no reactor.
    pub fn add(&mut self, channel: Channel, work: W) {
        let token = channel.token().expect("a channel on a reactor");
        self.channels.insert(token, (channel, work));
        self.new.push(token);
    }

    /// Waits until some channels may make progress and gives each one step. Returns the tokens that
    /// belong to other channels.
    ///
    /// # Errors
    /// Those of the reactor. An error on a channel ends that channel only: see
    /// [`ended`](Self::ended).
    pub fn turn(&mut self, reactor: &mut Reactor, deadline: Instant) -> Result<Vec<Token>> {
        for token in std::mem::take(&mut self.new) {
            self.step(reactor, token);
        }
        let mut ready = std::mem::take(&mut self.ready);
        reactor.wait(&mut ready, deadline)?;
        let mut others = Vec::new();
        for &token in &ready {
            if !self.step(reactor, token) {
                others.push(token);
            }
        }
        self.ready = ready;
        Ok(others)
    }

    /// The channels whose work has ended, in order, with the result. They are closed.
    pub fn ended(&self) -> &[(Token, Result<()>)] {
        &self.ended
    }

    /// The work on each channel that is still under way.
    pub fn works(&self) -> impl Iterator<Item = &W> {
        self.channels.values().map(|(_, work)| work)
    }

    /// Number of channels still under way.
    pub fn len(&self) -> usize {
        self.channels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.channels.is_empty()
    }

    /// Gives a channel a step. False if the channel is not one of these.
    fn step(&mut self, reactor: &Reactor, token: Token) -> bool {
        let Some((channel, work)) = self.channels.get_mut(&token) else {
            return self.ended.iter().any(|(ended, _)| *ended == token);
        };
        let end = match work.step(channel) {
            Ok(Progress::Blocked) => return true,
            Ok(Progress::More) => {
                reactor.handle().again(token);
                return true;
            }
            Ok(Progress::Done) => Ok(()),
            Err(error) => Err(error),
        };
        self.channels.remove(&token);
        self.ended.push((token, end));
        true
    }
}

/// Sends every byte back until the peer closes.
#[derive(Debug, Default)]
pub struct Echo {
    /// Bytes read and not yet written: at most a step's worth.
    kept: Vec<u8>,
    written: usize,
}

impl Work for Echo {
    fn step(&mut self, channel: &mut Channel) -> Result<Progress> {
        let mut moved = 0;
        while moved < TURN_BYTES {
            if self.written == self.kept.len() {
                self.kept.resize(STEP, 0);
                self.written = 0;
                let read = channel.try_read(&mut self.kept);
                self.kept
                    .truncate(read.as_ref().map_or(0, |read| read.unwrap_or(0)));
                match read? {
                    None => return Ok(Progress::Blocked),
                    Some(0) => return Ok(Progress::Done),
                    Some(_) => {}
                }
            }
            match channel.try_write(&self.kept[self.written..])? {
                0 => return Ok(Progress::Blocked),
                n => {
                    self.written += n;
                    moved += n;
                }
            }
        }
        Ok(Progress::More)
    }
}

/// Sends a pattern of a given length to an [`Echo`] and checks every byte that comes back.
#[derive(Debug)]
pub struct Ask {
    /// [`PERIOD`] bytes unique to the channel, followed by a step's worth of them again.
    pattern: Vec<u8>,
    total: u64,
    sent: u64,
    received: u64,
}

impl Ask {
    /// Asks for `total` bytes; `seed` makes the pattern unique to this channel.
    pub fn new(seed: u64, total: u64) -> Self {
        let mut pattern =
            Sequence::new(seed.wrapping_add(1).wrapping_mul(0x9E37_79B9)).bytes(PERIOD);
        pattern.extend_from_within(..STEP);
        Self {
            pattern,
            total,
            sent: 0,
            received: 0,
        }
    }

    /// Bytes that have come back unchanged.
    pub fn received(&self) -> u64 {
        self.received
    }

    fn stretch(&self, from: u64, most: u64) -> &[u8] {
        let at = usize::try_from(from % PERIOD as u64).unwrap_or(0);
        let len = usize::try_from(most).unwrap_or(STEP).min(STEP);
        &self.pattern[at..at + len]
    }
}

impl Work for Ask {
    fn step(&mut self, channel: &mut Channel) -> Result<Progress> {
        let mut buf = [0; STEP];
        let mut moved = 0;
        while moved < TURN_BYTES {
            let wrote = match self.total - self.sent {
                0 => 0,
                left => channel.try_write(self.stretch(self.sent, left))?,
            };
            self.sent += wrote as u64;
            match channel.try_read(&mut buf)? {
                Some(0) => return Err(Error::PeerClosed { unread: 0 }),
                Some(n) => {
                    if self.received + n as u64 > self.sent
                        || buf[..n] != *self.stretch(self.received, n as u64)
                    {
                        return Err(Error::setup(
                            format!("the echo differs within {n} bytes from {}", self.received),
                            "this is a fault of the channel: report it",
                        ));
                    }
                    self.received += n as u64;
                    moved += n;
                }
                None if self.received == self.total => {}
                None if wrote == 0 => return Ok(Progress::Blocked),
                None => {}
            }
            if self.received == self.total {
                return Ok(Progress::Done);
            }
        }
        Ok(Progress::More)
    }
}

#![forbid(unsafe_code)]
//! The side that keeps the rules, with an oracle that knows the right answer of each call.
//!
//! While the liar stands still, the pages before a step determine everything: the impossible
//! indexes, the bytes that a read must return, and the bytes that may change at all.

use std::time::{Duration, Instant};

use vchan::Interest;

use super::Said;
use super::guard::Guard;
use super::oracle::{Legal, Model};
use super::pages::{Picture, SharedPages, Words};
use super::random::Random;
use super::report::Report;
use vchan::Channel;
use vchan::error::{Error, PeerError, Result};
use vchan::layout::Role;

/// The contents of a private buffer beyond the bytes read.
const CANARY: u8 = 0xA5;
/// The bytes that the victim writes: none that the liar's payload contains.
const WRITTEN: u8 = 0xFE;
/// Bytes behind the part of a buffer that a call may fill.
const MARGIN: usize = 64;

/// One victim over its pages; its channel comes and goes.
#[derive(Debug)]
pub(super) struct Victim {
    pub(super) pages: SharedPages,
    channel: Option<Channel>,
    pub(super) model: Model,
    _guards: Vec<Guard>,
}

impl Victim {
    pub(super) fn new(pages: SharedPages, report: &mut Report) -> Self {
        let guards: Vec<Guard> = pages.regions().flat_map(Guard::around).collect();
        report.guards += guards.len();
        Self {
            pages,
            channel: None,
            model: Model::default(),
            _guards: guards,
        }
    }

    /// Resets the pages to those of an honest pair, for a storm in which no other code does.
    pub(super) fn reset(&self, first_index: u32) {
        self.pages.reset(first_index);
    }

    pub(super) fn has_channel(&self) -> bool {
        self.channel.is_some()
    }

    /// Ends the present channel, if there is one.
    pub(super) fn end(&mut self) {
        self.channel = None;
    }

    /// Begins a channel on the pages as they are; a refusal is an answer too.
    pub(super) fn begin(&mut self, first_index: u32, report: &mut Report) -> Said<()> {
        let before = self.pages.picture();
        let (reads, writes) = self.pages.words();
        let distance = |ring: Words| before.word(ring.prod).wrapping_sub(before.word(ring.cons));
        let possible =
            distance(reads) <= size(&before.incoming) && distance(writes) <= size(&before.outgoing);
        report.channels += 1;
        match self.pages.channel(first_index) {
            Ok(mut channel) => {
                channel.set_spin(Duration::ZERO);
                self.channel = Some(channel);
                self.model = match self.pages.role() {
                    Role::Server => Model {
                        cons: first_index,
                        prod: first_index,
                        ..Model::default()
                    },
                    Role::Client if !possible => {
                        return Err("indexes that describe no ring were accepted".to_owned());
                    }
                    Role::Client => Model {
                        cons: before.word(reads.cons),
                        known: distance(reads),
                        prod: before.word(writes.prod),
                        unread: distance(writes),
                        ..Model::default()
                    },
                };
                Ok(())
            }
            Err(Error::Peer(PeerError::StartIndexes { .. }))
                if self.pages.role() == Role::Client && !possible =>
            {
                report.count("refused at the start");
                Ok(())
            }
            Err(error) => Err(format!("a channel began with {error:?}")),
        }
    }

    /// The same while the liar goes on: either answer is right.
    pub(super) fn begin_in_storm(&mut self, first_index: u32, report: &mut Report) -> Said<()> {
        report.channels += 1;
        match self.pages.channel(first_index) {
            Ok(channel) => {
                self.channel = Some(channel);
                self.model.cons = first_index;
                Ok(())
            }
            Err(Error::Peer(PeerError::StartIndexes { .. })) => {
                report.count("refused at the start");
                Ok(())
            }
            Err(error) => Err(format!("a channel began with {error:?}")),
        }
    }

    /// Makes some calls while the liar stands still, and checks everything. Returns whether the
    /// channel has come to its end.
    pub(super) fn step(&mut self, random: &mut Random, report: &mut Report) -> Said<bool> {
        let before = self.pages.picture();
        let legal = self.legal(&before);
        let mut expected = before.outgoing.clone();
        let start_cons = self.model.cons;
        let mut closed = false;
        for _ in 0..2 + random.below(2) {
            closed = self.call(random, &before, &mut expected, legal, report)?;
            if closed {
                break;
            }
        }
        if !closed {
            self.look_at_both(legal, &before, start_cons, report)?;
        }
        let after = self.pages.picture();
        self.check_untouched(&before, &after, &expected, closed)?;
        let finished = closed || self.model.dead.is_some() || self.model.over;
        if finished {
            self.channel = None;
        }
        Ok(finished)
    }

    /// One call; true if it closed the channel.
    fn call(
        &mut self,
        random: &mut Random,
        before: &Picture,
        expected: &mut [u8],
        legal: Legal,
        report: &mut Report,
    ) -> Said<bool> {
        let Some(mut channel) = self.channel.take() else {
            return Err("there is no channel".to_owned());
        };
        let now = Instant::now();
        // Nearly always the past, so that a hundred thousand steps take seconds.
        let deadline = match random.once_in(48) {
            true => now + Duration::from_micros(300),
            false => now,
        };
        let written = channel.stats().bytes_written;
        let mut closed = false;
        let outcome = match random.below(10) {
            0..=3 => {
                let len = random.index(before.incoming.len() + 64);
                let waits = random.once_in(3);
                self.read(&mut channel, len, waits.then_some(deadline), before)?
            }
            4..=6 => {
                let len = 1 + random.index(before.outgoing.len() + 64);
                let bytes = vec![WRITTEN; len];
                match random.once_in(3) {
                    true => channel.write_all(&bytes, deadline).map(|()| "written"),
                    false => channel
                        .try_write(&bytes)
                        .map(|n| if n > 0 { "written" } else { "no room" }),
                }
            }
            7 => {
                let all = [Interest::Read, Interest::Write, Interest::ReadOrWrite];
                channel.wait(random.pick(&all), deadline).map(|()| "ready")
            }
            8 => channel
                .peer_gone()
                .map(|gone| if gone { "gone" } else { "alive" }),
            _ if random.once_in(16) => {
                closed = true;
                channel.close(deadline).map(|()| "closed")
            }
            _ => channel.drain(deadline).map(|()| "drained"),
        };
        report.late(deadline);
        let fresh = channel.stats().bytes_written - written;
        self.wrote(u32::try_from(fresh).unwrap_or(u32::MAX), expected);
        self.channel = Some(channel);
        let name = self.judge(outcome, legal, before)?;
        report.count(name);
        Ok(closed)
    }

    /// Reads, and checks the result.
    fn read(
        &mut self,
        channel: &mut Channel,
        len: usize,
        deadline: Option<Instant>,
        before: &Picture,
    ) -> Said<Result<&'static str>> {
        let mut buf = vec![CANARY; len + MARGIN];
        let outcome = match deadline {
            Some(deadline) => channel.read(&mut buf[..len], deadline).map(Some),
            None => channel.try_read(&mut buf[..len]),
        };
        let n = match &outcome {
            Ok(Some(n)) => *n,
            _ => 0,
        };
        if n > len || buf[n..].iter().any(|byte| *byte != CANARY) {
            return Err(format!("a read of {len} bytes returned {n} and wrote more"));
        }
        let ring = &before.incoming;
        for (i, byte) in buf[..n].iter().enumerate() {
            let at = (self.model.cons as usize + i) % ring.len();
            if *byte != ring[at] {
                return Err(format!(
                    "byte {at} of the ring is {:#x}, not {byte:#x}",
                    ring[at]
                ));
            }
        }
        self.model.cons = self.model.cons.wrapping_add(u32::try_from(n).unwrap_or(0));
        self.model.known = self
            .model
            .known
            .saturating_sub(u32::try_from(n).unwrap_or(0));
        Ok(outcome.map(|n| match n {
            None => "nothing to read",
            Some(0) if len > 0 => "end of stream",
            Some(_) => "read",
        }))
    }

    /// Notes `n` bytes that the writer claims to have put into the ring.
    fn wrote(&mut self, n: u32, expected: &mut [u8]) {
        let at = self.model.prod as usize % expected.len();
        let first = (n as usize).min(expected.len() - at);
        expected[at..at + first].fill(WRITTEN);
        expected[..n as usize - first].fill(WRITTEN);
        self.model.prod = self.model.prod.wrapping_add(n);
        self.model.unread = self.model.unread.wrapping_add(n);
    }

    /// Has both of the peer's indexes read, so that no lie is missed.
    fn look_at_both(
        &mut self,
        legal: Legal,
        before: &Picture,
        start_cons: u32,
        report: &mut Report,
    ) -> Said<()> {
        let Some(mut channel) = self.channel.take() else {
            return Err("there is no channel".to_owned());
        };
        let (_, writes) = self.pages.words();
        // Without a read of the peer's index: reading bytes known to be there may have made room
        // for a write that was too long before, and writing may have caught up with a read too far.
        let left = legal
            .ahead
            .wrapping_sub(self.model.cons.wrapping_sub(start_cons));
        let incoming = (self.model.known..=size(&before.incoming)).contains(&left);
        let pending = self.model.prod.wrapping_sub(before.word(writes.cons));
        let outgoing = pending <= self.model.unread;
        let available = channel.available();
        let drained = channel.drain(Instant::now());
        self.channel = Some(channel);
        if let Ok(n) = &available {
            if *n != left as usize {
                return Err(format!("{n} bytes available where {left} are"));
            }
            self.model.known = left;
        }
        self.judge(available.map(|_| "available"), legal, before)?;
        let name = self.judge(drained.map(|()| "drained"), legal, before)?;
        report.count(name);
        if self.model.dead.is_none() {
            if !(incoming && outgoing) {
                return Err(format!("a lie went unnoticed: {legal:?}"));
            }
            self.model.unread = pending;
        }
        Ok(())
    }

    /// Makes some calls while the liar goes on lying: any typed answer is right. Returns whether
    /// the channel has come to its end.
    pub(super) fn storm_round(&mut self, random: &mut Random, report: &mut Report) -> Said<bool> {
        let Some(channel) = &mut self.channel else {
            return Err("there is no channel".to_owned());
        };
        let deadline = Instant::now() + Duration::from_micros(u64::from(random.below(2) * 50));
        let mut buf = [CANARY; 512 + MARGIN];
        let len = random.index(512);
        let position = self.model.cons;
        let outcome = match random.below(5) {
            0 | 1 => channel.read(&mut buf[..len], deadline).inspect(|n| {
                self.model.cons = position.wrapping_add(u32::try_from(*n).unwrap_or(0));
            }),
            2 | 3 => channel
                .write_all(&[WRITTEN; 512][..len], deadline)
                .map(|()| 0),
            _ => channel.drain(deadline).map(|()| 0),
        };
        report.late(deadline);
        let n = *outcome.as_ref().unwrap_or(&0);
        if !is_canary(&buf[n..]) {
            return Err(format!("a read of {len} bytes returned {n} and wrote more"));
        }
        // A client's first index came from a page that was changing.
        if self.pages.role() == Role::Server {
            self.check_payload(position, &buf[..n])?;
        }
        let (name, ended) = match outcome {
            Ok(_) => ("went on in the storm", false),
            Err(Error::TimedOut(_)) => ("timed out in the storm", false),
            Err(Error::PeerClosed { .. }) => ("peer closed in the storm", true),
            Err(Error::Peer(_)) => ("peer error in the storm", true),
            Err(error) => return Err(format!("{error:?}")),
        };
        report.count(name);
        if ended {
            self.channel = None;
        }
        Ok(ended)
    }
}

pub(super) fn size(ring: &[u8]) -> u32 {
    u32::try_from(ring.len()).unwrap_or(u32::MAX)
}

fn is_canary(bytes: &[u8]) -> bool {
    const FIELD: [u8; 16 << 10] = [CANARY; 16 << 10];
    *bytes == FIELD[..bytes.len()]
}

#![forbid(unsafe_code)]
//! The side that keeps no rule: what it does to the pages, the rings and the doorbell.

use super::PAYLOADS;
use super::ground::Ground;
use super::random::Random;
use vchan::extension;
use vchan::layout::{PAGE, offset};
use vchan::notify::ARMED;

/// The most rings of the doorbell in a row.
const STORM: u32 = 12;

/// One lying side over its pages.
#[derive(Debug)]
pub(super) struct Liar {
    ground: Ground,
}

impl Liar {
    pub(super) fn new(ground: Ground) -> Self {
        Self { ground }
    }

    /// Makes the pages those of a channel that has just begun.
    pub(super) fn reset(&self, first_index: u32) {
        self.ground.reset(first_index);
        self.refill(0, 0, self.ground.outgoing().len());
    }

    /// Writes the payload of one kind into a part of the ring that the victim reads.
    fn refill(&self, kind: usize, from: usize, len: usize) {
        let len = len.min(self.ground.outgoing().len() - from);
        self.ground.fill(from, &PAYLOADS[kind][from..from + len]);
    }

    /// Goes on like an honest side: some bytes written, some read.
    pub(super) fn behave(&self, random: &mut Random) {
        let ground = &self.ground;
        let (reads, writes) = ground.words();
        let (prod, cons) = (ground.u32(writes.prod), ground.u32(writes.cons));
        let free = size(ground.outgoing().len()).saturating_sub(prod.wrapping_sub(cons));
        ground.set_u32(writes.prod, prod.wrapping_add(some(random, free)));
        let (prod, cons) = (ground.u32(reads.prod), ground.u32(reads.cons));
        let unread = prod.wrapping_sub(cons).min(size(ground.incoming().len()));
        ground.set_u32(reads.cons, cons.wrapping_add(some(random, unread)));
    }

    /// Breaks one rule, or several, and may ring for it.
    pub(super) fn lie(&self, random: &mut Random) {
        for _ in 0..=random.below(2) {
            match self.ground.is_extended() && random.once_in(3) {
                true => self.lie_in_the_extension(random),
                false => self.lie_once(random),
            }
        }
        if random.once_in(4) {
            for _ in 0..=random.below(STORM) {
                // A victim that is gone cannot be rung; the lie stays.
                let _ = self.ground.ring();
            }
        }
    }

    fn lie_once(&self, random: &mut Random) {
        let ground = &self.ground;
        let (reads, writes) = ground.words();
        let (own_live, victims_live) = ground.lives();
        match random.below(18) {
            // Its own indexes: near misses, far misses, steps back.
            0 | 1 => self.index(random, writes.prod, writes.cons, ground.outgoing().len()),
            2 | 3 => self.index(random, reads.cons, reads.prod, ground.incoming().len()),
            // The victim's own.
            4 => ground.set_u32(writes.cons, random.word()),
            5 => ground.set_u32(reads.prod, random.word()),
            6 => {
                let order: u16 = random.pick(&[0, 9, 10, 11, 12, 20, 21, 31, 0x8000, 0xFFFF]);
                let at = random.pick(&[offset::LEFT_ORDER, offset::RIGHT_ORDER]);
                for (i, byte) in order.to_ne_bytes().into_iter().enumerate() {
                    ground.set_u8(at + i, byte);
                }
            }
            7 => ground.set_u8(own_live, random.pick(&[0, 2, 3, 0x7F, 0x80, 0xFF, 1, 1, 1])),
            8 => ground.set_u8(victims_live, random.pick(&[0, 2, 0xFF])),
            9 | 10 => {
                let at = random.pick(&[offset::CLI_NOTIFY, offset::SRV_NOTIFY]);
                ground.set_u8(at, random.byte());
            }
            // The list of grants, and all that lies behind it but the rings.
            11 => {
                let entries = (ground.rings_from() - offset::GRANTS) / 4;
                let at = offset::GRANTS + 4 * random.index(entries);
                ground.set_u32(at, random.word());
            }
            12 | 13 => {
                let from = random.index(ground.outgoing().len());
                let len = random.index(ground.outgoing().len());
                self.refill(random.index(2), from, len);
            }
            14 => self.behave(random),
            15 => (0..offset::GRANTS / 4).for_each(|word| ground.set_u32(4 * word, random.word())),
            16 => (0..offset::GRANTS / 4).for_each(|word| ground.set_u32(4 * word, 0)),
            _ => {
                let at = random.index(offset::GRANTS);
                ground.set_u8(at, random.byte());
            }
        }
    }

    fn lie_in_the_extension(&self, random: &mut Random) {
        use extension::offset as extended;
        let ground = &self.ground;
        let word = |at: usize, value: u32| ground.set_u32(PAGE + (at & !3), value);
        match random.below(8) {
            0 => word(
                extended::HEADER + random.index(extension::HEADER_BYTES),
                random.word(),
            ),
            1 => word(
                extended::ACCEPTANCE + random.index(extension::ACCEPTANCE_BYTES),
                random.word(),
            ),
            // Asks for every index, for none, and takes what the victim asks for.
            2 | 3 => {
                let at = random.pick(ground.requests());
                let (reads, writes) = ground.words();
                let near = ground.u32(random.pick(&[reads.prod, reads.cons, writes.prod]));
                let any = random.word();
                let value = random.pick(&[0, 1, ARMED, u32::MAX, ARMED | near, near, any]);
                ground.set_u32(at, value);
            }
            4 => word(extended::EXTRA_GRANTS + random.index(2048), random.word()),
            5 => word(random.index(PAGE), random.word()),
            6 => (0..PAGE).step_by(4).for_each(|at| word(at, 0)),
            _ => (0..PAGE).step_by(4).for_each(|at| word(at, random.word())),
        }
    }

    /// Puts a wrong value into the index at `at`, whose ring has the other index at `beside`.
    fn index(&self, random: &mut Random, at: usize, beside: usize, bytes: usize) {
        let size = size(bytes);
        let (own, other) = (self.ground.u32(at), self.ground.u32(beside));
        let value = match random.below(8) {
            0 => other.wrapping_add(size).wrapping_add(1),
            1 => other.wrapping_add(size),
            2 => u32::MAX,
            3 => own.wrapping_sub(1 + random.below(size)),
            4 => other.wrapping_sub(1 + random.below(size)),
            5 => own ^ (1 << random.below(32)),
            6 => other.wrapping_add(random.below(size)),
            _ => random.word(),
        };
        self.ground.set_u32(at, value);
    }
}

fn size(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(0)
}

/// Up to `most`, often nothing, sometimes all.
fn some(random: &mut Random, most: u32) -> u32 {
    match random.below(4) {
        0 => 0,
        1 => most,
        _ => random.below(most.saturating_add(1).max(1)),
    }
}

#![forbid(unsafe_code)]
//! The side that keeps no rule: its actions on the pages, the rings and the doorbell.

use super::PAYLOADS;
use super::pages::SharedPages;
use super::random::Random;
use vchan::extension;
use vchan::layout::{PAGE, offset};
use vchan::notify::ARMED;

/// The most rings of the doorbell in a row.
const STORM: u32 = 12;

/// One lying side over its pages.
#[derive(Debug)]
pub(super) struct Liar {
    pages: SharedPages,
}

impl Liar {
    pub(super) fn new(pages: SharedPages) -> Self {
        Self { pages }
    }

    /// Resets the pages to those of a new channel.
    pub(super) fn reset(&self, first_index: u32) {
        self.pages.reset(first_index);
        self.refill(0, 0, self.pages.outgoing().len());
    }

    /// Writes the payload of one kind into a part of the ring that the victim reads.
    fn refill(&self, kind: usize, from: usize, len: usize) {
        let len = len.min(self.pages.outgoing().len() - from);
        self.pages.fill(from, &PAYLOADS[kind][from..from + len]);
    }

    /// Behaves like an honest side: some bytes written, some read.
    pub(super) fn behave(&self, random: &mut Random) {
        let pages = &self.pages;
        let (reads, writes) = pages.words();
        let (prod, cons) = (pages.u32(writes.prod), pages.u32(writes.cons));
        let free = size(pages.outgoing().len()).saturating_sub(prod.wrapping_sub(cons));
        pages.set_u32(writes.prod, prod.wrapping_add(some(random, free)));
        let (prod, cons) = (pages.u32(reads.prod), pages.u32(reads.cons));
        let unread = prod.wrapping_sub(cons).min(size(pages.incoming().len()));
        pages.set_u32(reads.cons, cons.wrapping_add(some(random, unread)));
    }

    /// Breaks one rule, or several, and may ring.
    pub(super) fn lie(&self, random: &mut Random) {
        for _ in 0..=random.below(2) {
            match self.pages.is_extended() && random.once_in(3) {
                true => self.lie_in_the_extension(random),
                false => self.lie_once(random),
            }
        }
        if random.once_in(4) {
            for _ in 0..=random.below(STORM) {
                // A victim that is gone cannot be rung; the lie stays in the pages.
                let _ = self.pages.ring();
            }
        }
    }

    fn lie_once(&self, random: &mut Random) {
        let pages = &self.pages;
        let (reads, writes) = pages.words();
        let (own_live, victims_live) = pages.lives();
        match random.below(18) {
            // Its own indexes: near misses, far misses, steps back.
            0 | 1 => self.index(random, writes.prod, writes.cons, pages.outgoing().len()),
            2 | 3 => self.index(random, reads.cons, reads.prod, pages.incoming().len()),
            // The victim's own index.
            4 => pages.set_u32(writes.cons, random.word()),
            5 => pages.set_u32(reads.prod, random.word()),
            6 => {
                let order: u16 = random.pick(&[0, 9, 10, 11, 12, 20, 21, 31, 0x8000, 0xFFFF]);
                let at = random.pick(&[offset::LEFT_ORDER, offset::RIGHT_ORDER]);
                for (i, byte) in order.to_ne_bytes().into_iter().enumerate() {
                    pages.set_u8(at + i, byte);
                }
            }
            7 => pages.set_u8(own_live, random.pick(&[0, 2, 3, 0x7F, 0x80, 0xFF, 1, 1, 1])),
            8 => pages.set_u8(victims_live, random.pick(&[0, 2, 0xFF])),
            9 | 10 => {
                let at = random.pick(&[offset::CLI_NOTIFY, offset::SRV_NOTIFY]);
                pages.set_u8(at, random.byte());
            }
            // The list of grants, and everything behind it except the rings.
            11 => {
                let entries = (pages.rings_from() - offset::GRANTS) / 4;
                let at = offset::GRANTS + 4 * random.index(entries);
                pages.set_u32(at, random.word());
            }
            12 | 13 => {
                let from = random.index(pages.outgoing().len());
                let len = random.index(pages.outgoing().len());
                self.refill(random.index(2), from, len);
            }
            14 => self.behave(random),
            15 => (0..offset::GRANTS / 4).for_each(|word| pages.set_u32(4 * word, random.word())),
            16 => (0..offset::GRANTS / 4).for_each(|word| pages.set_u32(4 * word, 0)),
            _ => {
                let at = random.index(offset::GRANTS);
                pages.set_u8(at, random.byte());
            }
        }
    }

    fn lie_in_the_extension(&self, random: &mut Random) {
        use extension::offset as extended;
        let pages = &self.pages;
        let word = |at: usize, value: u32| pages.set_u32(PAGE + (at & !3), value);
        match random.below(8) {
            0 => word(
                extended::HEADER + random.index(extension::HEADER_BYTES),
                random.word(),
            ),
            1 => word(
                extended::ACCEPTANCE + random.index(extension::ACCEPTANCE_BYTES),
                random.word(),
            ),
            // Asks for every index, for none, and takes the victim's requests.
            2 | 3 => {
                let at = random.pick(pages.requests());
                let (reads, writes) = pages.words();
                let near = pages.u32(random.pick(&[reads.prod, reads.cons, writes.prod]));
                let any = random.word();
                let value = random.pick(&[0, 1, ARMED, u32::MAX, ARMED | near, near, any]);
                pages.set_u32(at, value);
            }
            4 => word(extended::EXTRA_GRANTS + random.index(2048), random.word()),
            5 => word(random.index(PAGE), random.word()),
            6 => (0..PAGE).step_by(4).for_each(|at| word(at, 0)),
            _ => (0..PAGE).step_by(4).for_each(|at| word(at, random.word())),
        }
    }

    /// Puts a wrong value into the index at `at`, whose ring has its other index at `beside`.
    fn index(&self, random: &mut Random, at: usize, beside: usize, bytes: usize) {
        let size = size(bytes);
        let (own, other) = (self.pages.u32(at), self.pages.u32(beside));
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
        self.pages.set_u32(at, value);
    }
}

fn size(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(0)
}

/// A number up to `most`, often 0, sometimes `most`.
fn some(random: &mut Random, most: u32) -> u32 {
    match random.below(4) {
        0 => 0,
        1 => most,
        _ => random.below(most.saturating_add(1).max(1)),
    }
}

//! Messages made of words, which the receiver adds up: through a private buffer, or in the ring
//! itself.

use std::time::Instant;

use vchan::Channel;
use vgpu_cli::Failure;

use super::read_exact::read_exact;

/// Bytes of a word.
pub(crate) const WORD_BYTES: u32 = 8;
const WORD: usize = size_of::<u64>();

/// Where the program makes and uses the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// They are copied from or to a buffer.
    Copy,
    /// They are made and used in the ring.
    InPlace,
}

/// The sum of the words 0, 1, 2 … of `count` messages.
pub(crate) fn expected_sum(count: u64, message_bytes: u32) -> u64 {
    let words = count.wrapping_mul(u64::from(message_bytes / WORD_BYTES));
    // n (n - 1) / 2, halving the even factor; wraps around like the sum it is compared with.
    if words.is_multiple_of(2) {
        (words / 2).wrapping_mul(words.wrapping_sub(1))
    } else {
        words.wrapping_mul((words - 1) / 2)
    }
}

/// Writes `count` messages of `buf`'s length, each made of the words 0, 1, 2 and so on.
///
/// # Errors
/// Those of the channel.
pub(crate) fn produce(
    channel: &mut Channel,
    access: Access,
    count: u64,
    buf: &mut [u8],
    deadline: Instant,
) -> Result<(), Failure> {
    let part = part(channel.outgoing_ring_bytes(), buf.len());
    let mut next = 0u64;
    let mut word = || {
        let word = next;
        next = next.wrapping_add(1);
        word
    };
    for _ in 0..count {
        match access {
            Access::Copy => {
                for place in buf.chunks_exact_mut(WORD) {
                    place.copy_from_slice(&word().to_ne_bytes());
                }
                channel.write_all(buf, deadline)?;
            }
            Access::InPlace => {
                let mut left = buf.len();
                while left > 0 {
                    let n = part.min(left);
                    let mut room = channel.reserve(n, deadline)?.up_to(n);
                    room.fill_words(&mut word);
                    channel.commit(n)?;
                    left -= n;
                }
            }
        }
    }
    Ok(())
}

/// Reads `count` messages of `buf`'s length and adds up their words.
///
/// # Errors
/// Those of the channel; the end of the stream is an error too.
pub(crate) fn consume(
    channel: &mut Channel,
    access: Access,
    count: u64,
    buf: &mut [u8],
    deadline: Instant,
) -> Result<u64, Failure> {
    let part = part(channel.incoming_ring_bytes(), buf.len());
    let mut sum = 0u64;
    for _ in 0..count {
        match access {
            Access::Copy => {
                read_exact(channel, buf, deadline)?;
                for word in buf.chunks_exact(WORD) {
                    let word = word.try_into().map_or(0, u64::from_ne_bytes);
                    sum = sum.wrapping_add(word);
                }
            }
            Access::InPlace => {
                let mut left = buf.len();
                while left > 0 {
                    let n = part.min(left);
                    let bytes = channel.peek(n, deadline)?.up_to(n);
                    if bytes.len() < n {
                        return Err(Failure::new(
                            "the other side closed in the middle of the benchmark",
                            "look at its output, then start both sides again",
                        ));
                    }
                    bytes.for_each_word(|word| sum = sum.wrapping_add(word));
                    channel.consume(n)?;
                    left -= n;
                }
            }
        }
    }
    Ok(sum)
}

/// Bytes of a message to make or use at a time: a fraction of the ring, so that both sides work at
/// once, and a whole number of words.
fn part(ring_bytes: usize, message_bytes: usize) -> usize {
    message_bytes.min((ring_bytes / 4).max(WORD))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_that_of_all_words() {
        assert_eq!(expected_sum(0, 8), 0);
        assert_eq!(expected_sum(1, 8), 0);
        assert_eq!(expected_sum(2, 16), 1 + 2 + 3);
        let words = 1u64 << 40;
        assert_eq!(expected_sum(words, 8), (words / 2).wrapping_mul(words - 1));
    }

    #[test]
    fn parts_are_whole_words_of_the_ring() {
        assert_eq!(part(64 << 10, 64 << 10), 16 << 10);
        assert_eq!(part(1 << 20, 64 << 10), 64 << 10);
        assert_eq!(part(1 << 10, 4096), 256);
    }
}

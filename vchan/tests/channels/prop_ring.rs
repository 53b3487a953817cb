//! The ring's arithmetic against a plain queue, for every size and start.

use std::collections::VecDeque;

use proptest::prelude::*;
use vchan::error::RingName;
use vchan::ring::{Consumer, Producer};

#[derive(Debug, Clone)]
enum Step {
    Write(u32),
    Read(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        any::<u32>().prop_map(Step::Write),
        any::<u32>().prop_map(Step::Read)
    ]
}

proptest! {
    /// Honest ends: bytes come out as they went in, and neither side touches bytes of the other.
    #[test]
    fn behaves_like_a_queue(
        order in 10u32..=14,
        start in any::<u32>(),
        steps in proptest::collection::vec(step(), 1..100),
    ) {
        let size = 1u32 << order;
        let mut memory = vec![0u8; size as usize];
        let mut writer = Producer::new(RingName::Left, size, start, start).unwrap();
        let mut reader = Consumer::new(RingName::Left, size, start, start).unwrap();
        let (mut prod, mut cons) = (start, start);
        let (mut queue, mut next) = (VecDeque::new(), 0u8);
        for step in steps {
            match step {
                Step::Write(wish) => {
                    writer.observe(cons).unwrap();
                    prop_assert_eq!(writer.free() as usize, size as usize - queue.len());
                    let len = if writer.free() == 0 { 0 } else { wish % (writer.free() + 1) };
                    let span = writer.writable(len);
                    prop_assert_eq!(span.first + span.second, len as usize);
                    let places = (span.offset..span.offset + span.first).chain(0..span.second);
                    for at in places {
                        memory[at] = next;
                        queue.push_back(next);
                        next = next.wrapping_add(1);
                    }
                    prod = writer.advance(len);
                }
                Step::Read(wish) => {
                    reader.observe(prod).unwrap();
                    prop_assert_eq!(reader.available() as usize, queue.len());
                    let len = wish % (reader.available() + 1);
                    let span = reader.readable(len);
                    let places = (span.offset..span.offset + span.first).chain(0..span.second);
                    for at in places {
                        prop_assert_eq!(Some(memory[at]), queue.pop_front());
                    }
                    cons = reader.advance(len);
                }
            }
        }
    }

    /// A value is accepted exactly if it lies between the known one and the largest possible one.
    #[test]
    fn consumer_accepts_exactly_the_possible(
        order in 10u32..=20,
        cons in any::<u32>(),
        known in any::<u32>(),
        found in any::<u32>(),
    ) {
        let size = 1u32 << order;
        let known = known % (size + 1);
        let mut ring = Consumer::new(RingName::Right, size, cons, cons.wrapping_add(known)).unwrap();
        // Random words are hardly ever close: test near and far ones.
        for found in [found, cons.wrapping_add(found % (2 * size))] {
            let ahead = found.wrapping_sub(cons);
            let possible = ahead >= ring.available() && ahead <= size;
            prop_assert_eq!(ring.observe(found).is_ok(), possible);
            prop_assert!(ring.available() <= size);
            let span = ring.readable(ring.available());
            prop_assert!(span.offset + span.first <= size as usize);
            prop_assert!(span.second <= span.offset || span.second == 0);
        }
    }

    #[test]
    fn producer_accepts_exactly_the_possible(
        order in 10u32..=20,
        cons in any::<u32>(),
        unread in any::<u32>(),
        found in any::<u32>(),
    ) {
        let size = 1u32 << order;
        let unread = unread % (size + 1);
        let prod = cons.wrapping_add(unread);
        let mut ring = Producer::new(RingName::Right, size, cons, prod).unwrap();
        for found in [found, prod.wrapping_sub(found % (2 * size))] {
            let possible = prod.wrapping_sub(found) <= ring.unread();
            prop_assert_eq!(ring.observe(found).is_ok(), possible);
            prop_assert_eq!(ring.free() + ring.unread(), size);
        }
    }
}

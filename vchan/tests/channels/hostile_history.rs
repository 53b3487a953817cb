//! Random histories of lies; a failure prints the shortest one it can be reduced to.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use vchan::Error;
use vchan::layout::Role;

use crate::liar::*;

#[derive(Debug, Clone)]
enum Step {
    Word(usize, u32),
    Byte(usize, u8),
    Ring,
    TryRead(usize),
    Read(usize),
    TryWrite(usize),
    Write(usize),
    Drain,
    Honest(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let index = prop_oneof![any::<u32>(), 0..=RING + 1, Just(u32::MAX)];
    prop_oneof![
        ((0usize..6).prop_map(|word| word * 4), index).prop_map(|(at, v)| Step::Word(at, v)),
        (16usize..24, any::<u8>()).prop_map(|(at, v)| Step::Byte(at, v)),
        Just(Step::Ring),
        (0usize..5000).prop_map(Step::TryRead),
        (0usize..5000).prop_map(Step::Read),
        (0usize..5000).prop_map(Step::TryWrite),
        (0usize..5000).prop_map(Step::Write),
        Just(Step::Drain),
        (0u32..3000).prop_map(Step::Honest),
        (0u32..3000).prop_map(Step::Honest),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// With any history of lies, the victim answers every call and never reads or writes outside
    /// its ring (the copy would panic).
    #[test]
    fn any_history_of_lies_is_survived(
        server in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        let role = if server { Role::Server } else { Role::Client };
        let (mut victim, liar) = pair(role);
        victim.set_spin(Duration::ZERO);
        let soon = || Instant::now() + Duration::from_millis(1);
        let (mut buf, mut broken) = (vec![0; 5000], None);
        for step in steps {
            let outcome = match step {
                Step::Word(at, value) => { liar.page.set_u32(at, value); Ok(()) }
                Step::Byte(at, value) => { liar.page.set_u8(at, value); Ok(()) }
                Step::Ring => { liar.ring(); Ok(()) }
                Step::Honest(len) => {
                    let at = liars_indexes(role).0;
                    liar.page.set_u32(at, liar.page.u32(at).wrapping_add(len));
                    Ok(())
                }
                Step::TryRead(len) => victim.try_read(&mut buf[..len]).map(|_| ()),
                Step::Read(len) => victim.read(&mut buf[..len], soon()).map(|_| ()),
                Step::TryWrite(len) => victim.try_write(&buf[..len]).map(|_| ()),
                Step::Write(len) => victim.write_all(&buf[..len], soon()),
                Step::Drain => victim.drain(soon()),
            };
            if let Err(Error::Peer(error)) = outcome {
                // The first error is the one that stays.
                let first = broken.get_or_insert_with(|| error.clone());
                prop_assert_eq!(&*first, &error);
            } else if let Err(error) = outcome {
                prop_assert!(
                    matches!(error, Error::TimedOut(_) | Error::PeerClosed { .. }),
                    "{:?}", error
                );
            }
        }
    }
}

//! A hundred thousand corrupted states, and the victim's answer in each.
//!
//! `VCHAN_HOSTILE_SEED`, `VCHAN_HOSTILE_FROM` and `VCHAN_HOSTILE_STATES` choose another run; the
//! command `vchan-testing hostile here --seed … --from … --states …` does the same.

use vchan::layout::Role;
use vchan_testing::hostile::{Options, Target, kinds, run};

fn number(name: &str) -> Option<u64> {
    Some(std::env::var(name).ok()?.parse().expect("a number"))
}

#[test]
fn a_hundred_thousand_corrupted_states() {
    let options = Options {
        seed: number("VCHAN_HOSTILE_SEED").unwrap_or(0x7663_6861_6e00_0001),
        from: number("VCHAN_HOSTILE_FROM").unwrap_or(0),
        states: number("VCHAN_HOSTILE_STATES").unwrap_or(100_000),
    };
    println!("hostile: --seed {} --from {}", options.seed, options.from);
    let pairs = [Role::Server, Role::Client].into_iter().flat_map(|victim| {
        kinds().map(move |(format, rings)| Target::pair(victim, format, rings).unwrap())
    });
    let report = run(pairs, &options).unwrap_or_else(|error| panic!("{error}"));
    println!("{report}");
    assert!(report.states >= options.states);
    if options.states >= 100_000 {
        for outcome in [
            "read",
            "written",
            "end of stream",
            "timed out",
            "write index refused",
            "read index refused",
            "live byte refused",
            "refused at the start",
            "peer error in the storm",
        ] {
            let count = report.outcomes.get(outcome).copied().unwrap_or(0);
            assert!(
                count > 100,
                "`{outcome}` only {count} times: the lies do not reach it"
            );
        }
    }
}

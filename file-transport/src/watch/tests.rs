//! Tests of which writes count, look by look.

use super::*;
use proptest::prelude::*;

fn stamp(tick: i128) -> Stamp {
    Stamp {
        inode: 7,
        size: 2,
        modified_ns: tick,
        changed_ns: tick,
    }
}

/// Looks twice, far enough apart for the write to settle, and returns the second action.
fn look(watch: &mut Watch, now: &mut Instant, stamp: Stamp, bytes: &[u8]) -> Action {
    let first = watch.see(Sight::File { stamp, bytes }, *now);
    *now += SETTLE;
    let second = watch.see(Sight::File { stamp, bytes }, *now);
    *now += POLL;
    if first == Action::None { second } else { first }
}

#[test]
fn a_writing_runs_once_and_a_rewriting_again() {
    let mut now = Instant::now();
    let mut watch = Watch::new(Some(stamp(1)), now);
    assert_eq!(look(&mut watch, &mut now, stamp(1), b"0\n"), Action::None);
    assert_eq!(
        look(&mut watch, &mut now, stamp(2), b"1\n"),
        Action::Run(Command::VectorAdd)
    );
    assert_eq!(look(&mut watch, &mut now, stamp(2), b"1\n"), Action::None);
    assert_eq!(
        look(&mut watch, &mut now, stamp(3), b"1\n"),
        Action::Run(Command::VectorAdd)
    );
    assert_eq!(
        look(&mut watch, &mut now, stamp(4), b"0\n"),
        Action::Answer(Response::ready())
    );
}

#[test]
fn each_part_of_the_stamp_tells_a_rewriting() {
    let base = stamp(1);
    for other in [
        Stamp { inode: 8, ..base },
        Stamp { size: 3, ..base },
        Stamp {
            modified_ns: 2,
            ..base
        },
        Stamp {
            changed_ns: 2,
            ..base
        },
    ] {
        let mut now = Instant::now();
        let mut watch = Watch::new(Some(base), now);
        assert_eq!(
            look(&mut watch, &mut now, other, b"2\n"),
            Action::Run(Command::GpuInfo)
        );
    }
}

#[test]
fn a_truncation_makes_the_same_stamp_new() {
    let mut now = Instant::now();
    let mut watch = Watch::new(None, now);
    assert_eq!(
        look(&mut watch, &mut now, stamp(1), b"1\n"),
        Action::Run(Command::VectorAdd)
    );
    let empty = Stamp {
        size: 0,
        ..stamp(1)
    };
    assert_eq!(look(&mut watch, &mut now, empty, b""), Action::None);
    assert_eq!(
        look(&mut watch, &mut now, stamp(1), b"1\n"),
        Action::Run(Command::VectorAdd)
    );
    assert_eq!(watch.see(Sight::Absent, now), Action::None);
    assert_eq!(
        look(&mut watch, &mut now, stamp(1), b"1\n"),
        Action::Run(Command::VectorAdd)
    );
}

#[test]
fn a_command_waits_until_it_is_whole() {
    let start = Instant::now();
    let mut watch = Watch::new(None, start);
    let half = Sight::File {
        stamp: stamp(1),
        bytes: b"1",
    };
    assert_eq!(watch.see(half, start), Action::None);
    assert_eq!(watch.see(half, start + SETTLE), Action::None);
    // `12` and its newline arrive.
    let whole = Sight::File {
        stamp: stamp(2),
        bytes: b"12\n",
    };
    assert_eq!(watch.see(whole, start + SETTLE * 2), Action::None);
    assert!(matches!(
        watch.see(whole, start + SETTLE * 3),
        Action::Answer(_)
    ));
}

#[test]
fn a_number_without_newline_is_refused_after_a_while_and_never_runs() {
    let start = Instant::now();
    let mut watch = Watch::new(None, start);
    let half = Sight::File {
        stamp: stamp(1),
        bytes: b"2",
    };
    assert_eq!(watch.see(half, start), Action::None);
    assert_eq!(
        watch.see(half, start + SETTLE_UNTERMINATED - SETTLE),
        Action::None
    );
    let refused = Response::new(Status::Failure, &CommandError::HalfWritten.to_string());
    assert_eq!(
        watch.see(half, start + SETTLE_UNTERMINATED),
        Action::Answer(refused)
    );
    assert_eq!(
        watch.see(half, start + SETTLE_UNTERMINATED * 2),
        Action::None
    );
    // The newline comes after all.
    let mut now = start + SETTLE_UNTERMINATED * 3;
    assert_eq!(
        look(&mut watch, &mut now, stamp(2), b"2\n"),
        Action::Run(Command::GpuInfo)
    );
}

#[test]
fn a_file_that_stays_empty_is_refused_once() {
    for (nothing, then) in [(&b""[..], stamp(1)), (b"\n", stamp(2))] {
        let start = Instant::now();
        let mut watch = Watch::new(None, start);
        let empty = Sight::File {
            stamp: stamp(1),
            bytes: nothing,
        };
        let refused = Response::new(Status::Failure, &CommandError::Empty.to_string());
        assert_eq!(watch.see(empty, start), Action::None);
        assert_eq!(watch.see(empty, start + SETTLE_EMPTY / 2), Action::None);
        assert_eq!(
            watch.see(empty, start + SETTLE_EMPTY),
            Action::Answer(refused)
        );
        assert_eq!(watch.see(empty, start + SETTLE_EMPTY * 2), Action::None);
        assert_eq!(watch.see(empty, start + SETTLE_EMPTY * 9), Action::None);
        let mut now = start + SETTLE_EMPTY * 10;
        assert_eq!(
            look(&mut watch, &mut now, then, b"1\n"),
            Action::Run(Command::VectorAdd)
        );
    }
}

#[test]
fn an_unusable_file_is_reported_once() {
    let now = Instant::now();
    let mut watch = Watch::new(None, now);
    assert!(matches!(
        watch.see(Sight::Unusable("a link"), now),
        Action::Answer(_)
    ));
    assert_eq!(watch.see(Sight::Unusable("a link"), now), Action::None);
    assert!(matches!(
        watch.see(Sight::Unusable("a pipe"), now),
        Action::Answer(_)
    ));
}

#[test]
fn looks_become_rarer_but_never_rare() {
    let start = Instant::now();
    let mut watch = Watch::new(None, start);
    assert_eq!(watch.pause(start), POLL);
    assert_eq!(watch.pause(start + QUIET * 100), POLL_QUIET);
    let later = start + QUIET * 100;
    watch.see(
        Sight::File {
            stamp: stamp(1),
            bytes: b"",
        },
        later,
    );
    assert_eq!(watch.pause(later), SETTLE);
    assert_eq!(watch.pause(later + POLL), POLL);
}

proptest! {
    /// Whatever is written and whenever it is looked at, no write runs twice.
    #[test]
    fn no_writing_runs_twice(
        looks in proptest::collection::vec((0i128..4, 0u64..120, prop::sample::select(vec![&b"1\n"[..], b"2\n", b"1", b"x\n", b"\n"])), 1..60)
    ) {
        let mut now = Instant::now();
        let mut watch = Watch::new(None, now);
        let mut ran = Vec::new();
        let mut tick = 0;
        for (step, wait_ms, bytes) in looks {
            now += Duration::from_millis(wait_ms);
            tick += step;
            // The bytes belong to the stamp: within one tick they stay.
            let bytes = if step == 0 { b"1\n" } else { bytes };
            let action = watch.see(Sight::File { stamp: stamp(tick), bytes }, now);
            if matches!(action, Action::Run(_)) {
                prop_assert!(!ran.contains(&tick));
                ran.push(tick);
            }
        }
    }

    #[test]
    fn any_bytes_give_an_action(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        let now = Instant::now();
        let mut watch = Watch::new(None, now);
        watch.see(Sight::File { stamp: stamp(1), bytes: &bytes }, now);
        let action = watch.see(Sight::File { stamp: stamp(1), bytes: &bytes }, now + SETTLE_UNTERMINATED);
        let blank = bytes.iter().all(u8::is_ascii_whitespace) && bytes.len() <= crate::two_file_grammar::MAX_COMMAND_BYTES;
        prop_assert_eq!(action == Action::None, blank);
    }
}

//! The cost of polling before sleeping, and the last look before a deadline counts.

use std::thread;
use std::time::{Duration, Instant};

use crate::liar::{self, honest, pair, soon};
use nix::sys::resource::{UsageWho, getrusage};
use vchan::layout::Role;
use vchan::two_channels::{Side, TwoChannels};
use vchan::{Error, Interest};

/// Processor time of this thread.
fn used() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
    [usage.user_time(), usage.system_time()]
        .into_iter()
        .map(|time| {
            Duration::from_secs(u64::try_from(time.tv_sec()).unwrap())
                + Duration::from_micros(u64::try_from(time.tv_usec()).unwrap())
        })
        .sum()
}

/// A peer sends one byte each half millisecond for a second: the share of a processor that waiting
/// for them takes.
fn part_of_a_processor_for_a_trickle(longest_look: Option<Duration>) -> f64 {
    let (mut reader, mut writer) = honest(4096);
    if let Some(longest) = longest_look {
        reader.set_spin(longest);
    }
    let end = Instant::now() + Duration::from_secs(1);
    let trickle = thread::spawn(move || {
        writer.set_spin(Duration::ZERO);
        while Instant::now() < end {
            writer.write_all(&[1], soon()).unwrap();
            thread::sleep(Duration::from_micros(440));
        }
    });
    let (start, used_before) = (Instant::now(), used());
    while reader.read(&mut [0], soon()).unwrap() > 0 {}
    let part = (used() - used_before).as_secs_f64() / start.elapsed().as_secs_f64();
    trickle.join().unwrap();
    part
}

#[test]
fn a_trickle_of_bytes_does_not_keep_the_other_side_looking() {
    for longest in [None, Some(vchan::DEFAULT_SPIN / 8)] {
        let part = part_of_a_processor_for_a_trickle(longest);
        assert!(
            part < 0.5,
            "{part:.2} of a processor, longest look {longest:?}"
        );
    }
}

#[test]
fn any_longest_look_may_be_set() {
    let (mut one, mut other) = honest(4096);
    one.set_spin(Duration::MAX);
    other.set_spin(Duration::MAX);
    let echo = thread::spawn(move || {
        let mut byte = [0];
        while other.read(&mut byte, soon()).unwrap() > 0 {
            other.write_all(&byte, soon()).unwrap();
        }
    });
    for n in 0..100 {
        let mut byte = [0];
        one.write_all(&[n], soon()).unwrap();
        one.read_exact(&mut byte, soon()).unwrap();
        assert_eq!(byte, [n]);
    }
    assert!(matches!(
        one.read(&mut [0], Instant::now() + Duration::from_millis(20)),
        Err(Error::TimedOut(_))
    ));
    drop(one);
    echo.join().unwrap();
}

/// Each kind of wait, for a peer that moves its index and does not ring.
#[test]
fn a_wait_looks_once_more_before_it_times_out() {
    type Wait = fn(&mut vchan::Channel, Instant) -> vchan::Result<()>;
    let waits: [(&str, Wait); 4] = [
        ("read", |channel, until| {
            channel.read(&mut [0], until).map(drop)
        }),
        ("wait", |channel, until| channel.wait(Interest::Read, until)),
        ("wait for both", |channel, until| {
            channel.write_all(&[0; liar::RING as usize], until)?;
            channel.wait(Interest::ReadOrWrite, until)
        }),
        ("either", |channel, until| {
            TwoChannels::new().wait(
                [Side::Channel(channel, Interest::Read), Side::Nothing],
                until,
            )
        }),
    ];
    for role in [Role::Server, Role::Client] {
        for (name, wait) in waits {
            let (mut victim, liar) = pair(role);
            victim.set_spin(Duration::ZERO);
            let page = liar.page.clone();
            let (prod, _) = liar::liars_indexes(role);
            let mover = thread::spawn(move || {
                thread::sleep(Duration::from_millis(50));
                page.set_u32(prod, 1);
            });
            let waited = wait(&mut victim, Instant::now() + Duration::from_millis(300));
            mover.join().unwrap();
            assert!(waited.is_ok(), "{name}, {role:?}: {waited:?}");
            drop(liar);
        }
    }
}

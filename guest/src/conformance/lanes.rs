//! Several lanes of one session, each on a thread of its own.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use crate::client::Client;
use crate::error::Cause;

use super::{Ground, at, check, fails, goodbye, repeated, vectors, works};

/// Elements of the vector add beside which something else runs.
const LONG: usize = 1 << 20;

/// How many of them are tried: a machine may be busy with one lane just then.
const TRIES: u32 = 100;

/// Most lanes that are used at once.
const MANY: u16 = 12;

pub(super) fn two_at_once(ground: &Ground<'_>) -> Result<(), String> {
    beside_a_vector_add(ground, "a ping", |client| {
        client.ping(b"beside").map(drop).map_err(at("ping"))
    })
}

pub(super) fn fences(ground: &Ground<'_>) -> Result<(), String> {
    beside_a_vector_add(ground, "a fence", |client| {
        client.ping_quiet(b"hush").map_err(at("quiet ping"))?;
        let fence = client.fence().map_err(at("fence"))?;
        check(fence.failures.as_slice().is_empty(), || {
            format!("nothing failed, the fence told {fence:?}")
        })
    })
}

/// Runs vector adds on one lane until `step` on another lane has begun and ended within one of them.
fn beside_a_vector_add(
    ground: &Ground<'_>,
    name: &str,
    step: impl Fn(&mut Client) -> Result<(), String> + Sync,
) -> Result<(), String> {
    let mut client = ground.connect()?;
    let mut other = client.lane().map_err(at("a second lane"))?;
    // Which vector add has got part of its sum; 0 between two of them. Relaxed: a number for itself.
    let running = AtomicU32::new(0);
    let (shown, ended) = (AtomicBool::new(false), AtomicBool::new(false));
    let add = |client: &mut Client| -> Result<(), String> {
        let ramp: Vec<f32> = (0..16_381).map(|i| i as f32).collect();
        let doubled: Vec<f32> = ramp.iter().map(|a| a + a).collect();
        let (a, wanted) = (repeated(&ramp, LONG), repeated(&doubled, LONG));
        let mut sum = vec![0.0; LONG];
        for number in 1..=TRIES {
            if shown.load(Ordering::Relaxed) {
                return Ok(());
            }
            sum.fill(f32::NAN);
            let added = client.vector_add_watched(&a, &a, &mut sum, |_| {
                running.store(number, Ordering::Relaxed);
            });
            running.store(0, Ordering::Relaxed);
            added.map_err(at("vector add"))?;
            check(sum == wanted, || {
                let wrong = sum
                    .iter()
                    .zip(&wanted)
                    .position(|(sum, wanted)| sum != wanted);
                format!("element {wrong:?} is wrong")
            })?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let adder = scope.spawn(|| {
            let added = add(&mut client);
            ended.store(true, Ordering::Relaxed);
            added
        });
        let beside = loop {
            let before = running.load(Ordering::Relaxed);
            if let Err(error) = step(&mut other) {
                break Err(error);
            }
            if before != 0 && running.load(Ordering::Relaxed) == before {
                break Ok(());
            }
            if ended.load(Ordering::Relaxed) {
                break Err(format!("{name} never ended within a vector add"));
            }
        };
        shown.store(true, Ordering::Relaxed);
        // Its error comes first: it may be why the other one failed.
        adder.join().map_err(|_| "a thread panicked")??;
        beside
    })?;
    works(&mut other, "on the second lane")?;
    drop(other);
    works(&mut client, "on the first lane")?;
    goodbye(client)
}

pub(super) fn many(client: &mut Client) -> Result<(), String> {
    let lanes = client.limits().max_lanes.get().min(MANY);
    let work = |mut client: Client, number: u16| -> Result<(), String> {
        let payload = vec![number.to_le_bytes()[0]; 40 * usize::from(number) + 1];
        for round in 0..3 {
            for _ in 0..20 {
                client.ping(&payload).map_err(at("ping"))?;
                client.ping_quiet(&payload).map_err(at("quiet ping"))?;
            }
            let fence = client.fence().map_err(at("fence"))?;
            check(fence.failures.as_slice().is_empty(), || {
                format!("nothing failed, the fence told {fence:?}")
            })?;
            vectors::add(&mut client, 40_009 * round + usize::from(number))?;
        }
        Ok(())
    };
    thread::scope(|scope| -> Result<(), String> {
        let mut threads = Vec::new();
        for number in 1..lanes {
            let lane = client.lane().map_err(at("one more lane"))?;
            threads.push(scope.spawn(move || work(lane, number)));
        }
        for thread in threads {
            thread.join().map_err(|_| "a thread panicked")??;
        }
        Ok(())
    })?;
    all_lanes(client)?;
    Ok(())
}

/// As many lanes as were offered, and no more; one that is dropped is free again.
fn all_lanes(client: &Client) -> Result<(), String> {
    let mut lanes = Vec::new();
    for _ in 1..client.limits().max_lanes.get() {
        lanes.push(client.lane().map_err(at("one more lane"))?);
    }
    let error = fails("one lane too many", client.lane())?;
    check(matches!(error.cause(), Cause::Input(_)), || {
        format!("one lane too many: {error}")
    })?;
    if let Some(last) = lanes.last_mut() {
        last.ping(b"the last one").map_err(at("ping"))?;
    }
    drop(lanes.pop());
    drop(client.lane().map_err(at("a lane that is free again"))?);
    Ok(())
}

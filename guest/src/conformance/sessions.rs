//! Sessions beside and after each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::error::Cause;
use crate::options::Options;

use super::{Ground, at, check, goodbye, vectors, works};

pub(super) fn two_at_once(ground: &Ground<'_>) -> Result<(), String> {
    let mut one = ground.connect()?;
    let mut other = ground.connect()?;
    check(one.epoch() != other.epoch(), || {
        format!("both sessions are {:#018x}", one.epoch())
    })?;
    let work = |client: &mut crate::Client, first: usize| -> Result<(), String> {
        for round in 0..3 {
            vectors::add(client, first + 50_021 * round)?;
            client.ping(&[1; 500]).map_err(at("ping"))?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let beside = scope.spawn(|| work(&mut one, 1000));
        work(&mut other, 7)?;
        beside.join().map_err(|_| "a thread panicked")?
    })?;
    goodbye(one)?;
    works(&mut other, "after the other's goodbye")?;
    goodbye(other)
}

pub(super) fn epochs(ground: &Ground<'_>) -> Result<(), String> {
    let mut epochs = Vec::new();
    for _session in 0..3 {
        let client = ground.connect()?;
        epochs.push(client.epoch());
        goodbye(client)?;
    }
    let mut distinct = epochs.clone();
    distinct.sort_unstable();
    distinct.dedup();
    check(distinct.len() == epochs.len(), || {
        format!("epochs are not unique: {epochs:x?}")
    })
}

pub(super) fn goodbye_ends(ground: &Ground<'_>) -> Result<(), String> {
    for _session in 0..3 {
        let mut client = ground.connect()?;
        works(&mut client, "before goodbye")?;
        goodbye(client)?;
    }
    Ok(())
}

pub(super) fn dropped(ground: &Ground<'_>) -> Result<(), String> {
    // Without a word, and nothing under way.
    drop(ground.connect()?);
    // In the middle of a request: the interrupt leaves it where it is.
    let interrupt = Arc::new(AtomicBool::new(false));
    let options = Options {
        interrupt: Some(Arc::clone(&interrupt)),
        ..ground.options.clone()
    };
    let mut client = ground.connect_with(&options).map_err(at("connect"))?;
    let epoch = client.epoch();
    let n = 1 << 21;
    let (a, mut sum) = (vec![1.0; n], vec![0.0; n]);
    let outcome = client.vector_add_watched(&a, &a, &mut sum, |_| {
        interrupt.store(true, Ordering::Relaxed);
    });
    let error = super::fails("an interrupted vector add", outcome)?;
    check(matches!(error.cause(), Cause::Interrupted), || {
        format!("an interrupted vector add: {error}")
    })?;
    check(error.epoch() == Some(epoch), || {
        format!("the error is of session {:x?}", error.epoch())
    })?;
    drop(client);
    let mut next = ground.connect()?;
    works(&mut next, "in the next session")?;
    goodbye(next)
}

//! The thread that does a transport's I/O.

use std::time::Instant;

use super::INBOX;
use super::queues::{Shared, State};
use crate::session::directory::SessionDirectory;
use crate::session::file_name::CLAIM;
use crate::session::mount_cache_test::CacheTest;
use crate::session::pace::{self, pause};
use crate::session::rules::{Exchange, Fault, Looked, Piece, SILENCE};
use crate::session::segment::{HEADER, Role};

/// Notifies the caller that the thread has ended, also when it panicked.
pub(super) struct OnEnd<'a>(pub(super) &'a Shared);

impl Drop for OnEnd<'_> {
    fn drop(&mut self) {
        self.0.lock().over = true;
        self.0.tell_caller();
    }
}

/// The thread: looks, writes, rests.
pub(super) fn work(
    shared: &Shared,
    mut directory: SessionDirectory,
    mut exchange: Exchange,
    mut test: Option<CacheTest>,
) {
    let role = exchange.role();
    let end = run(shared, &mut directory, &mut exchange, &mut test);
    let vanished = matches!(end, Err(Fault::Vanished));
    let dropped = end.is_ok();
    match end {
        Ok(()) => {}
        // The guest removes the directory as soon as it has read all.
        Err(Fault::Vanished) if role == Role::Mediator && exchange.has_ended() => {
            shared.lock().was_read_whole = true;
        }
        Err(fault) => {
            log::debug!("{}: {fault}", directory.path().display());
            shared.lock().fault = Some(fault.into());
        }
    }
    shared.tell_caller();
    if !vanished {
        leave(&mut directory, &mut exchange, dropped);
    }
}

/// Notifies the other side that this one ends, if it does not know, and removes what can be
/// removed.
fn leave(directory: &mut SessionDirectory, exchange: &mut Exchange, dropped: bool) {
    let finished = exchange.is_finished();
    let give_up = |exchange: &mut Exchange, directory: &mut SessionDirectory| {
        if let Err(fault) = exchange.give_up(directory, Instant::now()) {
            log::debug!("{}: {fault}", directory.path().display());
        }
    };
    if !finished {
        give_up(exchange, directory);
    }
    // The guest made the directory. A mediator sweeps what it cannot remove. A mediator that has
    // taken the session reads the reason of its end there.
    let taken = dropped && !finished && directory.lookup(CLAIM);
    if exchange.role() == Role::Guest && !taken && !directory.clear() && !finished {
        give_up(exchange, directory);
    }
}

fn run(
    shared: &Shared,
    directory: &mut SessionDirectory,
    exchange: &mut Exchange,
    test: &mut Option<CacheTest>,
) -> Result<(), Fault> {
    let role = exchange.role();
    if let Some(test) = test {
        // The first beat is what a mediator waits for.
        exchange.beat(directory, Instant::now())?;
        test.before_listing(directory, || shared.lock().dropped);
    }
    let mut moved_at = Instant::now();
    let mut dropped_at = None;
    loop {
        let (space, dropped, closing) = {
            let mut state = shared.lock();
            state.looks_begun += 1;
            let space = if state.closing || state.dropped {
                usize::MAX
            } else {
                INBOX.saturating_sub(state.inbox_bytes)
            };
            (space, state.dropped, state.closing)
        };
        let over = exchange.is_finished();
        // No caller waits for the other side to take the rest, but the other side still has time
        // for it.
        let since = dropped.then(|| *dropped_at.get_or_insert_with(Instant::now));
        let late = since.is_some_and(|since| since.elapsed() >= SILENCE);
        if dropped && (!closing || over) {
            return Ok(());
        }
        let looked = exchange.look(directory, space, Instant::now())?;
        let mut moved = looked.news;
        if looked.probed && role == Role::Mediator {
            directory.change_probe();
        }
        let tested = test
            .as_mut()
            .is_some_and(|test| test.look(directory, exchange.is_connected(), looked.probed));
        if tested && let Some(test) = test.take() {
            shared.lock().remarks = test.remarks();
        }
        deliver(shared, exchange, looked, test.is_none());
        tell_look(shared);
        let mut next = || next_piece(shared);
        moved |= exchange.send(directory, &mut next, Instant::now())?;
        exchange.beat(directory, Instant::now())?;
        deliver(shared, exchange, Looked::default(), test.is_none());
        if late {
            return Ok(());
        }
        let now = Instant::now();
        if moved {
            moved_at = now;
        }
        rest(shared, exchange, moved, moved_at, now);
    }
}

/// Marks the look as over and its results as delivered, for callers whose deadline has passed.
fn tell_look(shared: &Shared) {
    let mut state = shared.lock();
    state.looks_ended = state.looks_begun;
    if state.look_now {
        shared.tell_caller();
    }
}

/// Hands the results of a look to the caller.
fn deliver(shared: &Shared, exchange: &Exchange, looked: Looked, tested: bool) {
    let mut state = shared.lock();
    let before = (state.connected, state.ended, state.was_read_whole);
    let something = !looked.pieces.is_empty();
    if !state.closing && !state.dropped {
        for piece in looked.pieces {
            state.inbox_bytes += piece.bytes().len();
            state.inbox.push_back(piece);
        }
        state.inbox_full = looked.more;
    }
    state.connected |= exchange.is_connected() && tested;
    state.ended |= exchange.has_read_all();
    state.was_read_whole |= exchange.was_read_whole();
    if something || before != (state.connected, state.ended, state.was_read_whole) {
        shared.tell_caller();
    }
}

/// Takes the next piece out of the outbox: a full one, or a partial one after a flush.
fn next_piece(shared: &Shared) -> Option<Piece> {
    let mut state = shared.lock();
    if !state.has_to_send() {
        return None;
    }
    let file = state.outbox.pop_front().unwrap_or_else(|| vec![0; HEADER]);
    state.outbox_bytes -= file.len() - HEADER;
    state.flushed &= !state.outbox.is_empty();
    let last = state.closing && state.outbox.is_empty();
    shared.tell_caller();
    Some(Piece { file, last })
}

/// Waits until there is something to do, or it is time to look again.
fn rest(shared: &Shared, exchange: &Exchange, moved: bool, moved_at: Instant, now: Instant) {
    if moved {
        return;
    }
    let mut time = pause(now.saturating_duration_since(moved_at));
    if exchange.is_held_up() {
        time = time.max(pace::SLOWEST / 5);
    }
    let due = exchange.beat_due_at().saturating_duration_since(now);
    let time = time.min(due.max(pace::FASTEST));
    let can_send = exchange.has_room() && !exchange.is_held_up();
    let state = shared.lock();
    let idle =
        |state: &mut State| !(state.dropped || state.look_now || can_send && state.has_to_send());
    // With room in the inbox again there is something to read at once; the notification announces
    // it.
    if state.inbox_full {
        drop(shared.for_thread.wait_timeout(state, time));
    } else {
        drop(shared.for_thread.wait_timeout_while(state, time, idle));
    }
}

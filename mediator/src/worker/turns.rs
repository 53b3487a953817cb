//! This session's turns on the device: asked of the broker, which shares the device's time by weight.
//!
//! Work goes to the device only in a turn. While nobody else wants the device the turn has no end, and nothing is
//! asked or told. The broker's thread and the session's both change the state; a word to the broker is said under
//! its lock, so that words come in the order of what they mean.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vgpu_transport::Waker;

/// How long a turn is kept with nothing to do: as long as a program may take from the end of one kernel, for which
/// it waits, to its next launch. The broker charges for it.
const IDLE_TURN_LIMIT: Duration = Duration::from_micros(300);

/// A worker's message about its turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Said {
    /// Its turn is over.
    pub over: bool,
    /// It wants one.
    pub want: bool,
    /// Which of its guest's devices it is about, from 0.
    pub device: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No turn.
    Without,
    /// No turn, and one was asked for.
    Asked,
    /// A turn without an end.
    Free,
    /// A turn of so long, from the first work in it.
    Limited {
        most: Duration,
        since: Option<Instant>,
    },
}

struct State {
    stage: Stage,
    /// Which of its guest's devices the session uses.
    device: u32,
    /// Nanoseconds that a kernel takes, as a running mean; 0 is not known.
    typical: u64,
    /// Works in the device's queue.
    queued: usize,
    /// A work waits for a turn.
    held: bool,
    /// Since when there is nothing to do in a limited turn.
    idle: Option<Instant>,
    /// Raised when a turn has come, or is to end.
    waker: Option<Arc<Waker>>,
}

/// The turns of one session.
pub struct Turns {
    state: Mutex<State>,
    /// Tells the broker. Without one the device is not shared.
    tell: Option<Box<dyn Fn(Said) + Send + Sync>>,
    idle_limit: Duration,
}

impl std::fmt::Debug for Turns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Turns")
            .field("stage", &self.lock().stage)
            .finish_non_exhaustive()
    }
}

impl Default for Turns {
    /// Those of a device that is not shared.
    fn default() -> Self {
        Self::with(Stage::Free, None)
    }
}

impl Turns {
    /// Turns that the broker gives, which `tell` speaks to.
    pub fn shared(tell: impl Fn(Said) + Send + Sync + 'static) -> Self {
        Self::with(Stage::Without, Some(Box::new(tell)))
    }

    fn with(stage: Stage, tell: Option<Box<dyn Fn(Said) + Send + Sync>>) -> Self {
        Self {
            state: Mutex::new(State {
                stage,
                device: 0,
                typical: 0,
                queued: 0,
                held: false,
                idle: None,
                waker: None,
            }),
            tell,
            idle_limit: IDLE_TURN_LIMIT,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No step leaves it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session uses this one of its guest's devices, and has not used another.
    pub fn select(&self, device: u32) {
        self.lock().device = device;
    }

    /// A device with nothing in its queue is opened; `waker` is raised when a turn comes.
    pub fn open(&self, waker: &Arc<Waker>) {
        self.lock().waker = Some(Arc::clone(waker));
    }

    /// The device is closed, and with it goes what was in its queue.
    pub fn close(&self) {
        let mut state = self.lock();
        state.waker = None;
        state.queued = 0;
        state.held = false;
        state.idle = None;
        self.settle(&mut state);
    }

    /// Whether a piece of work may go to the device now. If so it counts as there, until
    /// [`is_over`](Self::is_over); if not, a turn is asked for.
    pub fn begin(&self) -> bool {
        let mut state = self.lock();
        let may = state.may_begin();
        state.queued += usize::from(may);
        state.held = !may;
        state.idle = None;
        if !may {
            self.settle(&mut state);
        }
        may
    }

    /// Whether the end of what is queued ends the turn, so that it should be noticed at once.
    pub fn is_ending(&self) -> bool {
        let state = self.lock();
        matches!(state.stage, Stage::Limited { .. }) && state.queued > 0
    }

    /// When [`look`](Self::look) has something to do.
    pub fn due(&self) -> Option<Instant> {
        Some(self.lock().idle? + self.idle_limit)
    }

    /// Ends a turn in which there was nothing to do for a while.
    pub fn look(&self) {
        let mut state = self.lock();
        if state.idle.is_some() {
            self.settle(&mut state);
        }
    }

    /// The work that waited is not wanted any more.
    pub fn forget(&self) {
        let mut state = self.lock();
        state.held = false;
        self.settle(&mut state);
    }

    /// A work has ended; as a kernel it ran for so long.
    pub fn is_over(&self, ns: u64) {
        let mut state = self.lock();
        state.queued = state.queued.saturating_sub(1);
        state.typical = match (state.typical, ns) {
            (typical, 0) => typical,
            (0, ns) => ns,
            (typical, ns) => typical - typical / 8 + ns / 8,
        };
        if state.queued == 0 && !state.held && matches!(state.stage, Stage::Limited { .. }) {
            state.idle = Some(Instant::now());
        }
        self.settle(&mut state);
    }

    /// The broker gives a turn: without an end, or of so long.
    pub fn give(&self, most: Option<Duration>) {
        let mut state = self.lock();
        match (state.stage, most) {
            (Stage::Asked, None) => state.stage = Stage::Free,
            (Stage::Asked, Some(most)) => state.stage = Stage::Limited { most, since: None },
            // Only a turn that was asked for is given.
            (Stage::Without | Stage::Free | Stage::Limited { .. }, _) => return,
        }
        self.settle(&mut state);
        state.wake();
    }

    /// Others want the device: the turn ends after so long.
    pub fn end_after(&self, most: Duration) {
        let mut state = self.lock();
        if state.stage == Stage::Free {
            let since = Some(Instant::now());
            state.stage = Stage::Limited { most, since };
            self.settle(&mut state);
            state.wake();
        }
    }

    /// Ends a turn that is used up or not needed, and asks for one if work waits for it.
    fn settle(&self, state: &mut State) {
        if self.tell.is_none() {
            return;
        }
        let want = state.held;
        match state.stage {
            Stage::Limited { most, since } if state.queued == 0 => {
                let is_used = || since.is_some_and(|since| since.elapsed() >= most);
                let lingers = || {
                    state
                        .idle
                        .is_some_and(|idle| idle.elapsed() < self.idle_limit)
                };
                // Also at its end it is kept for a moment, for the program to say that it wants the next one: a guest
                // of which that is not known falls behind those that wait.
                let is_over = match want {
                    true => is_used(),
                    false => !lingers(),
                };
                if is_over {
                    self.say(state.device, true, want);
                    state.idle = None;
                    state.stage = match want {
                        true => Stage::Asked,
                        false => Stage::Without,
                    };
                }
            }
            Stage::Without if want => {
                self.say(state.device, false, true);
                state.stage = Stage::Asked;
            }
            _ => {}
        }
    }

    fn say(&self, device: u32, over: bool, want: bool) {
        if let Some(tell) = &self.tell {
            tell(Said { over, want, device });
        }
    }
}

impl State {
    fn may_begin(&mut self) -> bool {
        match &mut self.stage {
            Stage::Without | Stage::Asked => false,
            Stage::Free => true,
            Stage::Limited { most, since } => {
                // A turn is good for one work at least, however late this process heard of it.
                let Some(since) = *since else {
                    *since = Some(Instant::now());
                    return true;
                };
                let left = most.saturating_sub(since.elapsed());
                match self.queued as u64 {
                    0 => !left.is_zero(),
                    // As many at once as are likely to fit into the turn.
                    queued => {
                        let all = self.typical.saturating_mul(queued + 1);
                        self.typical > 0 && Duration::from_nanos(all) <= left
                    }
                }
            }
        }
    }

    fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.raise();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};
    use std::thread;

    use super::*;

    const MS: u64 = 1_000_000;

    /// A turn that does not end while a test runs.
    const LONG: Duration = Duration::from_secs(3600);

    fn turns() -> (Turns, Receiver<Said>) {
        let (tell, told) = channel();
        let turns = Turns::shared(move |said| tell.send(said).unwrap());
        (turns, told)
    }

    impl Turns {
        /// Time passes, and the turn is used up.
        fn pass(&self, time: Duration) {
            if let Stage::Limited { most, .. } = &mut self.lock().stage {
                *most = most.saturating_sub(time);
            }
        }
    }

    fn said(told: &Receiver<Said>) -> Vec<(bool, bool)> {
        told.try_iter().map(|said| (said.over, said.want)).collect()
    }

    #[test]
    fn a_turn_without_an_end_costs_no_words() {
        let (turns, told) = turns();
        assert!(!turns.begin());
        assert!(!turns.begin());
        assert_eq!(said(&told), [(false, true)]);
        turns.give(None);
        for _ in 0..1000 {
            assert!(turns.begin());
            turns.is_over(MS);
            turns.look();
        }
        assert_eq!((said(&told), turns.due()), (vec![], None));
        // Others want it: it is idle, and gives it up at once.
        turns.end_after(LONG);
        assert_eq!(said(&told), [(true, false)]);
        assert!(!turns.begin());
        assert_eq!(said(&told), [(false, true)]);
    }

    #[test]
    fn a_limited_turn_ends_when_it_is_used_up_and_the_device_is_done() {
        let (turns, told) = turns();
        assert!(!turns.begin());
        turns.give(Some(Duration::from_millis(1)));
        thread::sleep(Duration::from_millis(2));
        // However late: it is good for one.
        assert!(turns.begin());
        thread::sleep(Duration::from_millis(2));
        assert!(!turns.begin());
        assert!(turns.is_ending());
        assert_eq!(said(&told), [(false, true)]);
        turns.is_over(2 * MS);
        // The work that waits wants the next turn.
        assert_eq!(said(&told), [(true, true)]);
        turns.give(Some(LONG));
        turns.forget();
        assert_eq!(said(&told), [(true, false)]);
    }

    #[test]
    fn several_short_kernels_are_queued_at_once() {
        let (turns, told) = turns();
        assert!(!turns.begin());
        turns.give(Some(LONG));
        // How long they take is not known: one at a time.
        assert!(turns.begin());
        assert!(!turns.begin());
        turns.is_over(1 + u64::try_from((LONG / 10).as_nanos()).unwrap());
        let queued = (0..20).take_while(|_| turns.begin()).count();
        assert_eq!(queued, 9);
        for _ in 0..queued {
            turns.is_over(MS);
        }
        // There is time left for the one that waits.
        assert!(turns.begin());
        assert_eq!(said(&told), [(false, true)]);
    }

    #[test]
    fn a_program_that_waits_for_each_kernel_keeps_its_turn() {
        let (mut turns, told) = turns();
        turns.idle_limit = LONG;
        assert!(!turns.begin());
        turns.give(Some(LONG));
        for _ in 0..100 {
            assert!(turns.begin());
            turns.is_over(MS);
            turns.look();
        }
        assert_eq!(said(&told), [(false, true)]);
        // So it does at the turn's end, until it has said that it wants another.
        turns.pass(LONG);
        turns.look();
        assert_eq!(said(&told), []);
        assert!(!turns.begin());
        assert_eq!(said(&told), [(true, true)]);
        turns.give(Some(LONG));
        assert!(turns.begin());
        turns.is_over(MS);
        // One that has no other gives it back after a while.
        assert!(turns.due().unwrap() > Instant::now());
        turns.idle_limit = Duration::ZERO;
        turns.look();
        assert_eq!((said(&told), turns.due()), (vec![(true, false)], None));
    }

    #[test]
    fn a_turn_that_nobody_wants_any_more_is_given_back() {
        let (turns, told) = turns();
        assert!(!turns.begin());
        turns.forget();
        turns.give(Some(LONG));
        assert_eq!(said(&told), [(false, true), (true, false)]);
        // A message that the broker never sends changes nothing.
        turns.give(Some(LONG));
        turns.end_after(LONG);
        assert_eq!(said(&told), []);
    }

    #[test]
    fn a_device_that_is_closed_gives_its_turn_back() {
        let (turns, told) = turns();
        assert!(!turns.begin());
        turns.give(Some(LONG));
        assert!(turns.begin());
        assert!(!turns.begin());
        turns.close();
        assert_eq!(said(&told), [(false, true), (true, false)]);
    }

    #[test]
    fn a_device_that_is_not_shared_waits_for_nobody() {
        let turns = Turns::default();
        for _ in 0..10 {
            assert!(turns.begin());
        }
        turns.is_over(MS);
    }
}

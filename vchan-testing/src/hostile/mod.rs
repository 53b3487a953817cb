//! A peer that breaks every rule it can, against a victim whose every answer is checked.
//!
//! A hundred thousand corrupted states do not need a hundred thousand rendezvous: both sides keep
//! the pages of a few honest channels (*targets*) and begin channel after channel on them. The run
//! has two parts.
//!
//! 1. **In lock-step.** The liar corrupts the pages of every target and stands still; the victim
//!    makes some calls on each, and knows from the pages what every call must answer and which
//!    bytes may change. All of it follows from a seed, so that a failure can be reproduced.
//! 2. **In a storm.** The liar goes on lying while the victim reads, writes and begins anew.
//!
//! The same code runs in one process over [`local`](vchan::local), and between two domains over
//! granted pages (`vchan-testing hostile …`).

mod guard;
mod liar;
mod offer;
mod oracle;
mod pages;
mod random;
mod report;
mod target;
mod two_processes;
mod victim;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use liar::Liar;
use random::Random;
use target::LARGEST;
use victim::Victim;

pub use offer::Offer;
pub use report::Report;
pub use target::{Target, kinds};
pub use two_processes::{lie_to, run_victim};

/// A result whose error is a text worth reading.
pub(crate) type Said<T> = Result<T, String>;

/// Rounds for which a target's channel may last.
const BLOCK: u64 = 8;

/// Time without any progress after which the run is given up: a hang, not a slow machine.
const HANG_LIMIT: Duration = Duration::from_secs(120);

/// Identifies the users of one seed, each with its own sequence.
mod side {
    pub(super) const PLAN: u64 = 0;
    pub(super) const LIAR: u64 = 1;
    pub(super) const VICTIM: u64 = 2;
    pub(super) const STORM: u64 = 3;
}

/// The options of a run.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Seed of everything in lock-step.
    pub seed: u64,
    /// The first round; the blocks before it are left out.
    pub from: u64,
    /// Corrupted states to reach in lock-step. A fifth more follow in a storm.
    pub states: u64,
}

impl Options {
    /// Calls in the storm.
    fn storm(&self) -> u64 {
        self.states / 5
    }

    fn first_round(&self) -> u64 {
        self.from - self.from % BLOCK
    }
}

/// A round's plan for a target.
#[derive(Debug, Clone, Copy)]
struct Plan {
    first_index: u32,
    /// If false the liar behaves, so that channels make progress.
    lies: bool,
}

impl Plan {
    fn of(seed: u64, round: u64, target: usize, fresh: bool) -> Self {
        let mut random = Random::of(seed, round, target as u64, side::PLAN);
        Self {
            first_index: match random.below(3) {
                0 => 0,
                1 => u32::MAX - random.below(20_000),
                _ => random.word(),
            },
            lies: !fresh || random.once_in(2),
        }
    }
}

/// Two kinds of payload: the bytes that may be at each offset of a ring.
static PAYLOADS: [[u8; LARGEST]; 2] = [payload(7), payload(104)];

const fn payload(start: usize) -> [u8; LARGEST] {
    let mut bytes = [0; LARGEST];
    let mut at = 0;
    while at < LARGEST {
        // 251 is prime: no two pages look alike.
        bytes[at] = ((at * 31 + start) % 251).to_le_bytes()[0];
        at += 1;
    }
    bytes
}

/// The targets that begin anew, as a bit set.
type Fresh = u64;

fn is_fresh(fresh: Fresh, round: u64, target: usize) -> bool {
    round.is_multiple_of(BLOCK) || fresh >> target & 1 == 1
}

/// The liar's half of a round.
fn corrupt(liars: &[Liar], seed: u64, round: u64, fresh: Fresh) {
    for (target, liar) in liars.iter().enumerate() {
        let fresh = is_fresh(fresh, round, target);
        let plan = Plan::of(seed, round, target, fresh);
        if fresh {
            liar.reset(plan.first_index);
        }
        let mut random = Random::of(seed, round, target as u64, side::LIAR);
        match plan.lies {
            true => liar.lie(&mut random),
            false => liar.behave(&mut random),
        }
    }
}

/// The victim's half; returns the targets that need new pages.
fn check_round(
    victims: &mut [Victim],
    seed: u64,
    round: u64,
    fresh: Fresh,
    report: &mut Report,
) -> Said<Fresh> {
    let mut ended = 0;
    for (target, victim) in victims.iter_mut().enumerate() {
        let fresh = is_fresh(fresh, round, target);
        let plan = Plan::of(seed, round, target, fresh);
        let mut random = Random::of(seed, round, target as u64, side::VICTIM);
        let at = |what: String| {
            format!(
                "{what}\n in target {target} of round {round}; again with --seed {seed} --from {round}"
            )
        };
        if fresh {
            victim.begin(plan.first_index, report).map_err(at)?;
        }
        let over = match victim.has_channel() {
            true => victim.step(&mut random, report).map_err(at)?,
            false => true, // refused to begin
        };
        ended |= Fresh::from(over) << target;
        report.states += u64::from(plan.lies);
    }
    Ok(ended)
}

/// Ends channels before their pages are reset: ending a channel writes into them.
fn let_go(victims: &mut [Victim], next_round: u64) {
    if next_round.is_multiple_of(BLOCK) {
        victims.iter_mut().for_each(Victim::end);
    }
}

/// The victim's half of the storm.
fn survive_storm(
    victims: &mut [Victim],
    options: &Options,
    watchdog: &Watchdog,
    report: &mut Report,
) -> Said<()> {
    let mut random = Random::of(options.seed, 0, 0, side::VICTIM);
    for call in 0..options.storm() {
        watchdog.pat(u64::MAX - call);
        let target = random.index(victims.len());
        let victim = &mut victims[target];
        let at = |what: String| format!("{what}\n in target {target}, call {call} of the storm");
        if !victim.has_channel() {
            let first_index = random.word();
            victim.reset(first_index);
            victim.begin_in_storm(first_index, report).map_err(at)?;
        }
        if victim.has_channel() {
            victim.storm_round(&mut random, report).map_err(at)?;
        }
        report.states += 1;
    }
    Ok(())
}

/// The liar's half, until `stop`.
fn storm(liars: &[Liar], seed: u64, mut stop: impl FnMut() -> bool) {
    let mut random = Random::of(seed, 0, 0, side::STORM);
    while !stop() {
        for _ in 0..64 {
            liars[random.index(liars.len())].lie(&mut random);
        }
    }
}

/// Ends the process when nothing has happened for [`HANG_LIMIT`].
#[derive(Debug)]
struct Watchdog {
    rounds: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Watchdog {
    fn start(seed: u64) -> Self {
        let (rounds, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let watched = (Arc::clone(&rounds), Arc::clone(&stop));
        thread::spawn(move || {
            let (rounds, stop) = watched;
            let (mut last, mut since) = (0, Instant::now());
            while !stop.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(200));
                let now = rounds.load(Ordering::Relaxed);
                if now != last {
                    (last, since) = (now, Instant::now());
                } else if since.elapsed() > HANG_LIMIT {
                    eprintln!("hostile: a call hangs; again with --seed {seed} --from {now}");
                    std::process::abort();
                }
            }
        });
        Self { rounds, stop }
    }

    /// Notes progress.
    fn pat(&self, round: u64) {
        // In the storm this is a count of calls instead; only the change matters.
        self.rounds.store(round, Ordering::Relaxed);
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Runs both sides over pairs of ends: the liar's, then the victim's.
///
/// # Errors
/// The victim's violation, and how to reproduce it.
pub fn run(
    pairs: impl IntoIterator<Item = (Target, Target)>,
    options: &Options,
) -> Result<Report, String> {
    let mut report = Report::default();
    let (mut liars, mut victims) = (Vec::new(), Vec::new());
    for (liar, victim) in pairs {
        liars.push(Liar::new(liar.0));
        victims.push(Victim::new(victim.0, &mut report));
    }
    let watchdog = Watchdog::start(options.seed);
    let (mut round, mut fresh) = (options.first_round(), 0);
    while report.states < options.states {
        watchdog.pat(round);
        corrupt(&liars, options.seed, round, fresh);
        fresh = check_round(&mut victims, options.seed, round, fresh, &mut report)?;
        round += 1;
        let_go(&mut victims, round);
    }
    victims.iter_mut().for_each(Victim::end);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| storm(&liars, options.seed, || over.load(Ordering::Relaxed)));
        let outcome = survive_storm(&mut victims, options, &watchdog, &mut report);
        over.store(true, Ordering::Relaxed);
        outcome
    })?;
    Ok(report)
}

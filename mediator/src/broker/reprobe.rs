//! Looking again for an executor that was not there at the start.
//!
//! At boot a driver may come later than the mediator, and a mediator behind a relay may be started
//! later. The looks are far between soon, and each is a process of its own, as the first one was.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::Broker;
use super::peer::Peer;
use super::probe_process::{Answer, ChosenExecutor, Probe, Verdict};
use super::session_worker::SessionWorker;
use super::systemd::notify;
use crate::executor::ExecutorChoice;
use crate::worker::confinement::Confine;
use crate::worker::link::Ask;

/// First and longest pause between two looks.
const PAUSE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));

/// The next look, or the one under way.
#[derive(Debug)]
pub(super) struct Reprobe {
    state: State,
    pause: Duration,
}

#[derive(Debug)]
enum State {
    Waiting(Instant),
    Looking(Probe),
    /// It was killed and is still there: no other is started beside it.
    Ending(Probe),
}

impl Reprobe {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            state: State::Waiting(now + PAUSE.0),
            pause: PAUSE.0,
        }
    }

    /// When something is to be done; a probe that hangs in the kernel is looked at now and then.
    pub(super) fn deadline(&self, now: Instant) -> Instant {
        match &self.state {
            State::Waiting(until) => *until,
            State::Looking(probe) => probe.deadline,
            State::Ending(_) => now + PAUSE.0,
        }
    }

    /// The descriptor that becomes readable with an answer.
    pub(super) fn answer(&self) -> Option<BorrowedFd<'_>> {
        match &self.state {
            State::Looking(probe) => Some(probe.as_fd()),
            State::Waiting(_) | State::Ending(_) => None,
        }
    }

    fn put_off(&mut self, now: Instant) {
        self.state = State::Waiting(now + self.pause);
        self.pause = (self.pause * 2).min(PAUSE.1);
    }
}

impl Drop for Reprobe {
    fn drop(&mut self) {
        if let State::Looking(probe) = &mut self.state {
            probe.kill();
        }
    }
}

impl Broker<'_> {
    /// Looks again if it is time, and takes what a look has brought.
    pub(super) fn look_again(&mut self, now: Instant) {
        let Some(reprobe) = &mut self.reprobe else {
            return;
        };
        let choice = match &self.config.executor {
            // `auto` would be content with the CPU.
            ExecutorChoice::Auto => &ExecutorChoice::Cuda,
            choice => choice,
        };
        match &mut reprobe.state {
            State::Waiting(until) if *until <= now => {
                match Probe::start(choice, self.config.relay_secret.as_deref(), now) {
                    Ok(probe) => reprobe.state = State::Looking(probe),
                    Err(error) => {
                        log::debug!("looking again: {error}");
                        reprobe.put_off(now);
                    }
                }
            }
            State::Waiting(_) => {}
            State::Ending(probe) => {
                if probe.has_ended() {
                    reprobe.put_off(now);
                }
            }
            State::Looking(probe) => {
                let Some(answer) = probe.answer(now) else {
                    return;
                };
                probe.kill();
                let executor = match answer {
                    Answer::Verdict(Verdict::Executor(executor)) => Some(executor),
                    Answer::Verdict(Verdict::Error(why)) | Answer::Nothing(why) => {
                        log::debug!("looking again: {why}");
                        None
                    }
                    Answer::Closed => None,
                };
                if let State::Looking(probe) =
                    std::mem::replace(&mut reprobe.state, State::Waiting(now))
                {
                    reprobe.state = State::Ending(probe);
                }
                if let Some(mut executor) = executor {
                    if *choice == ExecutorChoice::Cuda {
                        executor.reason =
                            "CUDA works here by now: a trial kernel gave the right result"
                                .to_owned();
                    }
                    let choice = choice.clone();
                    let chosen = ChosenExecutor {
                        choice,
                        executor,
                        stands_in: false,
                    };
                    self.take_executor(chosen, now);
                }
            }
        }
    }

    /// The workers that wait for guests without an end: of directories, and of channels on offer.
    pub(super) fn waiting_without_end(&self) -> Vec<u64> {
        let waits = |session: &&SessionWorker| {
            matches!(session.peer, Peer::File(_)) || self.is_offering(session.id)
        };
        let waiting = self.sessions.values().filter(waits);
        waiting.map(|session| session.id).collect()
    }

    /// Asks these workers to end. Those that wait for guests are started again.
    pub(super) fn ask_to_end(&mut self, workers: &[u64]) {
        for id in workers {
            if let Some(session) = self.sessions.get_mut(id) {
                session.ask(Ask::Kick);
            }
        }
    }

    /// From here on sessions that open their executor take this one.
    fn take_executor(&mut self, chosen: ChosenExecutor, now: Instant) {
        let executor = &chosen.executor;
        log::info!(
            "executor {}: {}, {}; for new sessions",
            executor.kind,
            executor.device,
            executor.reason
        );
        match chosen.choice {
            // Workers that were started without a GPU see none. Those that wait for guests without an
            // end are replaced.
            ExecutorChoice::Cuda if self.config.worker.confine != Confine::Off => {
                self.ask_to_end(&self.waiting_without_end());
            }
            _ => {
                for session in self.sessions.values_mut() {
                    session.ask(Ask::Executor {
                        choice: chosen.choice.clone(),
                        reason: executor.reason.clone(),
                    });
                }
            }
        }
        self.chosen = chosen;
        self.reprobe = None;
        self.want_warm(now);
        self.warn_of_missing_devices();
        self.tell_status();
    }

    /// Tells systemd what runs the work, for `systemctl status`.
    pub(super) fn tell_status(&self) {
        let executor = &self.chosen.executor;
        notify(&format!(
            "STATUS=executor {}: {}, {}",
            executor.kind,
            executor.device,
            executor.reason.replace('\n', " ")
        ));
    }

    /// Seconds until the next look, if there is to be one.
    pub(super) fn looks_again_in(&self, now: Instant) -> Option<u64> {
        let reprobe = self.reprobe.as_ref()?;
        let left = match reprobe.state {
            State::Waiting(until) => until.saturating_duration_since(now),
            State::Looking(_) | State::Ending(_) => Duration::ZERO,
        };
        Some(left.as_secs())
    }
}

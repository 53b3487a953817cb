//! `file:` endpoints: one worker for each, started again when it ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Broker;
use super::who::Who;
use crate::failure::Failure;
use crate::worker::spec::Carrier;

/// First and longest pause before a worker that failed is started again.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A worker that ran this long has not failed at once.
const LASTED: Duration = Duration::from_secs(60);

/// A directory and its worker.
#[derive(Debug)]
pub(super) struct FileService {
    directory: PathBuf,
    state: State,
    pause: Duration,
}

#[derive(Debug)]
enum State {
    Waiting { until: Instant },
    Running { session: u64, since: Instant },
}

impl FileService {
    /// Serves `directory`, which is made unless it exists, from `now` on.
    pub(super) fn new(directory: &Path, now: Instant) -> Result<Self, Failure> {
        let made = match fs::metadata(directory) {
            Ok(metadata) if !metadata.is_dir() => {
                return Err(Failure::new(
                    format!("file:{}: not a directory", directory.display()),
                    "name a directory that clients can write in",
                ));
            }
            Ok(_) => Ok(()),
            Err(_) => fs::create_dir(directory),
        };
        made.map_err(|error| {
            Failure::system(
                format!("cannot make the directory {}", directory.display()),
                error,
                "make it, or name one that exists",
            )
        })?;
        Ok(Self {
            directory: directory.to_owned(),
            state: State::Waiting { until: now },
            pause: PAUSE.0,
        })
    }

    /// When its worker is to be started.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { until } => Some(until),
            State::Running { .. } => None,
        }
    }
}

impl Broker<'_> {
    /// Starts the workers that are due.
    pub(super) fn start_file_services(&mut self, now: Instant) {
        for index in 0..self.files.len() {
            let due = self.files[index].deadline().is_some_and(|at| at <= now);
            if !due {
                continue;
            }
            let directory = self.files[index].directory.clone();
            let who = Who::File(directory.clone());
            let session = self.begin(who, Carrier::File { directory }, None, None, now);
            let service = &mut self.files[index];
            service.state = match session {
                Some(session) => State::Running {
                    session,
                    since: now,
                },
                None => State::Waiting {
                    until: now + service.pause,
                },
            };
        }
    }

    /// Notes that a session has ended; if it was a file service, it is due again after a pause.
    pub(super) fn file_service_ended(&mut self, ended: u64, now: Instant) {
        for service in &mut self.files {
            let State::Running { session, since } = service.state else {
                continue;
            };
            if session != ended {
                continue;
            }
            if now.duration_since(since) >= LASTED {
                service.pause = PAUSE.0;
            }
            service.state = State::Waiting {
                until: now + service.pause,
            };
            service.pause = (service.pause * 2).min(PAUSE.1);
        }
    }
}

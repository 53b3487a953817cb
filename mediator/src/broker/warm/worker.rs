//! A worker that has no session yet, and what it says.

use std::time::Instant;

use crate::broker::process::Process;
use crate::worker::link::{Ended, Report, Waiting};

#[derive(Debug)]
pub(super) struct Worker {
    pub(super) id: u64,
    pub(super) process: Process,
    pub(super) state: State,
    /// The reason that it gave for its end.
    pub(super) ended: Option<String>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum State {
    Starting {
        since: Instant,
    },
    Ready,
    /// It failed and was killed. It keeps its place until its process is gone, which bounds the workers that can hang.
    Failed,
}

impl State {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Starting { .. } => "starting",
            Self::Ready => "ready",
            Self::Failed => "ending",
        }
    }
}

impl Worker {
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready)
    }

    pub(super) fn started(&self) -> Option<Instant> {
        match self.state {
            State::Starting { since } => Some(since),
            State::Ready | State::Failed => None,
        }
    }

    /// Takes what it says. Nothing of a guest has reached it; what it says is held to the same rules nevertheless.
    pub(super) fn listen(&mut self) {
        let received = match self.process.read() {
            Ok(received) => received,
            Err(error) => return self.distrust(&error.to_string()),
        };
        for line in received.lines {
            match serde_json::from_str::<Report>(&line) {
                Ok(Report {
                    waiting: Some(Waiting::Ready),
                    ..
                }) => self.state = State::Ready,
                Ok(Report {
                    ended: Some(Ended { text, .. }),
                    ..
                }) => return self.fail(text.replace(char::is_control, " ")),
                Ok(_) => {}
                Err(error) => return self.distrust(&error.to_string()),
            }
        }
        if received.closed {
            self.fail("it was killed".to_owned());
        }
    }

    fn distrust(&mut self, why: &str) {
        self.fail(format!("it misbehaves: {why}"));
    }

    /// Ends it. It is collected when its signal comes.
    pub(super) fn fail(&mut self, why: String) {
        self.ended.get_or_insert(why);
        self.state = State::Failed;
        self.process.silent = true;
        self.process.end();
    }
}

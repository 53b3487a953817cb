//! The socket between a worker and the broker: lines of JSON from the worker, words from the broker.
//!
//! The broker asks (`report`, `drain`, `kick`), the worker answers and says when it has connected
//! and how it ended. A thread of the worker listens, so a session that is busy still answers.
//! The broker trusts no worker: lines are bounded by [`MAX_LINE`] and none can make it wait.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vgpu_file_transport::SessionName;

use crate::session::{StopFlag, StopReason};
use crate::usage::{Observed, Usage};

/// Longest line in either direction, in bytes.
pub const MAX_LINE: usize = 4096;

/// What a worker tells the broker.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Whether the guest's channel is up.
    #[serde(default)]
    pub connected: bool,
    /// The guest's program, by its own account; set once it was admitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// What the session has used so far.
    #[serde(default)]
    pub usage: Usage,
    /// What the worker of a directory has seen there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<Found>,
    /// Present in the last report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
}

/// Something in a directory that only the broker can decide about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Found {
    /// A guest's directory beside the two files.
    Guest(String),
    /// A session that waits for a mediator.
    Session(String),
}

/// How a worker's work ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ended {
    /// In one line.
    pub text: String,
    /// Whether it ended otherwise than it should.
    pub fault: bool,
}

impl Ended {
    /// It ended as it should.
    pub fn fine(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            fault: false,
        }
    }

    /// It did not.
    pub fn fault(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            fault: true,
        }
    }
}

/// What the broker asks of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// A report now.
    Report,
    /// End after the request that runs: the mediator stops.
    Drain,
    /// End after the request that runs: an administrator wants it.
    Kick,
    /// Of the worker of a directory: this session there has no worker any more.
    Over(SessionName),
}

impl Ask {
    fn from_word(word: &str) -> Option<Self> {
        if let Some(session) = word.strip_prefix("over ") {
            return session.parse().ok().map(Self::Over);
        }
        [Self::Report, Self::Drain, Self::Kick]
            .into_iter()
            .find(|ask| ask.to_string() == word)
    }
}

/// The word on the wire.
impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Report => f.write_str("report"),
            Self::Drain => f.write_str("drain"),
            Self::Kick => f.write_str("kick"),
            Self::Over(session) => write!(f, "over {session}"),
        }
    }
}

/// The worker's end.
#[derive(Debug)]
pub(super) struct Link {
    stream: Arc<UnixStream>,
}

impl Link {
    /// Starts the thread that listens to the broker.
    pub(super) fn start(
        stream: UnixStream,
        observed: &Arc<Observed>,
        stop: &Arc<StopFlag>,
        ended: &Arc<AtomicBool>,
        over: mpsc::Sender<SessionName>,
    ) -> io::Result<Self> {
        // A broker that does not read must not hold up the end of a session.
        stream.set_write_timeout(Some(Duration::from_secs(1)))?;
        let stream = Arc::new(stream);
        let link = Self {
            stream: Arc::clone(&stream),
        };
        let (observed, stop, ended) = (observed.clone(), stop.clone(), ended.clone());
        thread::Builder::new()
            .name("link".into())
            .spawn(move || listen(&stream, &observed, &stop, &ended, &over))?;
        Ok(link)
    }

    /// Tells that the guest's channel is up.
    pub(super) fn connected(&self, observed: &Observed) {
        observed.set_connected();
        send(&self.stream, observed, None, None);
    }

    /// Tells what there is in the directory.
    pub(super) fn found(&self, observed: &Observed, found: Found) {
        send(&self.stream, observed, Some(found), None);
    }

    /// Says the last word.
    pub(super) fn ended(&self, observed: &Observed, ended: Ended) {
        send(&self.stream, observed, None, Some(ended));
    }
}

fn listen(
    stream: &UnixStream,
    observed: &Observed,
    stop: &StopFlag,
    ended: &AtomicBool,
    over: &mpsc::Sender<SessionName>,
) {
    let mut reader = BufReader::new(stream.take(u64::MAX));
    let mut line = String::new();
    loop {
        line.clear();
        reader.get_mut().set_limit(MAX_LINE as u64);
        let reason = match reader.read_line(&mut line) {
            // The broker is gone; the kernel ends this process too.
            Ok(0) | Err(_) => {
                ended.store(true, Ordering::Relaxed);
                stop.set(StopReason::Draining);
                return;
            }
            Ok(_) => match Ask::from_word(line.trim_end()) {
                Some(Ask::Report) => {
                    send(stream, observed, None, None);
                    continue;
                }
                Some(Ask::Over(session)) => {
                    // Only the worker of a directory listens.
                    let _ = over.send(session);
                    continue;
                }
                Some(Ask::Drain) => StopReason::Draining,
                Some(Ask::Kick) => StopReason::Kicked,
                None => continue,
            },
        };
        ended.store(true, Ordering::Relaxed);
        stop.set(reason);
    }
}

fn send(stream: &UnixStream, observed: &Observed, found: Option<Found>, ended: Option<Ended>) {
    let bounded = |text: String| text.chars().take(1000).collect::<String>();
    let report = Report {
        connected: observed.is_connected(),
        client: observed.client.get().cloned(),
        usage: observed.counters.usage(),
        found,
        ended: ended.map(|ended| Ended {
            text: bounded(ended.text),
            ..ended
        }),
    };
    match serde_json::to_vec(&report) {
        // Both threads may send; a line this short goes out in one piece or not at all.
        Ok(mut line) => {
            line.push(b'\n');
            let mut stream = stream;
            if let Err(error) = stream.write_all(&line) {
                log::debug!("the broker does not hear: {error}");
            }
        }
        Err(error) => log::error!("a report cannot be written: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_read_as_they_are_written_and_stay_short() {
        let report = Report {
            connected: true,
            client: Some("x".repeat(64)),
            usage: Usage {
                bytes_in: u64::MAX,
                bytes_out: u64::MAX,
                requests: u64::MAX,
                failed_requests: u64::MAX,
                elements: u64::MAX,
                device_ns: u64::MAX,
            },
            found: Some(Found::Guest("z".repeat(64))),
            ended: Some(Ended::fault("y".repeat(1000))),
        };
        let line = serde_json::to_string(&report).unwrap();
        assert!(line.len() < MAX_LINE);
        assert_eq!(serde_json::from_str::<Report>(&line).unwrap(), report);
    }

    #[test]
    fn words_are_read_as_they_are_written() {
        let over = Ask::Over(SessionName::new([7; 16]));
        for ask in [Ask::Report, Ask::Drain, Ask::Kick, over] {
            assert_eq!(Ask::from_word(&ask.to_string()), Some(ask));
        }
        assert_eq!(Ask::from_word("over ../x"), None);
        assert_eq!(Ask::from_word("dance"), None);
    }
}

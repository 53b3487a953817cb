//! The loop: read `command.txt`, run a new command, answer.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::directory::{Directory, DirectoryError, Look, is_out_of_space};
use crate::two_file_grammar::{Command, Response, Status};
use crate::watch::{Action, SETTLE_EMPTY, Sight, Watch};

/// The reason why serving ended before it was asked to.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ServeError(#[from] DirectoryError);

/// The conditions under which serving ends.
#[derive(Debug, Clone, Copy)]
pub struct Stop<'a> {
    flag: &'a AtomicBool,
    other: Option<&'a AtomicBool>,
    deadline: Option<Instant>,
}

impl<'a> Stop<'a> {
    /// Ends once `flag` is true, which is noticed within [`crate::watch::POLL_QUIET`], or after the
    /// command under way.
    pub fn when(flag: &'a AtomicBool) -> Stop<'a> {
        Stop {
            flag,
            other: None,
            deadline: None,
        }
    }

    /// Ends once `other` is true too.
    pub fn or_when(self, other: &'a AtomicBool) -> Stop<'a> {
        Stop {
            other: Some(other),
            ..self
        }
    }

    /// Ends at `deadline` too.
    pub fn or_at(self, deadline: Instant) -> Stop<'a> {
        Stop {
            deadline: Some(deadline),
            ..self
        }
    }

    /// Whether it is time to end, at the time `now`.
    pub fn reached(&self, now: Instant) -> bool {
        // Relaxed: the flags carry no data with them.
        self.flag.load(Ordering::Relaxed)
            || self
                .other
                .is_some_and(|other| other.load(Ordering::Relaxed))
            || self.deadline.is_some_and(|deadline| now >= deadline)
    }
}

/// Serves `directory` until `stop`.
///
/// At start `command.txt` is set to 0 and `response.txt` to `0:Ready`. `run` is called for each new
/// command that asks for work; its text becomes the answer, with status 1 or 2. It must limit its
/// own time, since no other command is seen meanwhile. At the end both files stay, with a
/// `response.txt` that says that nobody will answer.
///
/// # Errors
/// A directory that cannot be opened, is served already, cannot be written at start, or was removed.
/// A full disk, and later write errors, are logged and tried again at each look; until then there is no
/// `response.txt`.
pub fn serve(
    directory: &Path,
    run: &mut dyn FnMut(Command) -> Result<String, String>,
    stop: Stop<'_>,
) -> Result<(), ServeError> {
    serve_directory(&Directory::open(directory)?, run, &mut |_| {}, stop)
}

/// Like [`serve`], with a directory that is open already. `between` is called with the time at
/// every look, never while a command runs. It must not take long.
///
/// # Errors
/// As [`serve`].
pub fn serve_directory(
    directory: &Directory,
    run: &mut dyn FnMut(Command) -> Result<String, String>,
    between: &mut dyn FnMut(Instant),
    stop: Stop<'_>,
) -> Result<(), ServeError> {
    let taken = directory.reset_command();
    let mut watch = Watch::new(taken, Instant::now());
    let mut answer = Answer {
        directory,
        waiting: None,
        stands: None,
        complaint: None,
    };
    answer.begin()?;
    let mut empty_since = None;
    let mut unusable = Complaint::default();
    while !stop.reached(Instant::now()) {
        answer.retry()?;
        between(Instant::now());
        let look = directory.look()?;
        answer.doubt(&look, &mut empty_since, Instant::now())?;
        if let Look::Unusable(reason) = &look {
            unusable.say(directory, reason, Instant::now());
        }
        match watch.see(sight(&look), Instant::now()) {
            Action::None => thread::sleep(watch.pause(Instant::now())),
            Action::Answer(response) => answer.give(response)?,
            Action::Run(command) => {
                answer.give(Response::running(command))?;
                let outcome = run(command);
                // Debug level only: a guest chooses how often this line appears.
                log::debug!(
                    "file:{}: command {command}: {}",
                    directory.path().display(),
                    outcome.as_ref().unwrap_or_else(|error| error)
                );
                answer.give(Response::outcome(&outcome))?;
            }
        }
    }
    // Telling a waiting client is worth one try, but not an error.
    let _ = answer.give(Response::stopped());
    Ok(())
}

fn sight(look: &Look) -> Sight<'_> {
    match look {
        Look::Absent => Sight::Absent,
        Look::Unusable(reason) => Sight::Unusable(reason),
        Look::File { stamp, bytes } => Sight::File {
            stamp: *stamp,
            bytes,
        },
    }
}

/// Time for which `command.txt` may be empty, as at the beginning of each write, before the
/// previous answer is withdrawn: on a full disk nothing may follow, and the client, which over NFS
/// does not notice, reads the answer a second after it wrote.
const DOUBT: Duration = Duration::from_millis(100);

/// The shortest time between two log lines about an unusable `command.txt`: a guest may change the
/// reason as often as it likes.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

/// Logs why `command.txt` cannot be used.
#[derive(Default)]
struct Complaint {
    said: Option<(String, Instant)>,
}

impl Complaint {
    fn say(&mut self, directory: &Directory, reason: &str, now: Instant) {
        let early = |at: Instant| now.saturating_duration_since(at) < COMPLAINT_INTERVAL;
        if matches!(&self.said, Some((said, at)) if said == reason || early(*at)) {
            return;
        }
        log::warn!("file:{}: {reason}", directory.path().display());
        self.said = Some((reason.to_owned(), now));
    }
}

/// The answer that should be in `response.txt`, kept until it could be written.
struct Answer<'a> {
    directory: &'a Directory,
    waiting: Option<Response>,
    /// The status of the answer that is there, if any.
    stands: Option<Status>,
    /// The last write error, so that a full disk does not fill the log.
    complaint: Option<String>,
}

impl Answer<'_> {
    /// The first answer. A full disk delays it; a directory that cannot be written is an error.
    fn begin(&mut self) -> Result<(), DirectoryError> {
        match self.directory.respond(&Response::ready()) {
            Err(DirectoryError::Write { source, .. }) if is_out_of_space(&source) => {
                self.give(Response::ready())
            }
            Ok(()) => {
                self.stands = Some(Status::Working);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Withdraws the previous answer once a write has begun and does not go on.
    fn doubt(
        &mut self,
        look: &Look,
        since: &mut Option<Instant>,
        now: Instant,
    ) -> Result<(), DirectoryError> {
        let Look::File { bytes, .. } = look else {
            return Ok(());
        };
        if !bytes.is_empty() {
            *since = None;
            return Ok(());
        }
        let first = since.is_none();
        let began = *since.get_or_insert(now);
        let answered =
            self.waiting.is_none() && self.stands.is_some_and(|it| it != Status::Working);
        let waited = now.saturating_duration_since(began);
        if !first && answered && (DOUBT..SETTLE_EMPTY).contains(&waited) {
            return self.give(Response::waiting());
        }
        Ok(())
    }

    fn give(&mut self, response: Response) -> Result<(), DirectoryError> {
        self.waiting = Some(response);
        self.retry()
    }

    fn retry(&mut self) -> Result<(), DirectoryError> {
        let Some(response) = &self.waiting else {
            return Ok(());
        };
        match self.directory.respond(response) {
            Ok(()) => {
                self.stands = Some(response.status());
                self.waiting = None;
                self.complaint = None;
                Ok(())
            }
            Err(error @ DirectoryError::Write { .. }) => {
                self.stands = None;
                let text = error.to_string();
                if self.complaint.as_ref() != Some(&text) {
                    log::warn!("{text}; trying again");
                    self.complaint = Some(text);
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

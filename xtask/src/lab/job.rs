//! Programs that run in the background in dom0 or in a guest, so that a test can have several at
//! once and check them in between.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use data_encoding::BASE64;

use super::host::{Host, LIMIT, Output, Place};

/// The folder of the jobs' output; each has a folder below it.
const FOLDER: &str = "/tmp/vgpu-lab";

/// Time for which one check of a job waits in place for its end: each check starts processes, which
/// costs emulated time. Between two checks the host is checked for a lost guest.
const CHECK_TIME: Duration = Duration::from_secs(4);

/// Pause between two checks where no agent can wait.
const INTERVAL: Duration = Duration::from_millis(400);

/// A script that was started. Only [`Job::signal`] or the script itself ends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Job {
    guest: Option<String>,
    name: String,
}

impl Job {
    /// Starts `script` in a session of its own. `name` names its files; an ended job of the same
    /// name is forgotten.
    ///
    /// # Errors
    /// The place could not be reached.
    pub(crate) fn start(
        host: &mut dyn Host,
        place: Place<'_>,
        name: &str,
        script: &str,
    ) -> Result<Job> {
        let body = BASE64.encode(script.as_bytes());
        // The outer shell survives the signals that go to the whole group, to write the status.
        let start = format!(
            "mkdir -p {FOLDER}/{name} && cd {FOLDER}/{name} || exit 1\n\
             rm -f status; echo {body} | base64 -d >script\n\
             setsid sh -c 'trap : TERM INT HUP; echo $$ >pid; sh ./script; echo $? >status.new; mv status.new status' \
             </dev/null >out 2>err &"
        );
        host.exec(place, &start, LIMIT)?.text()?;
        let guest = match place {
            Place::Dom0 => None,
            Place::Guest(name) => Some(name.to_owned()),
        };
        Ok(Job {
            guest,
            name: name.to_owned(),
        })
    }

    fn place(&self) -> Place<'_> {
        self.guest.as_deref().map_or(Place::Dom0, Place::Guest)
    }

    /// Waits until the job has ended.
    ///
    /// # Errors
    /// It has not after `limit`; its output so far is in the message.
    pub(crate) fn wait(&self, host: &mut dyn Host, limit: Duration) -> Result<Output> {
        let deadline = Instant::now() + limit;
        let lost = host.guests_lost();
        loop {
            // Read before the job is checked, so that the last check follows the deadline.
            let last_look = Instant::now() > deadline;
            let looked = Instant::now();
            if let Some(output) = self.look(host, CHECK_TIME)? {
                return Ok(output);
            }
            ensure_none_lost(host, lost)?;
            if last_look {
                let output = self.output_so_far(host)?;
                bail!(
                    "{} in {} is not done after {} s: {}",
                    self.name,
                    self.place(),
                    limit.as_secs(),
                    output.last_words()
                );
            }
            std::thread::sleep(INTERVAL.saturating_sub(looked.elapsed()));
        }
    }

    /// Its output if it has ended.
    pub(crate) fn poll(&self, host: &mut dyn Host) -> Result<Option<Output>> {
        self.look(host, Duration::ZERO)
    }

    /// Its output if it ends within `patience`; where no agent can wait, if it has ended already.
    fn look(&self, host: &mut dyn Host, patience: Duration) -> Result<Option<Output>> {
        let script = format!(
            "cd {FOLDER}/{} || exit 99; {}[ -e status ] || exit 99; cat out; cat err >&2; \
             exit $(cat status)",
            self.name,
            await_in_place(patience, ""),
        );
        let output = host.exec(self.place(), &script, LIMIT)?;
        Ok((output.status != 99).then_some(output))
    }

    /// Its output until now.
    pub(crate) fn output_so_far(&self, host: &mut dyn Host) -> Result<Output> {
        let script = format!("cd {FOLDER}/{} && cat out; cat err >&2", self.name);
        host.exec(self.place(), &script, LIMIT)
    }

    /// Waits until one of its output streams contains `text`.
    ///
    /// # Errors
    /// It ends before, or `limit` passes.
    pub(crate) fn wait_for(
        &self,
        host: &mut dyn Host,
        text: &str,
        limit: Duration,
    ) -> Result<Output> {
        let deadline = Instant::now() + limit;
        let lost = host.guests_lost();
        loop {
            ensure_none_lost(host, lost)?;
            let last_look = Instant::now() > deadline;
            let looked = Instant::now();
            // The end is checked before the output, which is complete then.
            let script = format!(
                "cd {FOLDER}/{} || exit 99; {}ended=; [ -e status ] && ended=98; cat out; \
                 cat err >&2; exit $ended",
                self.name,
                await_in_place(CHECK_TIME, text),
            );
            let output = host.exec(self.place(), &script, LIMIT)?;
            if output.stdout.contains(text) || output.stderr.contains(text) {
                return Ok(output);
            }
            if output.status != 0 || last_look {
                bail!(
                    "{} did not say `{text}`: {}",
                    self.name,
                    output.last_words()
                );
            }
            std::thread::sleep(INTERVAL.saturating_sub(looked.elapsed()));
        }
    }

    /// Sends `signal` (`TERM`, `KILL`, `STOP`…) to all its processes.
    pub(crate) fn signal(&self, host: &mut dyn Host, signal: &str) -> Result<()> {
        // Once it has ended, its process group's number may be another's.
        let script = format!(
            "cd {FOLDER}/{} && [ ! -e status ] && kill -{signal} -$(cat pid)",
            self.name
        );
        host.exec(self.place(), &script, LIMIT)?;
        Ok(())
    }
}

/// The beginning of a script in a job's folder: waits there until the job has ended or printed
/// `text`, for `patience` at most. Does not wait where there is no agent, as on another Xen host.
fn await_in_place(patience: Duration, text: &str) -> String {
    match patience.as_secs() {
        0 => String::new(),
        seconds => format!(
            "lab-agent await . {seconds} '{}' 2>/dev/null; ",
            text.replace('\'', "'\\''")
        ),
    }
}

/// A job that waits for a guest that the host has lost never ends by itself.
fn ensure_none_lost(host: &dyn Host, before: usize) -> Result<()> {
    if host.guests_lost() > before {
        bail!("the host has lost a guest");
    }
    Ok(())
}

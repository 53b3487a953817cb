//! Programs that run in the background in dom0 or in a guest, so that a test
//! can have several at once and look at them in between.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::base64;
use super::host::{Host, LIMIT, Output, Place};

/// Where jobs keep their output, below which each has a folder.
const FOLDER: &str = "/tmp/vgpu-lab";

/// How often a running job is looked at; each look costs emulated time.
const INTERVAL: Duration = Duration::from_millis(400);

/// A script that was started. Nothing ends it but itself or [`Job::signal`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Job {
    guest: Option<String>,
    name: String,
}

impl Job {
    /// Starts `script` in a session of its own. `name` names its files; a job
    /// of the same name that has ended is forgotten.
    ///
    /// # Errors
    /// The place could not be reached.
    pub(crate) fn start(
        host: &mut dyn Host,
        place: Place<'_>,
        name: &str,
        script: &str,
    ) -> Result<Job> {
        let body = base64::encode(script.as_bytes());
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
    /// It has not after `limit` (its output so far is in the message).
    pub(crate) fn wait(&self, host: &mut dyn Host, limit: Duration) -> Result<Output> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(output) = self.poll(host)? {
                return Ok(output);
            }
            if Instant::now() > deadline {
                let output = self.output_so_far(host)?;
                bail!(
                    "{} in {} is not done after {} s: {}",
                    self.name,
                    self.place(),
                    limit.as_secs(),
                    output.last_words()
                );
            }
            std::thread::sleep(INTERVAL);
        }
    }

    /// Its output if it has ended.
    pub(crate) fn poll(&self, host: &mut dyn Host) -> Result<Option<Output>> {
        let script = format!(
            "cd {FOLDER}/{} && [ -e status ] || exit 99; cat out; cat err >&2; exit $(cat status)",
            self.name
        );
        let output = host.exec(self.place(), &script, LIMIT)?;
        Ok((output.status != 99).then_some(output))
    }

    /// What it has printed until now.
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
        loop {
            let ended = self.poll(host)?.is_some();
            let output = self.output_so_far(host)?;
            if output.stdout.contains(text) || output.stderr.contains(text) {
                return Ok(output);
            }
            if ended || Instant::now() > deadline {
                bail!(
                    "{} did not say `{text}`: {}",
                    self.name,
                    output.last_words()
                );
            }
            std::thread::sleep(INTERVAL);
        }
    }

    /// Sends `signal` (`TERM`, `KILL`, `STOP`…) to all its processes.
    pub(crate) fn signal(&self, host: &mut dyn Host, signal: &str) -> Result<()> {
        // Once it has ended its process group's number may be another's.
        let script = format!(
            "cd {FOLDER}/{} && [ ! -e status ] && kill -{signal} -$(cat pid)",
            self.name
        );
        host.exec(self.place(), &script, LIMIT)?;
        Ok(())
    }
}

//! The state that a case works with: the host, guests that cases share, the mediator.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::{Case, Mediator};
use crate::lab::guest::{GuestSpec, Kind};
use crate::lab::host::{Host, LIMIT, Output, Place};
use crate::lab::job::Job;

/// The mediator that most cases use.
pub(crate) const MEDIATOR: &str = "exec vgpu-mediatord --listen xen: --executor cpu --allow-all --control /run/vgpu/mediatord.sock";

/// The mediator's log message when it serves an endpoint.
const LISTENING: &str = "listening on xen:";

/// Memory of shared guests: 16 million elements are three vectors of 64 MiB.
const SHARED_MEMORY_MIB: u32 = 448;

/// Names and addresses of the shared guests with a network; dom0 is 10.77.0.1.
const NETWORKED: [(&str, Ipv4Addr); 2] = [
    ("vm1", Ipv4Addr::new(10, 77, 0, 11)),
    ("vm2", Ipv4Addr::new(10, 77, 0, 12)),
];

/// Their memory: two vectors of a million elements and NFS's copies of them.
const NETWORKED_MEMORY_MIB: u32 = 288;

/// The state of one run of the suite.
pub(crate) struct Context {
    pub(crate) host: Box<dyn Host>,
    guests: Vec<Kind>,
    /// Whether the guests with a network run.
    networked: bool,
    mediator: Option<Job>,
    jobs_started: u32,
    /// The jobs of the running case, without the shared mediator.
    jobs: Vec<Job>,
    /// Whether the last case passed, so that the shared guests need not be checked for life.
    pub(crate) sound: bool,
}

impl Context {
    pub(crate) fn new(host: Box<dyn Host>) -> Self {
        Context {
            host,
            guests: Vec::new(),
            networked: false,
            mediator: None,
            jobs_started: 0,
            jobs: Vec::new(),
            sound: false,
        }
    }

    /// Name of the shared guest of this kind.
    pub(crate) fn shared(kind: Kind) -> &'static str {
        kind.name()
    }

    /// The shared guests that have a network to dom0, with their addresses.
    pub(crate) fn networked() -> [(&'static str, Ipv4Addr); 2] {
        NETWORKED
    }

    /// Names of the shared guests that run now.
    pub(crate) fn running_guests(&self) -> Vec<String> {
        let networked = NETWORKED.iter().filter(|_| self.networked);
        let names = self.guests.iter().map(|kind| Self::shared(*kind));
        names
            .chain(networked.map(|(name, _)| *name))
            .map(str::to_owned)
            .collect()
    }

    /// Whether everything that `case` requires is there already.
    pub(crate) fn suits(&self, case: &Case) -> bool {
        let running = match case.mediator {
            Mediator::Running => self.mediator.is_some(),
            Mediator::Stopped => self.mediator.is_none(),
        };
        let spare = self.guests.contains(&Kind::Pvh) && !case.guests.contains(&Kind::Pvh);
        running
            && self.networked == case.networked
            && !(spare && self.host.has_spare_guests())
            && case.guests.iter().all(|kind| self.guests.contains(kind))
    }

    /// Starts the shared guests of these kinds. Ended ones are forgotten (unless they have just
    /// been checked), and an unneeded PVH guest is destroyed: QEMU's emulation may end it even
    /// while it idles.
    pub(crate) fn ensure_guests(&mut self, kinds: &[Kind]) -> Result<()> {
        for kind in self.guests.clone() {
            if kind == Kind::Pvh && !kinds.contains(&kind) && self.host.has_spare_guests() {
                self.host.guest_destroy(Self::shared(kind))?;
                self.guests.retain(|k| *k != kind);
            } else if !self.sound && !self.answers(kind) {
                eprintln!("lab: the shared {kind} guest does not answer; it is taken away");
                let _ = self.host.guest_destroy(Self::shared(kind));
                self.guests.retain(|k| *k != kind);
            }
        }
        for kind in kinds {
            if self.guests.contains(kind) {
                continue;
            }
            let mut spec = GuestSpec::new(Self::shared(*kind), *kind);
            spec.memory_mib = SHARED_MEMORY_MIB;
            self.host.guest_create(&spec)?;
            self.guests.push(*kind);
        }
        Ok(())
    }

    /// Ends a shared guest at once, as a crash would; returns the domid it had.
    pub(crate) fn end_guest(&mut self, kind: Kind) -> Result<u16> {
        let name = Self::shared(kind);
        let domid = self.host.guest_domid(name)?;
        self.host.guest_destroy(name)?;
        self.guests.retain(|k| *k != kind);
        Ok(domid)
    }

    /// Starts the shared guests with a network, or destroys them if they are not wanted.
    pub(crate) fn ensure_networked(&mut self, wanted: bool) -> Result<()> {
        if self.networked {
            let names = NETWORKED.map(|(name, _)| name);
            let sound = self.sound || names.iter().all(|name| self.runs(name));
            if wanted && sound {
                return Ok(());
            }
            self.networked = false;
            for name in names {
                let _ = self.host.guest_destroy(name);
            }
        }
        if wanted {
            for (at, (name, address)) in NETWORKED.into_iter().enumerate() {
                let mut spec = GuestSpec::new(name, Kind::Pv);
                spec.memory_mib = NETWORKED_MEMORY_MIB;
                spec.address = Some(address);
                if let Err(error) = self.host.guest_create(&spec) {
                    for (name, _) in &NETWORKED[..at] {
                        let _ = self.host.guest_destroy(name);
                    }
                    return Err(error);
                }
            }
            self.networked = true;
        }
        Ok(())
    }

    fn answers(&mut self, kind: Kind) -> bool {
        self.runs(Self::shared(kind))
    }

    fn runs(&mut self, name: &str) -> bool {
        self.host
            .exec(Place::Guest(name), "true", LIMIT)
            .is_ok_and(|output| output.success())
    }

    /// Brings the mediator into the state that a case requires.
    pub(crate) fn ensure_mediator(&mut self, wanted: Mediator) -> Result<()> {
        let running = match &self.mediator {
            Some(job) => job.poll(self.host.as_mut())?.is_none(),
            None => false,
        };
        match (wanted, running) {
            (Mediator::Running, false) => self.start_mediator(),
            (Mediator::Stopped, true) => self.stop_mediator(),
            _ => Ok(()),
        }
    }

    /// Starts the shared mediator and waits until it listens.
    pub(crate) fn start_mediator(&mut self) -> Result<()> {
        let job = self.start(Place::Dom0, MEDIATOR)?;
        self.mediator = Some(job.clone());
        job.wait_for(self.host.as_mut(), LISTENING, LIMIT)
            .context("the mediator")?;
        Ok(())
    }

    /// Ends the shared mediator, if it runs.
    pub(crate) fn stop_mediator(&mut self) -> Result<()> {
        match self.mediator.take() {
            Some(job) => self.end_mediator(&job),
            None => Ok(()),
        }
    }

    /// Ends a mediator as an administrator does (SIGTERM).
    pub(crate) fn end_mediator(&mut self, mediator: &Job) -> Result<()> {
        mediator.signal(self.host.as_mut(), "TERM")?;
        let output = mediator.wait(self.host.as_mut(), LIMIT)?;
        ensure!(
            output.success(),
            "the mediator ended badly: {}",
            output.last_words()
        );
        Ok(())
    }

    /// The shared mediator, handed over to a case that will kill it.
    pub(crate) fn take_mediator(&mut self) -> Result<Job> {
        self.mediator.take().context("no mediator runs")
    }

    /// Runs a script that must succeed, and returns its standard output.
    pub(crate) fn succeed(&mut self, place: Place<'_>, script: &str) -> Result<String> {
        self.succeed_within(place, script, LIMIT)
    }

    /// The same with a limit of its own.
    pub(crate) fn succeed_within(
        &mut self,
        place: Place<'_>,
        script: &str,
        limit: Duration,
    ) -> Result<String> {
        let output = self.host.exec(place, script, limit)?;
        let text = output
            .text()
            .with_context(|| format!("`{script}` in {place}"))?;
        Ok(text.to_owned())
    }

    /// Runs a command that must fail in an orderly way: with a status that is neither 0 nor that of
    /// a signal or a panic, one line of what and one line of what to do. Returns its standard
    /// error.
    pub(crate) fn fail(&mut self, place: Place<'_>, script: &str) -> Result<String> {
        let output = self.host.exec(place, script, LIMIT)?;
        ensure_failed_well(script, &output)?;
        Ok(output.stderr)
    }

    /// Starts a script in the background.
    pub(crate) fn start(&mut self, place: Place<'_>, script: &str) -> Result<Job> {
        self.jobs_started += 1;
        let name = format!("job{}", self.jobs_started);
        let job = Job::start(self.host.as_mut(), place, &name, script)?;
        self.jobs.push(job.clone());
        Ok(job)
    }

    /// Forgets the jobs of the case that ended; those of a failed one are killed.
    pub(crate) fn end_jobs(&mut self, failed: bool) {
        let jobs = std::mem::take(&mut self.jobs);
        if !failed {
            return;
        }
        for job in jobs {
            if self.mediator.as_ref() != Some(&job) {
                // A guest that is gone has taken its processes along.
                let _ = job.signal(self.host.as_mut(), "KILL");
            }
        }
        // A killed mediator leaves its control socket for the next one; it must not be counted
        // before a case that starts over.
        let stale = "sleep 0.2; pidof vgpu-mediatord >/dev/null || rm -f /run/vgpu/*.sock";
        let _ = self.host.exec(Place::Dom0, stale, LIMIT);
    }

    /// A guest of the case's own.
    pub(crate) fn create(&mut self, spec: &GuestSpec) -> Result<()> {
        self.host.guest_create(spec)
    }
}

/// Checks that a program failed as the project's programs should.
pub(crate) fn ensure_failed_well(script: &str, output: &Output) -> Result<()> {
    match output.status {
        0 => bail!("`{script}` succeeded: {}", output.last_words()),
        101 => bail!("`{script}` panicked: {}", output.last_words()),
        126.. => bail!(
            "`{script}` ended with status {}: {}",
            output.status,
            output.last_words()
        ),
        _ => {}
    }
    let lines = output
        .stderr
        .lines()
        .filter(|line| !line.trim().is_empty())
        .count();
    ensure!(
        lines >= 2,
        "`{script}` does not say what to do: {}",
        output.last_words()
    );
    ensure!(
        lines <= 12,
        "`{script}` fails in {lines} lines: {}",
        output.last_words()
    );
    Ok(())
}

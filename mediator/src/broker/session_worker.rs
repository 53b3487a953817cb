//! A worker process from the broker's side.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use vchan::local::Stranger;
use vchan::xen::DomainLife;
use vgpu_file_transport::{GuestName, SessionName};
use vgpu_socket_transport::MAX_NAME;

use super::accounts::Force;
use super::compilers;
use super::peer::Peer;
use super::process::Process;
use crate::devices::{Device, DeviceKey, Devices};
use crate::guest_memory::Page;
use crate::rate::TokenBucket;
use crate::usage::{Activity, Standing, Usage};
use crate::worker::link::{Ask, Ended, Found, Key, MAX_LINE, Report, Waiting};
use crate::worker::spec::{Spec, Start};
use crate::worker::turns::Said;

/// Findings of one worker that wait at most.
const MOST_FOUND: usize = 1024;

/// Words of one worker about its turns that wait at most: more than are said before an answer.
const MOST_SAID: usize = 64;

/// How long a worker that has waited may take to take its session. A new one is there about as soon.
const TAKE_LIMIT: Duration = Duration::from_millis(500);

/// A session on its way to a worker that has waited for one.
#[derive(Debug)]
pub(super) struct Handed {
    /// Kept until the worker has it, so that another can serve it.
    pub(super) guest: Stranger<OwnedFd>,
    /// For that other worker.
    pub(super) spec: Spec,
    pub(super) until: Instant,
    /// The worker's error.
    failed: Option<String>,
}

/// A session's worker and what it has reported.
#[derive(Debug)]
pub(super) struct SessionWorker {
    pub(super) id: u64,
    pub(super) peer: Peer,
    pub(super) began: Instant,
    /// It only tells its guest that it is turned away.
    pub(super) refusing: bool,
    /// It does not know yet whom it would serve.
    pub(super) stranger: bool,
    /// It has received one client's key, and gets no other.
    key_given: bool,
    /// Of the guest's domain, until it is over.
    pub(super) life: Option<DomainLife>,
    pub(super) process: Process,
    /// Its worker was there before it.
    pub(super) was_warm: bool,
    /// Until that has taken it.
    handed: Option<Handed>,
    report: Report,
    /// The events in its directory, to be taken by the broker.
    pub(super) found: VecDeque<Found>,
    /// Its messages about its turns on the device, likewise.
    pub(super) said: VecDeque<Said>,
    /// Its guest's part of the device's time.
    pub(super) weight: u32,
    /// Devices that its guest may use, by UUID where they have one; none where that is all.
    pub(super) devices: Option<Devices>,
    /// Compilers that it may start.
    pub(super) compiles: TokenBucket,
    /// When the last report came.
    pub(super) reported: Option<Instant>,
    /// The cause, if it was ended by force.
    pub(super) force: Option<Force>,
    /// It has been asked to end, and is killed at this time.
    pub(super) kill_at: Option<Instant>,
}

impl SessionWorker {
    /// Starts a worker for it, with the connection of `guest`, if it has one so far.
    pub(super) fn start(
        id: u64,
        peer: Peer,
        spec: &Spec,
        guest: Option<Stranger<OwnedFd>>,
        now: Instant,
    ) -> io::Result<Self> {
        let process = start_process(id, spec, guest)?;
        Ok(Self::of(id, peer, spec, process, now))
    }

    /// Hands it to a worker that has waited, `process`: `spec` is what another would be started with.
    ///
    /// # Errors
    /// The worker could not be told. Returns the worker, which is to be killed, the reason, and the guest's socket, unused.
    pub(super) fn hand(
        id: u64,
        peer: Peer,
        spec: Spec,
        guest: Stranger<OwnedFd>,
        process: Process,
        now: Instant,
    ) -> Result<Self, Box<(Process, String, Stranger<OwnedFd>)>> {
        let line = format!("{}\n", Ask::Serve(Box::new(spec.assignment())));
        let told = match line.len() <= MAX_LINE {
            true => process.tell_with(line.as_bytes(), guest.as_fd()),
            false => Err(io::Error::other("its session is too long to tell")),
        };
        if let Err(error) = told {
            return Err(Box::new((process, error.to_string(), guest)));
        }
        let mut session = Self::of(id, peer, &spec, process, now);
        session.was_warm = true;
        session.handed = Some(Handed {
            guest,
            spec,
            until: now + TAKE_LIMIT,
            failed: None,
        });
        Ok(session)
    }

    fn of(id: u64, peer: Peer, spec: &Spec, process: Process, now: Instant) -> Self {
        Self {
            id,
            peer,
            began: now,
            refusing: spec.refusal.is_some(),
            stranger: false,
            key_given: false,
            life: None,
            process,
            was_warm: false,
            handed: None,
            report: Report::default(),
            found: VecDeque::new(),
            said: VecDeque::new(),
            weight: spec.share.weight.unwrap_or(1),
            devices: spec.share.devices,
            compiles: TokenBucket::new(compilers::STARTS.0, compilers::STARTS.1, now),
            reported: None,
            force: None,
            kill_at: None,
        }
    }

    /// When its worker must have taken it.
    pub(super) fn take_until(&self) -> Option<Instant> {
        self.handed.as_ref().map(|handed| handed.until)
    }

    /// Why the worker that has waited does not take it, if so, or if `is_over`. Somebody who ends it ends it with that
    /// worker.
    pub(super) fn not_taken(&self, is_over: bool, now: Instant) -> Option<String> {
        let handed = self.handed.as_ref()?;
        let late = || {
            let ms = TAKE_LIMIT.as_millis();
            (handed.until <= now).then(|| format!("it did not take its session within {ms} ms"))
        };
        let own = || self.report.ended.as_ref().map(|ended| ended.text.clone());
        let over = || (is_over || self.process.silent).then(|| "it ended".to_owned());
        let failed = handed.failed.clone();
        failed.or_else(own).or_else(over).or_else(late)
    }

    /// The session on its way to its worker, which has not taken it.
    pub(super) fn take_back(&mut self) -> Option<Handed> {
        self.handed.take()
    }

    /// Starts another worker in place of the one that has not taken it, which comes out.
    pub(super) fn start_again(
        &mut self,
        spec: &Spec,
        guest: Stranger<OwnedFd>,
    ) -> io::Result<Process> {
        let process = start_process(self.id, spec, Some(guest))?;
        self.report = Report::default();
        self.was_warm = false;
        Ok(std::mem::replace(&mut self.process, process))
    }

    /// Whether it serves a guest, or is about to.
    pub(super) fn counts(&self) -> bool {
        !self.refusing && !self.stranger
    }

    /// The device that its worker speaks of. One that names a device which its guest has not is ended.
    pub(super) fn device_of(&mut self, said: Said, there: &[Device]) -> Option<DeviceKey> {
        let device = self.device(said.device, there);
        if device.is_none() {
            self.distrust("it wants a device that its guest has not");
        }
        device
    }

    /// The device that it uses, as its worker reports; `None` if no device has that number.
    pub(super) fn used_device(&self, there: &[Device]) -> Option<DeviceKey> {
        self.named(self.report.device, there)
    }

    fn named(&self, number: u32, there: &[Device]) -> Option<DeviceKey> {
        let index = number as usize;
        match &self.devices {
            Some(own) => own.keys().get(index).copied(),
            None => there.get(index).map(Device::key),
        }
    }

    /// Its guest's device with this number, of those that there are. It has the first one, even where none is known.
    fn device(&self, number: u32, there: &[Device]) -> Option<DeviceKey> {
        let found = self.named(number, there);
        found.or_else(|| (number == 0).then_some(DeviceKey::Index(0)))
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The session's usage at its last report.
    pub(super) fn usage(&self) -> &Usage {
        &self.report.usage
    }

    /// Its holdings at its last report.
    pub(super) fn standing(&self) -> &Standing {
        &self.report.standing
    }

    /// Its requests and answers at the last report that has them.
    pub(super) fn activity(&self) -> Option<&Activity> {
        self.report.activity.as_ref()
    }

    /// The guest's program, by its own account.
    pub(super) fn client(&self) -> Option<&str> {
        self.report.client.as_deref()
    }

    /// Whether the guest's channel came up.
    pub(super) fn was_connected(&self) -> bool {
        self.report.connected
    }

    pub(super) fn state(&self) -> &'static str {
        if self.kill_at.is_some() || self.report.ended.is_some() {
            "ending"
        } else if self.report.connected {
            "serving"
        } else {
            "connecting"
        }
    }

    /// Takes the reports that have arrived. A worker that sends anything else is killed: it may
    /// have been taken over by its guest. Returns whether any have.
    pub(super) fn listen(&mut self, now: Instant) -> bool {
        let received = match self.process.read() {
            Ok(received) => received,
            Err(error) => {
                self.distrust(&error.to_string());
                return true;
            }
        };
        let any = !received.lines.is_empty();
        if let Err(why) = self.take(received.lines, now) {
            self.distrust(&why);
        }
        any
    }

    fn take(&mut self, lines: Vec<String>, now: Instant) -> Result<(), String> {
        for line in lines {
            let mut report =
                serde_json::from_str::<Report>(&line).map_err(|error| error.to_string())?;
            if !plausible(&report) {
                return Err("a report has a text that no worker writes".to_owned());
            }
            if report.waiting.take() == Some(Waiting::Taken) {
                self.begin()?;
            }
            // As many as a look at a directory brings: more are reported again.
            if self.found.len() < MOST_FOUND {
                self.found.extend(report.found.take());
            }
            if let Some(said) = report.turn.take() {
                if self.said.len() >= MOST_SAID {
                    return Err("it says more of its turns than there are".to_owned());
                }
                self.said.push_back(said);
            }
            self.report = report.after(&mut self.report);
            self.reported = Some(now);
        }
        Ok(())
    }

    /// Its worker, which has waited, has its guest's socket: from now on it is as if it had been started with it.
    fn begin(&mut self) -> Result<(), String> {
        let handed = self.handed.take();
        let handed = handed.ok_or("it takes a session that nobody has given it")?;
        // The worker keeps it until it reads the word, so this close is never the last one.
        drop(handed.guest.trust());
        self.ask(Ask::Begin);
        Ok(())
    }

    fn distrust(&mut self, why: &str) {
        let why = format!("the worker misbehaves: {why}");
        match &mut self.handed {
            // Nothing of its guest has reached it.
            Some(handed) => handed.failed = Some(why),
            None => self.put_out(&why),
        }
    }

    /// Ends the process at once, and says why in its place.
    pub(super) fn put_out(&mut self, why: &str) {
        self.process.silent = true;
        self.kill(Force::Misbehaved);
        self.report.ended = Some(Ended::fault(why));
    }

    /// Asks without waiting; a worker that does not listen is dealt with by `kill_at`.
    pub(super) fn ask(&mut self, ask: Ask) {
        let line = format!("{ask}\n");
        if let Err(error) = self.process.tell(line.as_bytes()) {
            log::debug!("session {}: {} cannot be asked: {error}", self.id, ask);
        }
    }

    /// Gives the worker its guest's page, of which this word is its own.
    ///
    /// # Errors
    /// It does not take it.
    pub(super) fn give_memory(&self, word: u32, page: &Page) -> io::Result<()> {
        let line = format!("{}\n", Ask::Memory(word));
        self.process.tell_with(line.as_bytes(), page.as_fd())
    }

    /// Gives the worker the socket of a compiler, which ends after `limit`.
    pub(super) fn give_compiler(&mut self, socket: &UnixStream, limit: Duration) {
        let line = format!("{}\n", Ask::Compiler(limit));
        let sent = self.process.tell_with(line.as_bytes(), socket.as_fd());
        if let Err(error) = sent {
            log::debug!("session {}: no compiler can be given: {error}", self.id);
        }
    }

    /// Tells the worker that it gets no compiler.
    pub(super) fn refuse_compiler(&mut self, why: &str) {
        self.ask(Ask::NoCompiler(why.to_owned()));
    }

    /// Gives the key of the client that the worker has named: of one, once.
    pub(super) fn give_key(&mut self, find: impl FnOnce() -> Key) {
        if std::mem::replace(&mut self.key_given, true) {
            return self.distrust("it asks for a second client's key");
        }
        let mut line = find().to_line();
        line.push('\n');
        if let Err(error) = self.process.tell(line.as_bytes()) {
            log::debug!("session {}: no key can be given: {error}", self.id);
        }
    }

    /// Ends the process at once, for this reason unless there is one already.
    pub(super) fn kill(&mut self, force: Force) {
        if self.report.ended.is_none() {
            self.force.get_or_insert(force);
        }
        self.process.end();
    }

    /// Takes the last words of a process that has ended, which may still wait in the socket.
    pub(super) fn hear_out(&mut self, now: Instant) {
        // It holds less than this. No more: a process that the worker has started may still write.
        for _ in 0..64 {
            if self.process.silent || !self.listen(now) {
                break;
            }
        }
    }

    /// Its end, after the process has ended with a status and was heard out.
    pub(super) fn ended(&mut self, status: ExitStatus) -> Ended {
        match self.report.ended.take() {
            Some(ended) => ended,
            None => {
                self.force.get_or_insert(Force::Crashed);
                Ended::fault(format!("the worker died ({status})"))
            }
        }
    }
}

/// Texts of an honest worker hold no control characters and are short.
fn plausible(report: &Report) -> bool {
    let sound = |text: &str, most: usize| text.len() <= most && !text.chars().any(char::is_control);
    report
        .client
        .as_deref()
        .is_none_or(|text| sound(text, 1024))
        && report
            .ended
            .as_ref()
            .is_none_or(|ended| sound(&ended.text, MAX_LINE))
        && match &report.found {
            Some(Found::Client(name) | Found::Name(name)) => sound(name, MAX_NAME),
            Some(Found::Guest { name, .. }) => name.parse::<GuestName>().is_ok(),
            Some(Found::Session(name)) => name.parse::<SessionName>().is_ok(),
            _ => true,
        }
}

fn start_process(id: u64, spec: &Spec, guest: Option<Stranger<OwnedFd>>) -> io::Result<Process> {
    let start = Start::Session(Box::new(spec.clone()));
    Process::start(&format!("session-{id}"), &start, guest)
}

//! A worker process from the broker's side.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vchan::local::Stranger;
use vchan::xen::DomainLife;
use vgpu_file_transport::{GuestName, SessionName};
use vgpu_socket_transport::MAX_NAME;

use super::accounts::Force;
use super::compilers;
use super::who::Who;
use crate::devices::{Device, DeviceKey, Devices};
use crate::lines::{LineBuffer, LooseLines};
use crate::rate::TokenBucket;
use crate::usage::{Activity, Standing, Usage};
use crate::worker;
use crate::worker::link::{Ask, Ended, Found, Key, MAX_LINE, Report};
use crate::worker::spec::Spec;
use crate::worker::turns::Said;

/// Findings of one worker that wait at most.
const MOST_FOUND: usize = 1024;

/// Words of one worker about its turns that wait at most: more than are said before an answer.
const MOST_SAID: usize = 64;

/// A session's worker and what it has reported.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: u64,
    pub(super) who: Who,
    pub(super) began: Instant,
    /// It only tells its guest that it is turned away.
    pub(super) refusing: bool,
    /// It does not know yet whom it would serve.
    pub(super) stranger: bool,
    /// It has had the key of one client: there is none for another.
    key_given: bool,
    /// The user that it is, of those who have nothing but a worker.
    pub(super) user: Option<u32>,
    /// Of the guest's domain, until it is over.
    pub(super) life: Option<DomainLife>,
    child: Child,
    link: UnixStream,
    lines: LineBuffer,
    /// Its standard error, until that is over.
    log: Option<UnixStream>,
    log_lines: LooseLines,
    /// The link is over; the process may still be there.
    pub(super) silent: bool,
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

impl Session {
    /// Starts the worker. `guest` becomes its standard input, the link a descriptor that an argument
    /// names, and standard output is the log: a preloaded library may print what it likes.
    pub(super) fn start(
        id: u64,
        who: Who,
        spec: &Spec,
        guest: Option<Stranger<OwnedFd>>,
        now: Instant,
    ) -> io::Result<Self> {
        let (link, theirs) = UnixStream::pair()?;
        link.set_nonblocking(true)?;
        let (log, their_log) = UnixStream::pair()?;
        log.set_nonblocking(true)?;
        // A failed start closes it, and then this process must have another.
        let copy = guest.as_ref().map(|guest| guest.try_clone()).transpose()?;
        let label = format!("session-{id}");
        // Inherited by this child alone: no other thread of the broker starts processes.
        fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty()))?;
        let descriptor = theirs.as_raw_fd().to_string();
        let child = Command::new("/proc/self/exe")
            .arg0("vgpu-mediatord")
            .args([worker::ARGUMENT, &label, &descriptor])
            .arg(serde_json::to_string(spec)?)
            .env_remove("NOTIFY_SOCKET")
            // Compiled kernels of a guest must not reach another guest or this user's files.
            .env("CUDA_CACHE_DISABLE", "1")
            .envs(spec.driver_environment())
            .stdin(copy.map_or_else(Stdio::null, Stdio::from))
            .stdout(OwnedFd::from(their_log.try_clone()?))
            .stderr(OwnedFd::from(their_log))
            // A Ctrl-C at the terminal is for the broker, which lets the workers finish.
            .process_group(0)
            .spawn()?;
        drop(theirs);
        // The worker has it and keeps it until it reads the word, so this close is never the last one.
        drop(guest.map(Stranger::trust));
        if let Err(error) = (&link).write_all(&[worker::BEGIN]) {
            log::debug!("session {id}: its worker ended as it began: {error}");
        }
        Ok(Self {
            id,
            who,
            began: now,
            refusing: spec.refusal.is_some(),
            stranger: false,
            key_given: false,
            user: spec.confinement.user,
            life: None,
            child,
            link,
            lines: LineBuffer::new(MAX_LINE),
            log: Some(log),
            log_lines: LooseLines::default(),
            silent: false,
            report: Report::default(),
            found: VecDeque::new(),
            said: VecDeque::new(),
            weight: spec.share.weight.unwrap_or(1),
            devices: spec.share.devices,
            compiles: TokenBucket::new(compilers::STARTS.0, compilers::STARTS.1, now),
            reported: None,
            force: None,
            kill_at: None,
        })
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

    /// Its guest's device with this number, of those that there are. It has the first one, even where none is known.
    fn device(&self, number: u32, there: &[Device]) -> Option<DeviceKey> {
        let index = number as usize;
        let found = match &self.devices {
            Some(own) => own.keys().get(index).copied(),
            None => there.get(index).map(Device::key),
        };
        found.or_else(|| (number == 0).then_some(DeviceKey::Index(0)))
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
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
        let received = match self.lines.read(&self.link) {
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
        self.silent |= received.closed;
        any
    }

    fn take(&mut self, lines: Vec<String>, now: Instant) -> Result<(), String> {
        for line in lines {
            let mut report =
                serde_json::from_str::<Report>(&line).map_err(|error| error.to_string())?;
            if !plausible(&report) {
                return Err("a report has a text that no worker writes".to_owned());
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

    fn distrust(&mut self, why: &str) {
        self.put_out(&format!("the worker misbehaves: {why}"));
    }

    /// Ends the process at once, and says why in its place.
    pub(super) fn put_out(&mut self, why: &str) {
        self.silent = true;
        self.kill(Force::Misbehaved);
        self.report.ended = Some(Ended::fault(why));
    }

    /// The pipe of the worker's log, while it is open.
    pub(super) fn log(&self) -> Option<BorrowedFd<'_>> {
        self.log.as_ref().map(AsFd::as_fd)
    }

    /// Takes some of what the worker has logged.
    pub(super) fn logged(&mut self) -> Vec<String> {
        let Some(log) = &self.log else {
            return Vec::new();
        };
        let (lines, open) = self.log_lines.read(log);
        if !open {
            self.log = None;
        }
        lines
    }

    /// Asks without waiting; a worker that does not listen is dealt with by `kill_at`.
    pub(super) fn ask(&mut self, ask: Ask) {
        let line = format!("{ask}\n");
        if let Err(error) = (&self.link).write_all(line.as_bytes()) {
            log::debug!("session {}: {} cannot be asked: {error}", self.id, ask);
        }
    }

    /// Gives the worker the socket of a compiler, which ends after `limit`.
    pub(super) fn give_compiler(&mut self, socket: &UnixStream, limit: Duration) {
        let line = format!("{}\n", Ask::Compiler(limit));
        let descriptors = [socket.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut with = SendAncillaryBuffer::new(&mut space);
        let sent = match with.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            true => {
                let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                let line = [IoSlice::new(line.as_bytes())];
                sendmsg(&self.link, &line, &mut with, flags).map_err(io::Error::from)
            }
            false => Err(io::Error::other("no room for a descriptor")),
        };
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
        if let Err(error) = (&self.link).write_all(line.as_bytes()) {
            log::debug!("session {}: no key can be given: {error}", self.id);
        }
    }

    /// Ends the process at once, for this reason unless there is one already.
    pub(super) fn kill(&mut self, force: Force) {
        if self.report.ended.is_none() {
            self.force.get_or_insert(force);
        }
        self.end_process();
    }

    /// Ends the process of a session that is none.
    pub(super) fn end_process(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.link.shutdown(Shutdown::Both);
    }

    /// Whether the process has ended; collects its status.
    pub(super) fn try_wait(&mut self) -> Option<ExitStatus> {
        // An error means that there is no such child, which cannot be; it would be over then.
        self.child.try_wait().ok().flatten()
    }

    /// Its end, after [`try_wait`](Self::try_wait) has returned a status.
    pub(super) fn ended(&mut self, status: ExitStatus, now: Instant) -> Ended {
        // The last words may still wait in the socket, which holds less than this. No more: a process that the worker
        // has started may still write.
        for _ in 0..64 {
            if self.silent || !self.listen(now) {
                break;
            }
        }
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
            Some(Found::Guest(name)) => name.parse::<GuestName>().is_ok(),
            Some(Found::Session(name)) => name.parse::<SessionName>().is_ok(),
            _ => true,
        }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }
}

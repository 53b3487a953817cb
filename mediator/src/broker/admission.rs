//! Guests that want a session: who they are, whether they may have one, and its worker.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use vchan::local::{Listener, Stranger};
use vgpu_cli::Failure;

use super::accounts::Refusal;
use super::fair_queue::FairQueue;
use super::peer::{AccountKey, EndpointKind, Peer};
use super::session_worker::SessionWorker;
use super::xen::{Announced, Command, Event, XenGuests};
use super::{Broker, KICK_TIME};
use crate::devices::Device;
use crate::executor::ExecutorChoice;
use crate::policy::Share;
use crate::worker::confinement::Settings;
use crate::worker::link::Ask;
use crate::worker::spec::{Carrier, Spec, Turned};

/// Workers at once that only tell a guest why it is turned away; beyond them guests are just
/// disconnected.
pub(super) const MOST_REFUSING: usize = 8;

/// Connections over Unix sockets that wait until their account may start another process: in all, and
/// of one account.
pub(super) const WAITING: (usize, usize) = (128, 32);

/// How long they wait; clients give up at about that time.
const ADMISSION_WAIT_LIMIT: Duration = Duration::from_secs(10);

/// Somebody of this machine who wants a session.
#[derive(Debug)]
pub(super) struct LocalNewcomer {
    stream: Stranger<OwnedFd>,
    carrier: Carrier,
    peer: Peer,
}

/// Those who wait.
pub(super) type LocalNewcomers = FairQueue<AccountKey, LocalNewcomer>;

pub(super) fn newcomers() -> LocalNewcomers {
    FairQueue::new(WAITING.0, WAITING.1)
}

/// A listening Unix socket.
#[derive(Debug)]
pub(super) struct LocalDoor {
    listener: Listener,
    /// The protocol spoken over it.
    carrier: Carrier,
}

impl LocalDoor {
    pub(super) fn new(listener: Listener, carrier: Carrier) -> Self {
        Self { listener, carrier }
    }

    /// Its address.
    pub(super) fn path(&self) -> &Path {
        self.listener.path()
    }

    /// Lets everybody connect, or this process's user alone.
    pub(super) fn open_to(&self, everybody: bool) -> io::Result<()> {
        open_to(self.path(), everybody)
    }
}

impl AsFd for LocalDoor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Broker<'_> {
    pub(super) fn accept_local(&mut self, index: usize, now: Instant) {
        let Some(LocalDoor { listener, carrier }) = self.locals.get(index) else {
            return;
        };
        match listener.try_accept() {
            Ok(Some(stream)) => {
                let carrier = carrier.clone();
                self.on_local_guest(stream, carrier, now);
            }
            Ok(None) => {}
            Err(error) => {
                let line = format!("{}: {error}", listener.path().display());
                self.accounts.log_of_kind(&EndpointKind::Local, &line, now);
                // Out of descriptors, most likely: the connection still waits, so do not spin.
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    fn on_local_guest(&mut self, stream: UnixStream, carrier: Carrier, now: Instant) {
        let stream = Stranger::from(OwnedFd::from(stream));
        let credentials = match getsockopt(&*stream, PeerCredentials) {
            Ok(credentials) => credentials,
            Err(errno) => {
                let line = format!("a local guest cannot be identified: {errno}");
                self.accounts.log_of_kind(&EndpointKind::Local, &line, now);
                return;
            }
        };
        let (uid, pid) = (credentials.uid(), credentials.pid());
        let peer = match carrier {
            Carrier::Unix => Peer::Unix { uid, pid },
            _ => Peer::Local { uid, pid },
        };
        let newcomer = LocalNewcomer {
            stream,
            carrier,
            peer,
        };
        let account = newcomer.peer.account();
        self.local_newcomers.push(account, newcomer, now);
        self.let_in_local_newcomers(now);
    }

    /// Starts workers for those whose account has a start, and disconnects those for whom there is no
    /// room or who have waited for too long.
    pub(super) fn let_in_local_newcomers(&mut self, now: Instant) {
        while let Some(newcomer) = self.next_local_newcomer(now) {
            self.let_in_local(newcomer, now);
        }
        let out_of_patience = self.local_newcomers.expire(ADMISSION_WAIT_LIMIT, now);
        let crowded_out = std::iter::from_fn(|| self.local_newcomers.crowded_out());
        let gone: Vec<_> = crowded_out.collect();
        for LocalNewcomer { peer, .. } in out_of_patience.into_iter().chain(gone).map(|it| it.item)
        {
            self.accounts.refuse(&peer, Refusal::Rate, now);
            let line = "disconnected: it connects more often than it may";
            self.accounts.log(&peer, log::Level::Warn, line, now);
        }
    }

    fn next_local_newcomer(&mut self, now: Instant) -> Option<LocalNewcomer> {
        let may_start = |peer: &Peer| self.accounts.may_start_at(peer, now) <= now;
        let index = self
            .local_newcomers
            .iter()
            .position(|entry| may_start(&entry.item.peer))?;
        self.local_newcomers.remove(index).map(|entry| entry.item)
    }

    /// When that is due next.
    pub(super) fn local_newcomers_due(&self, now: Instant) -> Option<Instant> {
        let first = self.local_newcomers.first()? + ADMISSION_WAIT_LIMIT;
        let starts = self.local_newcomers.iter();
        let starts = starts.map(|entry| self.accounts.may_start_at(&entry.item.peer, now));
        starts.chain([first]).min()
    }

    fn let_in_local(&mut self, newcomer: LocalNewcomer, now: Instant) {
        let LocalNewcomer {
            stream,
            carrier,
            peer,
        } = newcomer;
        let trusted = peer.is_trusted();
        let refusal = if let Peer::Local { uid, .. } | Peer::Unix { uid, .. } = peer
            && !trusted
            && !self.config.policy.allow_all
        {
            Some(Turned::Denied(format!(
                "user {uid} may not use this mediator; it needs --allow-all for that"
            )))
        } else {
            let most = (!trusted).then_some(self.config.limits.max_sessions_per_guest);
            self.check_limits(&peer, most)
        };
        self.begin(peer, carrier, Some(stream), refusal, now);
    }

    pub(super) fn on_xen(&mut self, now: Instant) {
        let Some(events) = self.xen.as_mut().map(XenGuests::events) else {
            return;
        };
        let Ok(events) = events else {
            // The supervisor of this process restarts it.
            self.xen = None;
            self.failure = Some(Failure::new(
                "nobody watches for guests any more: the thread for it has ended",
                "look at the log above; start the mediator again",
            ));
            if self.stopping.is_none() {
                self.stop(now);
            }
            return;
        };
        for event in events {
            match event {
                Event::Announced(channel) => self.on_xen_guest(channel, now),
                Event::Gone { domid } => self.on_domain_gone(domid, now),
            }
        }
    }

    fn on_xen_guest(&mut self, channel: Announced, now: Instant) {
        let Announced {
            guest,
            name,
            again,
            life,
        } = channel;
        let domid = guest.domid;
        let peer = Peer::Xen(guest, name.clone());
        if self.stopping.is_some() {
            return;
        }
        let Peer::Xen(guest, _) = &peer else {
            return;
        };
        // Judged here again: the thread may have announced it by rules that are not in force any more.
        let judgement = self.config.policy.judge(guest);
        if !judgement.allow || self.accounts.may_start_at(&peer, now) > now {
            self.tell_xen(Command::Later { domid, name });
            return;
        }
        let most = judgement
            .max_sessions
            .unwrap_or(self.config.limits.max_sessions_per_guest);
        if let Some(Turned::Busy(why) | Turned::Denied(why)) = self.check_limits(&peer, Some(most))
        {
            // On Xen a guest waits anyway; a process to tell it so would be one too many.
            if !again {
                self.accounts.refuse(&peer, Refusal::Busy, now);
                let line = format!("has to wait: {why}");
                self.accounts.log(&peer, log::Level::Warn, &line, now);
            }
            self.tell_xen(Command::Later { domid, name });
            return;
        }
        let path = format!("data/vgpu/{name}");
        match self.begin(peer, Carrier::Xen { domid, path }, None, None, now) {
            Some(id) => {
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.life = Some(life);
                }
            }
            None => self.tell_xen(Command::Later { domid, name }),
        }
    }

    /// The domain of the guest of session `id` is gone: its worker, which may look at no domain, is notified. One
    /// that does not end then is killed, or the domain would stay a zombie for as long as its pages are
    /// mapped here.
    pub(super) fn on_life_over(&mut self, id: u64, now: Instant) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.life = None;
            session.ask(Ask::Gone);
            session.kill_at.get_or_insert(now + KICK_TIME);
        }
    }

    /// As [`on_life_over`](Self::on_life_over), of all sessions of the domain, as xenstored tells it.
    fn on_domain_gone(&mut self, gone: u16, now: Instant) {
        let of_it = |session: &&SessionWorker| matches!(&session.peer, Peer::Xen(guest, _) if guest.domid == gone);
        let ids: Vec<u64> = self
            .sessions
            .values()
            .filter(of_it)
            .map(|it| it.id)
            .collect();
        for id in ids {
            self.on_life_over(id, now);
        }
    }

    pub(super) fn tell_xen(&self, command: Command) {
        if let Some(xen) = &self.xen {
            xen.tell(command);
        }
    }

    /// Whether there is room for another session of `who`.
    pub(super) fn check_limits(&self, peer: &Peer, most: Option<u32>) -> Option<Turned> {
        let (all, room) = self.occupancy();
        let account = peer.account();
        let own = self
            .serving()
            .filter(|session| session.peer.account() == account);
        if most.is_some_and(|most| own.count() >= most as usize) {
            let most = most.unwrap_or_default();
            return Some(Turned::Busy(format!(
                "this guest is at its limit of sessions ({most}); end one first"
            )));
        }
        if let Peer::FileSession(..) = peer {
            let endpoint_kind = peer.endpoint_kind();
            let most = self.config.limits.max_file_sessions;
            let same = |session: &&SessionWorker| session.peer.endpoint_kind() == endpoint_kind;
            if self.serving().filter(same).count() >= most as usize {
                return Some(Turned::Busy(format!(
                    "{endpoint_kind} is at its limit of sessions (limits.max_file_sessions is {most}); try \
                     again later"
                )));
            }
        }
        (!room).then(|| {
            Turned::Busy(format!(
                "the mediator is at its limit of sessions ({all}); try again later"
            ))
        })
    }

    /// Sessions that count towards the limits: not the workers of directories, nor channels on offer
    /// that nobody has taken.
    fn serving(&self) -> impl Iterator<Item = &SessionWorker> {
        self.of_guests().filter(|session| {
            !matches!(session.peer, Peer::File(_)) && !self.is_offering(session.id)
        })
    }

    /// How many there are, and whether there is room for another.
    pub(super) fn occupancy(&self) -> (usize, bool) {
        let all = self.serving().count();
        (all, all < self.config.limits.max_sessions as usize)
    }

    /// Starts a worker. Returns the session's number if there is one now.
    pub(super) fn begin(
        &mut self,
        peer: Peer,
        carrier: Carrier,
        guest: Option<Stranger<OwnedFd>>,
        refusal: Option<Turned>,
        now: Instant,
    ) -> Option<u64> {
        if let Some(turned) = &refusal
            && !self.note_refusal(&peer, turned, now)
        {
            return None;
        }
        let refused = refusal.is_some();
        let id = self.start(peer.clone(), carrier, guest, refusal, now)?;
        if !refused && let Some(session) = self.sessions.get(&id) {
            self.accounts.begin(&peer, now);
            let line = format!("session {id} begins (worker {})", session.pid());
            self.accounts.log(&peer, log::Level::Info, &line, now);
        }
        Some(id)
    }

    /// Counts and logs that `who` is turned away. Returns whether a worker may tell it why.
    pub(super) fn note_refusal(&mut self, peer: &Peer, turned: &Turned, now: Instant) -> bool {
        let (reason, why) = match turned {
            Turned::Denied(why) => (Refusal::Denied, why),
            Turned::Busy(why) => (Refusal::Busy, why),
        };
        self.accounts.refuse(peer, reason, now);
        let line = format!("turned away: {why}");
        self.accounts.log(peer, log::Level::Warn, &line, now);
        let refusing = self.sessions.values().filter(|session| session.refusing);
        refusing.count() < MOST_REFUSING
    }

    /// Starts a worker, for an account or for nobody yet.
    pub(super) fn start(
        &mut self,
        peer: Peer,
        carrier: Carrier,
        guest: Option<Stranger<OwnedFd>>,
        refusal: Option<Turned>,
        now: Instant,
    ) -> Option<u64> {
        // A client over TCP has no account yet: its source is charged, and its account once it is known.
        if !matches!(peer, Peer::Tcp { name: None, .. }) {
            self.accounts.charge_start(&peer, now);
        }
        let id = self.next_session;
        self.next_session += 1;
        let spec = self.spec(id, &peer, carrier, refusal);
        let started = match self.hand(id, &peer, &spec, guest, now) {
            Ok(session) => Ok(session),
            Err(guest) => SessionWorker::start(id, peer.clone(), &spec, guest, now),
        };
        match started {
            Ok(session) => {
                self.sessions.insert(id, session);
                self.give_memory(id, now);
                Some(id)
            }
            Err(error) => {
                let line = format!("no worker can be started: {error}");
                self.accounts.log(&peer, log::Level::Error, &line, now);
                None
            }
        }
    }

    /// A guest's share: from the rules for it and the limits for all.
    pub(super) fn share(&self, peer: &Peer) -> Share {
        let policy = &self.config.policy;
        let own = match peer {
            Peer::Xen(guest, _) => policy.share(guest),
            Peer::File(place) | Peer::FileSession(place, _) => match &place.guest {
                Some(guest) => policy.share_of_name(&guest.to_string()),
                None => Share::default(),
            },
            Peer::Tcp {
                name: Some(name), ..
            } => policy.share_of_name(name),
            // Over TCP its name is known when the worker is there already.
            Peer::Tcp { name: None, .. } | Peer::Local { .. } | Peer::Unix { .. } | Peer::Dom0 => {
                Share::default()
            }
        };
        let share = own.or(self.config.limits.share());
        // By UUID, so that the same devices have the same names everywhere.
        let devices = share.devices;
        Share {
            devices: devices.map(|devices| devices.resolved(&self.chosen.executor.devices)),
            ..share
        }
    }

    /// The GPUs that the process of a worker with this share sees; `None`: all. If one is not known here, the
    /// worker looks for it itself, among all.
    fn gpus(&self, peer: &Peer, share: &Share) -> Option<Vec<Device>> {
        let there = &self.chosen.executor.devices;
        if self.chosen.choice != ExecutorChoice::Cuda {
            return None;
        }
        let gpus: Vec<Device> = match peer {
            // Whose it is will be known when the process is confined already.
            Peer::Tcp { name: None, .. } => {
                let keys = self.config.devices_of_anybody()?;
                let of_anybody = |gpu: &&Device| keys.iter().any(|key| gpu.is(*key));
                there.iter().filter(of_anybody).cloned().collect()
            }
            _ => share.devices?.find_in(there).ok()?,
        };
        let are_known = !gpus.is_empty() && gpus.iter().all(|gpu| !gpu.uuid.is_empty());
        are_known.then_some(gpus)
    }

    /// A user id that no other worker runs as; `None` if this process may not change a worker's user.
    pub(super) fn free_user(&self) -> Option<u32> {
        let sessions = self.sessions.values();
        let taken = sessions.filter_map(|it| it.process.user);
        let taken: Vec<u32> = taken.chain(self.warm.users()).collect();
        let mut all = self.config.worker.users();
        all.find(|user| !taken.contains(user))
    }

    /// The settings of the confinement of a worker that is started now.
    pub(super) fn confinement(&self) -> Settings {
        Settings {
            confine: self.config.worker.confine,
            user: self.free_user(),
        }
    }

    pub(super) fn spec(
        &self,
        id: u64,
        peer: &Peer,
        carrier: Carrier,
        refusal: Option<Turned>,
    ) -> Spec {
        let limits = &self.config.limits;
        let share = self.share(peer);
        Spec {
            broker_pid: std::process::id().cast_signed(),
            guest: peer.to_string(),
            carrier,
            confinement: self.confinement(),
            executor: self.chosen.choice.clone(),
            relay_secret: self.config.relay_secret.clone(),
            reason: self.chosen.executor.reason.clone(),
            epoch: self.epoch | (id & u64::from(u32::MAX)),
            connect_timeout_s: limits.connect_timeout_s,
            hello_timeout_s: limits.hello_timeout_s,
            file_silence_s: limits.file_silence_s,
            gpus: self.gpus(peer, &share),
            share,
            refusal,
            verbose: self.flags.verbose,
        }
    }
}

/// Listens for programs of this machine: the user's own, or everybody's.
pub(super) fn listen(path: &Path, everybody: bool) -> Result<Listener, Failure> {
    let listener =
        Listener::bind(path).map_err(|error| Failure::new(error.to_string(), error.advice()))?;
    open_to(path, everybody).map_err(|error| {
        Failure::system(
            format!("cannot set the permissions of {}", path.display()),
            error,
            "choose a path on a file system with Unix permissions",
        )
    })?;
    Ok(listener)
}

/// Opens the socket at `path` to everybody, or to its user alone.
fn open_to(path: &Path, everybody: bool) -> io::Result<()> {
    // Connecting needs the right to write to the socket.
    let mode = if everybody { 0o666 } else { 0o600 };
    fs::set_permissions(path, Permissions::from_mode(mode))
}

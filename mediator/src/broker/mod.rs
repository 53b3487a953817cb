//! The broker: one thread that waits for everything at once and waits for nobody.
//!
//! It watches for guests, applies the policy, starts one worker process for each session, collects
//! what they report, and answers `vgpuctl`. It never touches CUDA and no byte of a session passes
//! through it. What blocks is elsewhere: xenstore has a thread, and so has a configuration that is read again,
//! the executor's probe and the reading of GPUs' figures a process each, and what clients may have filled is
//! closed by the end of processes.

mod accounts;
mod admission;
pub mod closer;
mod compilers;
mod connections;
mod control_server;
mod device_turns;
mod fair_queue;
mod file_services;
mod gpus;
pub mod lock_file;
mod memory;
mod metrics;
mod metrics_server;
mod mounts;
mod open_files;
mod peer;
mod poll;
pub mod probe_process;
mod process;
mod publish_offers;
mod reap;
mod reload;
mod reprobe;
mod session_worker;
mod shutdown;
mod signals;
mod status;
mod systemd;
mod tcp_door;
mod turns;
mod unauthenticated;
pub mod warm;
pub(crate) mod xen;

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use vgpu_cli::Failure;
use vgpu_transport::endpoint::Endpoint;

use crate::cli::Flags;
use crate::config::Config;
use crate::control::{Answer, Ask};
use crate::devices::MISSING_ADVICE;
use crate::executor::ExecutorChoice;
use crate::logging;
use crate::worker::confinement::{Confine, Protection, Settings, trial};
use crate::worker::link::{self, Found};
use crate::worker::spec::Carrier;
use accounts::{Accounts, Force};
use admission::{LocalDoor, LocalNewcomers, listen};
use closer::Closers;
use compilers::Compilers;
use control_server::{ControlServer, refused};
use device_turns::DeviceTurns;
use file_services::FileService;
use gpus::Gpus;
use lock_file::LockFile;
use memory::Memories;
use metrics::Labels;
use metrics_server::MetricsServer;
use mounts::Mounts;
use peer::Target;
use probe_process::ChosenExecutor;
use publish_offers::{Offers, own_domid};
use reload::Reload;
use reprobe::Reprobe;
use session_worker::SessionWorker;
use shutdown::Shutdown;
use signals::Signals;
use status::{Asker, Query};
use systemd::notify;
use tcp_door::{Newcomers, TcpDoor};
use turns::{Word, Words};
use warm::WarmWorkers;
use xen::XenGuests;

/// Time that a kicked session gets to tell its guest.
const KICK_TIME: Duration = Duration::from_secs(2);

/// Runs the mediator until a signal or an error stops it. `flags` are those that `config` was made with: they are
/// applied again to a file that is read again.
///
/// # Errors
/// It cannot start, with what to do about it.
pub fn run(config: Config, flags: &Flags) -> Result<(), Failure> {
    open_files::allow(&config)?;
    let instance = lock(&config.control)?;
    // From here on a signal no longer ends the process where it stands.
    let signals = Signals::register().map_err(|error| {
        Failure::system(
            "cannot handle signals",
            error,
            "this is not expected; report it",
        )
    })?;
    let chosen = probe_process::find(
        &config.executor,
        config.relay_secret.as_deref(),
        Some(signals.termination()),
    )?;
    let (level, again) = match chosen.stands_in {
        true => (log::Level::Warn, "; looked for again while this runs"),
        false => (log::Level::Info, ""),
    };
    log::log!(
        level,
        "executor {}: {}, {}{again}",
        chosen.executor.kind,
        chosen.executor.device,
        chosen.executor.reason
    );
    let cuda = chosen.choice == ExecutorChoice::Cuda;
    let protections = protections(&config, cuda)?;
    let mut broker = Broker::open(config, flags, instance, chosen, signals)?;
    broker.protections = protections;
    broker.warn_of_missing_devices();
    notify("READY=1");
    broker.tell_status();
    broker.serve()
}

/// Protections of this machine against its workers, tried before the first of them has a guest.
fn protections(config: &Config, cuda: bool) -> Result<Vec<Protection>, Failure> {
    let settings = Settings {
        confine: config.worker.confine,
        // The last one, whom no worker has yet.
        user: config.worker.users().last(),
    };
    let protections = trial::run(&settings, cuda).map_err(|why| {
        Failure::new(
            format!("workers cannot be confined: {why}"),
            "vgpuctl doctor shows what works here; worker.confine = \"best-effort\" in the configuration \
             does without what does not",
        )
    })?;
    if settings.confine == Confine::Off {
        log::warn!("workers are not confined: worker.confine is \"off\"");
    }
    for Protection { name, note, .. } in protections.iter().filter(|protection| !protection.on) {
        log::warn!("workers are not confined in full: {name}: {note}");
    }
    Ok(protections)
}

fn lock(control: &Path) -> Result<LockFile, Failure> {
    let mut path = control.as_os_str().to_owned();
    path.push(".lock");
    LockFile::acquire(
        path.as_ref(),
        &format!("already serves {}", control.display()),
        "stop that one first (kill its pid, or systemctl stop vgpu-mediatord), or give this one \
         another --control PATH",
    )
}

struct Broker<'a> {
    config: Config,
    flags: &'a Flags,
    reload: Reload,
    /// Protections of this machine against its workers.
    protections: Vec<Protection>,
    chosen: ChosenExecutor,
    /// While `chosen` only stands in for what was asked for.
    reprobe: Option<Reprobe>,
    gpus: Gpus,
    began: Instant,
    /// High half of all epochs of this mediator.
    epoch: u64,
    signals: Signals,
    locals: Vec<LocalDoor>,
    /// Connections to `locals` whose account has no start to spend yet.
    local_newcomers: LocalNewcomers,
    tcps: Vec<TcpDoor>,
    /// Connections to `tcps` that have not shown a secret yet.
    newcomers: Newcomers,
    files: Vec<FileService>,
    mounts: Mounts,
    xen: Option<XenGuests>,
    offers: Option<Offers>,
    sessions: BTreeMap<u64, SessionWorker>,
    warm: WarmWorkers,
    next_session: u64,
    accounts: Accounts,
    turns: DeviceTurns,
    memories: Memories,
    compilers: Compilers,
    queries: Vec<Query>,
    metrics: Option<MetricsServer>,
    /// Guests' labels in metrics.
    labels: Labels,
    stopping: Option<Shutdown>,
    /// Why it stops of its own accord.
    failure: Option<Failure>,
    control: ControlServer,
    closers: Closers,
    // Last, so that everything else is gone when the next mediator may start.
    _instance: LockFile,
}

/// The owner of a descriptor in the poll set.
#[derive(Clone, Copy)]
enum Source {
    Termination,
    HangUp,
    /// A configuration that was read again.
    Reload,
    Children,
    Probe,
    Gpus,
    Local(usize),
    Tcp(usize),
    Mounts,
    Xen,
    ControlListener,
    MetricsListener,
    Metrics(u64),
    Control(u64),
    Session(u64),
    /// The log of its worker.
    Log(u64),
    /// A worker without a session yet.
    Warm(u64),
    WarmLog(u64),
    /// The end of its guest's domain.
    Life(u64),
}

impl<'a> Broker<'a> {
    fn open(
        config: Config,
        flags: &'a Flags,
        instance: LockFile,
        chosen: ChosenExecutor,
        signals: Signals,
    ) -> Result<Self, Failure> {
        let now = Instant::now();
        let control = ControlServer::bind(&config.control)?;
        let mut random = [0; 4];
        getrandom::fill(&mut random).map_err(|error| {
            Failure::system(
                "no random numbers",
                error,
                "this is not expected; report it",
            )
        })?;
        let mut broker = Self {
            config,
            flags,
            reload: Reload::new(now),
            protections: Vec::new(),
            reprobe: chosen.stands_in.then(|| Reprobe::new(now)),
            chosen,
            gpus: Gpus::new(now),
            began: now,
            epoch: u64::from(u32::from_ne_bytes(random)) << 32,
            signals,
            locals: Vec::new(),
            local_newcomers: admission::newcomers(),
            tcps: Vec::new(),
            newcomers: Newcomers::default(),
            files: Vec::new(),
            mounts: Mounts::default(),
            xen: None,
            offers: None,
            sessions: BTreeMap::new(),
            warm: WarmWorkers::new(now),
            next_session: 1,
            accounts: Accounts::default(),
            turns: DeviceTurns::default(),
            memories: Memories::default(),
            compilers: Compilers::new(),
            queries: Vec::new(),
            metrics: None,
            labels: Labels::default(),
            stopping: None,
            failure: None,
            control,
            closers: Closers::new(now),
            _instance: instance,
        };
        for endpoint in &broker.config.listen {
            match endpoint {
                Endpoint::Local(path) => {
                    let listener = listen(path, broker.config.policy.allow_all)?;
                    broker.locals.push(LocalDoor::new(listener, Carrier::Local));
                }
                Endpoint::Unix(path) => {
                    let listener = listen(path, broker.config.policy.allow_all)?;
                    broker.locals.push(LocalDoor::new(listener, Carrier::Unix));
                }
                Endpoint::Tcp { host, port } => {
                    let door = TcpDoor::open(host, *port, endpoint.to_string())?;
                    broker.tcps.push(door);
                }
                Endpoint::Xen => match own_domid() {
                    None | Some(0) => broker.xen = Some(XenGuests::start(&broker.config.policy)?),
                    Some(_) => broker.offers = Some(Offers::start(now)?),
                },
                Endpoint::File(directory) => {
                    broker.mounts = Mounts::open();
                    broker.files.push(FileService::new(directory, now)?);
                }
                other => {
                    return Err(Failure::new(
                        format!("cannot listen on {other}"),
                        "use xen:, local:PATH, unix:PATH, tcp:HOST:PORT or file:DIR",
                    ));
                }
            }
            log::info!("listening on {endpoint}");
        }
        broker.want_warm(now);
        if let Some(address) = &broker.config.metrics {
            broker.metrics = Some(MetricsServer::bind(address)?);
            log::info!("metrics at {address}");
        }
        Ok(broker)
    }

    fn serve(&mut self) -> Result<(), Failure> {
        let mut now = Instant::now();
        loop {
            self.start_file_services(now);
            self.keep_offering(now);
            self.expire(now);
            if self.stopping.as_ref().is_some_and(Shutdown::is_over) {
                log::info!("stopped");
                return self.failure.take().map_or(Ok(()), Err);
            }
            // Read before the look, so that there is one after every deadline.
            now = Instant::now();
            for source in self.wait()? {
                self.on_ready(source, Instant::now());
            }
        }
    }

    /// Waits until something happens or is due; gives the descriptors concerned.
    fn wait(&self) -> Result<Vec<Source>, Failure> {
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut sources = vec![Source::Termination, Source::HangUp, Source::Children];
        let mut fds = vec![
            readable(self.signals.termination()),
            readable(self.signals.hang_up()),
            readable(self.signals.children()),
        ];
        if let Some(answer) = self.reprobe.as_ref().and_then(Reprobe::answer) {
            sources.push(Source::Probe);
            fds.push(readable(answer));
        }
        if let Some(answer) = self.gpus.answer() {
            sources.push(Source::Gpus);
            fds.push(readable(answer));
        }
        if let Some(result) = self.reload.result() {
            sources.push(Source::Reload);
            fds.push(readable(result));
        }
        for (index, listener) in self.open_doors() {
            sources.push(Source::Local(index));
            fds.push(readable(listener.as_fd()));
        }
        for (index, door) in self.tcps.iter().enumerate() {
            sources.push(Source::Tcp(index));
            fds.push(readable(door.as_fd()));
        }
        if let Some(changes) = self.mounts.changes() {
            sources.push(Source::Mounts);
            fds.push(PollFd::new(changes, PollFlags::POLLPRI));
        }
        if let Some(xen) = &self.xen {
            sources.push(Source::Xen);
            fds.push(readable(xen.as_fd()));
        }
        if let Some(listener) = self.control.listener() {
            sources.push(Source::ControlListener);
            fds.push(readable(listener));
        }
        for (id, fd) in self.control.connections() {
            sources.push(Source::Control(id));
            fds.push(fd);
        }
        if let Some(metrics) = &self.metrics {
            if let Some(listener) = metrics.listener(Instant::now()) {
                sources.push(Source::MetricsListener);
                fds.push(readable(listener));
            }
            for (id, fd) in metrics.connections() {
                sources.push(Source::Metrics(id));
                fds.push(fd);
            }
        }
        for session in self.sessions.values().filter(|it| !it.process.silent) {
            sources.push(Source::Session(session.id));
            fds.push(readable(session.process.as_fd()));
        }
        for (id, process) in self.warm.links() {
            sources.push(Source::Warm(id));
            fds.push(readable(process.as_fd()));
        }
        for (id, log) in self.warm.logs() {
            sources.push(Source::WarmLog(id));
            fds.push(readable(log));
        }
        for session in self.sessions.values() {
            if let Some(life) = &session.life {
                sources.push(Source::Life(session.id));
                fds.push(readable(life.as_fd()));
            }
            if let Some(log) = session.process.log() {
                sources.push(Source::Log(session.id));
                fds.push(readable(log));
            }
        }
        poll::wait(&mut fds, self.next_deadline(Instant::now())).map_err(|error| {
            Failure::system(
                "cannot wait for events",
                error,
                "this is not expected; report it",
            )
        })?;
        let ready = sources.into_iter().zip(&fds);
        Ok(ready
            .filter(|(_, fd)| poll::is_ready(fd))
            .map(|(source, _)| source)
            .collect())
    }

    /// The Unix sockets whose clients are taken: none while many connections wait for a process that
    /// closes them, which is a moment.
    fn open_doors(&self) -> impl Iterator<Item = (usize, &LocalDoor)> {
        let open = self.closers.have_room();
        self.locals.iter().enumerate().filter(move |_| open)
    }

    fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let sessions = self.sessions.values();
        let kills = sessions.flat_map(|session| [session.kill_at, session.take_until()]);
        let kills = kills.flatten();
        let queries = self.queries.iter().map(|query| query.deadline);
        let files = self.files.iter().filter_map(FileService::deadline);
        let stopping = self.stopping.as_ref().and_then(Shutdown::deadline);
        kills
            .chain(queries)
            .chain(files)
            .chain(self.mounts.deadline())
            .chain(self.offer_due(now))
            .chain(self.closers.deadline())
            .chain(self.control.deadline())
            .chain(self.metrics.as_ref().and_then(MetricsServer::deadline))
            .chain(self.reload.deadline())
            .chain(self.reprobe.as_ref().map(|reprobe| reprobe.deadline(now)))
            .chain(self.gpus.deadline(now))
            .chain(self.newcomers.deadline(now))
            .chain(self.local_newcomers_due(now))
            .chain(self.accounts.deadline())
            .chain(self.turns.deadline())
            .chain(self.compilers.deadline())
            .chain(self.warm.deadline())
            .chain(stopping)
            .min()
    }

    fn on_ready(&mut self, source: Source, now: Instant) {
        match source {
            Source::Termination => {
                if self.signals.take_terminations() > 0 {
                    self.stop(now);
                }
            }
            Source::HangUp => {
                if self.signals.take_hang_ups() > 0 {
                    self.on_hang_up(now);
                }
            }
            Source::Reload => self.take_reading(now),
            Source::Children => {
                if self.signals.take_children() > 0 {
                    self.reap(now);
                }
            }
            Source::Probe => self.look_again(now),
            Source::Gpus => {
                self.gpus.on_ready(now);
                self.answer_queries(now);
            }
            Source::Local(index) => self.accept_local(index, now),
            Source::Tcp(index) => self.accept_tcp(index, now),
            Source::Mounts => self.mounts.on_change(now),
            Source::Xen => self.on_xen(now),
            Source::ControlListener => self.control.accept(now),
            Source::Control(id) => {
                if let Some(ask) = self.control.serve(id) {
                    self.on_ask(id, ask, now);
                }
            }
            Source::MetricsListener => {
                if let Some(metrics) = &mut self.metrics {
                    metrics.accept(now);
                }
            }
            Source::Metrics(id) => {
                if self.metrics.as_mut().is_some_and(|it| it.serve(id)) {
                    self.begin_query(Asker::Scrape(id), now);
                }
            }
            Source::Log(id) => self.on_log(id, now),
            Source::Warm(id) => self.warm.on_link(id, now),
            Source::WarmLog(id) => self.warm.on_log(id, now),
            Source::Life(id) => self.on_life_over(id, now),
            Source::Session(id) => {
                let mut found = VecDeque::new();
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.listen(now);
                    std::mem::swap(&mut found, &mut session.found);
                }
                self.start_instead(id, false, now);
                if let Some(session) = self.sessions.get_mut(&id) {
                    // It has nothing to say any more; a healthy one ends within moments.
                    if session.process.silent {
                        session.kill_at.get_or_insert(now + KICK_TIME);
                    }
                }
                for found in found {
                    match &found {
                        Found::Name(name) => self.on_name(id, name),
                        Found::Client(name) => self.on_client(id, name, now),
                        Found::Source { driver } => self.on_compile(id, *driver, now),
                        found => self.on_found(id, found, now),
                    }
                }
                self.take_turns(id, now);
                self.look_at_offer(id, now);
                self.answer_queries(now);
            }
        }
    }

    /// Hears what a worker says of its turns on the device.
    fn take_turns(&mut self, id: u64, now: Instant) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let (account, weight) = (session.peer.account(), session.weight);
        let (said, serves) = (std::mem::take(&mut session.said), session.counts());
        let silent = session.process.silent;
        for said in said.into_iter().filter(|_| serves) {
            let there = &self.chosen.executor.devices;
            let session = self.sessions.get_mut(&id);
            let Some(device) = session.and_then(|it| it.device_of(said, there)) else {
                break;
            };
            let words = match (said.over, said.want) {
                (true, another) => self.turns.over(id, another, now),
                (false, true) => self.turns.want(id, device, (&account, weight), now),
                (false, false) => continue,
            };
            self.tell_turns(words);
        }
        if silent {
            self.end_turns(id, now);
        }
    }

    /// A session has no turn any more, and wants none.
    fn end_turns(&mut self, id: u64, now: Instant) {
        let words = self.turns.gone(id, now);
        self.tell_turns(words);
    }

    fn tell_turns(&mut self, words: Words) {
        for (id, word) in words {
            if let Some(session) = self.sessions.get_mut(&id) {
                session.ask(match word {
                    Word::Turn(most) => link::Ask::Turn(most),
                    Word::Yield(most) => link::Ask::Yield(most),
                });
            }
        }
    }

    /// Settings that name a device which is not there, in words.
    fn missing_devices(&self) -> Vec<String> {
        // What stands in for a GPU has not its devices.
        if self.chosen.stands_in {
            return Vec::new();
        }
        let there = &self.chosen.executor.devices;
        self.config.missing_devices_in_words(there)
    }

    fn warn_of_missing_devices(&self) {
        for missing in self.missing_devices() {
            log::warn!("{missing}; sessions that are to have it are refused; {MISSING_ADVICE}");
        }
    }

    /// Takes what the worker of a session has logged.
    fn on_log(&mut self, id: u64, now: Instant) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let lines = session.process.logged();
        let peer = session.peer.clone();
        for line in lines {
            let (level, target, text) = logging::parse_worker_line(&line);
            self.accounts.log_of(&peer, &peer, target, level, text, now);
        }
    }

    fn on_ask(&mut self, connection: u64, ask: Ask, now: Instant) {
        match ask {
            Ask::Status => self.begin_query(Asker::Status(connection), now),
            Ask::Metrics => self.begin_query(Asker::Metrics(connection), now),
            Ask::Reload => self.ask_reload(connection, now),
            Ask::Kick { guest } => {
                let answer = match Target::parse(&guest) {
                    Ok(target) => self.kick(&target, &guest, now),
                    Err(what) => refused(
                        &what,
                        "name a guest as vgpuctl status prints it, a domid, a VM's name or uuid, the \
                         name of a secret, `local`, or session:N",
                    ),
                };
                self.control.answer(connection, answer);
            }
        }
    }

    fn kick(&mut self, target: &Target, text: &str, now: Instant) -> Answer {
        let mut kicked = 0;
        for session in self.sessions.values_mut() {
            if !session.refusing && target.means(session.id, &session.peer) {
                session.ask(link::Ask::Kick);
                session.force.get_or_insert(Force::Kick);
                session.kill_at.get_or_insert(now + KICK_TIME);
                kicked += 1;
                log::info!("{}: session {} is kicked", session.peer, session.id);
            }
        }
        if kicked == 0 {
            return refused(
                &format!("{text} has no session"),
                "vgpuctl status lists the sessions",
            );
        }
        Answer::Kicked(kicked)
    }

    /// Does what is due.
    fn expire(&mut self, now: Instant) {
        for session in self.sessions.values_mut() {
            if session.kill_at.is_some_and(|at| at <= now) {
                session.kill(Force::Hung);
                // Reaped when its signal comes; killed again should that take long.
                session.kill_at = Some(now + KICK_TIME);
            }
        }
        let handed = self
            .sessions
            .values()
            .filter(|it| it.take_until().is_some());
        for id in handed.map(|it| it.id).collect::<Vec<_>>() {
            self.start_instead(id, false, now);
        }
        self.look_at_mounts(now);
        self.keep_warm(now);
        self.control.expire(now);
        if let Some(metrics) = &mut self.metrics {
            metrics.expire(now);
        }
        self.look_at_newcomers(now);
        self.look_again(now);
        self.gpus.expire(now);
        self.expire_reload(now);
        self.let_in_local_newcomers(now);
        self.accounts.tell_suppressed(now);
        self.expire_compilers(now);
        let words = self.turns.expire(now);
        self.tell_turns(words);
        self.answer_queries(now);
        self.expire_stop(now);
        // Last, as the others may have let go of connections.
        self.closers.work(now);
    }
}

//! `file:` endpoints: a worker for each directory, started again when it ends.
//!
//! A directory `DIR` and each `DIR/<guest>/` beside it has a worker, an account and a name in the log
//! of its own, so that one that hangs or is full of nonsense holds up no other. The worker of `DIR`
//! reports the guests' directories that it sees; the broker itself looks into none.

use std::fs;
use std::mem;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vgpu_cli::Failure;
use vgpu_file_transport::{GuestName, SessionName};

use super::Broker;
use super::mounts::Mounted;
use super::peer::{Peer, Place};
use crate::policy::{GuestKey, GuestRule};
use crate::worker::link::{Ask, Found};
use crate::worker::spec::Carrier;

/// First and longest pause before a worker that failed is started again.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// A worker that ran this long has not failed at once.
const LASTED: Duration = Duration::from_secs(60);

/// A guest's directory whose worker ended is forgotten unless it was seen again this lately: then
/// the admin has removed it.
const REMEMBERED: Duration = Duration::from_secs(10);

/// A directory and its worker.
#[derive(Debug)]
pub(super) struct FileService {
    place: Place,
    /// Its path without links.
    path: PathBuf,
    /// What was mounted there before its worker was started.
    mounted: Option<Mounted>,
    state: State,
    pause: Duration,
    /// When the worker of `DIR` saw this guest's directory last, and its inode number.
    seen: Instant,
    inode: Option<u64>,
}

#[derive(Debug)]
enum State {
    Waiting { until: Instant },
    Running { session: u64, since: Instant },
}

impl FileService {
    /// Serves `directory`, which is made unless it exists, from `now` on.
    pub(super) fn new(directory: &Path, now: Instant) -> Result<Self, Failure> {
        let made = match fs::metadata(directory) {
            Ok(metadata) if !metadata.is_dir() => {
                return Err(Failure::new(
                    format!("file:{}: not a directory", directory.display()),
                    "name a directory that clients can write in",
                ));
            }
            Ok(_) => Ok(()),
            // Other users that may write there could invent guests.
            Err(_) => fs::DirBuilder::new().mode(0o755).create(directory),
        };
        made.map_err(|error| {
            Failure::system(
                format!("cannot make the directory {}", directory.display()),
                error,
                "make it, or name one that exists",
            )
        })?;
        let place = Place {
            directory: directory.to_owned(),
            guest: None,
        };
        let path = fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
        Ok(Self::of(place, path, now))
    }

    fn of(place: Place, path: PathBuf, now: Instant) -> Self {
        Self {
            place,
            path,
            mounted: None,
            state: State::Waiting { until: now },
            pause: PAUSE.0,
            seen: now,
            inode: None,
        }
    }

    /// When its worker is to be started.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { until } => Some(until),
            State::Running { .. } => None,
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.deadline().is_some_and(|at| at <= now)
    }

    fn is_forgotten(&self, now: Instant) -> bool {
        self.place.guest.is_some()
            && self.is_due(now)
            && now.saturating_duration_since(self.seen) >= REMEMBERED
    }
}

impl Broker<'_> {
    /// Starts the workers that are due.
    pub(super) fn start_file_services(&mut self, now: Instant) {
        self.files.retain(|service| !service.is_forgotten(now));
        for index in 0..self.files.len() {
            if !self.files[index].is_due(now) {
                continue;
            }
            let place = self.files[index].place.clone();
            let may_start = self.accounts.may_start_at(&Peer::File(place.clone()), now);
            if may_start > now {
                self.files[index].state = State::Waiting { until: may_start };
                continue;
            }
            let carrier = Carrier::File {
                directory: place.directory.clone(),
                guest: place.guest.as_ref().map(GuestName::to_string),
            };
            let service = &mut self.files[index];
            service.mounted = self.mounts.read().find(&service.path);
            let session = self.begin(Peer::File(place), carrier, None, None, now);
            let service = &mut self.files[index];
            service.state = match session {
                Some(session) => State::Running {
                    session,
                    since: now,
                },
                None => State::Waiting {
                    until: now + service.pause,
                },
            };
        }
    }

    /// Ends the workers of directories where something else is mounted than before, which then is served. Their
    /// sessions lie where no guest can reach them any more.
    pub(super) fn look_at_mounts(&mut self, now: Instant) {
        if !self.mounts.is_due(now) {
            return;
        }
        let table = self.mounts.read();
        let changed = self.files.iter().filter(|service| {
            matches!(service.state, State::Running { .. })
                && service.mounted != table.find(&service.path)
        });
        let changed: Vec<Place> = changed.map(|service| service.place.clone()).collect();
        for place in changed {
            self.serve_anew(place, "another file system lies there now", now);
        }
    }

    /// Ends the workers of a directory and of its sessions, whatever has changed there. What lies there now gets others.
    fn serve_anew(&mut self, place: Place, why: &str, now: Instant) {
        let of_place = |peer: &Peer| match peer {
            Peer::File(at) | Peer::FileSession(at, _) => *at == place,
            _ => false,
        };
        let workers = self.sessions.values().filter(|it| of_place(&it.peer));
        let workers: Vec<u64> = workers.map(|it| it.id).collect();
        let line = format!("{why}, which is served instead");
        let peer = Peer::File(place);
        self.accounts.log(&peer, log::Level::Info, &line, now);
        self.ask_to_end(&workers);
    }

    /// Takes what the worker `session` of a directory has seen there.
    pub(super) fn on_found(&mut self, session: u64, found: &Found, now: Instant) {
        let serves = |service: &&FileService| matches!(service.state, State::Running { session: running, .. } if running == session);
        let Some(service) = self.files.iter().find(serves) else {
            return;
        };
        let (place, path) = (service.place.clone(), service.path.clone());
        let nonsense = |what: &str| Err(format!("its worker reports {what}"));
        let outcome = match found {
            Found::Guest { name, inode } => match name.parse() {
                // Only beside the two files of `DIR` itself: there are no guests of guests.
                Ok(guest) if place.guest.is_none() => {
                    self.on_guest_directory(place.clone(), &path, guest, *inode, now);
                    Ok(())
                }
                _ => nonsense("a guest that cannot be"),
            },
            Found::Session(name) => match name.parse() {
                Ok(name) => {
                    self.on_file_session(place.clone(), name, now);
                    Ok(())
                }
                Err(error) => nonsense(&format!("a session: {error}")),
            },
            // Not of directories.
            Found::Client(_) | Found::Name(_) | Found::Source { .. } => Ok(()),
        };
        if let Err(line) = outcome {
            let peer = Peer::File(place);
            self.accounts.log(&peer, log::Level::Warn, &line, now);
        }
    }

    fn on_guest_directory(
        &mut self,
        place: Place,
        parent_path: &Path,
        guest: GuestName,
        inode: u64,
        now: Instant,
    ) {
        // Until it is served, lines about it are of the directory that it lies in.
        let parent = Peer::File(place.clone());
        let path = parent_path.join(guest.as_str());
        let place = Place {
            guest: Some(guest),
            ..place
        };
        if let Some(service) = self.files.iter_mut().find(|at| at.place == place) {
            service.seen = now;
            let known = service.inode.replace(inode);
            if known.is_some_and(|known| known != inode) {
                self.serve_anew(place, "another directory has its name now", now);
            }
            return;
        }
        if self.stopping.is_some() || self.is_denied(&place) {
            return;
        }
        let guests = self.files.iter().filter(|at| at.place.guest.is_some());
        let most = self.config.limits.max_file_guests as usize;
        if guests.count() >= most {
            let line = format!("not served: limits.max_file_guests is {most}");
            let warn = log::Level::Warn;
            self.accounts
                .log_of(&parent, &place, module_path!(), warn, &line, now);
            return;
        }
        let line = format!("listening on {place}");
        self.accounts.log(&parent, log::Level::Info, &line, now);
        self.files.push(FileService {
            inode: Some(inode),
            ..FileService::of(place, path, now)
        });
    }

    /// A guest has made a session. It is reported again until a worker has taken it.
    fn on_file_session(&mut self, place: Place, name: SessionName, now: Instant) {
        let peer = Peer::FileSession(place, name);
        let runs = self.sessions.values().any(|session| session.peer == peer);
        if runs || self.stopping.is_some() || self.accounts.may_start_at(&peer, now) > now {
            return;
        }
        let Peer::FileSession(place, _) = &peer else {
            return;
        };
        let most = self
            .rule(place)
            .and_then(|rule| rule.max_sessions)
            .unwrap_or(self.config.limits.max_sessions_per_guest);
        let carrier = Carrier::FileSession {
            directory: place.directory.clone(),
            guest: place.guest.as_ref().map(GuestName::to_string),
            session: name.to_string(),
        };
        let refusal = self.check_limits(&peer, Some(most));
        self.begin(peer, carrier, None, refusal, now);
    }

    /// Tells the worker of a directory that a session there has ended, so that its guest gets the reason.
    pub(super) fn file_session_ended(&mut self, peer: &Peer) {
        let Peer::FileSession(place, name) = peer else {
            return;
        };
        let worker = self.files.iter().find_map(|service| match service.state {
            State::Running { session, .. } if service.place == *place => Some(session),
            _ => None,
        });
        if let Some(worker) = worker.and_then(|worker| self.sessions.get_mut(&worker)) {
            worker.ask(Ask::Over(*name));
        }
    }

    /// The rule for the guest of this name.
    fn rule(&self, place: &Place) -> Option<&GuestRule> {
        let guest = place.guest.as_ref()?;
        self.config
            .policy
            .guests
            .get(&GuestKey::Name(guest.to_string()))
    }

    /// Whether a rule denies the guest of this name.
    pub(super) fn is_denied(&self, place: &Place) -> bool {
        self.rule(place).is_some_and(|rule| !rule.allow)
    }

    /// Serves the directories no longer whose guests the rules deny; returns their workers.
    pub(super) fn forget_denied_directories(&mut self) -> Vec<u64> {
        let (denied, served) = mem::take(&mut self.files)
            .into_iter()
            .partition(|service| self.is_denied(&service.place));
        self.files = served;
        let denied: Vec<FileService> = denied;
        let workers = denied.iter().filter_map(|service| match service.state {
            State::Running { session, .. } => Some(session),
            State::Waiting { .. } => None,
        });
        workers.collect()
    }

    /// Notes that a session has ended; if it was a file service, it is due again after a pause.
    pub(super) fn file_service_ended(&mut self, ended: u64, now: Instant) {
        for service in &mut self.files {
            let State::Running { session, since } = service.state else {
                continue;
            };
            if session != ended {
                continue;
            }
            if now.duration_since(since) >= LASTED {
                service.pause = PAUSE.0;
            }
            service.state = State::Waiting {
                until: now + service.pause,
            };
            service.pause = (service.pause * 2).min(PAUSE.1);
        }
    }
}

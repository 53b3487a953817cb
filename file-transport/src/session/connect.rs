//! Bringing a session up: the guest makes it, the mediator takes it.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::fstatat;
use nix::unistd::geteuid;
use vgpu_transport::TransportError;

use super::directory::{PROBE_CONTENT, SessionDirectory, open_place};
use super::file_name;
use super::mount::Mount;
use super::mount_cache_test::CacheTest;
use super::rules::Exchange;
use super::segment::Role;
use super::stream::{FileTransport, Prepared, Progress};
use crate::name::{GuestName, SESSIONS, SessionName};
use crate::two_file_grammar::RESPONSE_FILE;

/// Interval at which a wait checks whether the program was told to stop.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// The last wait of a failed connection attempt.
const LAST_WAIT: Duration = Duration::from_millis(1);

/// Time for a mediator to make `sessions/` after its start.
const MEDIATOR_START_LIMIT: Duration = Duration::from_secs(1);

/// A guest's options for connecting.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Spend some seconds on testing the mount's caches; see [`FileTransport::remarks`].
    pub thorough: bool,
}

/// The reason why a session could not be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectError {
    what: String,
    advice: String,
    interrupted: bool,
}

impl ConnectError {
    fn new(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            advice: advice.into(),
            interrupted: false,
        }
    }

    /// One line: the remedy, for people.
    pub fn advice(&self) -> &str {
        &self.advice
    }

    /// Whether the caller's own `interrupted` ended it.
    pub fn is_interrupted(&self) -> bool {
        self.interrupted
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for ConnectError {}

fn random<const N: usize>() -> Result<[u8; N], ConnectError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| {
        ConnectError::new(
            format!("no random numbers: {error}"),
            "this is not expected; report it",
        )
    })?;
    Ok(bytes)
}

/// Makes a session in `directory` and waits until a mediator has taken it: until `deadline` at the
/// latest and while `interrupted` returns false.
///
/// # Errors
/// The directory cannot be used, nobody serves it, or its file system does not answer.
pub fn connect(
    directory: &Path,
    settings: &Settings,
    deadline: Instant,
    interrupted: &dyn Fn() -> bool,
) -> Result<FileTransport, ConnectError> {
    let session = SessionName::new(random()?);
    let writer = random()?;
    let own = u64::from_le_bytes(random()?);
    let path = directory.to_owned();
    let (sender, failure) = mpsc::channel();
    let (doubts, doubt) = mpsc::channel();
    let prepare = {
        let (path, thorough) = (path.clone(), settings.thorough);
        move || make(&path, session, writer, own, deadline, thorough, &doubts)
    };
    let failed = move |error| {
        // Fails if the caller's deadline has passed; nobody waits then.
        let _ = sender.send(error);
    };
    let mut transport = start(
        path.join(SESSIONS).join(session.to_string()),
        prepare,
        failed,
    )?;
    loop {
        if interrupted() {
            let mut error = ConnectError::new("interrupted", "start again when ready");
            error.interrupted = true;
            return Err(error);
        }
        let now = Instant::now();
        let late = now >= deadline;
        // Even if it is late, it looks once more.
        let until = if late {
            now + LAST_WAIT
        } else {
            deadline.min(now + STOP_CHECK_INTERVAL)
        };
        match transport.wait_connected(until) {
            Progress::Connected(transport) => {
                // A caller that asks for a thorough test reports the findings itself.
                let remarks = transport.remarks();
                for remark in remarks.iter().filter(|_| !settings.thorough) {
                    let level = if remark.grave || remark.seen {
                        log::Level::Warn
                    } else {
                        log::Level::Info
                    };
                    log::log!(
                        level,
                        "file:{}: {}; {}",
                        path.display(),
                        remark.what,
                        remark.advice
                    );
                }
                return Ok(transport);
            }
            Progress::Failed(error) => {
                return Err(failure
                    .try_recv()
                    .unwrap_or_else(|_| ConnectError::new(error.to_string(), advice(&error))));
            }
            Progress::Waiting(waiting) if late => {
                drop(waiting);
                return Err(nobody(&path, doubt.try_recv().ok()));
            }
            Progress::Waiting(waiting) => transport = waiting,
        }
    }
}

fn start(
    path: PathBuf,
    prepare: impl FnOnce() -> Result<Prepared, ConnectError> + Send + 'static,
    failed: impl FnOnce(ConnectError) + Send + 'static,
) -> Result<FileTransport, ConnectError> {
    FileTransport::start(path, prepare, failed).map_err(|error| {
        ConnectError::new(
            format!("no thread can be started: {error}"),
            "end other programs, or raise the limit of processes",
        )
    })
}

/// The remedy for a session that broke while it was being set up.
fn advice(error: &TransportError) -> &'static str {
    match error {
        TransportError::Io { source, .. }
            if source.kind() == std::io::ErrorKind::PermissionDenied =>
        {
            "the mediator's files are closed to this user, as an older mediator makes them with a umask \
             of 027 or 077: update it, or start it with umask 022"
        }
        TransportError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
            "make room on the file system"
        }
        _ => "look at the mediator's log, then try again",
    }
}

/// The reason, if any, why a mediator may be unable to take a session that this user makes in
/// `place`: it runs as another user, as the owner of its files there shows.
fn closed_to_mediator(place: &OwnedFd, session: &SessionDirectory) -> Option<String> {
    let response = fstatat(place, RESPONSE_FILE, AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
    let (mediator, own) = (response.st_uid, geteuid().as_raw());
    (mediator != 0 && mediator != own && !session.is_shared()).then(|| {
        format!(
            "the mediator there runs as user {mediator} and may not look into sessions of user {own}: \
             run it as root or as user {own}, or share the directory by a group of both (chgrp, chmod \
             2770)"
        )
    })
}

fn nobody(path: &Path, closed: Option<String>) -> ConnectError {
    let path = path.display();
    if let Some(why) = closed {
        return ConnectError::new(format!("no mediator has taken the session in {path}"), why);
    }
    ConnectError::new(
        format!("no mediator has taken the session in {path}, or its file system does not answer"),
        format!(
            "see that one runs where the directory lies (vgpu-mediatord --listen file:DIR), that \
             ls {path} answers here, and run vgpu --endpoint file:{path} doctor"
        ),
    )
}

/// On the transport's thread: makes the session's directory.
fn make(
    path: &Path,
    session: SessionName,
    writer: [u8; 16],
    own: u64,
    deadline: Instant,
    thorough: bool,
    doubts: &mpsc::Sender<String>,
) -> Result<Prepared, ConnectError> {
    let began = Instant::now();
    loop {
        let now = Instant::now();
        // By its path each time: the client asks the server again for a name that was missing.
        let place = open_place(path, None).map_err(|errno| cannot_open(path, errno))?;
        let mount = Mount::of(&place);
        let remote = mount.as_ref().is_none_or(Mount::is_remote);
        match SessionDirectory::create(&place, path, session, own) {
            Ok(directory) => {
                if let Some(why) = closed_to_mediator(&place, &directory) {
                    // Fails if the caller's deadline has passed; nobody waits then.
                    let _ = doubts.send(why);
                }
                let exchange = Exchange::new(Role::Guest, session, writer, remote, Instant::now());
                let test = CacheTest::new(mount, thorough);
                return Ok((directory, exchange, Some(test)));
            }
            // The mediator makes it when it starts.
            Err(Errno::ENOENT) if now < deadline.min(began + MEDIATOR_START_LIMIT) => {
                thread::sleep(STOP_CHECK_INTERVAL);
            }
            Err(errno) => return Err(cannot_make(path, errno)),
        }
    }
}

fn cannot_open(path: &Path, errno: Errno) -> ConnectError {
    ConnectError::new(
        format!(
            "cannot open the directory {}: {}",
            path.display(),
            errno.desc()
        ),
        match errno {
            Errno::ENOENT => "mount it, or correct the path after file:",
            Errno::EACCES | Errno::EPERM => "give this user the right to read and write it",
            Errno::ENOTDIR => "name the directory that the mediator serves after file:",
            Errno::ESTALE => "mount it again: what was exported is there no more",
            _ => "look whether its file system is mounted and its server answers",
        },
    )
}

fn cannot_make(path: &Path, errno: Errno) -> ConnectError {
    let shown = path.display();
    let advice = match errno {
        Errno::ENOENT => format!(
            "start a mediator where the directory lies (vgpu-mediatord --listen file:DIR); it makes \
             {shown}/{SESSIONS}"
        ),
        Errno::EACCES | Errno::EPERM => format!(
            "give this user the right to write {shown}/{SESSIONS}; over NFS root is nobody there \
             unless the export says otherwise (chown nobody, or no_root_squash)"
        ),
        Errno::EROFS => "export and mount it for writing (rw)".to_owned(),
        Errno::ENOSPC | Errno::EDQUOT => "make room on the file system".to_owned(),
        _ => "look whether its file system is mounted and its server answers".to_owned(),
    };
    ConnectError::new(
        format!(
            "cannot make a session in {shown}/{SESSIONS}: {}",
            errno.desc()
        ),
        advice,
    )
}

/// Takes the session that a guest has made in `directory`, or in its own directory there, unless a
/// mediator has taken it already. `mediator` identifies the mediator and is the same for all of its
/// sessions; a guest that is silent for `silence` counts as dead.
///
/// # Errors
/// The session is gone, was taken, or its guest did not go on before `deadline`.
pub fn accept(
    directory: &Path,
    guest: Option<&GuestName>,
    session: SessionName,
    mediator: u64,
    silence: Duration,
    deadline: Instant,
) -> Result<FileTransport, ConnectError> {
    let writer = random()?;
    let own = u64::from_le_bytes(random()?);
    let path = guest.map_or_else(
        || directory.to_owned(),
        |guest| directory.join(guest.as_str()),
    );
    let (sender, failure) = mpsc::channel();
    let prepare = {
        let (directory, path, guest) = (directory.to_owned(), path.clone(), guest.cloned());
        move || {
            let gone = |errno: Errno| {
                let advice = match errno {
                    Errno::EACCES | Errno::EPERM => {
                        "run the mediator as root or as the guest's user, or share the directory by a \
                         group of both (chgrp, chmod 2770)"
                    }
                    _ => "nothing to do if the guest has gone; else look at owner and mode",
                };
                ConnectError::new(
                    format!("cannot open the session {session}: {}", errno.desc()),
                    advice,
                )
            };
            let place = open_place(&directory, guest.as_ref()).map_err(gone)?;
            let mut opened = SessionDirectory::open(&place, &path, session, own).map_err(gone)?;
            let remote = Mount::of(&place).is_none_or(|mount| mount.is_remote());
            claim(&mut opened, session, mediator)?;
            let mut exchange =
                Exchange::new(Role::Mediator, session, writer, remote, Instant::now());
            exchange.bear_silence(silence);
            Ok((opened, exchange, None))
        }
    };
    let failed = move |error| {
        let _ = sender.send(error);
    };
    let transport = start(
        path.join(SESSIONS).join(session.to_string()),
        prepare,
        failed,
    )?;
    match transport.wait_connected(deadline) {
        Progress::Connected(transport) => Ok(transport),
        Progress::Failed(error) => Err(failure.try_recv().unwrap_or_else(|_| {
            ConnectError::new(error.to_string(), "nothing to do: the guest may try again")
        })),
        Progress::Waiting(_) => Err(ConnectError::new(
            format!("the guest of session {session} does not go on"),
            "nothing to do: it may try again",
        )),
    }
}

fn claim(
    directory: &mut SessionDirectory,
    session: SessionName,
    mediator: u64,
) -> Result<(), ConnectError> {
    let text = format!("{mediator:016x}\n");
    let failed = |trouble: super::shared_directory::Trouble| {
        ConnectError::new(
            format!("cannot take the session {session}: {trouble}"),
            "make room, and see that the mediator may write there",
        )
    };
    let claimed = directory
        .claim(file_name::CLAIM, text.as_bytes())
        .map_err(failed)?;
    if claimed.is_none() {
        return Err(ConnectError::new(
            format!("the session {session} was taken before"),
            "nothing to do: no session is continued by another mediator",
        ));
    }
    if let Some(probe) = directory
        .claim(file_name::PROBE, PROBE_CONTENT)
        .map_err(failed)?
    {
        directory.keep_probe(probe);
    }
    Ok(())
}

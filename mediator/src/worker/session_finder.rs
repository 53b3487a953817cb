//! Sessions and guests' directories in a served directory, as they come.
//!
//! The broker looks into no guest's directory, so the worker that serves the two files looks for it
//! and reports. It does so in a thread of its own: a command in `command.txt` may take half a minute,
//! and a session that came meanwhile does not wait for it.

use std::sync::mpsc::Receiver;
use std::thread;
use std::time::{Duration, Instant};

use vgpu_file_transport::directory::Directory;
use vgpu_file_transport::guests::Guests;
use vgpu_file_transport::sessions::Sessions;
use vgpu_file_transport::{SessionName, Stop};

use crate::worker::link::Found;

/// The time between two looks while sessions come.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// The time between two looks after [`QUIET_AFTER`] without one.
const QUIET_LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// See [`QUIET_LOOK_INTERVAL`].
const QUIET_AFTER: Duration = Duration::from_secs(30);

/// The thread that scans.
#[allow(missing_debug_implementations, reason = "it holds a function")]
pub(super) struct SessionFinder<'a> {
    /// Whether guests may have directories in this one.
    pub look_for_guests: bool,
    /// Tells mediators apart; see [`vgpu_file_transport::session::accept`].
    pub mediator: u64,
    /// Is told what only the broker can decide about.
    pub found: &'a mut (dyn FnMut(Found) + Send),
    /// Sessions whose workers have ended.
    pub over: Receiver<SessionName>,
}

impl SessionFinder<'_> {
    /// Looks into `directory` again and again until `stop`.
    pub(super) fn run(&mut self, directory: &Directory, stop: Stop<'_>) {
        let mut guests = Guests::new();
        let mut sessions = Sessions::new(self.mediator);
        let mut last = Instant::now();
        while !stop.reached(Instant::now()) {
            if self.look(directory, &mut guests, &mut sessions) {
                last = Instant::now();
            }
            let quiet = last.elapsed() >= QUIET_AFTER;
            thread::sleep(if quiet {
                QUIET_LOOK_INTERVAL
            } else {
                LOOK_INTERVAL
            });
        }
    }

    /// Looks once. Returns whether there was anything about sessions.
    fn look(
        &mut self,
        directory: &Directory,
        guests: &mut Guests,
        sessions: &mut Sessions,
    ) -> bool {
        let now = Instant::now();
        let mut any = false;
        for session in self.over.try_iter() {
            any = true;
            sessions.over(directory, session);
        }
        for session in sessions.look(directory, now) {
            any = true;
            (self.found)(Found::Session(session.to_string()));
        }
        if self.look_for_guests {
            for guest in guests.look(directory, now) {
                let (name, inode) = (guest.name.to_string(), guest.inode);
                (self.found)(Found::Guest { name, inode });
            }
        }
        any
    }
}

//! `vgpuctl top` on a terminal.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{Termios, tcgetattr};
use nix::unistd::{Pid, write};

use crate::support::{Killed, Mediator, wait_until};

/// A program on a terminal of its own.
struct OnTerminal {
    child: Killed,
    master: OwnedFd,
    /// Held open, so that its state can be read when the program has ended.
    terminal: OwnedFd,
    before: Termios,
    shown: Arc<Mutex<String>>,
}

impl OnTerminal {
    fn start(mut command: Command, (columns, lines): (u16, u16)) -> Self {
        let size = Winsize {
            ws_row: lines,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(&size, None).expect("a terminal");
        let before = tcgetattr(&pty.slave).expect("its state");
        let side = || Stdio::from(pty.slave.try_clone().expect("a descriptor"));
        let command = command.stdin(side()).stdout(side()).stderr(side());
        let child = Killed(command.spawn().expect("it starts"));
        let shown = Arc::new(Mutex::new(String::new()));
        let (mut reader, text) = (
            File::from(pty.master.try_clone().unwrap()),
            Arc::clone(&shown),
        );
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = reader.read(&mut buffer) {
                text.lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        });
        Self {
            child,
            master: pty.master,
            terminal: pty.slave,
            before,
            shown,
        }
    }

    fn shown(&self) -> String {
        self.shown.lock().unwrap().clone()
    }

    fn type_text(&self, text: &str) {
        write(self.master.as_fd(), text.as_bytes()).expect("it takes keys");
    }

    /// Waits for its end, and checks that the terminal is as it was before.
    fn end(mut self) -> ExitStatus {
        let mut status = None;
        wait_until("top ends", || {
            status = self.child.0.try_wait().expect("waitable");
            status.is_some()
        });
        // The kernel keeps a note of its own in the flags, which is no setting.
        let settings = |of: &Termios| {
            (
                of.input_flags,
                of.output_flags,
                of.control_flags,
                of.local_flags,
            )
        };
        let after = tcgetattr(&self.terminal).unwrap();
        assert_eq!(settings(&after), settings(&self.before));
        wait_until("it leaves the other screen", || {
            self.shown().contains("\x1b[?1049l")
        });
        wait_until("it shows the cursor", || self.shown().contains("\x1b[?25h"));
        status.unwrap()
    }
}

fn top(mediator: &Mediator) -> OnTerminal {
    let mut command = mediator.vgpuctl();
    command.arg("top");
    let top = OnTerminal::start(command, (90, 24));
    // Cells that are blank anyway are not written, so a word.
    wait_until("it shows guests", || top.shown().contains("SHARE"));
    top
}

#[test]
fn keys_and_signals_end_top_and_the_terminal_is_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let mediator = Mediator::start(directory.path(), &[]);
    let quit = top(&mediator);
    assert!(quit.shown().contains("\x1b[?1049h"), "a screen of its own");
    // By memory: its heading is shown anew.
    quit.type_text("m");
    quit.type_text("q");
    assert_eq!(quit.end().code(), Some(0));

    let interrupted = top(&mediator);
    interrupted.type_text("\x03");
    assert_eq!(interrupted.end().code(), Some(130));

    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        let top = top(&mediator);
        let pid = Pid::from_raw(top.child.0.id().cast_signed());
        kill(pid, signal).unwrap();
        assert_eq!(top.end().code(), Some(130), "{signal}");
    }

    // Into a pipe too.
    let mut piped = mediator.vgpuctl();
    let mut piped = piped.arg("top").stdout(Stdio::piped()).spawn().unwrap();
    let mut first = [0];
    piped.stdout.take().unwrap().read_exact(&mut first).unwrap();
    kill(Pid::from_raw(piped.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(piped.wait().unwrap().code(), Some(130));

    // A mediator that goes away ends it with the reason.
    let left = top(&mediator);
    mediator.stop();
    let shown = Arc::clone(&left.shown);
    assert_eq!(left.end().code(), Some(1));
    wait_until("it says why", || {
        shown.lock().unwrap().contains("error: no mediator at")
    });
}

#[test]
fn tables_keep_to_the_width_of_the_terminal() {
    let directory = tempfile::tempdir().unwrap();
    let mediator = Mediator::start(directory.path(), &[]);
    let _session = mediator.connect().unwrap();
    for arguments in [&["status"][..], &["top", "--once"]] {
        let mut command = mediator.vgpuctl();
        command.args(arguments);
        let mut shown = OnTerminal::start(command, (70, 24));
        assert!(shown.child.0.wait().unwrap().success());
        wait_until("all of it is shown", || shown.shown().contains("SESSION "));
        let text = shown.shown();
        let tables = text.lines().skip_while(|line| !line.contains("GUEST"));
        for line in tables {
            assert!(line.trim_end().chars().count() <= 70, "{line}");
        }
        // The last column of the sessions.
        wait_until("nothing is left out", || {
            let text = shown.shown();
            let (_, sessions) = text.split_once("SESSION ").unwrap();
            sessions.matches("SESSION").count() >= 1
        });
    }
}

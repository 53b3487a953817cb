//! `top` on a terminal: keys in, pictures out. The terminal is as it was afterwards, whatever ends it.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread;
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use vgpu_cli::{Failure, INTERRUPTED};

use super::screen::{Reaction, Screen};
use super::{Look, Looks, REFRESH_INTERVAL};
use crate::Exit;

/// How long a signal may wait until it is seen.
const GLANCE_INTERVAL: Duration = Duration::from_millis(100);

/// The reason the display ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Quit,
    Signal,
}

/// Shows looks until a key or a signal ends it.
pub(super) fn run(control: &Path) -> Result<ExitCode, Exit> {
    // Before the terminal is changed, so that an error has it as it was.
    let looks = look_regularly(Looks::new(control)?)?;
    let signals = Signals::register()?;
    // It has a panic hook put the terminal back.
    let mut terminal = ratatui::try_init()?;
    let ended = show(&mut terminal, &looks, &signals);
    // It shows the cursor again as it is dropped.
    drop(terminal);
    let restored = ratatui::try_restore();
    let ended = ended?;
    restored?;
    match ended {
        End::Quit => Ok(ExitCode::SUCCESS),
        End::Signal => Ok(INTERRUPTED.into()),
    }
}

fn show(
    terminal: &mut DefaultTerminal,
    looks: &Receiver<Result<Look, Failure>>,
    signals: &Signals,
) -> Result<End, Exit> {
    let mut screen = Screen::new();
    let mut look: Option<Look> = None;
    loop {
        if signals.came() {
            return Ok(End::Signal);
        }
        let mut reaction = Reaction::Nothing;
        if event::poll(GLANCE_INTERVAL)? {
            reaction = match event::read()? {
                Event::Key(key) if key.kind != KeyEventKind::Release => match key.code {
                    // Raw mode: the terminal does not make a signal of it.
                    KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                        return Ok(End::Signal);
                    }
                    KeyCode::Esc => Reaction::Quit,
                    KeyCode::Char(key) => screen.typed(key),
                    KeyCode::Up => screen.scroll(-1),
                    KeyCode::Down => screen.scroll(1),
                    KeyCode::PageUp => screen.scroll(-10),
                    KeyCode::PageDown => screen.scroll(10),
                    _ => Reaction::Nothing,
                },
                Event::Resize(..) => Reaction::Redraw,
                _ => Reaction::Nothing,
            };
        }
        match looks.try_recv() {
            Ok(new) => {
                look = Some(new?);
                reaction = match reaction {
                    Reaction::Quit => Reaction::Quit,
                    Reaction::Nothing | Reaction::Redraw => Reaction::Redraw,
                };
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => {
                let advice = "this is not expected; report it";
                return Err(Failure::new("the thread that asks has failed", advice).into());
            }
        }
        match (reaction, &look) {
            (Reaction::Quit, _) => return Ok(End::Quit),
            (Reaction::Redraw, Some(look)) => {
                terminal.draw(|frame| screen.draw(frame, look))?;
            }
            _ => {}
        }
    }
}

/// Looks every second, in a thread: a mediator that does not answer holds up no key.
fn look_regularly(mut looks: Looks) -> io::Result<Receiver<Result<Look, Failure>>> {
    let (sender, receiver) = sync_channel(1);
    let mut look = move |sender: SyncSender<Result<Look, Failure>>| {
        // Soon, for the first time.
        let mut pause = REFRESH_INTERVAL / 4;
        loop {
            thread::sleep(pause);
            pause = REFRESH_INTERVAL;
            let look = looks.next();
            let failed = look.is_err();
            if sender.send(look).is_err() || failed {
                return;
            }
        }
    };
    thread::Builder::new()
        .name("looks".into())
        .spawn(move || look(sender))?;
    Ok(receiver)
}

/// Whether a signal has come that ends programs.
struct Signals(Arc<AtomicBool>);

impl Signals {
    fn register() -> io::Result<Self> {
        let came = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&came))?;
        }
        Ok(Self(came))
    }

    fn came(&self) -> bool {
        // Relaxed: the flag carries no data; its partner is the handler's store.
        self.0.load(Ordering::Relaxed)
    }
}

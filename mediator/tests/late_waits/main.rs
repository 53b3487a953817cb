//! A process that does not run for a while finds, when it goes on, that its time is over and that what it
//! waited for is there. Every wait looks once more before it says that time is up.
//!
//! Each wait is made by a process of its own: this program again, with one thread, so that it is that
//! thread which a signal interrupts. It is stopped in the middle of the wait; what it waits for comes;
//! its deadline passes; then it goes on with a signal pending, which ends the system call that
//! it slept in: that one has not looked.

#[path = "../support/mod.rs"]
mod support;
mod waits;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use support::{Killed, wait_until};
use waits::{Other, WAITS, Wait};

/// Which wait this process makes, and the directory that it shares with the one that started it.
const ROLE: &str = "VGPU_LATE_WAIT";
const DIRECTORY: &str = "VGPU_LATE_DIRECTORY";

/// Tries to stop a process before its deadline, on a machine with other work.
const TRIES: u32 = 20;

/// Time for it to fall asleep in its wait. Too short for that, the test shows less, and still passes.
const FALLING_ASLEEP: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    if let Ok(name) = std::env::var(ROLE) {
        return wait(&name);
    }
    // libtest's arguments, as far as they make sense here.
    let filter = std::env::args().skip(1).find(|word| !word.starts_with('-'));
    let chosen = |wait: &&Wait| filter.as_ref().is_none_or(|part| wait.name.contains(part));
    let chosen: Vec<&Wait> = WAITS.iter().filter(chosen).collect();
    if std::env::args().any(|word| word == "--list") {
        chosen
            .iter()
            .for_each(|wait| println!("{}: test", wait.name));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", chosen.len());
    let failed = thread::scope(|scope| {
        let run = |wait: &'static Wait| {
            let outcome = thread::Builder::new()
                .name(wait.name.to_owned())
                .spawn_scoped(scope, || looks_once_more(wait));
            (wait.name, outcome.expect("a thread"))
        };
        let running: Vec<_> = chosen.iter().map(|wait| run(wait)).collect();
        let failed = running.into_iter().filter_map(|(name, thread)| {
            let passed = thread.join().is_ok();
            println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
            (!passed).then_some(name)
        });
        failed.count()
    });
    println!(
        "\ntest result: {}. {} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out\n",
        if failed == 0 { "ok" } else { "FAILED" },
        chosen.len() - failed,
    );
    ExitCode::from(u8::from(failed > 0))
}

/// The process that waits.
fn wait(name: &str) -> ExitCode {
    let wait = WAITS.iter().find(|wait| wait.name == name);
    let wait = wait.expect("one of the waits");
    // For a handler that lets calls be interrupted: nobody reads the flag.
    signal_hook::flag::register(Signal::SIGUSR1 as i32, Arc::new(AtomicBool::new(false)))
        .expect("a handler");
    let directory = std::env::var(DIRECTORY).expect("a directory");
    match (wait.make)(Path::new(&directory)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Reports that everything is set up, waits until the other side is in place, and reports and
/// returns the deadline.
pub(crate) fn begin(time: Duration) -> Instant {
    println!("ready");
    std::io::stdin()
        .read_exact(&mut [0])
        .expect("the word to begin");
    let deadline = Instant::now() + time;
    println!("{}", (monotonic() + time).as_nanos());
    deadline
}

/// The clock that all processes read alike.
fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .expect("every system has it")
        .into()
}

fn looks_once_more(wait: &Wait) {
    for _ in 0..TRIES {
        let directory = tempfile::tempdir().expect("a directory");
        let mut other = (wait.other)(directory.path());
        let mut waiting = start(wait, directory.path(), &*other);
        let mut said = BufReader::new(waiting.0.stdout.take().expect("piped"));
        assert_eq!(line(&mut said, &mut waiting), "ready");
        other.meet();
        let mut stdin = waiting.0.stdin.take().expect("piped");
        stdin.write_all(b"\n").expect("it reads");
        let deadline: u64 = line(&mut said, &mut waiting).parse().expect("a time");
        let deadline = Duration::from_nanos(deadline);
        other.begun();
        thread::sleep(FALLING_ASLEEP);
        let pid = waiting.0.id();
        signal(pid, Signal::SIGSTOP);
        let mut ended = None;
        wait_until("it stands still", || {
            ended = waiting.0.try_wait().expect("waitable");
            ended.is_some() || stands_still(pid)
        });
        if ended.is_some() || monotonic() >= deadline {
            // This machine was too busy to stop it in time; or it had nothing to wait for.
            assert!(
                ended.is_none_or(|status| status.success()) || monotonic() >= deadline,
                "{}: {ended:?} before its deadline: {}",
                wait.name,
                words(&mut waiting),
            );
            continue;
        }
        other.give();
        thread::sleep((deadline + FALLING_ASLEEP).saturating_sub(monotonic()));
        signal(pid, Signal::SIGUSR1);
        signal(pid, Signal::SIGCONT);
        wait_until("it ends", || {
            waiting.0.try_wait().expect("waitable").is_some()
        });
        let status = waiting.0.wait().expect("its status");
        let words = words(&mut waiting);
        assert!(status.success(), "{}: {status}: {words}", wait.name);
        return;
    }
    panic!("{}: it could not be stopped in time", wait.name);
}

fn start(wait: &Wait, directory: &Path, other: &dyn Other) -> Killed {
    let child: Child = Command::new(std::env::current_exe().expect("this test"))
        .env(ROLE, wait.name)
        .env(DIRECTORY, directory)
        .envs(other.environment())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("this program starts");
    Killed(child)
}

/// Its next line; panics with the reason if there is none.
fn line(said: &mut impl BufRead, waiting: &mut Killed) -> String {
    let mut line = String::new();
    said.read_line(&mut line).expect("text");
    assert!(!line.is_empty(), "it ended too early: {}", words(waiting));
    line.trim_end().to_owned()
}

/// Output of a waiting process that has ended.
fn words(waiting: &mut Killed) -> String {
    let mut words = String::new();
    if let Some(stderr) = &mut waiting.0.stderr {
        stderr.read_to_string(&mut words).expect("text");
    }
    words
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).expect("a pid")), signal).expect("it is there");
}

/// Whether every thread of the process is stopped.
pub(crate) fn stands_still(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    threads.flatten().all(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        let state = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.trim_start().chars().next());
        state.is_none_or(|state| state == 'T')
    })
}

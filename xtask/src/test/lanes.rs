//! Steps that run beside each other, each with its output in a file that is shown when it ends.

use std::collections::VecDeque;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::report::Tests;
use super::{Lane, Outcome, Report, Step};
use crate::sshfs::SKIPPED;

/// Interval at which the running steps are checked.
const STEP_CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// Interval between two progress lines.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(20);

/// Time for programs to end by themselves once this one is asked to end.
const EXIT_LIMIT: Duration = Duration::from_secs(5);

/// An end was requested.
#[derive(Debug)]
pub(crate) struct Stopped;

impl Stopped {
    /// The exit status, that of vgpu's programs.
    pub(crate) const STATUS: u8 = 130;
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Stopped {}

/// Whether an end was requested, with Ctrl-C or a signal.
pub(super) struct Interrupted(Arc<AtomicBool>);

impl Interrupted {
    /// Takes over SIGINT, SIGTERM and SIGHUP.
    ///
    /// # Errors
    /// The system refuses.
    pub(super) fn watch() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            signal_hook::flag::register(signal as i32, Arc::clone(&flag))
                .with_context(|| format!("cannot watch for {signal}"))?;
        }
        Ok(Interrupted(flag))
    }

    fn is_set(&self) -> bool {
        // Relaxed: the flag guards no other data; its partner is the handler's store.
        self.0.load(Ordering::Relaxed)
    }
}

/// The steps that run at the same time. An emulated machine waits often, as a guest for dom0: two of them and the steps on this
/// machine keep two processors busy to the end.
const BESIDE: [Lane; 3] = [Lane::Here, Lane::Lab, Lane::Lab];

/// Runs `steps` as [`BESIDE`] says, or all one after the other with their output as it comes. A place whose lane has
/// no step left takes the next step of the other. A failed step does not stop the others.
///
/// # Errors
/// The logs cannot be written, or an end was requested: then no started process is left.
pub(super) fn run(
    steps: &[&'static Step],
    serial: bool,
    interrupted: &Interrupted,
) -> Result<Vec<Report>> {
    let mut left: VecDeque<&'static Step> = steps.iter().copied().collect();
    let mut lanes = BESIDE.to_vec();
    lanes.retain(|lane| steps.iter().any(|step| step.lane == *lane));
    lanes.truncate(if serial { 1 } else { steps.len() });
    let live = lanes.len() == 1;
    let mut running: Vec<Option<Running>> = lanes.iter().map(|_| None).collect();
    let mut reports = Vec::new();
    let (started, mut said) = (Instant::now(), Instant::now());
    while running.iter().any(Option::is_some) || !left.is_empty() {
        for (lane, slot) in lanes.iter().zip(&mut running) {
            if let Some(one) = slot {
                if live {
                    one.show_more()?;
                }
                if let Some(status) = one.ended()? {
                    reports.push(one.finish(status, live)?);
                    *slot = None;
                }
            }
            if slot.is_none()
                && let Some(step) = next(&mut left, *lane, serial)
            {
                eprintln!("\n=== {} ===", step.name);
                match Running::start(step) {
                    Ok(one) => *slot = Some(one),
                    Err(error) => {
                        eprintln!("{error:#}");
                        reports.push(Report {
                            name: step.name,
                            outcome: Outcome::Failed,
                            took: Duration::ZERO,
                            tests: Tests::default(),
                        });
                    }
                }
            }
        }
        if interrupted.is_set() {
            // Dropping them ends them.
            return Err(Stopped.into());
        }
        if !live && said.elapsed() >= PROGRESS_INTERVAL {
            said = Instant::now();
            for one in running.iter_mut().flatten() {
                let (all, own) = (started.elapsed().as_secs(), one.started.elapsed().as_secs());
                eprintln!(
                    "[{all} s] {} ({own} s): {}",
                    one.step.name,
                    one.last_line()?
                );
            }
        }
        std::thread::sleep(STEP_CHECK_INTERVAL);
    }
    // In the order of the list, not in that in which they ended.
    reports.sort_by_key(|report| steps.iter().position(|step| step.name == report.name));
    Ok(reports)
}

/// Takes the next step of a lane, or of another if there is none, or simply the next.
fn next(left: &mut VecDeque<&'static Step>, lane: Lane, any: bool) -> Option<&'static Step> {
    let own = left.iter().position(|step| any || step.lane == lane);
    left.remove(own.unwrap_or(0))
}

/// A running step; dropping it ends it and all processes that it has started.
struct Running {
    step: &'static Step,
    child: Child,
    started: Instant,
    log: File,
    path: PathBuf,
    /// Bytes of the log that have been shown.
    shown: u64,
}

impl Running {
    fn start(step: &'static Step) -> Result<Self> {
        let folder = crate::lab::target().join("test-run");
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let name: String = step
            .name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        let path = folder.join(format!("{name}.log"));
        // A reader may still have the log of an earlier run open.
        let _ = fs::remove_file(&path);
        let mut log = OpenOptions::new()
            .create_new(true)
            .read(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("creating {}", path.display()))?;
        let shown: Vec<&str> = match step.command {
            ["xtask", rest @ ..] => ["cargo", "xtask"].iter().chain(rest).copied().collect(),
            all => all.to_vec(),
        };
        writeln!(log, "$ {}", shown.join(" "))?;
        let program = match step.command[0] {
            // Itself, also while cargo replaces the file it came from.
            "xtask" => "/proc/self/exe",
            other => other,
        };
        let child = Command::new(program)
            .args(&step.command[1..])
            .envs(step.env.iter().copied())
            .current_dir(crate::workspace_root())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?)
            // In a group of its own, so that all of its processes can be ended.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", shown[0]))?;
        Ok(Running {
            step,
            child,
            started: Instant::now(),
            log,
            path,
            shown: 0,
        })
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child
            .try_wait()
            .with_context(|| format!("waiting for {}", self.step.name))
    }

    /// Prints the output since the last time.
    fn show_more(&mut self) -> Result<()> {
        let mut bytes = Vec::new();
        self.log.seek(SeekFrom::Start(self.shown))?;
        self.log.read_to_end(&mut bytes)?;
        self.shown += bytes.len() as u64;
        eprint!("{}", String::from_utf8_lossy(&bytes));
        Ok(())
    }

    /// Prints the rest of the output, and returns the step's results.
    fn finish(&mut self, status: ExitStatus, live: bool) -> Result<Report> {
        let name = self.step.name;
        let took = self.started.elapsed();
        if !live {
            eprintln!("\n--- output of: {name}");
        }
        self.show_more()?;
        let tests = Tests::read(&self.output()?);
        let outcome = match status.code() {
            Some(0) => Outcome::Passed,
            Some(SKIPPED) => Outcome::Skipped,
            _ => {
                eprintln!("`{}` ended with {status}", self.step.command.join(" "));
                Outcome::Failed
            }
        };
        eprintln!(
            "--- {name}: {outcome:?} after {} s (kept in {})",
            took.as_secs(),
            self.path.display()
        );
        Ok(Report {
            name,
            outcome,
            took,
            tests,
        })
    }

    fn output(&mut self) -> Result<String> {
        let mut bytes = Vec::new();
        self.log.rewind()?;
        self.log.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The last line that it has printed, cut to the width of a terminal.
    fn last_line(&mut self) -> Result<String> {
        let output = self.output()?;
        let last = output.lines().rfind(|line| !line.trim().is_empty());
        Ok(last.unwrap_or_default().chars().take(100).collect())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Ok(group) = i32::try_from(self.child.id()).map(Pid::from_raw) else {
            return;
        };
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = killpg(group, Signal::SIGTERM);
            let until = Instant::now() + EXIT_LIMIT;
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        // Processes that it leaves behind, also when it has ended by itself.
        while killpg(group, Signal::SIGKILL) == Err(Errno::EINTR) {}
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn shell(name: &'static str, lane: Lane, command: &'static [&'static str]) -> Step {
        Step {
            name,
            lane,
            command,
            env: &[],
        }
    }

    fn never() -> Interrupted {
        Interrupted(Arc::default())
    }

    #[test]
    fn a_step_that_fails_stops_no_other() {
        const STEPS: [Step; 4] = [
            shell("test: one", Lane::Here, &["sh", "-c", "echo a; exit 1"]),
            shell("test: two", Lane::Here, &["/nonexistent"]),
            shell("test: three", Lane::Lab, &["sh", "-c", "exit 77"]),
            shell(
                "test: four",
                Lane::Here,
                &[
                    "sh",
                    "-c",
                    "echo 'SKIPPED: x: y' >&2; echo 'test result: ok. 3 passed; 0 failed'",
                ],
            ),
        ];
        for serial in [false, true] {
            let steps: Vec<&'static Step> = STEPS.iter().collect();
            let reports = run(&steps, serial, &never()).unwrap();
            let outcomes: Vec<Outcome> = reports.iter().map(|r| r.outcome).collect();
            use Outcome::{Failed, Passed, Skipped};
            assert_eq!(outcomes, [Failed, Failed, Skipped, Passed]);
            assert_eq!(reports[3].tests.passed, 3);
            assert_eq!(reports[3].tests.skipped, ["x: y"]);
        }
    }

    /// The first two steps of the lab's lane end only once the third runs.
    #[test]
    fn a_lane_that_has_no_step_left_takes_the_others_next() {
        const HELPED: &str = "/tmp/vgpu-xtask-test-helped";
        const ENV: &[(&str, &str)] = &[("HELPED", HELPED)];
        const WAITS: &str =
            "for n in $(seq 600); do [ ! -e $HELPED ] || exit 0; sleep 0.1; done; exit 1";
        static STEPS: [Step; 4] = [
            shell("test: here", Lane::Here, &["true"]),
            Step {
                env: ENV,
                ..shell("test: waits", Lane::Lab, &["sh", "-c", WAITS])
            },
            Step {
                env: ENV,
                ..shell("test: waits too", Lane::Lab, &["sh", "-c", WAITS])
            },
            Step {
                env: ENV,
                ..shell("test: helps", Lane::Lab, &["sh", "-c", "touch $HELPED"])
            },
        ];
        let _ = fs::remove_file(HELPED);
        let steps: Vec<&'static Step> = STEPS.iter().collect();
        let reports = run(&steps, false, &never()).unwrap();
        let _ = fs::remove_file(HELPED);
        let passed = |report: &Report| report.outcome == Outcome::Passed;
        assert!(reports.iter().all(passed), "{reports:?}");
    }

    /// The shell starts a program of its own, which must not outlive the interruption either.
    #[test]
    fn an_interruption_ends_all_that_was_started() {
        const STEP: Step = shell(
            "test: long",
            Lane::Here,
            &["sh", "-c", "sleep 1000 & echo started $!; wait"],
        );
        static STEPS: [Step; 1] = [STEP];
        let flag = Interrupted(Arc::default());
        let set = Arc::clone(&flag.0);
        let log = crate::lab::target().join("test-run/test--long.log");
        let _ = fs::remove_file(&log);
        let interrupter = std::thread::spawn(move || {
            loop {
                let text = fs::read_to_string(&log).unwrap_or_default();
                let line = text.lines().find_map(|l| l.strip_prefix("started "));
                if let Some(pid) = line {
                    set.store(true, Ordering::Relaxed);
                    return pid.parse::<u32>().unwrap();
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        assert!(run(&[&STEPS[0]], false, &flag).is_err());
        let pid = interrupter.join().unwrap();
        // The kernel takes a moment, and then it may be a zombie until somebody waits for it.
        let lives = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            !stat.is_empty() && !stat.contains(") Z ")
        };
        let watchdog = Instant::now() + Duration::from_secs(60);
        while lives() {
            assert!(Instant::now() < watchdog, "process {pid} goes on");
            std::thread::sleep(STEP_CHECK_INTERVAL);
        }
    }
}

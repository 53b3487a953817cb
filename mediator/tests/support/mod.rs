//! A real `vgpu-mediatord` in a directory of its own.
#![allow(dead_code, reason = "each test program uses its part of this")]

pub(crate) mod confined;
pub(crate) mod openmetrics;
pub(crate) mod other_users;
pub(crate) mod sockets;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vgpu_guest::{Client, Endpoint, Error, LaunchConfig, Options};

/// How long anything may take before a test gives up; no test waits this long when all is well.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(60);

/// A kernel of one thread.
pub(crate) const ONE: LaunchConfig = LaunchConfig {
    grid_dim: (1, 1, 1),
    block_dim: (1, 1, 1),
    shared_mem_bytes: 0,
};

pub(crate) const MEDIATORD: &str = env!("CARGO_BIN_EXE_vgpu-mediatord");
pub(crate) const VGPUCTL: &str = env!("CARGO_BIN_EXE_vgpuctl");

/// Waits until `ready`, looking every few milliseconds.
pub(crate) fn wait_until(what: &str, mut ready: impl FnMut() -> bool) {
    let deadline = Instant::now() + WATCHDOG;
    while !ready() {
        assert!(Instant::now() < deadline, "waited without result: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// What `response.txt` in `place` holds, or nothing.
pub(crate) fn response(place: &Path) -> String {
    fs::read_to_string(place.join("response.txt")).unwrap_or_default()
}

/// Waits until `response.txt` in `place` begins like this.
pub(crate) fn wait_for_response(place: &Path, start: &str) {
    wait_until(&format!("{start} in {}", place.display()), || {
        response(place).starts_with(start)
    });
}

/// Sends `signal` to a worker, which must be there.
pub(crate) fn signal(worker: u32, signal: Signal) {
    kill(Pid::from_raw(worker.cast_signed()), signal).expect("the worker is there");
}

/// Runs a command to its end, which must come before the watchdog's.
pub(crate) fn run(command: &mut Command) -> Output {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    wait_until("the program ends", || {
        child.try_wait().expect("waitable").is_some()
    });
    child.wait_with_output().expect("its output")
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

/// A child that no test leaves behind.
pub(crate) struct Killed(pub(crate) Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A mediator that serves `local:` in a temporary directory. Killed when dropped.
pub(crate) struct Mediator {
    child: Child,
    directory: PathBuf,
}

impl Mediator {
    /// Starts one in `directory` and waits until it serves.
    pub(crate) fn start(directory: &Path, flags: &[&str]) -> Self {
        Self::start_with(directory, flags, |_| {})
    }

    /// The same, after `prepare` has changed what it is started with.
    pub(crate) fn start_with(
        directory: &Path,
        flags: &[&str],
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        let mediator = Self::spawn(directory, flags, prepare);
        wait_until("the mediator listens", || {
            let log = || fs::read_to_string(directory.join("log")).unwrap_or_default();
            assert!(is_running(mediator.pid()), "{}", log());
            let status = run(mediator.vgpuctl().args(["--json", "status"]));
            status.status.success()
        });
        mediator
    }

    fn spawn(directory: &Path, flags: &[&str], prepare: impl FnOnce(&mut Command)) -> Self {
        let log = File::options()
            .create(true)
            .append(true)
            .open(directory.join("log"))
            .expect("a log file");
        let mut command = Command::new(MEDIATORD);
        command
            .arg("--listen")
            .arg(format!("local:{}", directory.join("vgpu.sock").display()))
            .arg("--control")
            .arg(directory.join("control.sock"))
            .args(match flags.contains(&"--executor") {
                true => &[][..],
                false => &["--executor", "cpu"],
            })
            .args(flags)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log);
        prepare(&mut command);
        let child = command.spawn().expect("the mediator starts");
        Self {
            child,
            directory: directory.to_owned(),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::Local(self.directory.join("vgpu.sock"))
    }

    pub(crate) fn log(&self) -> String {
        let log = fs::read(self.directory.join("log")).expect("the log");
        String::from_utf8_lossy(&log).into_owned()
    }

    pub(crate) fn connect(&self) -> Result<Client, Error> {
        Client::connect(&[self.endpoint()], &options())
    }

    pub(crate) fn vgpuctl(&self) -> Command {
        let mut command = Command::new(VGPUCTL);
        command
            .arg("--control")
            .arg(self.directory.join("control.sock"));
        command
    }

    /// `vgpuctl --json status`.
    pub(crate) fn status(&self) -> serde_json::Value {
        let output = run(self.vgpuctl().args(["--json", "status"]));
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_slice(&output.stdout).expect("one object")
    }

    /// Its warm workers that are ready, once there are `wanted` of them and no other is on its way.
    pub(crate) fn wait_for_warm(&self, wanted: usize) -> Vec<u32> {
        let mut ready = Vec::new();
        wait_until("the number of warm workers", || {
            let status = self.status();
            let Some(workers) = status["warm"]["workers"].as_array() else {
                return wanted == 0;
            };
            ready = (workers.iter().filter(|it| it["state"] == "ready"))
                .map(|it| u32::try_from(it["pid"].as_u64().expect("a number")).expect("a pid"))
                .collect();
            ready.len() == wanted && workers.len() == wanted
        });
        ready
    }

    /// Its worker processes that run.
    pub(crate) fn workers(&self) -> Vec<u32> {
        children(self.pid())
    }

    pub(crate) fn wait_for_workers(&self, wanted: usize) -> Vec<u32> {
        wait_until("the number of workers", || self.workers().len() == wanted);
        self.workers()
    }

    /// Its open descriptors, as the kernel names them.
    pub(crate) fn descriptors(&self) -> Vec<String> {
        descriptors(self.pid())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(pid(self.pid()), signal).expect("the mediator is there");
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        wait_until("the mediator ends", || {
            self.child.try_wait().expect("waitable").is_some()
        });
        self.child.wait().expect("its status")
    }

    /// Ends it in good order.
    pub(crate) fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.wait();
        assert!(status.success(), "{status}: {}", self.log());
    }

    /// Kills it as a crash would.
    pub(crate) fn crash(mut self) {
        self.signal(Signal::SIGKILL);
        self.wait();
    }
}

impl Drop for Mediator {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the mediator's log:\n{}", self.log());
        }
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Time limits that no healthy run meets.
pub(crate) fn options() -> Options {
    Options {
        connect_timeout: WATCHDOG,
        stall_timeout: WATCHDOG,
        client_name: "end to end".into(),
        ..Options::default()
    }
}

/// Exchanges 16 MiB, and runs `meanwhile` once the first have come back. All of them must, if it ends well.
pub(crate) fn exchange_and(client: &mut Client, meanwhile: impl FnOnce()) -> Result<(), Error> {
    let n = 1 << 24;
    let (data, mut back) = (vec![3; n], vec![0; n]);
    let mut meanwhile = Some(meanwhile);
    client.exchange_watched(&data, &mut back, |complete| {
        if complete > 0
            && let Some(meanwhile) = meanwhile.take()
        {
            meanwhile();
        }
    })?;
    assert!(meanwhile.is_none() && back == data);
    Ok(())
}

/// Adds two vectors of `n` elements and checks every sum.
pub(crate) fn add(client: &mut Client, n: usize) -> Result<(), Error> {
    let a: Vec<f32> = (0..n).map(|i| (i % 8191) as f32).collect();
    let b: Vec<f32> = (0..n).map(|i| (i % 127) as f32 * 0.5).collect();
    let mut sum = vec![f32::NAN; n];
    let report = client.vector_add(&a, &b, &mut sum)?;
    assert_eq!(report.elements, n);
    for (i, sum) in sum.iter().enumerate() {
        assert_eq!(*sum, a[i] + b[i], "element {i} of {n}");
    }
    Ok(())
}

/// Takes the right to change a directory from all but its owner, whatever the umask has left: only
/// then directories in it are guests'.
pub(crate) fn only_ours_to_change(directory: &Path) {
    fs::set_permissions(directory, Permissions::from_mode(0o755)).expect("our own directory");
}

fn pid(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).expect("a pid"))
}

/// Whether the process is there, and no zombie.
pub(crate) fn is_running(pid: u32) -> bool {
    state_and_parent(pid).is_some_and(|(state, _)| state != 'Z')
}

fn children(parent: u32) -> Vec<u32> {
    let pids = fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| state_and_parent(*pid).is_some_and(|(_, found)| found == parent))
        .collect()
}

fn state_and_parent(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything but ends with the last parenthesis.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.next()?.parse().ok()?))
}

pub(crate) fn descriptors(pid: u32) -> Vec<String> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    let mut targets: Vec<String> = entries
        .filter_map(|entry| {
            let target = fs::read_link(entry.ok()?.path()).ok()?;
            Some(target.to_string_lossy().into_owned())
        })
        .collect();
    targets.sort();
    targets
}

//! The real mediator with the CUDA executor over the stand-in: broker, probe process, worker, ring
//! and guest, and the file protocol. What differs from a GPU machine is the driver's library alone.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use vgpu_guest::conformance::{self, Ground};
use vgpu_guest::{Client, CopyWay, Endpoint, Options};
use vgpu_protocol::op::Features;

use crate::stand_in;

/// No wait of a test is longer.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(60);

/// A mediator of this test; dropping it ends it and its workers, and shows its log if the test fails.
pub(crate) struct Mediator {
    process: Child,
    log: PathBuf,
}

impl Mediator {
    /// Starts `vgpu-mediatord` with the stand-in playing `scenario`.
    pub(crate) fn start(folder: &Path, listen: &str, executor: &str, scenario: &str) -> Mediator {
        let command = Command::new(env!("CARGO_BIN_EXE_vgpu-mediatord"));
        Self::start_by(command, folder, listen, executor, scenario)
    }

    /// The same with other libraries beside the stand-in.
    pub(crate) fn start_with(
        folder: &Path,
        libraries: &Path,
        listen: &str,
        scenario: &str,
    ) -> Mediator {
        let command = Command::new(env!("CARGO_BIN_EXE_vgpu-mediatord"));
        let libraries = [stand_in::library(), libraries];
        let path = std::env::join_paths(libraries).expect("no colon in them");
        Self::start_among(command, &path, folder, listen, "cuda", scenario)
    }

    /// The same, for a stand-in whose state is a file: a worker that is confined would not see it.
    fn start_unconfined(folder: &Path, listen: &str, executor: &str, scenario: &str) -> Mediator {
        let config = folder.join("mediatord.toml");
        fs::write(&config, "[worker]\nconfine = 'off'\n").expect("our own folder");
        let mut command = Command::new(env!("CARGO_BIN_EXE_vgpu-mediatord"));
        command.arg("--config").arg(config);
        Self::start_by(command, folder, listen, executor, scenario)
    }

    fn start_by(
        command: Command,
        folder: &Path,
        listen: &str,
        executor: &str,
        scenario: &str,
    ) -> Mediator {
        let libraries = stand_in::library().as_os_str();
        Self::start_among(command, libraries, folder, listen, executor, scenario)
    }

    fn start_among(
        mut command: Command,
        libraries: &OsStr,
        folder: &Path,
        listen: &str,
        executor: &str,
        scenario: &str,
    ) -> Mediator {
        let log = folder.join("log");
        command
            .args(["--listen", listen, "--executor", executor, "--control"])
            .arg(folder.join("control.sock"))
            .env("LD_LIBRARY_PATH", libraries)
            .env(stand_in::SCENARIO, scenario)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).expect("a log"));
        let process = command.spawn().expect("the mediator starts");
        Mediator { process, log }
    }

    /// Asks it to end and waits.
    pub(crate) fn stop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.process.id().try_into().expect("a pid"));
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let deadline = Instant::now() + WATCHDOG;
        while self.process.try_wait().expect("a child").is_none() {
            if Instant::now() > deadline {
                let _ = self.process.kill();
                panic!("the mediator does not end");
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Mediator {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = self.process.kill();
            let _ = self.process.wait();
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            eprintln!("the mediator's log:\n{log}");
        } else {
            self.stop();
        }
    }
}

/// Connects as soon as the mediator listens.
pub(crate) fn connect(socket: &Path) -> Client {
    let deadline = Instant::now() + WATCHDOG;
    loop {
        match Client::connect(&[Endpoint::Local(socket.into())], &Options::default()) {
            Ok(client) => return client,
            Err(error) if Instant::now() > deadline => panic!("{error}"),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

#[test]
fn a_guest_adds_vectors_on_the_stand_in() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("vgpu.sock");
    let listen = format!("local:{}", socket.display());
    let _mediator = Mediator::start(folder.path(), &listen, "cuda", "works");
    // Two sessions, so two workers, each with a context of its own.
    for _ in 0..2 {
        let mut client = connect(&socket);
        let info = client.info().expect("info");
        assert_eq!((&*info.executor, &*info.device), ("cuda", "Stand-in GPU"));
        let way = client.copy_way().expect("told");
        assert_eq!(way, CopyWay::PageLocked);
        for elements in [1, 1000, 3_000_001] {
            let a: Vec<f32> = (0..elements).map(|i| i as f32).collect();
            let b: Vec<f32> = (0..elements).map(|i| (i % 77) as f32).collect();
            let mut sums = vec![0.0; elements];
            let report = client.vector_add(&a, &b, &mut sums).expect("sums");
            assert_eq!(report.elements, elements);
            assert!((0..elements).all(|i| sums[i] == a[i] + b[i]));
        }
        client.goodbye().expect("goodbye");
    }
}

/// The probe's launch is one per process, so in a worker the second launch is the guest's first.
#[test]
fn a_fault_ends_one_session_and_the_next_has_a_new_context() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("vgpu.sock");
    let listen = format!("local:{}", socket.display());
    let _mediator = Mediator::start(folder.path(), &listen, "cuda", "fault=2");
    for _ in 0..2 {
        let mut client = connect(&socket);
        let error = client
            .vector_add(&[1.0], &[2.0], &mut [0.0])
            .expect_err("the kernel faults");
        assert!(error.to_string().contains("700"), "{error}");
    }
}

/// At boot a driver may be there later than the mediator.
#[test]
fn auto_takes_a_gpu_that_comes_later() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("vgpu.sock");
    let directory = folder.path().join("files");
    fs::create_dir(&directory).unwrap();
    let listen = format!("local:{},file:{}", socket.display(), directory.display());
    let driver = folder.path().join("driver");
    let scenario = format!("late={}", driver.display());
    let _mediator = Mediator::start_unconfined(folder.path(), &listen, "auto", &scenario);
    let executor = || {
        let mut client = connect(&socket);
        let info = client.info().expect("info");
        client.goodbye().expect("goodbye");
        (info.executor, info.reason)
    };
    let (kind, reason) = executor();
    assert!(
        kind == "cpu" && reason.contains("nvidia-smi"),
        "{kind}: {reason}"
    );
    let log = || fs::read_to_string(folder.path().join("log")).unwrap();
    assert!(
        log().contains("looked for again while this runs"),
        "{}",
        log()
    );
    let doctor = Command::new(env!("CARGO_BIN_EXE_vgpuctl"))
        .arg("--control")
        .arg(folder.path().join("control.sock"))
        .arg("doctor")
        .output()
        .expect("vgpuctl runs");
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    // A remark, or a fault where this machine has a driver.
    assert!(doctor.contains(" with the cpu executor"), "{doctor}");
    assert!(doctor.contains("it looks again in "), "{doctor}");

    fs::write(&driver, "").unwrap();
    let deadline = Instant::now() + WATCHDOG;
    let reason = loop {
        match executor() {
            (kind, reason) if kind == "cuda" => break reason,
            found => assert!(Instant::now() < deadline, "still {found:?}"),
        }
        thread::sleep(Duration::from_millis(50));
    };
    assert!(reason.contains("by now"), "{reason}");
    // The worker of a directory was there before the driver, and is told at the same time.
    let response = || fs::read_to_string(directory.join("response.txt")).unwrap_or_default();
    let wait_for = |start: &str| {
        while !response().starts_with(start) {
            assert!(Instant::now() < deadline, "still {:?}", response());
            thread::sleep(Duration::from_millis(10));
        }
    };
    loop {
        fs::write(directory.join("command.txt"), "1\n").unwrap();
        wait_for("1:");
        if response().contains("(cuda executor, Stand-in GPU)") {
            break;
        }
        fs::write(directory.join("command.txt"), "0\n").unwrap();
        wait_for("0:Ready");
    }
}

/// Whether a process has locked this file, as the stand-in does in the scenario `alone`.
fn is_locked(file: &Path) -> bool {
    let file = fs::File::options().read(true).write(true).open(file);
    let short = |value: libc::c_int| libc::c_short::try_from(value).expect("a small constant");
    let mut lock = libc::flock {
        l_type: short(libc::F_WRLCK),
        l_whence: short(libc::SEEK_SET),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file.expect("the file"), FcntlArg::F_GETLK(&mut lock)).expect("asked");
    lock.l_type != short(libc::F_UNLCK)
}

/// A GPU in exclusive mode: one session has it, and a command by files gives it back.
#[test]
fn a_gpu_that_another_session_has_is_busy_and_a_command_gives_it_back() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("vgpu.sock");
    let directory = folder.path().join("files");
    fs::create_dir(&directory).unwrap();
    let listen = format!("local:{},file:{}", socket.display(), directory.display());
    let scenario = format!("alone={}", folder.path().join("taken").display());
    let _mediator = Mediator::start_unconfined(folder.path(), &listen, "cuda", &scenario);
    let first = connect(&socket);
    let endpoint = Endpoint::Local(socket.clone());
    let error = Client::connect(std::slice::from_ref(&endpoint), &Options::default())
        .expect_err("the GPU is taken");
    let text = error.to_string();
    assert!(
        text.contains("E_BUSY") && text.contains("for itself"),
        "{text}"
    );
    first.goodbye().expect("goodbye");
    let response = || fs::read_to_string(directory.join("response.txt")).unwrap_or_default();
    let deadline = Instant::now() + WATCHDOG;
    while is_locked(&folder.path().join("taken")) || !response().starts_with("0:Ready") {
        assert!(Instant::now() < deadline, "still {:?}", response());
        thread::sleep(Duration::from_millis(10));
    }
    fs::write(directory.join("command.txt"), "1\n").unwrap();
    while !response().starts_with("1:Vector add PASSED") {
        assert!(Instant::now() < deadline, "still {:?}", response());
        thread::sleep(Duration::from_millis(10));
    }
    // The mediator serves the directory still, and a session has the GPU.
    connect(&socket).goodbye().expect("goodbye");
}

/// The suite for devices on the CUDA executor: the same cases as over every endpoint on the other.
#[test]
fn the_suite_of_a_device_passes_on_the_stand_in() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("vgpu.sock");
    let listen = format!("local:{}", socket.display());
    let _mediator = Mediator::start(folder.path(), &listen, "cuda", "works");
    let client = connect(&socket);
    // Without it the cases of printed output do nothing.
    assert!(client.limits().features.contains(Features::PRINTED));
    client.goodbye().expect("goodbye");
    let endpoint = Endpoint::Local(socket);
    let options = Options::default();
    let ground = Ground {
        endpoint: &endpoint,
        options: &options,
    };
    let mut run = 0;
    for outcome in conformance::run(&ground, "gpu_") {
        println!("{}: {:?}", outcome.case.name, outcome.elapsed);
        if let Err(error) = outcome.result {
            panic!("{}: {error}", outcome.case.name);
        }
        run += 1;
    }
    assert!(run >= 13, "{run} cases");
    let log = fs::read_to_string(folder.path().join("log")).unwrap();
    assert!(!log.contains("stand-in: misuse"), "{log}");
}

#[test]
fn a_mediator_without_the_gpu_it_was_told_to_use_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let listen = format!("local:{}", folder.path().join("vgpu.sock").display());
    let mut mediator = Mediator::start(folder.path(), &listen, "cuda", "alloc=801");
    let deadline = Instant::now() + WATCHDOG;
    let status = loop {
        if let Some(status) = mediator.process.try_wait().expect("a child") {
            break status;
        }
        assert!(Instant::now() < deadline, "still running");
        thread::sleep(Duration::from_millis(10));
    };
    assert!(!status.success());
    let log = fs::read_to_string(folder.path().join("log")).unwrap();
    assert!(log.contains("CUDA error 801 in cuMemAlloc"), "{log}");
    assert!(!folder.path().join("vgpu.sock").exists());
}

#[test]
fn a_shell_asks_by_files() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("files");
    fs::create_dir(&directory).unwrap();
    let listen = format!("file:{}", directory.display());
    let mut mediator = Mediator::start(folder.path(), &listen, "cuda", "works");
    let response = || fs::read_to_string(directory.join("response.txt")).unwrap_or_default();
    let wait_for = |text: &str| {
        let deadline = Instant::now() + WATCHDOG;
        while !response().starts_with(text) {
            assert!(Instant::now() < deadline, "still {:?}", response());
            thread::sleep(Duration::from_millis(10));
        }
    };
    let sh = |script: &str| {
        let status = Command::new("sh")
            .args(["-euc", script])
            .current_dir(&directory)
            .status();
        assert!(status.expect("sh runs").success());
    };
    wait_for("0:Ready\n");
    let passed = "1:Vector add PASSED: 1024 elements, 0 errors (cuda executor, Stand-in GPU)\n";
    for _ in 0..2 {
        sh("echo 1 > command.txt");
        wait_for(passed);
        sh("echo 0 > command.txt");
        wait_for("0:Ready\n");
    }
    sh("echo 2 > command.txt");
    wait_for("1:Stand-in GPU, 1.1 GB, driver ");
    mediator.stop();
    assert!(
        response().starts_with("2:The mediator has stopped"),
        "{}",
        response()
    );
}

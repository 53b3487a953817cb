//! Faults of sessions over `file:`: processes killed at any point, full and vanished file systems.
//! A request runs once or fails with a clear error, and the next session works.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use vgpu_guest::{Client, Endpoint, Error, Options, Side};

use crate::support::{Mediator, add, options, response, run, wait_for_response, wait_until};

/// Numbers that look random; the seed is printed, and `VGPU_TEST_SEED` repeats a run.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let seed = std::env::var("VGPU_TEST_SEED").map_or_else(
            |_| now.as_secs() ^ u64::from(now.subsec_nanos()),
            |text| text.parse().unwrap(),
        );
        println!("VGPU_TEST_SEED={seed}");
        Self(seed | 1)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

fn serve(directory: &Path, served: &Path) -> Mediator {
    let listen = format!("file:{}", served.display());
    Mediator::start(directory, &["--listen", &listen])
}

fn try_connect(place: &Path, options: &Options) -> Result<Client, Error> {
    Client::connect(&[Endpoint::File(place.to_owned())], options)
}

fn connect(place: &Path) -> Client {
    try_connect(place, &options()).unwrap()
}

fn sessions(place: &Path) -> usize {
    fs::read_dir(place.join("sessions")).map_or(0, Iterator::count)
}

#[test]
fn a_mediator_killed_at_any_point_is_an_error_and_its_successor_serves() {
    let directory = tempfile::tempdir().unwrap();
    let served = directory.path().join("served");
    let mut random = Random::new();
    let mut mediator = Some(serve(directory.path(), &served));
    let (mut failed, mut passed) = (0, 0);
    for round in 0..6 {
        let mut client = connect(&served);
        let delay = Duration::from_micros(random.below(60_000));
        let killed = mediator.take().unwrap();
        let (outcome, restarted) = thread::scope(|scope| {
            let kill = scope.spawn(|| {
                thread::sleep(delay);
                killed.crash();
                serve(directory.path(), &served)
            });
            // Every sum that is given was checked; an error leaves no doubt that it is one.
            let outcome = (0..1000).try_for_each(|_| add(&mut client, 100_000));
            (outcome, kill.join().unwrap())
        });
        mediator = Some(restarted);
        match outcome {
            Ok(()) => passed += 1,
            Err(error) => {
                failed += 1;
                assert_eq!(error.side(), Side::Connection, "round {round}: {error}");
                assert!(error.epoch().is_some(), "the error names the session");
                // The session is over for good, and says so.
                assert!(client.ping(b"x").is_err());
                let first = client.epoch();
                drop(client);
                let mut next = connect(&served);
                assert_ne!(next.epoch(), first);
                add(&mut next, 1024).unwrap();
                next.goodbye().unwrap();
            }
        }
    }
    println!("{failed} sessions failed, {passed} were done before");
    assert!(failed > 0);
    mediator.unwrap().stop();
}

#[test]
fn a_worker_killed_alone_is_told_to_its_guest_soon() {
    let directory = tempfile::tempdir().unwrap();
    let served = directory.path().join("served");
    let mediator = serve(directory.path(), &served);
    let mut client = connect(&served);
    let status = mediator.status();
    let pid = status["sessions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|session| session["client"] == "end to end")
        .and_then(|session| session["pid"].as_i64())
        .unwrap();
    crate::support::signal(
        u32::try_from(pid).unwrap(),
        nix::sys::signal::Signal::SIGKILL,
    );
    let error = client.ping(b"x").unwrap_err();
    assert_eq!(error.side(), Side::Connection);
    assert!(
        error
            .to_string()
            .contains("the mediator that served this session is gone"),
        "{error}"
    );
    mediator.stop();
}

/// The guest of [`guests_killed_at_any_point_harm_nobody`], in a process of its own: this program,
/// told by an environment variable to run this one test.
#[test]
fn guest_process() {
    let Ok(endpoint) = std::env::var("VGPU_TEST_GUEST") else {
        return;
    };
    println!("begins");
    std::io::stdout().flush().unwrap();
    let mut client = Client::connect(&[endpoint.parse().unwrap()], &options()).unwrap();
    loop {
        add(&mut client, 50_000).unwrap();
    }
}

fn start_guest(place: &Path) -> Child {
    let mut guest = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "faults::guest_process", "--nocapture"])
        .env("VGPU_TEST_GUEST", format!("file:{}", place.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(guest.stdout.take().unwrap()).lines();
    assert!(
        lines
            .map_while(Result::ok)
            .any(|line| line.contains("begins"))
    );
    guest
}

#[test]
fn guests_killed_at_any_point_harm_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let served = directory.path().join("served");
    let config = directory.path().join("m.toml");
    fs::write(&config, "[limits]\nfile_silence_s = 4\n").unwrap();
    let listen = format!("file:{}", served.display());
    let flags = ["--listen", &listen, "--config", config.to_str().unwrap()];
    let mediator = Mediator::start(directory.path(), &flags);
    let mut random = Random::new();
    let mut other = connect(&served);
    let began = Instant::now();
    for _round in 0..3 {
        let mut guest = start_guest(&served);
        thread::sleep(Duration::from_micros(random.below(600_000)));
        guest.kill().unwrap();
        guest.wait().unwrap();
        add(&mut other, 1024).unwrap();
    }
    // Each is noticed by its silence, and what it left is swept.
    // The worker of the directory, and that of the guest that lives.
    wait_until("the dead guests' sessions end", || {
        mediator.workers().len() == 2
    });
    println!("over after {:?}", began.elapsed());
    // What they left is swept later; see the tests of `vgpu_file_transport::sessions`.
    assert!(sessions(&served) >= 1);
    add(&mut other, 1024).unwrap();
    other.goodbye().unwrap();
    mediator.stop();
}

/// A small tmpfs, unmounted when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    /// `None` where this user may not mount.
    fn mount(path: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(path).unwrap();
        let options = format!("size={size}");
        match mount(
            Some("tmpfs"),
            path,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options.as_str()),
        ) {
            Ok(()) => Some(Self(path.to_owned())),
            Err(errno) => {
                test_skip::skipped(format_args!("a tmpfs cannot be mounted here: {errno}"));
                None
            }
        }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn what_lies_in_a_guests_directorys_place_is_served() {
    let directory = tempfile::tempdir().unwrap();
    let served = directory.path().join("served");
    let guest = served.join("web-1");
    fs::create_dir_all(&guest).unwrap();
    crate::support::only_ours_to_change(&served);
    let mediator = serve(directory.path(), &served);
    let runs = |place: &Path| {
        wait_until("it is served", || response(place) == "0:Ready\n");
        fs::write(place.join("command.txt"), "2\n").unwrap();
        wait_for_response(place, "1:");
        let mut client = connect(place);
        add(&mut client, 1024).unwrap();
        client
    };
    let mut below = runs(&guest);
    let Some(over) = Tmpfs::mount(&guest, "6m") else {
        return;
    };
    runs(&guest).goodbye().unwrap();
    // Its session lies where nothing leads any more.
    add(&mut below, 1024).unwrap_err();
    let line = "another file system lies there now";
    assert!(mediator.log().contains(line), "{}", mediator.log());
    // `DIR` itself goes on as it was.
    assert!(!mediator.log().contains(&format!("served: {line}")));
    drop(over);
    fs::write(guest.join("command.txt"), "0\n").unwrap();
    runs(&guest).goodbye().unwrap();
    // Another directory of its name.
    fs::rename(&guest, served.join(".old")).unwrap();
    fs::create_dir(&guest).unwrap();
    runs(&guest).goodbye().unwrap();
    mediator.stop();
}

#[test]
fn a_full_file_system_is_a_clear_error_or_a_delay_and_nothing_half_done() {
    let directory = tempfile::tempdir().unwrap();
    let served = directory.path().join("served");
    let Some(_tmpfs) = Tmpfs::mount(&served, "6m") else {
        return;
    };
    let mediator = serve(directory.path(), &served);
    // Vectors of many times the space: files go as they are taken.
    let mut client = connect(&served);
    add(&mut client, 2_000_000).unwrap();
    // Full for a while: the session goes on.
    let filler = served.join("filler");
    let fill = || {
        let mut file = fs::File::create(&filler).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
    };
    fill();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(1500));
            fs::remove_file(&filler).unwrap();
        });
        add(&mut client, 100_000).unwrap();
    });
    // Full for good: an error that says so.
    fill();
    let error = add(&mut client, 100_000).unwrap_err().to_string();
    // Whichever side cannot write first.
    let clear = [
        "No space left on device",
        "the mediator that served this session is gone",
    ];
    assert!(clear.iter().any(|text| error.contains(text)), "{error}");
    drop(client);
    fs::remove_file(&filler).unwrap();
    let mut client = connect(&served);
    add(&mut client, 1024).unwrap();
    client.goodbye().unwrap();
    mediator.stop();
}

#[test]
fn a_vanished_directory_ends_its_sessions_and_is_served_again_when_it_is_back() {
    let directory = tempfile::tempdir().unwrap();
    let served = directory.path().join("served");
    let mediator = serve(directory.path(), &served);
    let mut client = connect(&served);
    add(&mut client, 1024).unwrap();
    // Both sides may write into it while it is emptied.
    wait_until("it is removed", || fs::remove_dir_all(&served).is_ok());
    let error = add(&mut client, 1024).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("the session's directory is gone"),
        "{error}"
    );
    drop(client);
    fs::create_dir(&served).unwrap();
    wait_until("it is served again", || served.join("sessions").exists());
    let mut client = connect(&served);
    add(&mut client, 1024).unwrap();
    client.goodbye().unwrap();
    mediator.stop();
}

#[test]
fn limits_are_told_to_the_guest() {
    let directory = tempfile::tempdir().unwrap();
    let served = directory.path().join("served");
    let config = directory.path().join("m.toml");
    fs::write(&config, "[limits]\nmax_sessions_per_guest = 1\n").unwrap();
    let listen = format!("file:{}", served.display());
    let flags = ["--listen", &listen, "--config", config.to_str().unwrap()];
    let mediator = Mediator::start(directory.path(), &flags);
    let client = connect(&served);
    let error = try_connect(&served, &options()).unwrap_err();
    assert!(
        error.to_string().contains("at its limit of sessions (1)"),
        "{error}"
    );
    client.goodbye().unwrap();
    wait_until("another may come", || {
        try_connect(&served, &options()).is_ok()
    });
    mediator.stop();
}

#[test]
fn kicked_sessions_end_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let served = directory.path().join("served");
    fs::create_dir_all(served.join("web-1")).unwrap();
    let mediator = serve(directory.path(), &served);
    let mut client = connect(&served.join("web-1"));
    assert!(
        run(mediator.vgpuctl().args(["kick", "web-1"]))
            .status
            .success()
    );
    wait_until("the guest is told", || match client.ping(b"x") {
        Ok(_) => false,
        Err(error) => {
            assert!(
                error.to_string().contains("an administrator ended"),
                "{error}"
            );
            true
        }
    });
    mediator.stop();
}

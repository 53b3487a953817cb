//! The configuration is read again while sessions go on: all of it, or nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, mkfifo};
use vgpu_guest::{Client, Device, Endpoint, Error};

use crate::support::sockets::Sockets;
use crate::support::{
    Mediator, WATCHDOG, add, exchange_and, only_ours_to_change, response, run, stderr, stdout,
    wait_until,
};

/// A mediator with a configuration file, over `local:`, `unix:` and `tcp:`.
struct Served {
    mediator: Mediator,
    sockets: Sockets,
    file: PathBuf,
    directory: tempfile::TempDir,
}

impl Served {
    fn with(text: &str, flags: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let sockets = Sockets::new(directory.path());
        let (mediator, file) = sockets.start_configured(text, flags);
        Self {
            mediator,
            sockets,
            file,
            directory,
        }
    }

    fn client(&self, name: &str) -> Result<Client, Error> {
        Client::connect(&[self.sockets.tcp()], &self.sockets.options_of(name))
    }

    fn reload(&self, text: &str) -> Output {
        fs::write(&self.file, text).unwrap();
        run(self.mediator.vgpuctl().args(["--json", "reload"]))
    }

    /// Reloads, which must work, and returns what has changed.
    fn reloaded(&self, text: &str) -> serde_json::Value {
        let output = self.reload(text);
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

fn is_denied(result: Result<Client, Error>) -> bool {
    match result {
        Ok(_) => false,
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("the rule for name:other denies it"), "{text}");
            true
        }
    }
}

#[test]
fn a_guest_that_was_refused_is_served_after_a_reload_and_the_session_of_another_goes_on() {
    let served = Served::with("[guests]\nother = 'deny'\n", &[]);
    let device = Device::new(served.client("tester").unwrap()).unwrap();
    let data = device.clone_htod(&[1u32, 2, 3]).unwrap();
    let before = device.total_memory();
    assert!(is_denied(served.client("other")));

    let rules = "[limits]\nmemory_mib = 5\n[guests]\nother = { allow = true, memory_mib = 3 }\n";
    let reloaded = served.reloaded(rules);
    assert_eq!(
        reloaded["changed"],
        serde_json::json!(["limits.memory_mib", "name:other"])
    );
    assert_eq!(reloaded["file"], served.file.to_str().unwrap());
    assert_eq!(reloaded["denied_sessions"], 0);

    let other = Device::new(served.client("other").unwrap()).unwrap();
    assert_eq!(other.total_memory(), 3 << 20);
    let another = Device::new(served.client("tester").unwrap()).unwrap();
    assert_eq!(another.total_memory(), 5 << 20);
    // The old session is the same as before.
    assert_eq!(device.total_memory(), before);
    assert_eq!(device.clone_dtoh(&data).unwrap(), [1, 2, 3]);

    // Denied again: its session goes on, and it gets no other.
    let reloaded = served.reloaded("[guests]\nother = 'deny'\n");
    assert_eq!(reloaded["denied_sessions"], 1);
    assert!(is_denied(served.client("other")));
    let data = other.clone_htod(&[4u8]).unwrap();
    assert_eq!(other.clone_dtoh(&data).unwrap(), [4]);
    let log = served.mediator.log();
    assert!(
        log.contains("sessions of guests that are denied now: 1"),
        "{log}"
    );
    served.mediator.stop();
}

#[test]
fn a_wrong_file_changes_nothing_and_is_named_with_its_line() {
    let served = Served::with("[guests]\nother = 'deny'\n", &[]);
    let mut client = served.client("tester").unwrap();
    let fails = |output: &Output, what: &str, advice: &str| {
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let error = &object["error"];
        let (said, help) = (error["what"].as_str(), error["advice"].as_str());
        let (said, help) = (said.unwrap(), help.unwrap());
        assert!(said.starts_with("not reloaded, and nothing has changed: "));
        assert!(said.contains(what), "{said}");
        assert!(help.contains(advice), "{help}");
        assert_eq!(error["code"], 2);
        let lines = stderr(output);
        assert!(lines.contains(said) && lines.contains(help), "{lines}");
        // The log is written by a thread of its own.
        wait_until("the log says so", || served.mediator.log().contains(said));
        assert!(is_denied(served.client("other")));
    };
    // Each allows the other guest, were it not for a mistake.
    let output = served.reload("[guests]\nother = 'allow'\nother = 'allow'\n");
    fails(&output, "mediatord.toml, line 3: ", "--check-config");
    let output = served.reload("[guests]\nother = 'allow'\n[limits]\nweight = 0\n");
    fails(&output, "mediatord.toml, line", "--check-config");
    let text = "[guests]\nother = 'allow'\n[worker]\nfirst_user = 5000\n";
    let output = served.reload(text);
    let fixed = "only a restart can change worker.first_user";
    fails(&output, fixed, "systemctl restart");
    let text = "[limits]\nmax_sessions = 512\nmax_file_guests = 256\n[guests]\nother = 'allow'\n";
    fs::set_permissions(served.sockets.secrets(), PermissionsExt::from_mode(0o644)).unwrap();
    let output = served.reload(text);
    // Not even the other guest is let in while it is so.
    fs::set_permissions(served.sockets.secrets(), PermissionsExt::from_mode(0o600)).unwrap();
    fails(&output, "can read or change", "chmod 600");
    fs::remove_file(&served.file).unwrap();
    let output = run(served.mediator.vgpuctl().args(["--json", "reload"]));
    fails(&output, "cannot read the configuration", "permissions");
    // One that would never end to be opened.
    mkfifo(&served.file, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let output = run(served.mediator.vgpuctl().args(["--json", "reload"]));
    fails(&output, "it is no regular file", "permissions");
    fs::remove_file(&served.file).unwrap();

    // Right at last, by a signal.
    fs::write(&served.file, "[guests]\nother = 'allow'\n").unwrap();
    served.mediator.signal(Signal::SIGHUP);
    wait_until("the other guest is served", || {
        !is_denied(served.client("other"))
    });
    add(&mut client, 1000).unwrap();
    served.mediator.stop();
}

#[test]
fn weights_of_running_sessions_change_at_once() {
    let served = Served::with("", &[]);
    let mut client = served.client("tester").unwrap();
    add(&mut client, 1000).unwrap();
    let weight = || {
        let status = served.mediator.status();
        let guests = status["guests"].as_array().unwrap();
        let guest = guests.iter().find(|guest| guest["guest"] == "tcp tester");
        guest.unwrap()["weight"].clone()
    };
    assert_eq!(weight(), 1);
    served.reloaded("[guests]\ntester = { allow = true, weight = 7 }\n");
    assert_eq!(weight(), 7);
    served.reloaded("[limits]\nweight = 3\n");
    assert_eq!(weight(), 3);
    // Also when it asks for its next turn.
    add(&mut client, 1000).unwrap();
    assert_eq!(weight(), 3);
    served.mediator.stop();
}

#[test]
fn hang_ups_without_end_starve_no_session_and_do_not_fill_the_log() {
    let served = Served::with("", &[]);
    let mut client = served.client("tester").unwrap();
    let (enough, began) = (AtomicBool::new(false), Instant::now());
    let pid = Pid::from_raw(i32::try_from(served.mediator.pid()).unwrap());
    thread::scope(|scope| {
        scope.spawn(|| {
            // Relaxed: it carries no data.
            while !enough.load(Ordering::Relaxed) {
                kill(pid, Signal::SIGHUP).unwrap();
            }
        });
        let reloads = || served.mediator.log().matches("reloaded ").count();
        wait_until("it reloads again and again", || {
            add(&mut client, 1000).unwrap();
            let mut another = served.client("other").unwrap();
            another.exchange(&[7; 100], &mut [0; 100]).unwrap();
            reloads() >= 5
        });
        enough.store(true, Ordering::Relaxed);
        let most = began.elapsed().as_millis() / 250 + 2;
        assert!(reloads() as u128 <= most, "{}", served.mediator.log());
    });
    served.reloaded("");
    served.mediator.stop();
}

#[test]
fn a_mediator_that_stops_does_not_reload() {
    let mut served = Served::with("", &[]);
    let mut client = served.mediator.connect().unwrap();
    exchange_and(&mut client, || {
        served.mediator.signal(Signal::SIGTERM);
        wait_until("no new guest is taken", || {
            !served.directory.path().join("vgpu.sock").exists()
        });
        served.mediator.signal(Signal::SIGHUP);
        let output = served.reload("[limits]\nweight = 5\n");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(
            stderr(&output).contains("the mediator is stopping"),
            "{output:?}"
        );
    })
    .unwrap();
    assert!(served.mediator.wait().success());
    let log = served.mediator.log();
    assert!(
        !log.contains("reloaded ") && !log.contains("asked to stop again"),
        "{log}"
    );
}

#[test]
fn without_a_file_there_is_nothing_to_reload_and_a_hang_up_ends_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut mediator = Mediator::start(directory.path(), &[]);
    let output = run(mediator.vgpuctl().arg("reload"));
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(
        stderr(&output).contains("started without a configuration file"),
        "{output:?}"
    );
    mediator.signal(Signal::SIGHUP);
    assert!(mediator.wait().success());
}

#[test]
fn a_socket_is_opened_to_everybody_and_closed_again() {
    let served = Served::with("", &[]);
    let mode = |endpoint: &Endpoint| {
        let (Endpoint::Local(path) | Endpoint::Unix(path)) = endpoint else {
            panic!("{endpoint} has no socket");
        };
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    let endpoints = [served.mediator.endpoint(), served.sockets.unix()];
    for (text, wanted) in [("", 0o600), ("allow_all = true\n", 0o666), ("", 0o600)] {
        served.reloaded(text);
        for endpoint in &endpoints {
            assert_eq!(mode(endpoint), wanted, "{endpoint}");
        }
        assert_eq!(served.mediator.status()["allow_all"], wanted == 0o666);
    }
    served.mediator.stop();
}

#[test]
fn directories_of_guests_follow_the_rules_and_their_workers_the_limits() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("exchange");
    let guest = root.join("web-1");
    fs::create_dir_all(&guest).unwrap();
    only_ours_to_change(&root);
    let listen = format!("file:{}", root.display());
    let served = Served::with("[guests]\nweb-1 = 'deny'\n", &["--listen", &listen]);
    wait_until("the directory is served", || {
        response(&root).starts_with("0:")
    });
    // Again and again, with time to answer: a command to a worker that is being replaced may be lost.
    let until_answered = |at: &Path, words: &str| {
        let mut asked = None;
        wait_until(words, || {
            if asked.is_none_or(|at: Instant| at.elapsed() > Duration::from_secs(1)) {
                fs::write(at.join("command.txt"), "1\n").unwrap();
                asked = Some(Instant::now());
            }
            response(at).contains(words)
        });
    };
    until_answered(&root, "PASSED");
    assert_eq!(response(&guest), "");

    let rules = "[limits]\noperations = ['device']\n[guests]\nweb-1 = { allow = true, operations = ['memory'] }\n";
    served.reloaded(rules);
    wait_until("the guest is served", || response(&guest).starts_with("0:"));
    until_answered(&guest, "does not allow ModuleLoad");
    // The worker of the directory itself ran before, and is replaced by one with the new limit.
    until_answered(&root, "does not allow MemoryAllocate");

    served.reloaded("[guests]\nweb-1 = 'deny'\n");
    wait_until("its worker is gone", || {
        let status = served.mediator.status();
        let sessions = status["sessions"].as_array().unwrap();
        let of_guest = |it: &&serde_json::Value| it["guest"].as_str().unwrap().ends_with("web-1");
        !sessions.iter().any(|it| of_guest(&it))
    });
    served.mediator.stop();
}

#[test]
fn systemd_is_told_when_a_reload_begins_and_ends() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("m.toml");
    fs::write(&file, "").unwrap();
    let path = directory.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(WATCHDOG)).unwrap();
    let flags = ["--config", file.to_str().unwrap()];
    let mediator = Mediator::start_with(directory.path(), &flags, |command| {
        command.env("NOTIFY_SOCKET", &path);
    });
    let next = || {
        let mut buffer = [0; 4096];
        let n = manager.recv(&mut buffer).expect("a word in time");
        String::from_utf8(buffer[..n].to_vec()).unwrap()
    };
    assert_eq!(next(), "READY=1");
    assert!(next().starts_with("STATUS=executor cpu: "));
    let clock = nix::time::ClockId::CLOCK_MONOTONIC;
    let now = || Duration::from(nix::time::clock_gettime(clock).unwrap()).as_micros();
    for text in ["", "[nonsense]\n"] {
        fs::write(&file, text).unwrap();
        let before = now();
        mediator.signal(Signal::SIGHUP);
        let word = next();
        let time = word.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        let time: u128 = time.parse().unwrap();
        assert!((before..=now()).contains(&time), "{time}");
        // Also after one that failed: systemd would wait for it without an end.
        assert_eq!(next(), "READY=1");
    }
    assert!(stdout(&run(mediator.vgpuctl().arg("status"))).contains("executor"));
    mediator.stop();
}

//! A worker that its guest has taken over: a process that is confined as workers are and then does what it
//! likes. It reaches nothing that is not its own.
//!
//! Each list of attacks runs twice, in processes of this program's own: confined, where all must fail, and
//! as root without any of it, where those that show `teeth` must succeed, so that a list that tries nothing
//! does not pass. Without a test harness, since a worker is confined while it has one thread.
#![allow(unsafe_code)]

mod attacks;

use std::env;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use nix::unistd::geteuid;
use vgpu_mediator::worker::confinement::{Confine, Needs, Relay, Served, Settings, enclose};
use vgpu_transport::endpoint::Endpoint;

/// Says to a process of this program what it plays.
const ROLE: &str = "VGPU_TEST_ROLE";

/// Users of the processes here.
const USERS: (u32, u32) = (2_079_999_000, 2_079_999_001);

fn main() -> ExitCode {
    match env::var(ROLE).as_deref() {
        Ok("victim") => victim(),
        Ok(role) => attacker(role),
        Err(_) => tests(),
    }
}

/// Files, sockets and devices that a worker of this kind has to reach.
fn needs(kind: &str) -> Needs {
    let directory = || PathBuf::from(env::var_os("VGPU_TEST_DIRECTORY").expect("set by the test"));
    let mut needs = Needs::default();
    match kind {
        "socket" => {}
        "cuda" => needs.cuda = true,
        "xen" => needs.xen = true,
        "file" => {
            needs.served = Some(Served {
                directory: directory().join("served"),
                guest: None,
                session: None,
            });
        }
        "relay" => {
            needs.relay = Some(Relay {
                endpoint: Endpoint::Unix(directory().join("far/mediator.sock")),
                secret: None,
            });
        }
        other => panic!("no worker is `{other}`"),
    }
    needs
}

/// Waits to be harmed, as the worker of another guest.
fn victim() -> ExitCode {
    let settings = Settings {
        confine: Confine::Required,
        user: Some(USERS.1),
    };
    let confined = enclose(settings, Needs::default()).and_then(|it| it.seal());
    confined.expect("confined");
    println!("ready");
    loop {
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}

/// Says for each attack whether it got anywhere.
fn attacker(role: &str) -> ExitCode {
    let (kind, confine) = role.split_once(' ').expect("two words");
    let confine = match confine {
        "confined" => Confine::Required,
        _ => Confine::Off,
    };
    let settings = Settings {
        confine,
        user: Some(USERS.0),
    };
    let confined = enclose(settings, needs(kind)).and_then(|it| it.seal());
    confined.expect("confined");
    for attack in attacks::LIST {
        let outcome = match (attack.run)() {
            true => "reached",
            false => "refused",
        };
        println!("{} {outcome}", attack.name);
    }
    ExitCode::SUCCESS
}

fn tests() -> ExitCode {
    if !geteuid().is_root() {
        test_skip::skipped("only root can confine a process in full");
        return ExitCode::SUCCESS;
    }
    let names: Vec<&str> = attacks::LIST.iter().map(|attack| attack.name).collect();
    for kind in ["socket", "cuda", "xen", "file", "relay"] {
        let free = run(kind, "unconfined");
        for attack in attacks::LIST.iter().filter(|attack| attack.teeth) {
            let line = format!("{} reached", attack.name);
            assert!(free.contains(&line), "as root: {free:?}");
        }
        let confined = run(kind, "confined");
        for name in &names {
            // A relay's worker may ask for sockets and open channels, and NVIDIA's library ask for a socket that it
            // cannot connect.
            let of_xen = [
                "a map of a grant",
                "a copy of a grant",
                "a new grant",
                "an event channel",
            ];
            let may = match kind {
                "relay" => name.starts_with("a socket") || of_xen.contains(name),
                "cuda" => *name == "a socket of the machine",
                _ => false,
            };
            if may {
                continue;
            }
            let line = format!("{name} refused");
            assert!(confined.contains(&line), "{kind}: {confined:?}");
        }
        println!("test a_worker_that_was_taken_over_reaches_nothing ({kind}) ... ok");
    }
    ExitCode::SUCCESS
}

/// Results of an attacker in this role: attacks that succeeded, and those that failed.
fn run(kind: &str, confine: &str) -> Vec<String> {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path();
    fs::set_permissions(path, Permissions::from_mode(0o755)).expect("our own");
    let secrets = path.join("secrets");
    fs::write(&secrets, "web 00\n").expect("our own directory");
    fs::set_permissions(&secrets, Permissions::from_mode(0o600)).expect("our own");
    fs::create_dir(path.join("served")).expect("our own directory");
    fs::create_dir(path.join("far")).expect("our own directory");
    let _control = UnixListener::bind(path.join("control.sock")).expect("our own directory");
    let mut victim = Killed(process("victim", path, 0));
    wait_for_line(&mut victim.0);
    let attacker = process(&format!("{kind} {confine}"), path, victim.0.id());
    let output = attacker.wait_with_output().expect("its output");
    assert!(
        output.status.success(),
        "{kind} {confine}: {}",
        output.status
    );
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().map(str::to_owned).collect()
}

fn process(role: &str, directory: &Path, victim: u32) -> Child {
    Command::new(env::current_exe().expect("this program"))
        .env(ROLE, role)
        .env("VGPU_TEST_DIRECTORY", directory)
        .env("VGPU_TEST_VICTIM", victim.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program starts")
}

fn wait_for_line(child: &mut Child) {
    use std::io::{BufRead, BufReader};
    let mut line = String::new();
    let out = child.stdout.as_mut().expect("a pipe");
    BufReader::new(out).read_line(&mut line).expect("a line");
    assert_eq!(line, "ready\n");
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have been harmed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

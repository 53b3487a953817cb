//! Messages after a user's mistake: one line with the error, one with advice.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::process::{Command, Output, Stdio};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::fstat;

use crate::support::{MEDIATORD, Mediator, VGPUCTL, run, stderr, stdout};

fn mediatord(flags: &[&str]) -> Output {
    run(Command::new(MEDIATORD).args(flags).env_remove("RUST_LOG"))
}

/// Checks that it failed with an error that holds `words`, and says what to do.
fn assert_refused(output: &Output, words: &[&str]) {
    let text = stderr(output);
    assert!(!output.status.success(), "{text}");
    // A mediator that got further has logged before.
    assert!(
        text.lines().any(|line| line.starts_with("error: ")),
        "{text}"
    );
    for word in words {
        assert!(text.contains(word), "`{word}` is missing: {text}");
    }
}

/// The same, and exactly two lines.
fn assert_two_lines(output: &Output, words: &[&str]) {
    assert_refused(output, words);
    let text = stderr(output);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].starts_with("error: "), "{text}");
    assert!(lines[1].starts_with(" help: "), "{text}");
}

#[test]
fn errors_in_the_journal_have_its_priority() {
    for journal in [true, false] {
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let file = fstat(&writer).expect("fstat");
        // A program that a shell in a desktop's terminal starts inherits the terminal's.
        let inode = if journal {
            file.st_ino
        } else {
            file.st_ino + 1
        };
        let mut mediatord = Command::new(MEDIATORD)
            .args(["--config", "/dev/null"])
            .env("JOURNAL_STREAM", format!("{}:{inode}", file.st_dev))
            .stderr(writer)
            .spawn()
            .expect("the mediator starts");
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("its error");
        assert_eq!(mediatord.wait().expect("its end").code(), Some(2));
        for (line, start) in text.lines().zip(["error: ", " help: "]) {
            let start = if journal {
                format!("<3>{start}")
            } else {
                start.to_owned()
            };
            assert!(line.starts_with(&start), "{text}");
        }
        assert_eq!(text.lines().count(), 2, "{text}");
    }
}

#[test]
fn wrong_arguments() {
    assert_refused(&mediatord(&["--frobnicate"]), &["--frobnicate"]);
    assert_refused(&mediatord(&["--listen"]), &["--listen"]);
    assert_refused(&mediatord(&["--listen", "pigeon:x"]), &["pigeon"]);
    assert_refused(
        &mediatord(&["--listen", "tcp:host"]),
        &["tcp:host", "tcp:HOST:PORT"],
    );
    assert_refused(
        &mediatord(&["--executor", "vulkan"]),
        &["vulkan", "auto, cuda or cpu"],
    );
    assert_refused(&mediatord(&["--executor", "relay:xen:"]), &["relay"]);
    // An empty file, not none: the machine may have one installed.
    let empty = mediatord(&["--config", "/dev/null"]);
    assert_two_lines(&empty, &["nothing to listen on", "--listen"]);
    assert_eq!(empty.status.code(), Some(2), "systemd is not to try again");
    let nothing = run(&mut Command::new(VGPUCTL));
    assert!(!nothing.status.success() && stderr(&nothing).contains("Usage: vgpuctl"));
    assert_refused(&run(Command::new(VGPUCTL).arg("dance")), &["dance"]);
}

#[test]
fn help_has_examples() {
    for program in [MEDIATORD, VGPUCTL] {
        let output = run(Command::new(program).arg("--help"));
        assert!(output.status.success());
        assert!(stdout(&output).contains("Examples:"));
    }
}

#[test]
fn configurations_are_checked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.toml");
    let check = |text: &str| {
        fs::write(&path, text).unwrap();
        mediatord(&["--config", path.to_str().unwrap(), "--check-config"])
    };
    let unknown = check("listen = \"xen:\"\n\n[limits]\nmax_guests = 3\n");
    assert_two_lines(&unknown, &["m.toml, line 4", "max_guests"]);
    assert_two_lines(&check("listen = \"xen\"\n"), &["line 1", "xen"]);
    let good = check("listen = \"xen:\"\n[guests]\nweb-1 = \"allow\"\n");
    assert!(good.status.success(), "{}", stderr(&good));
    let effective = stdout(&good);
    assert!(effective.contains("listen = [\"xen:\"]"), "{effective}");
    assert!(effective.contains("max_sessions = 64"), "{effective}");
    // What it prints is a configuration itself.
    assert_eq!(stdout(&check(&effective)), effective);
    let missing = mediatord(&["--config", "/nowhere/m.toml", "--check-config"]);
    assert_two_lines(&missing, &["/nowhere/m.toml"]);
}

/// Whoever starts a program may share a pipe with it that does not block.
#[test]
fn a_large_configuration_goes_whole_into_a_pipe_that_does_not_block() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.toml");
    let guests: String = (0..10_000)
        .map(|i| format!("guest-{i} = \"allow\"\n"))
        .collect();
    fs::write(&path, format!("listen = \"xen:\"\n[guests]\n{guests}")).unwrap();
    let (mut ours, theirs) = std::io::pipe().unwrap();
    let flags = FcntlArg::F_SETFL(OFlag::O_NONBLOCK);
    fcntl(&theirs, flags).unwrap();
    let mut child = Command::new(MEDIATORD)
        .arg("--config")
        .arg(&path)
        .arg("--check-config")
        .stdout(theirs)
        .spawn()
        .unwrap();
    let mut text = String::new();
    ours.read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(text.matches("guest-").count(), 10_000);
    // What it prints is a configuration itself, to its last line.
    fs::write(&path, &text).unwrap();
    let again = Command::new(MEDIATORD)
        .arg("--config")
        .arg(&path)
        .arg("--check-config")
        .output()
        .unwrap();
    assert_eq!(stdout(&again), text);

    // Whoever has seen enough is no error.
    let (ours, theirs) = std::io::pipe().unwrap();
    drop(ours);
    let closed = Command::new(MEDIATORD)
        .arg("--config")
        .arg(&path)
        .arg("--check-config")
        .stdout(theirs)
        .output()
        .unwrap();
    assert!(closed.status.success(), "{}", stderr(&closed));
}

#[test]
fn a_mediator_that_is_stopped_before_it_is_ready_says_so() {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let far = UnixListener::bind(path("far.sock")).unwrap();
    let child = Command::new(MEDIATORD)
        .args(["--listen", &format!("local:{}", path("vgpu.sock"))])
        .args(["--control", &path("control.sock")])
        .args(["--executor", &format!("relay:unix:{}", path("far.sock"))])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It waits for an answer.
    let _asking = far.accept().unwrap();
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_refused(&output, &["stopped while looking for an executor"]);
    assert_eq!(output.status.code(), Some(130));
}

#[test]
fn a_signal_ends_vgpuctl_with_130_as_it_ends_other_programs() {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    let silent = UnixListener::bind(&path).unwrap();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let mut waiting = Command::new(VGPUCTL)
            .arg("--control")
            .arg(&path)
            .arg("status")
            .spawn()
            .unwrap();
        // It waits for an answer.
        let _asking = silent.accept().unwrap();
        kill(Pid::from_raw(waiting.id().cast_signed()), signal).unwrap();
        assert_eq!(waiting.wait().unwrap().code(), Some(130), "{signal}");
    }
}

#[test]
fn a_second_mediator_is_told_about_the_first() {
    let directory = tempfile::tempdir().unwrap();
    let first = Mediator::start(directory.path(), &[]);
    let control = directory.path().join("control.sock");
    let listen = format!("local:{}", directory.path().join("other.sock").display());
    let flags = ["--listen", &listen, "--control", control.to_str().unwrap()];
    let second = mediatord(&[&flags[..], &["--executor", "cpu"]].concat());
    let pid = format!("pid {}", first.pid());
    assert_two_lines(&second, &["another vgpu-mediatord", &pid, "--control"]);

    // With another control socket, but on the same place for guests.
    let control = directory.path().join("control2.sock");
    let listen = first.endpoint().to_string();
    let flags = ["--listen", &listen, "--control", control.to_str().unwrap()];
    let third = mediatord(&[&flags[..], &["--executor", "cpu"]].concat());
    assert_refused(&third, &["another process listens"]);
    assert!(!control.exists(), "what it had made is gone");

    // The first has not noticed.
    crate::support::add(&mut first.connect().unwrap(), 10).unwrap();
    first.stop();
}

#[test]
fn what_cannot_be_served_is_refused_at_start() {
    let directory = tempfile::tempdir().unwrap();
    let control = directory.path().join("c.sock");
    let start = |listen: &str, executor: &str| {
        let control = control.to_str().unwrap();
        mediatord(&[
            "--listen",
            listen,
            "--control",
            control,
            "--executor",
            executor,
        ])
    };
    let file = directory.path().join("file");
    fs::write(&file, "x").unwrap();
    assert_refused(
        &start(&format!("local:{}", file.display()), "cpu"),
        &["not a socket"],
    );
    assert_refused(
        &start(&format!("file:{}", file.display()), "cpu"),
        &["not a directory"],
    );
    let long = format!("local:/tmp/{}", "x".repeat(200));
    assert_refused(&start(&long, "cpu"), &["107 bytes"]);
    if !std::path::Path::new("/sys/hypervisor/type").exists() {
        assert_refused(&start("xen:", "cpu"), &["cannot listen on xen:", "dom0"]);
    }
    if !std::path::Path::new("/dev/nvidiactl").exists() {
        assert_refused(
            &start("file:/tmp", "cuda"),
            &["executor cuda is not available"],
        );
    }
    assert!(!control.exists());
}

#[test]
fn vgpuctl_without_a_mediator() {
    let directory = tempfile::tempdir().unwrap();
    let control = directory.path().join("c.sock");
    let vgpuctl = |flags: &[&str]| {
        run(Command::new(VGPUCTL)
            .arg("--control")
            .arg(&control)
            .args(flags))
    };
    for command in [&["status"][..], &["top", "--once"], &["kick", "7"]] {
        assert_two_lines(
            &vgpuctl(command),
            &["no mediator at", "start vgpu-mediatord"],
        );
        let told = vgpuctl(&[&["--json"], command].concat());
        let object: serde_json::Value = serde_json::from_slice(&told.stdout).expect("one object");
        let error = &object["error"];
        for (line, part) in stderr(&told).lines().zip(["what", "advice"]) {
            assert_eq!(
                Some(line[7..].to_owned()),
                error[part].as_str().map(str::to_owned)
            );
        }
        assert_eq!(error["code"], 1);
    }
    let doctor = vgpuctl(&["doctor"]);
    assert_eq!(doctor.status.code(), Some(1));
    let text = stdout(&doctor);
    assert!(text.contains("✘ mediator: no mediator at"), "{text}");
    assert!(text.contains("CUDA"), "{text}");
    let doctor = vgpuctl(&["--json", "doctor"]);
    let object: serde_json::Value = serde_json::from_slice(&doctor.stdout).unwrap();
    assert_eq!(object["ok"], false);
}

/// The verdicts of `vgpuctl doctor` on this machine, by their names, for a mediator with this
/// configuration, of which none runs.
fn verdicts(configuration: &str) -> std::collections::HashMap<String, String> {
    let directory = tempfile::tempdir().unwrap();
    let (file, control) = (
        directory.path().join("m.toml"),
        directory.path().join("c.sock"),
    );
    fs::write(&file, configuration).unwrap();
    let doctor = run(Command::new(VGPUCTL)
        .arg("--control")
        .arg(&control)
        .args(["--json", "doctor", "--config"])
        .arg(&file));
    // Nobody answers at the control socket, at least.
    assert_eq!(doctor.status.code(), Some(1));
    let object: serde_json::Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let checks = object["checks"].as_array().unwrap();
    checks
        .iter()
        .map(|check| (text(&check["name"]), text(&check["verdict"])))
        .collect()
}

#[test]
fn doctor_judges_what_the_configuration_needs() {
    let local = verdicts("listen = ['local:/run/x', 'file:/tmp']\nexecutor = 'cpu'\n");
    assert_eq!(local["configuration"], "good");
    assert_eq!(local["Xen"], "absent");
    assert_eq!(local["CUDA"], "absent");
    assert!(!local.keys().any(|name| name.starts_with("/dev/xen/")));
    assert!(!local.contains_key("xenstore"));
    if !std::path::Path::new("/sys/hypervisor/type").exists() {
        assert_eq!(verdicts("listen = 'xen:'\n")["Xen"], "bad");
        let relay = verdicts("listen = 'local:/run/x'\nexecutor = 'relay:xen:gpu'\n");
        assert_eq!(relay["Xen"], "bad");
    }
    let relay = verdicts("listen = 'local:/run/x'\nexecutor = 'relay:unix:/y'\n");
    assert_eq!((&*relay["Xen"], &*relay["CUDA"]), ("absent", "absent"));
    if !std::path::Path::new("/dev/nvidiactl").exists() {
        let cuda = verdicts("listen = 'local:/run/x'\nexecutor = 'cuda'\n");
        assert_eq!((&*cuda["NVIDIA driver"], &*cuda["CUDA"]), ("bad", "bad"));
        // The CPU stands in.
        assert_eq!(verdicts("listen = 'local:/run/x'\n")["CUDA"], "remark");
    }
    let off = verdicts("listen = 'local:/run/x'\n[worker]\nconfine = 'off'\n");
    assert_eq!(off["confinement of workers"], "remark");
    for (settings, verdict) in [
        ("listen = 'local:/run/x'\nexecutor = 'cpu'\n", "absent"),
        (
            "listen = ['local:/run/x', 'file:/tmp']\nexecutor = 'cpu'\n[worker]\nwarm_workers = 1\n",
            "good",
        ),
        (
            "listen = 'file:/tmp'\nexecutor = 'cpu'\n[worker]\nwarm_workers = 1\n",
            "remark",
        ),
    ] {
        assert_eq!(verdicts(settings)["warm workers"], verdict, "{settings}");
    }
    // Whether NVRTC is here or not, nothing is wrong.
    for more in ["", "[worker]\ncompile = false\n"] {
        let compiler =
            verdicts(&format!("listen = 'local:/run/x'\n{more}"))["compiler of CUDA C++"].clone();
        assert!(
            compiler == "absent" || more.is_empty() && compiler == "good",
            "{compiler}"
        );
    }
    let secrets = "listen = 'tcp:127.0.0.1:1'\nsecrets = '/nonexistent'\n";
    assert_eq!(verdicts(secrets)["configuration"], "bad");
    assert_eq!(verdicts("listen = 3\n")["configuration"], "bad");
}

#[test]
fn doctor_finds_nothing_missing_where_a_mediator_without_xen_runs_as_configured() {
    let directory = tempfile::tempdir().unwrap();
    let mediator = Mediator::start(directory.path(), &["--executor", "cpu"]);
    let doctor = run(mediator.vgpuctl().arg("doctor"));
    assert_eq!(doctor.status.code(), Some(0), "{}", stdout(&doctor));
    assert!(stdout(&doctor).contains("✔ configuration: of the running mediator: "));
    mediator.stop();
    if std::path::Path::new("/dev/nvidiactl").exists() {
        return;
    }
    // The CPU is one of the two that "auto" may take.
    let directory = tempfile::tempdir().unwrap();
    let mediator = Mediator::start(directory.path(), &["--executor", "auto"]);
    let doctor = run(mediator.vgpuctl().arg("doctor"));
    assert_eq!(doctor.status.code(), Some(0), "{}", stdout(&doctor));
    mediator.stop();
}

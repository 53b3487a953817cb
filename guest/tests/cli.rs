//! The command `vgpu` without a mediator: arguments, files, missing parts. Each failure is one line
//! of what and one of what to do, with a status that is not 0.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

fn vgpu(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vgpu"))
        .args(arguments)
        .env_remove("VGPU_ENDPOINT")
        .env_remove("RUST_LOG")
        .output()
        .expect("vgpu runs")
}

/// Checks that the command fails with this status, one line of what with `expected` in it, and one
/// line of what to do.
fn fails(output: &Output, status: i32, expected: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    let lines: Vec<&str> = stderr.lines().collect();
    let [what, advice] = lines.as_slice() else {
        panic!("not two lines: {stderr}")
    };
    assert!(
        what.starts_with("error: ") && what.contains(expected),
        "{stderr}"
    );
    assert!(
        advice.starts_with(" help: ") && advice.len() > 10,
        "{stderr}"
    );
    assert!(
        output.stdout.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

fn file(directory: &TempDir, name: &str, bytes: usize) -> String {
    let path = directory.path().join(name);
    std::fs::write(&path, vec![0; bytes]).expect("written");
    text(&path)
}

fn text(path: &Path) -> String {
    path.to_str().expect("a plain path").to_owned()
}

#[test]
fn help_shows_examples_for_every_part() {
    let output = vgpu(&["--help"]);
    assert!(output.status.success());
    let help = String::from_utf8_lossy(&output.stdout);
    for part in [
        "info",
        "ping",
        "doctor",
        "vector-add",
        "bench",
        "VGPU_ENDPOINT",
        "Examples:",
        "xen:",
        "local:PATH",
        "unix:PATH",
        "tcp:HOST:PORT",
        "file:DIR",
    ] {
        assert!(help.contains(part), "no {part} in\n{help}");
    }
    let help = vgpu(&["vector-add", "--help"]);
    assert!(String::from_utf8_lossy(&help.stdout).contains("whole or not at all"));
}

#[test]
fn wrong_endpoints() {
    for (endpoint, expected) in [
        ("carrier:x", "'carrier:' is no endpoint scheme"),
        ("tcp:host", "'tcp:host' is no address"),
        ("local:", "'local:' needs a path"),
        ("/run/x.sock", "has no scheme"),
        ("", "the endpoint is empty"),
        ("xen:,", "the endpoint is empty"),
    ] {
        fails(&vgpu(&["--endpoint", endpoint, "info"]), 2, expected);
    }
    let output = Command::new(env!("CARGO_BIN_EXE_vgpu"))
        .arg("info")
        .env("VGPU_ENDPOINT", "carrier:x")
        .output()
        .expect("vgpu runs");
    fails(&output, 2, "VGPU_ENDPOINT: 'carrier:'");
}

#[test]
fn a_path_that_is_no_socket_is_named_for_what_it_is() {
    let directory = TempDir::new().expect("a directory");
    let (path, plain) = (text(directory.path()), file(&directory, "plain", 4));
    for scheme in ["local", "unix"] {
        let at = |path: &str| {
            let endpoint = format!("{scheme}:{path}");
            vgpu(&["--endpoint", &endpoint, "--timeout", "2", "info"])
        };
        let output = at(&path);
        fails(&output, 1, "is a directory");
        let advice = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(advice.contains(&format!("is file:{path}")), "{advice}");
        fails(&at(&plain), 1, "is not a mediator's socket");
    }
}

#[test]
fn wrong_numbers() {
    fails(&vgpu(&["vector-add", "--n", "0"]), 2, "--n is 0");
    // 12 bytes for each: more than any machine has, and more than can be addressed.
    let output = vgpu(&["vector-add", "--n", "1000000000000000"]);
    fails(&output, 1, "need 12000000000000000 bytes for three vectors");
    let output = vgpu(&["vector-add", "--n", "18446744073709551615"]);
    fails(&output, 1, "need 221360928884514619380 bytes");
    for arguments in [
        &["vector-add", "--n", "-1"][..],
        &["vector-add", "--n", "18446744073709551616"],
        &["vector-add", "--n", "many"],
        &["vector-add"],
        &["ping", "--count", "0"],
        &["ping", "--size", "4097"],
        &["bench", "--sizes", "1,0"],
        &["--timeout", "soon", "info"],
        &["unknown"],
        &[],
    ] {
        let output = vgpu(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(
            !output.stderr.is_empty() && output.stdout.is_empty(),
            "{arguments:?}"
        );
    }
}

#[test]
fn wrong_input_files() {
    let directory = TempDir::new().expect("a directory");
    let four = file(&directory, "four", 16);
    let five = file(&directory, "five", 20);
    let odd = file(&directory, "odd", 18);
    let empty = file(&directory, "empty", 0);
    let missing = text(&directory.path().join("missing"));
    let add =
        |a: &str, b: &str, more: &[&str]| vgpu(&[&["vector-add", "--input", a, b], more].concat());
    fails(&add(&four, &five, &[]), 1, "the inputs differ in length");
    fails(
        &add(&four, &odd, &[]),
        1,
        "odd has 18 bytes, not a multiple of 4",
    );
    fails(&add(&empty, &empty, &[]), 1, "empty is empty");
    fails(&add(&missing, &four, &[]), 1, "missing: No such file");
    fails(
        &add(&text(directory.path()), &four, &[]),
        1,
        "is not a regular file",
    );
    fails(
        &add(&four, &four, &["--n", "5"]),
        2,
        "--n is 5, but the input files hold 4 elements",
    );
    fails(
        &add(&four, &four, &["--output", &text(directory.path())]),
        1,
        "is a directory",
    );
    let nowhere = text(&directory.path().join("no/such/c.f32"));
    fails(
        &add(&four, &four, &["--output", &nowhere]),
        1,
        "cannot write",
    );
    assert_eq!(
        vgpu(&["vector-add", "--input", &four]).status.code(),
        Some(2)
    );
}

#[test]
fn no_mediator_anywhere() {
    let directory = TempDir::new().expect("a directory");
    let socket = directory.path().join("nobody.sock");
    let endpoint = format!("local:{}", text(&socket));
    for command in [
        &["info"][..],
        &["ping"],
        &["vector-add", "--n", "10"],
        &["bench"],
    ] {
        let output = vgpu(&[&["--endpoint", &endpoint, "--timeout", "2"], command].concat());
        fails(&output, 1, "no mediator listens at");
        assert!(String::from_utf8_lossy(&output.stderr).contains("vgpu-mediatord --listen local:"));
    }
    // A socket whose mediator is gone.
    drop(UnixListener::bind(&socket).expect("bound"));
    fails(
        &vgpu(&["--endpoint", &endpoint, "info"]),
        1,
        "is not running any more",
    );
    // Every endpoint of a list is named with its own reason.
    let both = format!("{endpoint},file:{}", text(directory.path()));
    let output = vgpu(&["--endpoint", &both, "info"]);
    fails(&output, 1, "cannot make a session in");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("is not running any more"), "{stderr}");
    // A file that is no socket, and a path too long for one.
    let plain = format!("local:{}", file(&directory, "plain", 1));
    assert!(!vgpu(&["--endpoint", &plain, "info"]).status.success());
    let long = format!("local:/{}", "x".repeat(200));
    fails(
        &vgpu(&["--endpoint", &long, "info"]),
        1,
        "too long for a socket",
    );
}

#[test]
fn a_mediator_that_takes_no_connection_is_given_up_at_the_deadline() {
    let directory = TempDir::new().expect("a directory");
    let socket = directory.path().join("deaf.sock");
    // Listens and never accepts.
    let _deaf = UnixListener::bind(&socket).expect("bound");
    let endpoint = format!("local:{}", text(&socket));
    let output = vgpu(&["--endpoint", &endpoint, "--timeout", "300ms", "info"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(stderr.lines().count(), 2, "{stderr}");
}

#[test]
fn outside_xen_the_default_endpoint_says_so() {
    if Path::new("/dev/xen/gntalloc").exists() {
        test_skip::skipped("this is a Xen guest");
        return;
    }
    let output = vgpu(&["--timeout", "1", "vector-add", "--n", "10"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(stderr.lines().count(), 2, "{stderr}");
    assert!(stderr.to_lowercase().contains("xen"), "{stderr}");
}

#[test]
fn doctor_says_what_is_missing() {
    let directory = TempDir::new().expect("a directory");
    let endpoint = format!("local:{}", text(&directory.path().join("nobody.sock")));
    let output = vgpu(&["--endpoint", &endpoint, "doctor"]);
    assert_eq!(output.status.code(), Some(1));
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("✘ session: none over local:"), "{stdout}");
    assert!(
        stdout.contains("→ start one: vgpu-mediatord --listen local:"),
        "{stdout}"
    );

    let output = vgpu(&["--endpoint", &endpoint, "--json", "doctor"]);
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one object");
    assert_eq!(report["ok"], false);
    assert_eq!(report["checks"][0]["name"], "session");
    assert_eq!(report["checks"][0]["ok"], false);
    assert_eq!(report["checks"][0]["verdict"], "bad");
    // Here or not, nothing is missing: the mediator may have it.
    assert_eq!(report["checks"][1]["name"], "compiler of CUDA C++");
    assert_eq!(report["checks"][1]["verdict"], "good");
    assert_eq!(report["schema"], 2);
}

#[test]
fn a_failure_is_one_object_for_programs_and_two_lines_for_people() {
    let directory = TempDir::new().expect("a directory");
    let endpoint = format!("local:{}", text(&directory.path().join("nobody.sock")));
    for (command, code) in [(&["info"][..], 1), (&["vector-add", "--n", "0"][..], 2)] {
        let output = vgpu(&[&["--json", "--endpoint", &endpoint], command].concat());
        assert_eq!(output.status.code(), Some(code), "{command:?}");
        let object: serde_json::Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stderr = String::from_utf8_lossy(&output.stderr);
        let said = |line: usize, start: &str| {
            let line = stderr.lines().nth(line).expect("two lines");
            line.strip_prefix(start)
                .expect("as people get it")
                .to_owned()
        };
        assert_eq!(object["error"]["what"], said(0, "error: "));
        assert_eq!(object["error"]["advice"], said(1, " help: "));
        assert_eq!(object["error"]["code"], code);
    }
}

#[test]
fn doctor_checks_xen_only_for_xen() {
    if Path::new("/sys/hypervisor/type").exists() {
        test_skip::skipped("this is a Xen machine");
        return;
    }
    let output = vgpu(&["--endpoint", "xen:", "--timeout", "1", "doctor"]);
    assert_eq!(output.status.code(), Some(1));
    let stdout = String::from_utf8_lossy(&output.stdout);
    for part in [
        "✘ Xen guest: no",
        "✘ /dev/xen/gntalloc",
        "✘ /dev/xen/evtchn",
        "✘ xenstore",
    ] {
        assert!(stdout.contains(part), "no '{part}' in\n{stdout}");
    }
}

#[test]
fn a_signal_ends_the_wait_for_a_mediator() {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    let directory = TempDir::new().expect("a directory");
    let socket = directory.path().join("deaf.sock");
    let deaf = UnixListener::bind(&socket).expect("bound");
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let child = Command::new(env!("CARGO_BIN_EXE_vgpu"))
            .args([
                "--endpoint",
                &format!("local:{}", text(&socket)),
                "--timeout",
                "60",
                "info",
            ])
            .stderr(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("vgpu runs");
        // Connected, so its handlers are in place.
        let (_stream, _) = deaf.accept().expect("a connection");
        let pid = i32::try_from(child.id()).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("a signal");
        fails(
            &child.wait_with_output().expect("its end"),
            130,
            "interrupted",
        );
    }
}

/// GNU `timeout` signals its child and then the child's group.
#[test]
fn two_signals_at_once_are_one_and_let_the_program_clean_up() {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    let directory = TempDir::new().expect("a directory");
    let socket = directory.path().join("deaf.sock");
    let deaf = UnixListener::bind(&socket).expect("bound");
    let child = Command::new(env!("CARGO_BIN_EXE_vgpu"))
        .args(["--endpoint", &format!("local:{}", text(&socket))])
        .args(["--timeout", "60", "info"])
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("vgpu runs");
    // Connected, so its handlers are in place.
    let (_stream, _) = deaf.accept().expect("a connection");
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
    // Two of one kind, still pending, would be one for the kernel.
    kill(pid, Signal::SIGINT).expect("a signal");
    kill(pid, Signal::SIGTERM).expect("a signal");
    fails(
        &child.wait_with_output().expect("its end"),
        130,
        "interrupted",
    );
}

#[test]
fn an_endpoint_that_is_not_utf_8_is_refused() {
    use std::os::unix::ffi::OsStrExt;

    let output = Command::new(env!("CARGO_BIN_EXE_vgpu"))
        .arg("info")
        .env("VGPU_ENDPOINT", std::ffi::OsStr::from_bytes(b"local:/\xff"))
        .output()
        .expect("vgpu runs");
    fails(&output, 2, "VGPU_ENDPOINT is not UTF-8");
}

#[test]
fn tcp_needs_a_secret_and_doctor_says_how_to_get_one() {
    let list = "tcp:127.0.0.1:9";
    let without = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_vgpu"))
            .args(["--endpoint", list])
            .args(arguments)
            .env_remove("VGPU_SECRET_FILE")
            .env_remove("RUST_LOG")
            .output()
            .expect("vgpu runs")
    };
    fails(&without(&["info"]), 1, "needs a secret");
    let doctor = without(&["doctor"]);
    let told = String::from_utf8_lossy(&doctor.stdout);
    assert!(!doctor.status.success());
    assert!(told.contains("✘ secret: none is configured"), "{told}");
    assert!(told.contains("vgpuctl secret NAME"), "{told}");
    let directory = tempfile::tempdir().unwrap();
    let secret = file(&directory, "secret", 0);
    fails(&without(&["--secret-file", &secret, "info"]), 1, &secret);
}

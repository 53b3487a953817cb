//! The command `vchan`: its transfers, output and measurements, and its failures.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Output, Stdio};

use vgpu_cli::testing::assert_documented;

fn vchan(arguments: &str, path: &std::path::Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vchan"));
    command.args(arguments.split_whitespace());
    command.args(["--backend", "local", "--path"]).arg(path);
    if !arguments.contains("--timeout") {
        command.args(["--timeout", "60"]);
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn with_input(mut command: Command, input: &[u8]) -> Child {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
    std::thread::spawn(move || stdin.write_all(&input));
    child
}

#[track_caller]
fn succeeded(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{}\n{text}\n{errors}",
        output.status
    );
    text
}

/// Pseudo-random bytes, the same in every run.
fn payload() -> Vec<u8> {
    (0..3_000_017u32)
        .map(|i| (i.wrapping_mul(0x9E37_79B9) >> 24) as u8)
        .collect()
}

#[test]
fn sink_prints_length_and_checksum() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    for (input, line) in [
        (
            b"123456789".to_vec(),
            "sink: 9 bytes crc32c=e3069283\n".to_owned(),
        ),
        (
            payload(),
            format!(
                "sink: 3000017 bytes crc32c={:08x}\n",
                crc32c::crc32c(&payload())
            ),
        ),
    ] {
        for [sinking, sending] in [
            ["serve --sink --ring 64K", "connect --pipe --linger 0"],
            ["connect --sink", "serve --pipe --ring 1K --linger 0"],
        ] {
            let sink = vchan(sinking, &path).spawn().unwrap();
            let sender = with_input(vchan(sending, &path), &input);
            succeeded(&sender.wait_with_output().unwrap());
            assert_eq!(succeeded(&sink.wait_with_output().unwrap()), line);
        }
    }
}

#[test]
fn echo_and_pipe_return_every_byte() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let server = vchan("serve --echo --ring 1K --write-ring 128K", &path)
        .spawn()
        .unwrap();
    let client = with_input(vchan("connect --pipe", &path), &payload());
    let output = client.wait_with_output().unwrap();
    succeeded(&output);
    assert!(
        output.stdout == payload(),
        "{} bytes came back",
        output.stdout.len()
    );
    succeeded(&server.wait_with_output().unwrap());

    // One way, the receiver without input.
    let server = with_input(vchan("serve --pipe", &path), &payload());
    let client = vchan("connect --pipe", &path).output().unwrap();
    succeeded(&client);
    assert!(
        client.stdout == payload(),
        "{} bytes arrived",
        client.stdout.len()
    );
    succeeded(&server.wait_with_output().unwrap());
}

/// Silence of our own making, since nobody takes our output, ends no transfer.
#[test]
fn a_slow_reader_of_the_output_gets_every_byte() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let server = vchan("serve --echo", &path).spawn().unwrap();
    let input = &payload()[..300_000];
    let mut client = with_input(vchan("connect --pipe --linger 0.05", &path), input);
    // Longer than --linger: the pipe is full, the rest waits in the ring.
    std::thread::sleep(std::time::Duration::from_millis(1000));
    let mut output = Vec::new();
    client
        .stdout
        .take()
        .unwrap()
        .read_to_end(&mut output)
        .unwrap();
    assert!(output == input, "{} bytes came back", output.len());
    succeeded(&client.wait_with_output().unwrap());
    succeeded(&server.wait_with_output().unwrap());
}

#[test]
fn bench_prints_one_object_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let server = vchan("bench-serve --ring 64K", &path).spawn().unwrap();
    let client = vchan("bench --json --time 0.01 --baseline", &path)
        .output()
        .unwrap();
    let text = succeeded(&client);
    succeeded(&server.wait_with_output().unwrap());
    let page = include_str!("../../../docs/json.md");
    let mut kinds = std::collections::BTreeMap::new();
    for line in text.lines() {
        let round_trip = line.contains("\"echo\"") || line.contains("\"socket-pair\"");
        let figure = match round_trip {
            true => "us_per_round_trip",
            false => "mb_per_s",
        };
        let object = assert_documented(page, &[figure], line);
        let kind = object["kind"].as_str().unwrap().to_owned();
        assert!(object[figure].as_f64().unwrap() > 0.0, "{line}");
        assert!(
            object["message_bytes"].is_u64() && object["ring_bytes"].is_u64(),
            "{line}"
        );
        *kinds.entry(kind).or_insert(0) += 1;
    }
    let expected = [
        ("echo", 2),
        ("memcpy", 1),
        ("sink", 5),
        ("socket-pair", 2),
        ("source", 5),
    ];
    assert_eq!(kinds, expected.map(|(kind, n)| (kind.to_owned(), n)).into());
}

#[test]
fn bench_adds_up_words_in_place_and_by_way_of_a_buffer() {
    let dir = tempfile::tempdir().unwrap();
    for (ring, message) in [("1K", 4096), ("64K", 65536), ("1M", 65536)] {
        let path = dir.path().join(ring);
        let server = vchan(&format!("bench-serve --ring {ring}"), &path)
            .spawn()
            .unwrap();
        let points: Vec<String> = ["produce", "produce-in-place", "consume", "consume-in-place"]
            .iter()
            .map(|kind| format!("{kind}:{message}"))
            .collect();
        let bench = format!("bench --json --bytes 2M --points {}", points.join(","));
        let text = succeeded(&vchan(&bench, &path).output().unwrap());
        succeeded(&server.wait_with_output().unwrap());
        let messages: Vec<u64> = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .map(|object| object["messages"].as_u64().unwrap())
            .collect();
        assert_eq!(messages, [(2 << 20) / message; 4], "{text}");
    }
}

#[test]
fn a_led_bench_waits_for_a_word_before_each_step() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let server = vchan("bench-serve --ring 64K", &path).spawn().unwrap();
    let mut client = vchan("bench --json --bytes 64K --step --idle 0.1", &path)
        .args(["--points", "sink:4096,echo:16"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut words = client.stdin.take().unwrap();
    let mut said = BufReader::new(client.stdout.take().unwrap()).lines();
    let mut next = || said.next().unwrap().unwrap();
    for step in ["sink:4096", "echo:16", "idle", "end"] {
        assert_eq!(next(), format!("{{\"step\":\"{step}\"}}"));
        words.write_all(b"\n").unwrap();
        if step.contains(':') {
            assert!(next().contains("message_bytes"));
        }
    }
    assert!(client.wait().unwrap().success());
    succeeded(&server.wait_with_output().unwrap());
}

#[test]
fn failures_are_two_lines_and_a_status() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let fails = |command: &mut Command, status: i32| {
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(status));
        let text = String::from_utf8(output.stderr).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(
            lines[0].starts_with("error: ") && lines[1].starts_with(" help: "),
            "{text}"
        );
        text
    };
    let run_for = |status: i32, arguments: &str, path: &std::path::Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vchan"));
        command
            .args(arguments.split_whitespace())
            .arg("--path")
            .arg(path);
        fails(command.stdin(Stdio::null()), status)
    };
    let run = |arguments: &str, path: &std::path::Path| run_for(1, arguments, path);
    let misuse = |arguments: &str, path: &std::path::Path| run_for(2, arguments, path);
    let text = run("connect --sink --backend local --timeout 0.05", &path);
    assert!(text.contains("no such socket"), "{text}");
    let text = run("serve --sink --backend local --timeout 0.05", &path);
    assert!(text.contains("timed out"), "{text}");
    let text = misuse("serve --sink --backend local --ring 9M", &path);
    assert!(text.contains("8388608"), "{text}");
    let text = misuse("serve --sink --backend local --classic --ring 2M", &path);
    assert!(text.contains("1048576"), "{text}");
    let text = run(
        "serve --sink --backend local",
        &dir.path().join("missing/socket"),
    );
    assert!(text.contains("cannot open the directory"), "{text}");
    let text = misuse("serve --sink", std::path::Path::new("data/x"));
    assert!(text.contains("--peer is missing"), "{text}");

    // The peer dies before it has read everything.
    let server = vchan("serve --echo --ring 4K", &path).spawn().unwrap();
    let mut client = with_input(vchan("connect --pipe", &path), &payload());
    // The first byte is back; then its echo fills up, as nobody reads the rest.
    let mut stdout = client.stdout.take().unwrap();
    stdout.read_exact(&mut [0]).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    client.kill().unwrap();
    client.wait().unwrap();
    let output = server.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("peer closed"),
        "{output:?}"
    );
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        0,
        "a socket was left behind"
    );
}

/// Programs read standard output; people, standard error.
#[test]
fn a_failed_bench_is_an_object_for_programs_and_two_lines_for_people() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let failed = |arguments: &str, code: i32| {
        let output = vchan(arguments, &path).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(errors.starts_with("error: "), "{errors}");
        String::from_utf8(output.stdout).unwrap()
    };
    let bench = "bench --timeout 0.05 --points echo:16";
    for (flags, code) in [("--json", 1), ("--json --time nought", 2)] {
        let text = failed(&format!("{bench} {flags}"), code);
        let object: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(object["schema"], 2);
        let error = &object["error"];
        assert_eq!(error["code"], code);
        assert!(error["what"].is_string() && error["advice"].is_string());
    }
    assert_eq!(failed(bench, 1), "");

    // Not only where nothing is measured yet.
    let mut server = vchan("bench-serve", &path).spawn().unwrap();
    let mut client = vchan("bench --json --step --points echo:16 --bytes 16", &path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
    let mut next = || lines.next().unwrap().unwrap();
    assert_eq!(next(), "{\"step\":\"echo:16\"}");
    server.kill().unwrap();
    server.wait().unwrap();
    client.stdin.take().unwrap().write_all(b"\n").unwrap();
    let last = next();
    assert!(last.contains("\"error\":{"), "{last}");
    assert_eq!(client.wait().unwrap().code(), Some(1));
}

/// Who started it may share a pipe with it that does not block, and read that later.
#[test]
fn a_failure_waits_for_room_on_standard_output() {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    let dir = tempfile::tempdir().unwrap();
    let (mut ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut before = 0;
    while let Ok(written) = theirs.write(&[b'x'; 4096]) {
        before += written;
    }
    let mut bench = vchan("bench --json --timeout 0.05", &dir.path().join("socket"))
        .stdout(OwnedFd::from(theirs))
        .spawn()
        .unwrap();
    // Time to fail in.
    std::thread::sleep(std::time::Duration::from_millis(300));
    let mut all = Vec::new();
    ours.read_to_end(&mut all).unwrap();
    assert_eq!(bench.wait().unwrap().code(), Some(1));
    let object = String::from_utf8_lossy(&all[before..]);
    assert!(object.contains("\"error\":{"), "{object}");
}

#[test]
fn a_signal_ends_a_waiting_server_without_leftovers() {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let server = vchan("serve --echo", &path).spawn().unwrap();
        while !path.exists() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        kill(Pid::from_raw(i32::try_from(server.id()).unwrap()), signal).unwrap();
        let output = server.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{signal}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("stopped by a signal"));
        assert!(!path.exists());

        // And one that waits for a server has nothing to leave.
        let mut command = vchan("bench --json --step --points echo:16", &path);
        let server = vchan("bench-serve", &path).spawn().unwrap();
        let mut client = command.stdin(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(client.stdout.take().unwrap());
        stdout.read_line(&mut String::new()).unwrap();
        let signalled = |mut child: Child| {
            kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
            child.wait().unwrap().code()
        };
        // The client waits for a word, and does not see that the server is gone.
        assert_eq!(signalled(server), Some(130), "{signal}");
        assert_eq!(signalled(client), Some(130), "{signal}");
    }
}

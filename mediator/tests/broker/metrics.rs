//! Metrics, as collectors get them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use vgpu_guest::Client;

use crate::support::openmetrics::parse;
use crate::support::sockets::Sockets;
use crate::support::{Killed, Mediator, WATCHDOG, add, run, stderr, stdout, wait_until};

/// A mediator with metrics over TCP or a Unix socket; its guest `other` is denied.
fn start(directory: &Path, metrics: &str) -> (Sockets, Mediator) {
    let sockets = Sockets::new(directory);
    let file = directory.join("mediatord.toml");
    let text = format!("metrics = '{metrics}'\n[guests]\nother = 'deny'\n");
    fs::write(&file, text).unwrap();
    let mediator = sockets.start(&["--config", file.to_str().unwrap()]);
    (sockets, mediator)
}

/// An address that was free a moment ago.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

/// Head and body of the answer to `request`.
fn exchange(mut stream: impl Read + Write, request: &[u8]) -> (String, String) {
    stream.write_all(request).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    (head.to_owned(), body.to_owned())
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(WATCHDOG)).unwrap();
    stream
}

fn get(address: SocketAddr, path: &str) -> (String, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: */*\r\n\r\n");
    exchange(connect(address), request.as_bytes())
}

fn scrape(address: SocketAddr) -> BTreeMap<String, f64> {
    let (head, body) = get(address, "/metrics");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let kind = "Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(head.lines().any(|line| line == kind), "{head}");
    let length = format!("Content-Length: {}", body.len());
    assert!(head.lines().any(|line| line == length), "{head}");
    parse(&body)
}

#[test]
fn every_figure_is_there_and_is_that_of_the_status() {
    let directory = tempfile::tempdir().unwrap();
    let address = free_address();
    let (sockets, mediator) = start(directory.path(), &address.to_string());
    let before = scrape(address);
    assert_eq!(before["vgpu_sessions_started_total"], 0.0);

    let mut client = sockets.connect(&sockets.tcp()).unwrap();
    add(&mut client, 100_000).unwrap();
    Client::connect(&[sockets.tcp()], &sockets.options_of("other")).unwrap_err();
    let mut gone = mediator.connect().unwrap();
    add(&mut gone, 10).unwrap();
    gone.goodbye().unwrap();
    mediator.wait_for_workers(1);
    let mut kicked = mediator.connect().unwrap();
    add(&mut kicked, 10).unwrap();
    assert!(
        run(mediator.vgpuctl().args(["kick", "local"]))
            .status
            .success()
    );
    mediator.wait_for_workers(1);

    let status = mediator.status();
    let samples = scrape(address);
    let find = |name: &str| {
        let guests = status["guests"].as_array().unwrap();
        guests
            .iter()
            .find(|guest| guest["guest_id"] == name)
            .unwrap()
            .clone()
    };
    let tester = find("tcp:tester");
    let at = |series: &str| samples[series];
    let of = |name: &str, more: &str| at(&format!("{name}{{guest=\"tcp:tester\"{more}}}"));
    let usage = &tester["usage"];
    let figure = |name: &str| usage[name].as_u64().unwrap() as f64;
    assert!(figure("requests") > 0.0);
    // Every request that is over has one result; none is under way.
    let requests = |start: &str, end: &str| -> f64 {
        let start = format!("vgpu_requests_total{{guest=\"{start}");
        let some = samples
            .iter()
            .filter(|(series, _)| series.starts_with(start.as_str()) && series.ends_with(end));
        some.map(|(_, count)| count).sum()
    };
    let passed = requests("tcp:tester\"", ",result=\"ok\"}");
    assert_eq!(passed, figure("requests"));
    assert_eq!(requests("tcp:tester\"", ""), passed);
    let of_op = |op: &str| format!(",op=\"{op}\",result=\"ok\"");
    for op in ["hello", "launch", "module-load"] {
        assert_eq!(of("vgpu_requests_total", &of_op(op)), 1.0, "{op}");
    }
    assert_eq!(
        of("vgpu_transferred_bytes_total", ",direction=\"in\""),
        figure("bytes_in")
    );
    assert_eq!(
        of("vgpu_transferred_bytes_total", ",direction=\"out\""),
        figure("bytes_out")
    );
    assert_eq!(
        of("vgpu_device_seconds_total", ""),
        figure("device_ns") / 1e9
    );
    // Of three vector adds; the session that was kicked may not have said.
    for op in ["launch", "module-load"] {
        let count = requests("", &format!("{}}}", of_op(op)));
        assert!((2.0..=3.0).contains(&count), "{op}: {count}");
    }
    let all = requests("", "");
    let answered = at("vgpu_request_seconds_count");
    assert!(answered > 0.0 && answered < all, "{answered} of {all}");
    assert_eq!(at("vgpu_request_seconds_bucket{le=\"60.0\"}"), answered);
    assert_eq!(of("vgpu_guest_sessions", ""), 1.0);
    assert_eq!(of("vgpu_guest_info", ",name=\"tcp tester\""), 1.0);
    let memory = tester["memory_limit"].as_u64().unwrap() as f64;
    assert_eq!(of("vgpu_device_memory_limit_bytes", ""), memory);
    assert_eq!(at("vgpu_sessions{state=\"serving\"}"), 1.0);
    assert_eq!(at("vgpu_sessions_max"), 64.0);
    assert_eq!(at("vgpu_sessions_started_total"), 3.0);
    assert_eq!(at("vgpu_refused_total{reason=\"denied\"}"), 1.0);
    assert_eq!(at("vgpu_session_ends_total{reason=\"ended\"}"), 1.0);
    assert_eq!(at("vgpu_session_ends_total{reason=\"killed\"}"), 1.0);
    assert_eq!(at("vgpu_worker_kills_total{reason=\"kick\"}"), 1.0);
    assert!(!samples.contains_key("vgpu_xenstore_up"));
    let counters = before.iter().filter(|(name, _)| name.contains("_total"));
    for (name, value) in counters {
        assert!(samples[name] >= *value, "{name}");
    }

    // vgpuctl prints the same.
    let output = run(mediator.vgpuctl().arg("metrics"));
    let printed = parse(&stdout(&output));
    assert!(printed.keys().eq(samples.keys()), "{printed:?}");

    // A crash is a kill of its own kind.
    let [worker] = mediator.workers()[..] else {
        panic!("one worker");
    };
    crate::support::signal(worker, nix::sys::signal::Signal::SIGKILL);
    mediator.wait_for_workers(0);
    wait_until("the crash is counted", || {
        scrape(address)["vgpu_worker_kills_total{reason=\"crashed\"}"] == 1.0
    });
    mediator.stop();
}

#[test]
fn a_unix_socket_is_for_its_user_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metrics.sock");
    let (_sockets, mediator) = start(directory.path(), &format!("unix:{}", path.display()));
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let stream = UnixStream::connect(&path).unwrap();
    stream.set_read_timeout(Some(WATCHDOG)).unwrap();
    let (head, body) = exchange(stream, b"GET /metrics HTTP/1.0\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    parse(&body);
    mediator.stop();
    assert!(!path.exists());
}

#[test]
fn clients_that_talk_nonsense_or_nothing_hold_up_nobody_else() {
    let directory = tempfile::tempdir().unwrap();
    let address = free_address();
    let (sockets, mediator) = start(directory.path(), &address.to_string());
    for (request, status) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "404"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
        (b"\x16\x03\x01\x00\x00\r\n\r\n", "400"),
        (b"GET /metrics HTTP/9.9\r\n\r\n", "400"),
    ] {
        let (head, _) = exchange(connect(address), request);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
    }
    // One that never ends its head.
    let mut stream = connect(address);
    let endless = [
        b"GET /metrics HTTP/1.1\r\na: ".to_vec(),
        vec![b'x'; 1 << 20],
    ]
    .concat();
    let _ = stream.write_all(&endless);
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    // Too much was sent for the answer to arrive in every case; it is refused, not served.
    assert!(text.is_empty() || text.starts_with(b"HTTP/1.1 431 "));

    // More than there are places for, all of which say nothing or half of it.
    let silent: Vec<TcpStream> = (0..40)
        .map(|number| {
            let mut stream = connect(address);
            if number % 2 == 0 {
                stream.write_all(b"GET /metr").unwrap();
            }
            stream
        })
        .collect();
    let mut client = sockets.connect(&sockets.tcp()).unwrap();
    add(&mut client, 1000).unwrap();
    assert!(
        mediator.descriptors().len() < 64,
        "{:?}",
        mediator.descriptors()
    );
    drop(silent);
    // Those that have left free their places at once.
    wait_until("it is served again", || {
        scrape(address)["vgpu_sessions_max"] == 64.0
    });
    add(&mut client, 1000).unwrap();
    mediator.stop();
}

#[test]
fn metrics_are_only_for_this_machine() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("m.toml");
    fs::write(&file, "listen = 'local:/a'\nmetrics = '0.0.0.0:9835'\n").unwrap();
    let mut command = Command::new(crate::support::MEDIATORD);
    let output = run(command.arg("--config").arg(&file).arg("--check-config"));
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(
        text.contains("m.toml, line 2: ") && text.contains("no loopback"),
        "{text}"
    );
}

#[test]
fn the_documents_name_what_there_is() {
    let directory = tempfile::tempdir().unwrap();
    let (sockets, mediator) = start(directory.path(), "127.0.0.1:0");
    add(&mut sockets.connect(&sockets.tcp()).unwrap(), 10).unwrap();
    let output = run(mediator.vgpuctl().arg("metrics"));
    let samples = parse(&stdout(&output));
    let mut given: BTreeSet<&str> = samples
        .keys()
        .map(|series| series.split('{').next().unwrap())
        .collect();
    // Only on Xen, and with warm workers.
    given.insert("vgpu_xenstore_up");
    given.extend(["vgpu_warm_workers", "vgpu_session_starts_total"]);
    let page = include_str!("../../../docs/metrics.md");
    // Those of GPUs are compared where there are some, in the tests of the executor.
    let of_gpus = page.split('`').filter(|word| word.starts_with("vgpu_gpu_"));
    given.extend(of_gpus.filter(|word| !word.ends_with('*')));
    let listed = page.split('`').filter(|word| {
        (word.starts_with("vgpu_") || word.starts_with("process_")) && !word.contains([' ', '*'])
    });
    assert_eq!(listed.collect::<BTreeSet<&str>>(), given);

    let dashboard = include_str!("../../../docs/grafana-dashboard.json");
    let dashboard: serde_json::Value = serde_json::from_str(dashboard).unwrap();
    let mut expressions = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let mut words = expression.split(|c| !is_of_name(c));
            assert!(
                words.clone().any(|word| given.contains(word)),
                "{expression}"
            );
            let unknown = words.find(|word| word.starts_with("vgpu_") && !given.contains(word));
            assert_eq!(unknown, None, "{expression}");
            expressions += 1;
        }
    }
    assert!(expressions > 12);
    mediator.stop();
}

/// A program in `PATH`.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut all = std::env::split_paths(&path).map(|directory| directory.join(name));
    all.find(|path| path.is_file())
}

#[test]
fn promtool_has_nothing_against_the_text() {
    let Some(promtool) = program("promtool") else {
        return test_skip::skipped("no promtool here: apt-get install prometheus");
    };
    let directory = tempfile::tempdir().unwrap();
    let (sockets, mediator) = start(directory.path(), "127.0.0.1:0");
    let mut client = sockets.connect(&sockets.tcp()).unwrap();
    add(&mut client, 1000).unwrap();
    let text = run(mediator.vgpuctl().arg("metrics")).stdout;
    let mut child = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&text).unwrap();
    let output = child.wait_with_output().unwrap();
    // It reads the older format, where a counter's type and help stand at the name with `_total`; what is not that
    // is a fault.
    let complaints = [&output.stdout[..], &output.stderr[..]].concat();
    let complaints = String::from_utf8(complaints).unwrap();
    let real = complaints.lines().filter(|line| !line.is_empty());
    let real: Vec<&str> = real
        .filter(|line| !line.ends_with("_total no help text"))
        .collect();
    assert_eq!(real, [""; 0], "{complaints}");
    mediator.stop();
}

#[test]
fn prometheus_scrapes_it() {
    let Some(prometheus) = program("prometheus") else {
        return test_skip::skipped("no prometheus here: apt-get install prometheus");
    };
    let directory = tempfile::tempdir().unwrap();
    let (address, web) = (free_address(), free_address());
    let (sockets, mediator) = start(directory.path(), &address.to_string());
    let mut client = sockets.connect(&sockets.tcp()).unwrap();
    add(&mut client, 1000).unwrap();
    let file = directory.path().join("prometheus.yml");
    let text = format!(
        "global:\n  scrape_interval: 1s\n  scrape_timeout: 1s\nscrape_configs:\n- job_name: vgpu\n  \
         static_configs:\n  - targets: ['{address}']\n"
    );
    fs::write(&file, text).unwrap();
    let log = fs::File::create(directory.path().join("prometheus.log")).unwrap();
    let _prometheus = Killed(
        Command::new(prometheus)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                directory.path().join("tsdb").display()
            ))
            .arg(format!("--web.listen-address={web}"))
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap(),
    );
    let value = |query: &str| -> Option<String> {
        let mut stream = TcpStream::connect(web).ok()?;
        stream.set_read_timeout(Some(WATCHDOG)).ok()?;
        let path = format!("/api/v1/query?query={query}");
        let request = format!("GET {path} HTTP/1.0\r\nHost: {web}\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let body: serde_json::Value = serde_json::from_str(text.split_once("\r\n\r\n")?.1).ok()?;
        Some(body["data"]["result"][0]["value"][1].as_str()?.to_owned())
    };
    let wanted = mediator.status()["usage"]["requests"].to_string();
    let requests = "sum(vgpu_requests_total{guest=%22tcp:tester%22,result=%22ok%22})";
    wait_until("a scrape has worked", || {
        thread::sleep(Duration::from_millis(100));
        value(requests).as_deref() == Some(wanted.as_str())
    });
    assert_eq!(value("up").as_deref(), Some("1"));
    // It knows the types, which it has from the format and not from the names.
    assert_eq!(value("vgpu_mediator_info").as_deref(), Some("1"));
    mediator.stop();
}

#[test]
fn commands_of_the_two_files_count_by_operation_too() {
    let directory = tempfile::tempdir().unwrap();
    let files = directory.path().join("files");
    let mediator = Mediator::start(
        directory.path(),
        &["--listen", &format!("file:{}", files.display())],
    );
    let command = |text: &str, answer: &str| {
        fs::write(files.join("command.txt"), text).unwrap();
        wait_until(answer, || {
            let line = fs::read_to_string(files.join("response.txt"));
            line.is_ok_and(|line| line.contains(answer))
        });
    };
    let metrics = || parse(&stdout(&run(mediator.vgpuctl().arg("metrics"))));
    command("0\n", "0:Ready");
    command("1\n", "1:Vector add PASSED");
    command("2\n", "(cpu executor: ");
    let at = |op: &str, result: &str| {
        let id = format!("file:{}", files.display());
        metrics()[&format!("vgpu_requests_total{{guest=\"{id}\",op=\"{op}\",result=\"{result}\"}}")]
    };
    let passed = ["launch", "module-load", "info"].map(|op| at(op, "ok"));
    assert_eq!(passed, [1.0; 3]);
    assert_eq!(metrics()["vgpu_request_seconds_count"], 2.0);
}

//! A real mediator, real workers and the real guest library over `local:`.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use vgpu_guest::{Cause, Client, Device, LaunchConfig, Side};
use vgpu_protocol::status::{ErrorCode, Status};

use crate::support::{
    Killed, Mediator, add, descriptors, exchange_and, is_running, options, run, stderr, stdout,
    wait_until,
};

/// Names in a directory, but for the log.
fn leftovers(directory: &std::path::Path) -> Vec<String> {
    let names = fs::read_dir(directory).unwrap();
    names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "log")
        .collect()
}

/// Kinds of descriptors: their numbers differ from run to run.
fn kinds(descriptors: Vec<String>) -> Vec<String> {
    let kind = |target: String| target.split(':').next().map(str::to_owned);
    descriptors.into_iter().filter_map(kind).collect()
}

#[test]
fn vectors_of_all_sizes_by_two_guests_at_once_and_again() {
    let directory = tempfile::tempdir().unwrap();
    let mediator = Mediator::start(directory.path(), &[]);
    let before = kinds(mediator.descriptors());
    for _run in 0..2 {
        thread::scope(|scope| {
            for _guest in 0..2 {
                scope.spawn(|| {
                    let mut client = mediator.connect().unwrap();
                    for n in [1, 1000, 1_048_576] {
                        add(&mut client, n).unwrap();
                    }
                    client.goodbye().unwrap();
                });
            }
        });
    }
    mediator.wait_for_workers(0);
    let status = mediator.status();
    assert_eq!(status["sessions_started"], 4);
    // Each element came as two floats and went as one.
    let elements = 4 * (1 + 1000 + 1_048_576);
    assert!(
        status["usage"]["bytes_in"].as_u64() > Some(8 * elements),
        "{status}"
    );
    assert!(
        status["usage"]["bytes_out"].as_u64() > Some(4 * elements),
        "{status}"
    );
    assert_eq!(status["usage"]["failed_requests"], 0);
    wait_until("all descriptors of sessions are closed", || {
        kinds(mediator.descriptors()) == before
    });
    mediator.stop();
    assert_eq!(leftovers(directory.path()), [""; 0]);
}

#[test]
fn a_session_has_the_share_of_a_device_that_the_configuration_says() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("m.toml");
    let limits = "[limits]\nmemory_mib = 8\nkernel_timeout_s = 1\nmax_objects = 5\n";
    fs::write(&config, limits).unwrap();
    let mediator = Mediator::start(directory.path(), &["--config", config.to_str().unwrap()]);
    let device = Device::new(mediator.connect().unwrap()).unwrap();
    assert_eq!(device.total_memory(), 8 << 20);
    assert_eq!(device.memory_info().unwrap(), (8 << 20, 8 << 20));
    let most = device.alloc::<u8>(8 << 20).unwrap();
    let refused = |error: vgpu_guest::Error, code: ErrorCode| {
        assert_eq!(error.status(), Some(code.into()), "{error}");
    };
    refused(device.alloc::<u8>(1).unwrap_err(), ErrorCode::QuotaMemory);
    drop(most);
    let _five = [0; 5].map(|_| device.alloc::<u8>(1).unwrap());
    refused(device.alloc::<u8>(1).unwrap_err(), ErrorCode::QuotaHandles);
    device.synchronize().unwrap();
    // A kernel's own wish does not lengthen its time.
    let kernel = b".version 6.0\n.target sm_50\n.address_size 64\n.visible .entry spin()\n\
                   {\nagain: bra again;\n}\n";
    let spin = device
        .load_module(kernel)
        .unwrap()
        .load_function("spin")
        .unwrap();
    let launch = device
        .launch_builder(&spin)
        .deadline(Duration::from_secs(3600));
    launch.launch(LaunchConfig::for_num_elems(1)).unwrap();
    let error = device.synchronize().unwrap_err();
    assert_eq!(error.status(), Some(Status::Cuda(702)), "{error}");
    mediator.stop();
}

#[test]
fn info_says_what_runs_and_why() {
    let directory = tempfile::tempdir().unwrap();
    let mediator = Mediator::start(directory.path(), &[]);
    let mut client = mediator.connect().unwrap();
    let info = client.info().unwrap();
    assert_eq!(info.executor, "cpu");
    assert!(
        info.mediator.starts_with("vgpu-mediatord "),
        "{}",
        info.mediator
    );
    assert!(!info.device.is_empty());
    let start = format!("executor cpu: {}, {}", info.device, info.reason);
    assert!(mediator.log().contains(&start), "{}", mediator.log());
    client.ping(b"payload").unwrap();
    client.goodbye().unwrap();
    mediator.stop();
}

#[test]
fn every_session_has_another_epoch() {
    let directory = tempfile::tempdir().unwrap();
    let mut epochs = Vec::new();
    for _start in 0..2 {
        let mediator = Mediator::start(directory.path(), &[]);
        for _session in 0..2 {
            epochs.push(mediator.connect().unwrap().epoch());
        }
        mediator.stop();
    }
    epochs.sort_unstable();
    epochs.dedup();
    assert_eq!(epochs.len(), 4);
}

#[test]
fn a_mediator_killed_in_the_middle_is_an_error_and_its_successor_serves() {
    let directory = tempfile::tempdir().unwrap();
    let mediator = Mediator::start(directory.path(), &[]);
    let mut client = mediator.connect().unwrap();
    let workers = mediator.wait_for_workers(1);
    let n = 1 << 22;
    let (a, mut sum) = (vec![1.0; n], vec![0.0; n]);
    let mut mediator = Some(mediator);
    let outcome = client.vector_add_watched(&a, &a, &mut sum, |complete| {
        if complete > 0
            && let Some(mediator) = mediator.take()
        {
            mediator.crash();
        }
    });
    let error = outcome.unwrap_err();
    assert_eq!(error.side(), Side::Connection, "{error}");
    assert!(matches!(error.cause(), Cause::Transport(_)), "{error:?}");
    wait_until("the worker ends with its broker", || {
        !is_running(workers[0])
    });

    // Sockets and lock of the dead mediator are still there, and no obstacle.
    assert!(!leftovers(directory.path()).is_empty());
    let mediator = Mediator::start(directory.path(), &[]);
    add(&mut mediator.connect().unwrap(), 1000).unwrap();
    mediator.stop();
    assert_eq!(leftovers(directory.path()), [""; 0]);
}

/// The guest of [`a_guest_killed_in_the_middle_harms_nobody`], in a process of its own: this
/// program, told by an environment variable to run this one test.
#[test]
fn guest_process() {
    let Ok(endpoint) = std::env::var("VGPU_TEST_GUEST") else {
        return;
    };
    let mut client = Client::connect(&[endpoint.parse().unwrap()], &options()).unwrap();
    let n = 1 << 26;
    let (data, mut back) = (vec![1; n], vec![0; n]);
    let _ = client.exchange_watched(&data, &mut back, |complete| {
        if complete > 0 {
            println!("under way");
            std::io::stdout().flush().unwrap();
            // Killed here, with requests in both directions under way.
            thread::sleep(crate::support::WATCHDOG);
        }
    });
}

fn start_guest_process(mediator: &Mediator) -> Child {
    let mut guest = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "end_to_end_local::guest_process", "--nocapture"])
        .env("VGPU_TEST_GUEST", mediator.endpoint().to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(guest.stdout.take().unwrap()).lines();
    let mut under_way = lines
        .map_while(Result::ok)
        .filter(|line| line.contains("under way"));
    assert!(under_way.next().is_some(), "the guest did not get that far");
    guest
}

#[test]
fn a_guest_killed_in_the_middle_harms_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let mediator = Mediator::start(directory.path(), &[]);
    let mut other = mediator.connect().unwrap();
    let others_worker = mediator.wait_for_workers(1);
    let mut guest = start_guest_process(&mediator);
    assert_eq!(mediator.workers().len(), 2);
    guest.kill().unwrap();
    guest.wait().unwrap();
    assert_eq!(mediator.wait_for_workers(1), others_worker);
    add(&mut other, 100_000).unwrap();
    other.goodbye().unwrap();
    wait_until("the log tells", || {
        mediator
            .log()
            .contains("closed the connection in the middle of a request")
    });
    mediator.stop();
    assert_eq!(leftovers(directory.path()), [""; 0]);
}

#[test]
fn a_stop_lets_the_running_request_finish() {
    let directory = tempfile::tempdir().unwrap();
    let mut mediator = Mediator::start(directory.path(), &[]);
    let mut client = mediator.connect().unwrap();
    let mut idle = mediator.connect().unwrap();
    exchange_and(&mut client, || {
        mediator.signal(Signal::SIGTERM);
        wait_until("no new guest is taken", || {
            !directory.path().join("vgpu.sock").exists()
        });
    })
    .unwrap();
    assert!(mediator.wait().success());
    for client in [&mut client, &mut idle] {
        let error = client.ping(b"x").unwrap_err();
        assert!(error.to_string().contains("stopping"), "{error}");
    }
    assert_eq!(leftovers(directory.path()), [""; 0]);
}

#[test]
fn a_second_signal_does_not_wait() {
    let directory = tempfile::tempdir().unwrap();
    let mut mediator = Mediator::start(directory.path(), &[]);
    let mut guest = start_guest_process(&mediator);
    let workers = mediator.wait_for_workers(1);
    mediator.signal(Signal::SIGTERM);
    wait_until("it drains", || {
        mediator
            .log()
            .contains("stopping; sessions to finish within 10 s: 1")
    });
    assert!(is_running(workers[0]));
    // Sooner it would count as the first once more.
    thread::sleep(Duration::from_millis(1100));
    mediator.signal(Signal::SIGINT);
    mediator.wait();
    assert!(
        mediator.log().contains("asked to stop again"),
        "{}",
        mediator.log()
    );
    assert!(!is_running(workers[0]));
    assert_eq!(leftovers(directory.path()), [""; 0]);
    guest.kill().unwrap();
    guest.wait().unwrap();
}

/// GNU `timeout` signals its child and then the child's group, systemd adds a SIGHUP.
#[test]
fn signals_that_come_at_once_are_one_and_cut_nobody_off() {
    let directory = tempfile::tempdir().unwrap();
    let mut mediator = Mediator::start(directory.path(), &[]);
    let mut client = mediator.connect().unwrap();
    exchange_and(&mut client, || {
        // Two of one kind, still pending, would be one for the kernel.
        mediator.signal(Signal::SIGTERM);
        mediator.signal(Signal::SIGHUP);
        mediator.signal(Signal::SIGTERM);
        wait_until("no new guest is taken", || {
            !directory.path().join("vgpu.sock").exists()
        });
        mediator.signal(Signal::SIGTERM);
    })
    .unwrap();
    assert!(mediator.wait().success());
}

/// The mediator does not accept while it is stopped, and its queue is full.
#[test]
fn vgpuctl_gives_up_on_a_mediator_that_takes_no_connection() {
    let directory = tempfile::tempdir().unwrap();
    let mediator = Mediator::start(directory.path(), &[]);
    mediator.signal(Signal::SIGSTOP);
    let control = directory.path().join("control.sock");
    let soon = || Instant::now() + Duration::from_millis(50);
    let mut queue = Vec::new();
    while let Ok(stream) = vgpu_socket_transport::dial_unix(&control, soon()) {
        queue.push(stream);
    }
    assert!(!queue.is_empty());
    let output = run(mediator.vgpuctl().arg("status"));
    assert!(!output.status.success());
    assert!(
        stderr(&output).contains("gave no answer in 5 s"),
        "{output:?}"
    );
    mediator.signal(Signal::SIGCONT);
    drop(queue);
    mediator.stop();
}

#[test]
fn top_writes_plain_tables_into_a_pipe() {
    let directory = tempfile::tempdir().unwrap();
    let mediator = Mediator::start(directory.path(), &[]);
    let _client = mediator.connect().unwrap();
    let top = mediator
        .vgpuctl()
        .arg("top")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut top = Killed(top);
    let lines = BufReader::new(top.0.stdout.take().unwrap()).lines();
    let mut tables = 0;
    // The heading of the third table comes after two whole ones.
    for line in lines.map_while(Result::ok) {
        assert!(!line.contains('\x1b'), "{line:?}");
        tables += usize::from(line.contains("REQ/s"));
        if tables == 3 {
            break;
        }
    }
    assert_eq!(tables, 3);
    mediator.stop();
}

#[test]
fn limits_turn_a_guest_away_with_a_reason() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("m.toml");
    fs::write(&config, "[limits]\nmax_sessions = 1\n").unwrap();
    let mediator = Mediator::start(directory.path(), &["--config", config.to_str().unwrap()]);
    let mut client = mediator.connect().unwrap();
    let error = mediator.connect().unwrap_err();
    assert!(
        error.to_string().contains("limit of sessions (1)"),
        "{error}"
    );
    add(&mut client, 1000).unwrap();
    client.goodbye().unwrap();
    mediator.wait_for_workers(0);
    // There is room again.
    add(&mut mediator.connect().unwrap(), 10).unwrap();
    assert_eq!(mediator.status()["refused"], 1);
}

#[test]
fn vgpuctl_shows_and_ends_sessions() {
    let directory = tempfile::tempdir().unwrap();
    let mediator = Mediator::start(directory.path(), &[]);
    let mut client = mediator.connect().unwrap();
    add(&mut client, 5000).unwrap();
    let status = mediator.status();
    let session = &status["sessions"][0];
    assert_eq!(session["state"], "serving");
    assert_eq!(session["client"], "end to end");
    assert!(
        session["usage"]["bytes_out"].as_u64() > Some(4 * 5000),
        "{status}"
    );
    assert_eq!(session["current"], true);
    assert_eq!(status["usage"], session["usage"]);
    let text = stdout(&run(mediator.vgpuctl().arg("status")));
    assert!(
        text.contains("end to end") && text.contains("executor   cpu"),
        "{text}"
    );
    let top = run(mediator.vgpuctl().args(["--json", "top", "--once"]));
    let top: serde_json::Value = serde_json::from_slice(&top.stdout).unwrap();
    assert_eq!(top["sessions"][0]["session"], session["session"]);
    assert!(stdout(&run(mediator.vgpuctl().args(["top", "--once"]))).contains("REQ/s"));

    let nobody = run(mediator.vgpuctl().args(["kick", "web-1"]));
    assert!(!nobody.status.success());
    assert!(
        stderr(&nobody).starts_with("error: web-1 has no session\n help: "),
        "{nobody:?}"
    );
    let kicked = run(mediator
        .vgpuctl()
        .args(["kick", &format!("session:{}", session["session"])]));
    assert!(kicked.status.success(), "{}", stderr(&kicked));
    mediator.wait_for_workers(0);
    let error = client.ping(b"x").unwrap_err();
    assert!(error.to_string().contains("administrator"), "{error}");
    mediator.stop();
}

#[test]
fn peers_that_speak_nonsense_are_let_go_and_others_served() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("m.toml");
    fs::write(&config, "[limits]\nconnect_timeout_s = 1\n").unwrap();
    let mediator = Mediator::start(directory.path(), &["--config", config.to_str().unwrap()]);
    let socket = directory.path().join("vgpu.sock");
    // One says nothing, one hangs up, one sends noise.
    let silent = UnixStream::connect(&socket).unwrap();
    drop(UnixStream::connect(&socket).unwrap());
    let mut noisy = UnixStream::connect(&socket).unwrap();
    noisy.write_all(&[0x5a; 4096]).unwrap();
    add(&mut mediator.connect().unwrap(), 1000).unwrap();
    mediator.wait_for_workers(0);
    drop(silent);

    // The same on the control socket.
    for request in [
        &b"\n"[..],
        b"{}\n",
        b"{\"v\":9,\"op\":\"status\"}\n",
        &[b'x'; 10_000],
    ] {
        let mut stream = UnixStream::connect(directory.path().join("control.sock")).unwrap();
        // It may be closed before it has taken all.
        let _ = stream.write_all(request);
    }
    assert_eq!(mediator.status()["sessions"].as_array().unwrap().len(), 0);
    mediator.stop();
}

#[test]
fn a_worker_has_no_descriptors_but_its_own_and_leaves_no_core() {
    let directory = tempfile::tempdir().unwrap();
    let mediator = Mediator::start(directory.path(), &[]);
    let _client = mediator.connect().unwrap();
    let worker = mediator.wait_for_workers(1)[0];
    let held = descriptors(worker);
    assert!(
        !held.iter().any(|target| target.contains("control.sock")),
        "{held:?}"
    );
    let limits = fs::read_to_string(format!("/proc/{worker}/limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    let status = fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    assert!(status.starts_with("Name:\tvgpu-mediatord\n"), "{status}");
}

#[test]
fn files_are_served_to_a_client_that_knows_only_files() {
    let directory = tempfile::tempdir().unwrap();
    let files = directory.path().join("exchange");
    let listen = format!(
        "file:{},local:{}",
        files.display(),
        directory.path().join("l").display()
    );
    let mediator = Mediator::start(directory.path(), &["--listen", &listen]);
    let response = || crate::support::response(&files);
    wait_until("it is ready", || response() == "0:Ready\n");
    for _again in 0..2 {
        fs::write(files.join("command.txt"), "1\n").unwrap();
        wait_until("it passes", || {
            response().starts_with("1:Vector add PASSED: 1024 elements")
        });
        fs::write(files.join("command.txt"), "0\n").unwrap();
        wait_until("it is reset", || response() == "0:Ready\n");
    }
    // Commands count like the requests of a session.
    let usage = mediator.status()["usage"].clone();
    assert_eq!(
        (&usage["requests"], &usage["failed_requests"]),
        (&2.into(), &0.into())
    );
    assert!(usage["device_ns"].as_u64() > Some(0), "{usage}");
    assert_eq!(usage["bytes_in"], 4);
    assert!(usage["bytes_out"].as_u64() > Some(80), "{usage}");
    // Its worker is replaced when it dies.
    let worker = mediator.wait_for_workers(1)[0];
    crate::support::signal(worker, Signal::SIGKILL);
    wait_until("a new worker serves", || {
        mediator.workers().iter().any(|pid| *pid != worker)
    });
    fs::write(files.join("command.txt"), "2\n").unwrap();
    wait_until("it answers", || {
        // What is written while nobody serves is not taken.
        thread::sleep(Duration::from_millis(200));
        fs::write(files.join("command.txt"), "2\n").unwrap();
        response().starts_with("1:")
    });
    mediator.stop();
}

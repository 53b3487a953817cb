//! Warm workers with CUDA, over the stand-in: their context is open before the session, on the devices of its guest.

use std::fs;

use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use serde_json::{Value, json};
use vgpu_guest::Device;

use crate::devices::{Served, environment, number, uuid};
use crate::support::{add, signal, wait_until};

/// A stand-in whose state is a file, which a worker that is confined would not see.
const UNCONFINED: &str = "[worker]\nwarm_workers = 1\nconfine = 'off'\n";

fn pids(session: &Value) -> u32 {
    u32::try_from(session["pid"].as_u64().unwrap()).unwrap()
}

/// The session is over, and the pools are full again.
fn end(served: &Served, device: Device, wanted: usize) {
    device.goodbye().unwrap();
    wait_until("the session is over", || {
        served.mediator.status()["sessions"] == json!([])
    });
    served.mediator.wait_for_warm(wanted);
}

#[test]
fn each_set_of_devices_has_workers_of_its_own() {
    let rules = |all: u8| {
        format!(
            "[worker]\nwarm_workers = 1\n[limits]\ndevices = [{all}]\n\
             [guests]\ntester = {{ allow = true, devices = [2] }}\n"
        )
    };
    let served = Served::with(&rules(1));
    // Of a program of this machine it is known which it may use; of a client over TCP, only which anybody may.
    let ready = served.mediator.wait_for_warm(2);
    let warm = served.mediator.status()["warm"].clone();
    assert_eq!(warm["wanted"], 2);
    for worker in warm["workers"].as_array().unwrap() {
        assert_eq!(worker["devices"], json!([uuid(1)]));
    }
    if geteuid().is_root() {
        let visible = |pid: &u32| environment(&json!(pid)).pop().unwrap();
        let mut seen: Vec<String> = ready.iter().map(visible).collect();
        seen.sort();
        let one = format!("CUDA_VISIBLE_DEVICES={}", uuid(1));
        assert_eq!(seen, [one.clone(), format!("{one},{}", uuid(2))]);
    }
    let local = Device::new(served.mediator.connect().unwrap()).unwrap();
    assert_eq!((number(&local), local.info().devices), (1, 1));
    assert!(ready.contains(&pids(&served.session())));
    local.with_client(|client| add(client, 1000)).unwrap();
    end(&served, local, 2);
    for (name, gpu) in [("other", 1), ("tester", 2)] {
        let ready = served.mediator.wait_for_warm(2);
        let device = served.device(name);
        assert_eq!((number(&device), device.info().devices), (gpu, 1), "{name}");
        assert!(ready.contains(&pids(&served.session())), "{name}");
        device.with_client(|client| add(client, 1000)).unwrap();
        end(&served, device, 2);
    }
    assert_eq!(served.mediator.status()["warm"]["sessions"], 3);

    let before = served.mediator.wait_for_warm(2);
    assert!(served.reload(&rules(0)).status.success());
    wait_until("those of the old set are gone", || {
        let now = served.mediator.wait_for_warm(2);
        !now.iter().any(|pid| before.contains(pid))
    });
    let local = Device::new(served.mediator.connect().unwrap()).unwrap();
    assert_eq!(number(&local), 0);
    end(&served, local, 2);
    // Nobody waits for a GPU that is not there.
    assert!(served.reload(&rules(7)).status.success());
    served.mediator.wait_for_warm(0);
    assert_eq!(served.mediator.status()["warm"]["wanted"], 0);
    served.mediator.connect().unwrap_err();
    served.mediator.stop();
}

#[test]
fn a_context_that_broke_while_it_waited_costs_nobody_a_session() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("broken");
    let served = Served::playing(UNCONFINED, &format!("dies={}", file.display()));
    let ready = served.mediator.wait_for_warm(1);
    fs::write(&file, "").unwrap();
    let mut client = served.mediator.connect().unwrap();
    add(&mut client, 1000).unwrap();
    assert_ne!(pids(&served.session()), ready[0]);
    wait_until("the log says why", || {
        let log = served.mediator.log();
        log.lines().any(|line| {
            line.contains("its executor does not work any more: ")
                && line.contains("another worker is started for it")
        })
    });
    client.goodbye().unwrap();
    let again = served.mediator.wait_for_warm(1);
    assert_ne!(again, ready);
    served.mediator.stop();
}

#[test]
fn a_gpu_that_fails_starts_no_loop() {
    let folder = tempfile::tempdir().unwrap();
    let driver = folder.path().join("driver");
    fs::write(&driver, "").unwrap();
    let served = Served::playing(UNCONFINED, &format!("late={}", driver.display()));
    let ready = served.mediator.wait_for_warm(1);
    fs::remove_file(&driver).unwrap();
    signal(ready[0], Signal::SIGKILL);
    let failed = |why: &str, pause: u32| {
        let line = format!("a warm worker ended before it had a session: {why}");
        let pause = format!("; another is started in {pause} s");
        let log = served.mediator.log();
        log.lines()
            .any(|it| it.contains(&line) && it.ends_with(&pause))
    };
    let why = "executor cuda is not available: ";
    wait_until("pauses that double", || failed(why, 4));
    assert!(
        failed("it was killed", 1) && failed(why, 2),
        "{}",
        served.mediator.log()
    );
    fs::write(&driver, "").unwrap();
    served.mediator.wait_for_warm(1);
    let mut client = served.mediator.connect().unwrap();
    add(&mut client, 1000).unwrap();
    client.goodbye().unwrap();
    served.mediator.stop();
}

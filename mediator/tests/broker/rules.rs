//! Rules of a configuration for single guests.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use vgpu_guest::{Cause, Client, Device, Error, LaunchConfig, Options};
use vgpu_protocol::op::OpSet;
use vgpu_protocol::status::{ErrorCode, Status};

use crate::support::sockets::Sockets;
use crate::support::{Mediator, add, options, wait_until};

const PTX: &[u8] =
    b".version 6.0\n.target sm_50\n.address_size 64\n.visible .entry k()\n{\nret;\n}\n";

/// Its kernel ends only by force.
const ENDLESS: &[u8] =
    b".version 6.0\n.target sm_50\n.address_size 64\n.visible .entry k()\n{\nL:\nbra L;\n}\n";

/// An admin copies the list, and what it lacks is refused.
#[test]
fn the_documents_name_every_family_of_operations() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let settings = fs::read_to_string(root.join("dist/mediator/mediatord.toml")).unwrap();
    let guide = fs::read_to_string(root.join("docs/operations.md")).unwrap();
    let at = guide.find("An operation is named as in").unwrap();
    let end = guide[at..].find("What is not named").unwrap();
    let guide = &guide[at..at + end];
    for family in OpSet::families() {
        assert!(settings.contains(&format!("\"{family}\"")), "{family}");
        assert!(
            guide
                .split(|c: char| !c.is_alphabetic())
                .any(|word| word == family),
            "{family}"
        );
    }
}

fn config(directory: &Path, lines: &str) -> String {
    let path = directory.join("mediatord.toml");
    fs::write(&path, lines).unwrap();
    path.to_str().unwrap().to_owned()
}

fn client_of(sockets: &Sockets, name: &str) -> Client {
    Client::connect(&[sockets.tcp()], &sockets.options_of(name)).unwrap()
}

/// It is refused by policy, and says which operation.
fn assert_not_allowed(error: &Error, op: &str) {
    let Cause::Refused { status, text, .. } = error.cause() else {
        panic!("{error:?}");
    };
    assert_eq!(*status, Status::from(ErrorCode::Unsupported), "{error}");
    let wanted = format!("the mediator does not allow {op} to this guest");
    assert_eq!(*text, wanted, "{error}");
}

#[test]
fn a_guest_may_ask_for_what_its_rule_allows_and_for_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = Sockets::new(directory.path());
    let rules = "[guests]\ntester = { allow = true, memory_mib = 3, operations = \
                 ['device', 'memory', 'copy', 'module-unload', 'synchronize'] }\n";
    let mediator = sockets.start(&["--config", &config(directory.path(), rules)]);

    let mut client = client_of(&sockets, "tester");
    let error = client.exchange(&[7; 10], &mut []).unwrap_err();
    // Hello has told that there is no such thing.
    assert!(matches!(error.cause(), Cause::NotSent(_)), "{error:?}");
    let device = Device::new(client).unwrap();
    assert_eq!(device.total_memory(), 3 << 20);
    let data = device.clone_htod(&[1u32, 2, 3]).unwrap();
    assert_eq!(device.clone_dtoh(&data).unwrap(), [1, 2, 3]);
    // One that has data of its own, which still has to go somewhere.
    assert_not_allowed(&device.load_module(PTX).unwrap_err(), "ModuleLoad");
    // One that is not answered: the next wait tells of it.
    let mut zeros = device.alloc_zeros::<u32>(4);
    let told = match &mut zeros {
        Ok(_) => device.synchronize().unwrap_err(),
        Err(error) => std::mem::replace(error, device.synchronize().err().unwrap()),
    };
    assert!(format!("{told:?}").contains("Fill"), "{told:?}");
    drop(zeros);
    // The session goes on.
    assert_eq!(device.clone_dtoh(&data).unwrap(), [1, 2, 3]);
    drop(data);
    device.goodbye().unwrap();

    // Another guest, by no rule, may do it all.
    let mut client = client_of(&sockets, "other");
    add(&mut client, 10).unwrap();
    let device = Device::new(client).unwrap();
    assert!(device.total_memory() > 3 << 20);
    let kernel = device.load_module(PTX).unwrap().load_function("k").unwrap();
    device
        .launch_builder(&kernel)
        .launch(LaunchConfig::for_num_elems(1))
        .unwrap();
    device.synchronize().unwrap();
    drop(kernel);
    device.goodbye().unwrap();
    mediator.stop();
}

#[test]
fn limits_for_all_count_where_no_rule_says_other() {
    let directory = tempfile::tempdir().unwrap();
    let limits = "[limits]\noperations = ['exchange']\n";
    let path = config(directory.path(), limits);
    let mediator = Mediator::start(directory.path(), &["--config", &path]);
    let mut client = mediator.connect().unwrap();
    client.exchange(&[7; 1000], &mut [0; 1000]).unwrap();
    // No operation of the device is allowed, so Hello does not offer it.
    let error = add(&mut client, 1000).unwrap_err();
    assert!(matches!(error.cause(), Cause::NotSent(_)), "{error:?}");
    let error = Device::new(client).unwrap_err();
    assert!(matches!(error.cause(), Cause::NotSent(_)), "{error:?}");
    mediator.stop();
}

#[test]
fn a_relay_refuses_by_its_own_rules_before_it_passes_anything_on() {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let far = Mediator::start(directories[1].path(), &[]);
    let path = config(
        directories[0].path(),
        "[limits]\noperations = ['device', 'memory', 'copy', 'synchronize']\n",
    );
    let executor = format!("relay:{}", far.endpoint());
    let near = Mediator::start(
        directories[0].path(),
        &["--executor", &executor, "--config", &path],
    );
    let device = Device::new(near.connect().unwrap()).unwrap();
    let data = device.clone_htod(&[1u8]).unwrap();
    device.synchronize().unwrap();
    let passed_on = || far.status()["usage"]["requests"].as_u64().unwrap();
    // A session's figures follow its replies.
    let settled = || {
        let mut last = passed_on();
        loop {
            thread::sleep(Duration::from_millis(200));
            match passed_on() {
                now if now == last => return now,
                now => last = now,
            }
        }
    };
    let before = settled();
    assert_not_allowed(&device.load_module(PTX).unwrap_err(), "ModuleLoad");
    // The Fence by which the guest asks what else has failed.
    assert_eq!(settled(), before + 1);
    drop(data);
    device.goodbye().unwrap();
    near.stop();
    far.stop();
}

#[test]
fn the_two_files_know_the_rules_too() {
    let directory = tempfile::tempdir().unwrap();
    let served = directory.path().join("exchange");
    fs::create_dir(&served).unwrap();
    let path = config(directory.path(), "[limits]\noperations = ['device']\n");
    let listen = format!("file:{}", served.display());
    let flags = ["--listen", listen.as_str(), "--config", path.as_str()];
    let mediator = Mediator::start(directory.path(), &flags);
    let response = || crate::support::response(&served);
    wait_until("the directory is served", || response().starts_with("0:"));
    fs::write(served.join("command.txt"), "1\n").unwrap();
    wait_until("the answer", || response().starts_with("2:"));
    assert!(
        response().contains("does not allow MemoryAllocate"),
        "{}",
        response()
    );
    mediator.stop();
}

#[test]
fn a_rule_can_limit_how_long_a_request_takes_in_all() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = Sockets::new(directory.path());
    let rules =
        "[guests]\ntester = { allow = true, request_timeout_s = 1, kernel_timeout_s = 5 }\n";
    let mediator = sockets.start(&["--config", &config(directory.path(), rules)]);
    let device = Device::new(client_of(&sockets, "tester")).unwrap();
    let kernel = device
        .load_module(ENDLESS)
        .unwrap()
        .load_function("k")
        .unwrap();
    device
        .launch_builder(&kernel)
        .launch(LaunchConfig::for_num_elems(1))
        .unwrap();
    // The device works all the while, so that nothing stalls.
    let error = device.synchronize().unwrap_err();
    let Cause::Refused { status, text, .. } = error.cause() else {
        panic!("{error:?}");
    };
    assert_eq!(*status, Status::from(ErrorCode::Timeout), "{error}");
    assert!(text.contains("took longer than 1000 ms"), "{text}");
    // The session goes on.
    device.memory_info().unwrap();
    drop(kernel);
    drop(device);
    mediator.stop();
}

#[test]
fn a_rule_can_give_a_guest_less_patience() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = Sockets::new(directory.path());
    let rules = "[guests]\ntester = { allow = true, idle_timeout_s = 1 }\n";
    let mediator = sockets.start(&["--config", &config(directory.path(), rules)]);
    let patient = Options {
        secret_file: Some(sockets.secret("other")),
        ..options()
    };
    let mut other = Client::connect(&[sockets.tcp()], &patient).unwrap();
    let mut tester = client_of(&sockets, "tester");
    tester.ping(b"x").unwrap();
    // The mediator ends the one that is silent, and leaves the other alone.
    mediator.wait_for_workers(1);
    let error = tester.ping(b"x").unwrap_err();
    assert!(
        error.to_string().contains("no request within 1000 ms"),
        "{error}"
    );
    other.ping(b"x").unwrap();
    other.goodbye().unwrap();
    mediator.stop();
}

//! Guests that have different GPUs of one machine, over the stand-in: what the rules give is what a guest sees, whatever
//! its endpoint.

use std::fs;
use std::path::PathBuf;
use std::process::Output;

use serde_json::Value;
use vgpu_guest::conformance::{self, Ground};
use vgpu_guest::{Client, Device, Error};

use crate::stand_in;
use crate::support::sockets::Sockets;
use crate::support::{Mediator, add, run, stderr, stdout, wait_until};

/// `CU_DEVICE_ATTRIBUTE_PCI_BUS_ID`.
const PCI_BUS_ID: usize = 33;

/// A mediator on a machine with three GPUs.
pub(crate) struct Served {
    pub(crate) mediator: Mediator,
    pub(crate) sockets: Sockets,
    file: PathBuf,
    _directory: tempfile::TempDir,
}

/// The UUID of one of the stand-in's GPUs, as a configuration names it.
pub(crate) fn uuid(device: u8) -> String {
    let mut bytes = *b"a stand-in's own";
    bytes[15] = device;
    vgpu_mediator::devices::DeviceKey::Uuid(bytes).to_string()
}

impl Served {
    pub(crate) fn with(configuration: &str) -> Self {
        Self::playing(configuration, "devices=3")
    }

    /// The same on one where something goes wrong.
    pub(crate) fn playing(configuration: &str, scenario: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let sockets = Sockets::new(directory.path());
        let file = directory.path().join("mediatord.toml");
        fs::write(&file, configuration).unwrap();
        let flags = ["--config", file.to_str().unwrap(), "--executor", "cuda"];
        let mediator = sockets.start_with(&flags, |command| {
            command
                .env("LD_LIBRARY_PATH", stand_in::library())
                .env(stand_in::SCENARIO, scenario);
        });
        Self {
            mediator,
            sockets,
            file,
            _directory: directory,
        }
    }

    /// A client over TCP, whose worker is there before it is known whose it is.
    fn client(&self, name: &str) -> Result<Client, Error> {
        Client::connect(&[self.sockets.tcp()], &self.sockets.options_of(name))
    }

    pub(crate) fn device(&self, name: &str) -> Device {
        Device::new(self.client(name).unwrap()).unwrap()
    }

    fn vgpuctl(&self, arguments: &[&str]) -> Output {
        run(self
            .mediator
            .vgpuctl()
            .env("LD_LIBRARY_PATH", stand_in::library())
            .env(stand_in::SCENARIO, "devices=3")
            .args(arguments))
    }

    pub(crate) fn reload(&self, configuration: &str) -> Output {
        fs::write(&self.file, configuration).unwrap();
        self.vgpuctl(&["--json", "reload"])
    }

    /// The row of the one session that runs.
    pub(crate) fn session(&self) -> Value {
        let status = self.mediator.status();
        let sessions = status["sessions"].as_array().unwrap();
        assert_eq!(sessions.len(), 1, "{status}");
        sessions[0].clone()
    }
}

/// The number of the GPU, as its UUID and its place on the bus tell alike.
pub(crate) fn number(device: &Device) -> i32 {
    let info = device.info();
    let bus = info.attributes.as_slice()[PCI_BUS_ID] - 0x40;
    assert_eq!(info.uuid.as_slice()[15], u8::try_from(bus).unwrap());
    bus
}

/// The variables for NVIDIA's driver that a process was started with.
pub(crate) fn environment(pid: &Value) -> Vec<String> {
    let text = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let mut variables: Vec<String> = text
        .split(|byte| *byte == 0)
        .map(|variable| String::from_utf8_lossy(variable).into_owned())
        .filter(|variable| variable.starts_with("CUDA_"))
        .collect();
    variables.sort();
    variables
}

#[test]
fn each_guest_sees_the_gpus_of_its_rule_over_every_endpoint() {
    let served = Served::with(&format!(
        "[limits]\ndevices = [1]\n[guests]\ntester = {{ allow = true, devices = ['{}', 0] }}\n",
        uuid(2)
    ));
    let status = served.mediator.status();
    let places = |at: &str| -> Vec<String> {
        let devices = status["executor"]["devices"].as_array().unwrap();
        devices.iter().map(|it| it[at].to_string()).collect()
    };
    assert_eq!(places("index"), ["0", "1", "2"]);
    assert_eq!(places("pci")[2], "\"0000:42:00.0\"");
    assert_eq!(places("uuid")[2], format!("\"{}\"", uuid(2)));

    // What limits say counts for who has no rule.
    for endpoint in [served.mediator.endpoint(), served.sockets.unix()] {
        let client = Client::connect(&[endpoint], &served.sockets.options()).unwrap();
        let device = Device::new(client).unwrap();
        assert_eq!((number(&device), device.info().devices), (1, 1));
        let session = served.session();
        assert_eq!(session["devices"], serde_json::json!([uuid(1)]));
        // As root: a worker is another user's.
        if nix::unistd::geteuid().is_root() {
            let wanted = [
                "CUDA_CACHE_DISABLE=1".to_owned(),
                "CUDA_DEVICE_ORDER=PCI_BUS_ID".to_owned(),
                format!("CUDA_VISIBLE_DEVICES={}", uuid(1)),
            ];
            assert_eq!(environment(&session["pid"]), wanted);
        }
        device.goodbye().unwrap();
        wait_until("the session is over", || {
            served.mediator.status()["sessions"] == serde_json::json!([])
        });
    }
    let mut client = served.client("other").unwrap();
    add(&mut client, 1000).unwrap();
    assert_eq!(number(&Device::new(client).unwrap()), 1);

    // A rule, in the order of its list.
    let mut client = served.client("tester").unwrap();
    add(&mut client, 1000).unwrap();
    let device = Device::new(client).unwrap();
    assert_eq!(number(&device), 2);
    let status = served.mediator.status();
    let guests = status["guests"].as_array().unwrap();
    let guest = guests
        .iter()
        .find(|it| it["guest_id"] == "tcp:tester")
        .unwrap();
    assert_eq!(guest["devices"], serde_json::json!([uuid(2), uuid(0)]));
    let text = stdout(&served.vgpuctl(&["status"]));
    let line = text.lines().find(|line| line.starts_with("tcp tester"));
    assert!(line.is_some_and(|line| line.ends_with(" 2,0")), "{text}");
    device.goodbye().unwrap();
    served.mediator.stop();
}

#[test]
fn a_guest_whose_gpu_is_not_there_is_refused_and_the_doctor_says_why() {
    let text = format!(
        "listen = 'local:/unused'\nexecutor = 'cuda'\n[guests]\ntester = {{ allow = true, devices = [0, 3] }}\nother = {{ allow = true, devices = ['{}'] }}\n",
        uuid(7)
    );
    let served = Served::with(&text);
    for (name, key) in [("tester", "3".to_owned()), ("other", uuid(7))] {
        let error = served.client(name).unwrap_err().to_string();
        assert!(error.contains("E_BACKEND_LOST"), "{error}");
        let why = format!("there is no device {key}, which this guest is to have");
        assert!(error.contains(&why), "{error}");
        assert!(error.contains("vgpuctl reload"), "{error}");
        wait_until("the log says so", || served.mediator.log().contains(&why));
        let log = served.mediator.log();
        let warned = format!("devices of name:{name}: there is no device {key}; sessions");
        assert!(log.contains(&warned), "{log}");
    }
    let status = stdout(&served.vgpuctl(&["status"]));
    let told = "missing    devices of name:tester: there is no device 3; sessions";
    assert!(status.contains(told), "{status}");
    // Others are served.
    let client = Client::connect(&[served.sockets.unix()], &served.sockets.options()).unwrap();
    // Without a list a session has all of them.
    let device = Device::with_ordinal(client, 2).unwrap();
    assert_eq!((number(&device), device.info().devices), (2, 3));
    device.goodbye().unwrap();
    let ground = Ground {
        endpoint: &served.sockets.unix(),
        options: &served.sockets.options(),
    };
    for outcome in conformance::run(&ground, "gpu_devices_") {
        outcome.result.unwrap();
    }

    let file = served.file.display().to_string();
    for config in [&[][..], &["--config", &file]] {
        let doctor = served.vgpuctl(&[&["doctor"][..], config].concat());
        let (text, line) = (
            stdout(&doctor),
            "devices of name:tester: there is no device 3",
        );
        assert!(
            text.contains(&format!("✘ devices: {line}")) || text.contains(line),
            "{text}"
        );
        assert!(
            text.contains(&format!("2 Stand-in GPU 2 {} at 0000:42:00.0", uuid(2))),
            "{text}"
        );
        assert_eq!(doctor.status.code(), Some(1), "{text}");
    }
    assert!(served.reload("[guests]\n").status.success());
    let text = stdout(&served.vgpuctl(&["doctor"]));
    assert!(
        text.contains("✔ devices: there are 0 Stand-in GPU"),
        "{text}"
    );
    served.device("tester").goodbye().unwrap();
    served.mediator.stop();
}

#[test]
fn a_reload_gives_other_gpus_to_sessions_to_come() {
    let rules =
        |devices: &str| format!("[guests]\ntester = {{ allow = true, devices = {devices} }}\n");
    let served = Served::with(&rules("[1]"));
    let before = served.device("tester");
    let reloaded = served.reload(&rules("[2]"));
    assert!(reloaded.status.success(), "{}", stderr(&reloaded));
    let changed: Value = serde_json::from_slice(&reloaded.stdout).unwrap();
    assert_eq!(changed["changed"], serde_json::json!(["name:tester"]));
    let after = served.device("tester");
    assert_eq!((number(&before), number(&after)), (1, 2));
    // The session that was there goes on with what it has.
    let data = before.clone_htod(&[1u32, 2, 3]).unwrap();
    assert_eq!(before.clone_dtoh(&data).unwrap(), [1, 2, 3]);
    drop(data);

    for (devices, words) in [
        ("[]", "devices is empty; name at least one"),
        ("['GPU-12']", "`GPU-12` is no device; name it by its number"),
        ("[1, 1]", "devices names 1 twice"),
        ("1", "expected a list of devices"),
    ] {
        let refused = served.reload(&rules(devices));
        assert_eq!(refused.status.code(), Some(2));
        let text = format!("{}{}", stdout(&refused), stderr(&refused));
        assert!(text.contains(words) && text.contains("line 2"), "{text}");
    }
    assert_eq!(number(&served.device("tester")), 2);
    served.mediator.stop();
}

#[test]
fn a_session_chooses_among_its_gpus_and_has_the_turns_of_the_one_it_uses() {
    let served = Served::with(
        "[limits]\ndevices = [0]\n[guests]\ntester = { allow = true, devices = [2, 0], memory_mib = 5 }\n",
    );
    let choose = |ordinal| {
        let client = served.client("tester").unwrap();
        let mut beside = client.lane().unwrap();
        let device = Device::with_ordinal(client, ordinal)?;
        // Info describes the one that was chosen, and so does the status.
        let info = beside.info().unwrap();
        assert_eq!(info.device.as_str(), device.info().name.as_str());
        let status = served.mediator.status();
        let sessions = status["sessions"].as_array().unwrap();
        let uuid = uuid(u8::try_from(number(&device)).unwrap());
        assert_eq!(sessions.last().unwrap()["device"], uuid, "{status}");
        Ok::<_, Error>(device)
    };
    let (first, second) = (choose(0).unwrap(), choose(1).unwrap());
    assert_eq!((number(&first), number(&second)), (2, 0));
    for device in [&first, &second] {
        assert_eq!((device.info().devices, device.total_memory()), (2, 5 << 20));
        assert_eq!(device.memory_info().unwrap().1, 5 << 20);
        let data = device.clone_htod(&[1u32, 2, 3]).unwrap();
        assert_eq!(device.clone_dtoh(&data).unwrap(), [1, 2, 3]);
    }
    let shown = stdout(&served.vgpuctl(&["status"]));
    let last: Vec<&str> = shown
        .lines()
        .filter_map(|it| it.split(' ').next_back())
        .collect();
    let heading = last.iter().position(|it| *it == "GPU").unwrap();
    assert_eq!(last[heading + 1..heading + 3], ["2", "0"], "{shown}");
    let error = choose(2).unwrap_err().to_string();
    assert!(error.contains("there is no device 2"), "{error}");
    // Another guest, on the GPU with number 0: it waits for the one that uses that too, and not for the other.
    let other = Device::new(served.client("other").unwrap()).unwrap();
    let fill = |device: &Device| {
        drop(device.alloc_zeros::<u32>(100).unwrap());
        device.synchronize().unwrap();
    };
    let turns_of = |id: &str| {
        let status = served.mediator.status();
        let guests = status["guests"].as_array().unwrap();
        let guest = guests.iter().find(|it| it["guest_id"] == id).unwrap();
        guest["turns"].as_u64().unwrap()
    };
    fill(&first);
    fill(&other);
    let before = turns_of("tcp:other");
    for _ in 0..20 {
        fill(&first);
        fill(&other);
    }
    // Nobody else has wanted its GPU: it still has its first turn.
    assert_eq!(turns_of("tcp:other"), before);
    wait_until("a turn is taken away by a guest of the same GPU", || {
        fill(&second);
        fill(&other);
        turns_of("tcp:other") > before
    });
    served.mediator.stop();
}

//! The figures of the GPUs themselves, over a stand-in for NVIDIA's management library.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::end_to_end::{Mediator, WATCHDOG, connect};
use crate::stand_in;

fn start(folder: &Path, libraries: &Path, scenario: &str) -> Mediator {
    let socket = folder.join("vgpu.sock");
    let listen = format!("local:{}", socket.display());
    let mediator = Mediator::start_with(folder, libraries, &listen, scenario);
    connect(&socket).goodbye().expect("goodbye");
    mediator
}

fn vgpuctl(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vgpuctl"))
        .arg("--control")
        .arg(folder.join("control.sock"))
        .args(arguments)
        .output()
        .expect("vgpuctl runs")
}

fn text(folder: &Path, arguments: &[&str]) -> String {
    String::from_utf8_lossy(&vgpuctl(folder, arguments).stdout).into_owned()
}

fn status(folder: &Path) -> Value {
    serde_json::from_slice(&vgpuctl(folder, &["--json", "status"]).stdout).expect("a status")
}

/// The status once it is as wanted.
fn wait_for(folder: &Path, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + WATCHDOG;
    loop {
        let status = status(folder);
        if wanted(&status) {
            return status;
        }
        assert!(Instant::now() < deadline, "{what}: still {status}");
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn status_top_metrics_and_doctor_have_what_each_gpu_gives() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let _mediator = start(folder, stand_in::management_library(), "works");
    let status = wait_for(folder, "figures", |status| status["gpus"].is_array());
    let first = serde_json::json!({
        "index": 0, "uuid": "GPU-61207374", "name": "Stand-in GPU",
        "total_memory": 1 << 30, "memory_used": 1 << 28, "busy_percent": 42, "temperature_c": 61,
        "power_mw": 402_500, "power_limit_mw": 402_500, "ecc_corrected": 3, "ecc_uncorrected": 0,
        "age_s": status["gpus"][0]["age_s"],
    });
    assert_eq!(status["gpus"][0], first);
    let second = serde_json::json!({
        "index": 1, "uuid": "GPU-616e642d", "name": "Another GPU",
        "total_memory": 1 << 30, "memory_used": 1 << 28, "temperature_c": 61,
        "age_s": status["gpus"][1]["age_s"],
    });
    assert_eq!(status["gpus"][1], second);
    assert_eq!(status.get("gpus_missing"), None);

    // What the library has of a session's process stands beside what was measured.
    let client = connect(&folder.join("vgpu.sock"));
    let status = wait_for(folder, "a session", |status| {
        status["sessions"][0]["nvml_memory"].is_u64()
    });
    let session = &status["sessions"][0];
    assert_eq!(session["nvml_memory"], 1 << 29);
    assert_eq!(session["nvml_busy_percent"], 17);
    client.goodbye().expect("goodbye");

    let line = |text: &str, of: &str| {
        let line = text.lines().find(|line| line.contains(of));
        line.unwrap_or_else(|| panic!("{text}")).to_owned()
    };
    for command in [&["status"][..], &["top", "--once"]] {
        let text = text(folder, command);
        let first = line(&text, "0 Stand-in GPU");
        for figure in ["42 %", "268.4 MB of 1.1 GB", "61 °C", "402 W of 402 W", "0"] {
            assert!(first.contains(figure), "{text}");
        }
        assert!(line(&text, "1 Another GPU").contains(" - "), "{text}");
    }
    let top: Value =
        serde_json::from_slice(&vgpuctl(folder, &["--json", "top", "--once"]).stdout).unwrap();
    assert_eq!(top["gpus"][0]["temperature_c"], 61);
    let metrics = text(folder, &["metrics"]);
    let temperature = "vgpu_gpu_temperature_celsius{gpu=\"1\",uuid=\"GPU-616e642d\"} 61.0";
    assert!(metrics.contains(temperature), "{metrics}");
    assert!(
        !metrics.contains("vgpu_gpu_power_watts{gpu=\"1\""),
        "{metrics}"
    );
    let series = metrics.lines().filter(|line| line.starts_with("vgpu_gpu_"));
    let given: BTreeSet<&str> = series.filter_map(|line| line.split('{').next()).collect();
    let page = include_str!("../../../docs/metrics.md");
    let listed = page.split('`').filter(|word| word.starts_with("vgpu_gpu_"));
    let listed: BTreeSet<&str> = listed.filter(|word| !word.ends_with('*')).collect();
    assert_eq!(given, listed);
    let doctor = text(folder, &["doctor"]);
    assert!(
        line(&doctor, "figures of GPUs").contains("2 GPUs"),
        "{doctor}"
    );
}

#[test]
fn without_the_library_there_are_no_figures_and_a_remark() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    // One that cannot be loaded, also where there is another.
    let libraries = folder.join("libraries");
    fs::create_dir(&libraries).unwrap();
    fs::write(libraries.join("libnvidia-ml.so.1"), "").unwrap();
    let _mediator = start(folder, &libraries, "works");
    let status = wait_for(folder, "the reason", |status| {
        let why = status["gpus_missing"].as_str().unwrap_or_default();
        why.contains("(libnvidia-ml.so.1) is not installed or cannot be loaded")
    });
    assert_eq!(status.get("gpus"), None);
    assert!(!text(folder, &["metrics"]).contains("vgpu_gpu_"));
    assert!(!text(folder, &["status"]).contains("ECC"));
    let doctor = text(folder, &["doctor"]);
    assert!(
        doctor.contains("! figures of GPUs: NVIDIA's management library"),
        "{doctor}"
    );
}

#[test]
fn a_library_that_hangs_holds_up_neither_guests_nor_answers() {
    for scenario in ["nvml=1", "nvml=2"] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let mut mediator = start(folder, stand_in::management_library(), scenario);
        if scenario == "nvml=2" {
            wait_for(folder, "figures", |status| status["gpus"].is_array());
        }
        let status = wait_for(folder, "the reason", |status| {
            let why = status["gpus_missing"].as_str().unwrap_or_default();
            why.contains("has not answered")
        });
        assert_eq!(status.get("gpus"), None);
        let mut client = connect(&folder.join("vgpu.sock"));
        let mut sum = [0.0];
        client.vector_add(&[1.0], &[2.0], &mut sum).expect("a sum");
        assert_eq!(sum, [3.0]);
        client.goodbye().expect("goodbye");
        mediator.stop();
    }
}

//! The command `vgpu run`, with a mediator's session in this process.

mod script;

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::thread;

use script::cpu;
use tempfile::TempDir;
use vgpu_cli::testing::assert_documented;
use vgpu_nvrtc::{Nvrtc, Version};

/// A directory with two files of eight floats, the kernels, and a mediator for as many sessions as come.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let floats = |value: fn(u8) -> f32| -> Vec<u8> {
            (0..8).flat_map(|i| value(i).to_le_bytes()).collect()
        };
        fs::write(place.at("x.f32"), floats(f32::from)).unwrap();
        fs::write(place.at("y.f32"), floats(|_| 1.0)).unwrap();
        let kernels = include_bytes!("../src/conformance/kernels.ptx");
        fs::write(place.at("kernels.ptx"), kernels).unwrap();
        let listener = UnixListener::bind(place.at("vgpu.sock")).unwrap();
        // Ends with this process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || cpu::serve(stream));
            }
        });
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs `vgpu run kernels.ptx` with `arguments`, split at spaces, in this directory.
    fn run(&self, arguments: &str) -> Output {
        self.vgpu(&format!("run kernels.ptx {arguments}"))
    }

    fn vgpu(&self, arguments: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_vgpu"))
            .args(["--endpoint", "unix:vgpu.sock"])
            .args(arguments.split(' '))
            .current_dir(self.0.path())
            .env_remove("RUST_LOG")
            .output()
            .expect("vgpu runs")
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let bytes = fs::read(self.at(name)).unwrap();
        let (floats, rest) = bytes.as_chunks::<4>();
        assert!(rest.is_empty());
        floats
            .iter()
            .map(|float| f32::from_le_bytes(*float))
            .collect()
    }

    /// Checks that `output` is a failure with these words in its first line, and that nothing was written.
    fn failed(&self, output: &Output, status: i32, words: &[&str]) {
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{stderr}");
        let [what, help] = stderr.lines().collect::<Vec<_>>()[..] else {
            panic!("not two lines: {stderr}");
        };
        assert!(
            what.starts_with("error: ") && help.starts_with(" help: "),
            "{stderr}"
        );
        for words in words {
            assert!(what.contains(words), "{stderr}");
        }
        assert!(output.stdout.is_empty());
        assert!(!self.at("out.f32").exists());
    }
}

const SAXPY: &str = "--entry saxpy --grid 1 --block 8 --arg f32:2.5 --arg in:x.f32 \
                     --arg inout:y.f32:out.f32 --arg u32:8";

#[test]
fn a_kernel_runs_on_files() {
    let place = Place::new();
    let output = place.run(SAXPY);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.is_empty(), "{stderr}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.starts_with("saxpy: ") && text.contains("on the device (cpu, "),
        "{text}"
    );
    let wanted: Vec<f32> = (0..8u8).map(|i| 2.5 * f32::from(i) + 1.0).collect();
    assert_eq!(place.floats("out.f32"), wanted);
    // What it read is as it was.
    assert_eq!(place.floats("y.f32"), [1.0; 8]);

    fs::remove_file(place.at("out.f32")).unwrap();
    let output = place.vgpu(&format!("--json run kernels.ptx {SAXPY}"));
    assert!(output.status.success());
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["executor"], "cpu");
    assert_eq!(told["endpoint"], "unix:vgpu.sock");
    assert!(told["device_ns"].as_u64() > Some(0), "{told}");
    let uuid = told["uuid"].as_str().unwrap();
    assert!(uuid.starts_with("GPU-") && uuid.len() == 40, "{uuid}");
    let output = place.run(&format!("{SAXPY} --device 1"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("there is no device 1")
            && stderr.contains("CUDA_ERROR_INVALID_DEVICE (101)"),
        "{stderr}"
    );
    let output = place.run(&format!("{SAXPY} --device 0"));
    assert!(output.status.success(), "{output:?}");
    assert!(told["seconds"].as_f64() > Some(0.0), "{told}");
    assert_eq!(place.floats("out.f32"), wanted);
}

/// Programs find in every object the names that docs/json.md says, and no others.
#[test]
fn objects_are_as_documented() {
    let page = include_str!("../../docs/json.md");
    let place = Place::new();
    let check = |arguments: &str, examples: &[&[&str]]| {
        let output = place.vgpu(&format!("--json {arguments}"));
        assert!(output.status.success(), "{arguments}: {output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.lines().count() >= examples.len(), "{text}");
        for (number, line) in text.lines().enumerate() {
            let example = examples.get(number).or(examples.last()).unwrap();
            assert_documented(page, example, line);
        }
    };
    check("info", &[&["mediator"]]);
    check("ping --count 3", &[&["p99_us"]]);
    check("vector-add --n 100", &[&["elements", "left"]]);
    check(&format!("run kernels.ptx {SAXPY}"), &[&["uuid", "left"]]);
    check(
        "conformance --only pings_of_all_sizes",
        &[&["case"], &["passed"]],
    );
    check(
        "bench --sizes 100 --repeats 1",
        &[&["p99_us"], &["elements", "repeats"]],
    );
    // The second time beside figures of a native program, of which one has no p99.
    let bench = "bench gpu --launches 3 --copies 1000 --adds 100 --repeats 2";
    check(bench, &[&["what", "median"]]);
    let native =
        |what: &str, p99: &str| format!("{{\"what\": \"{what}\", \"median\": 1.5{p99}}}\n");
    let figures = native("launch_processor", ", \"p99\": 2") + &native("launch_synchronize", "");
    fs::write(place.at("native.json"), figures).unwrap();
    check(
        &format!("{bench} --native native.json"),
        &[&["what", "median"]],
    );
    check("doctor", &[&["checks", "endpoint"]]);
    // With endpoints that fail first.
    let output = Command::new(env!("CARGO_BIN_EXE_vgpu"))
        .args(["--endpoint", "unix:none,unix:vgpu.sock", "--json", "info"])
        .current_dir(place.0.path())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let object = assert_documented(page, &["mediator"], &text);
    assert_eq!(object["left"][0]["endpoint"], "unix:none");
}

#[test]
fn a_kernel_runs_as_often_as_it_is_told_to() {
    let place = Place::new();
    // More than is ever under way at once.
    let output = place.run(&format!("{SAXPY} --repeat 3000"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let wanted: Vec<f32> = (0..8u8).map(|i| 7500.0 * f32::from(i) + 1.0).collect();
    assert_eq!(place.floats("out.f32"), wanted);
}

#[test]
fn parameters_of_every_kind_and_buffers_of_zeros() {
    let place = Place::new();
    let block = format!("{}{}{}", "e8030000", "00".repeat(32), "204e0000");
    let output = place.run(&format!(
        "--entry parameters --grid 1,1,1 --block 1 --arg u8:3 --arg out:sum.u64:8 --arg u16:400 \
         --arg bytes:{block} --arg u8:7 --arg f64:3e9"
    ));
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let sum = fs::read(place.at("sum.u64")).unwrap();
    assert_eq!(u64::from_le_bytes(sum.try_into().unwrap()), 3_000_021_410);
    // Two blocks that wait for each other: each takes what the other had, and adds 1.
    let output = place.run(
        "--entry meet --cooperative --grid 2 --block 1 --arg out:met.u32:16 --arg zero:4 --arg u32:2",
    );
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let met = fs::read(place.at("met.u32")).unwrap();
    assert_eq!(met, [2, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]);
    // More shared memory than is given without asking.
    let output = place
        .run("--entry turn_round --grid 1 --block 8 --shared 60000 --arg inout:x.f32:turned.f32");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let turned: Vec<f32> = (0..8u8).rev().map(f32::from).collect();
    assert_eq!(place.floats("turned.f32"), turned);
}

#[test]
fn what_does_not_fit_is_refused_before_anything_runs() {
    let place = Place::new();
    let few = "--entry saxpy --grid 1 --block 8 --arg f32:2.5 --arg inout:y.f32:out.f32";
    place.failed(
        &place.run(few),
        2,
        &["'saxpy' has 4 parameters, 2 arguments were given"],
    );
    let long = SAXPY.replace("u32:8", "u64:8");
    place.failed(
        &place.run(&long),
        2,
        &["argument 3 has 8 bytes; parameter 3 of kernel 'saxpy' has 4"],
    );
    let threads = SAXPY.replace("--block 8", "--block 2048");
    place.failed(&place.run(&threads), 1, &["2048 threads", "allows 1024"]);
    let nowhere = SAXPY.replace("out.f32", "nowhere/out.f32");
    place.failed(&place.run(&nowhere), 1, &["cannot write nowhere/out.f32"]);
    let nothing = SAXPY.replace("x.f32", "nothing.f32");
    place.failed(&place.run(&nothing), 1, &["cannot read nothing.f32"]);
    fs::write(place.at("source.cu"), b"\xff").unwrap();
    let output = place.vgpu("run source.cu --entry k --grid 1 --block 1");
    place.failed(&output, 1, &["source.cu is not UTF-8"]);
    // The command line itself.
    for arguments in [
        "--grid 0 --block 1",
        "--grid 1 --block 1,2,3,4",
        "--block 1",
    ] {
        let output = place.run(&format!("--entry saxpy {arguments}"));
        assert_eq!(output.status.code(), Some(2), "{arguments}");
    }
}

#[test]
fn errors_of_cuda_have_name_and_number_and_write_nothing() {
    let place = Place::new();
    let out = "--arg inout:y.f32:out.f32";
    for (arguments, words) in [
        (
            "--entry nowhere --grid 1 --block 1",
            "CUDA_ERROR_NOT_FOUND (500)",
        ),
        (
            "--entry poke --grid 1 --block 1 --arg u64:16",
            "CUDA_ERROR_ILLEGAL_ADDRESS (700)",
        ),
        (
            "--entry give_up --grid 1 --block 1",
            "CUDA_ERROR_LAUNCH_FAILED (719)",
        ),
        (
            "--entry spin --deadline 0.3 --grid 1 --block 1 --arg zero:4",
            "CUDA_ERROR_LAUNCH_TIMEOUT (702)",
        ),
        (
            "--entry turn_round --grid 1 --block 1 --shared 999999 --arg zero:4",
            "CUDA_ERROR_INVALID_VALUE (1)",
        ),
        (
            "--entry meet --cooperative --grid 1048576 --block 64 --arg zero:8 --arg zero:4 --arg u32:1",
            "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE (720)",
        ),
    ] {
        place.failed(&place.run(arguments), 1, &[words]);
    }
    // A kernel that fails with a file to write.
    let output = place.run(&format!(
        "--entry work --deadline 0.2 --grid 1 --block 1 {out} --arg u32:4000000000"
    ));
    place.failed(
        &output,
        1,
        &["CUDA_ERROR_LAUNCH_TIMEOUT (702)", "Launch, request"],
    );
    fs::write(
        place.at("kernels.ptx"),
        ".version 8.0\n.target sm_80\n.entry x( {",
    )
    .unwrap();
    place.failed(&place.run(SAXPY), 1, &["CUDA_ERROR_INVALID_PTX (218)"]);
    fs::write(place.at("kernels.ptx"), "not at all").unwrap();
    place.failed(&place.run(SAXPY), 1, &["CUDA_ERROR_INVALID_IMAGE (200)"]);
}

#[test]
fn the_help_says_what_an_argument_is() {
    let output = Command::new(env!("CARGO_BIN_EXE_vgpu"))
        .args(["run", "--help"])
        .output()
        .expect("vgpu runs");
    let help = String::from_utf8_lossy(&output.stdout);
    for part in [
        "inout:FILE:OUTFILE",
        "bytes:HEX",
        "zero:BYTES",
        "--deadline",
        "--repeat",
        "--shared",
    ] {
        assert!(help.contains(part), "{part}: {help}");
    }
}

#[test]
fn a_bench_of_the_device_prints_every_figure_and_the_native_ones_beside() {
    let place = Place::new();
    let small = "bench gpu --launches 20 --repeats 2 --copies 5000 --adds 5000";
    let lines = |output: Output| -> Vec<serde_json::Value> {
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && stderr.is_empty(), "{stderr}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let printed = lines(place.vgpu(&format!("--json {small}")));
    let names: Vec<&str> = printed
        .iter()
        .map(|line| line["what"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "session_open",
            "launch_processor",
            "launch_chain_20",
            "launch_synchronize",
            "graph_of_20",
            "allocate_free",
            "allocate_free_async",
            "copy_up_5000",
            "copy_down_5000",
        ]
    );
    for line in &printed {
        let (median, p99) = (line["median"].as_f64(), line["p99"].as_f64());
        assert!(median > Some(0.0) && p99.is_some(), "{line}");
        assert_eq!(line["executor"], "cpu");
    }
    fs::write(
        place.at("native"),
        "{\"what\":\"allocate_free\",\"unit\":\"us\",\"median\":1.5,\"p99\":2}\n",
    )
    .unwrap();
    let beside = lines(place.vgpu(&format!("--json {small} --native native")));
    for line in beside {
        let has = line["what"] == "allocate_free";
        assert_eq!(line["of_native"].as_f64().is_some(), has, "{line}");
    }
    let output = place.vgpu(small);
    assert!(output.status.success());
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(names.iter().all(|name| text.contains(name)), "{text}");

    let alone = "--json bench gpu --sessions --repeats 2 --rest 1ms";
    let printed = lines(place.vgpu(alone));
    assert_eq!(printed.len(), 1, "{printed:?}");
    assert_eq!(printed[0]["what"], "session_open");
    let nobody = place.vgpu("bench gpu --sessions --kill echo");
    place.failed(&nobody, 1, &["'' is no process id"]);

    place.failed(
        &place.vgpu("bench gpu --native nowhere"),
        1,
        &["nowhere", "No such file"],
    );
    assert_eq!(place.vgpu("bench gpu --copies 0").status.code(), Some(2));
}

const SOURCE: &str = r#"
extern "C" __global__ void saxpy(float a, const float *x, float *y, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i] + y[i];
}
"#;

#[test]
fn cuda_source_is_compiled_where_nvrtc_is() {
    // The newest whose PTX the `cpu` executor loads.
    let newest = Version {
        major: 13,
        minor: 0,
    };
    match Nvrtc::open(Some(newest)) {
        Ok(nvrtc) if nvrtc.version() <= newest => {}
        Ok(nvrtc) => return test_skip::skipped(format!("NVRTC {} is too new", nvrtc.version())),
        Err(error) => return test_skip::skipped(format!("{error}; {}", error.advice())),
    }
    let place = Place::new();
    fs::write(place.at("saxpy.cu"), SOURCE).unwrap();
    let output = place.vgpu(&format!("run saxpy.cu {SAXPY}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{stderr}");
    let wanted: Vec<f32> = (0..8u8).map(|i| 2.5 * f32::from(i) + 1.0).collect();
    assert_eq!(place.floats("out.f32"), wanted);

    fs::remove_file(place.at("out.f32")).unwrap();
    fs::write(place.at("saxpy.cu"), SOURCE.replace("+ y[i]", "+ z[i]")).unwrap();
    let output = place.vgpu(&format!("run saxpy.cu {SAXPY}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    // The compiler's log, and then what failed.
    let lines: Vec<&str> = stderr.lines().collect();
    let (log, last) = lines.split_at(lines.len() - 2);
    let place_in_source = "saxpy.cu(4): error: identifier \"z\" is undefined";
    assert!(
        log.iter().any(|line| line.contains(place_in_source)),
        "{stderr}"
    );
    assert!(
        last[0].starts_with("error: compile a module: it does not compile: saxpy.cu(4)"),
        "{stderr}"
    );
    assert!(!place.at("out.f32").exists());
}

#[test]
fn cuda_source_without_any_compiler_is_a_failure_with_advice() {
    let place = Place::new();
    fs::write(place.at("saxpy.cu"), SOURCE).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_vgpu"))
        .args(["--endpoint", "unix:vgpu.sock", "run", "saxpy.cu"])
        .args(SAXPY.split_ascii_whitespace())
        .current_dir(place.0.path())
        .env("VGPU_NVRTC", "/nowhere/libnvrtc.so")
        .env_remove("RUST_LOG")
        .output()
        .expect("vgpu runs");
    place.failed(
        &output,
        1,
        &["there is no NVRTC here, and of the mediator: "],
    );
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains("help: install NVIDIA's run-time compiler"),
        "{stderr}"
    );
}

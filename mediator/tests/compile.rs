//! CUDA C++ of guests that the mediator compiles, by the real NVRTC: it works, and hands out nothing.

#[path = "../../guest/tests/nvrtc/mod.rs"]
mod nvrtc;
mod support;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nvrtc::has_nvrtc;
use support::{Mediator, WATCHDOG, is_running, options, wait_until};
use vgpu_guest::protocol::status::{ErrorCode, Status};
use vgpu_guest::{
    Cause, Client, CompileAt, CompileOptions, Device, Error, ErrorKind, LaunchConfig, Options,
};

const SAXPY: &str = r#"
#include "scale.h"
extern "C" __global__ void saxpy(float a, const float *x, float *y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = scale(a) * x[i] + y[i];
}
"#;

const SCALE: &str = "__device__ float scale(float a) { return SCALE * a; }";

/// Recursion of templates that doubles with each step.
const ENDLESS: &str = r#"
template <int N, int P> struct T {
    static constexpr int value = T<N - 1, P * 2>::value + T<N - 1, P * 2 + 1>::value;
};
template <int P> struct T<0, P> { static constexpr int value = P; };
extern "C" __global__ void k(int *x) { *x = T<22, 0>::value; }
"#;

fn there() -> CompileOptions {
    CompileOptions {
        at: CompileAt::Mediator,
        ..CompileOptions::default()
    }
}

fn start(directory: &Path, config: &str) -> Mediator {
    let file = directory.join("mediatord.toml");
    fs::write(&file, config).unwrap();
    Mediator::start(
        directory,
        &["--config", file.to_str().unwrap(), "--allow-all"],
    )
}

fn device(mediator: &Mediator) -> Device {
    Device::new(mediator.connect().unwrap()).unwrap()
}

fn saxpy(device: &Device) {
    let options = CompileOptions {
        headers: vec![("scale.h".to_owned(), SCALE.to_owned())],
        defines: vec![("SCALE".to_owned(), "2.0f".to_owned())],
        use_fast_math: true,
        ..there()
    };
    let module = device.compile_module(SAXPY, &options).unwrap();
    let saxpy = module.load_function("saxpy").unwrap();
    let x: Vec<f32> = (0..1000u16).map(f32::from).collect();
    let x = device.clone_htod(&x).unwrap();
    let y = device.clone_htod(&[3.0f32; 1000]).unwrap();
    device
        .launch_builder(&saxpy)
        .arg(&2.0f32)
        .arg(&x)
        .arg(&y)
        .arg(&1000i32)
        .launch(LaunchConfig::for_num_elems(1000))
        .unwrap();
    let wanted: Vec<f32> = (0..1000u16).map(|i| 4.0 * f32::from(i) + 3.0).collect();
    assert_eq!(device.clone_dtoh(&y).unwrap(), wanted);
}

fn code(error: &Error) -> Option<Status> {
    error.status()
}

/// The compilers of a mediator.
fn compilers(mediator: &Mediator) -> Vec<u32> {
    let name = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let all = mediator.workers().into_iter();
    all.filter(|pid| name(*pid).trim() == "vgpu-compiler" && is_running(*pid))
        .collect()
}

#[test]
fn a_source_is_compiled_by_the_mediator_and_by_one_behind_a_relay() {
    if !has_nvrtc() {
        return;
    }
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mediator = start(first.path(), "");
    let direct = device(&mediator);
    saxpy(&direct);
    let relay = format!("relay:{}", mediator.endpoint());
    let relay = Mediator::start(second.path(), &["--executor", &relay, "--allow-all"]);
    saxpy(&device(&relay));
    // Also in the one session's second time.
    saxpy(&direct);
    drop(direct);
    drop(relay);
    wait_until("no compiler is left", || compilers(&mediator).is_empty());
}

#[test]
fn what_does_not_compile_is_told_and_the_session_goes_on() {
    if !has_nvrtc() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mediator = start(directory.path(), "");
    let device = device(&mediator);
    let named = CompileOptions {
        name: "wrong.cu".to_owned(),
        ..there()
    };
    let error = device
        .compile_module("\n__global__ void k() { x = 1; }", &named)
        .unwrap_err();
    assert!(
        matches!(error.cause(), Cause::Compile { result: 6, .. }),
        "{error}"
    );
    let text = error.to_string();
    assert!(
        text.contains("wrong.cu(2): error: identifier \"x\" is undefined"),
        "{text}"
    );
    // A log has a bound, and nothing that controls a terminal.
    let many: String = (0..20_000).map(|i| format!("x{i};\n")).collect();
    for source in [many, "#error \"\x1b[2J\x07\"".to_owned()] {
        let error = device.compile_module(&source, &there()).unwrap_err();
        let log = error.compile_log().unwrap();
        assert!(log.len() <= 32 << 10, "{}", log.len());
        assert!(
            log.chars()
                .all(|c| !c.is_control() || c == '\n' || c == '\t'),
            "{log:?}"
        );
    }
    saxpy(&device);
    assert_eq!(
        device.memory_info().unwrap().0,
        device.memory_info().unwrap().0
    );
}

#[test]
fn no_source_sees_a_file_of_the_mediator() {
    if !has_nvrtc() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    fs::write(&secret, "the_secret of this machine;\n").unwrap();
    let secret = secret.display().to_string();
    let mediator = start(directory.path(), "");
    let files = [
        &secret,
        "/etc/passwd",
        "/proc/self/environ",
        "/proc/self/maps",
        "/proc/self/fd/0",
        "/proc/cpuinfo",
        "/proc/meminfo",
        "/dev/stdin",
        "../../../../../../etc/passwd",
        "/",
        ".",
    ];
    let known = [
        "the_secret",
        "root:",
        "VGPU_NVRTC=",
        "r-xp",
        "MemTotal",
        "processor",
    ];
    for file in files {
        // A session may have so many sources compiled at once, and then one at a time.
        let device = device(&mediator);
        let sources = [
            format!("#include \"{file}\"\n"),
            format!("#include <{file}>\n"),
            format!("#define FILE \"{file}\"\n#include FILE\n"),
            format!("#inc\\\nlude \"{file}\"\n"),
            format!("#import \"{file}\"\n"),
            format!("#include_next \"{file}\"\n"),
            format!("char a[] = {{\n#embed \"{file}\"\n}};\n"),
            format!("#pragma include_alias(\"a.h\", \"{file}\")\n#include \"a.h\"\n"),
            format!(
                "#if __has_include(\"{file}\")\n#error the file is there\n#endif\n\
                 #error it is not"
            ),
        ];
        for source in sources {
            let source = format!("{source}\nextern \"C\" __global__ void k() {{}}");
            let error = device.compile_module(&source, &there()).expect_err(&source);
            let log = error
                .compile_log()
                .unwrap_or_else(|| panic!("{source}: {error}"));
            for words in known.iter().chain(&["the file is there"]) {
                assert!(!log.contains(words), "{source}: {log}");
            }
        }
    }
    let device = device(&mediator);
    // What the assembler of PTX would include is text to the compiler, and the device does not load it.
    for asm in [".include", ".incbin"] {
        let source = format!(
            "extern \"C\" __global__ void k() {{ asm volatile(\"{asm} \\\"{secret}\\\"\"); }}"
        );
        let error = device
            .compile_module(&source, &there())
            .expect_err(&source)
            .to_string();
        assert!(!error.contains("the_secret"), "{error}");
    }
    for option in [
        "-I/etc",
        "--include-path=/etc",
        "-include=/etc/passwd",
        "--pre-include=/etc/passwd",
        "--use-pch=/etc/passwd",
        "--create-pch=/tmp/pch",
        "--pch-dir=/etc",
        "--time=/tmp/time",
        "--fdevice-time-trace=/tmp/trace",
        "--gpu-architecture=sm_90",
        "-DX -I/etc",
        "/etc/passwd",
        "@/etc/passwd",
    ] {
        let options = CompileOptions {
            options: vec![option.to_owned()],
            ..there()
        };
        let error = device
            .compile_module("#include <passwd>", &options)
            .unwrap_err();
        assert_eq!(
            code(&error),
            Some(ErrorCode::Range.into()),
            "{option}: {error}"
        );
    }
    saxpy(&device);
}

#[test]
fn an_endless_source_ends_at_the_deadline_and_its_compiler_has_nothing() {
    if !has_nvrtc() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mediator = start(directory.path(), "[worker]\ncompile_timeout_s = 4\n");
    let device = device(&mediator);
    let other = device.lane().unwrap();
    let compiling = std::thread::spawn(move || {
        let error = device.compile_module(ENDLESS, &there()).unwrap_err();
        (device, error)
    });
    // It is confined soon after it has loaded NVRTC.
    let seccomp = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.contains("Seccomp:\t2")
    };
    wait_until("a confined compiler", || {
        compilers(&mediator)
            .first()
            .is_some_and(|pid| seccomp(*pid))
    });
    let pid = compilers(&mediator)[0];
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let says = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{name} in {status}"))
            .trim()
            .to_owned()
    };
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(says(set), "0000000000000000", "{set}");
    }
    assert_eq!(says("NoNewPrivs:"), "1");
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    for (name, most) in [
        ("Max file size", 0),
        ("Max core file size", 0),
        ("Max cpu time", 5),
        ("Max address space", 2u64 << 30),
    ] {
        let line = limits.lines().find_map(|line| line.strip_prefix(name));
        let hard = line
            .and_then(|line| line.split_whitespace().nth(1))
            .unwrap();
        assert_eq!(hard.parse(), Ok(most), "{name}");
    }
    // Nobody but root may look at the rest.
    if nix::unistd::geteuid().is_root() {
        // Standard input, output and error are nobody's, and the socket is the worker's.
        let open = support::descriptors(pid);
        assert!(
            open.iter()
                .filter(|target| target.starts_with("socket:"))
                .count()
                == 1
                && open.iter().filter(|target| *target != "/dev/null").count() == 1,
            "{open:?}"
        );
        assert!(!says("Uid:").starts_with('0'), "{}", says("Uid:"));
        let root = fs::read_dir(format!("/proc/{pid}/root")).unwrap();
        assert_eq!(root.count(), 0, "its root has something");
        for namespace in ["net", "mnt", "ipc", "uts"] {
            let of = |of: &str| fs::read_link(format!("/proc/{of}/ns/{namespace}")).unwrap();
            assert_ne!(of(&pid.to_string()), of("self"), "{namespace}");
        }
    }
    // Others of the session go on meanwhile.
    let x = other.clone_htod(&[1u8; 100]).unwrap();
    assert_eq!(other.clone_dtoh(&x).unwrap(), [1; 100]);
    assert!(!compiling.is_finished());
    let (device, error) = compiling.join().unwrap();
    assert_eq!(code(&error), Some(ErrorCode::Timeout.into()), "{error}");
    assert!(
        error.to_string().contains("was not compiled within 4 s"),
        "{error}"
    );
    wait_until("it is gone", || compilers(&mediator).is_empty());
    saxpy(&device);
}

#[test]
fn what_a_source_makes_has_a_bound() {
    if !has_nvrtc() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mediator = start(directory.path(), "");
    let device = device(&mediator);
    // A million numbers of 64 bits, each of which takes more than 16 bytes in PTX.
    let source = "#define A -1ull,-1ull,-1ull,-1ull,-1ull,-1ull,-1ull,-1ull,-1ull,-1ull,\n\
                  #define B A A A A A A A A A A\n#define C B B B B B B B B B B\n\
                  #define D C C C C C C C C C C\n#define E D D D D D D D D D D\n\
                  extern \"C\" __device__ unsigned long long a[] = { E E E E E E E E E E };";
    let error = device.compile_module(source, &there()).unwrap_err();
    assert_eq!(code(&error), Some(ErrorCode::Range.into()), "{error}");
    assert!(
        error.to_string().contains("at most 16777216 are taken"),
        "{error}"
    );
    saxpy(&device);
}

#[test]
fn compilers_that_end_at_once_are_not_started_without_end() {
    let directory = tempfile::tempdir().unwrap();
    let mediator = Mediator::start_with(directory.path(), &["--allow-all"], |command| {
        command.env("VGPU_NVRTC", "/nowhere/libnvrtc.so");
    });
    let device = device(&mediator);
    let began = Instant::now();
    for _ in 0..36 {
        let error = device
            .compile_module("__global__ void k() {}", &there())
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }
    // 32, and two in a second.
    assert!(
        began.elapsed() >= Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn a_session_that_ends_takes_its_compiler_along() {
    if !has_nvrtc() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mediator = start(directory.path(), "");
    let impatient = Options {
        stall_timeout: WATCHDOG,
        ..options()
    };
    let client = Client::connect(&[mediator.endpoint()], &impatient).unwrap();
    let device = Device::new(client).unwrap();
    let waiting = std::thread::spawn(move || device.compile_module(ENDLESS, &there()).unwrap_err());
    wait_until("it compiles", || !compilers(&mediator).is_empty());
    let kicked = support::run(mediator.vgpuctl().args(["kick", "local"]));
    assert!(kicked.status.success());
    waiting.join().unwrap();
    wait_until("both are gone", || mediator.workers().is_empty());
}

#[test]
fn a_mediator_without_nvrtc_or_that_must_not_compile_says_so() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let without = Mediator::start_with(first.path(), &["--allow-all"], |command| {
        command.env("VGPU_NVRTC", "/nowhere/libnvrtc.so");
    });
    let off = start(second.path(), "[worker]\ncompile = false\n");
    for (mediator, words) in [
        (&without, "no NVRTC: VGPU_NVRTC is /nowhere/libnvrtc.so: "),
        (
            &off,
            "this mediator does not compile: worker.compile is false",
        ),
    ] {
        let device = device(mediator);
        let error = device
            .compile_module("__global__ void k() {}", &there())
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(
            error
                .advice()
                .contains("install NVIDIA's run-time compiler")
        );
        // The handle that failed is given back like any other.
        device.alloc_zeros::<u8>(1).unwrap();
        device.synchronize().unwrap();
        wait_until("no compiler is left", || compilers(mediator).is_empty());
    }
}

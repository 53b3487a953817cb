//! Modules from CUDA C++ that NVRTC compiles here, where it is installed, on the CPU executor.

mod nvrtc;
mod script;

use std::os::unix::net::UnixListener;
use std::thread;

use nvrtc::has_nvrtc;
use script::cpu;
use vgpu_guest::{
    Cause, Client, CompileAt, CompileOptions, Device, Endpoint, ErrorKind, LaunchConfig, Options,
};

const SAXPY: &str = r#"
#include "scale.h"
extern "C" __global__ void saxpy(float a, const float *x, float *y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = scale(a) * x[i] + y[i] + OFFSET;
}
"#;

const SCALE: &str = "__device__ float scale(float a) { return SCALE * a; }";

fn options() -> CompileOptions {
    CompileOptions {
        name: "saxpy.cu".to_owned(),
        standard: Some("c++17".to_owned()),
        defines: vec![
            ("OFFSET".to_owned(), "1.0f".to_owned()),
            ("SCALE".to_owned(), "2.0f".to_owned()),
        ],
        headers: vec![("scale.h".to_owned(), SCALE.to_owned())],
        options: vec!["--fmad=false".to_owned()],
        at: CompileAt::Here,
        ..CompileOptions::default()
    }
}

/// A device of a mediator in this process.
fn device() -> Device {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vgpu.sock");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || cpu::serve(listener.accept().unwrap().0));
    let client = Client::connect(&[Endpoint::Unix(path)], &Options::default()).unwrap();
    Device::new(client).unwrap()
}

#[test]
fn a_kernel_from_source_runs() {
    if !has_nvrtc() {
        return;
    }
    let device = device();
    let module = device.compile_module(SAXPY, &options()).unwrap();
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
    let wanted: Vec<f32> = (0..1000u16).map(|i| 4.0 * f32::from(i) + 4.0).collect();
    assert_eq!(device.clone_dtoh(&y).unwrap(), wanted);
    // Anywhere is here, where NVRTC is here.
    let anywhere = CompileOptions {
        at: CompileAt::Any,
        ..options()
    };
    device.compile_module(SAXPY, &anywhere).unwrap();
    device.goodbye().unwrap();
}

#[test]
fn what_does_not_compile_says_where() {
    if !has_nvrtc() {
        return;
    }
    let device = device();
    let mut wrong = options();
    wrong.defines.pop();
    wrong.headers.push(("a".to_owned(), String::new()));
    let error = device.compile_module(SAXPY, &wrong).unwrap_err();
    assert!(
        matches!(error.cause(), Cause::Compile { result: 6, .. }),
        "{error}"
    );
    assert_eq!(error.kind(), ErrorKind::Argument);
    let text = error.to_string();
    assert!(
        text.starts_with("compile a module: it does not compile: ")
            && text.contains("scale.h(1): error: identifier \"SCALE\" is undefined"),
        "{text}"
    );
    let log = error.compile_log().unwrap();
    assert!(
        log.lines().count() > 3 && log.contains("1 error detected"),
        "{log}"
    );
    // The session goes on.
    let older = CompileOptions {
        capability: Some(10),
        ..options()
    };
    let error = device
        .compile_module(SAXPY, &older)
        .unwrap_err()
        .to_string();
    assert!(error.contains("this device is of compute_10"), "{error}");
    assert!(device.compile_module("", &options()).is_err());
    device.compile_module(SAXPY, &options()).unwrap();
}

#[test]
fn a_mediator_without_a_compiler_says_so() {
    let device = device();
    let there = CompileOptions {
        at: CompileAt::Mediator,
        ..options()
    };
    let error = device.compile_module(SAXPY, &there).unwrap_err();
    assert!(matches!(error.cause(), Cause::NoCompiler { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(
        error
            .advice()
            .contains("install NVIDIA's run-time compiler"),
        "{}",
        error.advice()
    );
    // More than the protocol carries is refused before it is sent.
    let long = CompileOptions {
        name: "x".repeat(200),
        ..there.clone()
    };
    assert_eq!(
        device.compile_module(SAXPY, &long).unwrap_err().kind(),
        ErrorKind::Argument
    );
    let many = CompileOptions {
        headers: vec![Default::default(); 65],
        ..there.clone()
    };
    assert_eq!(
        device.compile_module(SAXPY, &many).unwrap_err().kind(),
        ErrorKind::Argument
    );
    let large = "x".repeat((1 << 20) + 1);
    assert_eq!(
        device.compile_module(&large, &there).unwrap_err().kind(),
        ErrorKind::Argument
    );
    // The session and its handles go on.
    device.alloc_zeros::<u8>(1).unwrap();
    device.synchronize().unwrap();
}

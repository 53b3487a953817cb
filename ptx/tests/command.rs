//! The command `vgpu-ptx`, used as in a script.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use vgpu_cli::testing::assert_documented;

/// The page that documents them.
const PAGE: &str = include_str!("../../docs/json.md");

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/corpus")
        .join(name)
}

/// A folder of its own for each test.
fn folder(name: &str) -> PathBuf {
    let f = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&f).unwrap();
    f
}

fn command(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vgpu-ptx"))
        .args(args)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_signal_ends_it_with_130_as_it_ends_other_programs() {
    let fifo = folder("signals").join("fifo");
    let _ = std::fs::remove_file(&fifo);
    let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    for signal in ["INT", "TERM", "HUP"] {
        let mut reading = Command::new(env!("CARGO_BIN_EXE_vgpu-ptx"))
            .arg("check")
            .arg(&fifo)
            .spawn()
            .unwrap();
        // Opened when it waits for what is in it.
        let _never_written = std::fs::File::create(&fifo).unwrap();
        let kill = format!("kill -{signal} {}", reading.id());
        let sent = Command::new("sh").args(["-c", &kill]).status().unwrap();
        assert!(sent.success());
        assert_eq!(reading.wait().unwrap().code(), Some(130), "{signal}");
    }
}

fn floats(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    bytes
        .chunks(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

#[test]
fn a_kernel_runs_from_files_to_files() {
    let f = folder("runs");
    let bytes: Vec<u8> = (0..100u16)
        .flat_map(|k| f32::from(k).to_le_bytes())
        .collect();
    let (x, y) = (f.join("x.f32"), f.join("y.f32"));
    std::fs::write(&x, &bytes).unwrap();
    let (x_arg, y_arg) = (
        format!("in:{}", x.display()),
        format!("inout:{}:{}", x.display(), y.display()),
    );
    let saxpy = file("saxpy.ptx");
    let out = command(&[
        "--json",
        "run",
        saxpy.to_str().unwrap(),
        "--entry",
        "saxpy",
        "--grid",
        "4",
        "--block",
        "32,1",
        "--arg",
        "f32:2.5",
        "--arg",
        &x_arg,
        "--arg",
        &y_arg,
        "--arg",
        "i32:100",
        "--deadline",
        "30",
    ]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let json = assert_documented(PAGE, &["warp_instructions"], &text(&out.stdout));
    assert_eq!(json["executor"], "cpu");
    assert!(json["device_ns"].as_u64().unwrap() > 0 && json["seconds"].as_f64().unwrap() > 0.0);
    let want: Vec<f32> = (0..100u16).map(|k| f32::from(k) * 3.5).collect();
    assert_eq!(floats(&y), want);
}

#[test]
fn arguments_that_do_not_fit_are_refused_before_anything_runs() {
    let saxpy = file("saxpy.ptx");
    let base = [
        "run",
        saxpy.to_str().unwrap(),
        "--entry",
        "saxpy",
        "--grid",
        "1",
        "--block",
        "32",
    ];
    let bad: [(&[&str], &str); 6] = [
        (&["f32:1"], "4 parameters, 1 arguments"),
        (
            &["f64:1", "zero:4", "zero:4", "i32:1"],
            "argument 0 has 8 bytes",
        ),
        (&["f32:1", "zero:4", "zero:4", "i32:x"], "'x' is no i32"),
        (&["f32:1", "zero:4", "zero:4", "q32:1"], "'q32' is none of"),
        (
            &["f32:1", "in:/nowhere", "zero:4", "i32:1"],
            "cannot read /nowhere",
        ),
        (
            &["f32:1", "zero:0", "zero:4", "i32:1"],
            "a buffer has at least one byte",
        ),
    ];
    for (args, why) in bad {
        let mut all = base.to_vec();
        for a in args {
            all.extend(["--arg", a]);
        }
        let out = command(&all);
        assert!(!out.status.success());
        assert!(
            text(&out.stderr).contains(why),
            "{args:?}: {}",
            text(&out.stderr)
        );
    }
}

#[test]
fn a_fault_is_named_with_its_number_and_nothing_is_written() {
    let f = folder("fault");
    let result = f.join("out.bin");
    let _ = std::fs::remove_file(&result);
    let out_arg = format!("out:{}:16", result.display());
    let faults = file("faults.ptx");
    let out = command(&[
        "run",
        faults.to_str().unwrap(),
        "--entry",
        "fault_write_far",
        "--grid",
        "1",
        "--block",
        "1",
        "--arg",
        &out_arg,
        "--arg",
        "i64:-1",
    ]);
    assert_eq!(out.status.code(), Some(1));
    let e = text(&out.stderr);
    assert!(
        e.contains("CUDA_ERROR_ILLEGAL_ADDRESS (700)")
            && e.contains("fault_write_far")
            && e.contains("line "),
        "{e}"
    );
    assert!(!result.exists());
}

#[test]
fn what_a_kernel_prints_is_printed() {
    let say = file("printf_assert.ptx");
    let out = command(&[
        "run",
        say.to_str().unwrap(),
        "--entry",
        "say",
        "--grid",
        "1",
        "--block",
        "3",
        "--workers",
        "1",
        "--arg",
        "i32:3",
    ]);
    assert!(out.status.success());
    assert!(text(&out.stdout).starts_with("thread 0 of 3:  0.00 text a 4294967296 % 0x1234 ff\n"));
}

#[test]
fn check_lists_kernels_and_what_is_not_supported() {
    let out = command(&["check", file("struct_params.ptx").to_str().unwrap()]);
    assert!(out.status.success());
    assert!(
        text(&out.stdout).contains("struct_large(") && text(&out.stdout).contains("registers"),
        "{}",
        text(&out.stdout)
    );
    let out = command(&[
        "--json",
        "check",
        file("triton/matmul.sm_90.ptx").to_str().unwrap(),
    ]);
    assert_eq!(out.status.code(), Some(1));
    let json = assert_documented(PAGE, &["kernels"], &text(&out.stdout));
    assert_eq!(json["kernels"][0]["supported"], false);
    assert!(
        json["kernels"][0]["reason"]
            .as_str()
            .unwrap()
            .contains("wgmma")
    );
    // With variables, and with kernels that run.
    for module in ["struct_params.ptx", "saxpy.ptx"] {
        let out = command(&["--json", "check", file(module).to_str().unwrap()]);
        assert_documented(PAGE, &["kernels"], &text(&out.stdout));
    }
    let out = command(&["check", "/nowhere.ptx"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("cannot read /nowhere.ptx"));
    assert!(text(&out.stderr).contains("\n help: "));
    let out = command(&["--json", "check", "/nowhere.ptx"]);
    assert_eq!(out.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(json["error"]["code"], 1);
    assert!(
        json["error"]["what"]
            .as_str()
            .unwrap()
            .contains("cannot read /nowhere.ptx")
    );
}

#[test]
fn what_makes_no_sense_is_status_2() {
    let saxpy = file("saxpy.ptx");
    for wrong in [
        ["--deadline", "0"],
        ["--deadline", "soon"],
        ["--workers", "0"],
        ["--grid", "1,1,1,1"],
        ["--arg", "i32:many"],
        ["--arg", "i32:1"],
    ] {
        let mut arguments = vec!["run", saxpy.to_str().unwrap(), "--entry", "saxpy"];
        arguments.extend(["--block", "1"]);
        if wrong[0] != "--grid" {
            arguments.extend(["--grid", "1"]);
        }
        arguments.extend(wrong);
        let out = command(&arguments);
        assert_eq!(out.status.code(), Some(2), "{wrong:?}");
    }
}

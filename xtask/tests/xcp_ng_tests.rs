//! `dist/xcp-ng-tests`, which makes the lab's suite tests of pytest, over a program that plays the suite.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

const TESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../dist/xcp-ng-tests");

/// Four cases, of which the suite reaches three.
const SUITE: &str = r#"#!/bin/sh
echo "suite: $*" >&2
case "$*" in
*--list*) printf 'a/passes\nb/lacks\nc/fails\nd/never-runs\n'; exit ;;
esac
echo '{"name":"a/passes","host":"h","result":"pass","seconds":1.0,"reason":""}'
echo '{"name":"b/lacks","host":"h","result":"skip","seconds":0.0,"reason":"guests may not be destroyed here"}'
echo '{"name":"c/fails","host":"h","result":"fail","seconds":0.1,"reason":"17 sums are wrong"}'
echo '{"passed":1,"failed":1,"skipped":1}'
exit 1
"#;

/// Python with pytest: the first in PATH, or Debian's.
fn python() -> Option<&'static str> {
    ["python3", "/usr/bin/python3"].into_iter().find(|python| {
        let asked = Command::new(python)
            .args(["-m", "pytest", "--version"])
            .output();
        asked.is_ok_and(|output| output.status.success())
    })
}

/// Runs pytest over the folder with a suite of this text.
fn pytest(python: &str, suite: &str, arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("suite");
    fs::write(&program, suite).expect("a file");
    fs::set_permissions(&program, Permissions::from_mode(0o755)).expect("its owner's");
    // By a shell: a program that was just written cannot be started while another test's child has it open.
    let command = format!("sh {}", program.display());
    Command::new(python)
        .args(["-B", "-m", "pytest", "-p", "no:cacheprovider", "-rA"])
        .args(arguments)
        .current_dir(TESTS)
        .env("VGPU_XTASK", command)
        .env("VGPU_PACKAGES", folder.path().join("none"))
        .env("VGPU_GUESTS", "192.0.2.3")
        .env_remove("VGPU_FILTER")
        .env_remove("VGPU_TREE")
        .output()
        .expect("python starts")
}

#[test]
fn each_case_is_a_test_with_the_suites_verdict() {
    let Some(python) = python() else {
        return test_skip::skipped("no pytest for python3 (package python3-pytest)");
    };
    assert!(Path::new(TESTS).join("conftest.py").is_file());
    let output = pytest(python, SUITE, &["--hosts=192.0.2.1", "--vm=192.0.2.2"]);
    let report = String::from_utf8_lossy(&output.stdout);
    for line in [
        "PASSED vgpu/test_lab.py::test_case[a/passes]",
        "guests may not be destroyed here",
        "FAILED vgpu/test_lab.py::test_case[c/fails]",
        "17 sums are wrong",
        "FAILED vgpu/test_lab.py::test_case[d/never-runs]",
        "the suite ended before this case",
        "2 failed, 1 passed, 1 skipped",
        "suite: lab --host root@192.0.2.1 --guest root@192.0.2.2 --guest root@192.0.2.3 test --json",
    ] {
        assert!(report.contains(line), "no `{line}` in {report}");
    }
}

#[test]
fn a_suite_that_does_not_run_passes_nothing() {
    let Some(python) = python() else {
        return test_skip::skipped("no pytest for python3 (package python3-pytest)");
    };
    let suite =
        "case \"$*\" in *--list*) echo a/case ;; *) echo 'no such host' >&2; exit 1 ;; esac";
    let output = pytest(python, suite, &["--hosts=192.0.2.1", "--vm=192.0.2.2"]);
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(
        report.contains("the suite did not run (status 1)"),
        "{report}"
    );
    assert!(report.contains("no such host"), "{report}");
    assert!(!output.status.success());
    let nowhere = pytest(python, suite, &[]);
    let report = String::from_utf8_lossy(&nowhere.stdout);
    assert!(report.contains("no host: give --hosts=ADDRESS"), "{report}");
    assert!(!nowhere.status.success());
}

/// The real suite's cases, as somebody sees them who collects only.
#[test]
fn the_real_cases_can_be_listed() {
    let Some(python) = python() else {
        return test_skip::skipped("no pytest for python3 (package python3-pytest)");
    };
    let xtask = env!("CARGO_BIN_EXE_xtask");
    let output = Command::new(python)
        .args(["-B", "-m", "pytest", "-p", "no:cacheprovider"])
        .args(["--collect-only", "-q"])
        .current_dir(TESTS)
        .env("VGPU_XTASK", xtask)
        .env_remove("VGPU_FILTER")
        .env_remove("VGPU_TREE")
        .output()
        .expect("python starts");
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{report}");
    assert!(
        report.contains("test_case[silo/guest-to-guest-channel]"),
        "{report}"
    );
}

//! The objects of `--json` have the names that docs/json.md says, and no others.

use std::fs;
use std::process::Output;

use serde_json::Value;
use vgpu_cli::testing::assert_documented;

use crate::support::{Mediator, add, run, stdout};

const PAGE: &str = include_str!("../../../docs/json.md");

#[track_caller]
fn assert_is_as_documented(output: &Output, by: &[&str]) -> Value {
    assert_documented(PAGE, by, &stdout(output))
}

#[test]
fn every_object_has_its_number_and_the_names_that_the_document_says() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mediatord.toml");
    fs::write(&file, "[worker]\nwarm_workers = 1\n").unwrap();
    let flags = ["--config", file.to_str().unwrap()];
    let mediator = Mediator::start(directory.path(), &flags);
    let mut client = mediator.connect().unwrap();
    add(&mut client, 1000).unwrap();
    let vgpuctl = |arguments: &[&str]| run(mediator.vgpuctl().arg("--json").args(arguments));
    assert_is_as_documented(&vgpuctl(&["status"]), &["uptime_s"]);
    assert_is_as_documented(&vgpuctl(&["doctor"]), &["checks"]);
    assert_is_as_documented(&vgpuctl(&["reload"]), &["changed"]);
    assert_is_as_documented(&vgpuctl(&["secret", "web-1"]), &["line"]);
    assert_is_as_documented(&vgpuctl(&["metrics"]), &["metrics"]);
    // `status` has these too.
    let top = ["guests", "sessions", "gpus"];
    let object = assert_is_as_documented(&vgpuctl(&["top", "--once"]), &top);
    assert_eq!(
        object["guests"][0]["guest_id"],
        object["sessions"][0]["guest_id"]
    );
    assert_is_as_documented(&vgpuctl(&["kick", "session:1"]), &["kicked"]);
    let nobody = vgpuctl(&["kick", "session:77"]);
    assert_eq!(nobody.status.code(), Some(1));
    assert_is_as_documented(&nobody, &["error"]);
    mediator.stop();
}

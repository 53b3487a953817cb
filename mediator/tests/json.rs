//! The objects of `--json` have the names that docs/json.md says, and no others.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::process::Output;

use serde_json::Value;
use support::{Mediator, add, run, stdout};

/// The examples of the document, in its order.
fn documented() -> Vec<Value> {
    let page = include_str!("../../docs/json.md");
    let parts = page.split("```json\n").skip(1);
    let examples = parts.map(|part| part.split("```").next().expect("it ends"));
    examples
        .map(|text| serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}")))
        .collect()
}

/// The document's example with this name in it.
fn example(name: &str) -> Value {
    let mut all = documented().into_iter();
    let found = all.find(|example| example.get(name).is_some());
    found.unwrap_or_else(|| panic!("{name} is in no example"))
}

/// The paths of all names in an object; elements of a list share one.
fn names(value: &Value, above: &str, all: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let path = format!("{above}.{name}");
                names(value, &path, all);
                all.insert(path);
            }
        }
        Value::Array(list) => list
            .iter()
            .for_each(|value| names(value, &format!("{above}[]"), all)),
        _ => {}
    }
}

fn assert_is_as_documented(output: &Output, by: &str) {
    let text = stdout(output);
    let line = text.strip_suffix('\n').expect("a whole line");
    assert!(!line.contains('\n'), "one line: {text}");
    let object: Value = serde_json::from_str(line).unwrap();
    assert!(line.starts_with("{\"schema\":1,"), "{line}");
    let (mut given, mut wanted) = (BTreeSet::new(), BTreeSet::new());
    names(&object, "", &mut given);
    names(&example(by), "", &mut wanted);
    // What may be left out, and what stands below that.
    for name in wanted.clone().iter().filter(|name| name.contains('?')) {
        wanted.remove(name);
        let name = name.replace('?', "");
        if given.contains(&name) {
            wanted.insert(name);
        }
    }
    assert_eq!(given, wanted, "{line}");
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
    assert_is_as_documented(&vgpuctl(&["status"]), "uptime_s");
    assert_is_as_documented(&vgpuctl(&["doctor"]), "checks");
    assert_is_as_documented(&vgpuctl(&["reload"]), "changed");
    assert_is_as_documented(&vgpuctl(&["secret", "web-1"]), "line");
    assert_is_as_documented(&vgpuctl(&["metrics"]), "metrics");
    // `guests` is in two examples; the one of `top` has no `version`.
    let top = vgpuctl(&["top", "--once"]);
    let object: Value = serde_json::from_slice(&top.stdout).unwrap();
    let (mut given, mut wanted) = (BTreeSet::new(), BTreeSet::new());
    names(&object, "", &mut given);
    let mut all = documented().into_iter();
    let of_top = all.find(|it| it.get("guests").is_some() && it.get("version").is_none());
    names(&of_top.unwrap(), "", &mut wanted);
    assert_eq!(given, wanted);
    assert_eq!(object["guests"][0]["id"], object["sessions"][0]["guest_id"]);
    assert_is_as_documented(&vgpuctl(&["kick", "session:1"]), "kicked");
    let nobody = vgpuctl(&["kick", "session:77"]);
    assert_eq!(nobody.status.code(), Some(1));
    assert_is_as_documented(&nobody, "error");
    mediator.stop();
}

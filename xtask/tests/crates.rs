//! What is published can be packed for crates.io, and comes with what its pages show.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Runs cargo and returns its standard output and error.
fn cargo(arguments: &[&str]) -> (String, String) {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(arguments)
        .args(["--locked", "--offline"])
        .current_dir(ROOT)
        .output()
        .expect("cargo starts");
    let errors = String::from_utf8(output.stderr).expect("cargo prints text");
    assert!(output.status.success(), "{errors}");
    let text = String::from_utf8(output.stdout).expect("cargo prints text");
    (text, errors)
}

/// The members of the workspace that are published, and the others.
fn members() -> (Vec<Value>, Vec<Value>) {
    let (metadata, _) = cargo(&["metadata", "--no-deps", "--format-version", "1"]);
    let mut metadata: Value = serde_json::from_str(&metadata).expect("JSON");
    let Value::Array(packages) = metadata["packages"].take() else {
        panic!("no packages");
    };
    // `publish = false` is a list without a registry.
    let members: (Vec<_>, Vec<_>) = packages
        .into_iter()
        .partition(|package| package["publish"].is_null());
    assert!(!members.0.is_empty() && !members.1.is_empty());
    members
}

fn name(package: &Value) -> &str {
    package["name"].as_str().expect("a name")
}

#[test]
fn what_is_published_is_described() {
    for package in members().0 {
        let name = name(&package);
        let manifest = Path::new(package["manifest_path"].as_str().expect("a path"));
        for file in ["README.md", "LICENSE-MIT", "LICENSE-APACHE"] {
            assert!(manifest.with_file_name(file).exists(), "{name}: {file}");
        }
        let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
        assert!(!text("description").is_empty(), "{name}");
        assert_eq!(text("readme"), "README.md", "{name}");
        let list = |key: &str| package[key].as_array().expect("a list").clone();
        // The registry's limits.
        assert!((1..=5).contains(&list("keywords").len()), "{name}");
        assert!((1..=5).contains(&list("categories").len()), "{name}");
        for word in list("keywords") {
            assert!(word.as_str().is_some_and(|word| word.len() <= 20), "{word}");
        }
    }
}

/// Without compiling what was packed.
#[test]
fn what_is_published_is_packed_without_a_warning() {
    let folder = tempfile::tempdir().expect("a folder");
    let target = folder.path().to_str().expect("UTF-8");
    let (published, others) = members();
    let mut arguments = vec!["package", "--workspace", "--no-verify", "--allow-dirty"];
    arguments.extend(["--target-dir", target]);
    for package in &others {
        arguments.extend(["--exclude", name(package)]);
    }
    let (_, errors) = cargo(&arguments);
    for line in errors.lines().filter(|line| line.starts_with("warning")) {
        // Tests that need this tree stay in it, with the programs that measure.
        let left_out = line.starts_with("warning: ignoring ")
            && line.ends_with(" is not included in the published package");
        assert!(left_out, "{errors}");
    }
    for package in published {
        let version = package["version"].as_str().expect("a version");
        let file = format!("package/{}-{version}.crate", name(&package));
        assert!(folder.path().join(&file).exists(), "{file}");
    }
}

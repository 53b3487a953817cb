//! Guests link only code under MIT OR Apache-2.0 with no dependency under the GPL.

use std::process::Command;

/// The packages of dom0's programs, and those built around them.
const GPL: &[&str] = &["vgpu-mediator", "xtask", "vgpu-fuzz-targets"];

fn cargo(arguments: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(arguments)
        .args(["--locked", "--offline"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("cargo starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).expect("cargo prints text")
}

/// The packages of the workspace, and the licence of each.
fn members() -> Vec<(String, String)> {
    let metadata = cargo(&["metadata", "--no-deps", "--format-version", "1"]);
    let metadata: serde_json::Value = serde_json::from_str(&metadata).expect("JSON");
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    metadata["packages"]
        .as_array()
        .expect("packages")
        .iter()
        .map(|package| (text(&package["name"]), text(&package["license"])))
        .collect()
}

/// The packages that `package` is built from, without tests: name, version, licence.
fn linked(package: &str) -> Vec<String> {
    let format = ["--prefix", "none", "--format", "{p}: {l}"];
    let tree = ["tree", "--edges", "normal,build", "--package", package];
    let lines = cargo(&[&tree[..], &format].concat());
    lines.lines().map(str::to_owned).collect()
}

/// Whether a licence offers a choice other than the GPL to those who link the code.
fn is_permissive(licence: &str) -> bool {
    licence
        .split(" OR ")
        .any(|choice| !choice.is_empty() && !choice.contains("GPL"))
}

#[test]
fn every_package_has_the_licence_of_its_side() {
    let members = members();
    assert!(
        GPL.iter()
            .all(|gpl| members.iter().any(|(name, _)| name == gpl))
    );
    for (name, licence) in members {
        let wanted = match GPL.contains(&name.as_str()) {
            true => "GPL-3.0-only",
            false => "MIT OR Apache-2.0",
        };
        assert_eq!(licence, wanted, "{name}");
    }
}

#[test]
fn nothing_below_a_guest_is_under_the_gpl() {
    for (name, _) in members() {
        if GPL.contains(&name.as_str()) {
            continue;
        }
        let linked = linked(&name);
        assert!(linked[0].starts_with(&name), "{linked:?}");
        for package in &linked {
            // A package that was listed before is marked.
            let package = package.trim_end_matches(" (*)");
            let (package, licence) = package.rsplit_once(": ").unwrap_or((package, ""));
            assert!(
                is_permissive(licence) && !package.starts_with("xenstore-rs "),
                "{name} links {package}, whose licence is {licence:?}"
            );
        }
    }
}

/// Otherwise the test above proves nothing.
#[test]
fn the_mediator_is_seen_to_link_xenstore_rs() {
    let linked = linked("vgpu-mediator");
    assert!(
        linked
            .iter()
            .any(|package| package.starts_with("xenstore-rs ") && package.contains("GPL-3.0")),
        "{linked:?}"
    );
}

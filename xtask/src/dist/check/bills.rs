//! Bills of materials, against what cargo says is built.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::output;
use crate::dist::Dist;
use crate::dist::programs::{LIBRARY_PACKAGE, PACKAGES};

/// Checks that each bill is one of its package, with a version and a licence for everything in it, and lists all
/// that cargo builds into the package's programs.
///
/// # Errors
/// It is not, or lacks something.
pub(super) fn complete(dist: &Dist) -> Result<()> {
    for (package, folder) in PACKAGES.into_iter().chain([LIBRARY_PACKAGE]) {
        let name = format!("{package}-{}.cdx.json", dist.version);
        let text = fs::read(dist.out.join(&name)).with_context(|| format!("reading {name}"))?;
        let bill: Value = serde_json::from_slice(&text).with_context(|| name.clone())?;
        let listed = components(&bill, package, &dist.version).with_context(|| name.clone())?;
        let built = built(&dist.source.join(folder), package)?;
        let missing: Vec<_> = built.difference(&listed).collect();
        ensure!(missing.is_empty(), "{name} lacks {missing:?}");
        ensure!(built.len() > 10, "{package} has only {} parts", built.len());
    }
    Ok(())
}

/// Name and version.
type Part = (String, String);

/// The components that a bill lists.
fn components(bill: &Value, package: &str, version: &str) -> Result<BTreeSet<Part>> {
    let format = [&bill["bomFormat"], &bill["metadata"]["component"]["name"]];
    ensure!(
        format == ["CycloneDX", package] && bill["metadata"]["component"]["version"] == version,
        "it is no CycloneDX of {package} {version}"
    );
    let components = bill["components"].as_array().context("no components")?;
    let text = |component: &Value, key: &str| -> Result<String> {
        let text = component[key].as_str();
        let text = text.with_context(|| format!("no {key} in {component}"))?;
        Ok(text.to_owned())
    };
    let part = |component: &Value| -> Result<Part> {
        text(component, "purl")?;
        let licences = component["licenses"].as_array();
        ensure!(
            licences.is_some_and(|licences| !licences.is_empty()),
            "no licence in {component}"
        );
        Ok((text(component, "name")?, text(component, "version")?))
    };
    components.iter().map(part).collect()
}

/// The packages that cargo builds for the one in this folder and into it, itself apart.
fn built(folder: &Path, package: &str) -> Result<BTreeSet<Part>> {
    let tree = output(
        Command::new("cargo")
            .args(["tree", "--quiet", "--locked", "--prefix", "none"])
            .args(["--edges", "normal,build", "--format", "{p}"])
            .current_dir(folder),
    )?;
    let mut built: BTreeSet<Part> = tree.lines().filter_map(part).collect();
    built.retain(|(name, _)| name != package);
    Ok(built)
}

/// Reads `name v1.2.3 (where it is from)`.
fn part(line: &str) -> Option<Part> {
    let mut words = line.split(' ');
    let (name, version) = (words.next()?, words.next()?.strip_prefix('v')?);
    Some((name.to_owned(), version.to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parts_are_read_out_of_cargos_tree() {
        let line = "thiserror-impl v2.0.21 (proc-macro) (*)";
        let wanted = ("thiserror-impl".to_owned(), "2.0.21".to_owned());
        assert_eq!(part(line), Some(wanted));
        assert_eq!(part(""), None);
    }

    #[test]
    fn a_bill_of_another_package_or_without_a_licence_is_refused() {
        let bill = |licences: Value| {
            json!({
                "bomFormat": "CycloneDX",
                "metadata": {"component": {"name": "x", "version": "1.0.0"}},
                "components": [
                    {"name": "y", "version": "2.0.0", "purl": "pkg:cargo/y", "licenses": licences}
                ],
            })
        };
        let good = bill(json!([{"expression": "MIT"}]));
        let wanted = BTreeSet::from([("y".to_owned(), "2.0.0".to_owned())]);
        assert_eq!(components(&good, "x", "1.0.0").unwrap(), wanted);
        assert!(components(&good, "z", "1.0.0").is_err());
        assert!(components(&good, "x", "1.0.1").is_err());
        assert!(components(&bill(json!([])), "x", "1.0.0").is_err());
    }
}

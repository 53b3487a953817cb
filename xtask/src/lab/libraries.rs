//! Finds the shared libraries that programs need, inside the unpacked packages.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The folders of libraries in Debian's packages.
const FOLDERS: &[&str] = &[
    "usr/lib/x86_64-linux-gnu",
    "lib/x86_64-linux-gnu",
    "lib64",
    "usr/lib64",
];

/// All libraries that `programs` need, directly or through each other: file name → file in `tree`.
///
/// # Errors
/// A library that no package of the lab has, with the program that needs it.
pub(crate) fn closure(tree: &Path, programs: &[PathBuf]) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut waiting = programs.to_vec();
    while let Some(file) = waiting.pop() {
        for name in needed(&file)? {
            if !seen.insert(name.clone()) {
                continue;
            }
            let Some(path) = find(tree, &name) else {
                bail!(
                    "{} needs {name}, which no package of the lab has\n  add it in packages.rs",
                    file.display()
                );
            };
            waiting.push(path.clone());
            found.insert(name, path);
        }
    }
    Ok(found)
}

/// The file of a library in the unpacked packages.
pub(crate) fn find(tree: &Path, name: &str) -> Option<PathBuf> {
    let file = FOLDERS
        .iter()
        .map(|f| tree.join(f).join(name))
        .find(|p| p.exists())?;
    file.canonicalize().ok()
}

/// The `NEEDED` entries of an ELF file; none for anything else.
fn needed(file: &Path) -> Result<Vec<String>> {
    let output = Command::new("readelf")
        .arg("-d")
        .arg(file)
        .env("LC_ALL", "C")
        .output()
        .context("running readelf")?;
    // 0x0000000000000001 (NEEDED)  Shared library: [libc.so.6]
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| line.contains("(NEEDED)"))
        .filter_map(|line| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned()))
        .collect())
}

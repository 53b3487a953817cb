//! The programs out of the packages that users install.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::project::{self, Program};
use crate::cargo::run;

/// The packages, and their programs that the lab uses.
const PACKAGES: &[(&str, &[&str])] = &[
    ("vchan", &["vchan"]),
    ("vgpu-guest", &["vgpu"]),
    ("vgpu-mediator", &["vgpu-mediatord", "vgpuctl"]),
];

/// `built` with the programs of the debs in `folder` in place of those of the same name. What no
/// package has, such as the tests' peers, stays.
///
/// # Errors
/// A package or a program in it is missing, or there are two versions of one.
pub(super) fn replace(mut built: Vec<Program>, folder: &Path) -> Result<Vec<Program>> {
    let unpacked = project::runs().join("packages");
    if unpacked.exists() {
        fs::remove_dir_all(&unpacked)?;
    }
    for (package, programs) in PACKAGES {
        let deb = deb(folder, package)?;
        let to = unpacked.join(package);
        fs::create_dir_all(&to)?;
        run(Command::new("dpkg-deb").arg("-x").args([&deb, &to]))?;
        eprintln!("lab: programs of {}", deb.display());
        for name in *programs {
            let file = to.join("usr/bin").join(name);
            ensure!(file.is_file(), "{} has no {name}", deb.display());
            let place = built.iter_mut().find(|program| program.name == *name);
            place
                .with_context(|| format!("the lab has no {name}"))?
                .file = file;
        }
    }
    Ok(built)
}

/// The one deb of a package in `folder`.
fn deb(folder: &Path, package: &str) -> Result<PathBuf> {
    let start = format!("{package}_");
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_some_and(|name| name.starts_with(&start) && name.ends_with("_amd64.deb")) {
            found.push(path);
        }
    }
    match (found.pop(), found.pop()) {
        (Some(deb), None) => Ok(deb),
        (None, _) => bail!(
            "{} has no deb of {package}\n  cargo xtask dist makes it",
            folder.display()
        ),
        (Some(_), Some(_)) => bail!(
            "{} has several debs of {package}\n  leave one there",
            folder.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_deb_of_a_package_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        assert!(deb(folder.path(), "vgpu").is_err());
        for name in [
            "vgpu_0.1.0-1_amd64.deb",
            "vgpu-x_0.1.0-1_amd64.deb",
            "vgpu_0.1.0.rpm",
        ] {
            fs::write(at(name), "").unwrap();
        }
        let found = deb(folder.path(), "vgpu").unwrap();
        assert_eq!(found, at("vgpu_0.1.0-1_amd64.deb"));
        fs::write(at("vgpu_0.2.0-1_amd64.deb"), "").unwrap();
        assert!(deb(folder.path(), "vgpu").is_err());
    }
}

//! The tools that this machine need not have, each in one fixed version, below target/.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::Dist;
use super::programs::{BUILT_IN, LIBRARY_PACKAGE, PACKAGES, check_paths, private_paths};
use crate::cargo::run;

/// The tool for bills of materials, and its version.
const CYCLONEDX: (&str, &str) = ("cargo-cyclonedx", "0.5.9");

/// The tools' folders.
#[derive(Debug)]
pub(super) struct Tools {
    /// Of the Python environment, whose paths end in the programs unless they are mapped.
    folder: PathBuf,
    /// Of what cargo installs.
    installed: PathBuf,
}

impl Tools {
    /// Installs the packages of `dist/requirements.txt`, unless that is done.
    ///
    /// # Errors
    /// Python or one of its packages cannot be installed.
    pub(super) fn install(folder: &Path) -> Result<Self> {
        let list = crate::workspace_root().join("dist/requirements.txt");
        let wanted = fs::read(&list).with_context(|| format!("reading {}", list.display()))?;
        let (python, done) = (folder.join("python"), folder.join("requirements.txt"));
        if fs::read(&done).ok().as_ref() != Some(&wanted) {
            eprintln!("dist: installing the tools of dist/requirements.txt");
            fs::create_dir_all(folder)?;
            run(Command::new("python3").args(["-m", "venv"]).arg(&python))?;
            run(Command::new(python.join("bin/pip"))
                .args(["install", "--quiet", "--disable-pip-version-check", "-r"])
                .arg(&list))?;
            fs::write(&done, wanted)?;
        }
        Ok(Self {
            folder: folder.to_owned(),
            installed: crate::cargo::target_dir().join("dist/tools"),
        })
    }

    /// The installed Python tool of this name.
    pub(super) fn python(&self, name: &str) -> PathBuf {
        self.folder.join("python/bin").join(name)
    }

    /// PATH with the tools in front.
    ///
    /// # Errors
    /// PATH cannot be put together.
    pub(super) fn path(&self) -> Result<std::ffi::OsString> {
        let now = std::env::var_os("PATH").unwrap_or_default();
        let mut all = vec![self.folder.join("python/bin"), self.installed.join("bin")];
        all.extend(std::env::split_paths(&now));
        Ok(std::env::join_paths(all)?)
    }

    /// Writes one bill of materials for each package with programs, and for the library.
    ///
    /// # Errors
    /// The tool cannot be installed, or fails.
    pub(super) fn bills_of_materials(&self, dist: &Dist) -> Result<()> {
        let (name, version) = CYCLONEDX;
        let program = self.installed.join("bin").join(name);
        if !program.exists() {
            eprintln!("dist: building {name} {version}");
            run(Command::new("cargo")
                .args(["install", "--quiet", "--locked", "--root"])
                .arg(&self.installed)
                .arg(format!("{name}@{version}")))?;
        }
        // It writes beside each Cargo.toml; the exported source is there for that.
        run(Command::new("cargo")
            .args(["cyclonedx", "--format", "json", "--quiet"])
            .current_dir(&dist.source)
            .env("PATH", self.path()?)
            .env("SOURCE_DATE_EPOCH", dist.epoch.to_string()))?;
        let private = private_paths(dist)?;
        let [source, ..] = &private;
        for (package, folder) in PACKAGES.into_iter().chain([LIBRARY_PACKAGE]) {
            let from = dist.source.join(folder).join(format!("{package}.cdx.json"));
            let to = dist
                .out
                .join(format!("{package}-{}.cdx.json", dist.version));
            let bill =
                fs::read_to_string(&from).with_context(|| format!("reading {}", from.display()))?;
            // The parts' references name the folder that they were built in.
            let bill = bill.replace(source, BUILT_IN);
            fs::write(&to, bill).with_context(|| format!("writing {}", to.display()))?;
            check_paths(&to, &private)?;
        }
        Ok(())
    }
}

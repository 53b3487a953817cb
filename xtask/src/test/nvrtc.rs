//! NVIDIA's compiler for the tests, which no Debian package has: from Python's package index.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cargo::{run, target_dir};
use crate::{apt, workspace_root};

/// The variable that names the library's folder.
pub(super) const VARIABLE: &str = "VGPU_NVRTC";

/// The package for pip: one version, by its hash. Nothing newer than the PTX that the `cpu` executor loads.
const PACKAGE: &str = "xtask/src/test/nvrtc.txt";

/// The folder of NVRTC for the tests, where the environment names none and it can be had.
pub(super) fn provide() -> Option<PathBuf> {
    if std::env::var_os(VARIABLE).is_some() {
        return None;
    }
    install()
        .inspect_err(|error| {
            eprintln!("no NVRTC for the tests, which skip what needs it: {error:#}");
        })
        .ok()
}

fn install() -> Result<PathBuf> {
    let folder = target_dir().join("nvrtc");
    let wanted = fs::read(workspace_root().join(PACKAGE)).context(PACKAGE)?;
    let (done, library) = (
        folder.join("installed.txt"),
        folder.join("nvidia/cuda_nvrtc/lib"),
    );
    if fs::read(&done).ok().as_ref() != Some(&wanted) {
        eprintln!("tests: fetching NVRTC (88 MB)");
        apt::ensure(&["python3-venv"])?;
        let _ = fs::remove_dir_all(&folder);
        let environment = folder.join("venv");
        run(Command::new("python3")
            .args(["-m", "venv"])
            .arg(&environment))?;
        pip(&environment, &folder)?;
        fs::write(&done, wanted)?;
    }
    ensure!(library.is_dir(), "{} is not there", library.display());
    Ok(library)
}

fn pip(environment: &Path, folder: &Path) -> Result<()> {
    run(Command::new(environment.join("bin/pip"))
        .args(["install", "--quiet", "--disable-pip-version-check"])
        .args(["--no-deps", "--require-hashes", "--target"])
        .arg(folder)
        .args(["--requirement", PACKAGE])
        .current_dir(workspace_root()))
}

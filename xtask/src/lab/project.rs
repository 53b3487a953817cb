//! The archive with the project's own programs: release builds of the command
//! line programs, test programs, and whatever a run wants to add.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::cpio::Archive;
use super::image;

/// Where all of it lies in dom0 and guests; it comes first in PATH there.
pub(crate) const FOLDER: &str = "opt/vgpu/bin";

/// Packages with programs that go into the lab.
const PACKAGES: &[&str] = &["vchan", "vgpu-guest", "vgpu-mediator"];

/// The root of this workspace.
pub(crate) fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_owned()
}

/// Builds the project's programs and gives their paths.
///
/// # Errors
/// The compiler's, which by then has said what is wrong on standard error.
pub(crate) fn build_programs() -> Result<Vec<PathBuf>> {
    eprintln!("lab: building the project's programs (release)");
    let mut arguments = vec!["build", "--release", "--bins"];
    for package in PACKAGES {
        arguments.extend(["--package", package]);
    }
    cargo_executables(&arguments)
}

/// Builds the integration test `name` of `package` and gives its executable.
pub(crate) fn build_test(package: &str, name: &str) -> Result<PathBuf> {
    eprintln!("lab: building test {name} of {package}");
    let arguments = [
        "test",
        "--release",
        "--no-run",
        "--package",
        package,
        "--test",
        name,
    ];
    let built = cargo_executables(&arguments)?;
    built
        .into_iter()
        .next()
        .with_context(|| format!("cargo built no test {name} of {package}"))
}

/// Runs cargo and gives the executables it reports, fresh or not.
fn cargo_executables(arguments: &[&str]) -> Result<Vec<PathBuf>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(arguments)
        .arg("--message-format=json-render-diagnostics")
        .current_dir(root())
        .stderr(Stdio::inherit())
        .output()
        .context("running cargo")?;
    if !output.status.success() {
        bail!("cargo {} failed", arguments.join(" "));
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| message.get("executable")?.as_str().map(PathBuf::from))
        .collect())
}

/// Writes the archive: each file under its own name, folders with what they
/// contain (one level).
pub(crate) fn archive(files: &[PathBuf]) -> Result<Vec<u8>> {
    let mut archive = Archive::new(Vec::new());
    archive.directory(FOLDER)?;
    for file in files {
        if file.is_dir() {
            for entry in fs::read_dir(file)? {
                let inner = entry?.path();
                if inner.is_file() {
                    add(&mut archive, &inner)?;
                }
            }
        } else {
            add(&mut archive, file)?;
        }
    }
    Ok(archive.finish()?)
}

fn add(archive: &mut Archive<Vec<u8>>, file: &Path) -> Result<()> {
    let name = file
        .file_name()
        .and_then(|n| n.to_str())
        .context("a file without a plain name")?;
    let content = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    archive.file(
        &format!("{FOLDER}/{name}"),
        image::permissions(file)?,
        &content,
    )?;
    Ok(())
}

//! The archive with the project's own programs: release builds of the command
//! line programs, test programs, and whatever a run wants to add.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::cpio::Archive;
use super::image;

/// The profile of the programs that are tried, here and in the lab: a release's code, built faster
/// (see the workspace's Cargo.toml).
pub(crate) const TRIED: &str = "lab-programs";

/// The profile of the programs that are measured.
pub(crate) const RELEASE: &str = "release";

/// Where all of it lies in dom0 and guests; it comes first in PATH there.
pub(crate) const FOLDER: &str = "opt/vgpu/bin";

/// Packages with programs that go into the lab.
pub(crate) const PACKAGES: &[&str] = &["vchan", "vchan-testing", "vgpu-guest", "vgpu-mediator"];

/// The programs of these packages: package, program.
const PROGRAMS: &[(&str, &str)] = &[
    ("vchan", "vchan"),
    ("vchan-testing", "vchan-testing"),
    ("vgpu-guest", "vgpu"),
    ("vgpu-mediator", "vgpu-mediatord"),
    ("vgpu-mediator", "vgpuctl"),
];

/// Test programs that run in the lab: package, test, name in the lab.
const TESTS: &[(&str, &str, &str)] = &[("xen-sys", "real_xen", "xen-sys-real-xen")];

/// The other end of the interoperability tests, on the stock libxenvchan.
const C_PEER: &str = "vchan-c-peer";

/// A client of the file protocol as people write it in C.
const GUIDE_CLIENT: &str = "guide_client";

/// Runs our scripts there.
const AGENT: &str = "lab-agent";

/// A file on its way into the lab.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// Its name there.
    pub(crate) name: String,
    pub(crate) file: PathBuf,
}

impl Program {
    /// A file that keeps its name.
    ///
    /// # Errors
    /// It has none, or none in UTF-8.
    pub(crate) fn of(file: PathBuf) -> Result<Self> {
        let name = file
            .file_name()
            .and_then(|n| n.to_str())
            .context("a file without a name")?;
        Ok(Program {
            name: name.to_owned(),
            file,
        })
    }
}

/// The root of this workspace.
pub(crate) fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_owned()
}

/// The folder for what is built.
pub(crate) fn target() -> PathBuf {
    let set = std::env::var_os("CARGO_TARGET_DIR");
    set.map_or_else(|| root().join("target"), |folder| root().join(folder))
}

/// Where the lab's runs keep their logs.
pub(crate) fn runs() -> PathBuf {
    target().join("lab")
}

/// Builds the command line programs of `packages`, and what runs our scripts there, with one of
/// cargo's profiles.
///
/// # Errors
/// The compiler's, which by then has said what is wrong on standard error.
pub(crate) fn build(packages: &[&str], profile: &str) -> Result<Vec<Program>> {
    eprintln!("lab: building the project's programs ({profile})");
    build_rust(packages, profile)
}

/// Builds what runs our scripts there.
///
/// # Errors
/// As [`build`].
pub(crate) fn build_agent(profile: &str) -> Result<Vec<Program>> {
    build_rust(&[], profile)
}

/// Builds what only the suite needs: test programs, the C peer and a client in C.
///
/// # Errors
/// As [`build`].
pub(crate) fn build_for_tests() -> Result<Vec<Program>> {
    let mut programs = Vec::new();
    for (package, test, name) in TESTS {
        eprintln!("lab: building test {test} of {package}");
        let arguments = [
            "build",
            "--profile",
            TRIED,
            "--package",
            package,
            "--test",
            test,
        ];
        // With this package cargo chooses the features that it has chosen above, and builds nothing anew.
        let beside = ["--package", "vchan-testing"];
        let built = cargo_executables(&[&arguments[..], &beside[..]].concat())?;
        let file = built.into_iter().next();
        programs.push(Program {
            name: (*name).to_owned(),
            file: file.with_context(|| format!("no test {test} was built"))?,
        });
    }
    programs.push(build_c_peer()?);
    programs.push(build_guide_client()?);
    Ok(programs)
}

/// All in one call of cargo: it keeps all processors busy to the end, and chooses the features of what
/// they depend on once for all.
fn build_rust(packages: &[&str], profile: &str) -> Result<Vec<Program>> {
    let mut arguments = vec!["build", "--profile", profile];
    arguments.extend(["--package", "xtask", "--bin", AGENT]);
    for (package, program) in PROGRAMS.iter().filter(|(p, _)| packages.contains(p)) {
        arguments.extend(["--package", package, "--bin", program]);
    }
    let built = cargo_executables(&arguments)?;
    built.into_iter().map(Program::of).collect()
}

pub(crate) fn build_c_peer() -> Result<Program> {
    eprintln!("lab: building {C_PEER} (C, stock libxenvchan)");
    let sources = ["vchan/tests/c-peer/peer.c", "vchan/tests/c-peer/bench.c"];
    build_c(C_PEER, &sources, &["-lxenvchan"])
        .with_context(|| format!("{C_PEER} needs cc and the package libxen-dev"))
}

/// Builds the client of the file protocol's two files.
fn build_guide_client() -> Result<Program> {
    build_c(GUIDE_CLIENT, &["file-transport/tests/guide_client.c"], &[])
        .with_context(|| format!("{GUIDE_CLIENT} needs cc"))
}

fn build_c(name: &str, sources: &[&str], libraries: &[&str]) -> Result<Program> {
    let folder = runs();
    fs::create_dir_all(&folder)?;
    let file = folder.join(format!("{name}-{}", std::process::id()));
    let status = Command::new("cc")
        .args(["-O2", "-Wall", "-Wextra", "-o"])
        .arg(&file)
        .args(sources)
        .args(libraries)
        .current_dir(root())
        .status()
        .context("running cc")?;
    if !status.success() {
        bail!("cc ended with {status}");
    }
    let last = folder.join(name);
    fs::rename(&file, &last)?;
    Ok(Program {
        name: name.to_owned(),
        file: last,
    })
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

/// Writes the archive. Symbols are left out, also those that debuggers do not need: they would be most
/// of it, and every guest is given all of it and unpacks it.
pub(crate) fn archive(programs: &[Program]) -> Result<Vec<u8>> {
    let mut archive = Archive::new(Vec::new());
    archive.directory(FOLDER)?;
    for Program { name, file } in programs {
        let content = stripped(file)?;
        archive.file(
            &format!("{FOLDER}/{name}"),
            image::permissions(file)?,
            &content,
        )?;
    }
    Ok(archive.finish()?)
}

/// A program without symbols. A panic still says where it was.
///
/// # Errors
/// It cannot be read.
pub(crate) fn stripped(file: &Path) -> Result<Vec<u8>> {
    let content = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    if !content.starts_with(b"\x7fELF") {
        return Ok(content);
    }
    let name = format!("vgpu-lab-strip-{}", std::process::id());
    let copy = std::env::temp_dir().join(name);
    let status = Command::new("strip")
        .args(["--strip-all", "-o"])
        .args([&copy, file])
        .status();
    let status = match status {
        // On a machine that only runs what was prepared elsewhere.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(content),
        status => status.context("running strip")?,
    };
    let result = fs::read(&copy);
    let _ = fs::remove_file(&copy);
    if !status.success() {
        return Ok(content); // a program that strip does not know runs all the same
    }
    Ok(result?)
}

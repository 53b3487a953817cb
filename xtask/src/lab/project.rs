//! The archive with the project's own programs: the command line programs, a test program, and
//! whatever a run wants to add.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

use super::cpio::Archive;
use super::image;
use crate::cargo::{Executable, executables};

/// The profile of the programs that are tested, here and in the lab: that of the tests, with its assertions,
/// so that `cargo xtask test` builds everything once.
const TESTED: &str = "dev";

/// The folder in [`target`] where cargo puts them.
pub(crate) const TESTED_FOLDER: &str = "debug";

/// Arguments of cargo that build them. With all packages and one of their tests cargo chooses the same features
/// of dependencies as for the tests, and builds nothing twice.
pub(crate) const BUILD_TESTED: &[&str] = &[
    "build",
    "--locked",
    "--workspace",
    "--bins",
    "--test",
    "real_xen",
];

/// The profile of the programs that are measured.
pub(crate) const RELEASE: &str = "release";

/// The folder of the programs in dom0 and guests, first in PATH there.
pub(crate) const FOLDER: &str = "opt/vgpu/bin";

/// Packages with programs that go into the lab.
pub(crate) const PACKAGES: &[&str] = &["vchan", "vchan-testing", "vgpu-guest", "vgpu-mediator"];

/// The programs of these packages: package, program.
const PROGRAMS: &[(&str, &str)] = &[
    ("vchan", "vchan"),
    ("old-linux", "old-linux"),
    ("vchan-testing", "vchan-testing"),
    ("vgpu-guest", "vgpu"),
    ("vgpu-mediator", "vgpu-mediatord"),
    ("vgpu-mediator", "vgpuctl"),
];

/// The test program that runs in the lab: its name for cargo, and there.
const TEST: (&str, &str) = ("real_xen", "xen-sys-real-xen");

/// The other end of the interoperability tests, on the stock libxenvchan.
const C_PEER: &str = "vchan-c-peer";

/// A client of the file protocol, written in C as users would.
const GUIDE_CLIENT: &str = "guide_client";

/// The program that runs our scripts there.
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

/// The folder for the logs of the lab's runs.
pub(crate) fn runs() -> PathBuf {
    target().join("lab")
}

/// Builds the command line programs that are tested, and the agent.
///
/// # Errors
/// The compiler's, which has printed the reason on standard error.
pub(crate) fn build_tested() -> Result<Vec<Program>> {
    eprintln!("lab: building the project's programs");
    let wanted = |program: &&Program| {
        program.name == AGENT || PROGRAMS.iter().any(|(_, name)| program.name == *name)
    };
    Ok(tested()?.iter().filter(wanted).cloned().collect())
}

/// The programs that [`BUILD_TESTED`] builds, from a single call of cargo: a second one would wait for a build that another
/// step has begun meanwhile.
fn tested() -> Result<&'static [Program]> {
    static BUILT: OnceLock<Vec<Program>> = OnceLock::new();
    if let Some(built) = BUILT.get() {
        return Ok(built);
    }
    let built = cargo_executables(BUILD_TESTED)?;
    Ok(BUILT.get_or_init(|| built))
}

/// Builds the command line programs of `packages` as in a release, and the agent.
///
/// # Errors
/// As [`build_tested`].
pub(crate) fn build_release(packages: &[&str]) -> Result<Vec<Program>> {
    eprintln!("lab: building the project's programs ({RELEASE})");
    build_rust(packages, RELEASE)
}

/// Builds the agent.
///
/// # Errors
/// As [`build_tested`].
pub(crate) fn build_agent() -> Result<Vec<Program>> {
    build_rust(&[], TESTED)
}

/// Builds the programs that only the suite needs: a test program, the C peer and a client in C.
///
/// # Errors
/// As [`build_tested`].
pub(crate) fn build_for_tests() -> Result<Vec<Program>> {
    let (test, name) = TEST;
    let test = tested()?.iter().find(|program| program.name == test);
    let test = test.context("cargo reports no test program for the lab")?;
    Ok(vec![
        Program {
            name: name.to_owned(),
            file: test.file.clone(),
        },
        build_c_peer()?,
        build_guide_client()?,
    ])
}

/// Builds in one call of cargo, which keeps all processors busy to the end and chooses the features
/// of dependencies once for all.
fn build_rust(packages: &[&str], profile: &str) -> Result<Vec<Program>> {
    let mut arguments = vec!["build", "--profile", profile];
    arguments.extend(["--package", "xtask", "--bin", AGENT]);
    for (package, program) in PROGRAMS.iter().filter(|(p, _)| packages.contains(p)) {
        arguments.extend(["--package", package, "--bin", program]);
    }
    cargo_executables(&arguments)
}

pub(crate) fn build_c_peer() -> Result<Program> {
    eprintln!("lab: building {C_PEER} (C, stock libxenvchan)");
    let sources = ["vchan/tests/c-peer/peer.c", "vchan/tests/c-peer/bench.c"];
    build_c(C_PEER, &sources, &["-lxenvchan"])
        .with_context(|| format!("{C_PEER} needs cc and the package libxen-dev"))
}

/// Builds the C client of the two-file protocol.
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

/// Runs cargo and returns the executables it reports, fresh or not, under cargo's names for them.
fn cargo_executables(arguments: &[&str]) -> Result<Vec<Program>> {
    let built = executables(arguments)?;
    let program = |Executable { name, file, .. }| Program { name, file };
    Ok(built.into_iter().map(program).collect())
}

/// Programs that no guest runs, so that none receives and unpacks them.
const DOM0_ALONE: &[&str] = &["old-linux", "vgpuctl"];

/// The last file that is unpacked. Where memory is too small for all, Linux only says so, and goes on with a program cut off.
const LAST_FILE: &str = "lab/unpacked";

/// The archives with the project's programs. Symbols are left out, even those that debuggers do not need: they would be
/// most of it.
pub(crate) struct Archives {
    /// For dom0 and for guests.
    pub(crate) guests: Vec<u8>,
    /// For dom0 besides.
    pub(crate) dom0: Vec<u8>,
}

impl Archives {
    /// # Errors
    /// A program cannot be read.
    pub(crate) fn of(programs: &[Program]) -> Result<Self> {
        let is_alone = |program: &&Program| DOM0_ALONE.contains(&program.name.as_str());
        let (alone, both): (Vec<_>, Vec<_>) = programs.iter().partition(is_alone);
        let mut guests = archive(&both)?;
        guests.file(LAST_FILE, 0o644, b"")?;
        Ok(Archives {
            guests: guests.finish()?,
            dom0: archive(&alone)?.finish()?,
        })
    }
}

fn archive(programs: &[&Program]) -> Result<Archive<Vec<u8>>> {
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
    Ok(archive)
}

/// A program without symbols. A panic still names its place.
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
        // On a machine that only runs prepared files.
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

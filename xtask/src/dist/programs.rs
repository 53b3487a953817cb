//! The programs and the library for C, built for glibc 2.17, with their debug information in separate files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::tools::Tools;
use super::{Dist, elf};
use crate::cargo::{executables, run};

/// The oldest glibc that the programs run with: 2.17, which CentOS 7 and so XCP-ng 8.3's dom0 have.
pub(super) const GLIBC_MINOR: u32 = 17;

/// A third of what LLVM inlines otherwise: a tenth of a program's size, and nothing that a session's round trips or
/// launches would show. Kernels on the processor are slower by a quarter to a third.
const INLINE_LESS: &str = "-Cllvm-args=-inline-threshold=70";

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Packages with programs for users, and their folders.
pub(super) const PACKAGES: [(&str, &str); 4] = [
    ("vchan", "vchan"),
    ("vgpu-guest", "guest"),
    ("vgpu-mediator", "mediator"),
    ("vgpu-ptx", "ptx"),
];

/// The package of the library for C, and its folder.
pub(super) const LIBRARY_PACKAGE: (&str, &str) = ("vgpu-c", "c-api");

/// The library, by the name that programs find it by.
pub(super) const LIBRARY: &str = "libvgpu.so.0";

/// The programs of all packages.
const PROGRAMS: [&str; 5] = ["vchan", "vgpu", "vgpu-mediatord", "vgpu-ptx", "vgpuctl"];

/// The folder that whatever names the source's folder names instead.
pub(super) const BUILT_IN: &str = "/build/vgpu";

/// Likewise for cargo's folder, with the sources of dependencies.
const CARGO_IN: &str = "/build/cargo";

/// Likewise for the folder with the source and the tools, which objects of C and of assembler name.
const ALL_IN: &str = "/build";

/// Limit on the size of a program or the library in bytes, without debug information.
const MAX_SIZE: u64 = 6_000_000;

/// The programs, the library and their debug files.
#[derive(Debug)]
pub(super) struct Programs {
    folder: PathBuf,
    debug: PathBuf,
}

impl Programs {
    /// The program `name`, or [`LIBRARY`].
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The debug file of the program `name`, or of [`LIBRARY`].
    fn debug_file(&self, name: &str) -> PathBuf {
        self.debug.join(format!("{name}.debug"))
    }

    /// The folder of the debug files.
    pub(super) fn debug(&self) -> &Path {
        &self.debug
    }

    /// All programs.
    pub(super) fn names() -> impl Iterator<Item = &'static str> {
        PROGRAMS.into_iter()
    }
}

/// The programs that the tests use, without the library.
///
/// # Errors
/// The build fails.
pub(super) fn tested(dist: &Dist) -> Result<Programs> {
    let programs = Programs {
        folder: dist.work.join("bin"),
        debug: dist.work.join("debug"),
    };
    fs::create_dir_all(&programs.folder)?;
    let built = executables(crate::lab::BUILD_TESTED)?;
    for name in Programs::names() {
        let program = built.iter().find(|it| it.name == name && !it.is_test);
        let program = program.with_context(|| format!("cargo reports no program {name}"))?;
        fs::copy(&program.file, programs.file(name))
            .with_context(|| format!("copying {}", program.file.display()))?;
    }
    Ok(programs)
}

/// Builds them and checks each.
///
/// # Errors
/// The build fails, or a program needs too much, is too large, or names a path of this machine.
pub(super) fn build(dist: &Dist, tools: &Tools) -> Result<Programs> {
    eprintln!("dist: building programs and library for glibc 2.{GLIBC_MINOR}");
    let built = dist.base.join("build");
    let cargo_home = cargo_home()?;
    // Paths of this machine would appear in panics' messages and debug information, and make the bytes
    // differ between folders.
    let flags = format!(
        "{INLINE_LESS} --remap-path-prefix={}={BUILT_IN} --remap-path-prefix={}={CARGO_IN}",
        dist.source.canonicalize()?.display(),
        cargo_home.display()
    );
    // The same for C and assembler. zig takes no flags for the parts of the C library that it compiles, but its clang
    // reads this.
    let of_clang = format!(
        "# +-ffile-prefix-map={}={ALL_IN} +-ffile-prefix-map={}={CARGO_IN}",
        dist.base.canonicalize()?.display(),
        cargo_home.display()
    );
    let of_programs: Vec<&str> = PACKAGES.iter().map(|(package, _)| *package).collect();
    // The library apart, or it would have the features of the guest library that the programs ask for.
    for (kind, packages) in [
        ("--bins", &of_programs[..]),
        ("--lib", &[LIBRARY_PACKAGE.0]),
    ] {
        let mut cargo = Command::new("cargo");
        cargo
            .args(["zigbuild", "--profile", "dist", "--locked", kind])
            .arg("--target")
            .arg(format!("{TARGET}.2.{GLIBC_MINOR}"))
            .current_dir(&dist.source)
            .env("PATH", tools.path()?)
            .env("CARGO_TARGET_DIR", &built)
            .env("CARGO_INCREMENTAL", "0")
            .env("RUSTFLAGS", &flags)
            .env("CCC_OVERRIDE_OPTIONS", &of_clang)
            // Of its own: what other builds have put into the user's names their folders.
            .env("ZIG_GLOBAL_CACHE_DIR", dist.base.join("zig"))
            .env("CARGO_ZIGBUILD_CACHE_DIR", dist.base.join("zigbuild"))
            .env("SOURCE_DATE_EPOCH", dist.epoch.to_string())
            .env("VGPU_COMMIT", &dist.commit)
            // Set by the cargo that started us.
            .env_remove("CARGO");
        for package in packages {
            cargo.args(["--package", package]);
        }
        run(&mut cargo)?;
    }
    let programs = Programs {
        folder: dist.work.join("bin"),
        debug: dist.work.join("debug"),
    };
    fs::create_dir_all(&programs.folder)?;
    fs::create_dir_all(&programs.debug)?;
    let private = private_paths(dist)?;
    let folder = built.join(TARGET).join("dist");
    let library = (LIBRARY, "libvgpu.so");
    for (name, file) in PROGRAMS
        .into_iter()
        .map(|name| (name, name))
        .chain([library])
    {
        split(&folder.join(file), &programs, name)?;
        let file = programs.file(name);
        elf::check_glibc(&file, GLIBC_MINOR)?;
        check_size(&file, MAX_SIZE)?;
        check_paths(&file, &private)?;
        check_paths(&programs.debug_file(name), &private)?;
    }
    Ok(programs)
}

fn cargo_home() -> Result<PathBuf> {
    let home = std::env::home_dir().context("no home folder")?;
    Ok(std::env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from))
}

/// The folders of this machine that nothing made may name.
///
/// # Errors
/// One is not there, or not in UTF-8.
pub(super) fn private_paths(dist: &Dist) -> Result<[String; 5]> {
    Ok([
        workspace_path(&dist.source)?,
        workspace_path(&dist.base)?,
        workspace_path(crate::workspace_root())?,
        workspace_path(&cargo_home()?)?,
        workspace_path(&sysroot()?)?,
    ])
}

/// The folder of the compiler, whose sources appear in panics' messages where they are installed.
fn sysroot() -> Result<PathBuf> {
    let output = Command::new("rustc")
        .args(["--print", "sysroot"])
        .output()
        .context("cannot start rustc")?;
    Ok(String::from_utf8(output.stdout)?.trim_end().into())
}

fn workspace_path(path: &Path) -> Result<String> {
    let path = path.canonicalize()?;
    path.to_str()
        .map(str::to_owned)
        .with_context(|| format!("{} is not UTF-8", path.display()))
}

/// Moves the debug information of `from` into a file of its own, with a link to it in the program.
fn split(from: &Path, programs: &Programs, name: &str) -> Result<()> {
    let debug = programs.debug_file(name);
    run(Command::new("objcopy")
        .arg("--only-keep-debug")
        .args([from, &debug]))?;
    let mut link = std::ffi::OsString::from("--add-gnu-debuglink=");
    link.push(&debug);
    run(Command::new("objcopy")
        .args(["--strip-all", "--remove-section=.comment"])
        .arg(link)
        .args([from, &programs.file(name)]))
}

fn check_size(program: &Path, max: u64) -> Result<()> {
    let size = fs::metadata(program)?.len();
    if size >= max {
        bail!(
            "{} has {size} bytes; at most {max} are meant",
            program.display()
        );
    }
    Ok(())
}

/// Fails if the file contains one of these paths.
///
/// # Errors
/// It does, or cannot be read.
pub(super) fn check_paths(program: &Path, private: &[String]) -> Result<()> {
    let bytes = fs::read(program)?;
    for path in private {
        let found = bytes.windows(path.len()).any(|at| at == path.as_bytes());
        if found {
            bail!("{} names {path}, a path of this machine", program.display());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_program_and_one_that_names_its_builder_are_refused() {
        let own = std::env::current_exe().expect("this program");
        assert!(check_size(&own, 1000).is_err());
        let root = crate::workspace_root().to_str().expect("UTF-8").to_owned();
        assert!(
            check_paths(&own, &[root]).is_err(),
            "a plain build names its folder"
        );
        check_paths(&own, &[]).expect("nothing to look for");
    }
}

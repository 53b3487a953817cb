//! `cargo xtask c-library`: `libvgpu.so.0` as C and C++ programs use it, against a mediator on this machine.

use std::ffi::OsString;
use std::fs;
use std::os::unix;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::cargo::run;
use crate::mediator::{self, Mediator};
use crate::sshfs::SKIPPED;
use crate::workspace_root;

/// Warnings that no program may have.
const STRICT: [&str; 4] = ["-pedantic", "-Wall", "-Wextra", "-Werror"];

const EXAMPLE: &str = "c-api/examples/saxpy.c";
const EXAMPLE_SAYS: &str = "100000 elements added and computed on ";

/// A program, the compiler and its flags, and how the output begins.
type Case = (&'static str, &'static [&'static str], &'static str);

const PINNED: &str = "c-api/examples/pinned.c";
const PINNED_SAYS: &str = "100000 elements scaled in place, on device 0 of 1\n";

const DEVICES: &str = "c-api/examples/devices.c";
const DEVICES_SAYS: &str = "1 devices\n0: ";

const CASES: [Case; 7] = [
    (EXAMPLE, &["cc", "-std=c99"], EXAMPLE_SAYS),
    (PINNED, &["cc", "-std=c99"], PINNED_SAYS),
    (DEVICES, &["cc", "-std=c99"], DEVICES_SAYS),
    (
        "c-api/tests/misuse.c",
        &["cc", "-std=c99"],
        "every misuse was told\n",
    ),
    (EXAMPLE, &["c++", "-x", "c++", "-std=c++11"], EXAMPLE_SAYS),
    (PINNED, &["c++", "-x", "c++", "-std=c++11"], PINNED_SAYS),
    (DEVICES, &["c++", "-x", "c++", "-std=c++11"], DEVICES_SAYS),
];

mod flags {
    #![allow(unreachable_pub, reason = "written by the xflags macro")]

    xflags::xflags! {
        /// Compiles C and C++ programs with libvgpu and runs them against a mediator on this machine.
        cmd c-library {}
    }
}

/// Runs `cargo xtask c-library`.
pub(crate) fn main(args: Vec<OsString>) -> Result<()> {
    flags::CLibrary::from_vec(args).unwrap_or_else(|error| crate::help_or_misuse(error));
    if !is_there("cc") {
        println!("SKIPPED: c-library: no C compiler `cc`; install gcc and libc6-dev");
        std::process::exit(SKIPPED);
    }
    let programs = mediator::build()?;
    let dir = std::env::temp_dir().join(format!("vgpu-c-library-{}", std::process::id()));
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let outcome = show(&programs, &dir);
    fs::remove_dir_all(&dir).ok();
    outcome
}

fn show(programs: &Path, dir: &Path) -> Result<()> {
    let prefix = dir.join("usr");
    install(&prefix, &build(programs)?)?;
    let flags = compiler_flags(&prefix)?;
    let endpoint = format!("local:{}", dir.join("vgpu.sock").display());
    let mut mediator = Mediator::start(programs, dir, &endpoint, &["--executor", "cpu"])?;
    mediator.wait_until_ready(programs, &endpoint)?;
    let mut passed = 0;
    for (source, compiler, says) in CASES {
        if !is_there(compiler[0]) {
            println!(
                "SKIPPED: c-library: no compiler `{}` for {source}; install g++",
                compiler[0]
            );
            continue;
        }
        let program = dir.join(format!("program-{passed}"));
        run(Command::new(compiler[0])
            .args(&compiler[1..])
            .args(STRICT)
            .arg(source)
            .arg("-pthread")
            .args(&flags)
            .arg("-o")
            .arg(&program)
            .current_dir(workspace_root()))?;
        let output = Command::new(&program)
            .arg(&endpoint)
            .env("LD_LIBRARY_PATH", dir.join("usr/lib"))
            .output()
            .with_context(|| format!("cannot start {source}'s program"))?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success() && said.starts_with(says),
            "{source} by {}: {}\n{said}{}\n{}",
            compiler[0],
            output.status,
            String::from_utf8_lossy(&output.stderr),
            mediator.log()
        );
        println!(
            "c-library: {source} by {}: {}",
            compiler[0],
            said.trim_end()
        );
        passed += 1;
    }
    mediator.stop()?;
    println!(
        "{passed} passed, 0 failed, {} skipped",
        CASES.len() - passed
    );
    Ok(())
}

/// Builds the library beside the programs, with the same features of dependencies.
fn build(programs: &Path) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let build = "build --locked --workspace --lib --test real_xen";
    run(Command::new(cargo)
        .args(build.split(' '))
        .current_dir(workspace_root()))?;
    Ok(programs.join("libvgpu.so"))
}

/// Lays library, header and the file for pkg-config out below `prefix`, as they are installed.
fn install(prefix: &Path, library: &Path) -> Result<()> {
    let c_api = workspace_root().join("c-api");
    let (lib, include) = (prefix.join("lib"), prefix.join("include"));
    fs::create_dir_all(lib.join("pkgconfig"))?;
    fs::create_dir(&include)?;
    fs::copy(c_api.join("include/vgpu.h"), include.join("vgpu.h"))?;
    fs::copy(library, lib.join("libvgpu.so.0"))
        .with_context(|| format!("cannot copy {}", library.display()))?;
    unix::fs::symlink("libvgpu.so.0", lib.join("libvgpu.so"))?;
    let Some(prefix) = prefix.to_str() else {
        bail!("{} is not UTF-8", prefix.display());
    };
    let description = fs::read_to_string(c_api.join("vgpu.pc.in"))?
        .replace("@PREFIX@", prefix)
        .replace("@LIBDIR@", "lib")
        .replace("@VERSION@", env!("CARGO_PKG_VERSION"));
    fs::write(lib.join("pkgconfig/vgpu.pc"), description)?;
    Ok(())
}

/// The flags for a program with the library: pkg-config's answer, where there is one.
fn compiler_flags(prefix: &Path) -> Result<Vec<String>> {
    if !is_there("pkg-config") {
        println!("SKIPPED: c-library: no `pkg-config` to read vgpu.pc; install pkg-config");
        let [include, lib] = ["include", "lib"].map(|folder| prefix.join(folder));
        let path = |flag: &str, folder: &Path| format!("{flag}{}", folder.display());
        return Ok(vec![
            path("-I", &include),
            path("-L", &lib),
            "-lvgpu".into(),
        ]);
    }
    let asked = Command::new("pkg-config")
        .args(["--cflags", "--libs", "vgpu"])
        .env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"))
        .output()
        .context("cannot start pkg-config")?;
    let errors = String::from_utf8_lossy(&asked.stderr);
    ensure!(asked.status.success(), "pkg-config: {errors}");
    let flags = String::from_utf8_lossy(&asked.stdout);
    Ok(flags.split_whitespace().map(str::to_owned).collect())
}

/// Whether this program is on the machine.
fn is_there(program: &str) -> bool {
    let asked = Command::new(program).arg("--version").output();
    asked.is_ok_and(|output| output.status.success())
}

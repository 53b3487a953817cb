//! The debug files, as debuggers find them: by name and checksum, beside the program.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::output;
use crate::dist::Dist;
use crate::dist::programs::BUILT_IN;

/// Unpacks both tarballs and has `addr2line` name lines of the source for functions of each program and the library.
///
/// # Errors
/// It cannot, or can without the debug file.
pub(super) fn are_found(dist: &Dist) -> Result<()> {
    let folder = dist.work.join("debug-files");
    fs::create_dir_all(&folder)?;
    let tarball = format!("vgpu-{}-x86_64-linux-gnu", dist.version);
    for name in [tarball.clone(), format!("{tarball}-debug")] {
        output(
            Command::new("tar")
                .arg("-xJf")
                .arg(dist.out.join(format!("{name}.tar.xz")))
                .arg("-C")
                .arg(&folder),
        )?;
    }
    let debug = folder.join("debug");
    let unpacked = folder.join(format!("vgpu-{}", dist.version));
    let mut programs = 0;
    for entry in fs::read_dir(&debug)? {
        let debug_file = entry?.path();
        let name = debug_file.file_stem().context("a name")?;
        let program = ["bin", "lib"].map(|part| unpacked.join(part).join(name));
        let program = program.iter().find(|path| path.exists());
        let program = program.with_context(|| format!("no program of {}", debug_file.display()))?;
        let addresses = functions(&debug_file)?;
        ensure!(
            !knows_lines(program, &addresses)?,
            "{} has lines without its debug file: this shows nothing",
            program.display()
        );
        let beside = debug_file.file_name().context("a name")?;
        fs::copy(&debug_file, program.with_file_name(beside))?;
        ensure!(
            knows_lines(program, &addresses)?,
            "{} is not found by addr2line",
            debug_file.display()
        );
        programs += 1;
    }
    ensure!(programs > 0, "no debug files");
    Ok(())
}

/// Addresses of some functions of this project.
fn functions(debug_file: &Path) -> Result<Vec<String>> {
    let symbols = output(
        Command::new("nm")
            .args(["--demangle", "--defined-only"])
            .arg(debug_file),
    )?;
    let own = symbols.lines().filter_map(|line| {
        let (address, symbol) = line.split_once(' ')?;
        let name = symbol
            .strip_prefix(['t', 'T'])?
            .trim_start_matches([' ', '<']);
        // Not those of the standard library for types of this project: their lines are its own.
        (name.starts_with("vgpu") || name.starts_with("vchan")).then(|| address.to_owned())
    });
    Ok(own.take(1000).collect())
}

/// Whether addr2line names lines of this project's source for some of them.
fn knows_lines(program: &Path, addresses: &[String]) -> Result<bool> {
    let lines = output(
        Command::new("addr2line")
            .arg("-e")
            .arg(program)
            .args(addresses),
    )?;
    Ok(lines.lines().any(|line| line.starts_with(BUILT_IN)))
}

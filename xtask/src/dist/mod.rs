//! `cargo xtask dist`: the files that users install, built reproducibly: the same bytes in any folder.
//!
//! Programs for every C library from glibc 2.17 on (the one of XCP-ng's dom0), manual pages and
//! completions that the programs print themselves, packages (deb and rpm) of mediator, guest, the
//! command `vchan` and the library for C, a tarball, debug files apart, a bill of materials, and SHA256SUMS over all.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cargo::{run, target_dir};
use crate::{apt, workspace_root};

mod archive;
mod check;
mod elf;
mod packages;
mod pages;
mod programs;
mod tools;

mod flags {
    #![allow(unreachable_pub, reason = "written by the xflags macro")]

    use std::path::PathBuf;

    xflags::xflags! {
        /// Makes packages, a tarball, pages, a bill of materials and checksums.
        cmd dist {
            /// Where to put them (default: target/dist/out).
            optional --out DIR: PathBuf
            /// Also from a tree with changes that are not committed; for trying things.
            optional --dirty
            /// Leave out the bill of materials, whose tool takes minutes to build.
            optional --no-sbom
            /// Then install, upgrade and remove the packages in file systems of their own.
            optional --check
            /// Then make all of it again in another folder, and compare every byte.
            optional --reproduce
            /// Make nothing: check pages, paths in documents and the unit, with the programs of the tests.
            optional --plain
        }
    }
}

/// The paths and settings of one run.
#[derive(Debug)]
struct Dist {
    /// The folder of everything below, but for `out`, and of the tools.
    base: PathBuf,
    /// The source as it is committed.
    source: PathBuf,
    /// The folder for intermediate files.
    work: PathBuf,
    out: PathBuf,
    version: String,
    /// The commit, as programs say it.
    commit: String,
    /// Commit time of the source, in seconds since 1970: the time stamp of all files made.
    epoch: u64,
}

pub(crate) fn main(args: Vec<OsString>) -> Result<()> {
    let flags = flags::Dist::from_vec(args).unwrap_or_else(|error| crate::help_or_misuse(error));
    if flags.plain {
        return plain();
    }
    apt::ensure(&["python3-venv", "binutils", "xz-utils"])?;
    if flags.check {
        apt::ensure(check::INSTALLED)?;
    }
    let bills = !flags.no_sbom;
    let dist = Dist::prepare(target_dir().join("dist"), flags.out, flags.dirty)?;
    let tools = make(&dist, bills)?;
    if flags.check {
        check::run_all(&dist, &tools, bills)?;
    }
    if flags.reproduce {
        reproduce(&dist, flags.dirty, bills)?;
    }
    println!("all of it is in {}", dist.out.display());
    Ok(())
}

/// Makes everything, bills of materials only if wanted.
fn make(dist: &Dist, bills: bool) -> Result<tools::Tools> {
    let tools = tools::Tools::install(&dist.base.join("tools"))?;
    let programs = programs::build(dist, &tools)?;
    let pages = pages::write(dist, &programs)?;
    packages::make(dist, &tools, &programs, &pages)?;
    archive::make(dist, &programs, &pages)?;
    if bills {
        tools.bills_of_materials(dist)?;
    }
    checksums(&dist.out)?;
    Ok(tools)
}

/// Makes everything again, with tools and caches of its own, where no path is as long as in `first`.
fn reproduce(first: &Dist, dirty: bool, bills: bool) -> Result<()> {
    let base = target_dir().join("dist-again/in/a/deeper/folder");
    if base.exists() {
        fs::remove_dir_all(&base)?;
    }
    let second = Dist::prepare(base, None, dirty)?;
    make(&second, bills)?;
    let sums = |dist: &Dist| fs::read_to_string(dist.out.join("SHA256SUMS"));
    let (one, other) = (sums(first)?, sums(&second)?);
    let differ: Vec<&str> = one.lines().filter(|l| !other.contains(l)).collect();
    if one != other {
        bail!(
            "not the same in {}:\n{}",
            second.out.display(),
            differ.join("\n")
        );
    }
    println!("PASS packages/reproducible");
    fs::remove_dir_all(&second.base)?;
    Ok(())
}

/// Checks what needs no package, on the files as the debs would install them.
fn plain() -> Result<()> {
    apt::ensure(check::INSTALLED_PLAIN)?;
    let base = target_dir().join("dist/plain");
    let dist = Dist {
        base: base.clone(),
        source: workspace_root().to_owned(),
        work: base.clone(),
        out: base,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: String::new(),
        epoch: 0,
    };
    if dist.work.exists() {
        fs::remove_dir_all(&dist.work)?;
    }
    let programs = programs::tested(&dist)?;
    let pages = pages::write(&dist, &programs)?;
    let root = dist.work.join("root");
    let installed = packages::lay_out(&dist, &programs, &pages, &root)?;
    check::run_plain(&dist, &root, &installed)
}

impl Dist {
    /// Empties the folders and exports the source.
    fn prepare(base: PathBuf, out: Option<PathBuf>, dirty: bool) -> Result<Self> {
        let changes = git(&["status", "--porcelain"])?;
        if !changes.is_empty() && !dirty {
            bail!(
                "there are changes that are not committed:\n{changes}commit them, or give --dirty"
            );
        }
        let (source, work) = (base.join("source"), base.join("work"));
        let out = out.unwrap_or_else(|| base.join("out"));
        for folder in [&source, &work, &out] {
            if folder.exists() {
                fs::remove_dir_all(folder)
                    .with_context(|| format!("removing the old {}", folder.display()))?;
            }
            fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        }
        export(&source, dirty)?;
        let mut commit = git(&["rev-parse", "--short=12", "HEAD"])?.trim().to_owned();
        if !changes.is_empty() {
            commit.push_str(", changed");
        }
        Ok(Self {
            base,
            source,
            work,
            out: out.canonicalize()?,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit,
            epoch: git(&["log", "-1", "--format=%ct"])?.trim().parse()?,
        })
    }

    /// A file of the source for packages.
    fn packaging(&self, name: &str) -> PathBuf {
        self.source.join("dist").join(name)
    }
}

/// Copies the source to `to`: the committed files, or with `dirty` the working tree without the
/// files that git ignores.
fn export(to: &Path, dirty: bool) -> Result<()> {
    let root = workspace_root();
    let list = match dirty {
        true => "git ls-files -z --cached --others --exclude-standard | tar --null -T - -c",
        false => "git archive HEAD",
    };
    let script = format!("set -o pipefail; {list} | tar -x -C \"$1\"");
    run(Command::new("bash")
        .args(["-c", &script, "bash"])
        .arg(to)
        .current_dir(root))
}

fn git(args: &[&str]) -> Result<String> {
    let output = Command::new("git")
        .args(args)
        .current_dir(workspace_root())
        .output()
        .context("cannot start git")?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        bail!("git {}: {}", args.join(" "), why.trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Writes SHA256SUMS over all files of `folder`.
fn checksums(folder: &Path) -> Result<()> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.push(entry?.file_name());
    }
    names.sort();
    let output = Command::new("sha256sum")
        .arg("--")
        .args(&names)
        .current_dir(folder)
        .output()
        .context("cannot start sha256sum")?;
    if !output.status.success() {
        bail!("sha256sum: {}", String::from_utf8_lossy(&output.stderr));
    }
    fs::write(folder.join("SHA256SUMS"), output.stdout)?;
    Ok(())
}

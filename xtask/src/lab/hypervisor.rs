//! Builds a hypervisor with a security module from Debian's source package: Debian's own has none.
//!
//! Only the hypervisor is built; tools and libraries stay Debian's. The build is cached by the
//! version of the package and the options below, and takes minutes once.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::packages::{Packages, fnv1a, run};
use crate::apt;

/// The security module that the hypervisor runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Xsm {
    /// None, as Debian builds Xen: domains may reach each other.
    #[default]
    None,
    /// SILO, XCP-ng's default: a guest reaches dom0 and no other guest.
    Silo,
}

impl std::str::FromStr for Xsm {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "none" => Ok(Xsm::None),
            "silo" => Ok(Xsm::Silo),
            _ => bail!("unknown security module `{text}`\n  it is `silo` or `none`"),
        }
    }
}

/// Prints the hypervisor's security module, in dom0: by the command line, else by the configuration that it was
/// built with, else by its messages, the first of which may be gone by then.
pub(crate) const RUNNING: &str = r#"
words=$(xl info xen_commandline) || exit
case " $words " in
*" xsm=silo "*) echo silo; exit ;;
*" xsm="*) echo none; exit ;;
esac
config=$(xenhypfs cat /buildinfo/config 2>/dev/null) || config=$(xl dmesg)
case $config in
*CONFIG_XSM_SILO_DEFAULT=y* | *"XSM SILO"*) echo silo ;;
*) echo none ;;
esac"#;

/// XCP-ng's options of the security modules, in both of its release lines (its package `xen`,
/// `buildconfigs/config-release`). Everything else is as Debian configures it.
const SILO: &str = "CONFIG_XSM=y\n# CONFIG_XSM_FLASK is not set\nCONFIG_XSM_SILO=y\n\
                    CONFIG_XSM_SILO_DEFAULT=y\n";

/// The programs that unpack the source package and build the hypervisor.
const BUILD_PACKAGES: &[&str] = &["bison", "dpkg-dev", "flex", "gcc", "make", "python3"];

/// Object files between two signs of progress; there are about 500.
const SIGN_OF_PROGRESS: usize = 100;

/// The hypervisor with SILO, built if it is not in the cache.
///
/// # Errors
/// No mirror of this machine has Xen's source, or it does not build.
pub(crate) fn with_silo(cache: &Path, packages: &Packages) -> Result<PathBuf> {
    let config = debian_config(&packages.tree)? + SILO;
    let key = fnv1a(format!("{} {config}", packages.xen).as_bytes());
    let folder = cache.join(format!("hypervisor-{key:016x}"));
    let xen = folder.join("xen");
    if xen.is_file() {
        return Ok(xen);
    }
    apt::ensure(BUILD_PACKAGES)?;
    // As in `packages.rs`: renamed when complete.
    let work = cache.join(format!("building-xen-{}", std::process::id()));
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(work.join("done"))?;
    let outcome = build_in(&work, &packages.xen, &config);
    let moved = outcome.is_err() || fs::rename(work.join("done"), &folder).is_ok();
    let _ = fs::remove_dir_all(&work);
    outcome?;
    ensure!(
        moved || xen.is_file(),
        "could not move the hypervisor to {}",
        folder.display()
    );
    Ok(xen)
}

/// The configuration of Debian's build, which is beside the hypervisor in its package.
fn debian_config(tree: &Path) -> Result<String> {
    let file = tree.join("boot/xen-4.17-amd64.config");
    let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    Ok(text.replace("# CONFIG_XSM is not set\n", ""))
}

fn build_in(work: &Path, version: &str, config: &str) -> Result<()> {
    let (version, tree) = source(work, version)?;
    let xen = tree.join("xen");
    fs::write(xen.join(".config"), config)?;
    let mut olddefconfig = make(&xen);
    run(olddefconfig.arg("olddefconfig"))?;
    // Kconfig drops what it does not know without a word.
    let made = fs::read_to_string(xen.join(".config"))?;
    for line in SILO.lines() {
        ensure!(
            line.starts_with('#') || made.lines().any(|l| l == line),
            "Xen {version} does not take {line}"
        );
    }
    compile(&xen, &work.join("build.log"), &version)?;
    let done = work.join("done");
    fs::copy(xen.join("xen"), done.join("xen")).context("the hypervisor")?;
    fs::write(done.join("config"), made)?;
    fs::write(done.join("version"), version)?;
    Ok(())
}

/// `make` in the hypervisor's folder, which yields to everything else on this machine.
fn make(xen: &Path) -> Command {
    let mut make = Command::new("nice");
    make.args(["-n", "5", "make", "XEN_TARGET_ARCH=x86_64"])
        .current_dir(xen);
    // Flags meant for cargo's or this machine's own programs break a hypervisor.
    for name in ["CFLAGS", "LDFLAGS", "MAKEFLAGS", "MAKELEVEL"] {
        make.env_remove(name);
    }
    make
}

fn compile(xen: &Path, log: &Path, version: &str) -> Result<()> {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    eprintln!("lab: building Xen {version} with SILO ({jobs} at a time, some minutes)");
    let mut log_file = File::create(log)?;
    let mut child = make(xen)
        .args([&format!("-j{jobs}"), "build"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log_file.try_clone()?)
        .spawn()
        .context("starting make")?;
    let mut compiled = 0;
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).split(b'\n') {
            let line = line?;
            log_file.write_all(&line)?;
            log_file.write_all(b"\n")?;
            if line.trim_ascii_start().starts_with(b"CC ") {
                compiled += 1;
                if compiled % SIGN_OF_PROGRESS == 0 {
                    eprintln!("lab: {compiled} files of Xen compiled");
                }
            }
        }
    }
    let status = child.wait()?;
    if !status.success() {
        let text = String::from_utf8_lossy(&fs::read(log)?).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        bail!(
            "Xen does not build ({status}):\n{}",
            lines[lines.len().saturating_sub(15)..].join("\n")
        );
    }
    Ok(())
}

/// Fetches and unpacks the source package; returns its version and its folder.
fn source(work: &Path, wanted: &str) -> Result<(String, PathBuf)> {
    eprintln!("lab: fetching the source of Xen {wanted}");
    let lists = work.join("lists");
    fs::create_dir_all(lists.join("partial"))?;
    let sources = work.join("sources.list");
    fs::write(&sources, source_lines()?)?;
    let apt = |program: &str| {
        let mut apt = Command::new(program);
        apt.args(["-q", "-o", "Dir::Etc::sourceparts=/dev/null"])
            .args(["-o", "Dir::Cache::pkgcache=", "-o"])
            .args(["Dir::Cache::srcpkgcache=", "-o"])
            .arg(format!("Dir::Etc::sourcelist={}", sources.display()))
            .arg("-o")
            .arg(format!("Dir::State::lists={}", lists.display()))
            .current_dir(work);
        apt
    };
    run(apt("apt-get").arg("update"))?;
    let shown = run(apt("apt-cache").args(["showsrc", "xen"]))?;
    // Mirrors without the sources of security updates exist; any source of the same series serves.
    let mut versions = vec![wanted];
    let listed = shown.lines().filter_map(|l| l.strip_prefix("Version: "));
    versions.extend(listed.filter(|v| *v != wanted && v.starts_with("4.17.")));
    let mut failure = None;
    for (at, version) in versions.into_iter().enumerate() {
        // What a failure leaves there is not unpacked.
        let files = work.join(format!("source-{at}"));
        fs::create_dir(&files)?;
        let mut get = apt("apt-get");
        get.args(["source", "--download-only", &format!("xen={version}")])
            .current_dir(&files);
        match run(&mut get) {
            Ok(_) => {
                if version != wanted {
                    eprintln!("lab: no mirror has that; taking the source of Xen {version}");
                }
                return Ok((version.to_owned(), unpack(&files)?));
            }
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.context("no version of Xen's source is listed")?)
        .context("cannot fetch Xen's source")
}

/// Unpacks the one source package in `files`, Debian's patches applied.
fn unpack(files: &Path) -> Result<PathBuf> {
    let dsc = fs::read_dir(files)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|file| file.extension().is_some_and(|e| e == "dsc"))
        .context("apt-get left no .dsc file")?;
    let tree = files.join("tree");
    // apt has checked the files against its signed lists.
    run(Command::new("dpkg-source")
        .args(["--no-check", "-x"])
        .arg(dsc)
        .arg(&tree))?;
    Ok(tree)
}

/// A `deb-src` line for each of Debian's lists that this machine already has for binary packages.
fn source_lines() -> Result<String> {
    let mut print = Command::new("apt-get");
    print.args(["indextargets", "--format"]).args([
        "$(ORIGIN) $(COMPONENT) $(REPO_URI) $(RELEASE)",
        "Created-By: Packages",
    ]);
    let mut lines: Vec<String> = run(&mut print)?
        .lines()
        .filter_map(|line| line.strip_prefix("Debian main "))
        .map(|place| format!("deb-src {place} main\n"))
        .collect();
    lines.sort();
    lines.dedup();
    ensure!(
        !lines.is_empty(),
        "this machine has no package lists of Debian's\n  the lab needs Debian 12's"
    );
    Ok(lines.concat())
}

#[cfg(test)]
mod tests {
    use super::Xsm;

    #[test]
    fn the_flag_has_two_values() {
        assert_eq!("silo".parse::<Xsm>().unwrap(), Xsm::Silo);
        assert_eq!("none".parse::<Xsm>().unwrap(), Xsm::None);
        let error = "flask".parse::<Xsm>().unwrap_err().to_string();
        assert!(error.contains("`silo`"));
    }
}

//! The tarballs: programs with pages and configuration and the library for C, and the debug files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::Dist;
use super::packages::pkg_config;
use super::pages::Pages;
use super::programs::{LIBRARY, Programs};
use crate::cargo::run;

/// Makes both.
///
/// # Errors
/// A file cannot be copied, or tar fails.
pub(super) fn make(dist: &Dist, programs: &Programs, pages: &Pages) -> Result<()> {
    let name = format!("vgpu-{}", dist.version);
    let root = dist.work.join("archive").join(&name);
    for name in Programs::names() {
        copy(&programs.file(name), &root.join("bin").join(name))?;
        for (from, to) in [
            (pages.man(name), "share/man"),
            (pages.completions(name), "share/completions"),
        ] {
            for entry in fs::read_dir(from)? {
                let entry = entry?;
                copy(&entry.path(), &root.join(to).join(entry.file_name()))?;
            }
        }
    }
    copy(&programs.file(LIBRARY), &root.join("lib").join(LIBRARY))?;
    symlink(LIBRARY, root.join("lib/libvgpu.so"))?;
    let header = dist.source.join("c-api/include/vgpu.h");
    copy(&header, &root.join("include/vgpu.h"))?;
    let described = pkg_config(dist, "/usr/local", "lib")?;
    copy(&described, &root.join("lib/pkgconfig/vgpu.pc"))?;
    for (from, to) in [
        ("mediator/mediatord.toml", "etc/mediatord.toml"),
        (
            "mediator/vgpu-mediatord.service",
            "etc/vgpu-mediatord.service",
        ),
        (
            "mediator/modules-load.conf",
            "etc/modules-load-mediator.conf",
        ),
        ("guest/modules-load.conf", "etc/modules-load-guest.conf"),
        ("guest/modprobe.conf", "etc/modprobe-guest.conf"),
        ("guest/udev.rules", "etc/udev-guest.rules"),
    ] {
        copy(&dist.packaging(from), &root.join(to))?;
    }
    for name in [
        "README.md",
        "CHANGELOG.md",
        "LICENSE-APACHE",
        "LICENSE-GPL",
        "LICENSE-MIT",
    ] {
        copy(&dist.source.join(name), &root.join(name))?;
    }
    let platform = "x86_64-linux-gnu";
    pack(dist, &root, &format!("{name}-{platform}.tar.xz"))?;
    pack(
        dist,
        programs.debug(),
        &format!("{name}-{platform}-debug.tar.xz"),
    )
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::copy(from, to)?;
    Ok(())
}

/// Packs reproducibly: the same bytes from the same files, on any machine at any time.
fn pack(dist: &Dist, folder: &Path, file: &str) -> Result<()> {
    let (Some(parent), Some(name)) = (folder.parent(), folder.file_name()) else {
        anyhow::bail!("{} is no folder to pack", folder.display());
    };
    run(Command::new("tar")
        .args([
            "--sort=name",
            "--owner=0",
            "--group=0",
            "--numeric-owner",
            "--mode=go=rX,u+rw,a-s",
        ])
        .arg(format!("--mtime=@{}", dist.epoch))
        .args(["--use-compress-program=xz -9 -T1", "-cf"])
        .arg(dist.out.join(file))
        .arg("-C")
        .args([parent.as_os_str(), name]))
}

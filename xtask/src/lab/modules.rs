//! Kernel modules of the images, with their dependencies, which depmod finds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Modules of every boot by name, without their dependencies.
pub(crate) const MODULES: &[&str] = &[
    "xen-privcmd",
    "xenfs",
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
    "xen-netfront",
    "xen-netback",
];

/// One module as it goes into an image.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Module {
    /// Path below `/lib/modules/VERSION/`.
    pub(crate) path: String,
    /// The file in the unpacked package.
    pub(crate) file: PathBuf,
    /// Paths of all modules to load before, the last one first.
    pub(crate) depends: Vec<String>,
}

/// Finds the modules of these names and their dependencies in `tree`, the unpacked package of the kernel
/// `version`.
///
/// # Errors
/// depmod does not run or fails.
pub(crate) fn collect(tree: &Path, version: &str, names: &[&str]) -> Result<Vec<Module>> {
    let folder = tree.join("lib/modules").join(version);
    let list = folder.join("modules.dep");
    if !list.exists() {
        let depmod = Command::new("/usr/sbin/depmod")
            .arg("--basedir")
            .args([tree.as_os_str(), version.as_ref()])
            .output()
            .context("running depmod (package kmod)")?;
        if !depmod.status.success() {
            let why = String::from_utf8_lossy(&depmod.stderr);
            bail!("depmod ended with {}: {}", depmod.status, why.trim());
        }
    }
    let list = fs::read_to_string(&list).with_context(|| list.display().to_string())?;
    Ok(choose(&list, &folder, names))
}

/// The modules of these names, and what they depend on, out of the text of a `modules.dep`.
fn choose(list: &str, folder: &Path, names: &[&str]) -> Vec<Module> {
    let all = list.lines().filter_map(|line| {
        let (path, depends) = line.split_once(':')?;
        Some(Module {
            path: path.to_owned(),
            file: folder.join(path),
            depends: depends.split_whitespace().map(str::to_owned).collect(),
        })
    });
    let all: Vec<Module> = all.collect();
    // Those that are built in have no line.
    let named = |module: &&Module| names.iter().any(|name| is_called(&module.path, name));
    let wanted: Vec<&Module> = all.iter().filter(named).collect();
    let needed = |path: &String| {
        let by = |module: &&Module| module.path == *path || module.depends.contains(path);
        wanted.iter().any(by)
    };
    let keep: Vec<bool> = all.iter().map(|module| needed(&module.path)).collect();
    let kept = all.into_iter().zip(keep).filter(|(_, keep)| *keep);
    let mut modules: Vec<Module> = kept.map(|(module, _)| module).collect();
    modules.sort_by(|a, b| a.path.cmp(&b.path));
    modules
}

/// The text of the `modules.dep` of an image, for modprobe.
pub(crate) fn dependency_file(modules: &[Module]) -> String {
    let line = |module: &Module| format!("{}: {}\n", module.path, module.depends.join(" "));
    modules.iter().map(line).collect()
}

/// Whether `kernel/drivers/xen/xen-evtchn.ko` is called `xen_evtchn` or `xen-evtchn`.
fn is_called(path: &str, name: &str) -> bool {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.trim_end_matches(".ko").replace('-', "_") == name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_comes_with_what_it_depends_on() {
        let list = "k/one-a.ko: k/b.ko k/c.ko\nk/b.ko: k/c.ko\nk/c.ko:\nk/d.ko:\n";
        let found = choose(list, Path::new("/f"), &["one_a", "built-in"]);
        let paths: Vec<&str> = found.iter().map(|module| module.path.as_str()).collect();
        assert_eq!(paths, ["k/b.ko", "k/c.ko", "k/one-a.ko"]);
        assert_eq!(found[0].file, Path::new("/f/k/b.ko"));
        assert_eq!(
            dependency_file(&found),
            "k/b.ko: k/c.ko\nk/c.ko: \nk/one-a.ko: k/b.ko k/c.ko\n"
        );
        assert_eq!(choose(list, Path::new("/f"), &["d"]).len(), 1);
    }
}

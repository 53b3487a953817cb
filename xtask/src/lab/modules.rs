//! Kernel modules of the images, with their dependencies.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

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
pub(crate) struct Module {
    /// Path below `/lib/modules/VERSION/`.
    pub(crate) path: String,
    /// The file in the unpacked package.
    pub(crate) file: PathBuf,
    /// Paths of the modules to load before, nearest first.
    pub(crate) depends: Vec<String>,
}

/// Finds the modules of these names and their dependencies below `folder` (`lib/modules/VERSION` of
/// the unpacked kernel package).
pub(crate) fn collect(folder: &Path, names: &[&str]) -> Result<Vec<Module>> {
    // modules.order lists every module the kernel was built with, one per line.
    let order = fs::read_to_string(folder.join("modules.order")).context("modules.order")?;
    let by_name: BTreeMap<String, &str> =
        order.lines().map(|path| (plain_name(path), path)).collect();
    let mut modules: Vec<Module> = Vec::new();
    let mut waiting: Vec<String> = names.iter().map(|m| m.replace('-', "_")).collect();
    while let Some(name) = waiting.pop() {
        let Some(path) = by_name.get(&name) else {
            continue;
        }; // built in
        if modules.iter().any(|m| m.path == *path) {
            continue;
        }
        let file = folder.join(path);
        let content = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        let direct = depends_of(&content);
        waiting.extend(direct.iter().cloned());
        let depends = direct
            .iter()
            .filter_map(|name| by_name.get(name).map(|p| (*p).to_owned()))
            .collect();
        modules.push(Module {
            path: (*path).to_owned(),
            file,
            depends,
        });
    }
    modules.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(modules)
}

/// The text of `modules.dep`, which modprobe reads. It loads the last entry first, so each module
/// comes before all of its own dependencies.
pub(crate) fn dependency_file(modules: &[Module]) -> String {
    let mut text = String::new();
    for module in modules {
        let mut all = Vec::new();
        for path in &module.depends {
            add_after_its_own(modules, path, &mut all);
        }
        all.reverse();
        text.push_str(&format!("{}: {}\n", module.path, all.join(" ")));
    }
    text
}

/// Adds the dependencies of `path`, then `path` itself, unless it is there.
fn add_after_its_own<'a>(modules: &'a [Module], path: &'a str, all: &mut Vec<&'a str>) {
    if all.contains(&path) {
        return;
    }
    let own = modules.iter().find(|m| m.path == path);
    for next in own.into_iter().flat_map(|m| &m.depends) {
        add_after_its_own(modules, next, all);
    }
    all.push(path);
}

/// `kernel/drivers/xen/xen-evtchn.ko` → `xen_evtchn`
fn plain_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.trim_end_matches(".ko").replace('-', "_")
}

/// The `depends=a,b` entry of a module's information section.
fn depends_of(content: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = content.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = &content[at + KEY.len()..];
    let end = value
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_dependencies_out_of_a_module() {
        assert_eq!(
            depends_of(b"x\0depends=xen-privcmd,b\0name=y\0"),
            ["xen_privcmd", "b"]
        );
        assert!(depends_of(b"x\0depends=\0").is_empty());
        assert!(depends_of(b"nothing").is_empty());
    }

    #[test]
    fn dependency_file_names_indirect_modules() {
        let module = |path: &str, depends: &[&str]| Module {
            path: path.into(),
            file: PathBuf::new(),
            depends: depends.iter().map(|d| (*d).to_owned()).collect(),
        };
        let text = dependency_file(&[module("a", &["b"]), module("b", &["c"]), module("c", &[])]);
        assert_eq!(text, "a: b c\nb: c\nc: \n");
        // Two paths to the same module, the short one named last.
        let text = dependency_file(&[
            module("a", &["b", "d"]),
            module("b", &["d"]),
            module("d", &[]),
        ]);
        assert_eq!(text, "a: b d\nb: d\nd: \n");
        let text = dependency_file(&[
            module("a", &["d", "b"]),
            module("b", &["d"]),
            module("d", &[]),
        ]);
        assert_eq!(text, "a: b d\nb: d\nd: \n");
    }
}

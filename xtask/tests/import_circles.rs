//! No more than two files of a crate import each other in a circle: each can be read, and changed, with what it imports and
//! nothing else.
//!
//! An import is a `use` of another file's item. One by way of a module that passes it on counts as one of the file that has
//! the item. Between a module and those inside it none counts: the outer one is made of the inner ones.

#[path = "import_circles/source.rs"]
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use source::Source;

/// Files at most that may import each other.
const MOST: usize = 2;

/// The name of a module from the crate's root on.
type Module = Vec<String>;

/// The files of a crate, by their modules.
struct Crate {
    files: BTreeMap<Module, (PathBuf, Source)>,
}

impl Crate {
    fn read(root: &Path) -> Self {
        let mut files = BTreeMap::new();
        let folder = root.parent().expect("a file is in a folder");
        read_module(root, folder, Vec::new(), &mut files);
        Self { files }
    }

    /// The module that `path`, as `module` names it, is in, by its own name.
    fn absolute(&self, module: &Module, path: &[String]) -> Option<Module> {
        let mut at = match path.first()?.as_str() {
            "crate" => Vec::new(),
            "self" | "super" => module.clone(),
            first => {
                let mut child = module.clone();
                child.push(first.to_owned());
                // Otherwise another crate, or something that was imported.
                self.files.contains_key(&child).then(|| module.clone())?
            }
        };
        for name in path {
            match name.as_str() {
                "crate" | "self" => {}
                "super" => drop(at.pop()),
                name => at.push(name.to_owned()),
            }
        }
        Some(at)
    }

    /// The file that has the item `path`, in as many steps as imports can be behind each other.
    fn origin(&self, path: &Module, steps: usize) -> Module {
        let prefixes = (0..=path.len()).rev().map(|n| path[..n].to_vec());
        let mut modules = prefixes.filter(|prefix| self.files.contains_key(prefix));
        let module = modules.next().unwrap_or_default();
        let Some(item) = path.get(module.len()).filter(|_| steps > 0) else {
            return module;
        };
        let imports = &self.files[&module].1.imports;
        let passed_on = imports.iter().find_map(|import| {
            let found = self.absolute(&import.within(&module), &import.path)?;
            (found.last() == Some(item) && found != *path).then_some(found)
        });
        match passed_on {
            Some(mut found) => {
                found.extend_from_slice(&path[module.len() + 1..]);
                self.origin(&found, steps - 1)
            }
            None => module,
        }
    }

    /// The files from which each imports.
    fn imports(&self) -> BTreeMap<&Module, BTreeSet<Module>> {
        let of = |(module, (_, source)): (&Module, &(PathBuf, Source))| {
            let all = source.imports.iter();
            let origins = all.filter_map(|import| {
                let path = self.absolute(&import.within(module), &import.path)?;
                Some(self.origin(&path, 8))
            });
            origins
                .filter(|other| !other.starts_with(module) && !module.starts_with(other))
                .collect()
        };
        let files = self.files.iter();
        files.map(|file| (file.0, of(file))).collect()
    }

    /// The groups of files that import each other, of more than [`MOST`], a line for each import within one.
    fn circles(&self) -> Vec<Vec<String>> {
        let imports = self.imports();
        let reached: BTreeMap<&Module, BTreeSet<&Module>> = imports
            .keys()
            .map(|start| {
                let mut reached = BTreeSet::new();
                let mut next: Vec<&Module> = imports[start].iter().collect();
                while let Some(module) = next.pop() {
                    if reached.insert(module) {
                        next.extend(&imports[module]);
                    }
                }
                (*start, reached)
            })
            .collect();
        let mut seen = BTreeSet::new();
        let mut circles = Vec::new();
        for start in imports.keys() {
            let with =
                |other: &&Module| reached[start].contains(other) && reached[other].contains(start);
            let circle: BTreeSet<&Module> = imports.keys().copied().filter(with).collect();
            if circle.len() > MOST && seen.insert(circle.clone()) {
                let line = |from: &Module, to: &Module| {
                    let (from, to) = (&self.files[from].0, &self.files[to].0);
                    format!("{} imports from {}", from.display(), to.display())
                };
                let within = |from: &&Module| {
                    let from = *from;
                    let to = imports[from].iter().filter(|to| circle.contains(to));
                    to.map(|to| line(from, to)).collect::<Vec<_>>()
                };
                circles.push(circle.iter().flat_map(within).collect());
            }
        }
        circles
    }
}

/// Reads the file of a module and those of the modules in it, which are in `folder`.
fn read_module(
    file: &Path,
    folder: &Path,
    module: Module,
    files: &mut BTreeMap<Module, (PathBuf, Source)>,
) {
    let text =
        fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let source = Source::parse(&text);
    for name in &source.modules {
        let mut inner = module.clone();
        inner.push(name.clone());
        let beside = folder.join(format!("{name}.rs"));
        let folder = folder.join(name);
        let file = match beside.exists() {
            true => beside,
            false => folder.join("mod.rs"),
        };
        read_module(&file, &folder, inner, files);
    }
    files.insert(module, (file.to_owned(), source));
}

/// The first file of every library and program of the workspace.
fn roots() -> Vec<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "metadata",
            "--no-deps",
            "--format-version",
            "1",
            "--offline",
        ])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("cargo starts");
    assert!(output.status.success());
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let targets = packages
        .iter()
        .flat_map(|package| package["targets"].as_array().expect("targets"));
    let paths = targets.map(|target| target["src_path"].as_str().expect("a path").into());
    paths
        .filter(|path: &PathBuf| path.components().any(|part| part.as_os_str() == "src"))
        .collect()
}

#[test]
fn no_more_than_two_files_import_each_other() {
    let crates: Vec<Crate> = roots().iter().map(|root| Crate::read(root)).collect();
    let files: usize = crates.iter().map(|one| one.files.len()).sum();
    assert!(files > 300, "{files} files");
    let circles: Vec<String> = crates
        .iter()
        .flat_map(Crate::circles)
        .map(|circle| circle.join("\n"))
        .collect();
    assert!(
        circles.is_empty(),
        "circles of more than {MOST} files; move what they share to a file of its own:\n\n{}",
        circles.join("\n\n")
    );
}

/// The circles of a crate of these files.
fn circles_of(files: &[(&str, &str)]) -> Vec<Vec<String>> {
    let folder = tempfile::tempdir().expect("a folder");
    for (path, text) in files {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().expect("in a folder")).expect("made");
        fs::write(path, text).expect("written");
    }
    Crate::read(&folder.path().join("lib.rs")).circles()
}

#[test]
fn a_circle_of_three_files_is_found_also_by_way_of_a_module_that_passes_on() {
    let files = [
        ("lib.rs", "mod a; pub mod b;\npub use b::Two;"),
        ("a.rs", "use crate::Two;\npub struct One;"),
        ("b/mod.rs", "mod two; mod three; pub use two::Two;"),
        (
            "b/two.rs",
            "use super::{three::{self, Three as Other}, two};\npub struct Two;",
        ),
        ("b/three.rs", "fn f() { use crate::a::*; }"),
    ];
    let circles = circles_of(&files);
    let [circle] = &circles[..] else {
        panic!("one circle: {circles:?}");
    };
    assert_eq!(circle.len(), 3, "{circle:?}");
}

#[test]
fn two_files_texts_tests_and_the_modules_around_are_none() {
    let files = [
        ("lib.rs", "mod a; mod b; mod c;\nuse a::A; pub struct Root;"),
        (
            "a.rs",
            "use crate::{b::B, Root}; pub struct A; // use crate::c::C;",
        ),
        (
            "b.rs",
            "use crate::{a::A, Root}; pub struct B;\nconst TEXT: &str = \"use crate::c::C;\";",
        ),
        (
            "c.rs",
            "use crate::b::B; pub struct C;\nconst RAW: &[u8] = br#\"use \"\"#; fn f<'a>(_: &'a u8) -> char { '\"' }\n#[cfg(test)] mod tests { use super::*; }",
        ),
        ("d.rs", "use crate::c::C;"),
    ];
    assert_eq!(circles_of(&files), Vec::<Vec<String>>::new());
    let with_a_test = [
        ("lib.rs", "mod a; mod b; mod c;"),
        ("a.rs", "use crate::b::B; pub struct A;"),
        ("b.rs", "use crate::c::C; pub struct B;"),
        (
            "c.rs",
            "pub struct C;\n#[cfg(test)]\nmod tests { use crate::a::A; }",
        ),
    ];
    assert_eq!(circles_of(&with_a_test), Vec::<Vec<String>>::new());
}

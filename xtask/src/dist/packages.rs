//! Packages, deb and rpm from one description each.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::pages::Pages;
use super::programs::{LIBRARY, Programs};
use super::tools::Tools;
use super::{Dist, elf};
use crate::cargo::run;

/// A package for users.
struct Package {
    name: &'static str,
    about: &'static str,
    license: &'static str,
    /// The files with the licence, in the root of the source.
    license_files: &'static [&'static str],
    programs: &'static [&'static str],
    /// Files of `dist/` and their destinations.
    files: &'static [(&'static str, &'static str)],
    /// Files of `dist/` that administrators change.
    settings: &'static [(&'static str, &'static str)],
    /// The folder of `dist/` with its scripts.
    scripts: Option<&'static str>,
    recommends: &'static [&'static str],
    /// Packages of Debian that its scripts need.
    deb_depends: &'static [&'static str],
    /// The parts of the library for C that it has.
    part: Option<Part>,
}

/// A part of the library for C, in a package of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Files with which programs run.
    Library,
    /// Files with which programs are built.
    Development,
}

const EITHER: &str = "MIT OR Apache-2.0";

const PACKAGES: [Package; 5] = [
    Package {
        name: "vgpu-mediator",
        about: "Shares one GPU among Xen guests: the daemon of dom0 and its console",
        license: "GPL-3.0-only",
        license_files: &["LICENSE-GPL"],
        programs: &["vgpu-mediatord", "vgpuctl"],
        files: &[
            (
                "mediator/vgpu-mediatord.service",
                "/usr/lib/systemd/system/vgpu-mediatord.service",
            ),
            (
                "mediator/modules-load.conf",
                "/usr/lib/modules-load.d/vgpu-mediator.conf",
            ),
        ],
        settings: &[("mediator/mediatord.toml", "/etc/vgpu/mediatord.toml")],
        scripts: Some("mediator"),
        recommends: &[],
        deb_depends: &[],
        part: None,
    },
    Package {
        name: "vgpu-guest",
        about: "GPU work from a Xen guest: the command vgpu, and what opens the devices to its users",
        license: EITHER,
        license_files: &["LICENSE-APACHE", "LICENSE-MIT"],
        programs: &["vgpu", "vgpu-ptx"],
        files: &[
            (
                "guest/modules-load.conf",
                "/usr/lib/modules-load.d/vgpu-guest.conf",
            ),
            (
                "guest/udev.rules",
                "/usr/lib/udev/rules.d/70-vgpu-guest.rules",
            ),
        ],
        settings: &[("guest/modprobe.conf", "/etc/modprobe.d/vgpu-guest.conf")],
        scripts: Some("guest"),
        recommends: &["vchan"],
        // groupadd.
        deb_depends: &["passwd"],
        part: None,
    },
    Package {
        name: "vchan",
        about: "Byte channels between Xen domains, compatible with libxenvchan",
        license: EITHER,
        license_files: &["LICENSE-APACHE", "LICENSE-MIT"],
        programs: &["vchan"],
        files: &[],
        settings: &[],
        scripts: None,
        recommends: &[],
        deb_depends: &[],
        part: None,
    },
    Package {
        name: "libvgpu",
        about: "GPU work from a Xen guest: the library for programs in C",
        license: EITHER,
        license_files: &["LICENSE-APACHE", "LICENSE-MIT"],
        programs: &[],
        files: &[],
        settings: &[],
        scripts: Some("library"),
        recommends: &["vgpu-guest"],
        deb_depends: &[],
        part: Some(Part::Library),
    },
    Package {
        name: "libvgpu-devel",
        about: "GPU work from a Xen guest: header and pkg-config's file of the library for C",
        license: EITHER,
        license_files: &["LICENSE-APACHE", "LICENSE-MIT"],
        programs: &[],
        files: &[],
        settings: &[],
        scripts: None,
        recommends: &[],
        deb_depends: &[],
        part: Some(Part::Development),
    },
];

/// A package format, with its differences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Deb,
    Rpm,
}

/// The properties common to all packages of a run.
pub(super) struct Common<'d> {
    dist: &'d Dist,
    tools: &'d Tools,
}

/// Makes all packages.
///
/// # Errors
/// A file is missing, or the tool fails.
pub(super) fn make(dist: &Dist, tools: &Tools, programs: &Programs, pages: &Pages) -> Result<()> {
    let common = Common { dist, tools };
    for package in &PACKAGES {
        for format in [Format::Deb, Format::Rpm] {
            let described = describe(dist, package, format, programs, pages)?;
            common.pack(
                &format!("{}-{}", package.name(format), format.name()),
                &described,
                &dist.out,
            )?;
        }
    }
    Ok(())
}

/// Puts the files of all packages below `root`, as debs would, but for those of the library; returns the paths that
/// would be there, files and folders.
///
/// # Errors
/// A file is missing.
pub(super) fn lay_out(
    dist: &Dist,
    programs: &Programs,
    pages: &Pages,
    root: &Path,
) -> Result<BTreeSet<PathBuf>> {
    let mut paths = BTreeSet::new();
    for package in &PACKAGES {
        let described = describe(dist, package, Format::Deb, programs, pages)?;
        // A deb lists no folders.
        for file in described["contents"].as_array().context("contents")? {
            let (Some(from), Some(to)) = (file["src"].as_str(), file["dst"].as_str()) else {
                bail!("a file without a place: {file}");
            };
            paths.extend(Path::new(to).ancestors().map(Path::to_owned));
            if package.part.is_none() {
                let to = root.join(Path::new(to).strip_prefix("/")?);
                fs::create_dir_all(to.parent().context("a folder")?)?;
                fs::copy(from, to).with_context(|| format!("copying {from}"))?;
            }
        }
    }
    Ok(paths)
}

impl Package {
    /// Its name, where the library's are those that the format's systems use.
    fn name(&self, format: Format) -> &'static str {
        match (self.part, format) {
            (Some(Part::Library), Format::Deb) => "libvgpu0",
            (Some(Part::Development), Format::Deb) => "libvgpu-dev",
            _ => self.name,
        }
    }

    /// Debian's section.
    fn section(&self) -> &'static str {
        match self.part {
            None => "admin",
            Some(Part::Library) => "libs",
            Some(Part::Development) => "libdevel",
        }
    }
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Format::Deb => "deb",
            Format::Rpm => "rpm",
        }
    }

    /// The package's own release, beside the version of the source.
    fn release(self) -> &'static str {
        match self {
            Format::Deb => "1",
            Format::Rpm => "1.xcpng8.3",
        }
    }

    /// The folder of libraries, below `/usr`.
    fn libraries(self) -> &'static str {
        match self {
            Format::Deb => "lib/x86_64-linux-gnu",
            Format::Rpm => "lib64",
        }
    }
}

/// Writes pkg-config's file for the library in `prefix/folder` into the run's folder.
///
/// # Errors
/// It cannot be read or written.
pub(super) fn pkg_config(dist: &Dist, prefix: &str, folder: &str) -> Result<PathBuf> {
    let text = fs::read_to_string(dist.source.join("c-api/vgpu.pc.in"))?
        .replace("@PREFIX@", prefix)
        .replace("@LIBDIR@", folder)
        .replace("@VERSION@", &dist.version);
    let file = dist
        .work
        .join(format!("vgpu-{}.pc", folder.replace('/', "-")));
    fs::write(&file, text)?;
    Ok(file)
}

impl<'d> Common<'d> {
    /// For packages that are made beside the product's.
    pub(super) fn new(dist: &'d Dist, tools: &'d Tools) -> Self {
        Self { dist, tools }
    }

    /// Makes the package `described` in `folder`; its format is the end of `name`. Returns the file.
    ///
    /// # Errors
    /// The tool fails.
    pub(super) fn pack(&self, name: &str, described: &Value, folder: &Path) -> Result<PathBuf> {
        // JSON is YAML.
        let description = self.dist.work.join(format!("{name}.yaml"));
        fs::write(&description, serde_json::to_vec_pretty(described)?)?;
        let format = name.rsplit('-').next().context("a name without a format")?;
        let into = self.dist.work.join("packed").join(name);
        fs::create_dir_all(&into)?;
        run(Command::new(self.tools.python("nfpm"))
            .args(["package", "--packager", format, "--config"])
            .arg(&description)
            .arg("--target")
            .arg(&into)
            .env("SOURCE_DATE_EPOCH", self.dist.epoch.to_string())
            .stdout(std::process::Stdio::null()))?;
        let made = fs::read_dir(&into)?.next().context("nfpm made nothing")??;
        let to = folder.join(made.file_name());
        fs::rename(made.path(), &to)?;
        Ok(to)
    }
}

/// The package's description in nfpm's form.
fn describe(
    dist: &Dist,
    package: &Package,
    format: Format,
    programs: &Programs,
    pages: &Pages,
) -> Result<Value> {
    let time = rfc3339(dist.epoch)?;
    let mut contents = Vec::new();
    let mut add = |from: &Path, to: &str, mode: u32, kind: &str| {
        contents.push(json!({
            "src": from, "dst": to, "type": kind,
            "file_info": { "mode": mode, "mtime": time, "owner": "root", "group": "root" },
        }));
    };
    for name in package.programs {
        add(&programs.file(name), &format!("/usr/bin/{name}"), 0o755, "");
        for (folder, to) in [
            (pages.man(name), "/usr/share/man"),
            (pages.completions(name), "/usr/share"),
        ] {
            for entry in sorted(&folder)? {
                if let Some(place) = place_of(&entry) {
                    add(&entry, &format!("{to}/{place}"), 0o644, "");
                }
            }
        }
    }
    for (from, to) in package.files {
        add(&dist.packaging(from), to, 0o644, "");
    }
    for (from, to) in package.settings {
        add(&dist.packaging(from), to, 0o644, "config|noreplace");
    }
    let libraries = format!("/usr/{}", format.libraries());
    match package.part {
        None => {}
        Some(Part::Library) => {
            let file = programs.file(LIBRARY);
            add(&file, &format!("{libraries}/{LIBRARY}"), 0o755, "");
        }
        Some(Part::Development) => {
            let header = dist.source.join("c-api/include/vgpu.h");
            add(&header, "/usr/include/vgpu.h", 0o644, "");
            let described = pkg_config(dist, "/usr", format.libraries())?;
            add(
                &described,
                &format!("{libraries}/pkgconfig/vgpu.pc"),
                0o644,
                "",
            );
            let link = format!("{libraries}/libvgpu.so");
            add(Path::new(LIBRARY), &link, 0o777, "symlink");
        }
    }
    let name = package.name(format);
    let documents = format!("/usr/share/doc/{name}");
    for file in package
        .license_files
        .iter()
        .chain(&["README.md", "CHANGELOG.md"])
    {
        add(
            &dist.source.join(file),
            &format!("{documents}/{file}"),
            0o644,
            "",
        );
    }
    // rpm removes the folders that a package owns, and dpkg those that are empty. Of the settings' folder the scripts
    // take care, since a changed file stays there.
    if format == Format::Rpm {
        contents.push(json!({
            "dst": documents, "type": "dir",
            "file_info": { "mode": 0o755, "mtime": time, "owner": "root", "group": "root" },
        }));
    }
    let mut described = json!({
        "name": name,
        "arch": "amd64",
        "platform": "linux",
        "version": dist.version,
        "version_schema": "none",
        "release": format.release(),
        "section": package.section(),
        "priority": "optional",
        "maintainer": "The vgpu project <vgpu@invalid>",
        "description": package.about,
        "license": package.license,
        "mtime": time,
        "depends": depends(dist, package, format, programs)?,
        "recommends": match format {
            // rpm 4.11, of CentOS 7, has no weak dependencies.
            Format::Rpm => &[],
            Format::Deb => package.recommends,
        },
        "contents": contents,
        "rpm": { "compression": "gzip:9", "buildhost": "reproducible", "group": "System Environment/Daemons" },
        "deb": { "compression": "xz" },
    });
    let library = package.part == Some(Part::Library);
    match format {
        Format::Rpm if library => described["provides"] = json!([format!("{LIBRARY}()(64bit)")]),
        Format::Deb if library => {
            // In place of the scripts, as Debian wants it.
            described["deb"]["triggers"] = json!({ "activate_noawait": ["ldconfig"] });
            return Ok(described);
        }
        _ => {}
    }
    if let Some(folder) = package.scripts {
        let mut scripts = serde_json::Map::new();
        for step in ["preinstall", "postinstall", "preremove", "postremove"] {
            let script = dist.packaging(&format!("{folder}/{step}.sh"));
            if script.exists() {
                scripts.insert(step.to_owned(), json!(script));
            }
        }
        described["scripts"] = Value::Object(scripts);
    }
    Ok(described)
}

/// The packages that must be installed first: for rpm every version of every library, as its own
/// tools would find it; for deb the C library. For development, our library of the same build.
fn depends(
    dist: &Dist,
    package: &Package,
    format: Format,
    programs: &Programs,
) -> Result<Vec<String>> {
    if package.part == Some(Part::Development) {
        let build = format!("{}-{}", dist.version, format.release());
        return Ok(vec![match format {
            Format::Deb => format!("libvgpu0 (= {build})"),
            Format::Rpm => format!("libvgpu = {build}"),
        }]);
    }
    match format {
        Format::Deb => {
            let mut needs = vec![format!("libc6 (>= 2.{})", super::programs::GLIBC_MINOR)];
            needs.extend(package.deb_depends.iter().map(|&name| name.to_owned()));
            Ok(needs)
        }
        Format::Rpm => {
            let library = (package.part == Some(Part::Library)).then_some(&LIBRARY);
            let files = package.programs.iter().chain(library);
            requirements(files.map(|name| programs.file(name)))
        }
    }
}

/// rpm's names of the libraries that `files` need.
///
/// # Errors
/// A file cannot be read.
pub(super) fn requirements(files: impl Iterator<Item = PathBuf>) -> Result<Vec<String>> {
    let mut needs = BTreeSet::new();
    for file in files {
        needs.extend(elf::needs(&file)?);
    }
    Ok(needs.iter().map(elf::Need::rpm).collect())
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        files.push(entry?.path());
    }
    files.sort();
    Ok(files)
}

/// The destination of a page or a completion: below `/usr/share/man` by its section, or below
/// `/usr/share` by its shell.
fn place_of(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    if let Some(page) = name.strip_suffix(".gz") {
        let section = page.rsplit('.').next()?;
        return Some(format!("man{section}/{name}"));
    }
    match file.extension().and_then(OsStr::to_str) {
        Some("bash") => {
            let program = name.strip_suffix(".bash")?;
            Some(format!("bash-completion/completions/{program}"))
        }
        Some("fish") => Some(format!("fish/vendor_completions.d/{name}")),
        _ => Some(format!("zsh/site-functions/{name}")),
    }
}

/// `epoch`, in seconds since 1970, in nfpm's time format.
fn rfc3339(epoch: u64) -> Result<String> {
    let output = Command::new("date")
        .args(["--utc", "+%Y-%m-%dT%H:%M:%SZ", "--date"])
        .arg(format!("@{epoch}"))
        .output()
        .context("cannot start date")?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_completions_go_where_shells_and_man_look() {
        for (file, place) in [
            ("x/vgpu-run.1.gz", "man1/vgpu-run.1.gz"),
            ("x/mediatord.toml.5.gz", "man5/mediatord.toml.5.gz"),
            ("x/vgpu.bash", "bash-completion/completions/vgpu"),
            ("x/vgpu.fish", "fish/vendor_completions.d/vgpu.fish"),
            ("x/_vgpu", "zsh/site-functions/_vgpu"),
        ] {
            assert_eq!(place_of(Path::new(file)).as_deref(), Some(place));
        }
    }

    #[test]
    fn every_file_that_a_package_takes_is_there() {
        let dist = crate::workspace_root().join("dist");
        for package in &PACKAGES {
            for (from, _) in package.files.iter().chain(package.settings) {
                assert!(dist.join(from).is_file(), "{from} of {}", package.name);
            }
            for name in package.license_files {
                assert!(crate::workspace_root().join(name).is_file(), "{name}");
            }
        }
    }
}

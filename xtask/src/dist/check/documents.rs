//! Paths that documents and programs name, against the files that the packages install.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::output;
use crate::dist::programs::Programs;

/// Paths that documents name and no package installs, and where they come from.
const OTHERS: &[(&str, &str)] = &[
    ("/etc/vgpu/relay.secret", "administrators make it"),
    ("/etc/vgpu/secrets", "administrators make it"),
    ("/etc/exports", "the NFS server's"),
    ("/etc/fstab", "the system's"),
    ("/etc/passwd", "the system's"),
    ("/etc/xapi.d", "XCP-ng's"),
    ("/opt/vgpu/bin", "of the lab's machines"),
    ("/opt/xensource", "XCP-ng's"),
    ("/run/systemd", "systemd's"),
    ("/run/vgpu", "the mediator makes it, and the sockets in it"),
    ("/usr/bin/mount", "the system's"),
    ("/usr/lib/debug", "debuggers look there"),
    ("/usr/local", "for what is built from the source"),
    ("/var/lib/nfs", "the NFS server's"),
    ("/var/lib/prometheus", "node_exporter's"),
    ("/var/run", "the system's"),
];

/// Checks that every path in the documents, in manual pages, in installed files and in programs'
/// messages is one that the packages install (`installed`, with folders), or one of [`OTHERS`].
///
/// # Errors
/// There is another.
pub(super) fn every_path(root: &Path, installed: &BTreeSet<PathBuf>) -> Result<()> {
    let source = crate::workspace_root();
    let mut texts = Vec::new();
    for folder in ["", "docs", "dist/guest", "dist/mediator"] {
        for entry in fs::read_dir(source.join(folder))? {
            let path = entry?.path();
            if path.is_file() && (folder.starts_with("dist/") || has_ending(&path, "md")) {
                texts.push((path.clone(), fs::read_to_string(&path)?));
            }
        }
    }
    for path in installed {
        let file = root.join(path.strip_prefix("/")?);
        if path.starts_with("/usr/share/man") && has_ending(path, "gz") {
            let page = output(std::process::Command::new("zcat").arg(&file))?;
            texts.push((path.clone(), page.replace("\\-", "-")));
        }
    }
    let mut paths = 0;
    for (place, text) in &texts {
        for path in paths_in(text) {
            paths += 1;
            ensure!(
                is_known(path, installed),
                "{} names {path}, which no package installs",
                place.display()
            );
        }
    }
    for program in Programs::names() {
        let text = fs::read(root.join("usr/bin").join(program))?;
        let text = String::from_utf8_lossy(&text);
        // Of the program's own messages; libraries name files of the system.
        for path in paths_in(&text).filter(|path| path.starts_with("/etc/vgpu")) {
            // Texts stand beside each other in a program, without an end between them.
            let known = |known: &str| path.starts_with(known);
            let own = installed.iter().filter_map(|path| path.to_str());
            let others = OTHERS.iter().map(|(path, _)| *path);
            ensure!(
                own.chain(others)
                    .any(|it| it.len() > "/etc/vgpu".len() && known(it)),
                "{program} names {path}, which no package installs"
            );
        }
    }
    ensure!(paths > 20, "only {paths} paths");
    Ok(())
}

fn has_ending(path: &Path, ending: &str) -> bool {
    path.extension().is_some_and(|it| it == ending)
}

fn is_known(path: &str, installed: &BTreeSet<PathBuf>) -> bool {
    let path = Path::new(path);
    installed.contains(path) || OTHERS.iter().any(|(other, _)| path.starts_with(other))
}

/// The absolute paths in a text that are below one of a system's folders for packages.
fn paths_in(text: &str) -> impl Iterator<Item = &str> {
    const BELOW: [&str; 6] = ["/etc/", "/lib/", "/opt/", "/run/", "/usr/", "/var/"];
    let is_part = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    text.match_indices('/').filter_map(move |(at, _)| {
        // Not in the middle of another path or an address.
        let before = text[..at].chars().next_back();
        let starts = before.is_none_or(|c| !is_part(c) && !"~$}*>".contains(c));
        if !starts || !BELOW.iter().any(|below| text[at..].starts_with(below)) {
            return None;
        }
        let rest = &text[at..];
        let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        Some(rest[..end].trim_end_matches(['.', '/']))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_found_in_prose_and_commands() {
        let text =
            "see `/etc/vgpu/a.toml`. file:/run/vgpu/x, http://a/etc/b and ~/usr/c: (/usr/bin/d/).";
        let found: Vec<&str> = paths_in(text).collect();
        assert_eq!(found, ["/etc/vgpu/a.toml", "/run/vgpu/x", "/usr/bin/d"]);
    }

    #[test]
    fn a_path_that_no_package_installs_is_not_known() {
        let installed = BTreeSet::from(["/etc/vgpu/mediatord.toml".into(), "/etc/vgpu".into()]);
        assert!(is_known("/etc/vgpu/mediatord.toml", &installed));
        assert!(is_known("/run/vgpu/mediatord.sock", &installed));
        assert!(!is_known("/etc/vgpu-mediator/mediatord.toml", &installed));
        assert!(!is_known("/etc/vgpu/mediator.toml", &installed));
    }
}

//! The requirements of a program on its system, as binutils read them.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// A requirement of a program on one shared library.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Need {
    /// `libc.so.6`.
    pub(super) library: String,
    /// `GLIBC_2.17`, or empty for the library itself.
    pub(super) version: String,
}

impl Need {
    /// rpm's name for it.
    pub(super) fn rpm(&self) -> String {
        format!("{}({})(64bit)", self.library, self.version)
    }

    /// Whether a glibc of this minor version provides it.
    fn is_in_glibc_2(&self, minor: u32) -> bool {
        match self.version.strip_prefix("GLIBC_2.") {
            // 2.2.5, the oldest of this architecture, is of minor version 2.
            Some(version) => version
                .split('.')
                .next()
                .and_then(|number| number.parse::<u32>().ok())
                .is_some_and(|number| number <= minor),
            None => !self.version.starts_with("GLIBC_"),
        }
    }
}

/// All requirements of `program`, each version separately, in order.
///
/// # Errors
/// It cannot be read.
pub(super) fn needs(program: &Path) -> Result<BTreeSet<Need>> {
    let output = Command::new("objdump")
        .arg("-p")
        .arg(program)
        .output()
        .context("cannot start objdump")?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        bail!("objdump -p {}: {}", program.display(), why.trim());
    }
    Ok(parse(&String::from_utf8(output.stdout)?))
}

/// Reads objdump's `NEEDED` lines and its `Version References`.
fn parse(text: &str) -> BTreeSet<Need> {
    let mut needs = BTreeSet::new();
    let mut of = None;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["NEEDED", library] => {
                needs.insert(Need {
                    library: library.to_owned(),
                    version: String::new(),
                });
            }
            ["required", "from", library] => of = Some(library.trim_end_matches(':').to_owned()),
            [hash, _, _, version] if hash.starts_with("0x") => {
                if let Some(library) = &of {
                    needs.insert(Need {
                        library: library.clone(),
                        version: version.to_owned(),
                    });
                }
            }
            _ => {}
        }
    }
    needs
}

/// Fails if `program` needs more than glibc 2.`minor` provides.
///
/// # Errors
/// It does, with the versions; or it cannot be read.
pub(super) fn check_glibc(program: &Path, minor: u32) -> Result<()> {
    let mut newer: Vec<String> = needs(program)?
        .into_iter()
        .filter(|need| !need.is_in_glibc_2(minor))
        .map(|need| need.version)
        .collect();
    newer.dedup();
    if !newer.is_empty() {
        let name = program.display();
        bail!("{name} needs {}; glibc 2.{minor} has not", newer.join(", "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = "
Dynamic Section:
  NEEDED               libc.so.6
  NEEDED               ld-linux-x86-64.so.2
  RELACOUNT            0x0000000000002c1f

Version References:
  required from libc.so.6:
    0x09691a75 0x00 05 GLIBC_2.2.5
    0x06969197 0x00 04 GLIBC_2.17
  required from ld-linux-x86-64.so.2:
    0x0d696913 0x00 02 GLIBC_2.3
";

    #[test]
    fn needs_are_read_from_objdump() {
        let names: Vec<String> = parse(DUMP).iter().map(Need::rpm).collect();
        assert_eq!(
            names,
            [
                "ld-linux-x86-64.so.2()(64bit)",
                "ld-linux-x86-64.so.2(GLIBC_2.3)(64bit)",
                "libc.so.6()(64bit)",
                "libc.so.6(GLIBC_2.17)(64bit)",
                "libc.so.6(GLIBC_2.2.5)(64bit)",
            ]
        );
    }

    #[test]
    fn a_newer_glibc_is_told_from_an_older_one() {
        let need = |version: &str| Need {
            library: "libc.so.6".to_owned(),
            version: version.to_owned(),
        };
        for version in ["GLIBC_2.2.5", "GLIBC_2.9", "GLIBC_2.17", "GCC_3.0", ""] {
            assert!(need(version).is_in_glibc_2(17), "{version}");
        }
        for version in [
            "GLIBC_2.18",
            "GLIBC_2.34",
            "GLIBC_PRIVATE",
            "GLIBC_ABI_DT_RELR",
        ] {
            assert!(!need(version).is_in_glibc_2(17), "{version}");
        }
    }

    #[test]
    fn a_plain_build_needs_a_newer_glibc_and_is_refused() {
        let own = std::env::current_exe().expect("this program");
        let refused = check_glibc(&own, 17).expect_err("it was built for this machine");
        assert!(refused.to_string().contains("GLIBC_2."), "{refused}");
        check_glibc(&own, 99).expect("any glibc 2 of the future");
    }
}

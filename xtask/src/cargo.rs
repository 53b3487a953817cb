//! Commands that must succeed, what cargo builds, and its folder for that.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::workspace_root;

/// Cargo's folder for build results. xtask itself is in it, as `TARGET/PROFILE/xtask`.
pub(crate) fn target_dir() -> PathBuf {
    std::env::current_exe()
        .ok()
        .and_then(|exe| exe.parent()?.parent().map(Path::to_path_buf))
        .unwrap_or_else(|| PathBuf::from("target"))
}

/// Runs a command; fails if it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}");
    let status = command
        .status()
        .with_context(|| format!("cannot start {shown}"))?;
    if !status.success() {
        bail!("{shown} ended with {status}");
    }
    Ok(())
}

/// A program that cargo has built.
#[derive(Debug, Clone)]
pub(crate) struct Executable {
    /// Cargo's name for it, without the hash in the file's name.
    pub(crate) name: String,
    pub(crate) file: PathBuf,
    /// Its package's folder, in which `cargo test` runs tests.
    pub(crate) package: PathBuf,
    /// `bin`, `lib`, `test` or another kind of target.
    pub(crate) kind: String,
    /// It contains tests and a runner of them.
    pub(crate) is_test: bool,
}

/// Runs cargo and returns the executables it reports, fresh or not.
///
/// # Errors
/// The compiler's, which has printed the reason on standard error.
pub(crate) fn executables(arguments: &[&str]) -> Result<Vec<Executable>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(arguments)
        .arg("--message-format=json-render-diagnostics")
        .current_dir(workspace_root())
        .stderr(Stdio::inherit())
        .output()
        .context("running cargo")?;
    if !output.status.success() {
        bail!("cargo {} failed", arguments.join(" "));
    }
    let output = String::from_utf8_lossy(&output.stdout);
    Ok(output.lines().filter_map(executable).collect())
}

/// The executable that one of cargo's messages is about.
fn executable(message: &str) -> Option<Executable> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    let manifest = Path::new(message["manifest_path"].as_str()?);
    Some(Executable {
        name: message["target"]["name"].as_str()?.to_owned(),
        file: message["executable"].as_str()?.into(),
        package: manifest.parent()?.to_owned(),
        kind: message["target"]["kind"][0].as_str()?.to_owned(),
        is_test: message["profile"]["test"] == true,
    })
}

#[cfg(test)]
mod tests {
    use super::executable;

    #[test]
    fn executables_are_read_out_of_what_cargo_says() {
        let test = r#"{"reason":"compiler-artifact","manifest_path":"/w/vchan/Cargo.toml",
            "target":{"kind":["test"],"name":"cases"},"profile":{"test":true},
            "executable":"/w/target/debug/deps/cases-1"}"#;
        let found = executable(test).unwrap();
        assert_eq!(
            (found.name.as_str(), found.kind.as_str()),
            ("cases", "test")
        );
        assert_eq!(found.file.to_str(), Some("/w/target/debug/deps/cases-1"));
        assert_eq!(found.package.to_str(), Some("/w/vchan"));
        assert!(found.is_test);
        // A library, which is no program.
        let library = test.replace(r#""/w/target/debug/deps/cases-1""#, "null");
        assert!(executable(&library).is_none());
        assert!(executable("warning: none of cargo's").is_none());
    }
}

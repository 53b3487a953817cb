//! The nightly toolchain: its presence, and its parts.

use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::Command;

/// The only target that fuzzers and sanitizers are run for. Naming it keeps build scripts and
/// procedural macros free of the instrumentation.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";

/// A nightly toolchain that runs.
#[derive(Debug)]
pub(crate) struct Nightly {
    sysroot: PathBuf,
}

impl Nightly {
    /// Finds it, or reports the missing part.
    pub(crate) fn find() -> Result<Self> {
        let output = Command::new("rustc")
            .args(["+nightly", "--print", "sysroot"])
            .output()
            .context("cannot start rustc")?;
        if !output.status.success() {
            bail!(
                "there is no nightly toolchain, which sanitizers and libFuzzer's instrumentation \
                 need\ninstall one: rustup toolchain install nightly"
            );
        }
        let text = String::from_utf8(output.stdout).context("path of the nightly toolchain")?;
        Ok(Self {
            sysroot: text.trim().into(),
        })
    }

    /// Whether the runtime library of a sanitizer is installed, `asan` for instance.
    pub(crate) fn has_runtime(&self, name: &str) -> bool {
        let lib = self.sysroot.join("lib/rustlib").join(TARGET).join("lib");
        std::fs::read_dir(lib).is_ok_and(|mut files| {
            files.any(|file| {
                file.is_ok_and(|file| {
                    let name_of = file.file_name();
                    name_of.to_string_lossy().contains(&format!("_rt.{name}."))
                })
            })
        })
    }

    /// Whether the standard library's source is installed, to build it instrumented as well.
    pub(crate) fn has_std_source(&self) -> bool {
        let src = "lib/rustlib/src/rust/library/std/src/lib.rs";
        self.sysroot.join(src).exists()
    }

    /// Whether Miri is installed.
    pub(crate) fn has_miri(&self) -> bool {
        self.sysroot.join("bin/cargo-miri").exists() && self.sysroot.join("bin/miri").exists()
    }

    /// `cargo +nightly`, in the workspace's root, with these flags for rustc.
    pub(crate) fn cargo(&self, rustflags: &str) -> Command {
        let mut command = Command::new("cargo");
        command
            .arg("+nightly")
            .current_dir(crate::workspace_root())
            .env("RUSTFLAGS", rustflags)
            // Set by the cargo that started us, for its own toolchain.
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("RUSTC")
            .env_remove("CARGO");
        command
    }
}

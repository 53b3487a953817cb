//! Compiling the stand-ins for NVIDIA's libraries.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Variable with the stand-in's scenario, for the inner process; see `libcuda.rs`.
pub(crate) const SCENARIO: &str = "VGPU_STAND_IN";

/// The folder of this test program's own files: others run at the same time.
fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(env!("CARGO_CRATE_NAME"))
        .join("stand_in_libcuda")
}

/// Compiles the stand-in into a folder of its own: the whole of it, or without one function.
pub(crate) fn compile(name: &str, options: &[&str]) -> PathBuf {
    compile_to(name, "libcuda.rs", "libcuda.so", options)
}

/// Compiles one of the stand-ins to a library in a folder of its own.
pub(crate) fn compile_to(name: &str, source: &str, library: &str, options: &[&str]) -> PathBuf {
    let folder = folder().join(name);
    std::fs::create_dir_all(&folder).expect("a folder");
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/executor/stand_in");
    let source = sources.join(source);
    // Of the toolchain that compiles this.
    let rustc = Path::new(env!("CARGO")).with_file_name("rustc");
    let (dependencies, ptx) = ptx();
    let status = Command::new(rustc)
        .args(["--extern", &format!("vgpu_ptx={}", ptx.display())])
        .args(["-L", &format!("dependency={}", dependencies.display())])
        .args([
            "--edition=2024",
            "--crate-type=cdylib",
            "--crate-name=cuda",
            "-O",
            "-o",
        ])
        .arg(folder.join(library))
        .args(options)
        .arg(source)
        .status()
        .expect("rustc runs");
    assert!(status.success());
    folder
}

/// Directory of this build's libraries, and path of the library of `vgpu-ptx`: the newest, as this
/// test's build has made it, or found it up to date.
fn ptx() -> (PathBuf, PathBuf) {
    let this = env::current_exe().expect("this test");
    let dependencies = this.parent().expect("a folder").to_owned();
    let entries = std::fs::read_dir(&dependencies).expect("a folder");
    let libraries = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let name = entry.file_name().into_string().ok()?;
        let is_it = name.starts_with("libvgpu_ptx-") && name.ends_with(".rlib");
        let made = entry.metadata().ok()?.modified().ok()?;
        is_it.then(|| (made, entry.path()))
    });
    let (_, library) = libraries.max().expect("vgpu-ptx is built with this test");
    (dependencies, library)
}

/// The folder of the whole stand-in.
pub(crate) fn library() -> &'static Path {
    static WHOLE: OnceLock<PathBuf> = OnceLock::new();
    WHOLE.get_or_init(|| compile("whole", &[]))
}

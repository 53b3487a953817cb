//! Paths of the configuration: made absolute, and where the control socket is.

use std::path::{Path, PathBuf};

use nix::unistd::Uid;
use vgpu_cli::Failure;

/// `path`, made absolute. It must be text: workers are told of it in JSON, and `--check-config` prints
/// it as TOML.
pub(super) fn absolute(path: &Path, what: &str) -> Result<PathBuf, Failure> {
    let path = std::path::absolute(path).map_err(|error| {
        Failure::system(
            format!("{what}, {}", path.display()),
            error,
            "give an absolute path",
        )
    })?;
    match path.to_str() {
        Some(_) => Ok(path),
        None => Err(Failure::new(
            format!("{what}, {path:?}, has a path that is not UTF-8"),
            "rename the file or the directory, or name it by a link",
        )),
    }
}

/// Path of the control socket of root's mediator.
pub(crate) const ROOT_CONTROL: &str = "/run/vgpu/mediatord.sock";

/// Default path of the control socket: the system's for root, a path of their own for other users.
pub fn default_control_path() -> PathBuf {
    let uid = Uid::effective();
    if uid.is_root() {
        return PathBuf::from(ROOT_CONTROL);
    }
    let directory = match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
        Some(directory) if directory.is_absolute() => directory.join("vgpu"),
        _ => PathBuf::from(format!("/tmp/vgpu-{uid}")),
    };
    directory.join("mediatord.sock")
}

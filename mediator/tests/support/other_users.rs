//! Helpers of tests that start programs as other users.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::geteuid;

/// Whether this can be somebody else; says loudly that a test is skipped where not.
pub(crate) fn is_root() -> bool {
    if !geteuid().is_root() {
        test_skip::skipped("only root can start programs as other users");
    }
    geteuid().is_root()
}

/// A directory that every user reaches.
pub(crate) fn reachable() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    directory
}

/// A directory in `parent`.
pub(crate) fn directory(parent: &Path, name: &str, owner: u32, mode: u32) -> PathBuf {
    let path = parent.join(name);
    fs::create_dir(&path).unwrap();
    chown(&path, Some(owner), Some(owner)).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    path
}

/// Makes `copy` a copy of `program` that every user can run. By another process: a program that this
/// one has written cannot be started while any child of another test has inherited the descriptor.
pub(crate) fn copy_for_all(program: &Path, copy: &Path) {
    let copied = Command::new("cp").arg(program).arg(copy).status();
    assert!(copied.unwrap().success());
    fs::set_permissions(copy, Permissions::from_mode(0o755)).unwrap();
}

//! Runs tests of this program once more, with the programs they start using xenstore-rs.

use std::process::Command;

use vchan::xen::store::provider::PROVIDER_ENV;

/// Runs the tests whose names contain one of `names` (all if empty) in another process, except
/// `caller`.
pub(crate) fn run_again(names: &[&str], caller: &str) {
    if !cfg!(feature = "xenstore-rs") {
        test_skip::skipped("vchan is built without the feature xenstore-rs");
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(names)
        .args(["--skip", caller])
        .env(PROVIDER_ENV, "xenstore-rs")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    assert!(!text.contains("ok. 0 passed"), "{text}");
    eprint!("{errors}");
}

//! Readers that go away while xtask still has output.

use std::io::pipe;
use std::process::{Command, Stdio};

#[test]
fn nobody_needs_to_read_to_the_end() {
    for arguments in [&["test", "--list"][..], &["no-such-subcommand"]] {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let child = Command::new(env!("CARGO_BIN_EXE_xtask"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(writer.try_clone().unwrap())
            .stderr(writer)
            .status()
            .unwrap();
        // 101 is a panic.
        assert!(
            matches!(child.code(), Some(0..=2)),
            "{arguments:?}: {child}"
        );
    }
}

//! The committed header is the one that the crate's items and comments give.
//!
//! `UPDATE_DOCS=1 cargo test -p vgpu-c header` writes it.

use std::fs;
use std::path::Path;

#[test]
fn the_header_is_what_the_functions_are() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(here.join("cbindgen.toml")).unwrap();
    // In the order of the header.
    let sources = [
        "failure", "session", "device", "memory", "pinned", "module", "stream",
    ];
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in sources {
        builder = builder.with_src(here.join(format!("src/{source}.rs")));
    }
    let mut made = Vec::new();
    builder.generate().unwrap().write(&mut made);
    let made = String::from_utf8(made).unwrap();
    let path = here.join("include/vgpu.h");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &made).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == made,
        "include/vgpu.h is not what cbindgen makes now; UPDATE_DOCS=1 cargo test -p vgpu-c header"
    );
}

//! The committed header is the one that the crate's items and comments give.
//!
//! `UPDATE_DOCS=1 cargo test -p vgpu-c header` writes it.

use std::fs;
use std::path::Path;

use vgpu_guest::attributes::{DEVICE_ATTRIBUTES, FUNCTION_ATTRIBUTES};

/// An enumeration of the driver's attributes. Its names are not those of `cuda.h`, which a program may include as well.
fn attributes(of: &str, all: &[(&str, u32)]) -> String {
    let mut text = format!(
        "\n\n/* The attributes of a {of}: CU{of}_attribute of cuda.h, with VGPU_ in the place of CU_. */\n\
         typedef enum vgpu_{of}_attributes {{\n"
    );
    for (name, number) in all {
        let name = name.strip_prefix("CU_").expect("a name of cuda.h");
        text.push_str(&format!("    VGPU_{name} = {number},\n"));
    }
    text.truncate(text.len() - 2);
    text.push_str(&format!("\n}} vgpu_{of}_attributes;"));
    text
}

#[test]
fn the_header_is_what_the_functions_are() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut config = cbindgen::Config::from_file(here.join("cbindgen.toml")).unwrap();
    let constants = config.after_includes.get_or_insert_default();
    constants.push_str(&attributes("device", DEVICE_ATTRIBUTES));
    constants.push_str(&attributes("function", FUNCTION_ATTRIBUTES));
    // In the order of the header.
    let sources = [
        "failure", "session", "device", "memory", "pinned", "rows", "module", "stream",
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

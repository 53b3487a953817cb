//! `docs/ptx.md` holds the list of instructions; it is made from the table.

use std::fmt::Write;
use std::path::PathBuf;

use vgpu_ptx::table::{Chapter, TABLE};

const BEGIN: &str = "<!-- made by: UPDATE=1 cargo test -p vgpu-ptx --test document -->\n";
const END: &str = "<!-- end of what is made -->\n";

fn list() -> String {
    let mut out = String::new();
    for chapter in Chapter::ALL {
        let rows: Vec<_> = TABLE
            .iter()
            .filter(|r| r.chapter == *chapter && !r.forms.is_empty())
            .collect();
        if rows.is_empty() {
            continue;
        }
        let _ = write!(
            out,
            "\n### {}\n\n| instruction | forms |\n|---|---|\n",
            chapter.title()
        );
        for r in rows {
            // The opcode alone: the ISA defines the operands.
            let mut opcodes: Vec<&str> = r
                .forms
                .iter()
                .map(|f| f.split_once(' ').map_or(*f, |(o, _)| o))
                .collect();
            opcodes.dedup();
            let forms: Vec<String> = opcodes.iter().map(|o| format!("`{o}`")).collect();
            let least = if r.sm > 0 {
                format!(" (sm_{} and up)", r.sm)
            } else {
                String::new()
            };
            let _ = writeln!(out, "| `{}`{least} | {} |", r.name, forms.join(" "));
        }
    }
    let refused: Vec<String> = TABLE
        .iter()
        .filter(|r| r.forms.is_empty())
        .map(|r| format!("`{}`", r.name))
        .collect();
    let _ = write!(out, "\n### Known and refused\n\n{}\n\n", refused.join(" "));
    out
}

#[test]
fn the_document_lists_what_the_table_holds() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/ptx.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (head, rest) = text.split_once(BEGIN).expect("the beginning of the list");
    let (old, tail) = rest.split_once(END).expect("the end of the list");
    let new = list();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, format!("{head}{BEGIN}{new}{END}{tail}")).unwrap();
        return;
    }
    assert!(old == new, "docs/ptx.md is out of date: {}", BEGIN.trim());
}

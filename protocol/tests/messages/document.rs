//! Checks that `docs/protocol.md` describes the operations as the table does.
//!
//! `UPDATE_DOCS=1 cargo test -p vgpu-protocol document` rewrites outdated parts.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use vgpu_protocol::op::{FieldSpec, Op, Overtakes, Spec};
use vgpu_protocol::status::MAX_ERROR_TEXT;

const BEGIN: &str = "<!-- from the table in protocol/src/op/table.rs: begin -->\n";
const END: &str = "<!-- end -->\n";

/// A sentence on one line.
fn line(doc: &str) -> String {
    doc.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn wire(field: &FieldSpec) -> String {
    match (field.list, field.wire) {
        (Some((count, element)), _) => format!("list of at most {count}: {element}"),
        (None, "text" | "bytes") => format!("{}, at most {} bytes", field.wire, field.max_len - 2),
        (None, wire) => wire.to_owned(),
    }
}

fn fields(out: &mut String, title: &str, fields: &[FieldSpec]) {
    if fields.is_empty() {
        writeln!(out, "{title}: no body.\n").unwrap();
        return;
    }
    writeln!(out, "{title}:\n\n| field | type | meaning |\n|---|---|---|").unwrap();
    for field in fields {
        let (name, wire, doc) = (field.name, wire(field), line(field.doc));
        writeln!(out, "| `{name}` | {wire} | {doc} |").unwrap();
    }
    out.push('\n');
}

fn feature(spec: &Spec) -> String {
    match spec.feature.0 {
        0 => "–".to_owned(),
        bits => format!("bit {}", bits.trailing_zeros()),
    }
}

fn section() -> String {
    let mut out = String::new();
    let specs = || Op::REQUESTS.iter().filter_map(|op| op.spec());
    out.push_str(
        "| op | name | needs feature | may be quiet | data | [overtakes](#overtaking) |\n",
    );
    out.push_str("|---|---|---|---|---|---|\n");
    for spec in specs() {
        let quiet = if spec.quiet { "yes" } else { "" };
        let data = match spec.data {
            (true, true) => "up and down",
            (true, false) => "up",
            (false, true) => "down",
            (false, false) => "",
        };
        let (code, name, feature) = (spec.code, spec.name, feature(spec));
        let op = Op::from_code(code).expect("its own code");
        let overtakes = match op.overtakes(false) {
            Overtakes::Nothing => "",
            Overtakes::OtherLanes => "other lanes",
            Overtakes::Everything => "everything",
        };
        writeln!(
            out,
            "| {code} | [{name}](#{}) | {feature} | {quiet} | {data} | {overtakes} |",
            name.to_lowercase()
        )
        .unwrap();
    }
    for spec in specs() {
        writeln!(out, "\n### {}\n\n{}\n", spec.name, line(spec.doc)).unwrap();
        fields(&mut out, "Request", spec.request);
        fields(&mut out, "Reply", spec.reply);
        out.truncate(out.trim_end().len());
        out.push('\n');
    }
    out
}

#[test]
fn the_document_has_the_operations_of_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/protocol.md");
    let text = fs::read_to_string(&path).expect("the document");
    let (before, rest) = text.split_once(BEGIN).expect("where the table begins");
    let (found, after) = rest.split_once(END).expect("where the table ends");
    let due = section();
    if found == due {
        return;
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, [before, BEGIN, &due, END, after].concat()).expect("written");
        return;
    }
    let differs = found
        .lines()
        .zip(due.lines())
        .find(|(found, due)| found != due);
    panic!(
        "docs/protocol.md differs from the table: {differs:?}; write it anew with \
         UPDATE_DOCS=1 cargo test -p vgpu-protocol document"
    );
}

#[test]
fn error_texts_are_as_long_as_the_document_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/protocol.md");
    let text = fs::read_to_string(path).expect("the document");
    assert!(text.contains(&format!("at most {MAX_ERROR_TEXT} bytes")));
}

//! Each form in the table of instructions loads.

use vgpu_ptx::table::{TABLE, expand};
use vgpu_ptx::{Module, Options};

/// A kernel with one instruction, with operands substituted for the letters.
fn kernel(form: &str) -> String {
    let (opcode, operands) = form.split_once(' ').unwrap_or((form, ""));
    let mut out = String::new();
    let (mut h, mut r, mut d, mut p) = (0, 0, 0, 0);
    let next = |n: &mut u32, name: &str| {
        *n += 1;
        format!("{name}{}", *n % 8)
    };
    // `H?`: the last source, followed by a predicate where the opcode combines.
    let combined = [".and.", ".or.", ".xor."]
        .iter()
        .any(|w| opcode.contains(w));
    let operands = operands.replace('?', if combined { ", P" } else { "" });
    let special = operands.contains('%');
    for c in operands.chars() {
        match c {
            _ if special && !matches!(c, 'R' | 'D') => out.push(c),
            'H' => out += &next(&mut h, "h"),
            'R' => out += &next(&mut r, "r"),
            'D' => out += &next(&mut d, "d"),
            'P' => out += &next(&mut p, "p"),
            'I' => out += "3",
            'A' => out += "d0",
            'S' => out += "d7",
            'M' => out += "-1",
            'L' => out += "L",
            c => out.push(c),
        }
    }
    format!(
        ".version 9.0\n.target sm_90\n.address_size 64\n.func nothing {{ ret; }}\n.visible .entry k(.param .u64 out) {{\n.reg .b16 h<9>; .reg .b32 r<9>; .reg .b64 d<9>; .reg .pred p<9>;\ntable: .branchtargets L;\n{opcode} {out};\nL:\nret;\n}}\n"
    )
}

#[test]
fn every_form_of_the_table_loads() {
    let (mut n, mut wrong) = (0, Vec::new());
    for row in TABLE {
        for form in row.forms {
            for f in expand(form) {
                n += 1;
                let text = kernel(&f);
                let result = Module::load_with(text.as_bytes(), &Options::default())
                    .and_then(|m| m.kernel("k"));
                if let Err(e) = result {
                    wrong.push(format!(
                        "{f}: {}",
                        e.text.lines().next().unwrap_or_default()
                    ));
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {n}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(n > 1000);
}

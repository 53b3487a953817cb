//! Every form of instruction of the corpus, on the operands that were used on an H100.

use std::collections::BTreeMap;

use vgpu_ptx::{Launch, Module};

use crate::{corpus, corpus_text, device, ulps};

/// Operands and the result.
type Row = (Vec<u64>, u64);

/// The tolerated difference.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Rule {
    Exact,
    /// Any NaN for a NaN.
    F64,
    /// Units in the last place.
    Ulps(u32),
    /// An absolute error: for subnormal arguments, for those around 1, for others; or one unit.
    Log([f64; 3]),
    /// The argument beyond ±π makes any value possible.
    Angle(f64),
    /// Relative error, for f64.
    Relative(f64),
    /// Units in the last place of the 16-bit value.
    Half(u32),
}

fn rule(text: &str, d: &str) -> Rule {
    let op = text.split('.').next().unwrap();
    if !text.contains("approx") && !text.contains(".full") {
        return if d == "f64" { Rule::F64 } else { Rule::Exact };
    }
    match (op, d) {
        (_, "f16" | "bf16") => Rule::Half(1),
        (_, "f64") => Rule::Relative(1e-6),
        ("rcp" | "sqrt", _) => Rule::Ulps(1),
        ("rsqrt" | "ex2" | "div", _) => Rule::Ulps(2),
        ("lg2", _) => Rule::Log([1.5e-5, 2.4e-7, 8e-6]),
        ("sin", _) => Rule::Angle(3.5e-7),
        ("cos", _) => Rule::Angle(4.0e-7),
        ("tanh", _) => Rule::Ulps(134),
        _ => panic!("no rule for {text}"),
    }
}

fn agrees(rule: Rule, row: &[u64], got: u64, want: u64) -> bool {
    if got == want {
        return true;
    }
    let f = |x: u64| f64::from(f32::from_bits(x as u32));
    let nan = |x: u64| f64::from_bits(x).is_nan();
    match rule {
        Rule::Exact => false,
        Rule::F64 => nan(got) && nan(want),
        Rule::Ulps(n) => ulps(got as u32, want as u32) <= n && !f(got).is_nan(),
        Rule::Log([subnormal, near, other]) => {
            let x = f(row[0]).abs();
            let by = if x < f64::from(f32::MIN_POSITIVE) {
                subnormal
            } else if x > 0.5 && x < 2.0 {
                near
            } else {
                other
            };
            (f(got) - f(want)).abs() <= by || ulps(got as u32, want as u32) <= 1
        }
        Rule::Angle(by) => {
            (f(got) - f(want)).abs()
                <= if f(row[0]).abs() <= std::f64::consts::PI {
                    by
                } else {
                    2.0
                }
        }
        Rule::Relative(by) => {
            let (g, w) = (f64::from_bits(got), f64::from_bits(want));
            nan(got) && nan(want) || ((g - w) / w).abs() <= by
        }
        Rule::Half(n) => (got as i64 - want as i64).unsigned_abs() <= u64::from(n),
    }
}

/// The class under which a form is counted; each approximate one separately.
fn class<'t>(text: &'t str, types: &[&str]) -> &'t str {
    let op = text.trim_start_matches("{ ").split('.').next().unwrap();
    if text.contains("approx") || text.contains(".full") {
        text.split(' ').next().unwrap()
    } else if op == "cvt" {
        "conversions"
    } else if types.iter().any(|t| t.contains("f16")) {
        "f16 and bf16"
    } else if types.contains(&"f64") {
        "f64"
    } else if types.contains(&"f32") {
        "f32"
    } else {
        "integers and bits"
    }
}

#[test]
fn every_row_of_every_form_agrees() {
    let text = corpus_text("golden/instructions.txt");
    let mut counts: BTreeMap<&str, (u32, u32, u32)> = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut forms: Vec<(&str, Vec<Row>)> = Vec::new();
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        if line.starts_with("form ") {
            forms.push((line, Vec::new()));
            continue;
        }
        let (a, b) = line.split_once(" -> ").unwrap();
        let x = |s: &str| u64::from_str_radix(s, 16).unwrap();
        forms
            .last_mut()
            .unwrap()
            .1
            .push((a.split(' ').map(x).collect(), x(b)));
    }
    for level in ["75", "90"] {
        let file = if level == "75" {
            "golden/instructions.ptx"
        } else {
            "golden/instructions.sm_90.ptx"
        };
        let module = Module::load(&corpus(file)).unwrap();
        let device = device();
        let loaded = device.load(&module).unwrap();
        for (form, rows) in &forms {
            let (head, text) = form.split_once(" : ").unwrap();
            let words: Vec<&str> = head.split(' ').collect();
            if words[1] != level {
                continue;
            }
            let types = &words[3..];
            let mut input = Vec::new();
            for (row, _) in rows {
                for k in 0..3 {
                    input.extend(row.get(k).copied().unwrap_or(0).to_le_bytes());
                }
            }
            let a = device.allocate(input.len() as u64).unwrap();
            let o = device.allocate(16 * rows.len() as u64).unwrap();
            device.write(a, &input).unwrap();
            let kernel = module
                .kernel(words[2])
                .unwrap_or_else(|e| panic!("{form}: {e}"));
            let mut params = [a.to_le_bytes(), o.to_le_bytes()].concat();
            params.extend((rows.len() as u32).to_le_bytes());
            let blocks = u32::try_from(rows.len().div_ceil(64)).unwrap();
            device
                .launch(
                    &loaded,
                    &kernel,
                    &Launch::new([blocks, 1, 1], [64, 1, 1]),
                    &params,
                )
                .unwrap_or_else(|e| panic!("{form}: {e}"));
            let mut out = vec![0; 16 * rows.len()];
            device.read(o, &mut out).unwrap();
            device.free(a).unwrap();
            device.free(o).unwrap();
            let rule = rule(text, types[0]);
            let count = counts.entry(class(text, types)).or_default();
            let mut first = true;
            for (k, (row, want)) in rows.iter().enumerate() {
                // The result of a division by zero depends on how ptxas merges instructions.
                if (text.starts_with("div.") || text.starts_with("rem."))
                    && !types[0].starts_with('f')
                    && row[1] == 0
                {
                    continue;
                }
                let got = u64::from_le_bytes(out[16 * k..16 * k + 8].try_into().unwrap());
                count.1 += 1;
                count.2 += u32::from(got == *want);
                if agrees(rule, row, got, *want) {
                    count.0 += 1;
                } else if std::mem::take(&mut first) {
                    wrong.push(format!("{text} {row:x?}: {got:x}, not {want:x}"));
                }
            }
        }
    }
    let report: Vec<String> = counts
        .iter()
        .map(|(c, (ok, all, same))| format!("{c}: {ok} of {all}, {same} to the bit"))
        .collect();
    println!("{}", report.join("\n"));
    assert!(
        wrong.is_empty(),
        "{} forms differ:\n{}\n{}",
        wrong.len(),
        wrong.join("\n"),
        report.join("\n")
    );
}

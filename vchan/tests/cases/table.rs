//! The table in `docs/threat-model.md`: all 54 cases are there, and every test it names exists.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The rows of the table: number, tests, lab.
fn rows() -> Vec<(u32, String, String)> {
    let text = fs::read_to_string(root().join("docs/threat-model.md")).unwrap();
    let table = text
        .split("\n## ")
        .find(|part| part.starts_with("Attacks by a channel's peer"))
        .unwrap();
    table
        .lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let [_, number, _, guarantee, tests, lab, _] = cells[..] else {
                return None;
            };
            let number = number.parse().ok()?;
            assert!(!guarantee.is_empty(), "case {number} guarantees nothing");
            Some((number, tests.to_owned(), lab.to_owned()))
        })
        .collect()
}

/// The texts between backquotes.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

#[test]
fn every_case_is_in_the_table() {
    let numbers: Vec<u32> = rows().iter().map(|(number, ..)| *number).collect();
    assert_eq!(numbers, (1..=54).collect::<Vec<u32>>());
}

#[test]
fn every_test_of_the_table_exists() {
    let mut suite = String::new();
    for entry in fs::read_dir(root().join("xtask/src/lab/suite")).unwrap() {
        suite += &fs::read_to_string(entry.unwrap().path()).unwrap();
    }
    for (number, tests, lab) in rows() {
        let mut named = 0;
        for test in quoted(&tests) {
            let (file, function) = test
                .split_once("::")
                .unwrap_or_else(|| panic!("case {number}: `{test}` names no function"));
            let source = fs::read_to_string(root().join(file))
                .unwrap_or_else(|error| panic!("case {number}: {file}: {error}"));
            assert!(
                source.contains(&format!("fn {function}(")),
                "case {number}: {file} has no {function}"
            );
            named += 1;
        }
        for case in quoted(&lab) {
            if let Some(case) = case.strip_prefix("lab:") {
                assert!(
                    suite.contains(&format!("\"{case}\"")),
                    "case {number}: the lab has no {case}"
                );
                named += 1;
            }
        }
        assert!(named > 0, "case {number} names no test");
    }
}

/// The reverse: a test named after a case is in the case's row, so that the table stays complete.
#[test]
fn every_case_test_is_in_the_table() {
    let rows = rows();
    for entry in fs::read_dir(root().join("vchan/tests/cases")).unwrap() {
        let source = fs::read_to_string(entry.unwrap().path()).unwrap();
        for name in source.split("\nfn case_").skip(1) {
            let name = name.split('(').next().unwrap();
            let number: u32 = name[..2].parse().unwrap();
            let (_, tests, _) = rows.iter().find(|(n, ..)| *n == number).unwrap();
            assert!(
                tests.contains(&format!("::case_{name}`")),
                "case_{name} is not in the table"
            );
        }
    }
}

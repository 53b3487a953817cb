//! Files written by compilers and by people.

use vgpu_ptx::{Code, Error, Module, Options};

use crate::{all_files, corpus, corpus_text};

/// Triton writes a newer version than the default limit.
fn load(name: &str) -> Result<Module, Error> {
    Module::load_with(
        &corpus(name),
        &Options {
            version: (9, 5),
            ..Options::default()
        },
    )
}

#[test]
fn every_file_loads() {
    let mut kernels = 0;
    let files = all_files();
    for name in &files {
        let m = load(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        kernels += m.kernels().len();
    }
    assert!(
        files.len() >= 33 && kernels > 100,
        "{} files, {kernels} kernels",
        files.len()
    );
}

#[test]
fn only_wgmma_is_refused_and_the_refusal_says_where() {
    let mut refused = Vec::new();
    for name in all_files() {
        let m = load(&name).unwrap();
        for (kernel, k) in m.kernels() {
            if let Err(e) = k {
                assert_eq!(e.code, Code::InvalidPtx);
                assert!(
                    e.text.contains("does not implement 'wgmma") && e.text.contains("line "),
                    "{e}"
                );
                refused.push(format!("{name} {kernel}"));
            }
        }
    }
    assert_eq!(refused, ["triton/matmul.sm_90.ptx matmul"]);
}

#[test]
fn the_opcodes_of_the_corpus_are_all_known() {
    let list = corpus_text("opcodes.tsv");
    let union = list.split_once("# opcode\t").unwrap().1;
    let mut missing = Vec::new();
    for line in union.lines().skip(1) {
        let opcode = line.split('\t').next().unwrap();
        let word = opcode.split('.').next().unwrap();
        if !vgpu_ptx::table::TABLE
            .iter()
            .any(|r| r.name == word && (!r.forms.is_empty() || word == "wgmma"))
        {
            missing.push(opcode.to_string());
        }
    }
    assert_eq!(missing, Vec::<String>::new());
}

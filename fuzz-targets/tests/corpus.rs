//! The fuzz targets as ordinary tests: every kept input, and random changes of them.
//!
//! `FUZZ_SEED=N` repeats a run; the seed of a failing one is in its message.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use vgpu_fuzz_targets::{TARGETS, Target, target};

mod change;
use change::Random;

fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let folder = fuzz.join(target.name);
    let mut inputs: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("no corpus in {}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    inputs.sort();
    assert!(
        !inputs.is_empty(),
        "the corpus in {} is empty",
        folder.display()
    );
    inputs
}

fn replay(name: &str) {
    let target = target(name);
    let run = |input: &[u8], whence: &dyn Fn() -> String| {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (target.run)(input))) {
            eprintln!("fuzz target {name} failed on {}\n{input:02x?}", whence());
            resume_unwind(panic);
        }
    };
    let corpus = corpus(target);
    for (path, input) in &corpus {
        run(input, &|| path.display().to_string());
    }
    let mut known: Vec<Vec<u8>> = corpus.into_iter().map(|(_, input)| input).collect();
    for seed in (target.seeds)() {
        run(&seed, &|| "one of its seeds".to_owned());
        known.push(seed);
    }
    let seed = match std::env::var("FUZZ_SEED") {
        Ok(seed) => seed.parse().expect("FUZZ_SEED is a number"),
        Err(_) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            now.as_secs() << 20 | u64::from(now.subsec_micros())
        }
    };
    let mut random = Random::new(seed);
    for nth in 0..target.changes {
        let input = random.change(&known);
        run(&input, &|| format!("change {nth} of FUZZ_SEED={seed}"));
    }
}

macro_rules! replay {
    ($($name:ident)*) => {
        const REPLAYED: &[&str] = &[$(stringify!($name)),*];
        $(#[test] fn $name() { replay(stringify!($name)); })*
    };
}

replay! {
    protocol mediator_session guest_session control_page rendezvous extension region region_memory
    xenstore xenstore_messages file_segments file_session guide_files endpoints mediator_config control_lines compiler_wire tcp_greeting tcp_records
    ptx_module ptx_kernel cpu_session
}

#[test]
fn every_target_is_replayed_and_fuzzed() {
    let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(names, REPLAYED);
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    for name in names {
        let file = format!("fuzz_targets/{name}.rs");
        assert!(manifest.contains(&file), "fuzz/Cargo.toml lacks {file}");
        let text = fs::read_to_string(fuzz.join(&file)).unwrap();
        assert!(
            text.contains(&format!("\"{name}\"")),
            "{file} runs something else"
        );
    }
}

#[test]
fn the_corpus_stays_small() {
    let inputs: Vec<_> = TARGETS.iter().flat_map(corpus).collect();
    let bytes: usize = inputs.iter().map(|(_, input)| input.len()).sum();
    assert!(
        inputs.len() < 1500 && bytes < 1 << 20,
        "{} files, {bytes} bytes",
        inputs.len()
    );
}

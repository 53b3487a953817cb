//! `vector_add.ptx` is what `vector_add.cu` compiles to.
//!
//! The PTX is committed, so that nothing of CUDA is needed to build. Its first lines record the
//! checksums of the source and of the code below them, the compiler and its options. What is checked
//! everywhere is that neither file was changed without the other, and that the code is what the
//! launch expects. Where NVRTC can be loaded, which needs no GPU, the source is compiled again too,
//! and the same version must give the same text.
//!
//! After a change of `vector_add.cu`, with NVRTC 11.8 (its library in `LD_LIBRARY_PATH`):
//! ```text
//! cargo test -p vgpu-mediator --test vector_add_ptx -- --ignored write
//! ```
//! Not with a newer one: the PTX version that the compiler writes decides the oldest driver that
//! takes it, and 7.8 asks for no more than version 520 (CUDA 11.8).
#![allow(unsafe_code)]

use std::fs;
use std::path::PathBuf;

use cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts, sys};

/// The oldest GPUs that the code runs on; newer ones compile it for themselves.
const ARCHITECTURE: &str = "compute_52";
/// The compiler whose text is committed.
const COMPILER: &str = "NVRTC 11.8";
const END_OF_HEADER: &str = "// ---\n";

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("src/executor")
        .join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(path(name)).expect("the file is in the repository")
}

/// The lines above the code.
fn header(source: &str, code: &str) -> String {
    format!(
        "// The kernel of vector_add.cu. Made by a compiler: change that file, then make this one\n\
         // anew as mediator/tests/vector_add_ptx.rs says.\n\
         // source crc32c: {:08x}\n\
         // code crc32c: {:08x}\n\
         // compiler: {COMPILER}\n\
         // options: --gpu-architecture={ARCHITECTURE}\n\
         {END_OF_HEADER}",
        crc32c::crc32c(source.as_bytes()),
        crc32c::crc32c(code.as_bytes()),
    )
}

/// Header and code of the committed file.
fn committed() -> (String, String) {
    let file = read("vector_add.ptx");
    let (header, code) = file.split_once(END_OF_HEADER).expect("the header ends");
    (format!("{header}{END_OF_HEADER}"), code.to_owned())
}

/// The compiler that is here, and what it makes of the source; nothing where there is none.
fn compile() -> Option<(String, String)> {
    // SAFETY: opens and closes a library of NVIDIA's.
    if !unsafe { sys::is_culib_present() } {
        return None;
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library is there; both outputs are writable.
    unsafe { sys::nvrtcVersion(&mut major, &mut minor) }
        .result()
        .expect("a version");
    let options = CompileOptions {
        arch: Some(ARCHITECTURE),
        ..CompileOptions::default()
    };
    let compiled = compile_ptx_with_opts(read("vector_add.cu"), options);
    let text = match compiled {
        Ok(ptx) => ptx.to_src(),
        // CUDA 13 has dropped the oldest architectures.
        Err(error) => format!("{error:?}"),
    };
    Some((format!("NVRTC {major}.{minor}"), text))
}

#[test]
fn neither_file_was_changed_without_the_other() {
    let (recorded, code) = committed();
    assert_eq!(
        recorded,
        header(&read("vector_add.cu"), &code),
        "vector_add.cu and vector_add.ptx do not belong together; see the top of this test"
    );
}

#[test]
fn the_code_is_what_the_launch_expects() {
    let (_, code) = committed();
    assert!(code.is_ascii() && !code.contains('\0'));
    let words: Vec<&str> = code.split_whitespace().collect();
    let after = |word: &str| words[words.iter().position(|w| *w == word).expect(word) + 1];
    assert_eq!(after(".version"), "7.8");
    assert_eq!(after(".target"), "sm_52");
    assert_eq!(after(".address_size"), "64");
    assert_eq!(after(".entry"), "vector_add(");
    assert_eq!(words.iter().filter(|w| **w == ".entry").count(), 1);
    // Three pointers and the count, 8 bytes each, as `executor/trial.rs` passes them.
    let entry = code.find(".entry").expect("an entry");
    let end = entry + code[entry..].find(')').expect("parameters end");
    let parameters: Vec<&str> = code[entry..end]
        .lines()
        .filter(|l| l.contains(".param"))
        .collect();
    assert_eq!(parameters.len(), 4, "{parameters:?}");
    assert!(
        parameters
            .iter()
            .all(|line| line.trim().starts_with(".param .u64 "))
    );
    // One rounding for each sum, to nearest and with subnormal numbers: what the CPU does.
    assert!(words.contains(&"add.f32"));
    for other in [".ftz", "fma.", "add.rz", "add.approx"] {
        assert!(!code.contains(other), "{other}");
    }
}

#[test]
fn the_compiler_makes_the_same() {
    match compile() {
        None => test_skip::skipped(
            "no NVRTC here, so vector_add.cu was not compiled (put libnvrtc.so of CUDA 11.8 into \
             LD_LIBRARY_PATH); the checksums were compared",
        ),
        Some((compiler, text)) if compiler == COMPILER => {
            assert_eq!(
                text,
                committed().1,
                "{COMPILER} makes another vector_add.ptx"
            );
        }
        Some((compiler, text)) => test_skip::skipped(format_args!(
            "vector_add.ptx is the work of {COMPILER}, here is {compiler}, which {}",
            if text.contains("vector_add(") {
                "compiles the source too"
            } else {
                "refuses"
            }
        )),
    }
}

#[test]
#[ignore = "writes vector_add.ptx anew; run it after a change of vector_add.cu"]
fn write() {
    let (compiler, code) = compile().expect("libnvrtc.so in LD_LIBRARY_PATH");
    assert_eq!(
        compiler, COMPILER,
        "another compiler makes code for other drivers"
    );
    assert!(code.contains("vector_add("), "{code}");
    let file = header(&read("vector_add.cu"), &code) + &code;
    fs::write(path("vector_add.ptx"), file).expect("written");
}

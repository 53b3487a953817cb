//! The real NVRTC, where there is one.

use vgpu_nvrtc::{CompileError, Header, Nvrtc, Source, Version};

const TWICE: &str = "extern \"C\" __global__ void twice(float *x) { x[threadIdx.x] *= FACTOR; }";

fn open() -> Option<Nvrtc> {
    match Nvrtc::open(None) {
        Ok(nvrtc) => Some(nvrtc),
        Err(error) => {
            test_skip::skipped(format!("{error}; {}", error.advice()));
            None
        }
    }
}

#[test]
fn a_kernel_becomes_ptx_for_the_newest_architecture_that_the_device_runs() {
    let Some(nvrtc) = open() else { return };
    assert!(
        nvrtc.version()
            >= Version {
                major: 11,
                minor: 2
            }
    );
    let known = nvrtc.architectures();
    let (oldest, newest) = (known[0], known[known.len() - 1]);
    assert_eq!(nvrtc.architecture(10_000), Ok(newest));
    assert_eq!(nvrtc.architecture(oldest), Ok(oldest));
    let refused = nvrtc.architecture(oldest - 1).unwrap_err().to_string();
    assert!(
        refused.contains(&format!("compute_{oldest} and newer")),
        "{refused}"
    );
    let mut source = Source::new(TWICE);
    source.options = vec!["-DFACTOR=2.0f".to_owned()];
    let compiled = nvrtc.compile(&source, newest).unwrap();
    assert!(
        compiled.ptx.contains(&format!(".target sm_{newest}")),
        "{}",
        compiled.ptx
    );
    assert!(compiled.ptx.contains(".entry twice("), "{}", compiled.ptx);
    assert!(
        !compiled.ptx.contains('\0') && compiled.log.is_empty(),
        "{}",
        compiled.log
    );
}

#[test]
fn headers_come_from_memory() {
    let Some(nvrtc) = open() else { return };
    let mut source = Source::new(format!("#include \"parts/factor.h\"\n{TWICE}"));
    source.headers = vec![
        Header {
            name: "parts/factor.h".to_owned(),
            text: "#include <value.h>".to_owned(),
        },
        Header {
            name: "value.h".to_owned(),
            text: "#define FACTOR 2.0f".to_owned(),
        },
    ];
    let architecture = nvrtc.architectures()[0];
    assert!(nvrtc.compile(&source, architecture).is_ok());
}

#[test]
fn what_does_not_compile_is_told_with_its_line_and_the_log() {
    let Some(nvrtc) = open() else { return };
    let mut source = Source::new(format!("\n\n{TWICE}"));
    source.name = "kernels/twice.cu".to_owned();
    let architecture = nvrtc.architectures()[0];
    let error = nvrtc.compile(&source, architecture).unwrap_err();
    let line = error.to_string();
    assert!(line.contains("NVRTC_ERROR_COMPILATION (6): "), "{line}");
    assert!(
        line.contains("twice.cu(3): error: identifier \"FACTOR\" is undefined"),
        "{line}"
    );
    let CompileError::Nvrtc { log, .. } = error else {
        panic!("{line}")
    };
    assert!(log.contains("1 error detected"), "{log}");
    source.text.push('\0');
    let error = nvrtc.compile(&source, architecture).unwrap_err();
    assert_eq!(error.to_string(), "the source has a NUL byte");
    source.text.pop();
    source.options = vec!["--no-such-option".to_owned()];
    let error = nvrtc
        .compile(&source, architecture)
        .unwrap_err()
        .to_string();
    assert!(error.contains("NVRTC_ERROR_INVALID_OPTION"), "{error}");
}

/// The reason why a mediator compiles in a jail alone.
#[test]
fn nvrtc_hands_out_files() {
    let Some(nvrtc) = open() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    std::fs::write(&file, "the_secret of this machine;\n").unwrap();
    let source = Source::new(format!("#include \"{}\"\n{TWICE}", file.display()));
    let error = nvrtc
        .compile(&source, nvrtc.architectures()[0])
        .unwrap_err();
    let CompileError::Nvrtc { log, .. } = error else {
        panic!("{error}")
    };
    assert!(log.contains("the_secret of this machine"), "{log}");
}

//! Sources, with a compiler that answers what the test wants: the real one is in `tests/compile.rs`.

use std::sync::{Arc, Mutex};

use vgpu_protocol::op::field::{List, Text};
use vgpu_protocol::op::{ModuleCompile, ModuleCompileReply, SourceHeader};

use super::*;
use crate::compile::{Compile, Compiled, Job};

/// Answers each source with what is there for it, and keeps what it was asked.
#[derive(Debug, Default)]
struct Scripted {
    outcomes: Mutex<Vec<Result<Compiled, Failure>>>,
    jobs: Mutex<Vec<Job>>,
}

impl Compile for Scripted {
    fn compile(&self, job: &Job) -> Result<Compiled, Failure> {
        self.jobs.lock().unwrap().push(job.clone());
        self.outcomes.lock().unwrap().remove(0)
    }
}

fn module(slot: u32) -> Handle {
    Handle::new(HandleKind::Module, slot, 1).expect("within bounds")
}

fn source(slot: u32, bytes: u64) -> ModuleCompile {
    ModuleCompile {
        module: module(slot),
        capability: 0,
        source_bytes: bytes.try_into().expect("not 0"),
        name: "k.cu".into(),
        headers: List::default(),
        options: List::default(),
    }
}

fn with(outcomes: Vec<Result<Compiled, Failure>>) -> (Liar, Arc<Scripted>) {
    let scripted = Arc::new(Scripted {
        outcomes: Mutex::new(outcomes),
        ..Scripted::default()
    });
    let mut liar = Liar::new(64, 16);
    liar.0.set_compiler(scripted.clone());
    (liar, scripted)
}

fn compiled(result: i32, log: &str, ptx: &[u8]) -> Result<Compiled, Failure> {
    Ok(Compiled {
        result,
        log: log.to_owned(),
        ptx: ptx.to_vec(),
    })
}

fn kernel(slot: u32) -> ModuleFunction {
    ModuleFunction {
        module: module(slot),
        name: "k".into(),
    }
}

#[test]
fn a_source_becomes_a_module_with_what_the_compiler_said() {
    let (mut liar, scripted) = with(vec![compiled(0, "a warning\n", PTX)]);
    let free = liar.free_bytes();
    let mut request = source(0, 3);
    let header = SourceHeader {
        name: "a.h".into(),
        bytes: 2,
    };
    request.headers.push(header).unwrap();
    request.options.push(Text::from("-DX=1")).unwrap();
    let body = liar.ask_with(request, b"abcde").unwrap();
    let reply = ModuleCompileReply::decode(&body).unwrap();
    assert_eq!(
        (reply.result, reply.log.as_slice()),
        (0, &b"a warning\n"[..])
    );
    let job = scripted.jobs.lock().unwrap().pop().unwrap();
    assert_eq!(job.texts, b"abcde");
    assert_eq!(job.order.headers, [("a.h".to_owned(), 2)]);
    assert_eq!(job.order.options, ["-DX=1"]);
    // The device's own, and a version of its driver.
    assert!(
        job.order.capability >= 50 && job.order.driver >= 11_000,
        "{job:?}"
    );
    liar.ask(kernel(0)).unwrap();
    assert!(liar.free_bytes() < free);
    liar.ask(ModuleUnload { module: module(0) }).unwrap();
    assert_eq!(liar.free_bytes(), free);
}

#[test]
fn what_fails_poisons_its_handle_until_it_is_unloaded() {
    let failure = Failure {
        status: ErrorCode::Timeout.into(),
        text: "too long".to_owned(),
    };
    let (mut liar, _) = with(vec![
        compiled(6, "k.cu(1): error: no\nmore\n", b""),
        Err(failure),
        compiled(0, "", b"no PTX at all"),
        compiled(0, "", b""),
        compiled(0, "", &vec![b'/'; 60 << 20]),
        compiled(0, "", PTX),
    ]);
    let free = liar.free_bytes();
    let mut ask = |slot| {
        let outcome = liar.ask_with(source(slot, 4), b"text");
        let later = liar.ask(kernel(slot)).expect_err("poisoned");
        liar.ask(ModuleUnload {
            module: module(slot),
        })
        .expect("it is unloaded");
        (outcome, later)
    };
    let (outcome, later) = ask(0);
    let reply = ModuleCompileReply::decode(&outcome.unwrap()).unwrap();
    assert_eq!(
        (reply.result, reply.log.as_slice()),
        (6, &b"k.cu(1): error: no\nmore\n"[..])
    );
    assert_eq!(
        later.text,
        "the module does not compile: k.cu(1): error: no"
    );
    let (outcome, later) = ask(1);
    assert_eq!(outcome.unwrap_err(), later);
    assert_eq!(later.status, ErrorCode::Timeout.into());
    let (outcome, later) = ask(2);
    assert_eq!(outcome.unwrap_err(), later);
    // Success without anything is none.
    let (outcome, _) = ask(3);
    assert_eq!(
        ModuleCompileReply::decode(&outcome.unwrap())
            .unwrap()
            .result,
        6
    );
    // PTX counts like any image.
    let (outcome, _) = ask(4);
    assert_eq!(outcome.unwrap_err().status, ErrorCode::QuotaMemory.into());
    assert_eq!(liar.free_bytes(), free);
    liar.ask_with(source(5, 4), b"text").unwrap();
    liar.ask(kernel(5)).unwrap();
}

#[test]
fn what_cannot_be_compiled_is_refused_before_anybody_is_asked() {
    let mut liar = Liar::new(64, 16);
    liar.refused(source(0, 4), ErrorCode::Unsupported);
    liar.refused(kernel(0), ErrorCode::Unsupported);
    liar.ask(ModuleUnload { module: module(0) }).unwrap();
    let (mut liar, scripted) = with(Vec::new());
    let options = [
        "-I/etc",
        "--pre-include=/etc/passwd",
        "--gpu-architecture=sm_90",
    ];
    for (slot, option) in (4..).zip(options) {
        let mut request = source(slot, 4);
        request.options.push(Text::from(option)).unwrap();
        liar.refused(request, ErrorCode::Range);
    }
    let failure = liar.ask_with(source(2, 2), b"\xff\xfe").unwrap_err();
    assert_eq!(failure.status, INVALID_VALUE, "{}", failure.text);
    // A handle that is taken.
    liar.load(module(3)).unwrap();
    liar.refused(source(3, 4), ErrorCode::Handle);
    liar.ask(kernel(3)).unwrap();
    assert!(scripted.jobs.lock().unwrap().is_empty());
}

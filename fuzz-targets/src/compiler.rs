//! The bytes between a worker and a compiler, either of which a guest may have taken over.

use vgpu_mediator::compile::wire::{read_job, read_outcome, write_job, write_outcome};
use vgpu_mediator::compile::{Compiled, Job, Order};
use vgpu_protocol::session::server::Failure;
use vgpu_protocol::status::ErrorCode;

/// A value that was read is the same after it is written and read again.
pub(crate) fn run(data: &[u8]) {
    if let Ok(job) = read_job(&mut &data[..]) {
        let mut wire = Vec::new();
        write_job(&mut wire, &job).expect("what was read can be written");
        assert_eq!(read_job(&mut &wire[..]).ok(), Some(job));
    }
    if let Ok(outcome) = read_outcome(&mut &data[..]) {
        if let Ok(compiled) = &outcome {
            let printable = |c: char| !c.is_control() || c == '\n' || c == '\t';
            assert!(compiled.log.chars().all(printable), "{:?}", compiled.log);
        }
        let mut wire = Vec::new();
        write_outcome(&mut wire, &outcome).expect("what was read can be written");
        assert_eq!(read_outcome(&mut &wire[..]).ok(), Some(outcome));
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let job = Job {
        order: Order {
            driver: 12_040,
            capability: 90,
            name: "k.cu".to_owned(),
            source_bytes: 4,
            headers: vec![("a.h".to_owned(), 3)],
            options: vec!["-DX=1".to_owned()],
        },
        texts: b"textabc".to_vec(),
    };
    let compiled = Compiled {
        result: 6,
        log: "k.cu(1): error\n".to_owned(),
        ptx: b".version 8.0".to_vec(),
    };
    let failure = Failure {
        status: ErrorCode::Unsupported.into(),
        text: "no NVRTC".to_owned(),
    };
    let mut seeds = vec![Vec::new(), Vec::new(), Vec::new()];
    write_job(&mut seeds[0], &job).expect("small");
    write_outcome(&mut seeds[1], &Ok(compiled)).expect("small");
    write_outcome(&mut seeds[2], &Err(failure)).expect("small");
    seeds
}

//! The bytes between a worker and the compiler that has its guest's source. Both sides belong to that guest, and
//! neither trusts the other with more than bounded memory and time.
//!
//! A job is two lengths (u32: the order as JSON, the texts) and the bytes of both. An answer is a kind (u8) with a
//! number (i32) and two lengths (u32), and the bytes of both: of a compilation its result, log and PTX; of a failure
//! its status, its text and nothing. All numbers are little-endian.

use std::io::{self, Read, Write};

use vgpu_nvrtc::{MAX_LOG, MAX_PTX, clean};
use vgpu_protocol::op::MAX_SOURCE;
use vgpu_protocol::session::server::Failure;
use vgpu_protocol::status::{MAX_ERROR_TEXT, Status};

use super::{Compiled, Job};

/// Most bytes of an order: names and options that the protocol allows, with JSON's escapes.
const MAX_ORDER: usize = 256 << 10;

const COMPILED: u8 = 0;
const FAILED: u8 = 1;

/// An outcome on its way.
pub type Outcome = Result<Compiled, Failure>;

fn length(bytes: &[u8], most: usize, what: &str) -> io::Result<[u8; 4]> {
    let length = u32::try_from(bytes.len()).ok();
    match length.filter(|_| bytes.len() <= most) {
        Some(length) => Ok(length.to_le_bytes()),
        None => Err(io::Error::other(format!("{what} of {} bytes", bytes.len()))),
    }
}

/// Reads `length` bytes, if they are no more than `most`: memory grows with what comes.
fn bytes(from: &mut impl Read, length: [u8; 4], most: usize, what: &str) -> io::Result<Vec<u8>> {
    let length = u32::from_le_bytes(length);
    if length as usize > most {
        return Err(io::Error::other(format!("{what} of {length} bytes")));
    }
    let mut bytes = Vec::new();
    from.take(length.into()).read_to_end(&mut bytes)?;
    match bytes.len() == length as usize {
        true => Ok(bytes),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn array<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut array = [0; N];
    from.read_exact(&mut array)?;
    Ok(array)
}

/// Sends a job.
///
/// # Errors
/// It has more than a job may have; the stream's.
pub fn write_job(to: &mut impl Write, job: &Job) -> io::Result<()> {
    let order = serde_json::to_vec(&job.order)?;
    let most = usize::try_from(MAX_SOURCE).expect("1 MiB");
    let mut head = length(&order, MAX_ORDER, "an order")?.to_vec();
    head.extend(length(&job.texts, most, "a source")?);
    to.write_all(&head)?;
    to.write_all(&order)?;
    to.write_all(&job.texts)
}

/// Receives one.
///
/// # Errors
/// It breaks a rule, or ends early; the stream's.
pub fn read_job(from: &mut impl Read) -> io::Result<Job> {
    let (order, texts) = (array(from)?, array(from)?);
    let order = bytes(from, order, MAX_ORDER, "an order")?;
    let most = usize::try_from(MAX_SOURCE).expect("1 MiB");
    Ok(Job {
        order: serde_json::from_slice(&order)?,
        texts: bytes(from, texts, most, "a source")?,
    })
}

/// Sends an outcome.
///
/// # Errors
/// It has more than an outcome may have; the stream's.
pub fn write_outcome(to: &mut impl Write, outcome: &Outcome) -> io::Result<()> {
    let (kind, number, first, second) = match outcome {
        Ok(compiled) => {
            let log = compiled.log.as_bytes();
            (COMPILED, compiled.result, log, &compiled.ptx[..])
        }
        Err(failure) => {
            let text = vgpu_protocol::status::encode_error_text(&failure.text);
            (FAILED, failure.status.to_raw(), text, &[][..])
        }
    };
    let mut head = vec![kind];
    head.extend(number.to_le_bytes());
    head.extend(length(first, MAX_LOG, "a log")?);
    head.extend(length(second, MAX_PTX, "PTX")?);
    to.write_all(&head)?;
    to.write_all(first)?;
    to.write_all(second)
}

/// Receives one. Nothing of it is believed: it comes from a process that has read a guest's source.
///
/// # Errors
/// It breaks a rule, or ends early; the stream's.
pub fn read_outcome(from: &mut impl Read) -> io::Result<Outcome> {
    let [kind] = array(from)?;
    let number = i32::from_le_bytes(array(from)?);
    let (first, second) = (array(from)?, array(from)?);
    match kind {
        COMPILED => {
            let log = bytes(from, first, MAX_LOG, "a log")?;
            Ok(Ok(Compiled {
                result: number,
                log: clean(&log, MAX_LOG),
                ptx: bytes(from, second, MAX_PTX, "PTX")?,
            }))
        }
        FAILED => {
            let text = bytes(from, first, MAX_ERROR_TEXT, "a text")?;
            let status = Status::from_raw(number);
            let Status::Mediator(code) = status else {
                return Err(io::Error::other(format!("a failure with status {number}")));
            };
            if code.ends_session() {
                return Err(io::Error::other(format!("a failure with {code}")));
            }
            Ok(Err(Failure {
                status,
                text: vgpu_protocol::status::decode_error_text(&text),
            }))
        }
        kind => Err(io::Error::other(format!("an answer of kind {kind}"))),
    }
}

#[cfg(test)]
mod tests {
    use vgpu_protocol::status::ErrorCode;

    use super::*;
    use crate::compile::Order;

    #[test]
    fn jobs_and_outcomes_arrive_as_they_are_sent() {
        let job = Job {
            order: Order {
                driver: 12_040,
                capability: 90,
                name: "k.cu".to_owned(),
                source_bytes: 3,
                headers: vec![("a\"\n.h".to_owned(), 2)],
                options: vec!["-DX=\"1\"".to_owned()],
            },
            texts: b"abcde".to_vec(),
        };
        let mut wire = Vec::new();
        write_job(&mut wire, &job).unwrap();
        assert_eq!(read_job(&mut &wire[..]).unwrap(), job);
        for cut in 0..wire.len() {
            assert!(read_job(&mut &wire[..cut]).is_err(), "{cut}");
        }
        let refused = Failure {
            status: ErrorCode::Unsupported.into(),
            text: "no NVRTC".to_owned(),
        };
        let compiled = Compiled {
            result: 6,
            log: "a.cu(1): error\n".to_owned(),
            ptx: b".version".to_vec(),
        };
        for outcome in [Ok(compiled), Err(refused)] {
            let mut wire = Vec::new();
            write_outcome(&mut wire, &outcome).unwrap();
            assert_eq!(read_outcome(&mut &wire[..]).unwrap(), outcome);
            for cut in 0..wire.len() {
                assert!(read_outcome(&mut &wire[..cut]).is_err(), "{cut}");
            }
        }
    }

    #[test]
    fn nothing_from_a_compiler_that_was_taken_over_is_believed() {
        let head = |kind: u8, number: i32, first: u32, second: u32| {
            let mut wire = vec![kind];
            wire.extend(number.to_le_bytes());
            wire.extend(first.to_le_bytes());
            wire.extend(second.to_le_bytes());
            wire.extend(vec![b'\x1b'; 4096]);
            wire
        };
        let refused = |wire: &[u8]| read_outcome(&mut &wire[..]).unwrap_err().to_string();
        assert_eq!(refused(&head(2, 0, 0, 0)), "an answer of kind 2");
        assert_eq!(
            refused(&head(0, 0, u32::MAX, 0)),
            "a log of 4294967295 bytes"
        );
        assert_eq!(
            refused(&head(0, 0, 0, (16 << 20) + 1)),
            "PTX of 16777217 bytes"
        );
        assert_eq!(refused(&head(1, -8, 2000, 0)), "a text of 2000 bytes");
        // Not even announced bytes cost memory that do not come.
        assert!(read_outcome(&mut &head(0, 0, 0, 16 << 20)[..]).is_err());
        // Statuses that would end the session, or that are not the mediator's.
        for status in [0, 700, -7, -11, -1, -1000] {
            assert!(refused(&head(1, status, 1, 0)).starts_with("a failure with "));
        }
        let Ok(Ok(compiled)) = read_outcome(&mut &head(0, 6, 3, 1)[..]) else {
            panic!("an outcome");
        };
        assert_eq!(compiled.log, "   ");
    }
}

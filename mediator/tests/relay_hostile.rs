//! A mediator behind a relay that lies: whatever it sends, the guest gets a clear error, the relay
//! lives on, and an honest one serves after it.

mod support;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use support::{Mediator, WATCHDOG, add, options, wait_until};
use vchan::Channel;
use vchan::local::{Listener, connect_on};
use vgpu_guest::{Cause, Client, Error, Options};
use vgpu_protocol::frame::{FrameHeader, HEADER_LEN};
use vgpu_protocol::message::{
    Features, HelloReply, InfoReply, Limits, Op, VectorAdd, VectorAddReply,
};
use vgpu_protocol::status::{ErrorCode, Status};

/// Elements of the vectors in here: two chunks, the second one short.
const ELEMENTS: usize = 1500;
const CHUNK: u32 = 1000;

/// What the liar does once it is asked to add vectors.
type Lie = fn(&mut Liar, FrameHeader);

/// A mediator's end of a session, as far as a lie needs it.
struct Liar {
    channel: Channel,
    /// Ends what waits for ever.
    over: Receiver<()>,
}

fn soon() -> Instant {
    Instant::now() + WATCHDOG
}

impl Liar {
    fn frame(&mut self) -> Option<(FrameHeader, Vec<u8>)> {
        let mut header = [0; HEADER_LEN];
        self.channel.read_exact(&mut header, soon()).ok()?;
        let header = FrameHeader::decode(&header).expect("the relay sends frames");
        let mut body = vec![0; header.body_len as usize];
        self.channel.read_exact(&mut body, soon()).ok()?;
        Some((header, body))
    }

    fn send(&mut self, header: FrameHeader, body: &[u8]) {
        let header = header.with_body_len(u32::try_from(body.len()).unwrap());
        self.raw(&[&header.encode()[..], body].concat());
    }

    fn raw(&mut self, bytes: &[u8]) {
        // The relay may have hung up on an earlier lie.
        let _ = self.channel.write_all(bytes, soon());
    }

    /// Takes a whole Data frame of the input.
    fn chunk(&mut self) {
        assert_eq!(self.frame().expect("input").0.op, Op::Data);
    }

    fn ok(&mut self, request: &FrameHeader, body: &[u8]) {
        self.send(FrameHeader::reply_to(request, Status::OK), body);
    }

    fn result(&mut self, request: &FrameHeader, bytes: usize) {
        self.send(FrameHeader::data_reply_to(request, 0), &vec![0; bytes]);
    }

    /// Says nothing more until the test is over.
    fn silence(&mut self) {
        let _ = self.over.recv_timeout(WATCHDOG);
    }

    /// Honest until vectors are to be added. Then it `stays`, or is gone.
    fn serve(&mut self, limits: Limits, stays: bool, lie: Lie) {
        while let Some((header, body)) = self.frame() {
            match header.op {
                Op::Hello => {
                    let reply = HelloReply {
                        version: 1,
                        features: Features::ALL,
                        limits,
                        epoch: 7,
                    };
                    self.ok(&header, &reply.encode());
                }
                Op::Info => {
                    let info = InfoReply {
                        executor: "cpu".into(),
                        device: "a liar's \u{1b}[31m device".into(),
                        ..InfoReply::default()
                    };
                    self.ok(&header, &info.encode());
                }
                Op::Ping => self.ok(&header, &body),
                Op::VectorAdd => {
                    VectorAdd::decode(&body).unwrap();
                    lie(self, header);
                    if stays {
                        self.silence();
                    }
                    return;
                }
                _ => return,
            }
        }
    }
}

const LIMITS: Limits = Limits {
    max_body: 1 << 20,
    max_lanes: 1,
    max_requests: 4,
    max_handles: 4,
    max_chunk_elements: CHUNK,
    preferred_chunk_elements: CHUNK,
    max_elements: 1 << 20,
};

/// Serves sessions until the sender is dropped; each runs the lie.
fn liar(path: PathBuf, limits: Limits, stays: bool, lie: Lie) -> (Sender<()>, JoinHandle<()>) {
    let listener = Listener::bind(&path).unwrap();
    let (over, ended) = mpsc::channel::<()>();
    let thread = thread::spawn(move || {
        let mut sessions = Vec::new();
        while matches!(ended.try_recv(), Err(mpsc::TryRecvError::Empty)) {
            let Ok(stream) = listener.accept(Instant::now() + Duration::from_millis(20)) else {
                continue;
            };
            let (stop, over) = mpsc::channel();
            let session = thread::spawn(move || {
                let channel = connect_on(stream, soon()).unwrap();
                Liar { channel, over }.serve(limits, stays, lie);
            });
            sessions.push((stop, session));
        }
        for (stop, session) in sessions {
            drop(stop);
            session.join().expect("the liar keeps to its script");
        }
    });
    (over, thread)
}

fn near(directory: &Path, far: &Path) -> Mediator {
    let executor = format!("relay:local:{}", far.display());
    Mediator::start(directory, &["--executor", &executor])
}

fn refusal(error: &Error) -> (Status, String) {
    match error.cause() {
        Cause::Refused { status, text, .. } => (*status, text.clone()),
        Cause::NoEndpoint(left) => refusal(&left[0].error),
        other => panic!("{other:?}"),
    }
}

/// What a guest hears when the mediator behind tells this lie.
fn told(lie: Lie) -> (Status, String) {
    told_about(ELEMENTS, false, lie)
}

fn told_about(elements: usize, stays: bool, lie: Lie) -> (Status, String) {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let far = directories[1].path().join("vgpu.sock");
    let (over, thread) = liar(far.clone(), LIMITS, stays, lie);
    let mediator = near(directories[0].path(), &far);
    let patient = Options {
        stall_timeout: Duration::from_secs(1),
        ..options()
    };
    let mut client = Client::connect(&[mediator.endpoint()], &patient).unwrap();
    client.ping(b"honest so far").unwrap();
    let told = refusal(&add(&mut client, elements).unwrap_err());
    let place = format!("local:{}", far.display());
    assert!(told.1.contains(&place), "{told:?}");
    drop(client);
    drop(over);
    thread.join().unwrap();
    wait_until("the session is over", || mediator.workers().is_empty());

    let _honest = Mediator::start(directories[1].path(), &[]);
    add(&mut mediator.connect().unwrap(), ELEMENTS).unwrap();
    told
}

fn assert_broken(lie: Lie, words: &str) {
    assert_broken_about(ELEMENTS, lie, words);
}

fn assert_broken_about(elements: usize, lie: Lie, words: &str) {
    let (status, text) = told_about(elements, true, lie);
    assert_eq!(status, ErrorCode::BackendLost.into(), "{text}");
    assert!(text.contains("breaks the protocol"), "{text}");
    assert!(text.contains(words), "{text}");
}

#[test]
fn a_result_before_its_input() {
    // Eight megabytes of input, of which the ring takes one: the liar reads none of it.
    assert_broken_about(
        1 << 20,
        |liar, request| {
            for _ in 0..1000 {
                liar.result(&request, 4000);
            }
        },
        "cannot be there yet",
    );
}

#[test]
fn a_result_for_another_request() {
    assert_broken(
        |liar, mut request| {
            liar.chunk();
            request.request_id += 1;
            liar.result(&request, 4000);
        },
        "bytes for request",
    );
}

#[test]
fn results_of_wrong_lengths() {
    for length in [0, 3996, 4004, 1 << 20] {
        let lie: Lie = match length {
            0 => |liar, request| {
                liar.chunk();
                liar.result(&request, 0);
            },
            3996 => |liar, request| {
                liar.chunk();
                liar.result(&request, 3996);
            },
            4004 => |liar, request| {
                liar.chunk();
                liar.result(&request, 4004);
            },
            _ => |liar, request| {
                liar.chunk();
                liar.result(&request, 1 << 20);
            },
        };
        assert_broken(lie, "4000 bytes for request");
    }
}

#[test]
fn more_results_than_chunks() {
    assert_broken(
        |liar, request| {
            liar.chunk();
            liar.chunk();
            liar.result(&request, 4000);
            liar.result(&request, 2000);
            liar.result(&request, 2000);
        },
        "cannot be there yet",
    );
}

#[test]
fn done_too_early_or_with_another_number() {
    assert_broken(
        |liar, request| {
            let reply = VectorAddReply {
                elements: ELEMENTS as u64,
                device_ns: 1,
            };
            liar.ok(&request, &reply.encode());
        },
        "says that it is done, and is not",
    );
    assert_broken(
        |liar, request| {
            liar.chunk();
            liar.chunk();
            liar.result(&request, 4000);
            liar.result(&request, 2000);
            let reply = VectorAddReply {
                elements: 7,
                device_ns: u64::MAX,
            };
            liar.ok(&request, &reply.encode());
        },
        "says that it is done, and is not",
    );
}

#[test]
fn frames_that_are_none_and_requests_of_its_own() {
    assert_broken(|liar, _| liar.raw(&[0x55; 4096]), "no frame");
    assert_broken(
        |liar, _| liar.send(FrameHeader::request(Op::Ping, 9), b""),
        "answers Ping 9",
    );
}

#[test]
fn an_answer_to_what_nobody_asked() {
    assert_broken(
        |liar, request| {
            let ping = FrameHeader::request(Op::Ping, request.request_id);
            liar.ok(&ping, b"");
        },
        "is due",
    );
}

#[test]
fn silence_in_the_middle_of_a_result() {
    let (status, text) = told(|liar, request| {
        liar.chunk();
        let header = FrameHeader::data_reply_to(&request, 4000);
        liar.raw(&header.encode());
        liar.raw(&[0; 100]);
        liar.silence();
    });
    assert_eq!(status, ErrorCode::BackendLost.into(), "{text}");
    assert!(text.contains("has not moved for 750 ms"), "{text}");
}

#[test]
fn gone_in_the_middle_of_a_result() {
    let (status, text) = told(|liar, request| {
        liar.chunk();
        let header = FrameHeader::data_reply_to(&request, 4000);
        liar.raw(&header.encode());
        liar.raw(&[0; 100]);
    });
    assert_eq!(status, ErrorCode::BackendLost.into(), "{text}");
    assert!(text.contains("is gone"), "{text}");
}

#[test]
fn an_error_of_its_own_comes_through_and_steers_no_terminal() {
    let (status, text) = told(|liar, request| {
        liar.chunk();
        let reply = FrameHeader::reply_to(&request, Status::from_raw(700));
        liar.send(reply, b"illegal \x1b[31maddress");
        // It takes the end of the input as an honest one does.
        while let Some((header, _)) = liar.frame() {
            if header.op == Op::Data && !header.has_more() {
                break;
            }
        }
    });
    assert_eq!(status, Status::Cuda(700), "{text}");
    assert!(
        text.contains("illegal") && !text.contains('\u{1b}'),
        "{text}"
    );
}

#[test]
fn a_session_that_allows_nothing_is_refused_at_hello() {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let far = directories[1].path().join("vgpu.sock");
    let nothing = Limits {
        max_chunk_elements: 0,
        preferred_chunk_elements: 0,
        ..LIMITS
    };
    let (over, thread) = liar(far.clone(), nothing, false, |_, _| {});
    let mediator = near(directories[0].path(), &far);
    let (status, text) = refusal(&mediator.connect().unwrap_err());
    assert_eq!(status, ErrorCode::BackendLost.into(), "{text}");
    assert!(text.contains("allows nothing at all"), "{text}");
    drop(over);
    thread.join().unwrap();
}

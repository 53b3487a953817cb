//! A mediator behind a relay that lies: whatever it sends, the guest gets a clear error, the relay
//! lives on, and an honest one serves after it.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vchan::Channel;
use vchan::local::{Listener, connect_on};
use vgpu_guest::{Client, Options};
use vgpu_protocol::frame::{FrameHeader, HEADER_LEN};
use vgpu_protocol::op::{Body, ExchangeReply, Features, HelloReply, InfoReply, Op};
use vgpu_protocol::status::{ErrorCode, Status};

use crate::refusal;
use crate::support::{Mediator, WATCHDOG, add, options, wait_until};

/// Elements of the vectors in here, whose 12,000 bytes may be sent at once.
const ELEMENTS: usize = 1500;

/// The liar's behaviour once it is asked to add vectors.
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

    /// Takes all of the input.
    fn input(&mut self) {
        loop {
            let (header, _) = self.frame().expect("input");
            assert_eq!(header.op, Op::Data);
            if !header.has_more() {
                return;
            }
        }
    }

    fn ok(&mut self, request: &FrameHeader, body: &[u8]) {
        self.send(FrameHeader::reply_to(request, Status::OK), body);
    }

    fn result(&mut self, request: &FrameHeader, bytes: usize) {
        self.send(FrameHeader::data_down(request, 0, 0), &vec![0; bytes]);
    }

    /// Says nothing more until the test is over.
    fn silence(&mut self) {
        let _ = self.over.recv_timeout(WATCHDOG);
    }

    /// Honest until something is to be exchanged. Then it `stays`, or is gone.
    fn serve(&mut self, features: Features, stays: bool, lie: Lie) {
        while let Some((header, body)) = self.frame() {
            match header.op {
                Op::Hello => {
                    let reply = HelloReply {
                        version: 1.try_into().unwrap(),
                        features,
                        max_lanes: 4.try_into().unwrap(),
                        max_requests: 4.try_into().unwrap(),
                        max_handles: 4,
                        initial_credit: 64 << 10,
                        epoch: 7,
                    };
                    self.ok(&header, &reply.encode());
                }
                Op::Info => {
                    let info = InfoReply {
                        total_memory: 0,
                        executor: "cpu".into(),
                        device: "a liar's \u{1b}[31m device".into(),
                        driver: "".into(),
                        reason: "".into(),
                        mediator: "".into(),
                    };
                    self.ok(&header, &info.encode());
                }
                Op::Ping => self.ok(&header, &body),
                Op::Exchange => {
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

/// Serves sessions until the sender is dropped; each runs the lie.
fn liar(path: PathBuf, features: Features, stays: bool, lie: Lie) -> (Sender<()>, JoinHandle<()>) {
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
                Liar { channel, over }.serve(features, stays, lie);
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

/// Status and text that a guest gets when the mediator behind tells this lie.
fn told(lie: Lie) -> (Status, String) {
    told_about(ELEMENTS, false, lie)
}

fn told_about(elements: usize, stays: bool, lie: Lie) -> (Status, String) {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let far = directories[1].path().join("vgpu.sock");
    let (over, thread) = liar(far.clone(), Features::ALL, stays, lie);
    let mediator = near(directories[0].path(), &far);
    let patient = Options {
        stall_timeout: Duration::from_secs(1),
        ..options()
    };
    let mut client = Client::connect(&[mediator.endpoint()], &patient).unwrap();
    client.ping(b"honest so far").unwrap();
    let (data, mut back) = (vec![5; 8 * elements], vec![0; 4 * elements]);
    let told = refusal(&client.exchange(&data, &mut back).unwrap_err());
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
fn more_of_a_result_than_is_due() {
    // Eight megabytes of input, of which the liar reads none.
    assert_broken_about(
        1 << 20,
        |liar, request| {
            for _ in 0..=64 {
                liar.result(&request, 65_536);
            }
        },
        "sent 65536 bytes for request",
    );
    assert_broken(
        |liar, request| {
            liar.input();
            liar.result(&request, 6000);
            liar.result(&request, 4);
        },
        "where 0 bytes are due",
    );
}

#[test]
fn a_result_for_another_request() {
    assert_broken(
        |liar, mut request| {
            request.request_id += 1;
            liar.result(&request, 4000);
        },
        "which is not under way",
    );
}

#[test]
fn done_too_early_or_with_something_else() {
    assert_broken_about(
        1 << 20,
        |liar, request| liar.ok(&request, &ExchangeReply {}.encode()),
        "before its data was sent",
    );
    assert_broken(
        |liar, request| {
            liar.input();
            liar.result(&request, 4000);
            liar.ok(&request, &ExchangeReply {}.encode());
        },
        "2000 bytes too early",
    );
    assert_broken(
        |liar, request| {
            liar.input();
            liar.result(&request, 6000);
            liar.ok(&request, b"done");
        },
        "sends what it should not",
    );
}

#[test]
fn frames_that_are_none_and_requests_of_its_own() {
    assert_broken(|liar, _| liar.raw(&[0x55; 4096]), "magic");
    assert_broken(
        |liar, _| liar.send(FrameHeader::request(Op::Ping, 9), b"\0\0"),
        "Ping",
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
        liar.input();
        liar.raw(&FrameHeader::data_down(&request, 4000, 0).encode());
        liar.raw(&[0; 100]);
        liar.silence();
    });
    assert_eq!(status, ErrorCode::BackendLost.into(), "{text}");
    assert!(text.contains("has not moved for 750 ms"), "{text}");
}

#[test]
fn gone_in_the_middle_of_a_result() {
    let (status, text) = told(|liar, request| {
        liar.input();
        liar.raw(&FrameHeader::data_down(&request, 4000, 0).encode());
        liar.raw(&[0; 100]);
    });
    assert_eq!(status, ErrorCode::BackendLost.into(), "{text}");
    assert!(text.contains("is gone"), "{text}");
}

#[test]
fn an_error_of_its_own_comes_through_and_steers_no_terminal() {
    let (status, text) = told(|liar, request| {
        let reply = FrameHeader::reply_to(&request, Status::from_raw(700));
        liar.send(reply, b"illegal \x1b[31maddress");
        // It takes the end of the input as an honest one does.
        liar.input();
    });
    assert_eq!(status, Status::Cuda(700), "{text}");
    assert!(
        text.contains("illegal") && !text.contains('\u{1b}'),
        "{text}"
    );
}

#[test]
fn a_session_with_what_nobody_offered_is_refused_at_hello() {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let far = directories[1].path().join("vgpu.sock");
    let (over, thread) = liar(far.clone(), Features(u64::MAX), false, |_, _| {});
    let mediator = near(directories[0].path(), &far);
    let (status, text) = refusal(&mediator.connect().unwrap_err());
    assert_eq!(status, ErrorCode::BackendLost.into(), "{text}");
    assert!(text.contains("features that were not offered"), "{text}");
    drop(over);
    thread.join().unwrap();
}

//! A guest that is bytes and nothing else, a relay as it runs in a worker, and behind it an honest
//! mediator or one that lies.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use vgpu_protocol::frame::{Flags, FrameHeader};
use vgpu_protocol::op::{
    Body, ExchangeReply, Features, Fence, FenceReply, Goodbye, HelloReply, Info, InfoReply,
    MemoryInfo, Op, PingReply, Synchronize, SynchronizeReply,
};
use vgpu_protocol::session::server::{Failure, Terms};
use vgpu_protocol::status::{ErrorCode, Status, decode_error_text};
use vgpu_socket_transport::SocketTransport;

use super::backend::Relay;
use super::far_session::FarSession;
use crate::executor::cpu::CpuExecutor;
use crate::session::backend::Event;
use crate::session::tests::{
    Guest, Held, HeldBackend, WATCHDOG, add_on_the_device, as_in_a_worker, assert_answer, data,
    exchange, ping, settings, stream_exchange,
};
use crate::session::{self, SessionEnd, Settings, StopFlag, StopReason, Stream, run};
use crate::usage::{Observed, Usage};

/// The other mediator's endpoint in the tests' messages.
const PLACE: &str = "unix:/there";

/// Runs a guest's session through a relay; `far` is at the other end of its stream, and learns when
/// the guest is done.
fn relayed<T>(
    settings: &Settings,
    far: impl FnOnce(UnixStream, Receiver<()>) + Send,
    guest: impl FnOnce(Guest) -> T,
) -> (T, SessionEnd, Usage) {
    let (here, there) = UnixStream::pair().unwrap();
    there.set_read_timeout(Some(WATCHDOG)).unwrap();
    let (over, is_over) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let far = scope.spawn(move || far(there, is_over));
        let mut here = Some(here);
        let mut open = move |_| {
            let here = here.take().expect("opened once");
            let stream = SocketTransport::from_unix(here).unwrap();
            FarSession::open(stream.into(), PLACE, Instant::now() + WATCHDOG)
        };
        let serve = |stream: &mut Stream, observed: &Observed| {
            let mut relay = Relay::new(&mut open, settings.terms, settings.timeouts.stall);
            run(stream, &mut relay, settings, observed, &StopFlag::default())
        };
        let outcome = session::tests::session(serve, guest);
        drop(over);
        far.join().expect("the other side keeps to its script");
        outcome
    })
}

/// An honest mediator's end of the stream.
fn stream(there: UnixStream) -> Stream {
    SocketTransport::from_unix(there).unwrap().into()
}

fn cpu(there: UnixStream, settings: &Settings) -> Usage {
    let observed = Observed::default();
    let mut open = || Ok(Box::new(CpuExecutor::new("its own reason")) as _);
    let stop = StopFlag::default();
    session::serve(&mut stream(there), &mut open, settings, &observed, &stop);
    observed.counters.usage()
}

/// Through a relay to a mediator whose device does what the test says.
fn to_held<T>(
    near: &Settings,
    stop_far: &StopFlag,
    guest: impl FnOnce(Guest, &Held) -> T,
) -> (T, SessionEnd) {
    let held = Held::new();
    let mut backend = HeldBackend::new(&held);
    let far = |there: UnixStream, _| {
        let observed = Observed::default();
        run(
            &mut stream(there),
            &mut backend,
            &settings(),
            &observed,
            stop_far,
        );
    };
    let (seen, end, _) = relayed(near, far, |mut session| {
        assert!(session.hello().0.is_ok());
        guest(session, &held)
    });
    (seen, end)
}

#[test]
fn hello_info_ping_goodbye() {
    let far_settings = Settings {
        terms: Terms {
            max_lanes: 4.try_into().unwrap(),
            max_requests: 3.try_into().unwrap(),
            max_handles: 2,
            initial_credit: 600,
            features: Features::EXCHANGE,
        },
        ..settings()
    };
    let far = |there: UnixStream, _| {
        let usage = cpu(there, &far_settings);
        // Hello, Info for the relay, Info for its guest, Ping, Goodbye.
        assert_eq!((usage.requests, usage.failed_requests), (5, 0));
    };
    let ((), end, usage) = relayed(&settings(), far, |mut guest| {
        let (status, body) = guest.hello();
        assert!(status.is_ok());
        let reply = HelloReply::decode(&body).unwrap();
        assert_eq!(reply.epoch, 77);
        assert_eq!((reply.max_lanes.get(), reply.max_requests.get()), (4, 3));
        assert_eq!((reply.max_handles, reply.initial_credit), (2, 600));
        assert_eq!(reply.features, Features::EXCHANGE);
        guest.ask(2, 0, Info {});
        let info = InfoReply::decode(&guest.reply().1).unwrap();
        assert_eq!(info.executor.as_str(), "relay");
        assert_eq!(info.reason.as_str(), "cpu at unix:/there: a test");
        guest.ask(3, 3, ping(b"abc"));
        let (header, body, _) = guest.reply();
        assert_eq!((header.request_id, header.lane), (3, 3));
        assert_eq!(PingReply::decode(&body).unwrap().payload.as_slice(), b"abc");
        guest.ask(4, 0, Goodbye {});
        assert!(guest.status_of(4).is_ok());
        assert!(guest.try_next().is_none());
    });
    assert!(matches!(end, SessionEnd::Goodbye), "{end}");
    assert_eq!((usage.requests, usage.failed_requests), (4, 0));
}

#[test]
fn exchanges_of_all_sizes_in_frames_of_all_sizes() {
    // Either side may let the guest send more at once than the other.
    for credit in [100, 1000, 64 << 10] {
        let mut far_settings = settings();
        far_settings.terms.initial_credit = credit;
        let mut near = settings();
        near.terms.initial_credit = 1000.max(credit / 7);
        let most = near.terms.initial_credit.min(credit) as usize;
        let far = |there: UnixStream, _| {
            let usage = cpu(there, &far_settings);
            assert_eq!(usage.failed_requests, 0);
        };
        relayed(&near, far, |mut guest| {
            guest.hello();
            let mut id = 2;
            for elements in [1, 1000, 65_535, 65_537, 300_000] {
                for frame in [99, 4096, 1 << 20] {
                    if elements > 1000 && frame == 99 {
                        continue;
                    }
                    let answer = stream_exchange(&mut guest, id, elements, frame, most);
                    assert_answer(elements, &answer);
                    id += 1;
                }
            }
        });
    }
}

#[test]
fn what_the_device_there_works_is_counted_here() {
    let far = |there: UnixStream, _| assert!(cpu(there, &as_in_a_worker()).device_ns > 0);
    let ((), end, usage) = relayed(&as_in_a_worker(), far, add_on_the_device);
    assert!(matches!(end, SessionEnd::Goodbye), "{end}");
    assert!(usage.device_ns > 0);
}

#[test]
fn a_request_that_waits_for_the_device_holds_up_no_other_lane() {
    let ((), end) = to_held(&settings(), &StopFlag::default(), |mut guest, held| {
        guest.ask(2, 0, exchange(500));
        let of = FrameHeader::request(Op::Exchange, 2);
        held.wait_for(|inner| inner.started.len() == 1);
        held.now(|inner| inner.room.resize(1000, 0));
        guest.send(FrameHeader::data_up(&of, 0, true), &[0; 1000]);
        guest.ask(3, 1, ping(b"one"));
        assert!(guest.status_of(3).is_ok());
        guest.ask(4, 0, ping(b"the same lane"));
        assert!(guest.status_of(4).is_ok());
        // A fence of its lane waits, another's does not.
        guest.ask(5, 0, Fence {});
        guest.ask(6, 1, Fence {});
        assert!(guest.status_of(6).is_ok());
        held.now(|inner| {
            inner.room.resize(3000, 0);
            inner.events.push_back(Event::Room(2, 3000));
        });
        let (credit, _) = guest.next();
        assert_eq!(
            (credit.op, credit.request_id, credit.credit),
            (Op::Data, 2, 3000)
        );
        guest.send(FrameHeader::data_up(&of, 0, false), &[0; 3000]);
        held.wait_for(|inner| inner.room.is_empty());
        held.now(|inner| drop(inner.output.insert(2, vec![7; 2000])));
        held.done(2, ExchangeReply {}.encode());
        let (header, _, data) = guest.reply();
        assert_eq!((header.request_id, data[&2].len()), (2, 2000));
        assert!(guest.status_of(5).is_ok());
    });
    assert!(matches!(end, SessionEnd::GuestClosed(false)), "{end}");
}

#[test]
fn quiet_requests_and_their_failures_pass_through() {
    let stop_far = StopFlag::default();
    let ((), end) = to_held(&settings(), &stop_far, |mut guest, held| {
        let quiet = |id| FrameHeader::request(Op::Ping, id).with_flags(Flags::QUIET);
        let body = ping(b"quiet").encode();
        guest.send(quiet(2), &body);
        guest.ask(3, 0, Fence {});
        let (header, reply, _) = guest.reply();
        assert_eq!(header.request_id, 3);
        assert_eq!(FenceReply::decode(&reply).unwrap().failures.as_slice(), []);
        assert_eq!(
            held.now(|inner| inner.started.len()),
            2,
            "it has gone there"
        );

        // A mediator that stops refuses, and goes on with what is under way.
        guest.ask(4, 1, exchange(1));
        held.wait_for(|inner| inner.started.len() == 3);
        stop_far.set(StopReason::Draining);
        // Until it has seen that.
        let mut id = 5;
        loop {
            guest.ask(id, 0, ping(b"loud"));
            let (header, _, _) = guest.reply();
            id += 1;
            if header.status == ErrorCode::Busy.into() {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        guest.send(quiet(id), &body);
        guest.ask(id + 1, 0, ping(b"loud"));
        let (header, _, _) = guest.reply();
        assert!(header.flags.contains(Flags::FAILURES), "{header:?}");
        held.now(|inner| inner.room.resize(8, 0));
        let of = FrameHeader::request(Op::Exchange, 4).with_lane(1);
        guest.send(FrameHeader::data_up(&of, 0, false), &[0; 8]);
        held.wait_for(|inner| inner.room.is_empty());
        held.now(|inner| drop(inner.output.insert(4, vec![7; 4])));
        held.done(4, ExchangeReply {}.encode());
        let (header, _, _) = guest.reply();
        assert_eq!(header.request_id, 4);
        assert!(header.flags.contains(Flags::FAILURES), "nobody has asked");
        assert_eq!(guest.last_words().0, ErrorCode::BackendLost.into());
    });
    assert!(matches!(end, SessionEnd::ExecutorLost(_)), "{end}");
}

#[test]
fn failures_are_told_by_the_next_fence_and_then_no_more() {
    let lie: Lie = |far, request| {
        far.send(ok(&request).with_flags(Flags::FAILURES), &ping_reply(b""));
        let (fence, _) = far.next();
        let mut failures = FenceReply {
            dropped: 3,
            failures: Default::default(),
        };
        let failure = vgpu_protocol::op::QuietFailure {
            request_id: 9,
            op: Op::Ping,
            status: Status::Cuda(700),
        };
        failures.failures.push(failure).unwrap();
        far.send(ok(&fence), &failures.encode());
        let (ping, _) = far.next();
        far.send(ok(&ping), &ping_reply(b""));
    };
    let guest = |mut guest: Guest| {
        guest.hello();
        guest.ask(2, 0, ping(b""));
        assert!(guest.reply().0.flags.contains(Flags::FAILURES));
        guest.ask(3, 0, Fence {});
        let (header, body, _) = guest.reply();
        assert_eq!(header.flags, Flags::REPLY);
        let told = FenceReply::decode(&body).unwrap();
        assert_eq!((told.dropped, told.failures.as_slice().len()), (3, 1));
        assert_eq!(told.failures.as_slice()[0].request_id, 9);
        guest.ask(4, 0, ping(b""));
        assert_eq!(guest.reply().0.flags, Flags::REPLY);
    };
    relayed(&settings(), liar(lie), guest);
}

#[test]
fn a_guest_that_gives_up_is_told_so_and_goes_on() {
    let ((), _) = to_held(&settings(), &StopFlag::default(), |mut guest, held| {
        guest.ask(2, 0, exchange(500));
        held.now(|inner| inner.room.resize(1000, 0));
        let of = FrameHeader::request(Op::Exchange, 2);
        guest.send(FrameHeader::data_up(&of, 0, true), &[0; 200]);
        guest.send(FrameHeader::data_up(&of, 0, false), &[]);
        assert_eq!(guest.status_of(2), ErrorCode::Cancelled.into());
        held.wait_for(|inner| inner.cancelled == [2]);
        guest.ask(3, 0, ping(b"on"));
        assert!(guest.status_of(3).is_ok());
    });
}

#[test]
fn a_failure_there_names_the_place_and_leaves_the_session() {
    let ((), _) = to_held(&settings(), &StopFlag::default(), |mut guest, held| {
        guest.ask(2, 0, exchange(500));
        let of = FrameHeader::request(Op::Exchange, 2);
        guest.send(FrameHeader::data_up(&of, 0, true), &[0; 200]);
        held.wait_for(|inner| inner.started.len() == 1);
        held.now(|inner| {
            let failure = Failure {
                status: Status::Cuda(700),
                text: "illegal address".into(),
            };
            inner.events.push_back(Event::Done(2, Err(failure)));
        });
        let (header, body, _) = guest.reply();
        assert_eq!(header.status, Status::Cuda(700));
        assert_eq!(decode_error_text(&body), "illegal address (at unix:/there)");
        // Its data is dropped, here and there.
        guest.send(FrameHeader::data_up(&of, 0, false), &[0; 300]);
        guest.ask(3, 0, ping(b"on"));
        assert!(guest.status_of(3).is_ok());
    });
}

#[test]
fn a_guest_that_stalls_is_told_and_the_other_mediator_hears_the_end() {
    let ((), _) = to_held(&settings(), &StopFlag::default(), |mut guest, held| {
        let hurried = FrameHeader::request(Op::Exchange, 2).with_deadline_ms(200);
        guest.send(hurried, &exchange(500).encode());
        let (header, body, _) = guest.reply();
        assert_eq!(header.status, ErrorCode::Timeout.into());
        let text = decode_error_text(&body);
        assert!(text.contains("nothing moved for 200 ms"), "{text}");
        let of = FrameHeader::request(Op::Exchange, 2);
        guest.send(FrameHeader::data_up(&of, 0, false), &[]);
        held.wait_for(|inner| inner.cancelled == [2]);
        guest.ask(3, 0, ping(b"on"));
        assert!(guest.status_of(3).is_ok());
    });
}

/// Behaviour of a mediator that was honest until this request came.
type Lie = fn(&mut Guest, FrameHeader);

/// A mediator that lies, and then says nothing more until the guest is done.
fn liar(lie: Lie) -> impl FnOnce(UnixStream, Receiver<()>) + Send {
    move |there, is_over| {
        let mut far = Guest { stream: there };
        let (hello, _) = far.next();
        far.send(ok(&hello), &hello_reply().encode());
        let (info, _) = far.next();
        far.send(ok(&info), &info_reply().encode());
        if let Some((request, _)) = far.try_next() {
            lie(&mut far, request);
        }
        let _ = is_over.recv_timeout(WATCHDOG);
    }
}

fn ok(request: &FrameHeader) -> FrameHeader {
    FrameHeader::reply_to(request, Status::OK)
}

fn hello_reply() -> HelloReply {
    HelloReply {
        version: 1.try_into().unwrap(),
        features: Features::ALL,
        max_lanes: 8.try_into().unwrap(),
        max_requests: 8.try_into().unwrap(),
        max_handles: 8,
        initial_credit: 64 << 10,
        epoch: 7,
    }
}

fn info_reply() -> InfoReply {
    InfoReply {
        total_memory: 1,
        executor: "cpu".into(),
        device: "a liar's \u{1b}[31m device".into(),
        driver: "".into(),
        reason: "".into(),
        mediator: "".into(),
    }
}

fn ping_reply(payload: &[u8]) -> Vec<u8> {
    let payload = vgpu_protocol::op::field::Bytes::new(payload).unwrap();
    PingReply { payload }.encode()
}

/// Elements of the vectors that the liars are asked to add.
const ELEMENTS: usize = 1000;

/// Status and text that a guest gets for an exchange with a liar, after sending `sent` bytes.
fn told(sent: usize, lie: Lie) -> (Status, String) {
    let mut impatient = settings();
    impatient.timeouts.stall = Duration::from_secs(1);
    let (told, end, _) = relayed(&impatient, liar(lie), |mut guest| {
        guest.hello();
        let up = data(ELEMENTS);
        guest.ask(2, 0, exchange(ELEMENTS as u64));
        let of = FrameHeader::request(Op::Exchange, 2);
        for (at, part) in up[..sent].chunks(1000).enumerate() {
            let more = 1000 * at + part.len() < up.len();
            let len = u32::try_from(part.len()).unwrap();
            let header = FrameHeader::data_up(&of, len, more).encode();
            // The session may be over.
            let _ = guest.stream.write_all(&[&header[..], part].concat());
        }
        let (header, body, _) = guest.reply();
        if header.op == Op::Closing {
            assert!(guest.try_next().is_none());
        }
        (header, decode_error_text(&body))
    });
    let (header, text) = told;
    assert!(text.contains(PLACE), "{text}");
    if header.op == Op::Closing {
        assert!(
            matches!(&end, SessionEnd::ExecutorLost(why) if *why == text),
            "{end}"
        );
    }
    (header.status, text)
}

/// All that the guest sends.
const ALL: usize = 8 * ELEMENTS;

#[track_caller]
fn assert_broken(sent: usize, lie: Lie, words: &str) {
    let (status, text) = told(sent, lie);
    assert_eq!(status, ErrorCode::BackendLost.into(), "{text}");
    assert!(text.contains("breaks the protocol: it "), "{text}");
    assert!(text.contains(words), "{text}");
    assert!(text.contains("the same release"), "{text}");
}

/// The other mediator takes the data of a request.
fn take_data(far: &mut Guest) {
    while far.next().0.has_more() {}
}

#[test]
fn data_that_is_not_due_ends_the_session() {
    assert_broken(
        0,
        |far, mut request| {
            request.request_id += 1;
            far.send(FrameHeader::data_down(&request, 0, 0), &[0; 100]);
        },
        "sent data of request 3, which is not under way",
    );
    assert_broken(
        ALL,
        |far, request| far.send(FrameHeader::data_down(&request, 0, 0), &[0; 4001]),
        "sent 4001 bytes for request 2, where 4000 bytes are due",
    );
    assert_broken(
        ALL,
        |far, request| {
            far.send(FrameHeader::data_down(&request, 0, 0), &[0; 3999]);
            far.send(FrameHeader::data_down(&request, 0, 0), &[0; 2]);
        },
        "sent 2 bytes for request 2, where 1 bytes are due",
    );
    assert_broken(
        ALL,
        |far, request| {
            let request = request.with_lane(1);
            far.send(FrameHeader::data_down(&request, 0, 0), &[0; 4000]);
        },
        "sent 4000 bytes for request 2",
    );
}

#[test]
fn an_answer_too_early_ends_the_session() {
    let reply: Lie = |far, request| far.send(ok(&request), &ExchangeReply {}.encode());
    assert_broken(200, reply, "answered request 2 before its data was sent");
    assert_broken(
        ALL,
        |far, request| {
            take_data(far);
            far.send(FrameHeader::data_down(&request, 0, 0), &[0; 3000]);
            far.send(ok(&request), &ExchangeReply {}.encode());
        },
        "answered request 2 1000 bytes too early",
    );
}

#[test]
fn an_answer_to_what_nobody_asked_ends_the_session() {
    assert_broken(
        200,
        |far, mut request| {
            request.request_id = 9;
            far.send(ok(&request), &[0; 8]);
        },
        "answered Exchange 9, which was not asked",
    );
    assert_broken(
        200,
        |far, request| far.send(ok(&FrameHeader::request(Op::Ping, request.request_id)), b""),
        "is due",
    );
    assert_broken(
        200,
        |far, request| far.send(ok(&request.with_lane(5)), &[0; 8]),
        "answered Exchange 2 on lane 5 where the reply to Exchange on lane 0 is due",
    );
}

#[test]
fn what_is_no_answer_ends_the_session() {
    assert_broken(
        200,
        |far, _| far.stream.write_all(&[0x55; 4096]).unwrap(),
        "magic",
    );
    assert_broken(
        200,
        |far, _| far.send(FrameHeader::request(Op::Ping, 9), &ping(b"").encode()),
        "Ping",
    );
    assert_broken(
        ALL,
        |far, request| {
            take_data(far);
            far.send(FrameHeader::data_down(&request, 0, 0), &[0; 4000]);
            far.send(ok(&request), &[0; 7]);
        },
        "sends what it should not: ExchangeReply: end",
    );
}

#[test]
fn the_time_that_it_says_its_device_worked_is_not_more_than_has_passed() {
    let lie: Lie = |far, request| {
        let reply = SynchronizeReply {
            device_ns: u64::MAX,
        };
        far.send(ok(&request), &reply.encode());
    };
    let began = Instant::now();
    let (_, _, usage) = relayed(&settings(), liar(lie), |mut guest| {
        guest.hello();
        guest.ask(2, 0, Synchronize {});
        assert!(guest.status_of(2).is_ok());
    });
    assert!(u128::from(usage.device_ns) <= began.elapsed().as_nanos());
}

#[test]
fn time_that_the_device_worked_before_anybody_asked_counts_whole() {
    const WORKED_MS: u64 = 100;
    let honest: Lie = |far, request| {
        let device_ns = WORKED_MS * 1_000_000;
        far.send(ok(&request), &SynchronizeReply { device_ns }.encode());
    };
    let (_, _, usage) = relayed(&settings(), liar(honest), |mut guest| {
        guest.hello();
        thread::sleep(Duration::from_millis(WORKED_MS));
        guest.ask(2, 0, Synchronize {});
        assert!(guest.status_of(2).is_ok());
    });
    assert_eq!(usage.device_ns, WORKED_MS * 1_000_000);
}

#[test]
fn silence_is_named_before_the_guest_gives_up() {
    let lies: [(usize, Lie); 3] = [
        // In the middle of a frame, before it has taken all, and with all taken.
        (ALL, |far, request| {
            far.stream
                .write_all(&FrameHeader::data_down(&request, 4000, 0).encode())
                .unwrap();
            far.stream.write_all(&[0; 100]).unwrap();
        }),
        (ALL, |_, _| {}),
        (ALL, |far, _| take_data(far)),
    ];
    for (sent, lie) in lies {
        let (status, text) = told(sent, lie);
        assert_eq!(status, ErrorCode::BackendLost.into(), "{text}");
        assert!(text.contains("has not moved for 750 ms"), "{text}");
    }
}

#[test]
fn a_mediator_there_that_works_and_starts_nothing_is_shown_to_the_guest() {
    let ((), end) = to_held(&settings(), &StopFlag::default(), |mut guest, held| {
        held.now(|inner| inner.full = true);
        // It starts in its turn, as one about the device does.
        let hurried = FrameHeader::request(Op::MemoryInfo, 2).with_deadline_ms(2000);
        guest.send(hurried, &MemoryInfo {}.encode());
        // Longer than nothing may move for a request.
        for _ in 0..30 {
            held.now(|inner| inner.events.push_back(Event::Working));
            thread::sleep(Duration::from_millis(100));
        }
        let (header, _) = guest.next();
        assert_eq!(header.op, Op::Data, "{header:?}");
        // Other lanes go on meanwhile, as far as they need nothing of the device.
        guest.ask(3, 1, ping(b"beside it"));
        guest.ask(4, 1, Fence {});
        assert!(guest.status_of(3).is_ok());
        assert!(guest.status_of(4).is_ok());
        held.now(|inner| inner.full = false);
        assert!(guest.status_of(2).is_ok());
    });
    assert!(matches!(end, SessionEnd::GuestClosed(false)), "{end}");
}

/// While one request waits, another's answers show that the other mediator is alive.
#[test]
fn a_request_that_is_late_alone_is_not_taken_for_a_mediator_that_hangs() {
    let ((), end) = to_held(&settings(), &StopFlag::default(), |mut guest, held| {
        let hurried = FrameHeader::request(Op::Exchange, 2).with_deadline_ms(400);
        guest.send(hurried, &exchange(1).encode());
        held.now(|inner| inner.room.resize(8, 0));
        let of = FrameHeader::request(Op::Exchange, 2);
        guest.send(FrameHeader::data_up(&of, 0, false), &[0; 8]);
        let mut id = 3;
        let late = loop {
            guest.ask(id, 1, ping(b""));
            let (header, body, _) = guest.reply();
            if header.request_id == 2 {
                assert!(guest.status_of(id).is_ok());
                break (header, decode_error_text(&body));
            }
            assert!(header.status.is_ok(), "{}", decode_error_text(&body));
            id += 1;
        };
        assert_eq!(late.0.status, ErrorCode::Timeout.into(), "{}", late.1);
        guest.ask(id + 1, 1, ping(b""));
        assert!(guest.status_of(id + 1).is_ok());
    });
    assert!(matches!(end, SessionEnd::GuestClosed(false)), "{end}");
}

#[test]
fn an_end_in_the_middle_is_named() {
    let (status, text) = told(ALL, |far, request| {
        far.stream
            .write_all(&FrameHeader::data_down(&request, 4000, 0).encode())
            .unwrap();
        far.stream.shutdown(std::net::Shutdown::Both).unwrap();
    });
    assert_eq!(status, ErrorCode::BackendLost.into(), "{text}");
    assert!(text.contains("is gone; connect again"), "{text}");
}

#[test]
fn last_words_are_passed_on() {
    let (status, text) = told(200, |far, _| {
        far.send(FrameHeader::closing(ErrorCode::Denied.into()), b"kicked.");
    });
    assert_eq!(status, ErrorCode::BackendLost.into(), "{text}");
    assert!(
        text.contains("ended the session: kicked (E_DENIED)"),
        "{text}"
    );
    // Also of one that takes nothing any more.
    let (status, text) = told(ALL, |far, _| {
        far.send(FrameHeader::closing(ErrorCode::Busy.into()), b"stopping");
        far.stream.shutdown(std::net::Shutdown::Both).unwrap();
    });
    assert_eq!(status, ErrorCode::BackendLost.into(), "{text}");
    assert!(
        text.contains("ended the session: stopping (E_BUSY)"),
        "{text}"
    );
    let (status, text) = told(200, |far, request| {
        let reply = FrameHeader::reply_to(&request, ErrorCode::BackendLost.into());
        far.send(reply, b"the device has fallen off the bus");
    });
    assert_eq!(status, ErrorCode::BackendLost.into(), "{text}");
    assert!(text.contains("gave up: the device has fallen"), "{text}");
}

#[test]
fn an_error_of_its_own_comes_through_and_steers_no_terminal() {
    let (status, text) = told(200, |far, request| {
        let reply = FrameHeader::reply_to(&request, Status::from_raw(700));
        far.send(reply, b"illegal \x1b[31maddress");
    });
    assert_eq!(status, Status::Cuda(700), "{text}");
    assert_eq!(text, "illegal  [31maddress (at unix:/there)");
}

#[test]
fn a_mediator_that_opens_no_session_is_named_in_the_answer_to_hello() {
    let open = |answer: fn(&mut Guest, FrameHeader), code: ErrorCode, words: &str| {
        let far = |there: UnixStream, is_over: Receiver<()>| {
            let mut far = Guest { stream: there };
            let (hello, _) = far.next();
            answer(&mut far, hello);
            let _ = is_over.recv_timeout(WATCHDOG);
        };
        let (told, end, _) = relayed(&settings(), far, |mut guest| {
            let (status, body) = guest.hello();
            (status, decode_error_text(&body))
        });
        assert_eq!(told.0, code.into(), "{}", told.1);
        assert!(
            told.1.contains(PLACE) && told.1.contains(words),
            "{}",
            told.1
        );
        assert!(matches!(end, SessionEnd::ExecutorLost(_)), "{end}");
    };
    let lost = ErrorCode::BackendLost;
    open(
        |far, hello| {
            far.send(
                FrameHeader::reply_to(&hello, ErrorCode::Busy.into()),
                b"full",
            )
        },
        ErrorCode::Busy,
        "refuses: full (E_BUSY)",
    );
    open(
        |far, hello| {
            far.send(
                FrameHeader::reply_to(&hello, ErrorCode::Denied.into()),
                b"no",
            )
        },
        lost,
        "refuses: no (E_DENIED)",
    );
    open(
        |far, hello| {
            let reply = HelloReply {
                version: 2.try_into().unwrap(),
                ..hello_reply()
            };
            far.send(ok(&hello), &reply.encode());
        },
        lost,
        "version 2, which was not offered",
    );
    open(
        |far, hello| {
            let reply = HelloReply {
                features: Features(u64::MAX),
                ..hello_reply()
            };
            far.send(ok(&hello), &reply.encode());
        },
        lost,
        "features that were not offered",
    );
    open(
        |far, hello| far.send(ok(&hello), b"what?"),
        lost,
        "breaks the protocol",
    );
    open(
        |far, _| far.stream.shutdown(std::net::Shutdown::Both).unwrap(),
        lost,
        "is gone",
    );
}

/// Requests that wait for a mediator which reads nothing are bounded: at some point no more are
/// read.
#[test]
fn a_flood_of_quiet_requests_for_one_that_reads_nothing_ends_in_time() {
    let mut impatient = settings();
    impatient.timeouts.stall = Duration::from_secs(1);
    let (told, _, _) = relayed(&impatient, liar(|_, _| {}), |mut guest| {
        guest.hello();
        let mut writer = Guest {
            stream: guest.stream.try_clone().unwrap(),
        };
        thread::scope(|scope| {
            scope.spawn(move || {
                let header = FrameHeader::request(Op::Ping, 2).with_flags(Flags::QUIET);
                let body = ping(&[0; 4096]).encode();
                let header = header.with_body_len(u32::try_from(body.len()).unwrap());
                let bytes = [&header.encode()[..], &body].concat();
                let mut written = 0;
                while writer.stream.write_all(&bytes).is_ok() {
                    written += bytes.len();
                    assert!(written < 64 << 20, "it is read without end");
                }
            });
            // Not the end after it: the guest has sent more than was read, and so is reset.
            let (header, text, _) = guest.reply();
            assert_eq!(header.op, Op::Closing);
            (header.status, decode_error_text(&text))
        })
    });
    assert_eq!(told.0, ErrorCode::BackendLost.into(), "{}", told.1);
    assert!(told.1.contains("has not moved for 750 ms"), "{}", told.1);
}

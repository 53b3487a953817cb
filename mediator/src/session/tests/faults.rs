//! What a guest can do wrong, and what becomes of it.

use super::*;

#[test]
fn a_refused_vector_add_leaves_the_session_usable() {
    let no_handle = FrameHeader::request(Op::VectorAdd, 5).with_flags(Flags::MORE);
    let job = |elements, chunk_elements| {
        VectorAdd {
            elements,
            chunk_elements,
            data_type: DataType::F32,
        }
        .encode()
    };
    let cases = [
        (vector_add_header(5), job(100_001, 10), ErrorCode::Range),
        (
            vector_add_header(5),
            job(u64::MAX, u32::MAX),
            ErrorCode::Range,
        ),
        (vector_add_header(5), job(10_000, 4097), ErrorCode::Range),
        (vector_add_header(5), job(0, 10), ErrorCode::Range),
        (vector_add_header(5), vec![1, 2, 3], ErrorCode::Range),
        (
            vector_add_header(5).with_lane(1),
            job(10, 10),
            ErrorCode::Range,
        ),
        (no_handle, job(10, 10), ErrorCode::Handle),
        (
            vector_add_header(5).with_handle(stream(4, 1)),
            job(10, 10),
            ErrorCode::Handle,
        ),
        // Generation 2 of this slot was used by the request before.
        (
            vector_add_header(5).with_handle(stream(0, 2)),
            job(10, 10),
            ErrorCode::Handle,
        ),
    ];
    for (header, body, wanted) in cases {
        let data = frame(FrameHeader::data_for(&header, 0, true), &[9; 80]);
        let stop = frame(FrameHeader::data_for(&header, 0, false), b"");
        let mut outcome = run(&[
            hello(),
            vector_add(2, 5, 5),
            frame(header, &body),
            data,
            stop,
            vector_add(6, 5, 5),
        ]);
        outcome.replies.retain(|(header, _)| header.op != Op::Data);
        assert_eq!(
            statuses(&outcome)[2..],
            [
                (Op::VectorAdd, 5, code(wanted)),
                (Op::VectorAdd, 6, Status::OK)
            ],
            "{header:?}"
        );
        assert!(!decode_error_text(&outcome.replies[2].1).is_empty());
    }
}

#[test]
fn input_of_the_wrong_length_fails_only_its_request() {
    let open = vector_add_header(2);
    let data = |len: usize, more| frame(FrameHeader::data_for(&open, 0, more), &vec![0; len]);
    let cases = [
        // Cancelled: at once, after a chunk, and with a chunk that claims to be the last.
        (vec![data(0, false)], ErrorCode::Cancelled),
        (vec![data(80, true), data(0, false)], ErrorCode::Cancelled),
        (vec![data(80, false)], ErrorCode::Cancelled),
        // Too short, too long, empty, and more than was announced.
        (vec![data(79, true), data(0, false)], ErrorCode::Range),
        (vec![data(81, true), data(80, false)], ErrorCode::Range),
        (vec![data(0, true), data(0, false)], ErrorCode::Range),
        (
            vec![data(80, true), data(80, true), data(80, false)],
            ErrorCode::Range,
        ),
    ];
    for (frames, wanted) in cases {
        let mut outcome = run(&[
            hello(),
            vector_add_open(2, 20, 10),
            frames.concat(),
            vector_add(3, 7, 7),
            request(Op::Goodbye, 4, b""),
        ]);
        outcome.replies.retain(|(header, _)| header.op != Op::Data);
        assert_eq!(
            statuses(&outcome)[1..],
            [
                (Op::VectorAdd, 2, code(wanted)),
                (Op::VectorAdd, 3, Status::OK),
                (Op::Goodbye, 4, Status::OK)
            ]
        );
        assert!(matches!(outcome.end, SessionEnd::Goodbye));
    }
}

#[test]
fn broken_protocol_ends_the_session_with_a_reason() {
    let not_offered = Hello {
        min_version: 2,
        max_version: 3,
        features: Features::ALL,
        client_name: String::new(),
    };
    let orphan = FrameHeader::data_for(&vector_add_header(9), 0, true);
    let goodbye_reply = FrameHeader::closing(Status::OK);
    let cases = [
        (vec![request(Op::Ping, 5, b"x")], ErrorCode::Protocol),
        (vec![request(Op::Hello, 5, b"x")], ErrorCode::Protocol),
        (
            vec![request(Op::Hello, 5, &not_offered.encode())],
            ErrorCode::Version,
        ),
        (vec![hello(), hello()], ErrorCode::Protocol),
        (vec![hello(), vec![0xff; 40]], ErrorCode::Protocol),
        (vec![hello(), frame(orphan, b"")], ErrorCode::Protocol),
        (
            vec![hello(), frame(goodbye_reply, b"")],
            ErrorCode::Protocol,
        ),
        // In the middle of a vector add whose first result is on its way.
        (
            vec![
                hello(),
                vector_add_open(2, 20, 10),
                vector_add_data(2, 20, 10)[0].clone(),
                vec![0; 40],
            ],
            ErrorCode::Protocol,
        ),
    ];
    for (script, wanted) in cases {
        for portion in [1, 1000] {
            let mut transport = Scripted::new(script.concat(), portion, AtEnd::Closes);
            let outcome = run_on(&mut transport, &settings(), &StopFlag::default());
            assert!(
                matches!(outcome.end, SessionEnd::GuestFault(_)),
                "{}",
                outcome.end
            );
            let (last, text) = outcome.replies.last().unwrap();
            assert_eq!(last.status, code(wanted));
            assert!(!text.is_empty());
        }
    }
}

#[test]
fn nothing_waits_for_ever() {
    let half_frame = hello()[..20].to_vec();
    let half_chunk = [
        hello(),
        vector_add_open(2, 20, 10),
        vector_add_data(2, 20, 10)[0][..70].to_vec(),
    ]
    .concat();
    for (script, wanted) in [
        (Vec::new(), "no complete Hello"),
        (half_frame, "no complete Hello"),
        (hello(), "no request"),
        ([hello(), vec![b'V']].concat(), "half a frame"),
        // The request times out first, then the session.
        (half_chunk, "half a frame"),
    ] {
        let mut transport = Scripted::new(script, 1000, AtEnd::Stalls);
        let outcome = run_on(&mut transport, &settings(), &StopFlag::default());
        let SessionEnd::TimedOut(text) = &outcome.end else {
            panic!("{}", outcome.end);
        };
        assert!(text.contains(wanted), "{text}");
        let (last, _) = outcome.replies.last().unwrap();
        assert_eq!(
            (last.op, last.status),
            (Op::Goodbye, code(ErrorCode::Timeout))
        );
    }
}

#[test]
fn a_guest_that_takes_no_results_is_let_go() {
    let script = [hello(), vector_add(2, 1000, 500)].concat();
    let mut transport = Scripted::new(script, 100, AtEnd::Stalls);
    transport.takes_at_most = 1000;
    let observed = Observed::default();
    let mut open = || Ok(Box::new(CpuExecutor::new("a test")) as _);
    let stop = StopFlag::default();
    let end = serve(&mut transport, &mut open, &settings(), &observed, &stop);
    assert!(matches!(end, SessionEnd::TimedOut(_)), "{end}");
    assert!(transport.closed);
}

#[test]
fn a_refused_guest_is_told_why() {
    let mut settings = settings();
    settings.refusal = Some(Refusal {
        code: ErrorCode::Denied,
        text: "ask the administrator".into(),
    });
    let mut transport = Scripted::new(hello(), 1000, AtEnd::Stalls);
    let outcome = run_on(&mut transport, &settings, &StopFlag::default());
    assert!(matches!(outcome.end, SessionEnd::Refused(_)));
    assert_eq!(outcome.replies.len(), 1);
    assert_eq!(outcome.replies[0].0.status, code(ErrorCode::Denied));
    assert_eq!(outcome.replies[0].1, b"ask the administrator");
}

#[test]
fn an_executor_that_cannot_be_opened_is_named() {
    let mut transport = Scripted::new(hello(), 1000, AtEnd::Stalls);
    let observed = Observed::default();
    let mut open = || Err("no such device".to_owned().into());
    let stop = StopFlag::default();
    let end = serve(&mut transport, &mut open, &settings(), &observed, &stop);
    assert!(matches!(end, SessionEnd::ExecutorLost(_)));
    let replies = replies(&transport.output);
    assert_eq!(replies[0].0.status, code(ErrorCode::BackendLost));
    assert!(decode_error_text(&replies[0].1).contains("no such device"));
}

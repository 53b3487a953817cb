//! Frames and bodies.

use vgpu_protocol::frame::{FrameHeader, HEADER_LEN};
use vgpu_protocol::op::field::Bytes;
use vgpu_protocol::op::{
    Body, Exchange, Features, FenceReply, Hello, Op, Ping, QuietFailure, Reply, Request,
};
use vgpu_protocol::session::inbox::{Inbox, Received};
use vgpu_protocol::status::{ErrorCode, Status, decode_error_text};

/// A byte that determines how the rest is cut, then frames one after the other, of guests or of
/// mediators.
pub(crate) fn run(data: &[u8]) {
    let Some((portion, data)) = data.split_first() else {
        return;
    };
    let portion = usize::from(*portion).max(1);
    frames(Inbox::of_requests(), data, portion);
    frames(Inbox::of_replies(), data, portion);
}

fn frames(mut inbox: Inbox, mut data: &[u8], portion: usize) {
    let mut piece = vec![0; portion];
    loop {
        while inbox.data_left() > 0 && inbox.has_unread() {
            assert!(inbox.take(&mut piece) > 0);
        }
        match inbox.next() {
            _ if inbox.data_left() > 0 && !inbox.has_unread() => {}
            Ok(Some(Received::Data(header))) => {
                assert_eq!(inbox.data_left(), header.body_len as usize);
                same_header(&header);
                continue;
            }
            Ok(Some(Received::Frame(header))) => {
                same_header(&header);
                assert_eq!(inbox.body().len(), header.body_len as usize);
                bodies(inbox.body());
                continue;
            }
            Ok(None) => {}
            Err(error) => {
                assert!(!error.to_string().is_empty());
                return;
            }
        }
        if data.is_empty() {
            return;
        }
        let space = inbox.space();
        let n = space.len().min(portion).min(data.len());
        space[..n].copy_from_slice(&data[..n]);
        data = &data[n..];
        inbox.received(n);
    }
}

fn same_header(header: &FrameHeader) {
    assert_eq!(FrameHeader::decode(&header.encode()), Ok(*header));
    assert!(header.body_len as usize <= header.op.max_body(header.is_reply()));
}

/// Every body's decoder on the same bytes.
fn bodies(body: &[u8]) {
    for op in Op::REQUESTS {
        let mut again = Vec::new();
        if let Ok(request) = Request::decode(*op, body) {
            assert_eq!(request.check(), Ok(()));
            request.encode_to(&mut again);
            assert_eq!(Request::decode(*op, &again), Ok(request));
        }
        again.clear();
        if let Ok(reply) = Reply::decode(*op, body) {
            reply.encode_to(&mut again);
            assert_eq!(Reply::decode(*op, &again), Ok(reply));
        }
    }
    assert!(!decode_error_text(body).chars().any(char::is_control));
}

/// A frame with its body.
pub(crate) fn frame(header: FrameHeader, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).expect("bodies are small");
    let header = header.with_body_len(len).encode();
    assert_eq!(header.len(), HEADER_LEN);
    [&header[..], body].concat()
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let hello = Hello {
        min_version: 1.try_into().expect("not 0"),
        max_version: 1,
        features: Features::ALL,
        client_name: "fuzz".into(),
    };
    let exchange = Exchange { up: 40, down: 20 };
    let ping = Ping {
        payload: Bytes::new(b"payload").expect("short"),
    };
    let mut fence = FenceReply {
        dropped: 1,
        failures: Default::default(),
    };
    let failure = QuietFailure {
        request_id: 2,
        op: Op::Ping,
        status: ErrorCode::Range.into(),
    };
    fence.failures.push(failure).expect("room");
    let request = |op| FrameHeader::request(op, 1);
    let reply = |op, status| FrameHeader::reply_to(&request(op), status);
    let asked = [
        frame(request(Op::Hello), &hello.encode()),
        frame(request(Op::Ping), &ping.encode()),
        frame(request(Op::Exchange), &exchange.encode()),
        frame(
            FrameHeader::data_up(&request(Op::Exchange), 0, false),
            &[1; 40],
        ),
        frame(request(Op::Info), &[]),
        frame(request(Op::Goodbye), &[]),
    ];
    let answered = [
        frame(reply(Op::Fence, Status::OK), &fence.encode()),
        frame(
            FrameHeader::data_down(&request(Op::Exchange), 0, 9),
            &[1; 20],
        ),
        frame(
            reply(Op::Exchange, ErrorCode::Timeout.into()),
            b"nothing moved",
        ),
        frame(FrameHeader::closing(ErrorCode::Busy.into()), b"stopping"),
    ];
    let mut seeds = [asked.to_vec(), answered.to_vec()].concat();
    seeds.push(asked.concat());
    seeds.push(answered.concat());
    for seed in &mut seeds {
        seed.insert(0, 64);
    }
    seeds
}

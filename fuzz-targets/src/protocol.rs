//! Frames and message bodies.

use std::fmt::Debug;

use vgpu_protocol::frame::{FrameHeader, HEADER_LEN, HeaderBuffer};
use vgpu_protocol::message::{
    DataType, Features, FenceReply, Hello, HelloReply, InfoReply, MessageError, Op, VectorAdd,
    VectorAddReply,
};
use vgpu_protocol::status::Status;

/// A byte that says how to cut the rest, then frames one after the other.
pub(crate) fn run(data: &[u8]) {
    let Some((portion, mut data)) = data.split_first() else {
        return;
    };
    let portion = usize::from(*portion).max(1);
    let mut buffer = HeaderBuffer::new();
    while !data.is_empty() {
        let space = buffer.unfilled();
        let n = space.len().min(portion).min(data.len());
        space[..n].copy_from_slice(&data[..n]);
        data = &data[n..];
        match buffer.advance(n) {
            Ok(None) => assert!(buffer.is_partial()),
            Ok(Some(header)) => {
                assert!(!buffer.is_partial());
                assert_eq!(FrameHeader::decode(&header.encode()), Ok(header));
                assert!(header.body_len <= header.op.max_body());
                let len = (header.body_len as usize).min(data.len());
                bodies(&data[..len]);
                data = &data[len..];
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                return;
            }
        }
    }
}

/// Every message's decoder on the same bytes.
fn bodies(body: &[u8]) {
    same_again(body, Hello::decode, Hello::encode);
    same_again(body, HelloReply::decode, HelloReply::encode);
    same_again(body, InfoReply::decode, InfoReply::encode);
    same_again(body, FenceReply::decode, FenceReply::encode);
    same_again(body, VectorAdd::decode, VectorAdd::encode);
    same_again(body, VectorAddReply::decode, VectorAddReply::encode);
}

fn same_again<T: PartialEq + Debug>(
    body: &[u8],
    decode: fn(&[u8]) -> Result<T, MessageError>,
    encode: fn(&T) -> Vec<u8>,
) {
    if let Ok(message) = decode(body) {
        assert_eq!(decode(&encode(&message)), Ok(message));
    }
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
        min_version: 1,
        max_version: 1,
        features: Features::default(),
        client_name: "fuzz".to_owned(),
    };
    let add = VectorAdd {
        elements: 5,
        chunk_elements: 3,
        data_type: DataType::F32,
    };
    let fence = FenceReply::default();
    let request = |op| FrameHeader::request(op, 1);
    let reply = |op| FrameHeader::reply_to(&request(op), Status::OK);
    let mut seeds = vec![
        frame(request(Op::Hello), &hello.encode()),
        frame(reply(Op::Fence), &fence.encode()),
        frame(request(Op::Ping), b"payload"),
        frame(request(Op::Goodbye), &[]),
        frame(request(Op::Info), &add.encode()),
    ];
    seeds.push(seeds.concat());
    for seed in &mut seeds {
        seed.insert(0, 64);
    }
    seeds
}

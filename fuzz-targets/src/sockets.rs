//! Sessions over TCP: a stranger's first bytes, and a stream tampered with on the way.

use std::sync::LazyLock;

use vgpu_socket_transport::handshake::{
    Answered, GREETING_START, Greeting, MESSAGE, READY_RECORD, Refused, greeting_length,
};
use vgpu_socket_transport::record::{LENGTH, Records, first_record};
use vgpu_socket_transport::{Secret, Secrets};

use crate::input::Input;

/// Known to both sides here.
const LINE: &str = "tester 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

static SECRET: LazyLock<Secret> = LazyLock::new(|| Secret::parse(LINE).expect("a line"));
static SECRETS: LazyLock<Secrets> = LazyLock::new(|| Secrets::parse(LINE).expect("a line"));

/// The first bytes of a connection, and the same bytes as a file of secrets.
pub(crate) fn greeting(data: &[u8]) {
    let told = data.first_chunk().map(greeting_length);
    match answered(data) {
        Ok((answered, _)) => {
            assert_eq!(told, Some(Ok(data.len())));
            assert_eq!(&data[GREETING_START..][..6], b"tester");
            // Without the key nobody gets any further, whatever is replayed.
            let mut ready = [0; READY_RECORD];
            let n = data.len().min(ready.len());
            ready[..n].copy_from_slice(&data[..n]);
            assert!(answered.finish(&ready).is_err());
        }
        // Its log entry is one line.
        Err(refused) => assert!(!refused.to_string().contains(char::is_control)),
    }
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match Secrets::parse(text) {
        Ok(secrets) => assert!(secrets.names().all(|name| !name.is_empty())),
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
    if let Ok(secret) = Secret::parse(text) {
        let line = secret.to_line();
        let again = Secret::parse(&line).expect("what was written is read");
        assert_eq!(*again.to_line(), *line);
    }
}

pub(crate) fn greeting_seeds() -> Vec<Vec<u8>> {
    let other = Secret::parse(&LINE.replace("tester", "nobody")).expect("a line");
    vec![
        Greeting::new(&SECRET).1,
        Greeting::new(&other).1,
        format!("# a comment\n{LINE}\n").into_bytes(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ]
}

fn answered(greeting: &[u8]) -> Result<(Answered, [u8; MESSAGE]), Refused> {
    Answered::new(greeting, |name| {
        Ok(SECRETS.expected(name).expect("random numbers"))
    })
}

fn pair() -> (Records, Records) {
    let (client, greeting) = Greeting::new(&SECRET);
    let (mediator, answer) = answered(&greeting).expect("a greeting");
    let (client, ready) = client.finish(&answer).expect("an answer");
    let ready = ready.as_slice().try_into().expect("its length");
    let (_, mediator) = mediator.finish(ready).expect("the client is there");
    (client, mediator)
}

/// Records that are sealed, then changed, left out, repeated, moved, cut or forged by an attacker
/// between the two sides. The opened ones are the beginning of the sealed ones, in order.
pub(crate) fn records(data: &[u8]) {
    let mut input = Input::new(data);
    let (mut client, mut mediator) = pair();
    let mut sealed = Vec::new();
    let mut wire = Vec::new();
    while !input.is_empty() && wire.len() < 1 << 18 {
        let (what, length, at) = (input.u8(), input.u16(), input.u16());
        let content = vec![what; usize::from(length) % 3000];
        let mut record = Vec::new();
        client.seal(&content, &mut record);
        sealed.push(content);
        let at = usize::from(at) % record.len();
        match what % 16 {
            0 => record[at] ^= 1 << (what >> 5),
            1 => record.clear(),
            2 => record = [&record[..], &record].concat(),
            3 => record.truncate(at),
            4 => {
                let kept = wire.len().saturating_sub(at);
                let moved = wire.split_off(kept);
                record.extend(moved);
            }
            5 => record = input.take(at).to_vec(),
            _ => {}
        }
        wire.extend(record);
    }
    let mut sealed = sealed.into_iter();
    let mut rest = &wire[..];
    while let Some(end) = first_record(rest) {
        let mut opened = vec![0; end];
        // A reader stops at the first that does not open.
        let Ok(n) = mediator.open(&rest[LENGTH..end], &mut opened) else {
            return;
        };
        assert_eq!(Some(&opened[..n]), sealed.next().as_deref());
        rest = &rest[end..];
    }
}

pub(crate) fn records_seeds() -> Vec<Vec<u8>> {
    let step = |what: u8, length: u16, at: u16| {
        let [a, b] = length.to_le_bytes();
        let [c, d] = at.to_le_bytes();
        [what, a, b, c, d]
    };
    let honest = [step(6, 100, 0), step(7, 0, 0), step(22, 2999, 0)];
    let mut seeds = vec![honest.concat()];
    for harm in 0..6 {
        seeds.push([&honest.concat()[..], &step(harm, 50, 20), &step(9, 10, 0)].concat());
    }
    seeds
}

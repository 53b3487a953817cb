//! The files of a session over a directory, as a hostile guest writes them.

use std::time::{Duration, Instant};

use vgpu_file_transport::session::file_name::{parse, segment};
use vgpu_file_transport::session::rules::{Exchange, Piece};
use vgpu_file_transport::session::segment::{HEADER, Header, Kind, MAX_PAYLOAD, Role};
use vgpu_file_transport::session::shared_directory::{Content, SharedDirectory, Trouble};
use vgpu_file_transport::{GuestName, SessionName};

use crate::input::Input;

const SESSION: SessionName = SessionName::new([7; 16]);

/// One file, and names.
pub(crate) fn segments(data: &[u8]) {
    if let Ok(header) = Header::decode(data) {
        let payload = &data[HEADER..];
        assert!(payload.len() <= MAX_PAYLOAD);
        assert_eq!(header.encode(payload), data, "one meaning, one file");
    }
    if let Ok(text) = std::str::from_utf8(data) {
        if let Some((role, kind, number)) = parse(text) {
            assert_eq!(segment(role, kind, number), text);
        }
        if let Ok(name) = text.parse::<SessionName>() {
            assert_eq!(name.to_string(), text);
        }
        if let Ok(name) = text.parse::<GuestName>() {
            assert!(!name.as_str().contains('/') && !name.as_str().starts_with('.'));
        }
    }
}

pub(crate) fn segments_seeds() -> Vec<Vec<u8>> {
    let data = header(Kind::Data, 1);
    let last = Header { last: true, ..data };
    vec![
        data.encode(b"payload"),
        last.encode(b""),
        header(Kind::Beat, 3).encode(b""),
        b"g-data-000000000000001f".to_vec(),
        b"00112233445566778899aabbccddeeff".to_vec(),
        b"web-1".to_vec(),
    ]
}

fn header(kind: Kind, number: u64) -> Header {
    Header {
        number,
        ..Header::first(Role::Guest, kind, SESSION, [9; 16])
    }
}

/// A directory whose contents the input determines.
struct Hostile {
    files: Vec<(String, Content)>,
    published: u64,
}

impl SharedDirectory for Hostile {
    fn list(&mut self) -> Result<Vec<String>, Trouble> {
        Ok(self.files.iter().map(|(name, _)| name.clone()).collect())
    }

    fn read(&mut self, name: &str, most: usize) -> Result<Content, Trouble> {
        let found = self.files.iter().find(|(listed, _)| listed == name);
        let (_, content) = found.expect("only listed names are opened");
        Ok(match content {
            Content::Bytes(bytes) if bytes.len() > most => Content::Unfit("too long"),
            other => other.clone(),
        })
    }

    fn publish(&mut self, name: &str, bytes: &[u8]) -> Result<(), Trouble> {
        self.published += 1;
        assert!(name.starts_with("m-") && Header::decode(bytes).is_ok());
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<(), Trouble> {
        assert!(name.starts_with("m-"), "a side removes its own files only");
        Ok(())
    }
}

/// The mediator's side of a session whose directory the input determines: files that are mostly
/// right, so that the rules behind the checksum are reached.
pub(crate) fn session(data: &[u8]) {
    let mut input = Input::new(data);
    let start = Instant::now();
    let mut exchange = Exchange::new(Role::Mediator, SESSION, [1; 16], input.u8() & 1 == 1, start);
    let mut directory = Hostile {
        files: Vec::new(),
        published: 0,
    };
    let (mut sent, mut received, mut offset, mut now) = (0u64, 0, 0, start);
    while !input.is_empty() {
        let kind = if input.u8() & 1 == 0 {
            Kind::Data
        } else {
            Kind::Beat
        };
        let number = u64::from(input.u8());
        let change = input.u8();
        let len = usize::from(input.u8() & 15);
        let payload = input.take(len);
        let payload = if kind == Kind::Data { payload } else { &[] };
        let mut header = Header {
            taken: u64::from(change >> 4),
            offset,
            last: kind == Kind::Data && change & 1 != 0,
            gives_up: kind == Kind::Beat && change & 1 != 0,
            ..header(kind, number)
        };
        match change & 14 {
            2 => header.writer = [2; 16],
            4 => header.session = SessionName::new([8; 16]),
            6 => header.number = number.wrapping_add(1),
            8 => header.role = Role::Mediator,
            10 => header.offset = input.u32().into(),
            _ => {}
        }
        let mut file = header.encode(payload);
        if change & 14 == 12 {
            file.truncate(usize::from(input.u8()));
        }
        let content = match input.u8() {
            0 => Content::Absent,
            1 => Content::Unfit("a directory"),
            _ => Content::Bytes(file),
        };
        directory
            .files
            .push((segment(Role::Guest, kind, number), content));
        if directory.files.len() > 32 {
            directory.files.remove(0);
        }
        now += Duration::from_millis(u64::from(input.u16() >> 4));
        let Ok(looked) = exchange.look(&mut directory, 1 << 20, now) else {
            return;
        };
        let before = received;
        received += looked
            .pieces
            .iter()
            .map(|piece| piece.bytes().len() as u64)
            .sum::<u64>();
        offset += received - before;
        let mut next = || {
            (sent < 8).then(|| {
                sent += 1;
                let file = vec![0; HEADER + 4];
                Piece { file, last: false }
            })
        };
        if exchange.send(&mut directory, &mut next, now).is_err()
            || exchange.beat(&mut directory, now).is_err()
        {
            return;
        }
        assert!(directory.published < 10_000, "bounded work");
        assert!(received < 1 << 20, "no byte counts twice");
    }
}

pub(crate) fn session_seeds() -> Vec<Vec<u8>> {
    // A beat, two pieces of data, an acknowledgement, the end.
    let step = |beat: u8, number: u8, change: u8, payload: &[u8]| {
        let len = u8::try_from(payload.len()).unwrap_or(0);
        [&[beat, number, change, len], payload, &[9, 0, 1]].concat()
    };
    let good = [
        vec![0],
        step(1, 1, 0, b""),
        step(0, 1, 0, b"piece"),
        step(0, 2, 0x10, b"another"),
        step(1, 2, 0x30, b""),
        step(0, 3, 0x41, b""),
    ]
    .concat();
    let foreign = [vec![1], step(1, 1, 0, b""), step(0, 1, 2, b"piece")].concat();
    vec![good, foreign]
}

//! One file of a session: a header of 80 bytes and the payload, little-endian. Pure.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic, `VGPUSEG` and a zero byte |
//! | 8 | 2 | version, 1 |
//! | 10 | 1 | who wrote it: 1 the guest, 2 the mediator |
//! | 11 | 1 | kind: 1 data, 2 beat |
//! | 12 | 4 | flags: 1 the last of its direction, 2 the writer gives up |
//! | 16 | 16 | the session |
//! | 32 | 16 | the writer: random, another for each process that ever takes part |
//! | 48 | 8 | number among the files of its kind, from 1 |
//! | 56 | 8 | data segments of the other direction that the writer has taken |
//! | 64 | 8 | bytes of the stream before this segment |
//! | 72 | 4 | bytes of the payload; the file ends after them |
//! | 76 | 4 | CRC-32C of all that, with this field 0, and of the payload |

use crate::name::SessionName;

/// Bytes of the header.
pub const HEADER: usize = 80;

/// Most bytes of payload in one segment.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// Bytes of the longest file.
pub const MAX_FILE: usize = HEADER + MAX_PAYLOAD;

const MAGIC: [u8; 8] = *b"VGPUSEG\0";
const VERSION: u16 = 1;
const CHECKSUM_AT: usize = 76;

/// The end that writes a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It made the session.
    Guest,
    /// It took the session.
    Mediator,
}

impl Role {
    /// The other role.
    pub fn peer(self) -> Self {
        match self {
            Self::Guest => Self::Mediator,
            Self::Mediator => Self::Guest,
        }
    }

    fn byte(self) -> u8 {
        match self {
            Self::Guest => 1,
            Self::Mediator => 2,
        }
    }
}

/// The two kinds of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A piece of the stream.
    Data,
    /// A sign of life, with an acknowledgement.
    Beat,
}

/// The fields of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The side that wrote it.
    pub role: Role,
    /// Its kind.
    pub kind: Kind,
    /// Data: the stream ends after it.
    pub last: bool,
    /// Beat: the writer ends without having closed.
    pub gives_up: bool,
    /// The session it belongs to.
    pub session: SessionName,
    /// The process that wrote it.
    pub writer: [u8; 16],
    /// Its number among the files of its kind, from 1.
    pub number: u64,
    /// The number of the last data segment that the writer has taken; 0 for none.
    pub taken: u64,
    /// Data: bytes of the stream before it. Beat: bytes sent so far.
    pub offset: u64,
}

/// The reasons why a file is not a segment, or not the expected one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// Shorter than its header says, or than a header.
    #[error("it ends after {0} bytes, before its end")]
    Short(usize),
    /// The checksum does not match.
    #[error("its checksum is wrong")]
    Checksum,
    /// The magic number is wrong.
    #[error("it does not begin like a segment")]
    Magic,
    /// A later version.
    #[error("it has version {0}, and this side knows version {VERSION}")]
    Version(u16),
    /// A field that has no meaning, by name.
    #[error("its {0} makes no sense")]
    Field(&'static str),
    /// A field that belongs to another file, by name.
    #[error("its {0} is that of another file")]
    Foreign(&'static str),
}

impl SegmentError {
    /// Whether the file may be whole at a later look: torn writes and caches cause such errors.
    pub fn may_pass(self) -> bool {
        matches!(self, Self::Short(_) | Self::Checksum | Self::Magic)
    }
}

impl Header {
    /// The first header of its kind that `writer` writes: number 1, nothing taken, nothing before it.
    pub fn first(role: Role, kind: Kind, session: SessionName, writer: [u8; 16]) -> Self {
        Self {
            role,
            kind,
            last: false,
            gives_up: false,
            session,
            writer,
            number: 1,
            taken: 0,
            offset: 0,
        }
    }

    /// The file with this header and `payload`, which must not exceed [`MAX_PAYLOAD`].
    pub fn encode(&self, payload: &[u8]) -> Vec<u8> {
        let mut file = vec![0; HEADER];
        file.extend(payload);
        self.complete(&mut file);
        file
    }

    /// Writes this header into the first [`HEADER`] bytes of `file`; the payload follows them.
    ///
    /// # Panics
    /// If `file` is shorter than a header.
    pub fn complete(&self, file: &mut [u8]) {
        debug_assert!(file.len() <= MAX_FILE);
        let payload = file.len() - HEADER;
        let mut header = Vec::with_capacity(HEADER);
        let kind = match self.kind {
            Kind::Data => 1u8,
            Kind::Beat => 2,
        };
        let flags = u32::from(self.last) | u32::from(self.gives_up) << 1;
        // At most 1 MiB.
        let len = u32::try_from(payload).unwrap_or(u32::MAX);
        header.extend(MAGIC);
        header.extend(VERSION.to_le_bytes());
        header.extend([self.role.byte(), kind]);
        header.extend(flags.to_le_bytes());
        header.extend(self.session.bits());
        header.extend(self.writer);
        for number in [self.number, self.taken, self.offset] {
            header.extend(number.to_le_bytes());
        }
        header.extend(len.to_le_bytes());
        file[..CHECKSUM_AT].copy_from_slice(&header);
        let checksum = checksum(file);
        file[CHECKSUM_AT..HEADER].copy_from_slice(&checksum.to_le_bytes());
    }

    /// Decodes a whole file. Checks everything except whose file it is; see [`check`](Self::check).
    ///
    /// # Errors
    /// See [`SegmentError`].
    pub fn decode(file: &[u8]) -> Result<Self, SegmentError> {
        let Some((header, payload)) = file.split_first_chunk::<HEADER>() else {
            return Err(SegmentError::Short(file.len()));
        };
        if header[..8] != MAGIC {
            return Err(SegmentError::Magic);
        }
        let u32_at = |at: usize| u32::from_le_bytes(array(header, at));
        let u64_at = |at: usize| u64::from_le_bytes(array(header, at));
        let len = u32_at(72) as usize;
        // First of all: in a file that is incomplete no field means anything.
        if checksum(file) != u32_at(CHECKSUM_AT) {
            let short = len <= MAX_PAYLOAD && payload.len() < len;
            return Err(if short {
                SegmentError::Short(file.len())
            } else {
                SegmentError::Checksum
            });
        }
        let version = u16::from_le_bytes(array(header, 8));
        if version != VERSION {
            return Err(SegmentError::Version(version));
        }
        if len > MAX_PAYLOAD || payload.len() != len {
            return Err(SegmentError::Field("length"));
        }
        let role = match header[10] {
            1 => Role::Guest,
            2 => Role::Mediator,
            _ => return Err(SegmentError::Field("writer's side")),
        };
        let (kind, allowed) = match header[11] {
            1 => (Kind::Data, 1),
            2 => (Kind::Beat, 2),
            _ => return Err(SegmentError::Field("kind")),
        };
        let flags = u32_at(12);
        if flags & !allowed != 0 {
            return Err(SegmentError::Field("flags"));
        }
        if kind == Kind::Beat && len != 0 {
            return Err(SegmentError::Field("payload"));
        }
        let number = u64_at(48);
        if number == 0 {
            return Err(SegmentError::Field("number"));
        }
        Ok(Self {
            role,
            kind,
            last: flags & 1 != 0,
            gives_up: flags & 2 != 0,
            session: SessionName::new(array(header, 16)),
            writer: array(header, 32),
            number,
            taken: u64_at(56),
            offset: u64_at(64),
        })
    }

    /// Checks that this is the file that its name promises, of this session, by this writer.
    ///
    /// # Errors
    /// [`SegmentError::Foreign`].
    pub fn check(
        &self,
        role: Role,
        kind: Kind,
        number: u64,
        session: SessionName,
        writer: Option<[u8; 16]>,
    ) -> Result<(), SegmentError> {
        let rules = [
            (self.session == session, "session"),
            (self.role == role, "writer's side"),
            (self.kind == kind, "kind"),
            (self.number == number, "number"),
            (writer.is_none_or(|writer| writer == self.writer), "writer"),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, field)) => Err(SegmentError::Foreign(field)),
            None => Ok(()),
        }
    }
}

fn array<const N: usize>(header: &[u8; HEADER], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&header[at..at + N]);
    bytes
}

/// The checksum of a file of at least [`HEADER`] bytes, with its own field as zeros.
fn checksum(file: &[u8]) -> u32 {
    let sum = crc32c::crc32c(&file[..CHECKSUM_AT]);
    let sum = crc32c::crc32c_append(sum, &[0; 4]);
    crc32c::crc32c_append(sum, &file[HEADER..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> Header {
        Header {
            role: Role::Guest,
            kind: Kind::Data,
            last: true,
            gives_up: false,
            session: SessionName::new([7; 16]),
            writer: [9; 16],
            number: 5,
            taken: 3,
            offset: 1 << 40,
        }
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let file = header().encode(b"payload");
        assert_eq!(file.len(), HEADER + 7);
        assert_eq!(&file[..12], b"VGPUSEG\0\x01\0\x01\x01");
        assert_eq!(file[12..16], [1, 0, 0, 0]);
        assert_eq!(file[16..48], [[7; 16], [9; 16]].concat());
        assert_eq!(file[48..56], 5u64.to_le_bytes());
        assert_eq!(file[56..64], 3u64.to_le_bytes());
        assert_eq!(file[64..72], (1u64 << 40).to_le_bytes());
        assert_eq!(file[72..76], 7u32.to_le_bytes());
        assert_eq!(Header::decode(&file), Ok(header()));
    }

    #[test]
    fn whose_file_it_is_is_checked() {
        let (session, writer) = (SessionName::new([7; 16]), [9; 16]);
        let check = |role, kind, number, session, writer| {
            header().check(role, kind, number, session, writer)
        };
        let (guest, data) = (Role::Guest, Kind::Data);
        assert_eq!(check(guest, data, 5, session, Some(writer)), Ok(()));
        assert_eq!(check(guest, data, 5, session, None), Ok(()));
        let foreign = |field| Err(SegmentError::Foreign(field));
        assert_eq!(check(guest, data, 6, session, None), foreign("number"));
        assert_eq!(check(guest, Kind::Beat, 5, session, None), foreign("kind"));
        let other = SessionName::new([8; 16]);
        assert_eq!(check(guest, data, 5, other, None), foreign("session"));
        assert_eq!(
            check(guest, data, 5, session, Some([8; 16])),
            foreign("writer")
        );
        assert_eq!(
            check(Role::Mediator, data, 5, session, None),
            foreign("writer's side")
        );
    }

    #[test]
    fn no_bit_may_change_and_no_byte_be_lost() {
        let file = header().encode(b"payload");
        for at in 0..file.len() * 8 {
            let mut changed = file.clone();
            changed[at / 8] ^= 1 << (at % 8);
            assert!(Header::decode(&changed).is_err(), "bit {at}");
        }
        for len in 0..file.len() {
            let error = Header::decode(&file[..len]).unwrap_err();
            assert!(error.may_pass(), "{len}: {error}");
        }
        let long = [&file[..], b"x"].concat();
        assert_eq!(Header::decode(&long), Err(SegmentError::Checksum));
        assert!(Header::decode(&vec![0; file.len()]).unwrap_err().may_pass());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_segment_or_a_reason(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(header) = Header::decode(&bytes) {
                prop_assert_eq!(header.encode(&bytes[HEADER..]), bytes);
            }
        }

        #[test]
        fn every_segment_reads_back(
            guest in any::<bool>(), data in any::<bool>(), flag in any::<bool>(),
            ids in any::<[u8; 32]>(), numbers in any::<[u64; 3]>(),
            payload in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut session = [0; 16];
            session.copy_from_slice(&ids[..16]);
            let mut writer = [0; 16];
            writer.copy_from_slice(&ids[16..]);
            let header = Header {
                role: if guest { Role::Guest } else { Role::Mediator },
                kind: if data { Kind::Data } else { Kind::Beat },
                last: data && flag,
                gives_up: !data && flag,
                session: SessionName::new(session),
                writer,
                number: numbers[0].max(1),
                taken: numbers[1],
                offset: numbers[2],
            };
            let payload = if data { &payload[..] } else { &[] };
            prop_assert_eq!(Header::decode(&header.encode(payload)), Ok(header));
        }
    }
}

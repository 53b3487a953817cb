//! The encrypted stream: the data is cut into records, each sealed separately.
//!
//! ```text
//! length of the rest, 2 bytes big-endian | ciphertext | tag, 16 bytes
//! ```
//!
//! Each record is encrypted with the next number of its direction as nonce, so a record that was
//! changed, left out, repeated or moved does not open. An empty record is the end of the stream: a
//! connection that ends without one was cut off.

use snow::TransportState;

/// Bytes of the length field before a record.
pub const LENGTH: usize = 2;

/// Bytes of the authentication tag of a record.
pub const TAG: usize = 16;

/// Most bytes of content in a record: Noise messages are at most 65,535 bytes long.
pub const MAX_CONTENT: usize = 65_535 - TAG;

/// Most bytes of a record on the wire.
pub(crate) const MAX_RECORD: usize = LENGTH + MAX_CONTENT + TAG;

/// Records under one key. 2^20 of them are at most 64 GiB, far below the limit of AES-GCM for one
/// key (some 2^24 records of this length, by RFC 8446 §5.5).
const RECORDS_PER_KEY: u64 = 1 << 20;

/// The reasons why a record does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Shorter than a tag.
    #[error("a record of {0} bytes, which is shorter than its tag")]
    Short(usize),
    /// It is not the record that the other side sealed at this place of the stream.
    #[error("a record was changed, repeated or left out on its way")]
    Forged,
}

/// Both directions of an encrypted stream.
pub struct Records {
    noise: TransportState,
    records_per_key: u64,
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records")
            .field("sealed", &self.noise.sending_nonce())
            .field("opened", &self.noise.receiving_nonce())
            .finish_non_exhaustive()
    }
}

impl Records {
    pub(crate) fn new(noise: TransportState) -> Self {
        Self {
            noise,
            records_per_key: RECORDS_PER_KEY,
        }
    }

    /// Appends `content`, at most [`MAX_CONTENT`] bytes, to `out` as one record. Empty content is
    /// the end of the stream.
    ///
    /// # Panics
    /// If `content` is longer.
    pub fn seal(&mut self, content: &[u8], out: &mut Vec<u8>) {
        let start = out.len() + LENGTH;
        let length = u16::try_from(content.len() + TAG).expect("at most MAX_CONTENT bytes");
        out.extend_from_slice(&length.to_be_bytes());
        out.resize(start + usize::from(length), 0);
        let written = self
            .noise
            .write_message(content, &mut out[start..])
            .expect("there is room, and 2^64 records take longer than anybody waits");
        debug_assert_eq!(written, usize::from(length));
        if self
            .noise
            .sending_nonce()
            .is_multiple_of(self.records_per_key)
        {
            self.noise.rekey_outgoing();
        }
    }

    /// Opens the record whose bytes after the length are `sealed`. Returns the number of bytes
    /// filled in `out`; 0 is the end of the stream.
    ///
    /// `out` should be as long as `sealed`, and must not be shorter than the content. After an
    /// error its contents are unspecified.
    ///
    /// # Errors
    /// It is not the record that was sealed. No record after it opens either.
    pub fn open(&mut self, sealed: &[u8], out: &mut [u8]) -> Result<usize, RecordError> {
        if sealed.len() < TAG {
            return Err(RecordError::Short(sealed.len()));
        }
        let opened = self
            .noise
            .read_message(sealed, out)
            .map_err(|_| RecordError::Forged)?;
        if self
            .noise
            .receiving_nonce()
            .is_multiple_of(self.records_per_key)
        {
            self.noise.rekey_incoming();
        }
        Ok(opened)
    }
}

/// The first complete record in `bytes`: the end of its bytes after the length. `None`: not
/// complete yet.
pub fn first_record(bytes: &[u8]) -> Option<usize> {
    let (length, _) = bytes.split_first_chunk::<LENGTH>()?;
    let end = LENGTH + usize::from(u16::from_be_bytes(*length));
    (bytes.len() >= end).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::tests::pair;

    fn seal(records: &mut Records, content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        records.seal(content, &mut out);
        assert_eq!(first_record(&out), Some(out.len()));
        out
    }

    fn open(records: &mut Records, record: &[u8]) -> Result<Vec<u8>, RecordError> {
        let mut out = vec![0; record.len()];
        let n = records.open(&record[LENGTH..], &mut out)?;
        out.truncate(n);
        Ok(out)
    }

    #[test]
    fn what_is_sealed_opens_in_both_directions_and_across_new_keys() {
        let (mut client, mut mediator) = pair();
        client.records_per_key = 3;
        mediator.records_per_key = 3;
        for round in 0..20 {
            for length in [0, 1, 15, 16, 17, 1000, MAX_CONTENT] {
                let content: Vec<u8> = (0..length)
                    .map(|i| ((i + round) % 251).try_into().unwrap())
                    .collect();
                let record = seal(&mut client, &content);
                assert_eq!(record.len(), LENGTH + length + TAG);
                assert_eq!(open(&mut mediator, &record), Ok(content.clone()));
                let record = seal(&mut mediator, &content);
                assert_eq!(open(&mut client, &record), Ok(content));
            }
        }
    }

    #[test]
    fn nothing_else_opens() {
        let (mut client, mut mediator) = pair();
        let first = seal(&mut client, b"first");
        let second = seal(&mut client, b"second");
        assert_eq!(
            open(&mut mediator, &second),
            Err(RecordError::Forged),
            "moved"
        );
        assert_eq!(
            open(&mut client, &first),
            Err(RecordError::Forged),
            "sent back"
        );
        for bit in 0..8 * (first.len() - LENGTH) {
            let mut changed = first.clone();
            changed[LENGTH + bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(&mut mediator, &changed), Err(RecordError::Forged));
        }
        for length in 0..first.len() - LENGTH {
            let cut = &first[..LENGTH + length];
            assert!(open(&mut mediator, cut).is_err(), "{length} bytes");
        }
        assert_eq!(open(&mut mediator, &first), Ok(b"first".to_vec()));
        assert_eq!(
            open(&mut mediator, &first),
            Err(RecordError::Forged),
            "repeated"
        );
        assert_eq!(open(&mut mediator, &second), Ok(b"second".to_vec()));
    }

    #[test]
    fn records_are_told_apart_in_a_stream() {
        assert_eq!(first_record(&[]), None);
        assert_eq!(first_record(&[0]), None);
        assert_eq!(first_record(&[0, 0]), Some(2));
        assert_eq!(first_record(&[0, 3, 1, 2]), None);
        assert_eq!(first_record(&[0, 3, 1, 2, 3, 9]), Some(5));
        assert_eq!(first_record(&[255; 65_536]), None);
        assert_eq!(first_record(&[255; 65_537]), Some(65_537));
    }
}

#![forbid(unsafe_code)]
#![cfg_attr(
    not(feature = "testing"),
    allow(unreachable_pub, reason = "only tests of other crates use it")
)]
//! The two messages of the rendezvous, as bytes. Pure.
//!
//! Numbers are little-endian. The server sends a [`Hello`] with three descriptors: the memory, the
//! client's end of the [bell](super::bell) that rings the server, and that of the bell that rings
//! the client. The client answers with a [`Reply`]. Later messages on the socket are in
//! [`descriptor_socket`](super::descriptor_socket).

use crate::error::PeerError;
use crate::wire::extension::Nonce;

const MAGIC: [u8; 8] = *b"vchan-lo";
/// The only version in use; version 1 had no extension page, version 2 rang with eventfds.
const VERSION: u16 = 3;
/// In the flags: the second page is an extension page.
const EXTENSION: u16 = 1;

/// Length of a hello: magic, version u16, flags u16, reserved u32, memory bytes u64, nonce of the
/// extension page.
pub const HELLO_BYTES: usize = 40;
/// Length of a reply: magic, version u16, code u16, reserved u32.
pub const REPLY_BYTES: usize = 16;

/// The server's message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// Length of the memory: the control page, the extension page if there is one, the left
    /// ring's pages, the right ring's pages.
    pub memory_bytes: u64,
    /// The nonce of the extension page, if there is one.
    pub extension: Option<Nonce>,
}

/// The reasons for which a client turns a server down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Hello, control page or descriptors break the rules.
    Invalid,
    /// The client could not map the memory.
    NoMemory,
}

/// The client's answer.
pub type Reply = Result<(), Refusal>;

impl Hello {
    /// As bytes.
    pub fn encode(self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.memory_bytes.to_le_bytes());
        if let Some(nonce) = self.extension {
            bytes[10..12].copy_from_slice(&EXTENSION.to_le_bytes());
            bytes[24..].copy_from_slice(&nonce);
        }
        bytes
    }

    /// Decodes bytes of a peer.
    ///
    /// # Errors
    /// [`PeerError::Rendezvous`].
    pub fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Self, PeerError> {
        check_start(bytes)?;
        if bytes[12..16] != [0; 4] {
            return refuse("reserved bytes of its hello are not zero".to_owned());
        }
        let mut number = [0; 8];
        number.copy_from_slice(&bytes[16..24]);
        let mut nonce = [0; 16];
        nonce.copy_from_slice(&bytes[24..]);
        let extension = match u16::from_le_bytes([bytes[10], bytes[11]]) {
            0 if nonce == [0; 16] => None,
            0 => return refuse("its hello has a nonce and no extension page".to_owned()),
            EXTENSION => Some(nonce),
            flags => return refuse(format!("its hello has the unknown flags {flags:#x}")),
        };
        Ok(Self {
            memory_bytes: u64::from_le_bytes(number),
            extension,
        })
    }
}

/// A reply as bytes.
pub fn encode_reply(reply: Reply) -> [u8; REPLY_BYTES] {
    let code: u16 = match reply {
        Ok(()) => 0,
        Err(Refusal::Invalid) => 1,
        Err(Refusal::NoMemory) => 2,
    };
    let mut bytes = [0; REPLY_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
    bytes[10..12].copy_from_slice(&code.to_le_bytes());
    bytes
}

/// Decodes a peer's reply.
///
/// # Errors
/// [`PeerError::Rendezvous`].
pub fn decode_reply(bytes: &[u8; REPLY_BYTES]) -> Result<Reply, PeerError> {
    check_start(bytes)?;
    if bytes[12..] != [0; 4] {
        return refuse("reserved bytes of its reply are not zero".to_owned());
    }
    match u16::from_le_bytes([bytes[10], bytes[11]]) {
        0 => Ok(Ok(())),
        1 => Ok(Err(Refusal::Invalid)),
        2 => Ok(Err(Refusal::NoMemory)),
        code => refuse(format!("its reply has the unknown code {code}")),
    }
}

fn check_start(bytes: &[u8]) -> Result<(), PeerError> {
    if bytes[..8] != MAGIC {
        return refuse("its first message is not one of a vchan over a Unix socket".to_owned());
    }
    match u16::from_le_bytes([bytes[8], bytes[9]]) {
        VERSION => Ok(()),
        other => refuse(format!(
            "it speaks version {other}, this side version {VERSION}"
        )),
    }
}

fn refuse<T>(what: String) -> Result<T, PeerError> {
    Err(PeerError::Rendezvous(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_as_they_were() {
        for extension in [None, Some(*b"0123456789abcdef")] {
            let hello = Hello {
                memory_bytes: 0x0102_0304_0506_0708,
                extension,
            };
            assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
        }
        for reply in [Ok(()), Err(Refusal::Invalid), Err(Refusal::NoMemory)] {
            assert_eq!(decode_reply(&encode_reply(reply)), Ok(reply));
        }
    }

    #[test]
    fn every_other_byte_in_the_head_is_refused() {
        let good = Hello {
            memory_bytes: 4096,
            extension: None,
        }
        .encode();
        for at in 0..16 {
            let mut bad = good;
            bad[at] ^= 0x40;
            assert!(Hello::decode(&bad).is_err(), "byte {at}");
        }
        let good = encode_reply(Ok(()));
        for at in 0..REPLY_BYTES {
            let mut bad = good;
            bad[at] ^= 0x40;
            assert!(decode_reply(&bad).is_err(), "byte {at}");
        }
    }
}

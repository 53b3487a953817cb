//! Authentication: both sides of a TCP connection prove that they know the same secret.
//!
//! The Noise protocol `NNpsk0` (25519, AES-256-GCM, SHA-256) with the secret's key; names and
//! numbers below are those on the wire.
//!
//! ```text
//! client → mediator   "vgpu" | version 1, 1 byte | n, 1 byte | NAME, n bytes | Noise message 1, 48 bytes
//! mediator → client   Noise message 2, 48 bytes
//! client → mediator   a record with the content "ready"
//! ```
//!
//! The name comes first, unencrypted, because it selects the key; it is part of the authenticated
//! transcript. Message 1 proves that its maker knows the key, but it may be replayed: only `ready`,
//! sealed with keys that depend on the mediator's own random number, proves that the client is
//! present now. Until then the mediator does nothing for it but this arithmetic. Since every
//! connection has new keys, a secret that leaks later does not decrypt recorded traffic.

use std::fmt;

use snow::params::NoiseParams;
use snow::{Builder, HandshakeState};

use crate::record::{LENGTH, MAX_CONTENT, Records, TAG};
use crate::secret::Secret;
use crate::secret_line::{MAX_NAME, is_name};
use crate::secrets::Expected;

/// First bytes of every connection.
const MAGIC: [u8; 4] = *b"vgpu";

/// The version that this crate speaks.
const VERSION: u8 = 1;

/// Bytes of a Noise message of the handshake: a public key and a tag.
pub const MESSAGE: usize = 48;

/// Bytes before the name.
pub const GREETING_START: usize = 6;

/// Content of the client's first record.
const READY: &[u8] = b"ready";

/// Bytes of the client's first record.
pub const READY_RECORD: usize = LENGTH + READY.len() + TAG;

/// The reasons why a client is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// The first bytes are not a client's.
    #[error("it is no vgpu client: it began with {}", Shown(.0))]
    Stranger([u8; GREETING_START]),
    /// A client with another version of the protocol.
    #[error("it speaks version {0} of the handshake; this mediator speaks {VERSION}")]
    Version(u8),
    /// The name is invalid.
    #[error("it gave no name that can be in a file of secrets")]
    NoName,
    /// No secret has that name.
    #[error("there is no secret for the name {0}")]
    Unknown(String),
    /// It has another key.
    #[error("its key is not the one of {0}")]
    WrongKey(String),
    /// An old greeting, replayed without the key.
    #[error("it repeated a greeting of {0} and could not go on")]
    Replayed(String),
}

struct Shown<'a>(&'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// The answer is not that of a mediator with the same secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the answer is not that of a mediator with the same secret")]
pub struct WrongAnswer;

/// A client that has greeted and waits for the answer.
pub struct Greeting {
    noise: HandshakeState,
}

impl fmt::Debug for Greeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Greeting").finish_non_exhaustive()
    }
}

impl Greeting {
    /// The client's first message, with the state that waits for the answer.
    pub fn new(secret: &Secret) -> (Self, Vec<u8>) {
        let mut bytes = greeting_start(secret.name());
        let mut noise = builder(&bytes, secret.key())
            .build_initiator()
            .expect("the pattern needs nothing else");
        bytes.extend_from_slice(&message(&mut noise));
        (Self { noise }, bytes)
    }

    /// Takes the answer. Returns the stream, and the record to send first.
    ///
    /// # Errors
    /// The mediator does not know the secret.
    pub fn finish(mut self, answer: &[u8; MESSAGE]) -> Result<(Records, Vec<u8>), WrongAnswer> {
        let mut records = self
            .noise
            .read_message(answer, &mut [0; MESSAGE])
            .and_then(|_| self.noise.into_transport_mode())
            .map(Records::new)
            .map_err(|_| WrongAnswer)?;
        let mut ready = Vec::with_capacity(READY_RECORD);
        records.seal(READY, &mut ready);
        Ok((records, ready))
    }
}

/// A client that the mediator has answered, and that must now prove its presence.
#[derive(Debug)]
pub struct Answered {
    name: String,
    records: Records,
}

impl Answered {
    /// Takes a whole greeting, [`greeting_length`] bytes, and asks `expected` for the key of the
    /// name in it. Returns the answer to send.
    ///
    /// # Errors
    /// The greeting is not that of a client with a secret, or `expected` fails.
    pub fn new<E: From<Refused>>(
        greeting: &[u8],
        expected: impl FnOnce(&str) -> Result<Expected, E>,
    ) -> Result<(Self, [u8; MESSAGE]), E> {
        let (start, _) = greeting
            .split_first_chunk::<GREETING_START>()
            .ok_or(Refused::NoName)?;
        let length = greeting_length(start)?;
        if greeting.len() != length {
            return Err(Refused::NoName.into());
        }
        let (start, first) = greeting.split_at(length - MESSAGE);
        let name = std::str::from_utf8(&start[GREETING_START..])
            .ok()
            .filter(|name| is_name(name))
            .ok_or(Refused::NoName)?
            .to_owned();
        let expected = expected(&name)?;
        let (key, known) = expected.key_or_decoy();
        let mut noise = builder(start, key)
            .build_responder()
            .expect("the pattern needs nothing else");
        if noise.read_message(first, &mut [0; MESSAGE]).is_err() || !known {
            return Err(match known {
                true => Refused::WrongKey(name),
                false => Refused::Unknown(name),
            }
            .into());
        }
        let answer = message(&mut noise);
        let records = Records::new(
            noise
                .into_transport_mode()
                .expect("both messages are through"),
        );
        Ok((Self { name, records }, answer))
    }

    /// Takes the client's first record with its length. Returns the client's name and the stream.
    ///
    /// # Errors
    /// The client does not know the secret after all.
    pub fn finish(mut self, ready: &[u8; READY_RECORD]) -> Result<(String, Records), Refused> {
        let mut content = [0; READY_RECORD];
        match self.records.open(&ready[LENGTH..], &mut content) {
            Ok(n) if content[..n] == *READY && ready[..LENGTH] == ready_length() => {
                Ok((self.name, self.records))
            }
            _ => Err(Refused::Replayed(self.name)),
        }
    }
}

/// Length in bytes of the greeting that begins with `start`.
///
/// # Errors
/// It is not a greeting.
pub fn greeting_length(start: &[u8; GREETING_START]) -> Result<usize, Refused> {
    let [magic @ .., version, name] = start;
    if *magic != MAGIC {
        return Err(Refused::Stranger(*start));
    }
    if *version != VERSION {
        return Err(Refused::Version(*version));
    }
    let name = usize::from(*name);
    if !(1..=MAX_NAME).contains(&name) {
        return Err(Refused::NoName);
    }
    Ok(GREETING_START + name + MESSAGE)
}

fn greeting_start(name: &str) -> Vec<u8> {
    let length = u8::try_from(name.len()).expect("names are short");
    let mut start = Vec::with_capacity(GREETING_START + name.len() + MESSAGE);
    start.extend_from_slice(&MAGIC);
    start.extend_from_slice(&[VERSION, length]);
    start.extend_from_slice(name.as_bytes());
    start
}

fn ready_length() -> [u8; LENGTH] {
    const { assert!(READY.len() <= MAX_CONTENT) };
    let [.., high, low] = (READY.len() + TAG).to_be_bytes();
    [high, low]
}

fn builder<'a>(prologue: &'a [u8], key: &'a [u8; 32]) -> Builder<'a> {
    let pattern: NoiseParams = "Noise_NNpsk0_25519_AESGCM_SHA256"
        .parse()
        .expect("a pattern that the library knows");
    Builder::new(pattern)
        .prologue(prologue)
        .and_then(|builder| builder.psk(0, key))
        .expect("each is set once")
}

fn message(noise: &mut HandshakeState) -> [u8; MESSAGE] {
    let mut bytes = [0; MESSAGE];
    let written = noise
        .write_message(&[], &mut bytes)
        .expect("it is this side's turn, and there is room");
    debug_assert_eq!(written, MESSAGE);
    bytes
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::secrets::Secrets;

    pub(crate) fn secrets(of: &[&Secret]) -> Secrets {
        let lines: Vec<String> = of
            .iter()
            .map(|secret| secret.to_line().to_string())
            .collect();
        Secrets::parse(&lines.join("\n")).unwrap()
    }

    fn answered(greeting: &[u8], secrets: &Secrets) -> Result<(Answered, [u8; MESSAGE]), Refused> {
        Answered::new(greeting, |name| Ok(secrets.expected(name).unwrap()))
    }

    /// The two ends of a stream.
    pub(crate) fn pair() -> (Records, Records) {
        let secret = Secret::generate("test").unwrap();
        let (client, greeting) = Greeting::new(&secret);
        let (mediator, answer) = answered(&greeting, &secrets(&[&secret])).unwrap();
        let (client, ready) = client.finish(&answer).unwrap();
        let (name, mediator) = mediator.finish(&ready.try_into().unwrap()).unwrap();
        assert_eq!(name, "test");
        (client, mediator)
    }

    #[test]
    fn both_sides_need_the_same_secret() {
        let (ours, other) = (
            Secret::generate("us").unwrap(),
            Secret::generate("us").unwrap(),
        );
        let (client, greeting) = Greeting::new(&ours);
        let refused = answered(&greeting, &secrets(&[&other])).unwrap_err();
        assert_eq!(refused, Refused::WrongKey("us".into()));
        let third = Secret::generate("them").unwrap();
        let refused = answered(&greeting, &secrets(&[&third])).unwrap_err();
        assert_eq!(refused, Refused::Unknown("us".into()));
        // A mediator without the key cannot answer either, even with another greeting's answer.
        let (_, answer) = answered(&greeting, &secrets(&[&ours])).unwrap();
        let (another, _) = Greeting::new(&ours);
        assert_eq!(another.finish(&answer).unwrap_err(), WrongAnswer);
        assert!(client.finish(&answer).is_ok());
    }

    #[test]
    fn a_greeting_is_bound_to_its_name() {
        let ours = Secret::generate("aa").unwrap();
        // The same key under two names: neither can still pass for the other.
        let twin = Secret::parse(&ours.to_line().replace("aa ", "bb ")).unwrap();
        let (_, mut greeting) = Greeting::new(&ours);
        greeting[GREETING_START..GREETING_START + 2].copy_from_slice(b"bb");
        let refused = answered(&greeting, &secrets(&[&ours, &twin])).unwrap_err();
        assert_eq!(refused, Refused::WrongKey("bb".into()));
    }

    #[test]
    fn an_old_greeting_gets_an_answer_and_no_further() {
        let secret = Secret::generate("us").unwrap();
        let secrets = secrets(&[&secret]);
        let (client, greeting) = Greeting::new(&secret);
        let (mediator, answer) = answered(&greeting, &secrets).unwrap();
        let (_, ready) = client.finish(&answer).unwrap();
        let ready: [u8; READY_RECORD] = ready.try_into().unwrap();
        assert!(mediator.finish(&ready).is_ok());
        let (again, _) = answered(&greeting, &secrets).unwrap();
        assert_eq!(
            again.finish(&ready).unwrap_err(),
            Refused::Replayed("us".into())
        );
    }

    #[test]
    fn strangers_are_told_apart() {
        let secrets = secrets(&[&Secret::generate("us").unwrap()]);
        let refused = |bytes: &[u8]| answered(bytes, &secrets).unwrap_err();
        assert_eq!(
            refused(b"GET / HTTP/1.1\r\n\r\n"),
            Refused::Stranger(*b"GET / ")
        );
        assert_eq!(
            refused(b"GET / HT").to_string(),
            "it is no vgpu client: it began with \"GET / \""
        );
        assert_eq!(refused(b"vgpu\x02\x01"), Refused::Version(2));
        assert_eq!(refused(b"vgpu\x01\x00"), Refused::NoName);
        assert_eq!(refused(b"vgpu\x01\xff"), Refused::NoName);
        assert_eq!(refused(b"vgpu"), Refused::NoName);
        let mut newline = b"vgpu\x01\x02a\n".to_vec();
        newline.extend([0; MESSAGE]);
        assert_eq!(
            refused(&newline),
            Refused::NoName,
            "nothing of it in the log"
        );
    }

    #[test]
    fn no_bit_of_a_greeting_can_be_changed() {
        let secret = Secret::generate("us").unwrap();
        let secrets = secrets(&[&secret]);
        let (_, greeting) = Greeting::new(&secret);
        for bit in 0..8 * greeting.len() {
            let mut changed = greeting.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            // X25519 ignores the highest bit of a public key, but the transcript does not.
            assert!(answered(&changed, &secrets).is_err(), "bit {bit}");
        }
    }
}

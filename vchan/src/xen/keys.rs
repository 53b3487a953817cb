//! The xenstore keys by which a client finds a server's pages and event channel.
//!
//! `<path>/ring-ref` is the grant reference of the control page, `<path>/event-channel` the port
//! that the server has bound for its client; both are decimal (Xen `libxenvchan.h`). Servers write
//! the ring reference first and the event channel last, so a client that sees the latter may read
//! both, unless a stale pair is just being replaced: so the caller repeats [`Keys::read`] once the
//! page is mapped.
//!
//! `<path>/vchan-extension` is our own: the grant reference of the extension page in decimal, a
//! space, and the channel's nonce as 32 hexadecimal digits. Clients that do not know it never read
//! it.

use std::time::Instant;

use super::store::{Store, StoreError};
use crate::wire::extension::{NONCE_BYTES, Nonce};

/// Name of the key with the grant reference of the control page.
pub const RING_REF: &str = "ring-ref";

/// Name of the key with the server's event channel port.
pub const EVENT_CHANNEL: &str = "event-channel";

/// Name of the key with the extension page and the nonce.
pub const EXTENSION: &str = "vchan-extension";

/// The place of a channel's extension page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExtensionKey {
    /// Grant reference of the extension page, not 0.
    pub page_ref: u32,
    /// The nonce that the page must have.
    pub nonce: Nonce,
}

impl ExtensionKey {
    /// The key's value.
    pub fn encode(&self) -> String {
        let mut text = format!("{} ", self.page_ref);
        for byte in self.nonce {
            text.push_str(&format!("{byte:02x}"));
        }
        text
    }

    /// Parses a peer's value.
    pub fn parse(text: &str) -> Result<Self, NumberError> {
        let (page_ref, digits) = text.split_once(' ').ok_or(NumberError::NoNonce)?;
        let page_ref = parse_number(page_ref)?;
        if digits.len() != 2 * NONCE_BYTES || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(NumberError::NoNonce);
        }
        let mut nonce = [0; NONCE_BYTES];
        for (byte, at) in nonce.iter_mut().zip((0..).step_by(2)) {
            *byte =
                u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| NumberError::NoNonce)?;
        }
        Ok(Self { page_ref, nonce })
    }
}

/// A server's keys, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keys {
    /// Grant reference of the control page, not 0.
    pub ring_ref: u32,
    /// Port of the server's event channel, not 0.
    pub event_channel: u32,
    /// The extension page, if the server offers one.
    pub extension: Option<ExtensionKey>,
}

impl Keys {
    /// Reads the keys in the directory `base`. `None` while one of the two mandatory keys is
    /// missing.
    ///
    /// # Errors
    /// [`KeyError::Value`] for a key that is not a decimal number from 1 to 2^32 − 1, or an
    /// extension key that is not as described above.
    pub fn read(store: Store, base: &str, deadline: Instant) -> Result<Option<Self>, KeyError> {
        // The key written last is read first: if it is there, so is the other.
        let Some(event_channel) = read_number(store, base, EVENT_CHANNEL, deadline)? else {
            return Ok(None);
        };
        let Some(ring_ref) = read_number(store, base, RING_REF, deadline)? else {
            return Ok(None);
        };
        let extension = match read_value(store, base, EXTENSION, ExtensionKey::parse, deadline) {
            // Without permission to read, a guest cannot see that a node is missing either.
            Err(KeyError::Store(StoreError::Denied { .. })) => None,
            outcome => outcome?,
        };
        Ok(Some(Self {
            ring_ref,
            event_channel,
            extension,
        }))
    }

    /// Writes the keys, in an order that keeps a client from mixing them with an older pair.
    pub fn publish(&self, store: Store, base: &str, deadline: Instant) -> Result<(), StoreError> {
        store.remove(&format!("{base}/{EVENT_CHANNEL}"), deadline)?;
        let extension = format!("{base}/{EXTENSION}");
        match &self.extension {
            Some(key) => store.write(&extension, &key.encode(), deadline)?,
            None => store.remove(&extension, deadline)?,
        }
        store.write(
            &format!("{base}/{RING_REF}"),
            &self.ring_ref.to_string(),
            deadline,
        )?;
        store.write(
            &format!("{base}/{EVENT_CHANNEL}"),
            &self.event_channel.to_string(),
            deadline,
        )
    }

    /// Removes the keys, if they are still these, and their directory if it is then empty. Call it
    /// while the port is bound: no other server has its number then.
    pub fn withdraw(&self, store: Store, base: &str, deadline: Instant) -> Result<(), StoreError> {
        let is_ours = |key, ours| -> Result<Option<bool>, StoreError> {
            let value = store.read_if_present(&format!("{base}/{key}"), deadline)?;
            Ok(value.map(|value| parse_number(&value) == Ok(ours)))
        };
        match is_ours(EVENT_CHANNEL, self.event_channel)? {
            Some(true) => {}
            Some(false) => return Ok(()), // another server has taken the path
            // Ours were only partly written, or another server is about to replace them.
            None if is_ours(RING_REF, self.ring_ref)? == Some(false) => return Ok(()),
            None => {}
        }
        let names = match store.list(base, deadline) {
            Err(StoreError::NotFound { .. }) => return Ok(()),
            names => names?,
        };
        let (keys, others): (Vec<_>, Vec<_>) = names
            .iter()
            .partition(|name| [EVENT_CHANNEL, RING_REF, EXTENSION].contains(&&***name));
        if others.is_empty() {
            // Everything in one request.
            return store.remove(base, deadline);
        }
        keys.iter()
            .try_for_each(|key| store.remove(&format!("{base}/{key}"), deadline))
    }
}

fn read_number(
    store: Store,
    base: &str,
    key: &'static str,
    deadline: Instant,
) -> Result<Option<u32>, KeyError> {
    read_value(store, base, key, parse_number, deadline)
}

fn read_value<T>(
    store: Store,
    base: &str,
    key: &'static str,
    parse: fn(&str) -> Result<T, NumberError>,
    deadline: Instant,
) -> Result<Option<T>, KeyError> {
    let node = format!("{base}/{key}");
    let Some(value) = store.read_if_present(&node, deadline)? else {
        return Ok(None);
    };
    match parse(&value) {
        Ok(parsed) => Ok(Some(parsed)),
        Err(why) => Err(KeyError::Value {
            node,
            value: excerpt(&value),
            why,
        }),
    }
}

/// A decimal number from 1 to 2^32 − 1 and nothing else: no sign, space, newline or leading zero.
///
/// The NUL byte that C programs may append to a value is gone already: xenstore clients strip it
/// when they read.
pub fn parse_number(text: &str) -> Result<u32, NumberError> {
    if text.is_empty() {
        return Err(NumberError::Empty);
    }
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(NumberError::NotDecimal);
    }
    if text.starts_with('0') {
        return Err(if text.len() == 1 {
            NumberError::OutOfRange
        } else {
            NumberError::NotDecimal
        });
    }
    // Digits only: parsing can fail only for the size.
    text.parse().map_err(|_| NumberError::OutOfRange)
}

/// The part of a value that fits in a message, printable.
fn excerpt(value: &str) -> String {
    let mut short: String = value
        .chars()
        .take(24)
        .flat_map(char::escape_debug)
        .collect();
    if value.chars().nth(24).is_some() {
        short.push('…');
    }
    short
}

/// The reasons why a key's value is not usable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NumberError {
    /// No characters at all.
    #[error("it is empty")]
    Empty,
    /// Something other than digits, or a leading zero.
    #[error("it is not a plain decimal number")]
    NotDecimal,
    /// 0, or more than 32 bits can hold.
    #[error("it is outside 1..=4294967295")]
    OutOfRange,
    /// The nonce of an extension key is missing or is not 32 hexadecimal digits.
    #[error("it does not end with a nonce of 32 hexadecimal digits")]
    NoNonce,
}

/// The reasons why the keys could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// xenstore itself failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The other side wrote something that is not a number.
    #[error("{node} holds `{value}`: {why}")]
    Value {
        /// Full path of the key.
        node: String,
        /// The value's first characters.
        value: String,
        /// The rule it breaks.
        why: NumberError,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_numbers() {
        assert_eq!(parse_number("1"), Ok(1));
        assert_eq!(parse_number("4294967295"), Ok(u32::MAX));
    }

    #[test]
    fn everything_else_is_refused() {
        assert_eq!(parse_number(""), Err(NumberError::Empty));
        for text in [
            "-1", "+1", " 1", "1 ", "1\n", "1\0", "0x1", "1.0", "007", "00", "ten", "１",
        ] {
            assert_eq!(parse_number(text), Err(NumberError::NotDecimal), "{text:?}");
        }
        for text in ["0", "4294967296", "99999999999999999999999999"] {
            assert_eq!(parse_number(text), Err(NumberError::OutOfRange), "{text:?}");
        }
        assert_eq!(
            parse_number(&"9".repeat(4096)),
            Err(NumberError::OutOfRange)
        );
    }

    #[test]
    fn extension_keys_come_back_and_others_are_refused() {
        let key = ExtensionKey {
            page_ref: 4_000_000_000,
            nonce: [0xA5; NONCE_BYTES],
        };
        assert_eq!(ExtensionKey::parse(&key.encode()), Ok(key));
        let nonce = "0123456789abcdef0123456789ABCDEF";
        assert!(ExtensionKey::parse(&format!("8 {nonce}")).is_ok());
        for text in [
            String::new(),
            "8".to_owned(),
            "8 ".to_owned(),
            format!("8  {nonce}"),
            format!("8 {nonce}0"),
            format!("8 {}", &nonce[1..]),
            format!("8 {}g", &nonce[1..]),
            format!("8 +{}", &nonce[1..]),
            format!("0 {nonce}"),
            format!("-8 {nonce}"),
            format!(" {nonce}"),
            format!("4294967296 {nonce}"),
            format!("8 {nonce}\n"),
        ] {
            assert!(ExtensionKey::parse(&text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn messages_stay_short_and_printable() {
        assert_eq!(excerpt("a\nb\0"), "a\\nb\\0");
        assert_eq!(excerpt(&"9".repeat(4096)).chars().count(), 25);
    }
}

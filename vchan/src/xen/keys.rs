//! The two xenstore keys by which a client finds a server's page and event channel.
//!
//! `<path>/ring-ref` is the grant reference of the control page, `<path>/event-channel` the port
//! that the server has bound for its client; both are decimal (Xen `libxenvchan.h`). Servers write
//! the ring reference first and the event channel last, so a client that sees the latter may read
//! both, unless a stale pair is just being replaced: hence [`Keys::read`]'s second look by the
//! caller once the page is mapped.

use std::time::Instant;

use super::store::{Store, StoreError};

/// Name of the key with the grant reference of the control page.
pub const RING_REF: &str = "ring-ref";

/// Name of the key with the server's event channel port.
pub const EVENT_CHANNEL: &str = "event-channel";

/// A server's pair of keys, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keys {
    /// Grant reference of the control page, not 0.
    pub ring_ref: u32,
    /// Port of the server's event channel, not 0.
    pub event_channel: u32,
}

impl Keys {
    /// Reads both keys in the directory `base`, or `None` while one of them is missing.
    ///
    /// # Errors
    /// [`KeyError::Value`] for a key that is not a decimal number from 1 to 2^32 − 1.
    pub fn read(store: Store, base: &str, deadline: Instant) -> Result<Option<Self>, KeyError> {
        // The one written last is read first: where it is, the other one is.
        let Some(event_channel) = read_number(store, base, EVENT_CHANNEL, deadline)? else {
            return Ok(None);
        };
        let Some(ring_ref) = read_number(store, base, RING_REF, deadline)? else {
            return Ok(None);
        };
        Ok(Some(Self {
            ring_ref,
            event_channel,
        }))
    }

    /// Writes both keys; nobody can mistake an older pair for this one half-way.
    pub fn publish(&self, store: Store, base: &str, deadline: Instant) -> Result<(), StoreError> {
        store.remove(&format!("{base}/{EVENT_CHANNEL}"), deadline)?;
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

    /// Removes both keys, if they are still these, and their directory if nothing else is in it.
    pub fn withdraw(&self, store: Store, base: &str, deadline: Instant) -> Result<(), StoreError> {
        for (key, ours) in [
            (EVENT_CHANNEL, self.event_channel),
            (RING_REF, self.ring_ref),
        ] {
            let node = format!("{base}/{key}");
            match store.read_if_present(&node, deadline)? {
                Some(value) if parse_number(&value) == Ok(ours) => store.remove(&node, deadline)?,
                Some(_) => return Ok(()), // another server has taken the path
                None => {}
            }
        }
        match store.list(base, deadline) {
            Ok(names) if names.is_empty() => store.remove(base, deadline),
            Ok(_) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn read_number(
    store: Store,
    base: &str,
    key: &'static str,
    deadline: Instant,
) -> Result<Option<u32>, KeyError> {
    let node = format!("{base}/{key}");
    let Some(value) = store.read_if_present(&node, deadline)? else {
        return Ok(None);
    };
    match parse_number(&value) {
        Ok(number) => Ok(Some(number)),
        Err(why) => Err(KeyError::Value {
            node,
            value: excerpt(&value),
            why,
        }),
    }
}

/// A decimal number from 1 to 2^32 − 1 and nothing else: no sign, space, newline or leading zero.
///
/// The one NUL byte that C programs may write behind a value is gone already: xenstore clients
/// take it off when they read.
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
    // Digits only: parsing can fail for its size alone.
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

/// Why a key's value is not a usable number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NumberError {
    /// No characters at all.
    #[error("it is empty")]
    Empty,
    /// Something else than digits, or a leading zero.
    #[error("it is not a plain decimal number")]
    NotDecimal,
    /// 0, or more than 32 bits hold.
    #[error("it is outside 1..=4294967295")]
    OutOfRange,
}

/// Why the keys could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// xenstore itself failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The other side wrote something that is no number.
    #[error("{node} holds `{value}`: {why}")]
    Value {
        /// Full path of the key.
        node: String,
        /// The value's first characters.
        value: String,
        /// What is wrong with it.
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
    fn messages_stay_short_and_printable() {
        assert_eq!(excerpt("a\nb\0"), "a\\nb\\0");
        assert_eq!(excerpt(&"9".repeat(4096)).chars().count(), 25);
    }
}

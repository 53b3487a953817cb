//! Names of xenstore nodes, checked before anything is sent to xenstored.
//!
//! A channel's keys lie in one directory, named either absolutely (`/local/domain/7/data/x`) or
//! relative to the home of the domain that has the vchan **server** role (`data/x`). xenstored
//! resolves a relative path against the home of the requester, so the server may use its path as it
//! is, and the client has to prepend the server's home.
//!
//! Grammar and limits: Xen `docs/misc/xenstore.txt`, section "Paths", and the 1,024 bytes that
//! oxenstored allows (C xenstored allows 3,072). A path is refused when it is too long, never cut.

use std::fmt;
use std::str::FromStr;

use crate::DomId;

/// Longest full node path in bytes that every xenstored accepts.
pub const PATH_MAX: usize = 1024;

/// The characters that a node's name may hold beside letters and digits, including the slash
/// between names (Xen `docs/misc/xenstore.txt`, "Paths").
macro_rules! signs {
    () => {
        "-/_@"
    };
}

/// Room left for the home prefix and the longest key: `/local/domain/65535/` and `/event-channel`.
const RESERVED: usize = 20 + 14;

/// A valid xenstore path of a channel's directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ChannelPath(Box<str>);

impl ChannelPath {
    /// The path as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the path starts at the root of xenstore.
    pub fn is_absolute(&self) -> bool {
        self.0.starts_with('/')
    }

    /// The path in the absolute form that any domain can use; `server` has the server role.
    pub fn resolve(&self, server: DomId) -> String {
        if self.is_absolute() {
            self.0.to_string()
        } else {
            format!("{}/{}", home(server), self.0)
        }
    }
}

impl fmt::Display for ChannelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ChannelPath {
    type Err = PathError;

    fn from_str(path: &str) -> Result<Self, PathError> {
        if path.len() > PATH_MAX - RESERVED {
            return Err(PathError::TooLong { bytes: path.len() });
        }
        check(path)?;
        Ok(Self(path.into()))
    }
}

/// A domain's home directory in xenstore.
pub fn home(domain: DomId) -> String {
    format!("/local/domain/{}", domain.0)
}

/// Checks a node path: its characters, its slashes and its length.
pub(super) fn check(path: &str) -> Result<(), PathError> {
    if path.is_empty() {
        return Err(PathError::Empty);
    }
    if path.len() > PATH_MAX {
        return Err(PathError::TooLong { bytes: path.len() });
    }
    if let Some(bad) = path
        .chars()
        .find(|c| !(c.is_ascii_alphanumeric() || signs!().contains(*c)))
    {
        return Err(PathError::Character {
            path: path.into(),
            bad,
        });
    }
    if path == "/" || path.ends_with('/') || path.contains("//") {
        return Err(PathError::Slashes { path: path.into() });
    }
    if path.starts_with('@') {
        return Err(PathError::Special { path: path.into() });
    }
    Ok(())
}

/// The reasons why a text is not the path of a xenstore node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// Nothing given.
    #[error("the xenstore path is empty")]
    Empty,
    /// More bytes than every xenstored accepts once the server's home and the key are added.
    #[error("the xenstore path has {bytes} bytes; at most {} fit", PATH_MAX - RESERVED)]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// A character that xenstore does not allow (at that place).
    #[error("the xenstore path `{}` holds the character {bad:?}", path.escape_debug())]
    Character {
        /// The path.
        path: Box<str>,
        /// The first such character.
        bad: char,
    },
    /// The name of a special watch, `@releaseDomain` and the like.
    #[error("`{path}` is no node: names with @ in front are special watches")]
    Special {
        /// The path.
        path: Box<str>,
    },
    /// An empty component or a slash at the end.
    #[error("the xenstore path `{path}` has an empty component")]
    Slashes {
        /// The path.
        path: Box<str>,
    },
}

impl PathError {
    /// One line: the remedy, for people.
    pub fn advice(&self) -> &'static str {
        concat!(
            "give a path such as data/demo (below the serving domain's home) or ",
            "/local/domain/7/data/demo; letters, digits and ",
            signs!(),
            " are allowed, but no @ in front and no two slashes in a row"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(path: &str) -> Result<ChannelPath, PathError> {
        path.parse()
    }

    #[test]
    fn relative_paths_belong_to_the_server() {
        let path = parse("data/vchan/1").unwrap();
        assert!(!path.is_absolute());
        assert_eq!(path.resolve(DomId(7)), "/local/domain/7/data/vchan/1");
    }

    #[test]
    fn absolute_paths_stay_as_they_are() {
        let path = parse("/local/domain/3/data/x").unwrap();
        assert_eq!(path.resolve(DomId(7)), "/local/domain/3/data/x");
    }

    #[test]
    fn refused_paths_name_the_reason() {
        assert_eq!(parse(""), Err(PathError::Empty));
        for slashes in ["/", "a/", "/a//b", "//a"] {
            assert!(
                matches!(parse(slashes), Err(PathError::Slashes { .. })),
                "{slashes}"
            );
        }
        for bad in ["a b", "a\0b", "a\nb", "ä", "a+b", "a.b"] {
            assert!(
                matches!(parse(bad), Err(PathError::Character { .. })),
                "{bad:?}"
            );
        }
        for special in ["@releaseDomain", "@introduceDomain"] {
            assert!(
                matches!(parse(special), Err(PathError::Special { .. })),
                "{special}"
            );
        }
    }

    #[test]
    fn what_the_advice_allows_is_allowed() {
        let error = parse("a b").unwrap_err();
        let advice = error.advice();
        for sign in "-/_@".chars() {
            assert!(advice.contains(sign));
            let path = format!("a{sign}b");
            assert_eq!(parse(&path).unwrap().as_str(), path);
        }
        let special = parse("@releaseDomain").unwrap_err();
        assert!(matches!(special, PathError::Special { .. }));
        assert!(special.advice().contains("no @ in front"));
    }

    #[test]
    fn long_paths_are_refused_and_never_cut() {
        let longest = "x".repeat(PATH_MAX - RESERVED);
        let full = parse(&longest).unwrap().resolve(DomId(u16::MAX)) + "/event-channel";
        assert_eq!(full.len(), PATH_MAX);
        let longer = "x".repeat(PATH_MAX - RESERVED + 1);
        assert_eq!(
            parse(&longer),
            Err(PathError::TooLong {
                bytes: longer.len()
            })
        );
    }
}

//! The arguments of `run`: `i32:-5`, `in:FILE`, …

use std::fs;
use std::path::{Path, PathBuf};

use vgpu_guest::Function;

use crate::failure::Failure;

/// A buffer is no larger than this.
const MOST: u64 = 1 << 40;

/// Bytes of the parameter that a buffer is.
const ADDRESS: usize = size_of::<u64>();

/// One `--arg`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Argument {
    /// A value as it lies in memory.
    Value(Vec<u8>),
    /// Memory on the device.
    Buffer {
        content: Content,
        /// Where its content goes afterwards.
        out: Option<PathBuf>,
    },
}

/// What a buffer holds at first.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content {
    Bytes(Vec<u8>),
    Zeros(u64),
}

impl Content {
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Zeros(bytes) => *bytes,
        }
    }
}

impl Argument {
    /// Reads one, and the file that it names.
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        let wrong = |what: String| {
            let advice = "write for example --arg i32:5, --arg in:x.f32 or --arg out:y.f32:4096";
            Failure::usage(format!("--arg {text}: {what}"), advice)
        };
        let Some((kind, value)) = text.split_once(':') else {
            return Err(wrong("wants TYPE:VALUE".to_owned()));
        };
        let bytes = |text: &str| match text.parse::<u64>() {
            Ok(0) => Err(wrong("a buffer has at least one byte".to_owned())),
            Ok(n) if n > MOST => Err(wrong(format!("a buffer of {n} bytes cannot be"))),
            Ok(n) => Ok(n),
            Err(_) => Err(wrong(format!("'{text}' is no number of bytes"))),
        };
        macro_rules! number {
            ($number:ty) => {
                match value.parse::<$number>() {
                    Ok(number) => Self::Value(number.to_le_bytes().to_vec()),
                    Err(_) => return Err(wrong(format!("'{value}' is no {kind}"))),
                }
            };
        }
        Ok(match kind {
            "i8" => number!(i8),
            "i16" => number!(i16),
            "i32" => number!(i32),
            "i64" => number!(i64),
            "u8" => number!(u8),
            "u16" => number!(u16),
            "u32" => number!(u32),
            "u64" => number!(u64),
            "f32" => number!(f32),
            "f64" => number!(f64),
            "bytes" => {
                Self::Value(digits(value).ok_or_else(|| {
                    wrong("wants an even number of hexadecimal digits".to_owned())
                })?)
            }
            "in" => Self::Buffer {
                content: file(Path::new(value))?,
                out: None,
            },
            "inout" => {
                let (from, to) = value
                    .split_once(':')
                    .ok_or_else(|| wrong("wants inout:FILE:OUTFILE".to_owned()))?;
                Self::Buffer {
                    content: file(Path::new(from))?,
                    out: Some(to.into()),
                }
            }
            "out" => {
                let (to, n) = value
                    .rsplit_once(':')
                    .ok_or_else(|| wrong("wants out:FILE:BYTES".to_owned()))?;
                Self::Buffer {
                    content: Content::Zeros(bytes(n)?),
                    out: Some(to.into()),
                }
            }
            "zero" => Self::Buffer {
                content: Content::Zeros(bytes(value)?),
                out: None,
            },
            _ => {
                return Err(wrong(format!(
                    "'{kind}' is none of i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 bytes in out inout zero"
                )));
            }
        })
    }

    /// Bytes of the parameter.
    fn size(&self) -> usize {
        match self {
            Self::Value(value) => value.len(),
            Self::Buffer { .. } => ADDRESS,
        }
    }
}

fn digits(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    let byte = |pair: &[u8]| {
        let digit = |at: usize| char::from(*pair.get(at)?).to_digit(16);
        u8::try_from(16 * digit(0)? + digit(1)?).ok()
    };
    digits.chunks(2).map(byte).collect()
}

fn file(path: &Path) -> Result<Content, Failure> {
    let content = fs::read(path).map_err(|error| {
        Failure::new(
            format!("cannot read {}: {error}", path.display()),
            "give the name of a file that can be read",
        )
    })?;
    if content.is_empty() {
        return Err(Failure::new(
            format!("{} is empty", path.display()),
            "give a file with at least one byte: a buffer has as many",
        ));
    }
    Ok(Content::Bytes(content))
}

/// A wrong number or size of arguments is refused before anything runs.
pub(super) fn fit(function: &Function, arguments: &[Argument]) -> Result<(), Failure> {
    let advice = "give one --arg for each parameter, in order and of its size";
    let (name, parameters) = (function.name(), function.parameters());
    if arguments.len() != parameters.len() {
        return Err(Failure::usage(
            format!(
                "kernel '{name}' has {} parameters, {} arguments were given",
                parameters.len(),
                arguments.len()
            ),
            advice,
        ));
    }
    for (k, (argument, place)) in arguments.iter().zip(parameters).enumerate() {
        let (given, wanted) = (argument.size(), place.size as usize);
        if given != wanted {
            return Err(Failure::usage(
                format!(
                    "argument {k} has {given} bytes; parameter {k} of kernel '{name}' has {wanted}"
                ),
                advice,
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Vec<u8> {
        match Argument::parse(text).expect(text) {
            Argument::Value(value) => value,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn values_of_every_type() {
        assert_eq!(value("i8:-1"), [0xff]);
        assert_eq!(value("u16:258"), [2, 1]);
        assert_eq!(value("i32:-2"), (-2i32).to_le_bytes());
        assert_eq!(value("u64:18446744073709551615"), [0xff; 8]);
        assert_eq!(value("f32:-1.5"), (-1.5f32).to_le_bytes());
        assert_eq!(value("f64:1e300"), 1e300f64.to_le_bytes());
        assert_eq!(value("bytes:00 fF10"), [0, 0xff, 0x10]);
        assert!(value("bytes:").is_empty());
    }

    #[test]
    fn buffers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("with:colon");
        fs::write(&path, [1, 2, 3]).unwrap();
        let shown = path.display();
        assert_eq!(
            Argument::parse(&format!("in:{shown}")).unwrap(),
            Argument::Buffer {
                content: Content::Bytes(vec![1, 2, 3]),
                out: None
            }
        );
        assert_eq!(
            Argument::parse("out:a:b:16").unwrap(),
            Argument::Buffer {
                content: Content::Zeros(16),
                out: Some("a:b".into())
            }
        );
        assert_eq!(
            Argument::parse("zero:5").unwrap(),
            Argument::Buffer {
                content: Content::Zeros(5),
                out: None
            }
        );
    }

    #[test]
    fn what_cannot_be_meant_is_named() {
        for (text, words) in [
            ("5", "wants TYPE:VALUE"),
            ("i8:128", "'128' is no i8"),
            ("u32:-1", "'-1' is no u32"),
            ("f32:x", "'x' is no f32"),
            ("bytes:123", "even number"),
            ("bytes:zz", "even number"),
            ("bytes:+1", "even number"),
            ("out:file", "wants out:FILE:BYTES"),
            ("out:file:0", "at least one byte"),
            ("zero:0", "at least one byte"),
            ("zero:99999999999999", "cannot be"),
            ("zero:many", "no number of bytes"),
            ("inout:file", "wants inout:FILE:OUTFILE"),
            ("int:5", "'int' is none of"),
            ("in:/nowhere/at/all", "cannot read /nowhere/at/all"),
            ("in:/dev/null", "is empty"),
        ] {
            let failure = Argument::parse(text).expect_err(text).to_string();
            assert!(failure.contains(words), "{text}: {failure}");
        }
    }
}

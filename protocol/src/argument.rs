//! A kernel's argument in its command-line form: `i32:-5`, `in:FILE`, …
//!
//! The commands `vgpu run` and `vgpu-ptx run` accept the same forms.

use std::path::{Path, PathBuf};

/// Largest buffer in bytes.
const MOST: u64 = 1 << 40;

/// Bytes of a buffer's parameter.
const ADDRESS: usize = size_of::<u64>();

/// One argument; `F` is the file that it names, or the bytes [`read`](Self::read) from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument<F = PathBuf> {
    /// A value as it is in memory.
    Value(Vec<u8>),
    /// Memory on the device.
    Buffer {
        /// Its initial content.
        content: Content<F>,
        /// The file that receives its content afterwards.
        out: Option<PathBuf>,
    },
}

/// The initial content of a buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content<F = PathBuf> {
    /// The content of a file.
    File(F),
    /// This many bytes of zeros.
    Zeros(u64),
}

/// The reason why a text is not an argument.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ArgumentError(String);

impl Argument {
    /// Parses an argument.
    ///
    /// # Errors
    /// The text is not one.
    pub fn parse(text: &str) -> Result<Self, ArgumentError> {
        let wrong = |what: String| Err(ArgumentError(what));
        let buffer = |content, out: Option<&str>| Self::Buffer {
            content,
            out: out.map(PathBuf::from),
        };
        let file = |path: &str| Content::File(path.into());
        let Some((kind, value)) = text.split_once(':') else {
            return wrong("wants TYPE:VALUE, as in i32:5 or in:FILE".to_owned());
        };
        macro_rules! number {
            ($number:ty) => {
                match value.parse::<$number>() {
                    Ok(number) => Self::Value(number.to_le_bytes().to_vec()),
                    Err(_) => return wrong(format!("'{value}' is no {kind}")),
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
            "bytes" => match digits(value) {
                Some(bytes) => Self::Value(bytes),
                None => return wrong("wants an even number of hexadecimal digits".to_owned()),
            },
            "in" => buffer(file(value), None),
            "inout" => match value.split_once(':') {
                Some((from, to)) => buffer(file(from), Some(to)),
                None => return wrong("wants inout:FILE:OUTFILE".to_owned()),
            },
            "out" => match value.rsplit_once(':') {
                Some((to, n)) => buffer(Content::Zeros(bytes(n)?), Some(to)),
                None => return wrong("wants out:FILE:BYTES".to_owned()),
            },
            "zero" => buffer(Content::Zeros(bytes(value)?), None),
            _ => {
                return wrong(format!(
                    "'{kind}' is none of i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 bytes in out inout zero"
                ));
            }
        })
    }

    /// The same argument with the bytes of the file that it names, from `file`.
    ///
    /// # Errors
    /// Those of `file`.
    pub fn read<E>(
        self,
        file: impl FnOnce(&Path) -> Result<Vec<u8>, E>,
    ) -> Result<Argument<Vec<u8>>, E> {
        Ok(match self {
            Self::Value(value) => Argument::Value(value),
            Self::Buffer { content, out } => Argument::Buffer {
                content: match content {
                    Content::File(path) => Content::File(file(&path)?),
                    Content::Zeros(bytes) => Content::Zeros(bytes),
                },
                out,
            },
        })
    }
}

impl<F> Argument<F> {
    /// Bytes of the parameter that it fits.
    pub fn size(&self) -> usize {
        match self {
            Self::Value(value) => value.len(),
            Self::Buffer { .. } => ADDRESS,
        }
    }
}

fn bytes(text: &str) -> Result<u64, ArgumentError> {
    match text.parse::<u64>() {
        Ok(0) => Err(ArgumentError("a buffer has at least one byte".to_owned())),
        Ok(n) if n > MOST => Err(ArgumentError(format!("a buffer of {n} bytes cannot be"))),
        Ok(n) => Ok(n),
        Err(_) => Err(ArgumentError(format!("'{text}' is no number of bytes"))),
    }
}

/// Pairs of hexadecimal digits only: no sign, which number parsers accept.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_every_type() {
        let value = |text: &str| match Argument::parse(text) {
            Ok(Argument::Value(value)) => value,
            other => panic!("{text}: {other:?}"),
        };
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
    fn buffers_and_their_files() {
        let parse = |text: &str| Argument::parse(text).expect(text);
        let buffer = |content, out: Option<&str>| Argument::Buffer {
            content,
            out: out.map(PathBuf::from),
        };
        let file = |path: &str| Content::File(path.into());
        assert_eq!(parse("in:with:colon"), buffer(file("with:colon"), None));
        assert_eq!(parse("inout:a:b:c"), buffer(file("a"), Some("b:c")));
        assert_eq!(parse("out:a:b:16"), buffer(Content::Zeros(16), Some("a:b")));
        assert_eq!(parse("zero:5"), buffer(Content::Zeros(5), None));
        assert_eq!((parse("zero:5").size(), parse("i16:5").size()), (8, 2));
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
        ] {
            let error = Argument::parse(text).expect_err(text).to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}

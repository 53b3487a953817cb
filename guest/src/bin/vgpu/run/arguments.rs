//! The arguments of `run`: `i32:-5`, `in:FILE`, …

use std::fs;
use std::path::{Path, PathBuf};

use vgpu_guest::Function;
use vgpu_protocol::argument;

use crate::failure::Failure;

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

/// The initial contents of a buffer.
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
        let parsed = argument::Argument::parse(text).map_err(|error| {
            let advice = "write for example --arg i32:5, --arg in:x.f32 or --arg out:y.f32:4096";
            Failure::usage(format!("--arg {text}: {error}"), advice)
        })?;
        Ok(match parsed {
            argument::Argument::Value(value) => Self::Value(value),
            argument::Argument::File(from, out) => Self::Buffer {
                content: file(&from)?,
                out,
            },
            argument::Argument::Zeros(bytes, out) => Self::Buffer {
                content: Content::Zeros(bytes),
                out,
            },
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

    #[test]
    fn buffers_with_what_files_have() {
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
    }

    #[test]
    fn what_cannot_be_meant_is_named() {
        for (text, words) in [
            ("5", "--arg 5: wants TYPE:VALUE"),
            ("in:/nowhere/at/all", "cannot read /nowhere/at/all"),
            ("in:/dev/null", "is empty"),
        ] {
            let failure = Argument::parse(text).expect_err(text).to_string();
            assert!(failure.contains(words), "{text}: {failure}");
        }
    }
}

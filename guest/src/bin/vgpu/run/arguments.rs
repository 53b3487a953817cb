//! The arguments of `run`: `i32:-5`, `in:FILE`, …

use std::fs;
use std::path::Path;

use vgpu_cli::Failure;
use vgpu_guest::Function;
use vgpu_protocol::argument;

/// One `--arg`, with what its file has.
pub(super) type Argument = argument::Argument<Vec<u8>>;

/// Reads one, and the file that it names.
pub(super) fn parse(text: &str) -> Result<Argument, Failure> {
    let parsed = argument::Argument::parse(text).map_err(|error| {
        let advice = "write for example --arg i32:5, --arg in:x.f32 or --arg out:y.f32:4096";
        Failure::usage(format!("--arg {text}: {error}"), advice)
    })?;
    parsed.read(file)
}

fn file(path: &Path) -> Result<Vec<u8>, Failure> {
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
    Ok(content)
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

    use vgpu_protocol::argument::Content;

    #[test]
    fn buffers_with_what_files_have() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("with:colon");
        fs::write(&path, [1, 2, 3]).unwrap();
        let shown = path.display();
        assert_eq!(
            parse(&format!("in:{shown}")).unwrap(),
            Argument::Buffer {
                content: Content::File(vec![1, 2, 3]),
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
            let failure = parse(text).expect_err(text).to_string();
            assert!(failure.contains(words), "{text}: {failure}");
        }
    }
}

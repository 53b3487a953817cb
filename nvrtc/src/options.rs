//! Options that may come from somebody else: those of a list, none of which names a file.
//!
//! Names are those of the NVRTC manual. What takes a path (`--include-path`, `--pre-include`, `--pch-dir`,
//! `--time`, …), starts threads or chooses the kind of the output is not in the list.

/// Why an option is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is not in the list.
    #[error("option `{0}` is not one of those that a mediator compiles with")]
    Unknown(String),
    /// It may not have this value.
    #[error("option `{0}` has a value that it may not have")]
    Value(String),
}

/// Options without a value.
const FLAGS: &[&str] = &[
    "--use_fast_math",
    "-use_fast_math",
    "--extra-device-vectorization",
    "-extra-device-vectorization",
    "--device-as-default-execution-space",
    "-default-device",
    "--disable-warnings",
    "-w",
    "--restrict",
    "-restrict",
    "--generate-line-info",
    "-lineinfo",
    "--display-error-number",
    "-err-no",
    "--no-display-error-number",
    "-no-err-no",
];

/// Options that are true or false.
const SWITCHES: &[&str] = &[
    "--ftz",
    "-ftz",
    "--prec-sqrt",
    "-prec-sqrt",
    "--prec-div",
    "-prec-div",
    "--fmad",
    "-fmad",
    "--builtin-move-forward",
    "-builtin-move-forward",
    "--builtin-initializer-list",
    "-builtin-initializer-list",
];

/// Versions of the language.
const STANDARDS: &[&str] = &["c++03", "c++11", "c++14", "c++17", "c++20", "c++23"];

/// Whether an option of somebody else may be given to the compiler. It is one word: a value follows its option by `=`,
/// and a macro's name its `-D` at once.
///
/// # Errors
/// It may not, and why.
pub fn check(option: &str) -> Result<(), Refused> {
    let shown = || option.chars().take(80).collect();
    let unknown = || Err(Refused::Unknown(shown()));
    // An option, and no second one behind it; NVRTC takes it as it is, and no shell reads it.
    if option.contains('\0') {
        return unknown();
    }
    if FLAGS.contains(&option) {
        return Ok(());
    }
    for (long, short) in [("--define-macro=", "-D"), ("--undefine-macro=", "-U")] {
        if let Some(macro_) = option
            .strip_prefix(long)
            .or_else(|| option.strip_prefix(short))
        {
            let name = macro_.split_once('=').map_or(macro_, |(name, _)| name);
            let name = name.split_once('(').map_or(name, |(name, _)| name);
            let word = |c: char| c == '_' || c.is_ascii_alphanumeric();
            let sound = name.starts_with(|c: char| c == '_' || c.is_ascii_alphabetic())
                && name.chars().all(word)
                && !macro_.contains(['\n', '\r']);
            return match sound {
                true => Ok(()),
                false => Err(Refused::Value(shown())),
            };
        }
    }
    let Some((name, value)) = option.split_once('=') else {
        return unknown();
    };
    let sound = match name {
        "--std" | "-std" => STANDARDS.contains(&value),
        "--maxrregcount" | "-maxrregcount" => value
            .parse::<u16>()
            .is_ok_and(|count| (1..=255).contains(&count)),
        name if SWITCHES.contains(&name) => ["true", "false"].contains(&value),
        _ => return unknown(),
    };
    match sound {
        true => Ok(()),
        false => Err(Refused::Value(shown())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kernels_need_goes_through() {
        for option in [
            "--use_fast_math",
            "-DN=4",
            "-DNAME",
            "-DF(x)=((x) + 1)",
            "--define-macro=PATH=\"/etc/passwd\"",
            "-UN",
            "--std=c++17",
            "-std=c++20",
            "--maxrregcount=64",
            "--fmad=false",
            "-lineinfo",
        ] {
            assert_eq!(check(option), Ok(()), "{option}");
        }
    }

    #[test]
    fn what_names_a_file_or_is_not_known_does_not() {
        for option in [
            "",
            "-",
            "-I/etc",
            "-I",
            "/etc/passwd",
            "--include-path=/etc",
            "--include-path",
            "-include",
            "-include=/etc/passwd",
            "--pre-include=/etc/passwd",
            "--pch",
            "--use-pch=/etc/passwd",
            "--pch-dir=/tmp",
            "--create-pch=/tmp/x",
            "--time=/tmp/times",
            "--fdevice-time-trace=/tmp/x",
            "--optix-ir",
            "--split-compile=0",
            "--gpu-architecture=sm_90",
            "--device-debug",
            "@/etc/passwd",
            "--options-file=/etc/passwd",
            "-D",
            "-D -I/etc",
            "-D=1",
            "-DN=1\n#include \"/etc/passwd\"",
            "-DN\0-I/etc",
            "--std=c++17 -I/etc",
            "--std",
            "--maxrregcount=x",
            "--maxrregcount=0",
            "--fmad=1",
            "--use_fast_math -I/etc",
            "--use_fast_math=true",
        ] {
            assert!(check(option).is_err(), "{option}");
        }
    }

    #[test]
    fn a_long_option_is_not_repeated_whole() {
        let error = check(&"x".repeat(10_000)).unwrap_err();
        assert!(error.to_string().len() < 200);
    }
}

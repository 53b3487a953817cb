#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]

use std::ffi::OsString;
use std::fmt::Display;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{CommandFactory, Parser};
use clap_complete::Shell;
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use vgpu_transport::output::write_all;

pub mod diagnosis;
mod failure;
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub mod testing;
pub mod values;

pub use failure::{Failure, INTERRUPTED, MISUSE};

/// The flag, before all others, with which a program writes its pages and completions into a
/// folder: `vgpu --generate DIR`. It is for packagers, and absent from help texts.
pub const GENERATE: &str = "--generate";

/// The flag of programs that print objects.
const JSON: &str = "--json";

/// The commit that packages are built from; `cargo xtask dist` sets it.
const COMMIT: Option<&str> = option_env!("VGPU_COMMIT");

/// The shells that completions are written for.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Fish, Shell::Zsh];

/// Number of the shape of all objects that these programs print with `--json` (docs/json.md). It changes when a name
/// is removed or means something else, and not when one is added.
pub const SCHEMA: u32 = 2;

/// An object, a struct or a map, as one line for `--json`, with [`SCHEMA`] in front; without the line's end.
///
/// # Errors
/// It is no object, or has something that JSON cannot hold.
pub fn json_line(object: &impl Serialize) -> serde_json::Result<String> {
    #[derive(Serialize)]
    struct Numbered<'a, T> {
        schema: u32,
        #[serde(flatten)]
        object: &'a T,
    }
    serde_json::to_string(&Numbered {
        schema: SCHEMA,
        object,
    })
}

/// From here on SIGINT, SIGTERM and SIGHUP end the program at once, with [`INTERRUPTED`]: for those with nothing that they
/// would have to give back.
///
/// # Errors
/// The system does not let them be caught.
pub fn end_on_signals() -> Result<(), Failure> {
    let at_once = Arc::new(AtomicBool::new(true));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        let at_once = Arc::clone(&at_once);
        signal_hook::flag::register_conditional_shutdown(signal, INTERRUPTED.into(), at_once)
            .map_err(|error| {
                Failure::new(
                    format!("cannot catch signal {signal}: {error}"),
                    "look at the system's log for the reason",
                )
            })?;
    }
    Ok(())
}

/// Prints a line on standard output.
///
/// # Errors
/// Standard output is closed or has no room: a failure, not a panic.
pub fn print_line(line: impl Display) -> Result<(), Failure> {
    write_all(&io::stdout(), format!("{line}\n").as_bytes())
        .map_err(|error| Failure::standard("output", &error))
}

/// Prints an object for `--json`: [`json_line`].
///
/// # Errors
/// As [`print_line`], or it is no object.
pub fn print_object(object: &impl Serialize) -> Result<(), Failure> {
    let line = json_line(object).map_err(|error| {
        Failure::system("cannot print the result", error, "report this as a defect")
    })?;
    print_line(line)
}

/// Parses this process's arguments as a `P`. Ends the process if they ask for help, for the version
/// or for [`GENERATE`], and with status 2 if they are invalid.
pub fn parse<P: Parser>() -> P {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == GENERATE) {
        let done = generate::<P>(arguments);
        if let Err(failure) = &done {
            failure.report(false);
        }
        process::exit(done.err().map_or(0, |failure| failure.code.into()));
    }
    let matches = with_commit(P::command()).try_get_matches();
    let parsed = matches.and_then(|mut matches| {
        let parsed = P::from_arg_matches_mut(&mut matches);
        parsed.map_err(|error| error.format(&mut P::command()))
    });
    parsed.unwrap_or_else(|error| {
        let wants_json = std::env::args_os().skip(1).any(|it| it == JSON);
        if let Some(failure) = misuse(&P::command(), &error) {
            failure.print_object(wants_json);
        }
        error.exit()
    })
}

fn prints_objects(command: &clap::Command) -> bool {
    let own = command.get_arguments().any(|it| it.get_id() == "json");
    own || command.get_subcommands().any(prints_objects)
}

/// The failure for arguments that make no sense, where `command` prints objects; `None` for a request such as `--help`.
fn misuse(command: &clap::Command, error: &clap::Error) -> Option<Failure> {
    if !prints_objects(command) || !error.use_stderr() {
        return None;
    }
    let text = error.render().to_string();
    // Beside the first lines there are usage and advice for people.
    let what = text.split("\n\n").next().unwrap_or_default();
    let what = what.strip_prefix("error: ").unwrap_or(what);
    let words: Vec<&str> = what.split_whitespace().collect();
    let advice = format!("{} --help shows what there is", command.get_name());
    Some(Failure::usage(words.join(" "), advice))
}

/// The command, whose `--version` says from which commit it was built, as far as that is known. `-V` does not.
fn with_commit(command: clap::Command) -> clap::Command {
    match (command.get_version(), COMMIT) {
        (Some(version), Some(commit)) => {
            let version: &'static str = format!("{version} ({commit})").leak();
            command.long_version(version)
        }
        _ => command,
    }
}

/// Writes the pages requested with [`GENERATE`].
fn generate<P: CommandFactory>(
    mut arguments: impl Iterator<Item = OsString>,
) -> Result<(), Failure> {
    let (Some(folder), None) = (arguments.next(), arguments.next()) else {
        return Err(Failure::usage(
            format!("{GENERATE} takes one folder"),
            format!("for example {GENERATE} /tmp/pages"),
        ));
    };
    let folder = Path::new(&folder);
    match write_pages(P::command(), folder) {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::system(
            format_args!("cannot write to {}", folder.display()),
            error,
            "name a folder of yours",
        )),
    }
}

/// Writes manual pages of `command` and its subcommands to `folder/man`, and completions to
/// `folder/completions`; returns the files.
///
/// # Errors
/// A folder or a file cannot be written.
pub fn write_pages(mut command: clap::Command, folder: &Path) -> io::Result<Vec<PathBuf>> {
    let (man, completions) = (folder.join("man"), folder.join("completions"));
    fs::create_dir_all(&man)?;
    fs::create_dir_all(&completions)?;
    let name = command.get_name().to_owned();
    let mut files = Vec::new();
    for shell in SHELLS {
        files.push(clap_complete::generate_to(
            shell,
            &mut command,
            &name,
            &completions,
        )?);
    }
    clap_mangen::generate_to(command.disable_help_subcommand(true), &man)?;
    for entry in fs::read_dir(&man)? {
        files.push(entry?.path());
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_object_has_the_number_of_its_shape_first() {
        let line = json_line(&Failure::new("a", "b").object()).unwrap();
        let start = "{\"schema\":2,\"error\":{";
        assert!(line.starts_with(start), "{line}");
        assert!(json_line(&"a text").is_err());
    }

    /// Sorts things.
    #[derive(Debug, Parser)]
    #[command(name = "sorter", version)]
    struct Sorter {
        /// Largest first
        #[arg(long)]
        reverse: bool,
        #[command(subcommand)]
        command: Option<Sub>,
    }

    #[derive(Debug, clap::Subcommand)]
    enum Sub {
        /// Sort by name
        Name {
            /// Letters count whatever their case
            #[arg(long)]
            fold_case: bool,
        },
    }

    #[test]
    fn every_flag_is_in_a_page_and_in_the_completions() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = write_pages(Sorter::command(), folder.path()).expect("pages");
        let text = |name: &str| {
            let file = files.iter().find(|file| file.ends_with(name));
            fs::read_to_string(file.unwrap_or_else(|| panic!("{name} of {files:?}"))).expect(name)
        };
        assert!(text("man/sorter.1").contains("reverse"));
        assert!(text("man/sorter-name.1").contains("fold\\-case"));
        for name in ["sorter.bash", "sorter.fish", "_sorter"] {
            assert!(
                text(&format!("completions/{name}")).contains("reverse"),
                "{name}"
            );
        }
    }

    #[test]
    fn arguments_that_make_no_sense_are_an_object_of_programs_that_print_some() {
        #[derive(Debug, Parser)]
        #[command(name = "lister")]
        struct Lister {
            /// Print JSON
            #[arg(long)]
            json: bool,
            /// Most lines
            #[arg(long)]
            most: Option<u8>,
        }
        let error = |arguments: &[&str]| Lister::try_parse_from(arguments).unwrap_err();
        let of = |arguments: &[&str]| misuse(&Lister::command(), &error(arguments));
        let failure = of(&["lister", "--json", "--most", "many"]).unwrap();
        let what = &failure.what;
        assert!(
            what.starts_with("invalid value 'many' for '--most <MOST>'"),
            "{what}"
        );
        assert_eq!(failure.code, 2);
        assert_eq!(failure.advice, "lister --help shows what there is");
        assert_eq!(of(&["lister", "--help"]), None);
        let other = Sorter::try_parse_from(["sorter", "--json"]).unwrap_err();
        assert_eq!(misuse(&Sorter::command(), &other), None);
    }

    #[test]
    fn what_makes_no_sense_is_status_2_and_what_cannot_be_written_1() {
        let code = |arguments: &[&str]| {
            let arguments = arguments.iter().map(Into::into);
            generate::<Sorter>(arguments).unwrap_err().code
        };
        assert_eq!(code(&[]), 2);
        assert_eq!(code(&["/dev/null/x"]), 1);
    }
}

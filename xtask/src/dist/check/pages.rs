//! Manual pages: their form, and whether they are complete.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use super::output;
use crate::dist::Dist;
use crate::dist::programs::Programs;

/// Checks that man's own formatter reports nothing.
///
/// # Errors
/// It does, with its words.
pub(super) fn lint(dist: &Dist) -> Result<()> {
    let mut pages = 0;
    for program in fs::read_dir(dist.work.join("pages"))? {
        for page in fs::read_dir(program?.path().join("man"))? {
            let page = page?.path();
            let script = "zcat \"$1\" | groff -Kutf8 -man -Tutf8 -ww -z 2>&1";
            let said = output(Command::new("bash").args(["-c", script, "bash"]).arg(&page))?;
            ensure!(said.is_empty(), "{}: {said}", page.display());
            pages += 1;
        }
    }
    ensure!(pages > 5, "only {pages} pages");
    Ok(())
}

/// Checks that every flag of `--help`, of every installed program and its subcommands at every depth, is in
/// the page that is installed for it.
///
/// # Errors
/// One is missing.
pub(super) fn every_flag(root: &Path) -> Result<()> {
    let mut flags = 0;
    for program in Programs::names() {
        let help = |words: &[String]| {
            let file = root.join("usr/bin").join(program);
            output(Command::new(file).args(words).arg("--help"))
        };
        let mut left: Vec<Vec<String>> = vec![Vec::new()];
        while let Some(words) = left.pop() {
            let help = help(&words)?;
            for command in commands(&help) {
                left.push([&words[..], &[command]].concat());
            }
            let name = [&[program.to_owned()], &words[..]].concat().join("-");
            let page = root.join(format!("usr/share/man/man1/{name}.1.gz"));
            let text = output(Command::new("zcat").arg(&page))?.replace("\\-", "-");
            for flag in long_flags(&help) {
                ensure!(has_word(&text, flag), "{} lacks {flag}", page.display());
                flags += 1;
            }
        }
    }
    ensure!(flags > 50, "only {flags} flags");
    Ok(())
}

/// Whether `flag` stands in `text`, and not only as the beginning of another flag.
fn has_word(text: &str, flag: &str) -> bool {
    let inside = |c: char| c.is_ascii_alphanumeric() || c == '-';
    text.split(flag)
        .skip(1)
        .any(|rest| !rest.starts_with(inside))
}

/// The subcommands in a help text of clap's.
fn commands(help: &str) -> Vec<String> {
    let of = help.split("\nCommands:\n").nth(1).unwrap_or_default();
    let lines = of.lines().take_while(|line| !line.is_empty());
    // What belongs to the line before is further to the right.
    lines
        .filter_map(|line| line.strip_prefix("  "))
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .map(str::to_owned)
        .collect()
}

/// The long flags that a help text describes, each at the start of a line.
fn long_flags(help: &str) -> Vec<&str> {
    let flag = |line: &'_ str| -> Option<usize> {
        let word = line.trim_start();
        let word = match word.split_once(", ") {
            Some((short, rest)) if short.len() == 2 && short.starts_with('-') => rest,
            _ => word,
        };
        word.starts_with("--").then(|| line.len() - word.len())
    };
    let name = |line: &str, at: usize| {
        let rest = &line[at..];
        at + rest
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '-')
            .unwrap_or(rest.len())
    };
    help.lines()
        .filter_map(|line| flag(line).map(|at| &line[at..name(line, at)]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELP: &str = "Does things.

Usage: x [OPTIONS] <COMMAND>

Commands:
  ping         Round trips
  vector-add   Adds
                 and adds
  help         Print this message

Options:
  -c, --count <N>   How often, see --other
      --json        JSON
  -h, --help        Print help

Examples:
  x --count 3 ping
";

    #[test]
    fn commands_and_flags_are_found_in_a_help_text() {
        assert_eq!(commands(HELP), ["ping", "vector-add"]);
        assert_eq!(long_flags(HELP), ["--count", "--json", "--help"]);
    }

    #[test]
    fn the_beginning_of_another_flag_is_no_flag() {
        assert!(!has_word("\\fB--ring-bytes\\fR, --rings", "--ring"));
        assert!(has_word("--ring-bytes\n\\fB--ring\\fR", "--ring"));
        assert!(!has_word("", "--ring"));
    }
}

//! Manual pages and completions: the programs write their own, the configuration's page is made
//! from the file that describes every setting.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::Dist;
use super::programs::Programs;
use crate::cargo::run;

/// Their folders, with compressed pages: `man/NAME.SECTION.gz` and `completions/NAME`.
#[derive(Debug)]
pub(super) struct Pages {
    folder: PathBuf,
}

impl Pages {
    /// The folder of the pages of the program `name`.
    pub(super) fn man(&self, name: &str) -> PathBuf {
        self.folder.join(name).join("man")
    }

    /// The folder of its completions.
    pub(super) fn completions(&self, name: &str) -> PathBuf {
        self.folder.join(name).join("completions")
    }
}

/// Writes all of them.
///
/// # Errors
/// A program fails to write its own, or one cannot be compressed.
pub(super) fn write(dist: &Dist, programs: &Programs) -> Result<Pages> {
    let pages = Pages {
        folder: dist.work.join("pages"),
    };
    for name in Programs::names() {
        run(Command::new(programs.file(name))
            .arg("--generate")
            .arg(pages.folder.join(name)))?;
    }
    let sample = dist.packaging("mediator/mediatord.toml");
    let text =
        fs::read_to_string(&sample).with_context(|| format!("reading {}", sample.display()))?;
    fs::write(
        pages.man("vgpu-mediatord").join("mediatord.toml.5"),
        configuration_page(&text),
    )?;
    for name in Programs::names() {
        compress(&pages.man(name))?;
    }
    Ok(pages)
}

/// Compresses every file of `folder`, without names and times in the result.
fn compress(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        run(Command::new("gzip").args(["-9", "-n"]).arg(entry?.path()))?;
    }
    Ok(())
}

/// mediatord.toml(5) from the commented sample: each comment is a paragraph, each setting a line as
/// in the file.
fn configuration_page(sample: &str) -> String {
    let mut page = String::from(
        ".TH mediatord.toml 5\n\
         .SH NAME\n\
         mediatord.toml \\- settings of vgpu\\-mediatord\n\
         .SH DESCRIPTION\n\
         The file is /etc/vgpu/mediatord.toml. It is shown here as it is installed; a line that begins\n\
         with # is a setting that is not set.\n",
    );
    let mut in_comment = false;
    for line in sample.lines() {
        match line.strip_prefix("# ").filter(|text| !is_setting(text)) {
            Some(text) => {
                if !in_comment {
                    page.push_str(".PP\n");
                }
                in_comment = true;
                let _ = writeln!(page, "{}", escaped(text));
            }
            None => {
                in_comment = false;
                if line.starts_with('[') {
                    let _ = writeln!(page, ".SH {}", escaped(line));
                } else if !line.is_empty() {
                    let _ = writeln!(page, ".PP\n.nf\n\\fB{}\\fR\n.fi", escaped(line));
                }
            }
        }
    }
    page.push_str(".SH SEE ALSO\n.BR vgpu\\-mediatord (1),\n.BR vgpuctl (1)\n");
    page
}

/// Whether a comment's text is an unset setting: `secrets = "…"`.
fn is_setting(text: &str) -> bool {
    text.split_once(" = ").is_some_and(|(key, _)| {
        !key.is_empty()
            && key
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '"'))
    })
}

/// A line of text escaped for troff, which interprets a backslash, and a dot or a quote at the
/// start.
fn escaped(line: &str) -> String {
    let line = line.replace('\\', "\\e").replace('-', "\\-");
    match line.starts_with(['.', '\'']) {
        true => format!("\\&{line}"),
        false => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_configuration_becomes_a_page_with_every_setting() {
        let sample = include_str!("../../../dist/mediator/mediatord.toml");
        let page = configuration_page(sample);
        for line in sample.lines().filter(|line| !line.is_empty()) {
            let setting = line.strip_prefix("# ").unwrap_or(line);
            assert!(page.contains(&escaped(setting)), "{line}");
        }
        assert!(page.contains(".SH [limits]"), "{page}");
        assert!(page.contains("\\fBlisten = "), "{page}");
        assert!(page.contains("\\fB# memory_mib = 4096"), "{page}");
    }

    #[test]
    fn troff_takes_no_line_of_text_for_a_command() {
        assert_eq!(escaped(".so x"), "\\&.so x");
        assert_eq!(escaped("a\\b-c"), "a\\eb\\-c");
    }
}

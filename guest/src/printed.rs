//! Kernels' printed output, as lines.

use std::fmt;
use std::io::Write;

/// Bytes of one line at most: a longer one comes in pieces.
const LONGEST: usize = 64 << 10;

/// Something that kernels have printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Printed<'a> {
    /// A line, without its end. Whatever bytes the kernel has printed.
    Line(&'a [u8]),
    /// Number of bytes lost here: the mediator keeps a bounded number until they are taken.
    Lost(u64),
}

impl fmt::Display for Printed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => String::from_utf8_lossy(line).fmt(f),
            Self::Lost(bytes) => write!(f, "[{bytes} bytes that kernels printed are lost]"),
        }
    }
}

impl Printed<'_> {
    /// Writes it as a line.
    ///
    /// # Errors
    /// Those of `to`.
    pub fn write_to(&self, to: &mut dyn Write) -> std::io::Result<()> {
        match self {
            Self::Line(line) => to.write_all(line)?,
            Self::Lost(_) => write!(to, "{self}")?,
        }
        to.write_all(b"\n")
    }
}

/// Takes lines.
pub(crate) type Take = Box<dyn FnMut(Printed<'_>) + Send>;

/// Cuts what comes into lines.
pub(crate) struct Printer {
    take: Take,
    /// A line that has no end yet.
    rest: Vec<u8>,
}

impl fmt::Debug for Printer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Printer").finish_non_exhaustive()
    }
}

impl Default for Printer {
    /// To standard output, as of a program with a GPU of its own.
    fn default() -> Self {
        Self::new(Box::new(|printed| {
            // A reader that closes standard output wants no more lines.
            let _ = printed.write_to(&mut std::io::stdout().lock());
        }))
    }
}

impl Drop for Printer {
    fn drop(&mut self) {
        self.end_line();
    }
}

impl Printer {
    pub(crate) fn new(take: Take) -> Self {
        Self {
            take,
            rest: Vec::new(),
        }
    }

    pub(crate) fn print(&mut self, lost: u64, text: &[u8]) {
        if lost > 0 {
            self.end_line();
            (self.take)(Printed::Lost(lost));
        }
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            match line.strip_suffix(b"\n") {
                Some(whole) if self.rest.is_empty() => (self.take)(Printed::Line(whole)),
                Some(end) => {
                    self.rest.extend_from_slice(end);
                    (self.take)(Printed::Line(&self.rest));
                    self.rest.clear();
                }
                None => self.rest.extend_from_slice(line),
            }
            if self.rest.len() >= LONGEST {
                self.end_line();
            }
        }
    }

    /// Ends an unfinished line.
    pub(crate) fn end_line(&mut self) {
        if !self.rest.is_empty() {
            (self.take)(Printed::Line(&self.rest));
            self.rest.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn text_in_any_pieces_comes_as_lines() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&lines);
        let mut printer = Printer::new(Box::new(move |printed| {
            to.lock().unwrap().push(printed.to_string());
        }));
        printer.print(0, b"one\ntw");
        printer.print(0, b"o");
        printer.print(0, b"\n\nthr");
        printer.print(7, b"ee\n");
        printer.print(0, &[b'x'; LONGEST + 1]);
        printer.print(0, b"y");
        drop(printer);
        let lines = lines.lock().unwrap();
        let lost = "[7 bytes that kernels printed are lost]";
        let long = "x".repeat(LONGEST + 1);
        assert_eq!(*lines, ["one", "two", "", "thr", lost, "ee", &long, "y"]);
    }
}

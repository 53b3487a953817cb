//! The agent's half of the line protocol: parsing requests, formatting answers.

use std::fmt::Write as _;

use data_encoding::BASE64;

use crate::wire::{Reply, Request};

/// Bytes of each stream that are sent: the last ones.
pub(crate) const MAX_OUT: usize = 256 << 10;
pub(crate) const MAX_ERR: usize = 64 << 10;

/// Bytes in one line of output.
const LINE_BYTES: usize = 2250;

/// A line that an agent reads.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Incoming {
    Run(String, Request),
    Again(String),
    /// A request with this id arrived damaged.
    Damaged(String),
    Noise,
}

impl Incoming {
    pub(crate) fn parse(line: &str) -> Self {
        let mut words = line.split(' ');
        let (mark, Some(id)) = (words.next(), words.next()) else {
            return Self::Noise;
        };
        match mark {
            Some("@again") => Self::Again(id.to_owned()),
            Some("@req") => match request(words) {
                Some(request) => Self::Run(id.to_owned(), request),
                None => Self::Damaged(id.to_owned()),
            },
            _ => Self::Noise,
        }
    }
}

fn request<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<Request> {
    let guest = words.next()?;
    let seconds = words.next()?.parse().ok()?;
    let length: usize = words.next()?.parse().ok()?;
    let body = words.next()?;
    if body.len() != length || words.next().is_some() {
        return None;
    }
    Some(Request {
        guest: (guest != "-").then(|| guest.to_owned()),
        seconds,
        script: BASE64.decode(body.as_bytes()).ok()?,
    })
}

/// The lines of an answer.
pub(crate) fn lines(reply: &Reply, id: &str) -> String {
    let mut text = "\n".to_owned();
    for (mark, bytes) in [("out", &reply.out), ("err", &reply.err)] {
        for part in bytes.chunks(LINE_BYTES) {
            let _ = writeln!(text, "@{mark} {id} {}", BASE64.encode(part));
        }
    }
    let (status, out, err) = (reply.status, reply.out.len(), reply.err.len());
    let _ = writeln!(text, "@end {id} {status} {out} {err}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Answer, Step};

    #[test]
    fn requests_and_replies_survive_the_line() {
        let request = Request {
            guest: Some("pv".to_owned()),
            seconds: 7,
            script: b"echo \"a b\"\n".to_vec(),
        };
        let line = request.line("3");
        let parsed = Incoming::parse(line.trim());
        assert_eq!(parsed, Incoming::Run("3".to_owned(), request));
        assert_eq!(
            Incoming::parse("@req 3 - 7 9 xx"),
            Incoming::Damaged("3".to_owned())
        );
        assert_eq!(Incoming::parse("[ 1.0] kernel: @req"), Incoming::Noise);

        let reply = Reply {
            status: -1,
            out: vec![b'x'; 10_000],
            err: b"why\n".to_vec(),
        };
        let mut answer = Answer::default();
        let text = lines(&reply, "4");
        let mut steps = text.lines().map(|line| answer.take(line, "4"));
        assert!(
            matches!(steps.next_back(), Some(Step::Damaged)),
            "the end alone is not all"
        );
        let mut answer = Answer::default();
        let last = text.lines().map(|line| answer.take(line, "4")).last();
        assert!(matches!(last, Some(Step::Done(found)) if found == reply));
    }
}

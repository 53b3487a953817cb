//! The lines between xtask, the agent in dom0 and the agents in guests (`bin/lab-agent`).
//!
//! ```text
//! @req ID GUEST SECONDS LENGTH BASE64   run this script (LENGTH characters of base64) in that
//!                                       guest, or here if GUEST is -
//! @again ID                             answer that request once more, or say that it never came
//! ```
//! answers
//! ```text
//! @ready                                at start
//! @bad ID                               the request came damaged or not at all: send it again
//! @out ID BASE64   @err ID BASE64       output, one or more lines
//! @end ID STATUS OUT-BYTES ERR-BYTES    all of it has been sent
//! ```
//! The lengths let the other side notice a kernel message in the middle of a line. A line may also be lost as a whole,
//! as one is whose first word a message has cut: so the answer is asked for again after some silence. An agent runs a
//! request once, however often it comes.

use std::io;
use std::time::{Duration, Instant};

use data_encoding::BASE64;

/// Most attempts for a damaged request or answer.
const TRIES: usize = 4;

/// Time without an answer after which it is asked for again: an agent that still runs the script answers when it is done.
pub(crate) const SILENCE: Duration = Duration::from_secs(20);

/// A script to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    /// The guest; `None` is the agent's own machine.
    pub(crate) guest: Option<String>,
    /// Seconds after which it is killed.
    pub(crate) seconds: u64,
    pub(crate) script: Vec<u8>,
}

/// The result of the script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: i32,
    pub(crate) out: Vec<u8>,
    pub(crate) err: Vec<u8>,
}

impl Request {
    pub(crate) fn line(&self, id: &str) -> String {
        let (guest, seconds) = (self.guest.as_deref().unwrap_or("-"), self.seconds);
        let body = BASE64.encode(&self.script);
        // Ends an incomplete line that was there before.
        format!("\n@req {id} {guest} {seconds} {} {body}\n", body.len())
    }
}

/// Lines to and from an agent.
pub(crate) trait Lines {
    fn send(&mut self, text: &str) -> io::Result<()>;

    /// The next line without its end; `None` if none came until `deadline`.
    fn next(&mut self, deadline: Instant) -> io::Result<Option<String>>;
}

/// The reason why no answer came.
#[derive(Debug)]
pub(crate) enum NoAnswer {
    Late,
    Damaged,
    Line(io::Error),
}

impl From<io::Error> for NoAnswer {
    fn from(error: io::Error) -> Self {
        Self::Line(error)
    }
}

/// Sends a request and takes its answer; neither is given up because of one damaged or lost line. The answer is asked
/// for again after each `silence`. `id` must not have been used on these lines before.
pub(crate) fn exchange(
    lines: &mut dyn Lines,
    id: &str,
    request: &Request,
    silence: Duration,
    deadline: Instant,
) -> Result<Reply, NoAnswer> {
    let text = request.line(id);
    let again = format!("\n@again {id}\n");
    lines.send(&text)?;
    let mut asked = Instant::now();
    let mut answer = Answer::default();
    let mut tries = 1;
    loop {
        let until = deadline.min(asked + silence);
        let Some(line) = lines.next(until)? else {
            if until == deadline {
                return Err(NoAnswer::Late);
            }
            asked = Instant::now();
            lines.send(&again)?;
            continue;
        };
        let answered = match answer.take(&line, id) {
            Step::More => continue,
            Step::Done(reply) => return Ok(reply),
            Step::Damaged | Step::BadRequest if tries == TRIES => return Err(NoAnswer::Damaged),
            Step::Damaged => &again,
            Step::BadRequest => &text,
        };
        tries += 1;
        answer = Answer::default();
        asked = Instant::now();
        lines.send(answered)?;
    }
}

/// The parts of one answer received so far.
#[derive(Default)]
pub(crate) struct Answer {
    out: Option<Vec<u8>>,
    err: Option<Vec<u8>>,
    damaged: bool,
}

pub(crate) enum Step {
    More,
    Done(Reply),
    Damaged,
    BadRequest,
}

impl Answer {
    pub(crate) fn take(&mut self, line: &str, id: &str) -> Step {
        let mut words = line.split(' ');
        let mark = words.next().unwrap_or_default();
        if words.next() != Some(id) {
            return Step::More;
        }
        match mark {
            "@out" | "@err" => {
                let stream = if mark == "@out" {
                    &mut self.out
                } else {
                    &mut self.err
                };
                match words.next().map(|text| BASE64.decode(text.as_bytes())) {
                    Some(Ok(bytes)) if words.next().is_none() => {
                        stream.get_or_insert_default().extend(bytes);
                    }
                    _ => self.damaged = true,
                }
            }
            "@bad" => return Step::BadRequest,
            "@end" => {
                let mut number = || words.next().and_then(|word| word.parse::<i64>().ok());
                let (status, lengths) = (number(), [number(), number()]);
                let (out, err) = (
                    self.out.take().unwrap_or_default(),
                    self.err.take().unwrap_or_default(),
                );
                let came = [out.len(), err.len()].map(|len| i64::try_from(len).ok());
                return match status.and_then(|status| i32::try_from(status).ok()) {
                    Some(status) if lengths == came && !self.damaged => {
                        Step::Done(Reply { status, out, err })
                    }
                    _ => Step::Damaged,
                };
            }
            _ => {}
        }
        Step::More
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_cut_by_another_is_damage_not_a_result() {
        let mut answer = Answer::default();
        assert!(matches!(
            answer.take("@out 5 aGVs[  1.0] kernel", "5"),
            Step::More
        ));
        assert!(matches!(answer.take("@end 5 0 8 0", "5"), Step::Damaged));
        let mut answer = Answer::default();
        assert!(matches!(answer.take("@end 5 0 8 0", "5"), Step::Damaged));
    }
}

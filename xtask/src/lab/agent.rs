//! Talks to the agent in dom0 (`image/agent.sh`, which describes the protocol).

use std::io::{BufRead, BufReader, Read, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::base64;
use super::host::Output;

/// How many bytes of each stream the agent sends: the last ones.
const MAX_OUT: usize = 256 << 10;
const MAX_ERR: usize = 64 << 10;

/// How often a damaged request or answer is tried again.
const TRIES: usize = 4;

/// A line on which the agent may be later than the script's own limit: starting
/// processes is slow in an emulated machine, and so is the serial port.
const GRACE: Duration = Duration::from_secs(60);

/// One agent, reached through a pair of byte streams.
pub(crate) struct Agent {
    to_agent: Box<dyn Write + Send>,
    lines: Receiver<String>,
    last_id: u64,
}

impl Agent {
    /// Starts a thread that reads `from_agent` until its end.
    pub(crate) fn new(
        from_agent: impl Read + Send + 'static,
        to_agent: impl Write + Send + 'static,
    ) -> Self {
        let (sender, lines) = channel();
        std::thread::spawn(move || read_lines(from_agent, &sender));
        Agent {
            to_agent: Box::new(to_agent),
            lines,
            last_id: 0,
        }
    }

    /// Waits until the agent says that it is ready. `alive` is asked now and
    /// then; its error ends the wait.
    pub(crate) fn wait_ready(
        &mut self,
        deadline: Instant,
        mut alive: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        while Instant::now() < deadline {
            match self.lines.recv_timeout(Duration::from_millis(500)) {
                Ok(line) if line == "@ready" => return Ok(()),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => alive()?,
                Err(RecvTimeoutError::Disconnected) => {
                    alive()?;
                    bail!("the machine closed its serial port");
                }
            }
        }
        bail!("the agent did not answer in time")
    }

    /// Runs a shell script; `limit` is how long it may take before it is killed
    /// (status 137).
    ///
    /// # Errors
    /// Only when no answer came; a script that fails is an [`Output`].
    pub(crate) fn exec(&mut self, script: &str, limit: Duration) -> Result<Output> {
        self.last_id += 1;
        let id = self.last_id.to_string();
        let body = base64::encode(script.as_bytes());
        let seconds = limit.as_secs().max(1);
        let request = format!("\n@req {id} {seconds} {} {body}\n", body.len());
        self.send(&request)?;
        let mut answer = Answer::default();
        let deadline = Instant::now() + limit + GRACE;
        let mut tries = 1;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = match self.lines.recv_timeout(left) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => {
                    bail!("dom0 did not answer within {} s", (limit + GRACE).as_secs())
                }
                Err(RecvTimeoutError::Disconnected) => bail!("the emulated machine has ended"),
            };
            match answer.take(&line, &id) {
                Step::More => {}
                Step::Done(output) => return Ok(output),
                Step::Damaged | Step::BadRequest if tries == TRIES => {
                    bail!("the serial port damages every line")
                }
                Step::Damaged => {
                    tries += 1;
                    answer = Answer::default();
                    self.send(&format!("\n@again {id}\n"))?;
                }
                Step::BadRequest => {
                    tries += 1;
                    self.send(&request)?;
                }
            }
        }
    }

    fn send(&mut self, text: &str) -> Result<()> {
        self.to_agent
            .write_all(text.as_bytes())
            .and_then(|()| self.to_agent.flush())
            .context("writing to dom0's serial port")
    }
}

/// What has come of one answer.
#[derive(Default)]
struct Answer {
    out: String,
    err: String,
}

enum Step {
    More,
    Done(Output),
    Damaged,
    BadRequest,
}

impl Answer {
    fn take(&mut self, line: &str, id: &str) -> Step {
        let mut words = line.split(' ');
        let mark = words.next().unwrap_or_default();
        if words.next() != Some(id) {
            return Step::More;
        }
        match mark {
            "@out" => self.out.push_str(words.next().unwrap_or_default()),
            "@err" => self.err.push_str(words.next().unwrap_or_default()),
            "@bad" => return Step::BadRequest,
            "@end" => {
                let mut number = || words.next().and_then(|w| w.parse::<usize>().ok());
                let (status, out, err) = (number(), number(), number());
                let bytes = |encoded: &str, sent: Option<usize>, most: usize| {
                    base64::decode(encoded).filter(|b| Some(b.len()) == sent.map(|n| n.min(most)))
                };
                let out = bytes(&self.out, out, MAX_OUT);
                let err = bytes(&self.err, err, MAX_ERR);
                let text = |b: Vec<u8>| String::from_utf8_lossy(&b).into_owned();
                return match (status, out, err) {
                    (Some(status), Some(out), Some(err)) => Step::Done(Output {
                        status: i32::try_from(status).unwrap_or(i32::MAX),
                        stdout: text(out),
                        stderr: text(err),
                    }),
                    _ => Step::Damaged,
                };
            }
            _ => {}
        }
        Step::More
    }
}

fn read_lines(from_agent: impl Read, sender: &Sender<String>) {
    let mut reader = BufReader::new(from_agent);
    let mut line = Vec::new();
    loop {
        line.clear();
        match reader.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let text = String::from_utf8_lossy(&line);
                if sender
                    .send(text.trim_end_matches(['\n', '\r']).to_owned())
                    .is_err()
                {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    /// The real agent script, run by this machine's shell.
    fn local_agent() -> (Agent, Child) {
        let folder = std::env::temp_dir().join(format!("lab-agent-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut child = Command::new("sh")
            .args(["-c", include_str!("image/agent.sh")])
            .env("LAB_AGENT_DIR", &folder)
            .env("LAB_FUNCTIONS", "/dev/null")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (from, to) = (child.stdout.take().unwrap(), child.stdin.take().unwrap());
        (Agent::new(from, to), child)
    }

    #[test]
    fn runs_scripts_and_survives_noise() {
        let (mut agent, mut child) = local_agent();
        agent
            .wait_ready(Instant::now() + Duration::from_secs(30), || Ok(()))
            .unwrap();
        let second = Duration::from_secs(30);
        let output = agent
            .exec("echo out; echo err >&2; exit 3", second)
            .unwrap();
        assert_eq!((output.status, output.stdout.as_str()), (3, "out\n"));
        assert_eq!(output.stderr, "err\n");
        agent
            .send("kernel: something unrelated\n@req 77 1 9999 xx\n")
            .unwrap();
        assert!(agent.exec("true", second).unwrap().success());
        let output = agent
            .exec("sleep 60 & sleep 60", Duration::from_secs(1))
            .unwrap();
        assert_eq!(output.status, 137, "killed at its limit");
        drop(agent);
        child.wait().unwrap();
    }

    #[test]
    fn a_line_cut_by_another_is_damage_not_a_result() {
        let mut answer = Answer::default();
        assert!(matches!(
            answer.take("@out 5 aGVs[  1.0] kernel", "5"),
            Step::More
        ));
        assert!(matches!(answer.take("@end 5 0 8 0", "5"), Step::Damaged));
    }
}

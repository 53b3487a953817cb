//! Talks to the agent in dom0 (`bin/lab-agent`; `wire.rs` describes the lines).

use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};

use super::host::{Output, Place};
use super::wire::{self, Lines, NoAnswer, Request};

/// On top of the script's own limit: starting processes is slow in an emulated machine, and so is
/// the serial port; dom0's agent has a grace of its own for a guest's.
const AGENT_TIME: Duration = Duration::from_secs(90);

/// One agent, reached through a pair of byte streams.
pub(crate) struct Agent {
    line: Serial,
    last_id: u64,
    /// It has left a request without an answer: nothing else is asked of it.
    is_lost: bool,
}

struct Serial {
    to_agent: Box<dyn Write + Send>,
    lines: Receiver<String>,
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
            line: Serial {
                to_agent: Box::new(to_agent),
                lines,
            },
            last_id: 0,
            is_lost: false,
        }
    }

    /// Waits until the agent reports that it is ready. `alive` is called now and then; its error
    /// ends the wait.
    pub(crate) fn wait_ready(
        &mut self,
        deadline: Instant,
        mut alive: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        while Instant::now() < deadline {
            match self.line.lines.recv_timeout(Duration::from_millis(500)) {
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

    /// Whether a request had no answer; then no other is made.
    pub(crate) fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Runs a shell script, which is killed after `limit` (status 137).
    ///
    /// # Errors
    /// Only when no answer came, now or to an earlier request; a script that fails is an [`Output`].
    pub(crate) fn exec(
        &mut self,
        place: Place<'_>,
        script: &str,
        limit: Duration,
    ) -> Result<Output> {
        if self.is_lost {
            bail!("dom0 has not answered an earlier request");
        }
        self.last_id += 1;
        let request = Request {
            guest: match place {
                Place::Dom0 => None,
                Place::Guest(name) => Some(name.to_owned()),
            },
            seconds: limit.as_secs().max(1),
            script: script.as_bytes().to_vec(),
        };
        let deadline = Instant::now() + limit + AGENT_TIME;
        let id = self.last_id.to_string();
        let reply = wire::exchange(&mut self.line, &id, &request, wire::SILENCE, deadline);
        self.is_lost = reply.is_err();
        let reply = reply.map_err(|why| match why {
            NoAnswer::Late => anyhow!(
                "dom0 did not answer within {} s",
                (limit + AGENT_TIME).as_secs()
            ),
            NoAnswer::Damaged => anyhow!("the serial port damages every line"),
            NoAnswer::Line(error) => anyhow!("the emulated machine has ended ({error})"),
        })?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Output {
            status: reply.status,
            stdout: text(reply.out),
            stderr: text(reply.err),
        })
    }
}

impl Lines for Serial {
    fn send(&mut self, text: &str) -> io::Result<()> {
        self.to_agent.write_all(text.as_bytes())?;
        self.to_agent.flush()
    }

    fn next(&mut self, deadline: Instant) -> io::Result<Option<String>> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(left) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(io::ErrorKind::UnexpectedEof.into()),
        }
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

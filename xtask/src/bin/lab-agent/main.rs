//! The lab's agent: runs scripts that arrive as lines (`lab/wire.rs`), in dom0 on the second serial
//! port, in a guest on its Xen console. dom0's agent passes requests on to guests.
//!
//! A program rather than a shell script because each process costs some 30 ms in the emulated
//! machine, and every step of the suite comes through here.

mod console;
mod script;
mod serving;
#[path = "../../lab/wire.rs"]
mod wire;

use std::io::{BufRead, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serving::Incoming;
use wire::{Reply, Request};

const USAGE: &str = "usage: lab-agent serve FOLDER           run scripts that come on standard input\n\
                     \x20      lab-agent guest NAME SECONDS    run the script on standard input in a guest\n\
                     \x20      lab-agent await FOLDER SECONDS TEXT\n\
                     \x20          until there is FOLDER/status, or TEXT (unless empty) in FOLDER/out or err";

/// Interval at which `await` checks.
const LOOK_INTERVAL: Duration = Duration::from_millis(40);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["serve", folder] => match serve(
            std::io::stdin().lock(),
            std::io::stdout(),
            Path::new(folder),
        ) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("lab-agent: {error}");
                ExitCode::FAILURE
            }
        },
        ["guest", name, seconds] => match seconds.parse() {
            Ok(seconds) => guest(name, seconds),
            Err(_) => usage(),
        },
        ["await", folder, seconds, text] => match seconds.parse() {
            Ok(seconds) if await_job(Path::new(folder), Duration::from_secs(seconds), text) => {
                ExitCode::SUCCESS
            }
            Ok(_) => ExitCode::FAILURE,
            Err(_) => usage(),
        },
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

/// Waits until a background job (`lab/job.rs`) has ended or printed `text`; returns whether it has.
fn await_job(folder: &Path, patience: Duration, text: &str) -> bool {
    let deadline = Instant::now() + patience;
    let says = |name: &str| {
        let said = std::fs::read(folder.join(name)).unwrap_or_default();
        !text.is_empty() && String::from_utf8_lossy(&said).contains(text)
    };
    loop {
        // Read before the job is checked, so that the last check follows the deadline.
        let last_look = Instant::now() > deadline;
        if folder.join("status").exists() || says("out") || says("err") {
            return true;
        }
        if last_look {
            return false;
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// Runs one script in a guest; its streams and status become this process's.
fn guest(name: &str, seconds: u64) -> ExitCode {
    let mut script = Vec::new();
    if let Err(error) = std::io::stdin().read_to_end(&mut script) {
        eprintln!("lab-agent: cannot read the script: {error}");
        return ExitCode::from(125);
    }
    let id = format!("{}.{}", std::process::id(), console::boot_clock());
    let reply = console::run(
        name,
        &id,
        &Request {
            guest: None,
            seconds,
            script,
        },
    );
    let _ = std::io::stdout().write_all(&reply.out);
    let _ = std::io::stderr().write_all(&reply.err);
    ExitCode::from(u8::try_from(reply.status).unwrap_or(1))
}

/// Answers requests until the end of `from`. `folder` holds the running script's files.
fn serve(from: impl BufRead, mut to: impl Write, folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut last: Option<(String, Reply)> = None;
    send(&mut to, "\n@ready\n")?;
    for line in from.split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        match Incoming::parse(line.trim_end_matches('\r')) {
            Incoming::Noise => {}
            Incoming::Damaged(id) => send(&mut to, &format!("\n@bad {id}\n"))?,
            Incoming::Again(id) | Incoming::Run(id, _) if is_last(&last, &id) => {
                let (_, reply) = last.as_ref().expect("it is the last one");
                send(&mut to, &serving::lines(reply, &id))?;
            }
            Incoming::Again(id) => send(&mut to, &format!("\n@bad {id}\n"))?,
            Incoming::Run(id, mut request) => {
                let reply = match request.guest.take() {
                    Some(guest) => console::run(&guest, &id, &request),
                    None => script::run(&request, folder),
                };
                send(&mut to, &serving::lines(&reply, &id))?;
                last = Some((id, reply));
            }
        }
    }
    Ok(())
}

fn is_last(last: &Option<(String, Reply)>, id: &str) -> bool {
    last.as_ref().is_some_and(|(answered, _)| answered == id)
}

fn send(to: &mut impl Write, text: &str) -> std::io::Result<()> {
    to.write_all(text.as_bytes())?;
    to.flush()
}

/// A reply with the reason why there is none from the script itself.
fn refusal(status: i32, why: &str) -> Reply {
    Reply {
        status,
        out: Vec::new(),
        err: format!("{why}\n").into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, PipeReader, PipeWriter};
    use std::sync::mpsc;
    use std::thread;

    use super::*;
    use data_encoding::BASE64;
    use wire::Lines;

    fn answers(input: &str) -> String {
        let folder = std::env::temp_dir().join(format!("lab-agent-{}", std::process::id()));
        let mut out = Vec::new();
        serve(input.as_bytes(), &mut out, &folder).unwrap();
        let _ = std::fs::remove_dir_all(&folder);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_wait_for_a_job_ends_with_its_words_its_end_or_its_time() {
        let folder = std::env::temp_dir().join(format!("lab-agent-job-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let waits = |seconds, text| await_job(&folder, Duration::from_secs(seconds), text);
        std::fs::write(folder.join("out"), "listening\n").unwrap();
        assert!(!waits(0, ""));
        assert!(!waits(0, "served"));
        assert!(waits(600, "listening"));
        std::fs::write(folder.join("status"), "0\n").unwrap();
        assert!(waits(600, "served"));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn scripts_run_and_noise_does_not() {
        let script = BASE64.encode(b"echo out; echo err >&2; exit 3");
        let request = format!("@req 1 - 30 {} {script}", script.len());
        let text = answers(&format!(
            "kernel: noise\n{request}\r\n@req 2 - 1 9 xx\n@again 1\n"
        ));
        let end = "@end 1 3 4 4";
        assert_eq!(text.matches(end).count(), 2, "{text}");
        assert!(
            text.contains(&format!("@out 1 {}", BASE64.encode(b"out\n"))),
            "{text}"
        );
        assert!(text.contains("@bad 2"), "{text}");
        let script = BASE64.encode(b"sleep 60 & sleep 60");
        let text = answers(&format!("@req 4 - 1 {} {script}\n", script.len()));
        assert!(text.contains("@end 4 137 "), "killed at its limit: {text}");
        let text = answers("@req 5 nobody 1 4 dHJ1ZQ==\n@req 6 nobody 1 8 dHJ1ZQ==\n");
        assert!(
            text.contains("@bad 5") && text.contains("@end 6 125 "),
            "{text}"
        );
    }

    /// Lines to an agent and back of which the first that begin with some words are lost.
    struct Lossy {
        to: PipeWriter,
        lines: mpsc::Receiver<String>,
        lost: Vec<&'static str>,
    }

    impl Lossy {
        fn new(from: PipeReader, to: PipeWriter, lost: &[&'static str]) -> Self {
            let (tell, lines) = mpsc::channel();
            thread::spawn(move || {
                let lines = BufReader::new(from).lines().map_while(Result::ok);
                lines.map_while(|line| tell.send(line).ok()).for_each(drop);
            });
            let lost = lost.to_vec();
            Self { to, lines, lost }
        }

        fn loses(&mut self, line: &str) -> bool {
            let at = self.lost.iter().position(|lost| line.starts_with(lost));
            at.map(|at| self.lost.remove(at)).is_some()
        }
    }

    impl Lines for Lossy {
        fn send(&mut self, text: &str) -> std::io::Result<()> {
            match self.loses(text.trim_start()) {
                true => Ok(()),
                false => self.to.write_all(text.as_bytes()),
            }
        }

        fn next(&mut self, deadline: Instant) -> std::io::Result<Option<String>> {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if self.loses(&line) => Ok(Some("[ 1.0] kernel".to_owned())),
                Ok(line) => Ok(Some(line)),
                Err(_) => Ok(None),
            }
        }
    }

    #[test]
    fn a_lost_line_is_asked_for_again_and_the_script_runs_once() {
        let cases: [&[&str]; 5] = [
            &[],
            &["@req"],
            &["@end"],
            &["@out", "@end"],
            &["@req", "@again", "@bad", "@end", "@again"],
        ];
        for lost in cases {
            let folder = tempfile::tempdir().unwrap();
            let (requests, to) = std::io::pipe().unwrap();
            let (from, answers) = std::io::pipe().unwrap();
            let files = folder.path().join("agent");
            let agent = thread::spawn(move || serve(BufReader::new(requests), answers, &files));
            let mut lines = Lossy::new(from, to, lost);
            let ran = folder.path().join("ran");
            for id in ["1", "2"] {
                let script = format!("echo {id} >> {}; sleep 0.3; echo out", ran.display());
                let request = Request {
                    guest: None,
                    seconds: 60,
                    script: script.into_bytes(),
                };
                let silence = Duration::from_millis(50);
                let deadline = Instant::now() + Duration::from_secs(120);
                let reply = wire::exchange(&mut lines, id, &request, silence, deadline);
                let reply = reply.unwrap_or_else(|why| panic!("{lost:?}: {why:?}"));
                assert_eq!(
                    (reply.status, &reply.out[..]),
                    (0, &b"out\n"[..]),
                    "{lost:?}"
                );
            }
            assert!(lines.lost.is_empty(), "{lost:?}");
            drop(lines);
            // A last question may have found nobody listening.
            let _ = agent.join().unwrap();
            assert_eq!(std::fs::read_to_string(ran).unwrap(), "1\n2\n", "{lost:?}");
        }
    }
}

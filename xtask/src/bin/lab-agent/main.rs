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
            Incoming::Again(id) => {
                if let Some((answered, reply)) = &last
                    && *answered == id
                {
                    send(&mut to, &serving::lines(reply, &id))?;
                }
            }
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
    use super::*;
    use data_encoding::BASE64;

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
}

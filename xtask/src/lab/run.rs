//! `cargo xtask lab run`: one script in dom0, with its output as it comes.

use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use data_encoding::BASE64;

use super::host::Place;
use super::qemu::Qemu;

/// Interval at which the script's output is fetched.
const INTERVAL: Duration = Duration::from_millis(700);

/// Runs the script in `file` (`-`: standard input) and prints its output.
///
/// # Errors
/// It fails, or takes longer than `limit`.
pub(crate) fn script(machine: &mut Qemu, file: &Path, limit: Duration) -> Result<()> {
    let mut text = String::new();
    if file == Path::new("-") {
        std::io::stdin()
            .read_to_string(&mut text)
            .context("reading standard input")?;
    } else {
        text =
            std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    }
    // In the background, so that its output can be fetched while it runs.
    machine
        .exec(
            Place::Dom0,
            &format!(
                "mkdir -p /run/lab/script; cd /run/lab/script; rm -f status; : >out\n\
                 echo {} | base64 -d >script\n\
                 setsid sh -c 'sh -c \". /lab/functions.sh; cd /root; . /run/lab/script/script\"; \
                 echo $? >status.part; mv status.part status' </dev/null >out 2>&1 &",
                BASE64.encode(text.as_bytes())
            ),
            Duration::from_secs(30),
        )?
        .text()?;
    let deadline = Instant::now() + limit;
    let mut shown = 0usize;
    loop {
        let done = machine.exec(
            Place::Dom0,
            "cat /run/lab/script/status",
            Duration::from_secs(30),
        )?;
        let more = machine.exec(
            Place::Dom0,
            &format!("tail -c +{} /run/lab/script/out", shown + 1),
            Duration::from_secs(60),
        )?;
        shown += more.stdout.len();
        let mut out = std::io::stdout();
        out.write_all(more.stdout.as_bytes())
            .and_then(|()| out.flush())
            .context("printing")?;
        if done.success() {
            return match done.stdout.trim() {
                "0" => Ok(()),
                status => bail!("the script ended with status {status}"),
            };
        }
        if Instant::now() > deadline {
            bail!("the script is not done after {} s", limit.as_secs());
        }
        std::thread::sleep(INTERVAL);
    }
}

//! A mediator of our own on this machine.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cargo::target_dir;
use crate::lab;

/// Time for the mediator to answer: it looks for a GPU first.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// Builds `vgpu-mediatord` and `vgpu` as they are tested, and returns their folder.
///
/// # Errors
/// The build fails.
pub(crate) fn build() -> Result<PathBuf> {
    lab::build_tested()?;
    Ok(target_dir().join(lab::TESTED_FOLDER))
}

/// Builds them as they are measured, and returns their folder.
///
/// # Errors
/// The build fails.
pub(crate) fn build_release() -> Result<PathBuf> {
    lab::build_release(&["vgpu-guest", "vgpu-mediator"])?;
    Ok(target_dir().join(lab::RELEASE))
}

/// A running mediator; killed when dropped, so that a failed demo leaves nothing behind.
pub(crate) struct Mediator {
    process: Child,
    log: PathBuf,
}

impl Mediator {
    /// Starts it with `endpoint` and further arguments.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start(
        programs: &Path,
        dir: &Path,
        endpoint: &str,
        more: &[&str],
    ) -> Result<Self> {
        let log = dir.join("mediatord.log");
        let file = std::fs::File::create(&log).context("cannot create the mediator's log")?;
        let process = Command::new(programs.join("vgpu-mediatord"))
            .args(["--listen", endpoint, "--control"])
            .arg(dir.join("control.sock"))
            .args(more)
            .stdin(Stdio::null())
            .stdout(
                file.try_clone()
                    .context("cannot share the mediator's log")?,
            )
            .stderr(file)
            .spawn()
            .context("cannot start vgpu-mediatord")?;
        Ok(Self { process, log })
    }

    /// Waits until it serves a session.
    ///
    /// # Errors
    /// It ends, or does not answer within a minute.
    pub(crate) fn wait_until_ready(&mut self, programs: &Path, endpoint: &str) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            if let Some(status) = self
                .process
                .try_wait()
                .context("cannot ask for the mediator's state")?
            {
                bail!("vgpu-mediatord ended early ({status}):\n{}", self.log());
            }
            let answered = Command::new(programs.join("vgpu"))
                .args(["--endpoint", endpoint, "info"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .context("cannot start vgpu")?
                .success();
            if answered {
                eprint!("{}", self.log());
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("vgpu-mediatord does not answer:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Its log so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Asks the mediator to end, as systemd would, and checks that it ends well.
    ///
    /// # Errors
    /// It ended badly.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let asked = Command::new("kill")
            .args(["-TERM", &self.process.id().to_string()])
            .status()
            .context("cannot start kill")?;
        if !asked.success() {
            bail!("cannot signal vgpu-mediatord");
        }
        let status = self
            .process
            .wait()
            .context("cannot wait for vgpu-mediatord")?;
        if !status.success() {
            bail!("vgpu-mediatord ended badly ({status}):\n{}", self.log());
        }
        Ok(())
    }
}

impl Drop for Mediator {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

//! `cargo xtask demo`: mediator and guest on this machine, over the same ring that Xen guests use.

use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long the mediator may take to answer: it looks for a GPU first.
const READY_WITHIN: Duration = Duration::from_secs(60);

mod flags {
    #![allow(unreachable_pub, reason = "written by the xflags macro")]

    xflags::xflags! {
        /// Builds the programs, starts a mediator on a ring in shared memory, adds vectors through it.
        cmd demo {}
    }
}

/// Runs `cargo xtask demo`.
pub(crate) fn main(args: Vec<OsString>) -> Result<()> {
    flags::Demo::from_vec(args).unwrap_or_else(|error| error.exit());
    eprintln!("demo: building vgpu-mediatord and vgpu (the first time takes a minute or two)");
    let built = Command::new("cargo")
        .args([
            "build",
            "--release",
            "--locked",
            "-p",
            "vgpu-mediator",
            "-p",
            "vgpu-guest",
        ])
        .status()
        .context("cannot start cargo")?;
    if !built.success() {
        bail!("the build failed\nread cargo's messages above");
    }
    let programs = target_dir().join("release");
    let dir = std::env::temp_dir().join(format!("vgpu-demo-{}", std::process::id()));
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let outcome = show(&programs, &dir);
    std::fs::remove_dir_all(&dir).ok();
    outcome
}

/// Where cargo puts what it builds. xtask itself lies there, as `TARGET/PROFILE/xtask`.
fn target_dir() -> PathBuf {
    std::env::current_exe()
        .ok()
        .and_then(|exe| exe.parent()?.parent().map(Path::to_path_buf))
        .unwrap_or_else(|| PathBuf::from("target"))
}

fn show(programs: &Path, dir: &Path) -> Result<()> {
    let endpoint = format!("local:{}", dir.join("vgpu.sock").display());
    eprintln!("demo: starting vgpu-mediatord --listen {endpoint}");
    let mut mediator = Mediator::start(programs, dir, &endpoint)?;
    mediator.wait_until_ready(programs, &endpoint)?;
    let vgpu = |arguments: &[&str]| -> Result<()> {
        eprintln!("\n$ vgpu --endpoint {endpoint} {}", arguments.join(" "));
        let status = Command::new(programs.join("vgpu"))
            .args(["--endpoint", &endpoint])
            .args(arguments)
            .status()
            .context("cannot start vgpu")?;
        if !status.success() {
            bail!("vgpu {} failed ({status})", arguments.join(" "));
        }
        Ok(())
    };
    vgpu(&["info"])?;
    vgpu(&["ping"])?;
    vgpu(&["vector-add", "--n", "1048576"])?;
    vgpu(&["vector-add", "--n", "16777216"])?;
    mediator.stop()?;
    eprintln!("\ndemo: passed; every element that came back was checked");
    Ok(())
}

/// A running mediator; killed when dropped, so that a failed demo leaves nothing behind.
struct Mediator {
    process: Child,
    log: PathBuf,
}

impl Mediator {
    fn start(programs: &Path, dir: &Path, endpoint: &str) -> Result<Self> {
        let log = dir.join("mediatord.log");
        let file = std::fs::File::create(&log).context("cannot create the mediator's log")?;
        let process = Command::new(programs.join("vgpu-mediatord"))
            .args(["--listen", endpoint, "--control"])
            .arg(dir.join("control.sock"))
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

    fn wait_until_ready(&mut self, programs: &Path, endpoint: &str) -> Result<()> {
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

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Asks the mediator to end, as systemd would, and checks that it ends well.
    fn stop(&mut self) -> Result<()> {
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

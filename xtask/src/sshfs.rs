//! `cargo xtask sshfs`: the file protocol over sshfs, from an sshd on 127.0.0.1 to a mount of this
//! machine, with the recommended options and with none.
//!
//! A machine that refuses FUSE mounts (no `/dev/fuse`, a container) cannot run it: then everything
//! is skipped, loudly, and the exit status is [`SKIPPED`].

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::apt;
use crate::mediator::{self, Mediator};
use crate::sshd::Sshd;
use crate::two_files;

/// Exit status when nothing could be shown, as in automake.
pub(crate) const SKIPPED: i32 = 77;

/// Far beyond any of its steps.
const LIMIT: Duration = Duration::from_secs(120);

/// The options that `docs/file-protocol.md` recommends.
const RECOMMENDED: &str =
    "dir_cache=no,direct_io,attr_timeout=0,entry_timeout=0,reconnect,ServerAliveInterval=15";

mod flags {
    #![allow(unreachable_pub, reason = "written by the xflags macro")]

    xflags::xflags! {
        /// The file protocol over sshfs, from an sshd on 127.0.0.1 to a mount of this machine.
        cmd sshfs {}
    }
}

/// One property to show, in a mount made with these options.
struct Case {
    name: &'static str,
    options: &'static str,
    run: fn(&World) -> Result<()>,
}

const CASES: &[Case] = &[
    Case {
        name: "sshfs/guide-recommended",
        options: RECOMMENDED,
        run: |world| guide(world, [PASSED, PASSED, "1:", UNKNOWN, PASSED]),
    },
    Case {
        // Sizes are cached for 20 s, and a longer answer is cut at the size of the last one. The
        // status is still the right one.
        name: "sshfs/guide-defaults",
        options: "",
        run: |world| guide(world, ["1:", "1:", "1:", "2:", "1:"]),
    },
    Case {
        name: "sshfs/sessions-recommended",
        options: RECOMMENDED,
        run: sessions,
    },
    Case {
        name: "sshfs/sessions-defaults",
        options: "",
        run: sessions,
    },
];

const PASSED: &str = "1:Vector add PASSED: 1024 elements, 0 errors (cpu executor";
const UNKNOWN: &str = "2:command 9 is unknown; write 0 (nothing), 1 (vector add) or 2 (GPU info)";

/// The environment of the cases.
struct World {
    sshd: Sshd,
    /// The folder of `vgpu`.
    programs: PathBuf,
    folder: PathBuf,
}

impl World {
    fn served(&self) -> PathBuf {
        self.folder.join("served")
    }

    fn mount_point(&self) -> PathBuf {
        self.folder.join("mount")
    }

    /// Mounts the served directory.
    fn mount(&self, options: &str) -> Result<Output> {
        let mut command = Command::new("sshfs");
        command
            .arg(format!("127.0.0.1:{}", self.served().display()))
            .arg(self.mount_point())
            .args(["-p", &self.sshd.port()]);
        for setting in self.sshd.client_settings() {
            command.args(["-o", &setting]);
        }
        if !options.is_empty() {
            command.args(["-o", options]);
        }
        // sshfs stays in the background and would keep a pipe open.
        let said = self.folder.join("sshfs.log");
        let file = fs::File::create(&said)?;
        let status = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .status()
            .context("running sshfs")?;
        Ok(Output {
            status,
            stdout: Vec::new(),
            stderr: fs::read(&said)?,
        })
    }

    fn unmount(&self) -> Result<()> {
        let output = Command::new("fusermount3")
            .arg("-u")
            .arg(self.mount_point())
            .output()
            .context("running fusermount3")?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // A leftover mount must not be reached when the folder is removed.
        let _ = Command::new("fusermount3")
            .args(["-u", "-z"])
            .arg(self.mount_point())
            .stderr(Stdio::null())
            .status();
        let _ = fs::remove_dir(self.mount_point());
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Runs `cargo xtask sshfs`.
pub(crate) fn main(args: Vec<OsString>) -> Result<()> {
    flags::Sshfs::from_vec(args).unwrap_or_else(|error| crate::help_or_misuse(error));
    apt::ensure(&["sshfs", "fuse3", "openssh-server"])?;
    let programs = mediator::build()?;
    let folder = std::env::temp_dir().join(format!("vgpu-sshfs-{}", std::process::id()));
    let world = World {
        sshd: Sshd::start()?,
        programs,
        folder,
    };
    for folder in [world.served(), world.mount_point()] {
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    if let Some(reason) = refused(&world)? {
        for case in CASES {
            println!("SKIP {:<44} {reason}", case.name);
        }
        println!("0 passed, 0 failed, {} skipped", CASES.len());
        drop(world);
        std::process::exit(SKIPPED);
    }
    let endpoint = format!("file:{}", world.served().display());
    let more = ["--executor", "cpu", "--allow-all"];
    let mut mediator = Mediator::start(&world.programs, &world.folder, &endpoint, &more)?;
    wait_for(&world.served().join("response.txt"), "0:Ready")
        .with_context(|| format!("the mediator: {}", mediator.log()))?;
    let mut failed = 0;
    for case in CASES {
        let started = Instant::now();
        let outcome = mounted(&world, case);
        let seconds = started.elapsed().as_secs_f32();
        match outcome {
            Ok(()) => println!("PASS {:<44} {seconds:>6.1} s", case.name),
            Err(error) => {
                failed += 1;
                println!("FAIL {:<44} {seconds:>6.1} s  {error:#}", case.name);
            }
        }
    }
    println!(
        "{} passed, {failed} failed, 0 skipped",
        CASES.len() - failed
    );
    if failed > 0 {
        bail!("{failed} failed; the mediator said:\n{}", mediator.log());
    }
    mediator.stop()
}

/// The reason why this machine cannot mount, if FUSE refuses; sshd has been tried before.
fn refused(world: &World) -> Result<Option<String>> {
    let output = world.mount("")?;
    if output.status.success() {
        world.unmount()?;
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let Some(reason) = text.lines().find(|line| line.starts_with("fus")) else {
        bail!("sshfs ended with {}: {}", output.status, text.trim());
    };
    Ok(Some(format!(
        "FUSE mounts are refused here: {}",
        reason.trim()
    )))
}

fn mounted(world: &World, case: &Case) -> Result<()> {
    let output = world.mount(case.options)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "sshfs: {}", said.trim());
    let outcome = (case.run)(world);
    let unmounted = world.unmount();
    outcome.and(unmounted)
}

/// The answers to the commands begin with these texts.
fn guide(world: &World, expected: [&str; 5]) -> Result<()> {
    let ask = two_files::ask(".", "sleep 0.1");
    let script = format!("{ask}for number in 1 1 2 9 1; do ask $number || exit; done");
    let text = shell(&world.mount_point(), &script)?;
    let lines: Vec<&str> = text.lines().collect();
    let alike =
        lines.len() == expected.len() && lines.iter().zip(expected).all(|(l, e)| l.starts_with(e));
    ensure!(alike, "{lines:?}");
    Ok(())
}

/// Verified vector adds of two sizes, by two clients at once.
fn sessions(world: &World) -> Result<()> {
    let client = world.programs.join("vgpu");
    for elements in [1_024, 1_048_576] {
        let one = format!(
            "{} --timeout 60 --endpoint file:{} vector-add --n {elements}",
            client.display(),
            world.mount_point().display()
        );
        // Exit status 0 is for verified results only.
        shell(
            Path::new("/"),
            &format!("{one} & {one} || exit; wait $! || exit"),
        )?;
    }
    Ok(())
}

/// Runs a script in `folder`, for no longer than [`LIMIT`].
fn shell(folder: &Path, script: &str) -> Result<String> {
    let output = Command::new("timeout")
        .args(["-k", "5", &LIMIT.as_secs().to_string(), "sh", "-c", script])
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .context("running sh")?;
    ensure!(
        output.status.success(),
        "{}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn wait_for(file: &Path, start: &str) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    while !fs::read_to_string(file).is_ok_and(|text| text.starts_with(start)) {
        ensure!(
            Instant::now() < deadline,
            "no {start} in {}",
            file.display()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

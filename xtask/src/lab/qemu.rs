//! Boots Xen in QEMU's software emulation and controls the machine.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::Pid;

use super::agent::Agent;
use super::host::{Output, Place, Xenstored};
use super::hypervisor::Xsm;
use super::image::Images;
use super::project::Archives;
use crate::busy;

/// The emulated processor. Newer models break a PV dom0 (SMAP, mwait); PVH guests need nested
/// paging.
const PROCESSOR: &str = "qemu64,+svm,+npt,+nrip-save,+vgif";

/// Mitigations of speculation protect nothing in an emulator and slow it down a good deal, and
/// QEMU's memory is zero without scrubbing.
const XEN_ARGUMENTS: &str = "dom0_mem=1536M dom0_max_vcpus=1 console=com1 com1=115200 \
     conring_size=512k guest_loglvl=warning spec-ctrl=no bootscrub=0";

/// For dom0's kernel the same, and pages are zeroed when used, not when freed. Programs are where they were the last
/// time: QEMU keeps what it has translated by virtual addresses too, and would translate each program anew, with its
/// libraries, whenever it is started.
const DOM0_ARGUMENTS: &str =
    "console=hvc0 quiet loglevel=4 panic=1 mitigations=off init_on_alloc=0 norandmaps";

/// Default size of the emulated memory, MiB.
pub(crate) const DEFAULT_MEMORY: u32 = 3072;

/// Default number of processors: dom0 has one of them.
pub(crate) const DEFAULT_PROCESSORS: u32 = 2;

/// Boot usually takes 8 s; a busy machine gets twenty times that.
const BOOT_LIMIT: Duration = Duration::from_secs(180);

/// Xen's console: three times Ctrl-A gives it the keyboard; then the registers of all processors, the scheduler's queues,
/// domains with their event channels (`xl debug-keys`).
const XEN_KEYS: &str = "\x01\x01\x01drqe";

/// Time for its answers, and how much of them is shown.
const ANSWER_TIME: Duration = Duration::from_secs(10);
const ANSWER_LINES: usize = 300;

/// Run folders kept.
const RUNS_KEPT: usize = 12;

/// The inputs of a boot.
pub(crate) struct Boot<'a> {
    pub(crate) images: &'a Images,
    /// The project's programs.
    pub(crate) project: &'a Archives,
    pub(crate) xenstored: Xenstored,
    pub(crate) memory_mib: u32,
    pub(crate) processors: u32,
    /// The security module that `images.xen` has. With SILO dom0 is like XCP-ng's in more ways.
    pub(crate) xsm: Xsm,
    /// The folder below which each run has a folder for its logs.
    pub(crate) runs: &'a Path,
}

/// A running machine; dropping it kills QEMU.
pub(crate) struct Qemu {
    child: Child,
    agent: Agent,
    folder: PathBuf,
}

impl Qemu {
    /// Boots and waits for dom0's agent.
    ///
    /// # Errors
    /// With the last lines of the console and the folder of the logs.
    pub(crate) fn boot(boot: &Boot<'_>) -> Result<Self> {
        let folder = run_folder(boot.runs, boot.xenstored.name())?;
        let mut command = command(boot, &folder, "")?;
        // The agent's serial port is QEMU's standard input and output: no socket to name, and no
        // leftovers.
        command
            .args(["-display", "none", "-monitor", "none"])
            .args([
                "-chardev",
                "socket,id=console,path=console.sock,server=on,wait=off,logfile=console.log",
                "-serial",
                "chardev:console",
            ])
            .args([
                "-chardev",
                "stdio,id=agent,signal=off",
                "-serial",
                "chardev:agent",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(folder.join("qemu.log"))?);
        eprintln!(
            "lab: booting Xen with {} (logs: {})",
            boot.xenstored,
            folder.display()
        );
        let started = Instant::now();
        let mut child = command.spawn().context("starting QEMU")?;
        let (Some(from), Some(to)) = (child.stdout.take(), child.stdin.take()) else {
            bail!("QEMU started without its pipes");
        };
        let mut machine = Qemu {
            child,
            agent: Agent::new(from, to),
            folder,
        };
        let child = &mut machine.child;
        let ready = machine
            .agent
            .wait_ready(started + BOOT_LIMIT, || match child.try_wait()? {
                None => Ok(()),
                Some(status) => bail!("QEMU ended while booting ({status})"),
            });
        if let Err(error) = ready {
            let tail = machine.console_tail(25);
            bail!(
                "dom0 did not come up: {error}\n  logs: {}\n{tail}",
                machine.folder.display()
            );
        }
        // The kernel has unpacked it by now.
        let _ = fs::remove_file(machine.folder.join("initrd.cpio"));
        eprintln!(
            "lab: dom0 up after {:.1} s ({:.1} s of processor time)",
            started.elapsed().as_secs_f32(),
            machine.processor_time().as_secs_f32()
        );
        Ok(machine)
    }

    /// Boots with this terminal as dom0's console; returns when the machine ends.
    pub(crate) fn interactive(boot: &Boot<'_>) -> Result<()> {
        let folder = run_folder(boot.runs, "shell")?;
        let mut command = command(boot, &folder, "lab.shell")?;
        command.args(["-display", "none", "-serial", "mon:stdio"]);
        eprintln!("lab: booting Xen with {}; Ctrl-A X ends it", boot.xenstored);
        let status = command.status().context("starting QEMU")?;
        let _ = fs::remove_dir_all(&folder);
        if !status.success() {
            bail!("QEMU ended with {status}");
        }
        Ok(())
    }

    /// Runs a shell script.
    pub(crate) fn exec(
        &mut self,
        place: Place<'_>,
        script: &str,
        limit: Duration,
    ) -> Result<Output> {
        let answered_before = !self.agent.is_lost();
        let output = self.agent.exec(place, script, limit);
        if answered_before && self.agent.is_lost() {
            self.ask_xen();
        }
        output.with_context(|| format!("logs: {}", self.folder.display()))
    }

    /// dom0 does not answer any more: says for what the machine used its processors in the meantime, and has Xen tell
    /// where they are.
    fn ask_xen(&self) {
        let before = self.processor_time();
        let asked = UnixStream::connect(self.folder.join("console.sock"))
            .and_then(|mut console| console.write_all(XEN_KEYS.as_bytes()));
        std::thread::sleep(ANSWER_TIME);
        eprintln!(
            "lab: dom0 does not answer; QEMU used {:.1} s of processor time in {} s; asking Xen: {}",
            (self.processor_time() - before).as_secs_f32(),
            ANSWER_TIME.as_secs(),
            asked.map_or_else(|error| error.to_string(), |()| "done".to_owned()),
        );
        eprint!("{}", self.console_tail(ANSWER_LINES));
    }

    /// Processor time of QEMU so far.
    pub(crate) fn processor_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        let ticks = processor_ticks(&stat.unwrap_or_default()).unwrap_or(0);
        // Linux reports them in hundredths of a second, whatever its internal unit.
        Duration::from_millis(10 * ticks)
    }

    /// Keeps each virtual processor on one of this machine's, in turn.
    ///
    /// # Errors
    /// QEMU's threads cannot be found, or the kernel refuses.
    pub(crate) fn spread_processors(&self) -> Result<()> {
        let mut found = false;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let task = task?;
            let name = fs::read_to_string(task.path().join("comm"))?;
            let Some(number) = virtual_processor(&name) else {
                continue;
            };
            let id = task.file_name().to_string_lossy().parse()?;
            busy::keep_on(Pid::from_raw(id), number)?;
            found = true;
        }
        ensure!(found, "QEMU has no thread named after a virtual processor");
        Ok(())
    }

    /// The folder with the console, QEMU's own messages, and saved logs.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The last lines of the console, indented.
    fn console_tail(&self, lines: usize) -> String {
        let bytes = fs::read(self.folder.join("console.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let all: Vec<&str> = text.lines().collect();
        let from = all.len().saturating_sub(lines);
        all[from..]
            .iter()
            .map(|line| format!("    {}\n", line.trim_end()))
            .collect()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(self.folder.join("initrd.cpio"));
    }
}

/// User and system time, in ticks, from a `/proc/PID/stat`.
fn processor_ticks(stat: &str) -> Option<u64> {
    // The second field is the program's name in brackets, with any characters.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

/// QEMU's command line without its serial ports.
fn command(boot: &Boot<'_>, folder: &Path, extra: &str) -> Result<Command> {
    // One initramfs made of five archives. QEMU splits the list of modules at commas and blanks, so
    // it gets names relative to its working folder.
    let mut initrd = File::create(folder.join("initrd.cpio"))?;
    for part in [&boot.images.base, &boot.images.dom0] {
        std::io::copy(&mut File::open(part)?, &mut initrd)?;
    }
    let Archives { guests, dom0 } = boot.project;
    for archive in [dom0, &guest_copy(guests)?, guests] {
        initrd.write_all(archive)?;
    }
    let kernel = folder.join("vmlinux");
    std::os::unix::fs::symlink(&boot.images.kernel, &kernel).context("linking the kernel")?;

    let calls = match boot.xsm {
        Xsm::None => "",
        Xsm::Silo => "lab.calls=old",
    };
    // setpriv ends QEMU with this process, however that ends.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
        .args(["-accel", "tcg,thread=multi", "-cpu", PROCESSOR])
        // Threads named after their virtual processors.
        .args(["-name", "lab,debug-threads=on"])
        .args(["-smp", &boot.processors.to_string()])
        .args([
            "-m",
            &boot.memory_mib.to_string(),
            "-no-reboot",
            "-nodefaults",
        ])
        // dom0's access to this machine, which is 10.0.2.2 there. It is unused until a case loads
        // the card's driver. Nobody boots from it, so it needs no ROM.
        .args(["-netdev", "user,id=outside"])
        .args(["-device", "e1000,netdev=outside,romfile="])
        .arg("-kernel")
        .arg(&boot.images.xen)
        .args(["-append", XEN_ARGUMENTS])
        .args([
            "-initrd",
            &format!(
                "vmlinux {DOM0_ARGUMENTS} lab.xenstored={} {calls} {extra},initrd.cpio",
                boot.xenstored.name()
            ),
        ])
        .current_dir(folder);
    Ok(command)
}

/// The guests' archive once more, as a file dom0 appends to their initramfs.
fn guest_copy(archive: &[u8]) -> Result<Vec<u8>> {
    let mut outer = super::cpio::Archive::new(Vec::new());
    outer.file("boot/project.cpio", 0o644, archive)?;
    Ok(outer.finish()?)
}

/// The number of the virtual processor that a thread of this name is.
fn virtual_processor(thread: &str) -> Option<usize> {
    let number = thread.trim_end().strip_prefix("CPU ")?;
    number.strip_suffix("/TCG")?.parse().ok()
}

/// A new folder `RUNS/RUN`; removes the oldest when there are many.
fn run_folder(runs: &Path, name: &str) -> Result<PathBuf> {
    fs::create_dir_all(runs).with_context(|| format!("creating {}", runs.display()))?;
    let mut old: Vec<PathBuf> = fs::read_dir(runs)?
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.is_dir())
        .collect();
    old.sort();
    for folder in old.iter().rev().skip(RUNS_KEPT - 1) {
        let _ = fs::remove_dir_all(folder);
    }
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let folder = runs.join(format!("{seconds}-{}-{name}", std::process::id()));
    fs::create_dir(&folder).with_context(|| format!("creating {}", folder.display()))?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::processor_ticks;

    #[test]
    fn processor_time_is_read_whatever_the_program_is_called() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 9 9 20 0 1 0 100 1000 10";
        assert_eq!(processor_ticks(stat), Some(300));
        assert_eq!(processor_ticks("7 (a)"), None);
    }
}

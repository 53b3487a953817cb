//! The [`Host`] that is any Xen machine, reached over ssh: dom0 as
//! `--host root@HOST`, its guests as `--guest root@IP`.
//!
//! Keys must be in place (nothing is asked). Guests are used as they are: never
//! created, paused or destroyed.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::guest::GuestSpec;
use super::host::{Host, LIMIT, Lacking, Output, Place};
use super::hypervisor::{self, Xsm};
use super::project::Program;

/// The folder of the project's programs on the host and in its guests.
const PROGRAMS: &str = "/opt/vgpu/bin";

/// The beginning of every script. Xen's tools are in different folders on Debian and on XCP-ng.
const PRELUDE: &str = "PATH=/opt/vgpu/bin:$PATH:/usr/sbin:/sbin\n\
     for folder in /usr/lib/xen*/bin /usr/lib64/xen/bin /usr/libexec/xen/bin; do \
     [ -d $folder ] && PATH=$PATH:$folder; done; export PATH\n";

/// ssh's own status for a connection that failed.
const SSH_FAILED: i32 = 255;

/// The requirements of the suite, as shell tests with a description.
const NEEDED: &[(&str, &str)] = &[
    (
        "grep -qs control_d /proc/xen/capabilities",
        "it is no dom0 (/proc/xen/capabilities)",
    ),
    (
        "[ -c /dev/xen/evtchn ]",
        "/dev/xen/evtchn is missing (module xen-evtchn)",
    ),
    (
        "[ -c /dev/xen/gntdev ]",
        "/dev/xen/gntdev is missing (module xen-gntdev)",
    ),
    (
        "[ -c /dev/xen/xenbus ] || [ -c /proc/xen/xenbus ]",
        "xenstore cannot be reached",
    ),
    ("command -v xl", "xl is missing"),
    (
        "command -v lsevtchn",
        "lsevtchn is missing (package of Xen's tools)",
    ),
];

/// A Xen host and its guests, all reached by ssh.
pub(crate) struct SshHost {
    dom0: String,
    guests: Vec<Guest>,
    /// Folder of ssh's control sockets: one connection per machine for all scripts.
    control: PathBuf,
    /// Its hypervisor's security module, if it could be told.
    xsm: Option<Xsm>,
    /// More arguments for ssh.
    options: Vec<String>,
}

struct Guest {
    address: String,
    /// The name by which the suite calls it, once requested.
    name: Option<String>,
}

impl SshHost {
    /// Connects to all of them and copies `programs` there.
    ///
    /// # Errors
    /// ssh cannot log in without questions.
    pub(crate) fn connect(dom0: &str, guests: &[String], programs: &[Program]) -> Result<Self> {
        Self::connect_with(dom0, guests, programs, Vec::new())
    }

    fn connect_with(
        dom0: &str,
        guests: &[String],
        programs: &[Program],
        options: Vec<String>,
    ) -> Result<Self> {
        let control = std::env::temp_dir().join(format!("vgpu-lab-{}", std::process::id()));
        fs::create_dir_all(&control)?;
        let guests = guests
            .iter()
            .map(|address| Guest {
                address: address.clone(),
                name: None,
            })
            .collect();
        let mut host = SshHost {
            dom0: dom0.to_owned(),
            guests,
            control,
            xsm: None,
            options,
        };
        for address in host.addresses() {
            eprintln!("lab: connecting to {address}");
            host.script(&address, "true", LIMIT).with_context(|| {
                format!("cannot run commands on {address}\n  `ssh {address} true` must work without a question")
            })?;
            host.script(&address, &format!("mkdir -p {PROGRAMS}"), LIMIT)?
                .text()?;
            for program in programs {
                let to = format!("{PROGRAMS}/{}", program.name);
                host.copy(&address, &program.file, &to)?;
            }
        }
        // Now, for the cases clear Xen's messages.
        let asked = host.script(&host.dom0, hypervisor::RUNNING, LIMIT)?;
        host.xsm = asked.text().ok().and_then(|name| name.parse().ok());
        Ok(host)
    }

    fn addresses(&self) -> Vec<String> {
        let guests = self.guests.iter().map(|guest| guest.address.clone());
        std::iter::once(self.dom0.clone()).chain(guests).collect()
    }

    fn address(&self, place: Place<'_>) -> Result<String> {
        match place {
            Place::Dom0 => Ok(self.dom0.clone()),
            Place::Guest(name) => self
                .guests
                .iter()
                .find(|guest| guest.name.as_deref() == Some(name))
                .map(|guest| guest.address.clone())
                .with_context(|| format!("no guest is called {name}")),
        }
    }

    fn script(&self, address: &str, script: &str, limit: Duration) -> Result<Output> {
        let seconds = limit.as_secs().max(1);
        // GNU timeout kills itself along with the script, which ssh would
        // report as a failed connection but for the shell around it.
        let input = format!("{PRELUDE}{script}\n");
        self.ssh(
            address,
            &format!("timeout -s KILL {seconds} sh -s; exit $?"),
            input.as_bytes(),
            limit,
        )
    }

    fn copy(&self, address: &str, from: &Path, to: &str) -> Result<()> {
        let content = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
        let mode = super::image::permissions(from)?;
        // A running program cannot be overwritten, only replaced.
        let command = format!("cat >{to}.new && chmod {mode:o} {to}.new && mv -f {to}.new {to}");
        self.ssh(address, &command, &content, LIMIT)?.text()?;
        Ok(())
    }

    fn ssh(&self, address: &str, command: &str, input: &[u8], limit: Duration) -> Result<Output> {
        let outer = (limit + Duration::from_secs(30)).as_secs().to_string();
        let mut child = Command::new("timeout")
            .args(["-s", "KILL", &outer, "ssh", "-T"])
            .args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=15"])
            .args(["-o", "ControlMaster=auto", "-o", "ControlPersist=30"])
            .arg("-o")
            .arg(format!("ControlPath={}/%C", self.control.display()))
            .args(&self.options)
            .args([address, command])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("running ssh")?;
        let mut stdin = child.stdin.take().context("no pipe to ssh")?;
        let output = std::thread::scope(|scope| {
            // A command that ends early closes the pipe; its status gives the reason.
            scope.spawn(move || {
                let _ = stdin.write_all(input);
            });
            child.wait_with_output()
        })?;
        let status = output.status.code().unwrap_or(137);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let output = Output {
            status,
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        };
        if status == SSH_FAILED {
            bail!("ssh to {address} failed: {}", output.last_words());
        }
        Ok(output)
    }
}

impl Host for SshHost {
    fn describe(&self) -> String {
        format!("{} over ssh, {} guests", self.dom0, self.guests.len())
    }

    fn unfit(&mut self) -> Option<String> {
        let mut missing = Vec::new();
        for (test, reason) in NEEDED {
            match self.script(&self.dom0, test, LIMIT) {
                Ok(output) if output.success() => {}
                Ok(_) => missing.push((*reason).to_owned()),
                Err(error) => missing.push(format!("{error:#}")),
            }
        }
        (!missing.is_empty()).then(|| format!("{}: {}", self.dom0, missing.join("; ")))
    }

    fn xsm(&self) -> Option<Xsm> {
        self.xsm
    }

    fn exec(&mut self, place: Place<'_>, script: &str, limit: Duration) -> Result<Output> {
        let address = self.address(place)?;
        self.script(&address, script, limit)
    }

    fn guest_create(&mut self, spec: &GuestSpec) -> Result<()> {
        if spec.address.is_some() {
            let reason = "needs a network of its own between dom0 and guests".to_owned();
            return Err(Lacking(reason).into());
        }
        if spec.command_line.is_empty()
            && let Some(guest) = self.guests.iter_mut().find(|guest| guest.name.is_none())
        {
            guest.name = Some(spec.name.clone());
            return Ok(());
        }
        let reason = format!("needs one more guest ({}) than --guest names", spec.name);
        Err(Lacking(reason).into())
    }

    fn guest_destroy(&mut self, name: &str) -> Result<()> {
        for guest in &mut self.guests {
            if guest.name.as_deref() == Some(name) {
                guest.name = None;
            }
        }
        Err(Lacking("destroys a guest, which is not done to a host's own".to_owned()).into())
    }

    fn guest_domid(&mut self, name: &str) -> Result<u16> {
        let output = self.exec(Place::Guest(name), "xenstore-read domid", LIMIT)?;
        output
            .text()?
            .parse()
            .with_context(|| format!("the domain id of {name}"))
    }

    fn save_logs(&mut self) -> Option<String> {
        None
    }
}

impl Drop for SshHost {
    fn drop(&mut self) {
        for address in self.addresses() {
            let _ = Command::new("ssh")
                .arg("-o")
                .arg(format!("ControlPath={}/%C", self.control.display()))
                .args(["-O", "exit", &address])
                .stderr(Stdio::null())
                .status();
        }
        let _ = fs::remove_dir_all(&self.control);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::guest::Kind;
    use crate::lab::job::Job;
    use crate::lab::suite::{self, Context, Options, Totals};
    use crate::sshd::Sshd;

    #[test]
    #[ignore = "needs sshd (package openssh-server): run by cargo xtask test"]
    fn a_machine_without_xen_is_reached_and_found_unfit() {
        let sshd = Sshd::start().expect("sshd, from the package openssh-server");
        let address = "127.0.0.1".to_owned();
        let guests = [address.clone()];
        let mut host = SshHost::connect_with(&address, &guests, &[], sshd.arguments()).unwrap();
        let limit = Duration::from_secs(60);
        let output = host
            .exec(Place::Dom0, "echo out; echo err >&2; exit 3", limit)
            .unwrap();
        assert_eq!((output.status, output.stdout.as_str()), (3, "out\n"));
        assert!(output.stderr.contains("err"));
        let output = host
            .exec(Place::Dom0, "sleep 100", Duration::from_secs(1))
            .unwrap();
        assert_eq!(output.status, 137, "killed at its limit");

        assert!(
            host.exec(Place::Guest("one"), "true", limit).is_err(),
            "not named yet"
        );
        host.guest_create(&GuestSpec::new("one", Kind::Pv)).unwrap();
        let job = Job::start(
            &mut host,
            Place::Guest("one"),
            "ssh-test",
            "echo hello; exit 4",
        );
        let output = job.unwrap().wait(&mut host, limit).unwrap();
        assert_eq!((output.status, output.stdout.as_str()), (4, "hello\n"));
        let error = host
            .guest_create(&GuestSpec::new("two", Kind::Pv))
            .unwrap_err();
        assert!(error.downcast_ref::<Lacking>().is_some());

        if Path::new("/proc/xen/capabilities").exists() {
            return; // what follows is about a machine without Xen
        }
        let reason = host.unfit().expect("this is no Xen host");
        assert!(
            reason.contains("dom0") && reason.contains("/dev/xen"),
            "{reason}"
        );
        let options = Options {
            filter: None,
            json: false,
        };
        let mut totals = Totals::default();
        suite::run(&mut Context::new(Box::new(host)), &options, &mut totals);
        assert_eq!((totals.passed, totals.failed), (0, 0));
        assert!(totals.skipped > 0);
        assert!(
            totals.finish(&options).is_err(),
            "nothing ran: that is no success"
        );
    }
}

//! `cargo xtask lab`: a real Xen with a dom0 and guests, on a machine that has neither Xen nor
//! virtualisation. `docs/lab.md` describes it.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::fcntl::{Flock, FlockArg};

use crate::apt;

mod agent;
pub(crate) mod bench;
mod cpio;
mod demo;
mod flags;
mod guest;
mod host;
mod hypervisor;
mod image;
mod job;
mod kernel;
mod libraries;
mod modules;
mod network;
mod packaged;
mod packages;
mod project;
mod qemu;
mod qemu_host;
mod run;
mod ssh_host;
mod suite;
mod wire;

use flags::LabCmd;
use host::{Host, Place, Xenstored};
use hypervisor::Xsm;
use image::Images;
pub(crate) use packages::INSTALLED;
use project::Program;
pub(crate) use project::{
    BUILD_TESTED, RELEASE, TESTED_FOLDER, build_release, build_tested, target,
};
use qemu::{Boot, Qemu};
use qemu_host::QemuHost;
use ssh_host::SshHost;
#[cfg(test)]
pub(crate) use suite::cases;
use suite::{Context, Options, Totals};

/// Runs `cargo xtask lab ARGS`.
pub(crate) fn main(args: Vec<OsString>) -> Result<()> {
    let flags = flags::Lab::from_vec(args).unwrap_or_else(|error| crate::help_or_misuse(error));
    let place = Where {
        host: flags.host,
        guests: flags.guest,
        xenstored: flags.xenstored,
        xsm: flags.xsm.as_deref().map(str::parse).transpose()?,
        packages: flags.packages,
        memory_mib: flags.memory.unwrap_or(qemu::DEFAULT_MEMORY),
        runs: project::runs(),
    };
    if place.host.is_some() && place.xsm.is_some() {
        bail!(
            "--xsm is for the lab in QEMU\n  a host has the security module that it has booted with"
        );
    }
    match flags.subcommand {
        LabCmd::Build(_) => {
            println!("{}", place.images()?.base.display());
            Ok(())
        }
        LabCmd::Shell(shell) => {
            let (images, project) = (place.images()?, place.archives(shell.bare, &shell.add)?);
            Qemu::interactive(&place.boot(&images, &project, place.xenstored()?)?)
        }
        LabCmd::Run(run) => {
            let (images, project) = (place.images()?, place.archives(run.bare, &run.add)?);
            let mut machine = Qemu::boot(&place.boot(&images, &project, place.xenstored()?)?)?;
            let limit = Duration::from_secs(run.timeout.unwrap_or(600));
            run::script(&mut machine, &run.script, limit)
        }
        LabCmd::Demo(_) => {
            let programs = place.programs(false, &[])?;
            let mut host = match &place.host {
                Some(host) => place.connect(host, &programs)?,
                None => place.qemu(
                    &place.images()?,
                    &project::Archives::of(&programs)?,
                    place.xenstored()?,
                )?,
            };
            demo::run(host.as_mut())
        }
        LabCmd::Test(test) => place.test(test),
    }
}

/// The machine to use, from the flags.
struct Where {
    host: Option<String>,
    guests: Vec<String>,
    xenstored: Option<String>,
    /// The hypervisor's security module, where it was asked for.
    xsm: Option<Xsm>,
    /// The folder of the packages with the programs, in place of the tests' own builds.
    packages: Option<PathBuf>,
    memory_mib: u32,
    /// The folder for the logs of QEMU's runs.
    runs: PathBuf,
}

impl Where {
    fn xsm(&self) -> Xsm {
        self.xsm.unwrap_or_default()
    }

    /// The images, built if need be.
    fn images(&self) -> Result<Images> {
        images_with(self.xsm())
    }

    /// The xenstored of one boot: with SILO that of XCP-ng, unless another was asked for.
    fn xenstored(&self) -> Result<Xenstored> {
        match (self.xenstored.as_deref(), self.xsm()) {
            (Some(name), _) => name.parse(),
            (None, Xsm::Silo) => Ok(Xenstored::Oxen),
            (None, Xsm::None) => Ok(Xenstored::C),
        }
    }

    fn boot<'a>(
        &'a self,
        images: &'a Images,
        project: &'a project::Archives,
        xenstored: Xenstored,
    ) -> Result<Boot<'a>> {
        if self.host.is_some() {
            bail!("--host goes with `demo` and `test` only\n  use ssh itself for a shell there");
        }
        Ok(Boot {
            images,
            project,
            xenstored,
            memory_mib: self.memory_mib,
            processors: qemu::DEFAULT_PROCESSORS,
            xsm: self.xsm(),
            runs: &self.runs,
        })
    }

    fn qemu(
        &self,
        images: &Images,
        project: &project::Archives,
        xenstored: Xenstored,
    ) -> Result<Box<dyn Host>> {
        let machine = Qemu::boot(&self.boot(images, project, xenstored)?)?;
        let mut host = QemuHost::new(machine, xenstored, self.xsm());
        // The cases rely on it.
        let running = host.exec(Place::Dom0, hypervisor::RUNNING, host::LIMIT)?;
        let running: Xsm = running.text()?.parse()?;
        ensure!(
            running == self.xsm(),
            "the hypervisor runs with {running:?}, not {:?}",
            self.xsm()
        );
        Ok(Box::new(host))
    }

    fn connect(&self, host: &str, programs: &[Program]) -> Result<Box<dyn Host>> {
        Ok(Box::new(SshHost::connect(host, &self.guests, programs)?))
    }

    fn test(&self, test: flags::Test) -> Result<()> {
        let options = Options {
            filter: test.filter,
            json: test.json,
        };
        if test.list {
            suite::list(&options);
            return Ok(());
        }
        let mut programs = self.programs(test.bare, &test.add)?;
        if !test.bare {
            apt::ensure(INSTALLED)?; // the C peer needs libxen-dev
            programs.extend(project::build_for_tests()?);
        }
        let mut totals = Totals::default();
        if let Some(host) = &self.host {
            let host = self.connect(host, &programs)?;
            suite::run(&mut Context::new(host), &options, &mut totals);
            return totals.finish(&options);
        }
        let flavours = match self.xenstored.as_deref() {
            None if self.xsm() == Xsm::Silo => vec![Xenstored::Oxen],
            None | Some("both") => vec![Xenstored::C, Xenstored::Oxen],
            Some(one) => vec![one.parse()?],
        };
        let (images, project) = (self.images()?, project::Archives::of(&programs)?);
        for flavour in flavours {
            let host = self.qemu(&images, &project, flavour)?;
            suite::run(&mut Context::new(host), &options, &mut totals);
        }
        totals.finish(&options)
    }

    /// The archives of [`programs`](Self::programs).
    fn archives(&self, bare: bool, add: &[PathBuf]) -> Result<project::Archives> {
        project::Archives::of(&self.programs(bare, add)?)
    }

    /// The project's programs, unless left out, and the files (or folders of files) to add.
    fn programs(&self, bare: bool, add: &[PathBuf]) -> Result<Vec<Program>> {
        let mut programs = match (bare, &self.packages) {
            (true, None) => project::build_agent()?,
            (false, None) => build_tested()?,
            (false, Some(folder)) => packaged::replace(build_tested()?, folder)?,
            (true, Some(_)) => {
                bail!("--bare leaves out what --packages brings\n  give one of them")
            }
        };
        for path in add {
            if path.is_dir() {
                for entry in std::fs::read_dir(path)? {
                    let file = entry?.path();
                    if file.is_file() {
                        programs.push(Program::of(file)?);
                    }
                }
            } else {
                programs.push(Program::of(path.clone())?);
            }
        }
        Ok(programs)
    }
}

/// The images, built if need be, by one run at a time.
fn images() -> Result<Images> {
    images_with(Xsm::None)
}

/// The same with a hypervisor that runs this security module.
fn images_with(xsm: Xsm) -> Result<Images> {
    apt::ensure(INSTALLED)?;
    let cache = packages::cache_folder()?;
    let _one_at_a_time = lock(&cache)?;
    let packages = packages::fetch(&cache)?;
    let mut images = image::build(&cache, &packages)?;
    if xsm == Xsm::Silo {
        images.xen = hypervisor::with_silo(&cache, &packages)?;
    }
    Ok(images)
}

/// Waits until no other run fills the cache.
fn lock(cache: &Path) -> Result<Flock<File>> {
    let path = cache.join("lock");
    let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    let locked = Flock::lock(file, FlockArg::LockExclusive);
    locked.map_err(|(_, error)| anyhow!("cannot lock {}: {error}", path.display()))
}

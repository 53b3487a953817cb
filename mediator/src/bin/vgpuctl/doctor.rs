//! `vgpuctl doctor`: what this machine has, what is missing, what to do.

mod files;

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::Serialize;
use vchan::xen::store::Store;
use vgpu_mediator::broker::probe;
use vgpu_mediator::config::WorkerSettings;
use vgpu_mediator::control::Status;
use vgpu_mediator::executor::ExecutorChoice;
use vgpu_mediator::failure::Failure;
use vgpu_mediator::print::print;
use vgpu_mediator::worker::confinement::{Confine, Protection, Settings, trial};

use crate::{Exit, fetch, print_json};

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Good,
    Bad,
    /// Neither: it is not needed here.
    Absent,
}

/// One line of the diagnosis.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    found: String,
    /// The remedy; empty where all is well.
    advice: String,
}

impl Check {
    fn new(name: &'static str, verdict: Verdict, found: impl Into<String>) -> Self {
        Self {
            name,
            verdict,
            found: found.into(),
            advice: String::new(),
        }
    }

    fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, Verdict::Good, found)
    }

    fn bad(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            advice: advice.into(),
            ..Self::new(name, Verdict::Bad, found)
        }
    }

    fn line(&self) -> String {
        let Self { name, found, .. } = self;
        match self.verdict {
            Verdict::Good => format!("✔ {name}: {found}\n"),
            Verdict::Absent => format!("– {name}: {found}\n"),
            Verdict::Bad => format!("✘ {name}: {found}\n    → {}\n", self.advice),
        }
    }
}

pub(crate) fn run(control: &Path, json: bool) -> Result<ExitCode, Exit> {
    let mut checks = Vec::new();
    let mut show = |check: Check| {
        if !json {
            print(&check.line())?;
        }
        checks.push(check);
        Ok::<_, std::io::Error>(())
    };
    let (check, on_xen) = xen();
    show(check)?;
    if on_xen {
        show(dom0_type())?;
        for device in ["/dev/xen/evtchn", "/dev/xen/gntdev"] {
            show(xen_device(device))?;
        }
        show(xenstore())?;
    }
    let status = fetch(control);
    match &status {
        Ok(status) if status.executor.kind == "relay" => {
            let found = format!("not needed here: {}", status.executor.reason);
            show(Check::new("CUDA", Verdict::Absent, found))?;
        }
        _ => {
            let (check, driver) = nvidia_driver();
            show(check)?;
            show(cuda(driver))?;
        }
    }
    show(workers(status.as_ref().ok()))?;
    if let Ok(status) = &status {
        for check in files::checks(status) {
            show(check)?;
        }
    }
    show(mediator(status))?;
    let bad = checks.iter().any(|check| check.verdict == Verdict::Bad);
    if json {
        print_json(&serde_json::json!({ "ok": !bad, "checks": checks }))?;
    }
    Ok(ExitCode::from(u8::from(bad)))
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn xen() -> (Check, bool) {
    const NAME: &str = "Xen";
    if read("/sys/hypervisor/type").as_deref() != Some("xen") {
        let found = "this machine is no Xen domain; local: and file: work here, xen: does not";
        return (Check::new(NAME, Verdict::Absent, found), false);
    }
    let version = |part: &str| read(&format!("/sys/hypervisor/version/{part}"));
    let number = match (version("major"), version("minor"), version("extra")) {
        (Some(major), Some(minor), extra) => {
            format!(" {major}.{minor}{}", extra.unwrap_or_default())
        }
        _ => String::new(),
    };
    let dom0 = read("/proc/xen/capabilities").is_some_and(|text| text.contains("control_d"))
        || read("/sys/hypervisor/uuid")
            .is_some_and(|uuid| uuid.chars().all(|c| c == '0' || c == '-'));
    if dom0 {
        return (Check::good(NAME, format!("dom0 of Xen{number}")), true);
    }
    let check = Check::bad(
        NAME,
        format!("a guest of Xen{number}, not dom0"),
        "run vgpu-mediatord in dom0; guests run vgpu (and vgpu doctor), but for one with the GPU: \
         docs/relay.md",
    );
    (check, true)
}

fn dom0_type() -> Check {
    const NAME: &str = "domain type";
    match read("/sys/hypervisor/guest_type").as_deref() {
        Some("PV") => Check::bad(
            NAME,
            "PV, where NVIDIA's driver cannot allocate memory; the CPU executor works",
            "for CUDA boot Xen with `dom0=pvh iommu=pt` on its command line",
        ),
        Some(other) => Check::good(NAME, format!("{other}, where CUDA can work")),
        None => Check::new(NAME, Verdict::Absent, "the kernel does not tell"),
    }
}

fn xen_device(path: &'static str) -> Check {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Check::good(path, "can be opened"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Check::bad(path, "is missing", "modprobe xen-evtchn xen-gntdev")
        }
        Err(error) => Check::bad(path, error.to_string(), "run as root"),
    }
}

fn xenstore() -> Check {
    const NAME: &str = "xenstore";
    let deadline = Instant::now() + Duration::from_secs(3);
    match Store::open(deadline).and_then(|store| store.list("/local/domain", deadline)) {
        Ok(domains) => Check::good(NAME, format!("answers and knows {} domains", domains.len())),
        Err(error) => Check::bad(NAME, error.to_string(), error.advice()),
    }
}

fn nvidia_driver() -> (Check, bool) {
    const NAME: &str = "NVIDIA driver";
    if let Some(version) = read("/proc/driver/nvidia/version") {
        let line = version.lines().next().unwrap_or_default().to_owned();
        if Path::new("/dev/nvidiactl").exists() {
            return (Check::good(NAME, line), true);
        }
        let check = Check::bad(
            NAME,
            format!("{line}, but /dev/nvidiactl is missing"),
            "run nvidia-smi once as root, or install nvidia-modprobe",
        );
        return (check, true);
    }
    if Path::new("/dev/nvidiactl").exists() {
        // In containers, /proc may not show it.
        return (Check::good(NAME, "/dev/nvidiactl is there"), true);
    }
    let check = Check::bad(
        NAME,
        "not loaded",
        "install NVIDIA's driver and load it (modprobe nvidia); without a GPU the CPU executor \
         does the work",
    );
    (check, false)
}

fn cuda(driver: bool) -> Check {
    const NAME: &str = "CUDA";
    match probe::find(&ExecutorChoice::Cuda, None, None) {
        Ok(offer) => {
            let executor = offer.executor;
            Check::good(
                NAME,
                format!(
                    "{}, driver {}: a trial vector add was right",
                    executor.device, executor.driver
                ),
            )
        }
        Err(failure) => {
            let advice = if driver {
                "correct the cause named above; until then --executor auto takes the CPU"
            } else {
                "install NVIDIA's driver first; until then --executor auto takes the CPU"
            };
            Check::bad(NAME, failure.what, advice)
        }
    }
}

/// What protects this machine from workers that their guests have taken over: as the mediator says it, or
/// as it would be if this user started one with the usual settings.
fn workers(status: Option<&Status>) -> Check {
    const NAME: &str = "confinement of workers";
    let protections = match status {
        Some(status) => Ok(status.protections.clone()),
        None => {
            let usual = WorkerSettings::default();
            let settings = Settings {
                confine: Confine::BestEffort,
                user: usual.users().last(),
            };
            trial::run(&settings, false)
        }
    };
    let protections = match protections {
        Ok(protections) if protections.is_empty() => {
            let advice = "set worker.confine to \"required\" and start the mediator again";
            return Check::bad(NAME, "off: worker.confine is \"off\"", advice);
        }
        Ok(protections) => protections,
        Err(why) => return Check::bad(NAME, why, "this is not expected; report it"),
    };
    let (on, off): (Vec<&Protection>, Vec<&Protection>) = protections.iter().partition(|it| it.on);
    let names: Vec<String> = on.iter().map(|protection| said(protection)).collect();
    let works = names.join(", ");
    if off.is_empty() {
        return Check::good(NAME, works);
    }
    let missing: Vec<String> = off.iter().map(|protection| said(protection)).collect();
    let found = format!("without {}; with {works}", missing.join(", "));
    let advice = "run the mediator as root, on a kernel with namespaces and seccomp filters";
    Check::bad(NAME, found, advice)
}

fn said(protection: &Protection) -> String {
    let Protection { name, note, .. } = protection;
    match note.is_empty() {
        true => name.clone(),
        false => format!("{name} ({note})"),
    }
}

fn mediator(status: Result<Status, Failure>) -> Check {
    const NAME: &str = "mediator";
    match status {
        Ok(Status {
            executor,
            looks_again_s: Some(seconds),
            ..
        }) => Check::bad(
            NAME,
            format!(
                "runs, but with the {} executor in place of what it was to use: {}",
                executor.kind, executor.reason
            ),
            format!(
                "correct the cause; it looks again in {seconds} s, and new sessions then get what \
                 it finds (restarting it looks at once)"
            ),
        ),
        Ok(status) => Check::good(
            NAME,
            format!(
                "{} (pid {}) serves {} with the {} executor, {} sessions",
                status.version,
                status.pid,
                status.listen.join(", "),
                status.executor.kind,
                status.sessions.len()
            ),
        ),
        Err(failure) => Check::bad(NAME, failure.what, failure.advice),
    }
}

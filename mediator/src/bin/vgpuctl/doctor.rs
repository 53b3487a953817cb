//! `vgpuctl doctor`: what this machine has, what is missing, what to do.

mod files;
mod mode;

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use vchan::xen::store::Store;
use vgpu_cli::Failure;
use vgpu_cli::diagnosis::{Check, Verdict};
use vgpu_mediator::broker::probe_process;
use vgpu_mediator::broker::warm::cold_endpoints;
use vgpu_mediator::control::{Device, Status};
use vgpu_mediator::executor::ExecutorChoice;
use vgpu_mediator::print::print;
use vgpu_mediator::worker::confinement::{Confine, Protection, Settings, trial};
use vgpu_nvrtc::Nvrtc;
use vgpu_transport::endpoint::Endpoint;

use crate::{Exit, fetch, print_json};
use mode::Mode;

pub(crate) fn run(control: &Path, config: Option<&Path>, json: bool) -> Result<ExitCode, Exit> {
    let mut checks = Vec::new();
    let mut show = |check: Check| {
        if !json {
            print(&format!("{}\n", check.lines()))?;
        }
        checks.push(check);
        Ok::<_, std::io::Error>(())
    };
    let status = fetch(control);
    match Mode::find(config, status.as_ref().ok()) {
        Err(failure) => show(Check::bad(CONFIGURATION, failure.what, failure.advice))?,
        Ok(mode) => {
            needed(&mode, status.as_ref().ok())
                .into_iter()
                .try_for_each(&mut show)?;
        }
    }
    if let Ok(status) = &status {
        for check in files::checks(status) {
            show(check)?;
        }
    }
    if let Some(check) = status.as_ref().ok().and_then(gpu_figures) {
        show(check)?;
    }
    show(mediator(status))?;
    let bad = checks.iter().any(|check| check.verdict == Verdict::Bad);
    if json {
        print_json(&serde_json::json!({ "ok": !bad, "checks": checks }))?;
    }
    Ok(ExitCode::from(u8::from(bad)))
}

const CONFIGURATION: &str = "configuration";

/// Checks of what a mediator in this mode needs.
fn needed(mode: &Mode, status: Option<&Status>) -> Vec<Check> {
    let mut checks = vec![configuration(mode)];
    let (check, domain) = xen(mode);
    checks.push(check);
    if mode.uses_xen() && domain != Domain::None {
        let devices = match domain {
            // There the mediator grants its own pages to dom0.
            Domain::Guest => ["/dev/xen/evtchn", "/dev/xen/gntalloc"],
            Domain::Dom0 | Domain::None => ["/dev/xen/evtchn", "/dev/xen/gntdev"],
        };
        checks.extend(devices.map(xen_device));
        checks.push(xenstore());
    }
    checks.extend(gpu(mode, domain, status));
    checks.push(workers(mode, status));
    checks.push(warm_workers(mode, status));
    checks.push(compiler(mode));
    checks
}

/// Workers that are there before their sessions: whether they are, and who gets none.
fn warm_workers(mode: &Mode, status: Option<&Status>) -> Check {
    const NAME: &str = "warm workers";
    let listen: Vec<Endpoint> = mode
        .listen
        .iter()
        .filter_map(|it| it.parse().ok())
        .collect();
    let cold = cold_endpoints(&listen);
    // The running mediator's only where it is that which is looked at.
    let running = status.filter(|_| mode.config.is_none());
    let wanted = match running {
        Some(status) => status.warm.is_some(),
        None => mode.worker.warm_workers > 0,
    };
    if !wanted {
        return Check::absent(NAME, "none: worker.warm_workers is 0");
    }
    let not = match cold.is_empty() {
        true => String::new(),
        false => format!("; not for sessions over {}", cold.join(", ")),
    };
    if cold.len() == listen.len() {
        let found = format!("for no session here{not}");
        let advice = "take worker.warm_workers out of the configuration";
        return Check::remark(NAME, found, advice);
    }
    match running.and_then(|status| status.warm.as_ref()) {
        Some(warm) if warm.ready() < warm.wanted || warm.wanted == 0 => {
            let found = format!("{} of {} are ready{not}", warm.ready(), warm.wanted);
            let advice = "if it stays so, look into the mediator's log: one that fails is started again after a pause";
            Check::remark(NAME, found, advice)
        }
        Some(warm) => {
            let found = format!("{} of {} are ready{not}", warm.ready(), warm.wanted);
            Check::good(NAME, found)
        }
        None => {
            let number = mode.worker.warm_workers;
            Check::good(NAME, format!("{number} for each set of devices{not}"))
        }
    }
}

/// NVRTC, by which CUDA C++ of guests is compiled. Guests do without: they compile themselves, or load PTX.
fn compiler(mode: &Mode) -> Check {
    const NAME: &str = "compiler of CUDA C++";
    if matches!(mode.executor, ExecutorChoice::Relay(_)) {
        return Check::absent(
            NAME,
            "not needed here: the mediator behind the relay compiles",
        );
    }
    if !mode.worker.compile {
        return Check::absent(NAME, "off: worker.compile is false");
    }
    match Nvrtc::open(None) {
        Ok(nvrtc) => {
            let (version, path) = (nvrtc.version(), nvrtc.path().display());
            Check::good(NAME, format!("NVRTC {version} ({path})"))
        }
        Err(error) => {
            let note = "guests that have no NVRTC cannot load CUDA C++; to let them,";
            Check::absent(NAME, format!("{error}; {note} {}", error.advice()))
        }
    }
}

/// The configuration, and the files with secrets.
fn configuration(mode: &Mode) -> Check {
    if let Some(config) = &mode.config
        && let Err(failure) = config.check_secrets()
    {
        return Check::bad(CONFIGURATION, failure.what, failure.advice);
    }
    let (listen, executor) = (mode.listen.join(", "), &mode.executor);
    Check::good(
        CONFIGURATION,
        format!("of {}: {listen}, executor {executor}", mode.source),
    )
}

/// Checks of the GPU, its driver, and of the domain as far as they matter to it.
fn gpu(mode: &Mode, domain: Domain, status: Option<&Status>) -> Vec<Check> {
    let needed = match &mode.executor {
        ExecutorChoice::Cuda => true,
        ExecutorChoice::Auto => false,
        ExecutorChoice::Cpu => {
            let mut checks = vec![Check::absent(CUDA, "not needed here: the executor is cpu")];
            if let Ok(cpu) = probe_process::find(&ExecutorChoice::Cpu, None, None) {
                checks.extend(missing_devices(mode, status, &cpu.executor.devices));
            }
            return checks;
        }
        ExecutorChoice::Relay(endpoint) => {
            let reason = match status {
                Some(status) => status.executor.reason.clone(),
                None => format!("the executor is relay:{endpoint}"),
            };
            return vec![Check::absent(CUDA, format!("not needed here: {reason}"))];
        }
    };
    let driver = nvidia_driver();
    // "auto" takes what there is. But where there is a driver, a GPU that does not work is not what was meant.
    if !needed && driver.is_none() {
        let found = "NVIDIA's driver is not loaded: the CPU executor does the work";
        let advice = "for a GPU install the driver and load it (modprobe nvidia)";
        return vec![Check::remark(CUDA, found, advice)];
    }
    let mut checks = Vec::new();
    let has_driver = driver.is_some();
    checks.push(driver.unwrap_or_else(|| {
        let advice = "install it and load it (modprobe nvidia), or set executor to \"cpu\"";
        Check::bad("NVIDIA driver", "not loaded", advice)
    }));
    if domain != Domain::None {
        checks.push(domain_type());
    }
    let (check, devices) = cuda(has_driver);
    checks.push(check);
    checks.extend(missing_devices(mode, status, &devices));
    checks
}

/// Whether the mediator has the figures of the GPUs themselves, if its executor is one.
fn gpu_figures(status: &Status) -> Option<Check> {
    const NAME: &str = "figures of GPUs";
    if let Some(why) = &status.gpus_missing {
        let advice = "install NVIDIA's management library of the driver's version (it comes with nvidia-smi, which must \
                      work); guests do not need it";
        return Some(Check::remark(NAME, why, advice));
    }
    match status.gpus.len() {
        0 => None,
        1 => Some(Check::good(NAME, "1 GPU answers")),
        count => Some(Check::good(NAME, format!("{count} GPUs answer"))),
    }
}

/// Settings that name a device which this machine has not: as the mediator says, or by what was found here.
fn missing_devices(mode: &Mode, status: Option<&Status>, found: &[Device]) -> Option<Check> {
    const NAME: &str = "devices";
    let missing: Vec<String> = match (&mode.config, status) {
        (Some(config), _) => config.missing_devices_in_words(found),
        (None, Some(status)) => status.missing_devices.clone(),
        (None, None) => return None,
    };
    let there: Vec<String> = found.iter().map(said_of).collect();
    let there = match there.is_empty() {
        true => "there is none".to_owned(),
        false => format!("there are {}", there.join("; ")),
    };
    Some(match missing.is_empty() {
        true => Check::good(NAME, there),
        false => Check::bad(
            NAME,
            format!(
                "{}; sessions that are to have it are refused; {there}",
                missing.join("; ")
            ),
            "name devices that are there, by number or UUID, and vgpuctl reload",
        ),
    })
}

/// As in `0 NVIDIA H100 PCIe GPU-… at 0000:3b:00.0`.
fn said_of(device: &Device) -> String {
    let Device {
        index,
        uuid,
        pci,
        name,
        ..
    } = device;
    match uuid.is_empty() {
        true => format!("{index} {name}"),
        false => format!("{index} {name} {uuid} at {pci}"),
    }
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// The kind of this domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Domain {
    /// This machine does not run on Xen.
    None,
    Dom0,
    Guest,
}

impl Domain {
    fn own() -> Self {
        if read("/sys/hypervisor/type").as_deref() != Some("xen") {
            return Self::None;
        }
        let dom0 = read("/proc/xen/capabilities").is_some_and(|text| text.contains("control_d"))
            || read("/sys/hypervisor/uuid")
                .is_some_and(|uuid| uuid.chars().all(|c| c == '0' || c == '-'));
        match dom0 {
            true => Self::Dom0,
            false => Self::Guest,
        }
    }
}

fn xen(mode: &Mode) -> (Check, Domain) {
    let version = |part: &str| read(&format!("/sys/hypervisor/version/{part}"));
    let number = match (version("major"), version("minor"), version("extra")) {
        (Some(major), Some(minor), extra) => {
            format!(" {major}.{minor}{}", extra.unwrap_or_default())
        }
        _ => String::new(),
    };
    let domain = Domain::own();
    (judged(mode, domain, &number), domain)
}

/// The verdict on this domain, of a Xen of this version.
fn judged(mode: &Mode, domain: Domain, version: &str) -> Check {
    const NAME: &str = "Xen";
    match domain {
        _ if !mode.uses_xen() => Check::absent(NAME, "not needed here: nothing uses xen:"),
        Domain::Dom0 => Check::good(NAME, format!("dom0 of Xen{version}")),
        Domain::None => Check::bad(
            NAME,
            "this machine is no Xen domain, and the configuration needs xen:",
            "run vgpu-mediatord in dom0, or have it listen on local:, unix:, tcp: or file:",
        ),
        // Only dom0 can reach another guest.
        Domain::Guest if !mode.listens_on_xen() => Check::bad(
            NAME,
            format!("a guest of Xen{version}, where relay:xen: reaches nobody"),
            "run vgpu-mediatord in dom0; docs/relay.md",
        ),
        Domain::Guest => Check::remark(
            NAME,
            format!(
                "a guest of Xen{version}, where xen: serves the mediator of dom0 and no other guest"
            ),
            "right for the guest with the GPU (docs/relay.md); otherwise run vgpu-mediatord in dom0, and \
             vgpu in guests",
        ),
    }
}

fn domain_type() -> Check {
    const NAME: &str = "domain type";
    match read("/sys/hypervisor/guest_type").as_deref() {
        Some("PV") => Check::bad(
            NAME,
            "PV, where NVIDIA's driver cannot allocate memory; the CPU executor works",
            "for CUDA boot Xen with `dom0=pvh iommu=pt` on its command line",
        ),
        Some(other) => Check::good(NAME, format!("{other}, where CUDA can work")),
        None => Check::absent(NAME, "the kernel does not tell"),
    }
}

fn xen_device(path: &'static str) -> Check {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Check::good(path, "can be opened"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Check::bad(
            path,
            "is missing",
            format!(
                "modprobe xen-{}",
                path.rsplit('/').next().unwrap_or_default()
            ),
        ),
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

/// The driver, if it is loaded.
fn nvidia_driver() -> Option<Check> {
    const NAME: &str = "NVIDIA driver";
    let device = Path::new("/dev/nvidiactl").exists();
    let Some(version) = read("/proc/driver/nvidia/version") else {
        // In containers, /proc may not show it.
        return device.then(|| Check::good(NAME, "/dev/nvidiactl is there"));
    };
    let line = version.lines().next().unwrap_or_default().to_owned();
    Some(match device {
        true => Check::good(NAME, line),
        false => Check::bad(
            NAME,
            format!("{line}, but /dev/nvidiactl is missing"),
            "run nvidia-smi once as root, or install nvidia-modprobe",
        ),
    })
}

const CUDA: &str = "CUDA";

/// Whether CUDA works, and the devices that it has.
fn cuda(driver: bool) -> (Check, Vec<Device>) {
    const NAME: &str = CUDA;
    match probe_process::find(&ExecutorChoice::Cuda, None, None) {
        Ok(offer) => {
            let executor = offer.executor;
            let check = Check::good(
                NAME,
                format!(
                    "{}, driver {}: a trial kernel gave the right result",
                    executor.device, executor.driver
                ),
            );
            (check, executor.devices)
        }
        Err(failure) => {
            let advice = if driver {
                "correct the cause named above; until then --executor auto takes the CPU"
            } else {
                "install NVIDIA's driver first; until then --executor auto takes the CPU"
            };
            (Check::bad(NAME, failure.what, advice), Vec::new())
        }
    }
}

/// Protections of this machine against workers taken over by their guests: as the mediator reports
/// them, or as they would be if this user started one with these settings. Where one is missing, only
/// "required" does not serve.
fn workers(mode: &Mode, status: Option<&Status>) -> Check {
    const NAME: &str = "confinement of workers";
    let protections = match status {
        Some(status) if mode.config.is_none() => Ok(status.protections.clone()),
        _ if mode.worker.confine == Confine::Off => Ok(Vec::new()),
        _ => {
            let settings = Settings {
                confine: Confine::BestEffort,
                user: mode.worker.users().last(),
            };
            trial::run(&settings, false)
        }
    };
    let protections = match protections {
        Ok(protections) if protections.is_empty() => {
            let advice = "set worker.confine to \"required\" and start the mediator again";
            return Check::remark(NAME, "off: worker.confine is \"off\"", advice);
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
    // One that runs serves all the same: it was told to, or an ordinary user's does.
    let serves = status.is_some() && mode.config.is_none();
    match mode.worker.confine == Confine::Required && !serves {
        true => Check::bad(NAME, found, advice),
        false => Check::remark(NAME, found, advice),
    }
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
        // "auto" without a driver: that the CPU does the work is what it means.
        Ok(Status {
            executor,
            executor_choice,
            looks_again_s: Some(seconds),
            ..
        }) if executor_choice == ExecutorChoice::Auto.to_string() && nvidia_driver().is_none() => {
            Check::remark(
                NAME,
                format!(
                    "runs with the {} executor: {}",
                    executor.kind, executor.reason
                ),
                format!(
                    "nothing, if there is no GPU; else load its driver: it looks again in {seconds} s"
                ),
            )
        }
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

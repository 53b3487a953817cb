//! The mediator's figures as metrics, in the OpenMetrics text format (docs/metrics.md).
//!
//! Everything comes from what [`Status`] has, so that no figure exists twice. Labels that name a guest are bounded:
//! see [`Labels`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::unistd::{SysconfVar, sysconf};
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use vgpu_protocol::session::server::Durations;
use vgpu_protocol::session::tally::OpResult;

use super::accounts::{Force, Refusal};
use crate::control::{Gpu, Guest, Status};
use crate::usage::{Requests, Standing, Usage};

/// Guests that have a label of their own at most, of each kind: `uuid`, `tcp`, …
const MOST_LABELS: usize = 128;

/// Longest label in characters.
const MAX_LABEL: usize = 128;

/// The label of all guests beyond [`MOST_LABELS`].
const OTHERS: &str = "others";

type Labelled = [(&'static str, String); 1];
type LabelledTwice = [(&'static str, String); 2];

/// The guests that have had a label. One that has keeps it, so that somebody who makes up names can neither fill the
/// memory of who collects them nor take the others' labels away.
#[derive(Debug, Default)]
pub(super) struct Labels(BTreeMap<String, BTreeSet<String>>);

impl Labels {
    /// The label of the guest with this [`Guest::id`].
    fn of(&mut self, id: &str) -> String {
        let kind = id.split(':').next().unwrap_or_default();
        let label: String = id.chars().take(MAX_LABEL).collect();
        let labels = self.0.entry(kind.to_owned()).or_default();
        if !labels.contains(&label) && labels.len() >= MOST_LABELS {
            return OTHERS.to_owned();
        }
        labels.insert(label.clone());
        label
    }
}

/// Figures that [`Status`] does not have.
#[derive(Debug)]
pub(super) struct Figures<'a> {
    pub(super) status: &'a Status,
    /// By the [`Guest::id`].
    pub(super) requests: &'a BTreeMap<String, Requests>,
    pub(super) durations: Durations,
    pub(super) refusals: &'a BTreeMap<Refusal, u64>,
    /// Sessions that have ended as they should, and by a fault.
    pub(super) ends: [u64; 2],
    pub(super) kills: &'a BTreeMap<Force, u64>,
    /// Reloads that have worked, and that have not.
    pub(super) reloads: [u64; 2],
    pub(super) dropped_log_lines: u64,
    /// Whether xenstored answers; none where `xen:` is not listened on.
    pub(super) xenstore: Option<bool>,
}

/// A guest's figures, of all accounts that share its label.
#[derive(Debug, Default)]
struct OfGuest {
    /// Names for people.
    names: BTreeSet<String>,
    sessions: usize,
    usage: Usage,
    requests: Requests,
    standing: Standing,
    contended_ns: u64,
    weight: Option<u32>,
}

/// All metrics as a text.
pub(super) fn text(figures: &Figures<'_>, labels: &mut Labels) -> String {
    let mut guests: BTreeMap<String, OfGuest> = BTreeMap::new();
    for guest in &figures.status.guests {
        guests.entry(labels.of(&guest.id)).or_default().add(guest);
    }
    for (id, requests) in figures.requests {
        let guest = guests.entry(labels.of(id)).or_default();
        guest.requests.add(requests);
    }
    let mut registry = Registry::default();
    of_mediator(&mut registry, figures);
    of_gpus(&mut registry, &figures.status.gpus);
    of_guests(&mut registry, &guests);
    registry.register(
        "vgpu_request_seconds",
        "Time from the arrival of a request to its answer, where it has one",
        Answers(figures.durations),
    );
    of_process(&mut registry, figures.status.uptime_s);
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => text,
        Err(error) => {
            // A String takes everything.
            log::error!("metrics cannot be written: {error}");
            "# EOF\n".to_owned()
        }
    }
}

impl OfGuest {
    fn add(&mut self, guest: &Guest) {
        // Those that share the last label would make one name of many.
        if self.names.len() < 2 {
            self.names.insert(guest.guest.clone());
        }
        self.sessions += guest.sessions;
        self.usage.add(&guest.usage);
        self.standing.add(&guest.standing);
        self.contended_ns = self.contended_ns.saturating_add(guest.contended_ns);
        self.weight = self.weight.max(guest.weight);
    }
}

fn of_mediator(registry: &mut Registry, figures: &Figures<'_>) {
    let Figures {
        status,
        requests: _,
        durations: _,
        refusals,
        ends,
        kills,
        reloads,
        dropped_log_lines,
        xenstore,
    } = figures;
    let info = Family::<[(&'static str, String); 4], Gauge>::default();
    info.get_or_create(&[
        ("version", status.version.clone()),
        ("executor", status.executor.kind.clone()),
        ("device", status.executor.device.clone()),
        ("driver", status.executor.driver.clone()),
    ])
    .set(1);
    registry.register("vgpu_mediator_info", "The mediator, always 1", info);

    let states = Family::<Labelled, Gauge>::default();
    for state in ["offered", "connecting", "serving", "ending"] {
        let count = status
            .sessions
            .iter()
            .filter(|it| it.state == state)
            .count();
        states
            .get_or_create(&[("state", state.to_owned())])
            .set(signed(count as u64));
    }
    registry.register("vgpu_sessions", "Sessions that run", states);
    if let Some(warm) = &status.warm {
        let states = Family::<Labelled, Gauge>::default();
        for state in ["starting", "ready", "ending"] {
            let of_it = warm.workers.iter().filter(|it| it.state == state);
            let state = [("state", state.to_owned())];
            let count = signed(of_it.count() as u64);
            states.get_or_create(&state).set(count);
        }
        registry.register(
            "vgpu_warm_workers",
            "Workers that are there before their sessions",
            states,
        );
        let served = Family::<Labelled, Counter>::default();
        for (start, count) in [("warm", warm.sessions), ("cold", warm.cold_sessions)] {
            let start = [("start", start.to_owned())];
            served.get_or_create(&start).inc_by(count);
        }
        registry.register(
            "vgpu_session_starts",
            "Sessions over sockets, by whether a warm worker was there for them",
            served,
        );
    }
    let most = gauge(status.limits.max_sessions.into());
    registry.register("vgpu_sessions_max", "Sessions that may run at once", most);
    registry.register(
        "vgpu_sessions_started",
        "Sessions that have begun",
        counter(status.sessions_started),
    );
    let refused = by_name("reason", Refusal::ALL, |it| {
        (it.name(), refusals.get(it).copied())
    });
    registry.register("vgpu_refused", "Guests that were turned away", refused);
    let ended = Family::<Labelled, Counter>::default();
    let killed = kills
        .values()
        .fold(0, |all: u64, some| all.saturating_add(*some));
    for (reason, count) in [("ended", ends[0]), ("fault", ends[1]), ("killed", killed)] {
        ended
            .get_or_create(&[("reason", reason.to_owned())])
            .inc_by(count);
    }
    registry.register("vgpu_session_ends", "Sessions that have ended", ended);
    let killed = by_name("reason", Force::ALL, |it| {
        (it.name(), kills.get(it).copied())
    });
    registry.register(
        "vgpu_worker_kills",
        "Sessions that were ended by force",
        killed,
    );
    let reloaded = Family::<Labelled, Counter>::default();
    for (result, count) in [("ok", reloads[0]), ("failed", reloads[1])] {
        reloaded
            .get_or_create(&[("result", result.to_owned())])
            .inc_by(count);
    }
    registry.register("vgpu_reloads", "Readings of the configuration", reloaded);
    registry.register(
        "vgpu_log_lines_dropped",
        "Lines that a limit suppressed or nobody read",
        counter(*dropped_log_lines),
    );
    if let Some(up) = xenstore {
        let up = gauge(u64::from(*up));
        registry.register("vgpu_xenstore_up", "Whether xenstored answers", up);
    }
    registry.register(
        "vgpu_device_memory_total_bytes",
        "The device's memory",
        gauge(status.executor.total_memory),
    );
}

/// A metric of GPUs: its name, the help for it, and a GPU's value, where it gives one.
type OfGpu = (&'static str, &'static str, fn(&Gpu) -> Option<f64>);

const OF_GPUS: [OfGpu; 6] = [
    (
        "vgpu_gpu_memory_used_bytes",
        "Memory of a GPU in use, whoever uses it",
        |gpu| gpu.memory_used.map(|bytes| bytes as f64),
    ),
    ("vgpu_gpu_memory_total_bytes", "Memory of a GPU", |gpu| {
        gpu.total_memory.map(|bytes| bytes as f64)
    }),
    (
        "vgpu_gpu_busy_ratio",
        "Part of the last moment in which a kernel ran, from 0 to 1",
        |gpu| gpu.busy_percent.map(|part| f64::from(part) / 100.0),
    ),
    (
        "vgpu_gpu_temperature_celsius",
        "Temperature of a GPU",
        |gpu| gpu.temperature_c.map(f64::from),
    ),
    ("vgpu_gpu_power_watts", "Power that a GPU draws", |gpu| {
        gpu.power_mw.map(|power| f64::from(power) / 1e3)
    }),
    (
        "vgpu_gpu_power_limit_watts",
        "Power that a GPU may draw",
        |gpu| gpu.power_limit_mw.map(|power| f64::from(power) / 1e3),
    ),
];

/// Figures that the GPUs report. A figure that no GPU reports is left out.
fn of_gpus(registry: &mut Registry, gpus: &[Gpu]) {
    let of = |gpu: &Gpu| [("gpu", gpu.index.to_string()), ("uuid", gpu.uuid.clone())];
    let info = Family::<[(&'static str, String); 3], Gauge>::default();
    for gpu in gpus {
        let [index, uuid] = of(gpu);
        let name = ("name", gpu.name.clone());
        info.get_or_create(&[index, uuid, name]).set(1);
    }
    if !gpus.is_empty() {
        registry.register("vgpu_gpu_info", "A GPU of this machine, always 1", info);
    }
    for (name, help, value) in OF_GPUS {
        let family = Family::<LabelledTwice, Gauge<f64, AtomicU64>>::default();
        let mut some = false;
        for gpu in gpus {
            if let Some(value) = value(gpu) {
                family.get_or_create(&of(gpu)).set(value);
                some = true;
            }
        }
        if some {
            registry.register(name, help, family);
        }
    }
    let errors = Family::<[(&'static str, String); 3], Counter>::default();
    let mut some = false;
    for gpu in gpus {
        let kinds = [
            ("corrected", gpu.ecc_corrected),
            ("uncorrected", gpu.ecc_uncorrected),
        ];
        for (kind, count) in kinds {
            let [index, uuid] = of(gpu);
            if let Some(count) = count {
                let kind = ("kind", kind.to_owned());
                errors.get_or_create(&[index, uuid, kind]).inc_by(count);
                some = true;
            }
        }
    }
    if some {
        registry.register(
            "vgpu_gpu_ecc_errors",
            "Errors in a GPU's memories since its driver was loaded",
            errors,
        );
    }
}

fn of_guests(registry: &mut Registry, guests: &BTreeMap<String, OfGuest>) {
    let info = Family::<LabelledTwice, Gauge>::default();
    let sessions = Family::<Labelled, Gauge>::default();
    let requests = Family::<[(&'static str, String); 3], Counter>::default();
    let bytes = Family::<LabelledTwice, Counter>::default();
    let device = Family::<Labelled, Counter<f64, AtomicU64>>::default();
    let contended = Family::<Labelled, Counter<f64, AtomicU64>>::default();
    let kernels_killed = Family::<Labelled, Counter>::default();
    let memory = Family::<Labelled, Gauge>::default();
    let memory_limit = Family::<Labelled, Gauge>::default();
    let queue = Family::<Labelled, Gauge>::default();
    let weight = Family::<Labelled, Gauge>::default();
    for (label, guest) in guests {
        let of = || [("guest", label.clone())];
        let and = |name, value: &str| [("guest", label.clone()), (name, value.to_owned())];
        let names: Vec<&str> = guest.names.iter().map(String::as_str).collect();
        let name = match names[..] {
            [one] if label != OTHERS => one,
            _ => label,
        };
        let (usage, standing) = (&guest.usage, &guest.standing);
        info.get_or_create(&and("name", name)).set(1);
        sessions
            .get_or_create(&of())
            .set(signed(guest.sessions as u64));
        for (op, counts) in guest.requests.iter() {
            // Most operations have never failed: a zero for each would be most of the text.
            let some = OpResult::ALL.into_iter().zip(counts);
            for (result, count) in some.filter(|(_, count)| *count > 0) {
                let [guest, op] = and("op", &op.name());
                let result = ("result", result.name().to_owned());
                requests.get_or_create(&[guest, op, result]).inc_by(count);
            }
        }
        bytes
            .get_or_create(&and("direction", "in"))
            .inc_by(usage.bytes_in);
        bytes
            .get_or_create(&and("direction", "out"))
            .inc_by(usage.bytes_out);
        device.get_or_create(&of()).inc_by(seconds(usage.device_ns));
        contended
            .get_or_create(&of())
            .inc_by(seconds(guest.contended_ns));
        kernels_killed
            .get_or_create(&of())
            .inc_by(usage.kernels_killed);
        memory.get_or_create(&of()).set(signed(standing.memory));
        memory_limit
            .get_or_create(&of())
            .set(signed(standing.memory_limit));
        queue.get_or_create(&of()).set(signed(standing.queue));
        if let Some(value) = guest.weight {
            weight.get_or_create(&of()).set(value.into());
        }
    }
    registry.register(
        "vgpu_guest_info",
        "A guest's name for people, always 1",
        info,
    );
    registry.register("vgpu_guest_sessions", "Sessions that run", sessions);
    registry.register("vgpu_requests", "Requests that are over", requests);
    registry.register("vgpu_transferred_bytes", "Bytes from and to guests", bytes);
    registry.register(
        "vgpu_device_seconds",
        "Time for which the device has worked, as executors measure it",
        device,
    );
    registry.register(
        "vgpu_contended_seconds",
        "Time for which a guest has had the device while others wanted it, by the mediator's clock",
        contended,
    );
    registry.register(
        "vgpu_kernels_killed",
        "Kernels that were ended at their deadline",
        kernels_killed,
    );
    registry.register("vgpu_device_memory_bytes", "Device memory in use", memory);
    registry.register(
        "vgpu_device_memory_limit_bytes",
        "Device memory that there is for running sessions",
        memory_limit,
    );
    registry.register("vgpu_queue", "Requests and device work not done yet", queue);
    registry.register(
        "vgpu_weight",
        "Part of the device's time beside those of others",
        weight,
    );
}

/// A histogram that was made elsewhere.
#[derive(Debug)]
struct Answers(Durations);

impl EncodeMetric for Answers {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let limits = Durations::LIMITS.iter().map(Duration::as_secs_f64);
        let limits = limits.chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = limits.zip(self.0.within).collect();
        let count = buckets
            .iter()
            .fold(0, |all: u64, (_, some)| all.saturating_add(*some));
        let sum = self.0.sum_us as f64 / 1e6;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

/// The figures of a process that Prometheus's own libraries give, by the same names. A figure that the system does
/// not give is left out.
fn of_process(registry: &mut Registry, uptime_s: u64) {
    if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
        let time = usage.user_time() + usage.system_time();
        let counter = Counter::<f64, AtomicU64>::default();
        counter.inc_by(time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6);
        registry.register(
            "process_cpu_seconds",
            "Processor time of the broker",
            counter,
        );
    }
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let mut pages = statm.split(' ').map(str::parse::<u64>);
    let size = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    let size = size.and_then(|size| u64::try_from(size).ok());
    if let (Some(Ok(all)), Some(Ok(resident)), Some(size)) = (pages.next(), pages.next(), size) {
        let (all, resident) = (gauge(all * size), gauge(resident * size));
        let help = "Virtual memory of the broker";
        registry.register("process_virtual_memory_bytes", help, all);
        let help = "Resident memory of the broker";
        registry.register("process_resident_memory_bytes", help, resident);
    }
    if let Ok(entries) = fs::read_dir("/proc/self/fd") {
        // One of them is the look itself.
        let open = gauge((entries.count() as u64).saturating_sub(1));
        registry.register("process_open_fds", "Open descriptors of the broker", open);
    }
    if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let help = "Descriptors that the broker may open";
        registry.register("process_max_fds", help, gauge(soft));
    }
    if let Ok(now) = SystemTime::now().duration_since(UNIX_EPOCH) {
        let start = now.saturating_sub(Duration::from_secs(uptime_s)).as_secs();
        let help = "When the mediator began, in seconds since 1970";
        registry.register("process_start_time_seconds", help, gauge(start));
    }
}

fn by_name<T, const N: usize>(
    label: &'static str,
    all: [T; N],
    of: impl Fn(&T) -> (&'static str, Option<u64>),
) -> Family<Labelled, Counter> {
    let family = Family::<Labelled, Counter>::default();
    for one in &all {
        let (name, count) = of(one);
        family
            .get_or_create(&[(label, name.to_owned())])
            .inc_by(count.unwrap_or(0));
    }
    family
}

fn gauge(value: u64) -> Gauge {
    let gauge = Gauge::default();
    gauge.set(signed(value));
    gauge
}

fn counter(value: u64) -> Counter {
    let counter = Counter::default();
    counter.inc_by(value);
    counter
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

#[cfg(test)]
#[path = "../../tests/support/openmetrics.rs"]
mod openmetrics;

#[cfg(test)]
mod tests {
    use vgpu_protocol::session::tally::Counted;

    use super::openmetrics::parse;
    use super::*;
    use vgpu_protocol::op::Op;

    use crate::control::{Answer, Executor, Limits, MAX_RESPONSE, Warm, WarmWorker};

    fn guest(id: &str, name: &str) -> Guest {
        let usage = Usage {
            device_ns: 1_500_000_000,
            ..Usage::default()
        };
        Guest {
            guest: name.to_owned(),
            id: id.to_owned(),
            sessions: 1,
            sessions_started: 1,
            refused: 0,
            sessions_killed: 0,
            weight: Some(3),
            share_permille: 0,
            turns: 0,
            contended_ns: 0,
            devices: None,
            standing: Standing::default(),
            usage,
        }
    }

    fn read(guests: Vec<Guest>, labels: &mut Labels) -> BTreeMap<String, f64> {
        read_with(Vec::new(), guests, &BTreeMap::new(), labels)
    }

    fn read_with(
        gpus: Vec<Gpu>,
        guests: Vec<Guest>,
        requests: &BTreeMap<String, Requests>,
        labels: &mut Labels,
    ) -> BTreeMap<String, f64> {
        parse(&written(gpus, guests, requests, labels))
    }

    fn written(
        gpus: Vec<Gpu>,
        guests: Vec<Guest>,
        requests: &BTreeMap<String, Requests>,
        labels: &mut Labels,
    ) -> String {
        let status = Status {
            version: "0.1.0".into(),
            pid: 1,
            uptime_s: 5,
            stopping: false,
            listen: Vec::new(),
            executor: Executor {
                kind: "cuda".into(),
                device: "a \"device\"\nof \\ lines".into(),
                total_memory: u64::MAX,
                driver: String::new(),
                reason: String::new(),
                devices: Vec::new(),
            },
            executor_choice: "cpu".to_owned(),
            looks_again_s: None,
            gpus,
            gpus_missing: None,
            limits: Limits {
                max_sessions: 64,
                max_sessions_per_guest: 4,
            },
            allow_all: false,
            missing_devices: Vec::new(),
            warm: Some(Warm {
                wanted: 2,
                workers: vec![WarmWorker {
                    pid: 3,
                    state: "ready".into(),
                    devices: None,
                }],
                sessions: 5,
                cold_sessions: 6,
                cold_endpoints: Vec::new(),
            }),
            sessions_started: 2,
            refused: 1,
            protections: Vec::new(),
            usage: Usage::default(),
            guests,
            sessions: Vec::new(),
        };
        let figures = Figures {
            status: &status,
            requests,
            durations: Durations {
                within: [10, 1, 0, 0, 0, 2],
                sum_us: 180_000_000,
            },
            refusals: &BTreeMap::from([(Refusal::Busy, 7)]),
            ends: [1, 2],
            kills: &BTreeMap::from([(Force::Hung, 3)]),
            reloads: [0, 1],
            dropped_log_lines: 9,
            xenstore: Some(false),
        };
        text(&figures, labels)
    }

    #[test]
    fn names_cannot_break_the_format_and_a_vm_that_was_restarted_is_one_guest() {
        let odd = "a \"b\"\\n\n{}\r\t\u{0}\u{7f} é # EOF";
        let guests = vec![
            guest("uuid:1", "guest 7 (web)"),
            guest("uuid:1", "guest 9 (web)"),
            guest(&format!("name:{odd}"), odd),
            guest(&format!("name:{}", "x".repeat(1000)), "long"),
        ];
        let of = |counts: &[(u16, Counted)]| Requests(counts.iter().copied().collect());
        // One label of two guests, as all names are that begin alike.
        let long = |end: &str| format!("name:{}{end}", "x".repeat(1000));
        let requests = BTreeMap::from([
            ("uuid:1".to_owned(), of(&[(Op::Ping.code(), [7, 2, 0])])),
            (long("a"), of(&[(Op::Launch.code(), [5, 0, 1])])),
            (
                long("b"),
                of(&[(Op::Launch.code(), [1, 0, 0]), (999, [1; 3])]),
            ),
        ]);
        let samples = read_with(Vec::new(), guests, &requests, &mut Labels::default());
        let at = |series: &str| samples[series];
        let web = "vgpu_requests_total{guest=\"uuid:1\",op=\"ping\",result=";
        assert_eq!(at(&format!("{web}\"ok\"}}")), 7.0);
        assert_eq!(at(&format!("{web}\"failed\"}}")), 2.0);
        let long = format!("name:{}", "x".repeat(123));
        let launches = format!("vgpu_requests_total{{guest=\"{long}\",op=\"launch\",result=");
        assert_eq!(at(&format!("{launches}\"ok\"}}")), 6.0);
        assert_eq!(at(&format!("{launches}\"failed_later\"}}")), 1.0);
        // What has not happened takes no place, and what is no operation has no name.
        let requests = |series: &&String| series.starts_with("vgpu_requests_total");
        assert_eq!(samples.keys().filter(requests).count(), 4);
        assert_eq!(at("vgpu_device_seconds_total{guest=\"uuid:1\"}"), 3.0);
        // Two domains have that uuid, so that neither's name is the right one.
        assert_eq!(at("vgpu_guest_info{guest=\"uuid:1\",name=\"uuid:1\"}"), 1.0);
        let escaped = odd
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n");
        assert_eq!(at(&format!("vgpu_weight{{guest=\"name:{escaped}\"}}")), 3.0);
        let long = format!("vgpu_weight{{guest=\"{long}\"}}");
        assert_eq!(at(&long), 3.0);
        assert_eq!(at("vgpu_refused_total{reason=\"busy\"}"), 7.0);
        assert_eq!(at("vgpu_refused_total{reason=\"denied\"}"), 0.0);
        assert_eq!(at("vgpu_session_ends_total{reason=\"killed\"}"), 3.0);
        assert_eq!(at("vgpu_worker_kills_total{reason=\"hung\"}"), 3.0);
        assert_eq!(at("vgpu_warm_workers{state=\"ready\"}"), 1.0);
        assert_eq!(at("vgpu_warm_workers{state=\"starting\"}"), 0.0);
        assert_eq!(at("vgpu_session_starts_total{start=\"warm\"}"), 5.0);
        assert_eq!(at("vgpu_session_starts_total{start=\"cold\"}"), 6.0);
        let within = |limit: &str| at(&format!("vgpu_request_seconds_bucket{{le=\"{limit}\"}}"));
        assert_eq!(
            [within("0.01"), within("0.1"), within("60.0")],
            [10.0, 11.0, 11.0]
        );
        assert_eq!(within("+Inf"), 13.0);
        assert_eq!(at("vgpu_request_seconds_count"), 13.0);
        assert_eq!(at("vgpu_request_seconds_sum"), 180.0);
        assert_eq!(at("vgpu_xenstore_up"), 0.0);
        assert!(at("process_resident_memory_bytes") > 0.0);
        assert!(at("process_open_fds") > 0.0);
    }

    #[test]
    fn a_gpu_has_what_it_gives_and_no_zeros_for_the_rest() {
        let whole = Gpu {
            index: 0,
            uuid: "GPU-0a".into(),
            name: "NVIDIA H200".into(),
            total_memory: Some(150 << 30),
            memory_used: Some(1 << 30),
            busy_percent: Some(83),
            temperature_c: Some(61),
            power_mw: Some(402_500),
            power_limit_mw: Some(700_000),
            ecc_corrected: Some(3),
            ecc_uncorrected: Some(0),
            age_s: 0,
        };
        let silent = Gpu {
            index: 1,
            ..Gpu::default()
        };
        let gpus = vec![whole, silent];
        let samples = read_with(gpus, Vec::new(), &BTreeMap::new(), &mut Labels::default());
        let of = |name: &str| samples[&format!("vgpu_gpu_{name}{{gpu=\"0\",uuid=\"GPU-0a\"}}")];
        assert_eq!(of("memory_used_bytes"), f64::from(1 << 30));
        assert_eq!(of("busy_ratio"), 0.83);
        assert_eq!(of("temperature_celsius"), 61.0);
        assert_eq!(of("power_watts"), 402.5);
        assert_eq!(of("power_limit_watts"), 700.0);
        let errors = "vgpu_gpu_ecc_errors_total{gpu=\"0\",uuid=\"GPU-0a\",kind=";
        assert_eq!(samples[&format!("{errors}\"corrected\"}}")], 3.0);
        assert_eq!(samples[&format!("{errors}\"uncorrected\"}}")], 0.0);
        let of_other = samples
            .keys()
            .filter(|name| name.contains("gpu=\"1\""))
            .collect::<Vec<_>>();
        assert_eq!(of_other, ["vgpu_gpu_info{gpu=\"1\",uuid=\"\",name=\"\"}"]);
        let without = read(Vec::new(), &mut Labels::default());
        assert!(!without.keys().any(|name| name.starts_with("vgpu_gpu_")));
    }

    #[test]
    fn the_text_of_as_many_guests_as_there_can_be_fits_into_an_answer() {
        let all: Vec<(u16, Counted)> = Op::REQUESTS
            .iter()
            .map(|op| (op.code(), [u64::MAX; OpResult::ALL.len()]))
            .collect();
        let all = Requests(all.into_iter().collect());
        let kinds = ["uuid", "name", "file", "tcp"];
        let names = kinds.iter().flat_map(|kind| {
            (0..MOST_LABELS).map(move |n| format!("{kind}:{n:03}{}", "\"".repeat(MAX_LABEL - 8)))
        });
        let requests: BTreeMap<String, Requests> = names.map(|name| (name, all.clone())).collect();
        let guests = requests.keys().map(|id| guest(id, id)).collect();
        let text = written(Vec::new(), guests, &requests, &mut Labels::default());
        let answer = Answer::Metrics(text);
        let length = serde_json::to_string(&answer).unwrap().len();
        assert!(length < MAX_RESPONSE, "{length}");
        assert!(length > MAX_RESPONSE / 4, "{length}");
    }

    #[test]
    fn invented_names_share_a_label_and_take_none_away() {
        let mut labels = Labels::default();
        read(vec![guest("uuid:1", "a")], &mut labels);
        let file = |n: u32| guest(&format!("file:/d/g{n}"), "");
        read((0..2000).map(file).collect(), &mut labels);
        let mut guests: Vec<Guest> = (1000..1200).map(file).collect();
        guests.extend([file(5), guest("uuid:1", "a"), guest("uuid:2", "b")]);
        let samples = read(guests, &mut labels);
        let of = |guest: &str| samples.get(&format!("vgpu_guest_sessions{{guest=\"{guest}\"}}"));
        assert_eq!(of("others"), Some(&200.0));
        assert_eq!(of("file:/d/g5"), Some(&1.0));
        assert_eq!(of("uuid:1"), Some(&1.0));
        assert_eq!(of("uuid:2"), Some(&1.0));
        assert!(samples.contains_key("vgpu_guest_info{guest=\"others\",name=\"others\"}"));
    }
}

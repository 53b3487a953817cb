//! `vgpu bench gpu`: what work on a device costs, beside the same done natively.

use std::collections::BTreeMap;
use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use serde_json::{Value, json};
use vgpu_cli::{Failure, print_line, print_object};
use vgpu_guest::{
    CaptureMode, Client, Device, DeviceBuffer, Endpoint, Function, LaunchConfig, Options,
    PinnedBuffer,
};

use crate::cli::{Cli, GpuBenchArguments};
use crate::figures::{self, rounded};
use crate::session;

const KERNEL: &str = "
.version 7.0
.target sm_52
.address_size 64
.visible .entry nothing() { ret; }
";

const ONE_THREAD: LaunchConfig = LaunchConfig {
    grid_dim: (1, 1, 1),
    block_dim: (1, 1, 1),
    shared_mem_bytes: 0,
};

/// Kernels of the graph.
const GRAPH: u32 = 20;

/// Copies in a row.
const ROW: u32 = 16;

/// Bytes of an allocation.
const ALLOCATION: usize = 1 << 20;

pub(crate) fn run(cli: &Cli, arguments: &GpuBenchArguments) -> Result<(), Failure> {
    let native = arguments.native.as_deref().map(read_native).transpose()?;
    let opening = Opening {
        endpoints: session::endpoints(cli)?,
        options: session::options(cli)?,
        rest: arguments.rest.unwrap_or_default(),
    };
    let mut sessions = vec![opening.measure(arguments.repeats)?];
    if let Some(command) = &arguments.kill {
        sessions.push(opening.measure_after_kill(command, arguments.repeats)?);
    }
    let device = Device::new(Client::connect(&opening.endpoints, &opening.options)?)?;
    let (endpoint, info) = device.with_client(|client| {
        let endpoint = session::endpoint_name(client);
        client.info().map(|info| (endpoint, info))
    })?;
    if !cli.json {
        print_line(format!(
            "{} ({}) over {endpoint}\n\n{:<27} {:>12} {:>12} {:>12} {:>12} {:>10}",
            info.executor, info.device, "", "median", "p99", "native", "its p99", "of native"
        ))?;
    }
    let print = |figures: &Figures| -> Result<(), Failure> {
        let beside = native.as_ref().and_then(|native| native.get(&figures.what));
        if !cli.json {
            return print_line(figures.to_text(beside.copied()));
        }
        let mut object = figures.to_json(beside.copied());
        object["endpoint"] = json!(endpoint);
        object["executor"] = json!(info.executor.as_str());
        object["device"] = json!(info.device.as_str());
        print_object(&object)
    };
    for figures in &sessions {
        print(figures)?;
    }
    if arguments.sessions {
        session::end_device(device)?;
        return Ok(());
    }
    let module = device.load_module(KERNEL.as_bytes())?;
    let nothing = module.load_function("nothing")?;
    for figures in launches(&device, &nothing, arguments)? {
        print(&figures)?;
    }
    print(&graph(&device, &nothing, arguments)?)?;
    for figures in allocations(&device, arguments)? {
        print(&figures)?;
    }
    for &bytes in &arguments.copies {
        for figures in copies(&device, bytes, arguments.repeats)? {
            print(&figures)?;
        }
        for figures in pinned_copies(&device, bytes, arguments.repeats)? {
            print(&figures)?;
        }
    }
    for &elements in &arguments.adds {
        if let Some(figures) = pinned_add(&device, elements, arguments.repeats)? {
            print(&figures)?;
        }
    }
    drop((nothing, module));
    session::end_device(device)?;
    Ok(())
}

/// Measured values of one thing, the best first.
struct Figures {
    what: String,
    /// `us`, or `GB/s`, of which more is better.
    unit: &'static str,
    sorted: Vec<f64>,
}

impl Figures {
    fn new(what: impl Into<String>, unit: &'static str, mut values: Vec<f64>) -> Self {
        values.sort_unstable_by(f64::total_cmp);
        if unit != "us" {
            values.reverse();
        }
        Self {
            what: what.into(),
            unit,
            sorted: values,
        }
    }

    fn times(what: &str, times: &[Duration]) -> Self {
        let us = |time: &Duration| time.as_secs_f64() * 1e6;
        Self::new(what, "us", times.iter().map(us).collect())
    }

    /// The value that `percent` of all are no worse than.
    fn percentile(&self, percent: usize) -> f64 {
        figures::percentile(&self.sorted, percent).unwrap_or_default()
    }

    fn to_json(&self, native: Option<Native>) -> Value {
        let median = self.percentile(50);
        let mut object = json!({
            "kind": "gpu",
            "what": self.what,
            "unit": self.unit,
            "count": self.sorted.len(),
            "median": rounded(median),
            "p99": rounded(self.percentile(99)),
        });
        if let Some(native) = native {
            object["native"] = json!(rounded(native.median));
            object["native_p99"] = json!(native.p99.map(rounded));
            object["of_native"] = json!(rounded(median / native.median));
        }
        object
    }

    fn to_text(&self, native: Option<Native>) -> String {
        let (median, p99) = (self.percentile(50), self.percentile(99));
        let with_unit = |value: f64| {
            let unit = if self.unit == "us" { "µs" } else { self.unit };
            format!("{value:.2} {unit}")
        };
        let [own, worst, ratio] = native.map_or_else(Default::default, |native| {
            let worst = native.p99.map(with_unit).unwrap_or_default();
            let ratio = format!("{:.2} x", median / native.median);
            [with_unit(native.median), worst, ratio]
        });
        let line = format!(
            "{:<27} {:>12} {:>12} {own:>12} {worst:>12} {ratio:>10}",
            self.what,
            with_unit(median),
            with_unit(p99),
        );
        line.trim_end().to_owned()
    }
}

/// A figure of the native program.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Native {
    median: f64,
    p99: Option<f64>,
}

/// The figures that the native program has printed, by what they are of.
fn read_native(path: &Path) -> Result<BTreeMap<String, Native>, Failure> {
    let advice = "give what bench/native_gpu.cu has printed";
    let text = fs::read_to_string(path)
        .map_err(|error| Failure::new(format!("{}: {error}", path.display()), advice))?;
    let mut figures = BTreeMap::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let object: Value = serde_json::from_str(line)
            .map_err(|error| Failure::new(format!("{}: {error}", path.display()), advice))?;
        match (object["what"].as_str(), object["median"].as_f64()) {
            (Some(what), Some(median)) if median > 0.0 => {
                let p99 = object["p99"].as_f64();
                figures.insert(what.to_owned(), Native { median, p99 });
            }
            _ => {
                let what = format!("{}: no figure in '{line}'", path.display());
                return Err(Failure::new(what, advice));
            }
        }
    }
    Ok(figures)
}

/// How long another session is looked for, after the death of a worker.
const REOPEN_LIMIT: Duration = Duration::from_secs(60);

/// How sessions are opened.
struct Opening {
    endpoints: Vec<Endpoint>,
    options: Options,
    /// Before each.
    rest: Duration,
}

impl Opening {
    fn open(&self) -> Result<Device, vgpu_guest::Error> {
        Device::new(Client::connect(&self.endpoints, &self.options)?)
    }

    /// From nothing to a device that takes work.
    fn measure(&self, repeats: u32) -> Result<Figures, Failure> {
        let mut times = Vec::new();
        for _ in 0..repeats {
            thread::sleep(self.rest);
            let start = Instant::now();
            let device = self.open()?;
            times.push(start.elapsed());
            session::end_device(device)?;
        }
        Ok(Figures::times("session_open", &times))
    }

    /// From the death of a session's worker, whose process id `command` prints, to another session.
    fn measure_after_kill(&self, command: &str, repeats: u32) -> Result<Figures, Failure> {
        let mut times = Vec::new();
        for _ in 0..repeats {
            let device = self.open()?;
            // A worker that has worked has more to give back.
            drop(device.alloc_zeros::<u8>(ALLOCATION)?);
            device.synchronize()?;
            thread::sleep(self.rest);
            let worker = worker(command)?;
            let start = Instant::now();
            kill(worker, Signal::SIGKILL).map_err(|errno| {
                let advice = "run this as root, on the mediator's machine";
                Failure::new(
                    format!("process {worker} cannot be killed: {errno}"),
                    advice,
                )
            })?;
            while device.synchronize().is_ok() {
                if start.elapsed() > REOPEN_LIMIT {
                    let advice = "have the command print the worker of this session";
                    return Err(Failure::new(
                        "the session goes on without its worker",
                        advice,
                    ));
                }
            }
            drop(device);
            let device = loop {
                match self.open() {
                    Ok(device) => break device,
                    Err(error) if start.elapsed() > REOPEN_LIMIT => return Err(error.into()),
                    Err(_) => thread::sleep(Duration::from_millis(1)),
                }
            };
            times.push(start.elapsed());
            session::end_device(device)?;
        }
        Ok(Figures::times("session_reopen", &times))
    }
}

/// The process id that a command prints.
fn worker(command: &str) -> Result<Pid, Failure> {
    let advice = "--kill takes a command that prints one process id";
    let failed = |what: String| Failure::new(format!("{command}: {what}"), advice);
    let output = Command::new("sh").args(["-c", command]).output();
    let output = output.map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.trim().parse::<i32>() {
        // Nothing below is one process.
        Ok(pid) if pid > 1 => Ok(Pid::from_raw(pid)),
        _ => Err(failed(format!("'{}' is no process id", text.trim()))),
    }
}

/// Processor time of this thread.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

fn launches(
    device: &Device,
    nothing: &Function,
    arguments: &GpuBenchArguments,
) -> Result<[Figures; 3], Failure> {
    let launch = || device.launch_builder(nothing).launch(ONE_THREAD);
    launch()?;
    device.synchronize()?;
    let each = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(arguments.launches);
    let (mut issued, mut chains) = (Vec::new(), Vec::new());
    for _ in 0..arguments.repeats {
        let (start, cpu) = (Instant::now(), processor_time());
        for _ in 0..arguments.launches {
            launch()?;
        }
        issued.push(each(processor_time().saturating_sub(cpu)));
        device.synchronize()?;
        chains.push(start.elapsed());
    }
    let mut waited = Vec::new();
    for _ in 0..arguments.launches {
        let start = Instant::now();
        launch()?;
        device.synchronize()?;
        waited.push(start.elapsed());
    }
    Ok([
        Figures::new("launch_processor", "us", issued),
        Figures::times(&format!("launch_chain_{}", arguments.launches), &chains),
        Figures::times("launch_synchronize", &waited),
    ])
}

fn graph(
    device: &Device,
    nothing: &Function,
    arguments: &GpuBenchArguments,
) -> Result<Figures, Failure> {
    let stream = device.new_stream()?;
    stream.begin_capture(CaptureMode::ThreadLocal)?;
    for _ in 0..GRAPH {
        stream.launch_builder(nothing).launch(ONE_THREAD)?;
    }
    let graph = stream.end_capture()?.instantiate()?;
    let mut times = Vec::new();
    for _ in 0..arguments.launches.div_ceil(10) {
        let start = Instant::now();
        graph.launch(&stream)?;
        stream.synchronize()?;
        times.push(start.elapsed());
    }
    Ok(Figures::times(&format!("graph_of_{GRAPH}"), &times))
}

fn allocations(device: &Device, arguments: &GpuBenchArguments) -> Result<[Figures; 2], Failure> {
    let (mut waited, mut ordered) = (Vec::new(), Vec::new());
    for _ in 0..arguments.launches {
        let start = Instant::now();
        drop(device.alloc::<u8>(ALLOCATION)?);
        waited.push(start.elapsed());
    }
    device.synchronize()?;
    for _ in 0..arguments.launches {
        let start = Instant::now();
        let buffer = device.alloc_async::<u8>(ALLOCATION)?;
        device.free_async(buffer)?;
        ordered.push(start.elapsed());
    }
    device.synchronize()?;
    Ok([
        Figures::times("allocate_free", &waited),
        Figures::times("allocate_free_async", &ordered),
    ])
}

/// Copies from and to a slice; every byte of what comes back is compared.
fn copies(device: &Device, bytes: u64, repeats: u32) -> Result<[Figures; 2], Failure> {
    let too_many = || {
        Failure::new(
            format!("{bytes} bytes are more than this machine can hold"),
            "use smaller --copies",
        )
    };
    let len = usize::try_from(bytes).map_err(|_| too_many())?;
    let mut to = Vec::new();
    let mut back = Vec::new();
    for buffer in [&mut to, &mut back] {
        buffer.try_reserve_exact(len).map_err(|_| too_many())?;
    }
    to.extend((0..=250u8).cycle().take(len));
    back.resize(len, 0);
    let mut buffer = device.alloc::<u8>(len)?;
    let rate = |time: Duration| bytes as f64 / 1e9 / time.as_secs_f64();
    let (mut up, mut down) = (Vec::new(), Vec::new());
    // The first one touches pages that are new to everybody.
    for n in 0..=repeats {
        let start = Instant::now();
        device.memcpy_htod(&to, &mut buffer)?;
        device.synchronize()?;
        let sent = start.elapsed();
        back.fill(0);
        let start = Instant::now();
        device.memcpy_dtoh(&buffer, black_box(&mut back))?;
        let came = start.elapsed();
        if back != to {
            return Err(changed(bytes));
        }
        if n > 0 {
            up.push(rate(sent));
            down.push(rate(came));
        }
    }
    Ok([
        Figures::new(format!("copy_up_{bytes}"), "GB/s", up),
        Figures::new(format!("copy_down_{bytes}"), "GB/s", down),
    ])
}

/// Copies from and to page-locked memory, of which the session must be allowed as much; every byte is compared.
fn pinned_copies(device: &Device, bytes: u64, repeats: u32) -> Result<Vec<Figures>, Failure> {
    let Ok(len) = usize::try_from(bytes) else {
        return Ok(Vec::new());
    };
    let mut memory = device.alloc_pinned::<u8>(len)?;
    if !memory.is_page_locked() {
        return Ok(Vec::new());
    }
    let sent: Vec<u8> = (0..=250u8).cycle().take(len).collect();
    let mut buffer = device.alloc::<u8>(len)?;
    let rate = |time: Duration| bytes as f64 / 1e9 / time.as_secs_f64();
    let (mut up, mut down) = (Vec::new(), Vec::new());
    let mut back = vec![0; len];
    for n in 0..=repeats {
        memory.write(0, &sent)?;
        let start = Instant::now();
        device.memcpy_htod_pinned(&memory, .., &mut buffer)?;
        device.synchronize()?;
        let there = start.elapsed();
        memory.write(0, &back)?;
        let start = Instant::now();
        device.memcpy_dtoh_pinned(&buffer, &mut memory, ..)?;
        device.synchronize()?;
        let came = start.elapsed();
        memory.read(0, &mut back)?;
        if back != sent {
            return Err(changed(bytes));
        }
        back.fill(0);
        if n > 0 {
            up.push(rate(there));
            down.push(rate(came));
        }
    }
    let (up_row, down_row) =
        rows_of_pinned_copies(device, &mut memory, &mut buffer, &sent, repeats)?;
    Ok(vec![
        Figures::new(format!("copy_up_{bytes}_pinned"), "GB/s", up),
        Figures::new(format!("copy_down_{bytes}_pinned"), "GB/s", down),
        Figures::new(format!("copies_up_{bytes}_pinned"), "GB/s", up_row),
        Figures::new(format!("copies_down_{bytes}_pinned"), "GB/s", down_row),
    ])
}

/// [`ROW`] copies one after the other and one wait, in GB/s up and down: what a program has that keeps the device busy.
fn rows_of_pinned_copies(
    device: &Device,
    memory: &mut PinnedBuffer<u8>,
    buffer: &mut DeviceBuffer<u8>,
    sent: &[u8],
    repeats: u32,
) -> Result<(Vec<f64>, Vec<f64>), Failure> {
    let bytes = sent.len() as f64 * f64::from(ROW);
    let rate = |time: Duration| bytes / 1e9 / time.as_secs_f64();
    let (mut up, mut down) = (Vec::new(), Vec::new());
    let mut back = vec![0; sent.len()];
    for _ in 0..repeats {
        memory.write(0, sent)?;
        let start = Instant::now();
        for _ in 0..ROW {
            device.memcpy_htod_pinned(memory, .., buffer)?;
        }
        device.synchronize()?;
        up.push(rate(start.elapsed()));
        memory.write(0, &back)?;
        let start = Instant::now();
        for _ in 0..ROW {
            device.memcpy_dtoh_pinned(buffer, memory, ..)?;
        }
        device.synchronize()?;
        down.push(rate(start.elapsed()));
        memory.read(0, &mut back)?;
        if back != sent {
            return Err(changed(sent.len() as u64));
        }
        back.fill(0);
    }
    Ok((up, down))
}

/// A vector add from and to page-locked memory, copies included, of which the session must be allowed as much. The sums
/// of the first and of the last are compared, as natively: between two runs nobody falls asleep.
fn pinned_add(device: &Device, elements: u32, repeats: u32) -> Result<Option<Figures>, Failure> {
    let len = usize::try_from(elements).expect("a machine of 64 bits");
    let mut hosts = [0; 3].map(|_| device.alloc_pinned::<f32>(len));
    let [Ok(a), Ok(b), Ok(sum)] = &mut hosts else {
        let failed = hosts.into_iter().find_map(Result::err);
        return Err(failed.expect("one is not there").into());
    };
    if ![&*a, b, sum].iter().all(|host| host.is_page_locked()) {
        return Ok(None);
    }
    let numbers: Vec<f32> = (0..1024_u16).cycle().take(len).map(f32::from).collect();
    a.write(0, &numbers)?;
    b.write(0, &numbers)?;
    let module = device.load_module(include_bytes!("../../client/vector_add.ptx"))?;
    let add = module.load_function("add")?;
    let [mut on_device, mut second] = [device.alloc::<f32>(len)?, device.alloc::<f32>(len)?];
    let config = LaunchConfig::for_num_elems(elements.div_ceil(4));
    let mut times = Vec::new();
    // The first one touches pages that are new to everybody.
    for n in 0..=repeats {
        let start = Instant::now();
        device.memcpy_htod_pinned(a, .., &mut on_device)?;
        device.memcpy_htod_pinned(b, .., &mut second)?;
        let launch = device.launch_builder(&add).arg(&on_device).arg(&second);
        launch.arg(&elements).launch(config)?;
        device.memcpy_dtoh_pinned(&on_device, sum, ..)?;
        device.synchronize()?;
        if n > 0 {
            times.push(start.elapsed());
        }
        if n > 0 && n < repeats {
            continue;
        }
        let mut sums = vec![0.0; len];
        sum.read(0, &mut sums)?;
        if sums
            .iter()
            .zip(&numbers)
            .any(|(sum, one)| *sum != 2.0 * one)
        {
            return Err(Failure::new(
                format!("a wrong sum of {elements}"),
                "do not trust this device or the path to it",
            ));
        }
        sum.write(0, &vec![0.0; len])?;
    }
    Ok(Some(Figures::times(
        &format!("vector_add_{elements}_pinned"),
        &times,
    )))
}

fn changed(bytes: u64) -> Failure {
    Failure::new(
        format!("{bytes} bytes came back changed"),
        "do not trust this device or the path to it",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_of_a_rate_is_the_lowest() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        let times = Figures::new("a", "us", values.clone());
        assert_eq!((times.percentile(50), times.percentile(99)), (50.0, 99.0));
        let rates = Figures::new("b", "GB/s", values);
        assert_eq!((rates.percentile(50), rates.percentile(99)), (51.0, 2.0));
        let one = Figures::new("c", "GB/s", vec![7.0]);
        assert_eq!((one.percentile(50), one.percentile(99)), (7.0, 7.0));
    }

    #[test]
    fn native_figures_stand_beside_ours() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("native");
        fs::write(
            &path,
            "{\"what\":\"a\",\"median\":2.5,\"p99\":3,\"more\":1}\n\n",
        )
        .unwrap();
        let native = read_native(&path).unwrap();
        let object = Figures::new("a", "us", vec![5.0]).to_json(native.get("a").copied());
        assert_eq!(
            (object["of_native"].as_f64(), object["median"].as_f64()),
            (Some(2.0), Some(5.0))
        );
        assert_eq!(object["native_p99"].as_f64(), Some(3.0));
        for bad in ["{\"what\":\"a\"}", "{\"what\":\"a\",\"median\":0}", "x"] {
            fs::write(&path, bad).unwrap();
            assert!(read_native(&path).is_err(), "{bad}");
        }
    }
}

//! `vgpu-ptx run` and `vgpu-ptx check`: PTX with no GPU.

mod arguments;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use serde_json::json;
use vgpu_cli::Failure;
use vgpu_ptx::{COMPUTE_CAPABILITY, Config, Device, Kernel, Launch, Module, Options};

use arguments::{Argument, Misuse, Packed};

/// Runs the PTX that nvcc, NVRTC and Triton emit on this machine's processor.
#[derive(Debug, Parser)]
#[command(version, name = "vgpu-ptx")]
struct Cli {
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Launch a kernel and write its results to files.
    Run(Run),
    /// List the kernels of a file, their parameters, and what is not supported.
    Check {
        /// PTX, or a fatbin with PTX inside.
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Run {
    /// PTX, or a fatbin with PTX inside.
    file: PathBuf,
    /// The kernel.
    #[arg(long)]
    entry: String,
    /// Blocks: X[,Y[,Z]]
    #[arg(long, value_parser = triple)]
    grid: [u32; 3],
    /// Threads of a block: X[,Y[,Z]]
    #[arg(long, value_parser = triple)]
    block: [u32; 3],
    /// Dynamic shared memory, bytes.
    #[arg(long, default_value_t = 0)]
    shared: u32,
    /// Seconds after which the launch is given up.
    #[arg(long, value_parser = deadline)]
    deadline: Option<Duration>,
    /// A parameter, in order: i8…i64, u8…u64, f32, f64:VALUE, bytes:HEX, or a buffer: in:FILE,
    /// out:FILE:BYTES, inout:FILE:OUTFILE, zero:BYTES.
    #[arg(long = "arg", allow_hyphen_values = true)]
    args: Vec<String>,
    /// All blocks at once, for kernels whose blocks wait for each other.
    #[arg(long)]
    cooperative: bool,
    /// Threads of this process that run blocks; 1 makes every run the same. [default: all processors]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    workers: Option<u32>,
}

fn deadline(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("'{text}' is no number"))?;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|deadline| !deadline.is_zero())
        .ok_or_else(|| "a number of seconds above 0 is wanted".to_owned())
}

fn triple(text: &str) -> Result<[u32; 3], String> {
    let mut out = [1; 3];
    let parts: Vec<&str> = text.split(',').collect();
    if parts.len() > 3 {
        return Err("at most X,Y,Z".into());
    }
    for (o, p) in out.iter_mut().zip(parts) {
        *o = p
            .trim()
            .parse()
            .map_err(|_| format!("'{p}' is no number"))?;
    }
    Ok(out)
}

fn main() -> ExitCode {
    let cli: Cli = vgpu_cli::parse();
    if let Err(failure) = vgpu_cli::end_on_signals() {
        return failure.report(cli.json);
    }
    let result = match &cli.command {
        Command::Run(r) => run(r, cli.json),
        Command::Check { file } => check(file, cli.json),
    };
    match result {
        Ok(code) => code,
        Err(e) => {
            let (advice, code) = match e.is::<Misuse>() {
                true => ("see vgpu-ptx --help", 2),
                false => ("vgpu-ptx check FILE shows what a module has and needs", 1),
            };
            let what = format!("{e:#}");
            Failure::new(what, advice).with_code(code).report(cli.json)
        }
    }
}

/// Any version of PTX: a person asks what would run, not what a driver would take.
fn load(file: &PathBuf) -> anyhow::Result<Module> {
    let image = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let options = Options {
        version: (9, u32::MAX),
        target: u32::MAX,
    };
    Module::load_with(&image, &options).with_context(|| format!("cannot load {}", file.display()))
}

fn check(file: &PathBuf, as_json: bool) -> anyhow::Result<ExitCode> {
    let module = load(file)?;
    let kernels = module.kernels();
    if as_json {
        let list: Vec<_> = kernels.iter().map(|(name, k)| match k {
            Ok(k) => describe(k),
            Err(e) => json!({ "name": name, "supported": false, "reason": e.text, "code": e.code.number() }),
        }).collect();
        let (major, minor) = module.version();
        let variables: Vec<_> = module
            .variables()
            .into_iter()
            .map(|v| json!({ "name": v.name, "bytes": v.size, "align": v.align }))
            .collect();
        write_out(&format!(
            "{}\n",
            vgpu_cli::json_line(
                &json!({ "version": format!("{major}.{minor}"), "target": module.target(), "kernels": list, "variables": variables })
            )?
        ))?;
    } else {
        let mut text = String::new();
        for (name, k) in &kernels {
            text += &match k {
                Ok(k) => plain(k),
                Err(e) => format!(
                    "{name}: not supported\n  {}\n",
                    e.text.lines().next().unwrap_or_default()
                ),
            };
        }
        if kernels.is_empty() {
            text += "no kernels\n";
        }
        write_out(&text)?;
    }
    Ok(if kernels.iter().all(|(_, k)| k.is_ok()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn describe(k: &Kernel) -> serde_json::Value {
    let parameters: Vec<_> = k.parameters.iter().map(|p| json!({ "name": p.name, "type": p.ty.name(), "bytes": p.size, "offset": p.offset, "align": p.align })).collect();
    json!({
        "name": k.name, "supported": true, "parameters": parameters, "parameter_bytes": k.parameter_bytes, "registers": k.registers,
        "shared_bytes": k.shared_bytes, "local_bytes": k.local_bytes, "const_bytes": k.const_bytes, "max_threads": k.max_threads,
        "required_block": k.required_block, "cluster": k.cluster,
    })
}

fn plain(k: &Kernel) -> String {
    let list: Vec<String> = k
        .parameters
        .iter()
        .map(|p| {
            let one = p.ty.name();
            if p.size * 8 == p.ty.bits() {
                format!("{one} {}", p.name)
            } else {
                format!("{one}[{}] {}", p.size, p.name)
            }
        })
        .collect();
    let mut more = vec![format!("{} registers", k.registers)];
    let mut say = |n: u64, what: &str| {
        if n > 0 {
            more.push(format!("{n} bytes {what}"));
        }
    };
    say(k.shared_bytes.into(), "shared");
    say(k.local_bytes.into(), "local");
    say(k.const_bytes, "const");
    if let Some([x, y, z]) = k.required_block {
        more.push(format!("block must be {x},{y},{z}"));
    } else if k.max_threads < 1024 {
        more.push(format!("at most {} threads a block", k.max_threads));
    }
    format!("{}({})\n  {}\n", k.name, list.join(", "), more.join(", "))
}

fn run(r: &Run, as_json: bool) -> anyhow::Result<ExitCode> {
    let module = load(&r.file)?;
    let kernel = module.kernel(&r.entry)?;
    let arguments: Vec<Argument> = r
        .args
        .iter()
        .map(|a| arguments::parse(a))
        .collect::<anyhow::Result<_>>()?;
    arguments::fits(&kernel, &arguments)?;
    let mut config = Config::default();
    if let Some(n) = r.workers {
        config.workers = n;
    }
    let device = Device::new(config);
    let loaded = device.load(&module)?;
    let packed = Packed::new(&device, &kernel, &arguments)?;
    let how = Launch {
        shared: r.shared,
        shared_opt_in: true,
        cooperative: r.cooperative,
        deadline: r.deadline,
        ..Launch::new(r.grid, r.block)
    };
    let began = Instant::now();
    let result = device.launch(&loaded, &kernel, &how, &packed.bytes);
    let took = began.elapsed();
    let (seconds, device_ns) = (took.as_secs_f64(), took.as_nanos());
    let printed = device.take_printed(usize::MAX);
    if printed.lost > 0 {
        // Without a reader there is nobody to tell.
        let _ = writeln!(
            std::io::stderr(),
            "{} bytes that kernels printed are lost",
            printed.lost
        );
    }
    let printed = printed.text;
    if as_json {
        // The output of a kernel must not get between the braces.
        std::io::stderr().write_all(&printed)?;
    } else {
        std::io::stdout().write_all(&printed)?;
    }
    let report = result?;
    packed.write_results(&device)?;
    let (major, minor) = COMPUTE_CAPABILITY;
    if as_json {
        let mut object = BTreeMap::new();
        object.insert("executor", json!("cpu"));
        object.insert(
            "device",
            json!(format!("vgpu-ptx (compute capability {major}.{minor})")),
        );
        object.insert("seconds", json!(seconds));
        object.insert(
            "device_ns",
            json!(u64::try_from(device_ns).unwrap_or(u64::MAX)),
        );
        // As `vgpu run` prints them: here nothing lies between.
        object.insert("endpoint", json!(null));
        object.insert("left", json!([]));
        object.insert("warp_instructions", json!(report.steps));
        object.insert("blocks", json!(report.blocks));
        write_out(&format!("{}\n", vgpu_cli::json_line(&object)?))?;
    } else {
        write_out(&format!(
            "{}: {:.3} ms, {} blocks, {} warp instructions\n",
            kernel.name,
            seconds * 1e3,
            report.blocks,
            report.steps
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A reader that has enough is no error.
fn write_out(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        r => r.context("cannot write the output"),
    }
}

//! `vgpu run`: a kernel of the user's own, on files.

mod arguments;

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use vgpu_cli::{Failure, print_line, print_object};
use vgpu_guest::{CompileOptions, Device, DeviceBuffer, Function, LaunchConfig, Module};
use vgpu_protocol::argument::Content;

use crate::cli::{Cli, RunArguments};
use crate::output_file::OutputFile;
use crate::{output, session};
use arguments::Argument;

/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
const MAX_DYNAMIC_SHARED: u32 = 8;

/// Dynamic shared memory that is given without asking, in bytes.
const SHARED: u32 = 48 << 10;

/// The kernel and its arguments, as launched.
enum Given {
    Value(Vec<u8>),
    Memory(DeviceBuffer<u8>),
}

pub(crate) fn run(cli: &Cli, run: &RunArguments) -> Result<(), Failure> {
    let code = Code::read(&run.file)?;
    let parse = |text: &String| arguments::parse(text);
    let arguments: Vec<Argument> = run.args.iter().map(parse).collect::<Result<_, _>>()?;
    // Found to be writable before anything runs.
    let mut outputs = Vec::new();
    for (k, argument) in arguments.iter().enumerate() {
        if let Argument::Buffer { out: Some(to), .. } = argument {
            outputs.push((k, OutputFile::prepare(to)?));
        }
    }

    let mut client = session::open(cli)?;
    let info = client.info()?;
    let endpoint = session::endpoint_name(&client);
    let left = session::skipped(&client);
    if cli.json {
        // Kernels' output must not end up inside the JSON object.
        client.on_printed(|printed| {
            // A reader that closes it wants no more lines.
            let _ = printed.write_to(&mut std::io::stderr().lock());
        });
    }
    let device = match run.device {
        // A mediator that knows no other device need not be asked.
        None => Device::new(client)?,
        Some(ordinal) => Device::with_ordinal(client, ordinal)?,
    };
    let start = Instant::now();
    let module = code.load(&device)?;
    let function = module.load_function(&run.entry)?;
    arguments::fit(&function, &arguments)?;
    let given = put(&device, &arguments)?;
    let device_time = launch(&device, &function, run, &given)?;
    let results = take(&device, &given, &outputs)?;
    let seconds = start.elapsed().as_secs_f64();
    // Everything has come; only now is anything written.
    for ((_, file), bytes) in outputs.into_iter().zip(results) {
        file.finish(&bytes)?;
    }

    let printed = if cli.json {
        print_object(&json!({
            "executor": info.executor.as_str(),
            "device": device.name(),
            "uuid": uuid(&device),
            "seconds": seconds,
            "device_ns": output::nanoseconds(device_time),
            "endpoint": endpoint,
            "left": left,
        }))
    } else {
        print_line(format!(
            "{}: {:.6} s on the device ({}, {}), {seconds:.6} s with all copies",
            run.entry,
            device_time.as_secs_f64(),
            info.executor,
            device.name(),
        ))
    };
    drop((given, function, module));
    session::end_device(device)?;
    printed
}

/// As `nvidia-smi -L` prints it; empty where the device has none.
fn uuid(device: &Device) -> String {
    let bytes = device.info().uuid.as_slice();
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    match digits.len() {
        32 => format!(
            "GPU-{}-{}-{}-{}-{}",
            &digits[..8],
            &digits[8..12],
            &digits[12..16],
            &digits[16..20],
            &digits[20..]
        ),
        _ => String::new(),
    }
}

/// The file with the kernel.
enum Code {
    /// PTX, a cubin or a fatbin.
    Image(Vec<u8>),
    /// CUDA C++.
    Source(String, CompileOptions),
}

impl Code {
    fn read(path: &Path) -> Result<Self, Failure> {
        let bytes = std::fs::read(path).map_err(|error| {
            Failure::new(
                format!("cannot read {}: {error}", path.display()),
                "give the name of a file with PTX, a cubin, a fatbin or CUDA C++",
            )
        })?;
        let is_source = path
            .extension()
            .is_some_and(|extension| extension == "cu" || extension == "cuh");
        if !is_source {
            return Ok(Self::Image(bytes));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let text = String::from_utf8(bytes).map_err(|_| {
            Failure::new(
                format!("{} is not UTF-8", path.display()),
                "give CUDA C++ as text in UTF-8",
            )
        })?;
        let options = CompileOptions {
            name: name.into_owned(),
            ..CompileOptions::default()
        };
        Ok(Self::Source(text, options))
    }

    fn load(&self, device: &Device) -> Result<Module, Failure> {
        let (text, options) = match self {
            Self::Image(image) => return Ok(device.load_module(image)?),
            Self::Source(text, options) => (text, options),
        };
        Ok(device.compile_module(text, options).inspect_err(|error| {
            if let Some(log) = error.compile_log() {
                // All of it, before the line that says what failed.
                output::error(log.trim_end());
            }
        })?)
    }
}

/// Puts the arguments on the device.
fn put(device: &Device, arguments: &[Argument]) -> Result<Vec<Given>, Failure> {
    let mut given = Vec::new();
    for argument in arguments {
        given.push(match argument {
            Argument::Value(value) => Given::Value(value.clone()),
            Argument::Buffer { content, .. } => Given::Memory(match content {
                Content::File(bytes) => device.clone_htod(bytes)?,
                Content::Zeros(bytes) => {
                    device.alloc_zeros(usize::try_from(*bytes).unwrap_or(usize::MAX))?
                }
            }),
        });
    }
    Ok(given)
}

/// Runs the kernel to its end, as often as is asked for; returns how long it ran altogether.
fn launch(
    device: &Device,
    function: &Function,
    run: &RunArguments,
    given: &[Given],
) -> Result<Duration, Failure> {
    if run.shared > SHARED {
        let bytes = i32::try_from(run.shared).unwrap_or(i32::MAX);
        function.set_attribute(MAX_DYNAMIC_SHARED, bytes)?;
    }
    let triple = |[x, y, z]: [u32; 3]| (x, y, z);
    let config = LaunchConfig {
        grid_dim: triple(run.grid),
        block_dim: triple(run.block),
        shared_mem_bytes: run.shared,
    };
    for left in (0..run.repeat.get()).rev() {
        let mut launch = device.launch_builder(function);
        for given in given {
            launch = match given {
                Given::Value(value) => launch.arg_bytes(value),
                Given::Memory(buffer) => launch.arg(buffer),
            };
        }
        if run.cooperative {
            launch = launch.cooperative();
        }
        if let Some(deadline) = run.deadline {
            launch = launch.deadline(deadline);
        }
        match left {
            0 => launch.launch_checked(config)?,
            _ => launch.launch(config)?,
        }
    }
    Ok(device.synchronize()?)
}

/// The results, in the order of `outputs`.
fn take(
    device: &Device,
    given: &[Given],
    outputs: &[(usize, OutputFile<'_>)],
) -> Result<Vec<Vec<u8>>, Failure> {
    let mut results = Vec::new();
    for (k, _) in outputs {
        if let Given::Memory(buffer) = &given[*k] {
            results.push(device.clone_dtoh(buffer)?);
        }
    }
    Ok(results)
}

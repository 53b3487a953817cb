//! `vgpu vector-add`.

use std::path::PathBuf;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use vgpu_cli::{Failure, print_line, print_object};

use crate::cli::{Cli, VectorAddArguments};
use crate::output_file::OutputFile;
use crate::{floats, output, session};

/// Transfers of fewer elements are over before a bar can be read.
const BAR_FROM: u64 = 8 << 20;

pub(crate) fn run(cli: &Cli, arguments: &VectorAddArguments) -> Result<(), Failure> {
    let input = input_files(arguments);
    let elements = elements(arguments, input)?;
    let count = floats::check_memory(elements)?;
    let output_file = arguments
        .output
        .as_deref()
        .map(OutputFile::prepare)
        .transpose()?;
    let (a, b) = match input {
        Some((a, b)) => (floats::read(a, count)?, floats::read(b, count)?),
        None => floats::generate(count)?,
    };
    let mut out = floats::unwritten(count)?;

    let mut client = session::open(cli)?;
    let info = client.info()?;
    let bar = progress_bar(elements);
    let report = client.vector_add_watched(&a, &b, &mut out, |done| bar.set_position(done as u64));
    bar.finish_and_clear();
    let report = report?;
    let endpoint = session::endpoint_name(&client);
    let left = session::skipped(&client);
    let verdict = floats::verify(&a, &b, &out);
    // Verify, write, print: whatever fails later takes nothing back that was done before.
    if let (0, Some(file)) = (verdict.errors, output_file) {
        file.finish(bytemuck::cast_slice(&out))?;
    }
    let seconds = report.elapsed.as_secs_f64();
    let bytes = 3 * size_of_val(out.as_slice());
    let gb_per_s = rate(bytes as u64, report.elapsed);
    let printed = if cli.json {
        print_object(&json!({
            "elements": elements,
            "errors": verdict.errors,
            "executor": info.executor.as_str(),
            "device": info.device.as_str(),
            "endpoint": endpoint,
            "left": left,
            "seconds": seconds,
            "device_ns": output::nanoseconds(report.device_time),
            "bytes": bytes,
            "gb_per_s": gb_per_s,
        }))
    } else {
        let passed = if verdict.errors == 0 {
            "PASSED"
        } else {
            "FAILED"
        };
        print_line(format!(
            "vector add {passed}: {elements} elements, {} errors\n\
             executor  {} ({})\n\
             endpoint  {endpoint}\n\
             time      {seconds:.6} s end to end, {:.6} s on the device\n\
             rate      {gb_per_s:.3} GB/s ({bytes} bytes there and back)",
            verdict.errors,
            info.executor,
            info.device,
            report.device_time.as_secs_f64(),
        ))
    };
    let ended = session::end(client);
    if let Some((index, found, due)) = verdict.first {
        return Err(Failure::new(
            format!(
                "{} of {elements} elements are wrong, the first at index {index}: {found:e} came, \
                 {due:e} was due",
                verdict.errors
            ),
            "do not trust this device or the path to it; run vgpu doctor and look at the mediator's \
             log",
        )
        .told());
    }
    ended?;
    printed
}

/// Bytes moved in a time, in 10⁹ bytes a second.
pub(crate) fn rate(bytes: u64, time: Duration) -> f64 {
    let seconds = time.as_secs_f64();
    if seconds > 0.0 {
        bytes as f64 / seconds / 1e9
    } else {
        0.0
    }
}

fn input_files(arguments: &VectorAddArguments) -> Option<(&PathBuf, &PathBuf)> {
    match arguments.input.as_deref() {
        Some([a, b]) => Some((a, b)),
        _ => None,
    }
}

/// How many elements there are, by --n, by the files, or by both if they agree.
fn elements(
    arguments: &VectorAddArguments,
    input: Option<(&PathBuf, &PathBuf)>,
) -> Result<u64, Failure> {
    if arguments.n == Some(0) {
        return Err(Failure::usage(
            "--n is 0: there is nothing to add",
            "use --n 1 or more",
        ));
    }
    let Some((a, b)) = input else {
        return arguments.n.ok_or_else(|| {
            Failure::usage(
                "neither --n nor --input is given",
                "use for example --n 1048576",
            )
        });
    };
    let held = floats::lengths(a, b)?;
    match arguments.n {
        Some(n) if n != held => Err(Failure::usage(
            format!("--n is {n}, but the input files hold {held} elements"),
            "leave --n out, or make it what the files hold",
        )),
        _ => Ok(held),
    }
}

/// A bar on stderr, if that is a terminal and there is time to read it.
fn progress_bar(elements: u64) -> ProgressBar {
    if elements < BAR_FROM {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(elements);
    let template = "{bar:40} {percent:>3}%  {human_pos} of {human_len} elements, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

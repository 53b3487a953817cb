//! The command line.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};
use vgpu_cli::values;

/// Send GPU work to the mediator (vgpu-mediatord) and check the results.
#[derive(Debug, Parser)]
#[command(
    name = "vgpu",
    version,
    after_help = "\
Examples:
  vgpu doctor                                    what is missing here, and what to do
  vgpu vector-add --n 1048576                    in a Xen guest: dom0 adds two vectors
  vgpu --endpoint local:/run/vgpu/v.sock info    a mediator on this machine
  vgpu --endpoint xen:,local:/tmp/v.sock ping    the first of the two that answers
  vgpu --secret-file ~/.vgpu-secret --endpoint tcp:gpu-host:7070 info
  vgpu run k.ptx --entry k --grid 4 --block 256 --arg in:x.f32 --arg out:y.f32:4096
  vgpu --json vector-add --input a.f32 b.f32 --output c.f32

Endpoints: xen: (from a guest to dom0), local:PATH or unix:PATH (the mediator's socket on this
machine), tcp:HOST:PORT (over a network; needs a secret), file:DIR (files in a directory that the
mediator sees too, over NFS for example).
Environment: VGPU_ENDPOINT and VGPU_SECRET_FILE are used where --endpoint and --secret-file are not
given; RUST_LOG sets what is logged.
Exit status: 0 only when every result was verified; 1 failure; 2 wrong arguments; 130 interrupted."
)]
pub(crate) struct Cli {
    /// Endpoints to try in order, separated by commas [default: $VGPU_ENDPOINT, or xen:]
    #[arg(long, global = true, value_name = "E[,E…]")]
    pub(crate) endpoint: Option<String>,

    /// The file with the NAME KEY line for tcp: [default: $VGPU_SECRET_FILE]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) secret_file: Option<PathBuf>,

    /// Print JSON instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Wait so long for a mediator at each endpoint, and while nothing moves: 10, 2.5s, 500ms, 1m
    /// [default: 10s for a mediator, 30s while nothing moves]
    #[arg(long, global = true, value_name = "TIME", value_parser = parse_time)]
    pub(crate) timeout: Option<Duration>,

    /// Bytes of the shared ring in each direction: 65536, 64K, 1M [default: 1M over local:; over xen:
    /// 256K, or less where pages are short]
    #[arg(long, global = true, value_name = "BYTES", value_parser = values::byte_count)]
    pub(crate) ring: Option<usize>,

    /// Log more to stderr; twice for still more
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show what executes the work, and why that
    Info,
    /// Measure round trips to the mediator
    Ping(PingArguments),
    /// Check everything that is needed here, line by line, with what to do
    Doctor,
    /// Add two vectors and verify every element
    VectorAdd(VectorAddArguments),
    /// Run a kernel of your own on files
    Run(RunArguments),
    /// Measure vector adds of several sizes, end to end, and round trips; `bench gpu`: launches, memory and copies
    Bench(BenchArguments),
    /// Show that a session does all that it must, at every endpoint of the list
    #[command(hide = true)]
    Conformance(ConformanceArguments),
}

#[derive(Debug, Args)]
pub(crate) struct PingArguments {
    /// Round trips to make
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) count: u32,

    /// Bytes to send there and back
    #[arg(long, value_name = "BYTES", default_value_t = 16, value_parser = clap::value_parser!(u16).range(0..=4096))]
    pub(crate) size: u16,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Files hold 32-bit floats, little-endian, one after the other, and nothing else. Without --input the
vectors are generated, the same ones every time. --input without --output verifies and writes
nothing; --output is written whole or not at all, and only after every element was verified. A file
that is there keeps its mode and owner; a link is followed; a FIFO or device is written into.")]
pub(crate) struct VectorAddArguments {
    /// Elements of each vector; with --input it must be what the files hold
    #[arg(long, value_name = "N", required_unless_present = "input")]
    pub(crate) n: Option<u64>,

    /// Files with the two vectors
    #[arg(long, num_args = 2, value_names = ["A.f32", "B.f32"])]
    pub(crate) input: Option<Vec<PathBuf>>,

    /// File for the sum
    #[arg(long, value_name = "C.f32")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
An argument is a number, as i8, i16, i32, i64, u8, u16, u32, u64, f32 or f64:VALUE, or bytes:HEX for a
parameter of any type, or a buffer, which the kernel gets by its address:
  in:FILE            holds the file
  out:FILE:BYTES     starts as zeros, and is written to the file
  inout:FILE:OUTFILE holds the one file, and is written to the other
  zero:BYTES         starts as zeros
A .cu file is compiled for the device: here where NVRTC is installed, or VGPU_NVRTC names it, by the
mediator otherwise. Its kernel must be extern \"C\" to have the name that it has in the file.
A wrong number or size of arguments is refused before anything runs. Files are written whole or not at
all, and only after the kernel has ended well; an error of CUDA is named with its number.
  vgpu run saxpy.ptx --entry saxpy --grid 4 --block 256 \\
      --arg f32:2.5 --arg in:x.f32 --arg inout:y.f32:out.f32 --arg i32:1000")]
pub(crate) struct RunArguments {
    /// PTX, a cubin, a fatbin, or CUDA C++ (.cu)
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,

    /// The kernel's name
    #[arg(long, value_name = "NAME")]
    pub(crate) entry: String,

    /// Blocks of the grid
    #[arg(long, value_name = "X[,Y[,Z]]", value_parser = parse_triple)]
    pub(crate) grid: [u32; 3],

    /// Threads of a block
    #[arg(long, value_name = "X[,Y[,Z]]", value_parser = parse_triple)]
    pub(crate) block: [u32; 3],

    /// Run all blocks at once, so that they may wait for each other
    #[arg(long)]
    pub(crate) cooperative: bool,

    /// Dynamic shared memory of a block
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    pub(crate) shared: u32,

    /// The device to run it on, of those that this guest has, from 0 [default: 0]
    #[arg(long, value_name = "N")]
    pub(crate) device: Option<u32>,

    /// Launches, one behind the other
    #[arg(long, value_name = "N", default_value_t = NonZeroU32::MIN)]
    pub(crate) repeat: NonZeroU32,

    /// Longest time that the kernel may run [default: what the mediator allows]
    #[arg(long, value_name = "SECONDS", value_parser = parse_time)]
    pub(crate) deadline: Option<Duration>,

    /// A parameter of the kernel, in order
    #[arg(long = "arg", value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) args: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ConformanceArguments {
    /// Run only the cases with this in their name
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) only: String,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct BenchArguments {
    #[command(subcommand)]
    pub(crate) what: Option<BenchCommand>,

    /// Elements of the vectors, separated by commas
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [1, 1 << 10, 1 << 16, 1 << 20, 1 << 24], value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) sizes: Vec<u64>,

    /// Runs of each size; the median counts
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) repeats: u32,

    /// Round trips to make
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) pings: u32,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Measure what work on the device costs: sessions, launches, a graph, memory, copies
    Gpu(GpuBenchArguments),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Figures:
  session_open           from nothing to a device that takes work
  session_reopen         with --kill: the same, from the death of the worker of the session before
  launch_processor       processor time of the program for a launch that is not waited for
  launch_chain_N         N launches and one wait
  launch_synchronize     a launch and a wait for it
  graph_of_20            20 kernels as one graph, and a wait for them
  allocate_free[_async]  1 MiB, the other in the order of a stream
  copy_up_N, copy_down_N a slice of N bytes to the device and back, each byte compared
  copy_…_N_pinned        the same from and to page-locked memory, where the session may have that much
  copies_…_N_pinned      16 such copies in a row and one wait
  vector_add_N_pinned    N floats from and to page-locked memory, copies included
Times are in microseconds, rates in 10^9 bytes per second; p99 of a rate is what 99 of 100 reach.
bench/native_gpu.cu measures the same without vgpu; bench/gpu_speed.sh runs both.")]
pub(crate) struct GpuBenchArguments {
    /// Launches of a chain, and allocations
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) launches: u32,

    /// Bytes of the copies, separated by commas
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [16 << 20, 256 << 20], value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) copies: Vec<u64>,

    /// Elements of the vector adds from and to page-locked memory, separated by commas
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [1 << 20, 1 << 26], value_parser = clap::value_parser!(u32).range(1..=1 << 29))]
    pub(crate) adds: Vec<u32>,

    /// Runs of all that is not done thousands of times; the median counts
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) repeats: u32,

    /// Measure sessions alone
    #[arg(long)]
    pub(crate) sessions: bool,

    /// Rest before each session that is opened, so that a warm worker can be there for it
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) rest: Option<Duration>,

    /// Also kill the worker of a session and open another: a shell's COMMAND that prints the worker's process id
    #[arg(long, value_name = "COMMAND")]
    pub(crate) kill: Option<String>,

    /// Lines of bench/native_gpu.cu to print beside the figures, with the ratio
    #[arg(long, value_name = "FILE")]
    pub(crate) native: Option<PathBuf>,
}

/// Reads a time that somebody may mean to wait.
fn parse_time(text: &str) -> Result<Duration, String> {
    let time = values::time(text)?;
    let meant = Duration::from_millis(1)..=Duration::from_secs(24 * 3600);
    match meant.contains(&time) {
        true => Ok(time),
        false => Err(format!("'{text}' is not between 1ms and a day")),
    }
}

/// Reads one to three numbers; those that are not given are 1.
fn parse_triple(text: &str) -> Result<[u32; 3], String> {
    let mut triple = [1; 3];
    let numbers: Vec<&str> = text.split(',').collect();
    if numbers.len() > triple.len() {
        return Err(format!("'{text}' has more than X,Y,Z"));
    }
    for (place, number) in triple.iter_mut().zip(numbers) {
        *place = number
            .trim()
            .parse()
            .ok()
            .filter(|n| *n > 0)
            .ok_or_else(|| format!("'{number}' is no number above 0"))?;
    }
    Ok(triple)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn triples() {
        assert_eq!(parse_triple("5"), Ok([5, 1, 1]));
        assert_eq!(parse_triple("5, 6"), Ok([5, 6, 1]));
        assert_eq!(parse_triple("5,6,7"), Ok([5, 6, 7]));
        for text in ["", "0", "1,2,3,4", "1,,2", "-1", "x", "4294967296"] {
            assert!(parse_triple(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times() {
        assert_eq!(parse_time("10"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_time("2.5s"), Ok(Duration::from_millis(2500)));
        assert_eq!(parse_time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_time("1m"), Ok(Duration::from_secs(60)));
        assert_eq!(parse_time("24h"), Ok(Duration::from_secs(86_400)));
        for text in ["", "s", "-1", "0", "nan", "inf", "25h", "1e9", "ms"] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }
}

//! The compiler's process. It loads NVRTC; gives up everything, the right to open files included; has NVRTC compile a
//! kernel of its own, which shows that nothing of it is left to be loaded; and only then reads a guest's source.
//!
//! Its standard input is the worker's socket. It has nothing else.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{dup2_stdin, getppid};
use serde::{Deserialize, Serialize};
use vgpu_nvrtc::{CompileError, Header, Nvrtc, Source, Version, options};
use vgpu_protocol::session::server::Failure;
use vgpu_protocol::status::ErrorCode;

use super::{Compiled, Job, wire};
use crate::print::print_error;
use crate::worker::confinement::{self, Confine, Needs, Settings};

/// First argument of such a process.
pub const ARGUMENT: &str = "compiler";

/// Bytes of address space: NVRTC's own is 200 MiB.
const MEMORY: u64 = 2 << 30;

/// Open files while it loads NVRTC.
const MOST_FILES: u64 = 64;

/// A kernel whose compilation shows that NVRTC works here.
const WARM_UP: &str = "__global__ void k() {}\n";

/// Its one argument, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// It does not outlive the broker.
    pub broker_pid: i32,
    /// As of its guest's worker.
    pub confinement: Settings,
    /// Version of the driver that is to load the result, as 1000 × major + 10 × minor.
    pub driver: u32,
    /// Longest processor time in seconds.
    pub seconds: u32,
}

/// The process: `arguments` are a [`Spec`].
pub fn main(arguments: &[String]) -> ExitCode {
    let outcome = match arguments {
        [spec] => serde_json::from_str(spec)
            .map_err(|error| error.to_string())
            .and_then(|spec| run(spec).map_err(|error| error.to_string())),
        _ => Err("it is started by vgpu-mediatord, not by hand".to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&format!("vgpu-mediatord {ARGUMENT}: {error}\n"));
            ExitCode::FAILURE
        }
    }
}

fn run(spec: Spec) -> io::Result<()> {
    let stream = take_stream(spec.broker_pid)?;
    limit(spec.seconds)?;
    let ready = prepare(spec);
    let mut from = &stream;
    // In any case all of it, so that the worker hears the answer.
    let job = wire::read_job(&mut from)?;
    let outcome = ready.and_then(|nvrtc| compile(&nvrtc, &job));
    let mut to = &stream;
    wire::write_outcome(&mut to, &outcome)
}

/// Takes the worker's socket from standard input, and leaves no other descriptor open.
fn take_stream(broker_pid: i32) -> io::Result<UnixStream> {
    let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    confinement::close_all_but(&stream)?;
    dup2_stdin(File::open("/dev/null")?)?;
    // Started through /proc/self/exe, it would be shown as `exe`.
    prctl::set_name(c"vgpu-compiler")?;
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The broker may have died before the line above.
    if getppid().as_raw() != broker_pid {
        return Err(io::Error::other("the broker is gone"));
    }
    prctl::set_no_new_privs()?;
    Ok(stream)
}

fn limit(seconds: u32) -> io::Result<()> {
    let limits = [
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_FSIZE, 0),
        (Resource::RLIMIT_AS, MEMORY),
        (Resource::RLIMIT_CPU, seconds.into()),
        (Resource::RLIMIT_NOFILE, MOST_FILES),
    ];
    for (what, most) in limits {
        let (_, hard) = getrlimit(what)?;
        let most = hard.min(most);
        setrlimit(what, most, most)?;
    }
    Ok(())
}

fn failure(code: ErrorCode, text: impl Into<String>) -> Failure {
    Failure {
        status: code.into(),
        text: text.into(),
    }
}

/// Loads NVRTC, and gives up everything else.
fn prepare(spec: Spec) -> Result<Nvrtc, Failure> {
    let nvrtc = Nvrtc::open(Some(Version::of_driver(spec.driver)));
    confine(spec.confinement)?;
    let unsupported = |why| failure(ErrorCode::Unsupported, why);
    let nvrtc = nvrtc.map_err(|error| unsupported(format!("{error}; {}", error.advice())))?;
    // Not before: where there are many processors NVRTC keeps threads that it has compiled with, and a process with
    // more than one cannot be confined.
    let newest = nvrtc.architectures().last().copied().unwrap_or(0);
    nvrtc
        .compile(&Source::new(WARM_UP), newest)
        .map_err(|error| {
            let (version, path) = (nvrtc.version(), nvrtc.path().display());
            unsupported(format!(
                "NVRTC {version} ({path}) does not work where it may open no file: {error}"
            ))
        })?;
    Ok(nvrtc)
}

/// Confines it, whatever is configured for workers: without the filter of system calls nothing is compiled.
fn confine(mut settings: Settings) -> Result<(), Failure> {
    if settings.confine == Confine::Off {
        settings.confine = Confine::BestEffort;
    }
    let needs = Needs {
        compiler: true,
        ..Needs::default()
    };
    let sealed = confinement::enclose(settings, needs).and_then(confinement::Enclosure::seal);
    let filtered = sealed.and_then(|protections| {
        let calls = protections
            .iter()
            .find(|it| it.name == confinement::SYSTEM_CALLS);
        match calls {
            Some(calls) if calls.on => Ok(()),
            Some(calls) => Err(calls.note.clone()),
            None => Err("no filter of system calls".to_owned()),
        }
    });
    filtered.map_err(|why| {
        let text =
            format!("the mediator cannot confine a compiler, and so does not compile: {why}");
        failure(ErrorCode::Unsupported, text)
    })
}

fn compile(nvrtc: &Nvrtc, job: &Job) -> Result<Compiled, Failure> {
    let source = source(job).ok_or_else(|| {
        failure(
            ErrorCode::Internal,
            "the worker's order is not that of its texts",
        )
    })?;
    // Checked by the worker already, whose guest may have taken it over. Nothing depends on it.
    for option in &source.options {
        options::check(option).map_err(|error| failure(ErrorCode::Range, error.to_string()))?;
    }
    let architecture = nvrtc
        .architecture(job.order.capability)
        .map_err(|error| failure(ErrorCode::Unsupported, error.to_string()))?;
    match nvrtc.compile(&source, architecture) {
        Ok(compiled) => Ok(Compiled {
            result: 0,
            log: compiled.log,
            ptx: compiled.ptx.into_bytes(),
        }),
        Err(CompileError::Nvrtc { result, name, log }) => Ok(Compiled {
            result,
            log: match log.is_empty() {
                true => name,
                false => log,
            },
            ptx: Vec::new(),
        }),
        Err(error) => Err(failure(ErrorCode::Range, error.to_string())),
    }
}

fn source(job: &Job) -> Option<Source> {
    let mut texts = std::str::from_utf8(&job.texts).ok()?;
    let mut take = |bytes: u32| {
        let (text, rest) = texts.split_at_checked(usize::try_from(bytes).ok()?)?;
        texts = rest;
        Some(text.to_owned())
    };
    let order = &job.order;
    let text = take(order.source_bytes)?;
    let headers = order.headers.iter();
    let headers = headers.map(|(name, bytes)| {
        let name = name.clone();
        Some(Header {
            name,
            text: take(*bytes)?,
        })
    });
    Some(Source {
        headers: headers.collect::<Option<_>>()?,
        name: order.name.clone(),
        text,
        options: order.options.clone(),
    })
}

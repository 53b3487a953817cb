//! The one entry for automation of this workspace: `cargo xtask SUBCOMMAND`.
//!
//! Every subcommand is a module with its own flags; it gets the arguments after its name. To add
//! one, write the module and add a line to [`SUBCOMMANDS`].

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

// Before all modules, which see these in place of the standard macros: if the reader has gone, as
// `head` does, xtask must not panic and abandon the processes it started.
macro_rules! print_to {
    ($stream:expr, $end:literal, $($words:tt)+) => {{
        let _ = std::io::Write::write_fmt(
            &mut $stream,
            format_args!("{}{}", format_args!($($words)+), $end),
        );
    }};
}
macro_rules! println {
    ($($words:tt)+) => { print_to!(std::io::stdout(), "\n", $($words)+) };
}
macro_rules! eprint {
    ($($words:tt)+) => { print_to!(std::io::stderr(), "", $($words)+) };
}
macro_rules! eprintln {
    ($($words:tt)+) => { print_to!(std::io::stderr(), "\n", $($words)+) };
}

mod apt;
mod bindgen;
mod busy;
mod c_library;
mod cargo;
mod demo;
mod dist;
mod fuzz;
mod lab;
mod mediator;
mod nightly;
mod python;
mod sanitize;
mod sshd;
mod sshfs;
mod test;
mod two_files;

/// One subcommand: its name, one line of help, and its entry point.
struct Subcommand {
    name: &'static str,
    about: &'static str,
    run: fn(Vec<OsString>) -> anyhow::Result<()>,
}

const SUBCOMMANDS: &[Subcommand] = &[
    Subcommand {
        name: "demo",
        about: "mediator and guest on this machine, without Xen: a verified vector add",
        run: demo::main,
    },
    Subcommand {
        name: "test",
        about: "everything that must hold, the lab included; installs what it needs",
        run: test::main,
    },
    Subcommand {
        name: "test-programs",
        about: "the unit and integration tests alone, several programs at a time",
        run: test::programs::main,
    },
    Subcommand {
        name: "sshfs",
        about: "the file protocol over sshfs, on this machine",
        run: sshfs::main,
    },
    Subcommand {
        name: "c-library",
        about: "programs in C and C++ with libvgpu, against a mediator on this machine",
        run: c_library::main,
    },
    Subcommand {
        name: "python",
        about: "the Python package, installed by pip, against a mediator on this machine",
        run: python::main,
    },
    Subcommand {
        name: "bindgen",
        about: "write xen-sys/src/generated from the C headers, or compare them (--check)",
        run: bindgen::main,
    },
    Subcommand {
        name: "lab",
        about: "boot a real Xen in QEMU and run things in it (shell, run, demo, test)",
        run: lab::main,
    },
    Subcommand {
        name: "dist",
        about: "packages, tarball, manual pages and checksums, of programs for glibc 2.17",
        run: dist::main,
    },
    Subcommand {
        name: "fuzz",
        about: "look for inputs that break a decoder or the ring, guided by coverage (nightly)",
        run: fuzz::main,
    },
    Subcommand {
        name: "sanitize",
        about: "vchan's suite without Xen under AddressSanitizer, ThreadSanitizer or Miri (nightly)",
        run: sanitize::main,
    },
    Subcommand {
        name: "bench",
        about: "compare with other software (vchan: beside the stock libxenvchan, in the lab)",
        run: lab::bench::main,
    },
];

/// Ends the program with the requested help, or with the error in its arguments.
fn help_or_misuse(error: xflags::Error) -> ! {
    if error.is_help() {
        // A reader such as `head` may have gone.
        let _ = writeln!(std::io::stdout(), "{error}");
        std::process::exit(0)
    }
    error.exit()
}

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let Some(name) = args.next() else {
        usage();
        return ExitCode::from(2);
    };
    if name == "--help" || name == "-h" || name == "help" {
        usage();
        return ExitCode::SUCCESS;
    }
    let Some(subcommand) = SUBCOMMANDS.iter().find(|s| name == s.name) else {
        eprintln!("error: unknown subcommand `{}`", name.to_string_lossy());
        usage();
        return ExitCode::from(2);
    };
    match (subcommand.run)(args.collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            match error.is::<test::Stopped>() {
                true => test::Stopped::STATUS.into(),
                false => ExitCode::FAILURE,
            }
        }
    }
}

/// The folder of the workspace that this xtask was built from.
fn workspace_root() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}

fn usage() {
    eprintln!("usage: cargo xtask SUBCOMMAND [ARGS]   (each knows --help)\n");
    for subcommand in SUBCOMMANDS {
        eprintln!("  {:<10} {}", subcommand.name, subcommand.about);
    }
}

#![forbid(unsafe_code)]
//! The fuzz targets: one function each, which takes the bytes that a hostile other side sends.
//!
//! A target panics on a violation: a decoder that panics, an accepted value with another meaning
//! than the bytes sent, an answer that its own decoder refuses. Three things run them:
//! * `cargo xtask fuzz` (libFuzzer, nightly) looks for new inputs, guided by coverage;
//! * `tests/corpus.rs` replays the inputs kept in `fuzz/corpus/` and random changes of them, in
//!   every `cargo test`;
//! * the same under a sanitizer: `cargo xtask sanitize`.
//!
//! To add one: write the function, name it in [`TARGETS`], add `fuzz/fuzz_targets/NAME.rs` and its
//! `[[bin]]` in `fuzz/Cargo.toml`.

mod compiler;
mod control;
mod cpu_session;
mod extension;
mod files;
mod input;
mod protocol;
mod ptx;
mod region;
mod region_memory;
mod ring;
mod session;
mod sockets;
mod text;
mod xenstored;

/// A target.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, which is also that of the corpus's folder and of libFuzzer's program.
    pub name: &'static str,
    /// Runs it once.
    pub run: fn(&[u8]),
    /// Inputs that reach deep, from which a search may start.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Random changes of known inputs that an ordinary test run tries.
    pub changes: u32,
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target {
        name: "protocol",
        run: protocol::run,
        seeds: protocol::seeds,
        changes: 20_000,
    },
    Target {
        name: "mediator_session",
        run: session::mediator,
        seeds: session::mediator_seeds,
        changes: 1_000,
    },
    Target {
        name: "guest_session",
        run: session::guest,
        seeds: session::guest_seeds,
        changes: 1_000,
    },
    Target {
        name: "control_page",
        run: ring::control_page,
        seeds: ring::control_page_seeds,
        changes: 1_000,
    },
    Target {
        name: "rendezvous",
        run: ring::rendezvous,
        seeds: ring::rendezvous_seeds,
        changes: 10_000,
    },
    Target {
        name: "extension",
        run: extension::run,
        seeds: extension::seeds,
        changes: 20_000,
    },
    Target {
        name: "region",
        run: region::run,
        seeds: region::seeds,
        changes: 500,
    },
    Target {
        name: "region_memory",
        run: region_memory::run,
        seeds: region_memory::seeds,
        changes: 1_000,
    },
    Target {
        name: "xenstore",
        run: text::xenstore,
        seeds: text::xenstore_seeds,
        changes: 20_000,
    },
    Target {
        name: "xenstore_messages",
        run: xenstored::messages,
        seeds: xenstored::messages_seeds,
        changes: 20_000,
    },
    Target {
        name: "file_segments",
        run: files::segments,
        seeds: files::segments_seeds,
        changes: 20_000,
    },
    Target {
        name: "file_session",
        run: files::session,
        seeds: files::session_seeds,
        changes: 5_000,
    },
    Target {
        name: "guide_files",
        run: text::guide_files,
        seeds: text::guide_files_seeds,
        changes: 20_000,
    },
    Target {
        name: "endpoints",
        run: text::endpoints,
        seeds: text::endpoints_seeds,
        changes: 20_000,
    },
    Target {
        name: "mediator_config",
        run: control::config,
        seeds: control::config_seeds,
        changes: 5_000,
    },
    Target {
        name: "control_lines",
        run: control::lines,
        seeds: control::lines_seeds,
        changes: 5_000,
    },
    Target {
        name: "compiler_wire",
        run: compiler::run,
        seeds: compiler::seeds,
        changes: 10_000,
    },
    Target {
        name: "tcp_greeting",
        run: sockets::greeting,
        seeds: sockets::greeting_seeds,
        changes: 1_000,
    },
    Target {
        name: "tcp_records",
        run: sockets::records,
        seeds: sockets::records_seeds,
        changes: 100,
    },
    Target {
        name: "ptx_module",
        run: ptx::module,
        seeds: ptx::module_seeds,
        changes: 20_000,
    },
    Target {
        name: "ptx_kernel",
        run: ptx::kernel,
        seeds: ptx::kernel_seeds,
        changes: 3_000,
    },
    Target {
        name: "cpu_session",
        run: cpu_session::run,
        seeds: cpu_session::seeds,
        changes: 1_000,
    },
];

/// The target of this name.
///
/// # Panics
/// If there is none.
pub fn target(name: &str) -> &'static Target {
    TARGETS
        .iter()
        .find(|target| target.name == name)
        .unwrap_or_else(|| panic!("there is no fuzz target {name}"))
}

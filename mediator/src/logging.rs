//! Logging to standard error, for terminals and for systemd alike.

use std::io::Write;

use env_logger::{Builder, Env, TimestampPrecision};
use log::LevelFilter;

/// Starts the logger. `verbose` is how often `-v` was given; `RUST_LOG` has the last word.
///
/// Under systemd (`JOURNAL_STREAM`, in old versions only `NOTIFY_SOCKET`) lines carry the journal's priorities and no time of their own.
pub fn init(verbose: u8) {
    let level = match verbose {
        0 => LevelFilter::Info,
        1 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    let mut builder = Builder::new();
    builder.filter_level(level);
    // It tells of its inner workings, and of things that a guest can cause.
    builder.filter_module("xenstore_rs", LevelFilter::Error);
    builder.parse_env(Env::default());
    let under_systemd = ["JOURNAL_STREAM", "NOTIFY_SOCKET"]
        .iter()
        .any(|name| std::env::var_os(name).is_some());
    if under_systemd {
        builder.format(|out, record| {
            let priority = match record.level() {
                log::Level::Error => 3,
                log::Level::Warn => 4,
                log::Level::Info => 6,
                log::Level::Debug | log::Level::Trace => 7,
            };
            writeln!(out, "<{priority}>{}", record.args())
        });
    } else {
        builder.format_target(false);
        builder.format_timestamp(Some(TimestampPrecision::Millis));
    }
    // Only a second call in one process could fail, and it would change nothing.
    let _ = builder.try_init();
}

//! From the command line to an open session.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};
use vgpu_guest::{Client, Endpoint, Left, Options, parse_list};

use crate::cli::Cli;
use crate::failure::Failure;

/// The endpoints to try: of the command line, of the environment, or dom0.
pub(crate) fn endpoints(cli: &Cli) -> Result<Vec<Endpoint>, Failure> {
    let advice = "write for example --endpoint xen: or --endpoint local:/run/vgpu/vgpu.sock";
    let (text, from) = match (&cli.endpoint, std::env::var_os("VGPU_ENDPOINT")) {
        (Some(text), _) => (text.clone(), "--endpoint"),
        (None, Some(text)) => (text.to_string_lossy().into_owned(), "VGPU_ENDPOINT"),
        (None, None) => return Ok(vec![Endpoint::Xen]),
    };
    parse_list(&text).map_err(|error| Failure::usage(format!("{from}: {error}"), advice))
}

/// The settings of the command line. From here on SIGINT and SIGTERM end waits, so that the node in
/// xenstore and the grants are cleaned up; a second signal ends the program at once.
pub(crate) fn options(cli: &Cli) -> Result<Options, Failure> {
    let interrupt = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_default(signal, Arc::clone(&interrupt))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&interrupt)))
            .map_err(|error| {
                Failure::new(
                    format!("cannot handle signal {signal}: {error}"),
                    "try again",
                )
            })?;
    }
    let mut options = Options {
        ring_bytes: cli.ring,
        secret_file: cli.secret_file.clone(),
        client_name: format!(
            "vgpu {} (pid {})",
            env!("CARGO_PKG_VERSION"),
            std::process::id()
        ),
        interrupt: Some(interrupt),
        ..Options::default()
    };
    if let Some(timeout) = cli.timeout {
        options.connect_timeout = timeout;
        options.stall_timeout = timeout;
    }
    Ok(options)
}

/// Opens a session, and tells on stderr which endpoints were left for it.
pub(crate) fn open(cli: &Cli) -> Result<Client, Failure> {
    let client = Client::connect(&endpoints(cli)?, &options(cli)?)?;
    for left in client.left() {
        eprintln!("left {left}");
    }
    Ok(client)
}

/// The endpoints before the one in use, and why they were left.
pub(crate) fn left(client: &Client) -> Vec<Value> {
    let entry = |left: &Left| {
        json!({
            "endpoint": left.endpoint.to_string(),
            "reason": left.error.to_string(),
        })
    };
    client.left().iter().map(entry).collect()
}

/// The endpoint in use, as people wrote it.
pub(crate) fn endpoint_name(client: &Client) -> String {
    client
        .endpoint()
        .map(Endpoint::to_string)
        .unwrap_or_default()
}

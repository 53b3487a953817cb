//! From the command line to an open session.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use vgpu_cli::{Failure, INTERRUPTED};
use vgpu_guest::{Cause, Client, Device, Endpoint, Options, Skipped, parse_list};

use crate::cli::Cli;
use crate::output;

/// The endpoints to try: of the command line, of the environment, or dom0.
pub(crate) fn endpoints(cli: &Cli) -> Result<Vec<Endpoint>, Failure> {
    let advice = "write for example --endpoint xen: or --endpoint local:/run/vgpu/vgpu.sock";
    let (text, from) = match (&cli.endpoint, std::env::var_os("VGPU_ENDPOINT")) {
        (Some(text), _) => (text.clone(), "--endpoint"),
        (None, Some(text)) => {
            let text = text.into_string().map_err(|text| {
                Failure::usage(format!("VGPU_ENDPOINT is not UTF-8: {text:?}"), advice)
            })?;
            (text, "VGPU_ENDPOINT")
        }
        (None, None) => return Ok(vec![Endpoint::Xen]),
    };
    parse_list(&text).map_err(|error| Failure::usage(format!("{from}: {error}"), advice))
}

/// How soon after the first a second signal can be meant as one: GNU `timeout` sends two at once, to
/// its child and to the group.
const SAME_SIGNAL_WITHIN: Duration = Duration::from_secs(1);

/// From here on SIGINT, SIGTERM and SIGHUP set the flag that this gives. One that comes a second or more after
/// the first ends the program at once.
fn interrupts() -> io::Result<Arc<AtomicBool>> {
    let interrupt = Arc::new(AtomicBool::new(false));
    let impatient = Arc::new(AtomicBool::new(false));
    let (mut first, signalled) = UnixStream::pair()?;
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        let impatient = Arc::clone(&impatient);
        signal_hook::flag::register_conditional_shutdown(signal, INTERRUPTED.into(), impatient)?;
        signal_hook::flag::register(signal, Arc::clone(&interrupt))?;
        signal_hook::low_level::pipe::register(signal, signalled.try_clone()?)?;
    }
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            // An error would only mean that no signal can come.
            let _ = first.read(&mut [0]);
            thread::sleep(SAME_SIGNAL_WITHIN);
            // Relaxed: the flag carries no data; the signal handler reads it.
            impatient.store(true, Ordering::Relaxed);
        })?;
    Ok(interrupt)
}

/// The settings of the command line. From here on SIGINT, SIGTERM and SIGHUP end waits, so that the node in
/// xenstore and the grants are cleaned up.
pub(crate) fn options(cli: &Cli) -> Result<Options, Failure> {
    let interrupt = interrupts()
        .map_err(|error| Failure::new(format!("cannot handle signals: {error}"), "try again"))?;
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

/// Opens a session, and tells on stderr which endpoints were skipped for it.
pub(crate) fn open(cli: &Cli) -> Result<Client, Failure> {
    let client = Client::connect(&endpoints(cli)?, &options(cli)?)?;
    for skipped in client.skipped() {
        output::error(&format!("skipped {skipped}"));
    }
    Ok(client)
}

/// The endpoints before the one in use, and why they were skipped: what `left` says in JSON.
pub(crate) fn skipped(client: &Client) -> Vec<Value> {
    let entry = |skipped: &Skipped| {
        json!({
            "endpoint": skipped.endpoint.to_string(),
            "reason": skipped.error.to_string(),
        })
    };
    client.skipped().iter().map(entry).collect()
}

/// The endpoint in use, as people wrote it.
pub(crate) fn endpoint_name(client: &Client) -> String {
    client
        .endpoint()
        .map(Endpoint::to_string)
        .unwrap_or_default()
}

/// Ends the session once its result is in the user's hands. What goes wrong with the connection from here on takes nothing
/// back, so it is a warning at most.
///
/// # Errors
/// Work that nobody had waited for has failed.
pub(crate) fn end(client: Client) -> Result<(), Failure> {
    ended(client.goodbye())
}

/// [`end`] of a device's session.
///
/// # Errors
/// Those of [`end`].
pub(crate) fn end_device(device: Device) -> Result<(), Failure> {
    ended(device.goodbye())
}

fn ended(ended: vgpu_guest::Result<()>) -> Result<(), Failure> {
    match ended {
        Err(error) if matches!(error.cause(), Cause::Failed(_)) => return Err(error.into()),
        Err(error) => {
            log::warn!("the session did not end in good order, which changes no result: {error}")
        }
        Ok(()) => {}
    }
    Ok(())
}

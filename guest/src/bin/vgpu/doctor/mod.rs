//! `vgpu doctor`: what is here, what is missing, what to do.

mod endpoints;
mod file;
mod secret;
mod xen;

use serde_json::json;
use vgpu_cli::diagnosis::Check;
use vgpu_cli::{Failure, print_line, print_object};
use vgpu_guest::Endpoint;

use crate::cli::Cli;
use crate::session;

pub(crate) fn run(cli: &Cli) -> Result<(), Failure> {
    let endpoints = session::endpoints(cli)?;
    let options = session::options(cli)?;
    let mut checks = Vec::new();
    let mut show = |check: Check| -> Result<(), Failure> {
        if !cli.json {
            print_line(check.lines())?;
        }
        checks.push(check);
        Ok(())
    };
    // Elsewhere nothing of Xen is needed, and its absence no fault.
    if endpoints.contains(&Endpoint::Xen) {
        xen::checks(options.connect_timeout).try_for_each(&mut show)?;
    }
    let is_tcp = |endpoint: &Endpoint| matches!(endpoint, Endpoint::Tcp { .. });
    if endpoints.iter().any(is_tcp) {
        show(secret::check(&options))?;
    }
    let mut chosen = None;
    for endpoint in &endpoints {
        if let Endpoint::File(directory) = endpoint {
            file::checks(directory, &options)
                .into_iter()
                .try_for_each(&mut show)?;
        }
        let (check, session) = endpoints::try_session(endpoint, &options);
        show(check)?;
        if let Some(session) = session {
            for check in session.checks() {
                show(check)?;
            }
            chosen = Some(session);
            break;
        }
    }
    show(compiler())?;
    if cli.json {
        print_object(&json!({
            "ok": chosen.is_some(),
            "endpoint": chosen.as_ref().map(|session| session.endpoint.to_string()),
            "checks": checks,
        }))?;
    }
    let Some(session) = chosen else {
        let list: Vec<_> = endpoints.iter().map(Endpoint::to_string).collect();
        return Err(Failure::new(
            format!("no session over {}", list.join(",")),
            "do what the lines with ✘ say, from the top, and run vgpu doctor again",
        )
        .told());
    };
    if !cli.json {
        print_line(format!("{} works", session.endpoint))?;
    }
    Ok(())
}

/// NVRTC, by which CUDA C++ is compiled here. Where it is missing, the mediator may have it.
fn compiler() -> Check {
    const NAME: &str = "compiler of CUDA C++";
    #[cfg(feature = "nvrtc")]
    let found = match vgpu_nvrtc::Nvrtc::open(None) {
        Ok(nvrtc) => format!("NVRTC {} ({})", nvrtc.version(), nvrtc.path().display()),
        Err(error) => format!("left to the mediator: {error}"),
    };
    #[cfg(not(feature = "nvrtc"))]
    let found = "left to the mediator: built without NVRTC";
    Check::good(NAME, found)
}

//! `vgpu conformance`: does every endpoint of the list do what a session must?

use std::time::Duration;

use serde_json::json;
use vgpu_cli::{Failure, print_line, print_object};
use vgpu_guest::conformance::{self, Ground};

use crate::cli::{Cli, ConformanceArguments};
use crate::session;

/// The watchdog where no time is given: what is tested may be slow.
const WATCHDOG: Duration = Duration::from_secs(60);

pub(crate) fn run(cli: &Cli, arguments: &ConformanceArguments) -> Result<(), Failure> {
    let endpoints = session::endpoints(cli)?;
    let mut options = session::options(cli)?;
    if cli.timeout.is_none() {
        options.connect_timeout = WATCHDOG;
        options.stall_timeout = WATCHDOG;
    }
    let (mut passed, mut failed) = (0, 0);
    for endpoint in &endpoints {
        let ground = Ground {
            endpoint,
            options: &options,
        };
        for outcome in conformance::run(&ground, &arguments.only) {
            let name = outcome.case.name;
            let error = outcome.result.err();
            match error {
                None => passed += 1,
                Some(_) => failed += 1,
            }
            let seconds = outcome.elapsed.as_secs_f64();
            if cli.json {
                print_object(&json!({
                    "case": name,
                    "endpoint": endpoint.to_string(),
                    "ok": error.is_none(),
                    "reason": error,
                    "seconds": (seconds * 1e6).round() / 1e6,
                }))?;
            } else {
                print_line(match error {
                    None => format!("ok {name} over {endpoint} ({seconds:.2} s)"),
                    Some(error) => format!("FAILED {name} over {endpoint}: {error}"),
                })?;
            }
        }
    }
    if cli.json {
        print_object(&json!({"passed": passed, "failed": failed}))?;
    } else {
        print_line(format!("conformance: {passed} passed, {failed} failed"))?;
    }
    match (passed, failed) {
        (1.., 0) => Ok(()),
        (0, 0) => Err(Failure::usage(
            format!("no case has '{}' in its name", arguments.only),
            "leave it out to run all cases",
        )),
        _ => Err(Failure::new(
            format!("cases that failed: {failed}"),
            "see above; vgpu doctor tells whether there is a mediator at all",
        )
        .told()),
    }
}

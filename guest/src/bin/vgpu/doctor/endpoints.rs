//! Whether an endpoint leads to a mediator, and what that mediator has.

use std::time::Instant;

use vgpu_cli::diagnosis::Check;
use vgpu_guest::{Cause, Client, Endpoint, Error, InfoReply, Options};

use crate::output;

/// The outcome of a trial session with the mediator.
pub(super) struct Session {
    pub(super) endpoint: Endpoint,
    info: InfoReply,
    round_trip_us: f64,
    /// Why the session did not end in good order.
    bad_end: Option<Error>,
}

/// Opens a session, asks what is there, and ends it.
pub(super) fn try_session(endpoint: &Endpoint, options: &Options) -> (Check, Option<Session>) {
    let start = Instant::now();
    let asked = Client::connect(std::slice::from_ref(endpoint), options).and_then(|mut client| {
        let connected = start.elapsed();
        let info = client.info()?;
        let round_trip_us = client.ping(&[0; 16])?.as_secs_f64() * 1e6;
        let session = Session {
            endpoint: endpoint.clone(),
            info,
            round_trip_us,
            bad_end: client.goodbye().err(),
        };
        Ok((connected, session))
    });
    match asked {
        Ok((connected, session)) => {
            let found = format!(
                "{endpoint} answered in {:.1} ms",
                connected.as_secs_f64() * 1000.0
            );
            (Check::good("session", found), Some(session))
        }
        Err(error) => {
            let found = format!("none over {endpoint} ({})", reason(&error));
            (Check::bad("session", found, error.advice()), None)
        }
    }
}

/// The reason alone, where the endpoint is named already.
fn reason(error: &Error) -> String {
    match error.cause() {
        Cause::NoEndpoint(skipped) if skipped.len() == 1 => skipped[0].error.cause().to_string(),
        cause => cause.to_string(),
    }
}

impl Session {
    pub(super) fn checks(&self) -> Vec<Check> {
        let info = &self.info;
        let executor = format!("{} on {} ({})", info.executor, info.device, info.reason);
        let memory = format!("{} on the device", output::bytes(info.total_memory));
        let mut checks = vec![
            Check::good("mediator", info.mediator.as_str()),
            Check::good("executor", executor),
            Check::good("memory", memory),
            Check::good("round trip", format!("{:.1} µs", self.round_trip_us)),
        ];
        if let Some(error) = &self.bad_end {
            let found = format!("no good end ({})", reason(error));
            checks.push(Check::remark("goodbye", found, error.advice()));
        }
        checks
    }
}

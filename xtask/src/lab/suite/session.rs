//! The requirements on every session (`vgpu conformance`), between a guest and dom0: over the ring,
//! over a network, and with one after the other as endpoints.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Case, Context};
use crate::lab::guest::Kind::Pv;
use crate::lab::host::Place;

/// The suite opens some thirty sessions and sends 100 MB, through emulated memory.
const SUITE_LIMIT: Duration = Duration::from_secs(400);

/// The same over the emulated network, enciphered and deciphered by emulated processors: a vector add of 1,048,576
/// takes 40 s.
const TCP_LIMIT: Duration = Duration::from_secs(1800);

/// A mediator on dom0's end of the network, and the guests' copy of the secret.
const MEDIATOR: &str = "umask 077; vgpuctl secret lab >/tmp/secrets 2>/dev/null || exit
     exec vgpu-mediatord --listen tcp:10.77.0.1:7070 --secrets /tmp/secrets --executor cpu";

pub(crate) const CASES: &[Case] = &[
    Case::with_mediator("session/conformance", &[Pv], |context| {
        conforms(
            context,
            Context::shared(Pv),
            "vgpu --endpoint xen:",
            SUITE_LIMIT,
        )
    }),
    Case::networked("session/conformance-tcp", over_tcp),
];

fn conforms(context: &mut Context, guest: &str, vgpu: &str, limit: Duration) -> Result<()> {
    let script = format!("{vgpu} --json conformance");
    let text = context.succeed_within(Place::Guest(guest), &script, limit)?;
    let last = text.lines().last().unwrap_or_default();
    let total: serde_json::Value = serde_json::from_str(last)?;
    ensure!(
        total["failed"] == 0 && total["passed"].as_u64() > Some(10),
        "{text}"
    );
    Ok(())
}

fn over_tcp(context: &mut Context) -> Result<()> {
    context.succeed(Place::Dom0, "network_up")?;
    let mediator = context.start(Place::Dom0, MEDIATOR)?;
    let outcome = mediator
        .wait_for(context.host.as_mut(), "listening on tcp:", SUITE_LIMIT)
        .and_then(|_| with_secret(context));
    mediator.signal(context.host.as_mut(), "TERM")?;
    mediator.wait(context.host.as_mut(), SUITE_LIMIT)?;
    context.succeed(Place::Dom0, "rm -f /tmp/secrets")?;
    outcome
}

fn with_secret(context: &mut Context) -> Result<()> {
    let line = context.succeed(Place::Dom0, "cat /tmp/secrets")?;
    let [(guest, _), ..] = Context::networked();
    let place = Place::Guest(guest);
    let script = format!("umask 077; echo '{}' >/tmp/secret", line.trim());
    context.succeed(place, &script)?;
    // dom0 serves no ring here: the list goes on to the next.
    let listed = "VGPU_SECRET_FILE=/tmp/secret \
                  VGPU_ENDPOINT=unix:/none,tcp:10.77.0.1:7070 vgpu --json info";
    let info = context.succeed(place, listed)?;
    ensure!(
        info.contains("\"endpoint\":\"tcp:10.77.0.1:7070\"") && info.contains("unix:/none"),
        "{info}"
    );
    // Without the secret, nobody is let in.
    let command = "VGPU_SECRET_FILE= vgpu --endpoint tcp:10.77.0.1:7070 info";
    let error = context.fail(place, command)?;
    ensure!(error.contains("needs a secret"), "{error}");
    let vgpu = "vgpu --secret-file /tmp/secret --endpoint tcp:10.77.0.1:7070";
    conforms(context, guest, vgpu, TCP_LIMIT)?;
    context.succeed(place, "rm -f /tmp/secret").map(drop)
}

//! A peer that breaks every rule it can, over real grants and event channels.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Case, Context};
use crate::lab::guest::Kind::Pv;
use crate::lab::host::Place;

/// Far more than the states and the storm after them take in the emulator.
const RUN_LIMIT: Duration = Duration::from_secs(1800);

pub(crate) const CASES: &[Case] = &[
    Case::new("faults/hostile-few", &[Pv], |context| {
        hostile(context, "", "--victim", 2_400)?;
        hostile(context, "--victim", "", 1_200)
    }),
    // Ten times as many, against the same oracle, are driven over shared memory
    // (vchan/tests/channels/hostile_states.rs); here it is about real grants and event channels.
    Case::new("faults/hostile-guest-against-dom0", &[Pv], |context| {
        hostile(context, "", "--victim", 10_000)
    }),
];

/// One side lies; every answer of the other is checked.
fn hostile(context: &mut Context, guest: &str, dom0: &str, states: u64) -> Result<()> {
    let domid = context.host.guest_domid("pv")?;
    let lies = |side: &str| match side {
        "" => format!("--states {states}"),
        side => side.to_owned(),
    };
    let serve = format!(
        "vchan-testing hostile serve xen:0/data/h --timeout 240 {}",
        lies(guest)
    );
    let connect = format!(
        "vchan-testing hostile connect xen:{domid}/data/h --timeout 240 {}",
        lies(dom0)
    );
    let server = context.start(Place::Guest("pv"), &serve)?;
    let client = context.start(Place::Dom0, &connect)?;
    let ours = client.wait(context.host.as_mut(), RUN_LIMIT)?;
    let theirs = server.wait(context.host.as_mut(), RUN_LIMIT)?;
    context.succeed(Place::Guest("pv"), "xenstore-rm data/h; true")?;
    let (victim, liar) = match dom0 {
        "" => (&theirs, &ours),
        _ => (&ours, &theirs),
    };
    // The victim first: the liar only sees it gone.
    for output in [victim, liar] {
        output
            .text()
            .with_context(|| format!("{} | {}", ours.stdout, theirs.stdout))?;
    }
    // The seed and the counts, for the log.
    eprintln!("{}", victim.stdout.trim());
    let reached = victim
        .stdout
        .lines()
        .find_map(states_of)
        .context("no count of states")?;
    ensure!(reached >= states, "only {reached} states");
    Ok(())
}

/// The number in `hostile: N corrupted states, …`.
fn states_of(line: &str) -> Option<u64> {
    let (number, _) = line
        .strip_prefix("hostile: ")?
        .split_once(" corrupted states")?;
    number.parse().ok()
}

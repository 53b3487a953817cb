//! The suite that every channel must pass, in real Xen.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Case, Context};
use crate::lab::guest::Kind::{self, Pv, Pvh};
use crate::lab::host::Place;
use crate::lab::job::Job;

/// Takes a minute on an idle machine.
const SUITE_LIMIT: Duration = Duration::from_secs(900);

pub(crate) const CASES: &[Case] = &[
    Case::new("channel/conformance-pv", &[Pv], |c| conformance(c, Pv)),
    Case::new("channel/conformance-pvh", &[Pvh], |c| conformance(c, Pvh)),
];

/// A PVH guest's part of the suite: one case of each kind. The whole takes longer than most such
/// guests live in QEMU's emulation.
const IN_PVH: &str = "echo_edge_sizes both_ways_unequal client_drops_with_data both_close \
     close_wakes_other_half";

/// The guest is the server, dom0 the client: the only roles XCP-ng allows.
fn conformance(context: &mut Context, kind: Kind) -> Result<()> {
    let name = Context::shared(kind);
    let domid = context.host.guest_domid(name)?;
    let suite = |command: &str| match kind {
        Pv => format!("exec {command}"),
        Pvh => format!("for c in {IN_PVH}; do {command} --only $c || exit; done"),
    };
    let serve = suite("vchan-testing conformance-serve xen:0/data/conformance");
    let server = context.start(Place::Guest(name), &serve)?;
    let connect = format!("vchan-testing conformance-connect xen:{domid}/data/conformance");
    let client = context.start(Place::Dom0, &suite(&connect))?;
    let outcome = both_succeed(context, [("dom0", client), ("the guest", server)]);
    // Each channel removes its own node; the folder around them belongs to this case.
    context.succeed(Place::Guest(name), "xenstore-rm data/conformance")?;
    outcome
}

fn both_succeed(context: &mut Context, sides: [(&str, Job); 2]) -> Result<()> {
    for (side, job) in sides {
        let output = job.wait(context.host.as_mut(), SUITE_LIMIT)?;
        let failed: Vec<&str> = output
            .stdout
            .lines()
            .filter(|line| line.starts_with("FAILED"))
            .collect();
        ensure!(
            output.success(),
            "in {side}: {} | {}",
            failed.join(", "),
            output.last_words()
        );
    }
    Ok(())
}

//! The suite that every channel must pass, in real Xen.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Case, Context, Mediator};
use crate::lab::guest::GuestSpec;
use crate::lab::guest::Kind::{self, Pv, Pvh};
use crate::lab::host::Place;
use crate::lab::job::Job;

/// Takes a minute on an idle machine.
const SUITE_LIMIT: Duration = Duration::from_secs(900);

pub(crate) const CASES: &[Case] = &[
    quiet("channel/conformance-pv", &[Pv], conformance),
    quiet("channel/conformance-pvh", &[], conformance_case_by_case),
];

const fn quiet(
    name: &'static str,
    guests: &'static [Kind],
    run: fn(&mut Context) -> Result<()>,
) -> Case {
    Case {
        name,
        guests,
        mediator: Mediator::Stopped,
        run,
    }
}

/// How often one run may start over because the emulator lost its guest.
const GUESTS_TO_LOSE: usize = 12;

/// The whole suite in one go.
fn conformance(context: &mut Context) -> Result<()> {
    let name = Context::shared(Pv);
    let outcome = both_ends(context, name, "");
    // Each channel removes its own node; the folder around them is this case's.
    context.succeed(Place::Guest(name), "xenstore-rm data/conformance")?;
    outcome
}

/// The suite in pieces, in a guest of its own. QEMU's emulation of PVH guests does not survive many
/// thousands of wake-ups, and a case that lost its guest so shows nothing: it runs again.
fn conformance_case_by_case(context: &mut Context) -> Result<()> {
    let mut spec = GuestSpec::new("conformance", Pvh);
    spec.memory_mib = 256;
    context.create(&spec)?;
    let cases = context.succeed(Place::Dom0, "vchan conformance-list")?;
    let before = context.host.guests_lost();
    for case in cases.lines() {
        loop {
            let lost = context.host.guests_lost();
            let Err(error) = both_ends(context, &spec.name, &format!("--only {case}")) else {
                break;
            };
            let now = context.host.guests_lost();
            if now == lost || now - before > GUESTS_TO_LOSE {
                return Err(error.context(case.to_owned()));
            }
            eprintln!("lab: QEMU's emulation ended the guest (triple fault); {case} runs again");
            let _ = context.host.guest_destroy(&spec.name);
            context.create(&spec)?;
        }
    }
    context.host.guest_destroy(&spec.name)
}

/// The guest is the server, dom0 the client: the only roles XCP-ng allows.
fn both_ends(context: &mut Context, guest: &str, which: &str) -> Result<()> {
    let domid = context.host.guest_domid(guest)?;
    let serve = format!("vchan conformance-serve --peer 0 --path data/conformance {which}");
    let server = context.start(Place::Guest(guest), &serve)?;
    let connect =
        format!("vchan conformance-connect --peer {domid} --path data/conformance {which}");
    let client = context.start(Place::Dom0, &connect)?;
    both_succeed(context, [("dom0", client), ("the guest", server)])
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

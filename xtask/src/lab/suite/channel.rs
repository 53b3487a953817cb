//! The lower layers in real Xen: raw bindings over both providers, and the
//! suite every channel must pass.

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
    quiet("channel/xen-sys-both-providers-in-dom0", &[], |c| {
        xen_sys(c, Place::Dom0, 0)
    }),
    quiet(
        "channel/xen-sys-both-providers-in-a-guest",
        &[],
        xen_sys_in_guest,
    ),
    quiet("channel/conformance-pv", &[Pv], |c| conformance(c, Pv)),
    quiet("channel/conformance-pvh", &[Pvh], |c| conformance(c, Pvh)),
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

fn xen_sys(context: &mut Context, place: Place<'_>, domid: u16) -> Result<()> {
    // One at a time: the tests share the kernel's limit of grantable pages.
    let script = format!("XEN_SYS_DOMID={domid} xen-sys-real-xen --ignored --test-threads=1");
    let output = context.host.exec(place, &script, SUITE_LIMIT)?;
    if !output.success() {
        let failed: Vec<&str> = output
            .stdout
            .lines()
            .filter(|line| line.ends_with("FAILED"))
            .collect();
        anyhow::bail!("{} | {}", failed.join(", "), output.last_words());
    }
    Ok(())
}

/// In a guest of its own: the suite maps grants, which the shared guests may not.
fn xen_sys_in_guest(context: &mut Context) -> Result<()> {
    let mut spec = GuestSpec::new("mapper", Pv);
    spec.memory_mib = 256;
    spec.maptrack_frames = None;
    context.create(&spec)?;
    let domid = context.host.guest_domid("mapper")?;
    let outcome = xen_sys(context, Place::Guest("mapper"), domid);
    context.host.guest_destroy("mapper")?;
    outcome
}

/// The guest is the server, dom0 the client: the only roles XCP-ng allows.
fn conformance(context: &mut Context, kind: Kind) -> Result<()> {
    let name = Context::shared(kind);
    let domid = context.host.guest_domid(name)?;
    let serve = "vchan conformance-serve --peer 0 --path data/conformance";
    let server = context.start(Place::Guest(name), serve)?;
    let connect = format!("vchan conformance-connect --peer {domid} --path data/conformance");
    let client = context.start(Place::Dom0, &connect)?;
    let outcome = both_succeed(context, [("dom0", client), ("the guest", server)]);
    // Each channel removes its own node; the folder around them is this case's.
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

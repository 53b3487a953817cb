//! Cases 41, 43 and 48 of `docs/threat-model.md` with a real xenstored: a used-up quota, floods,
//! and keys that keep changing.

use anyhow::{Result, ensure};

use super::{Case, Context, vector_add};
use crate::lab::guest::Kind::Pv;
use crate::lab::host::{LIMIT, Place};

pub(crate) const CASES: &[Case] = &[
    Case::new("faults/case-41-no-node-to-be-had", &[Pv], quota),
    Case::with_mediator("faults/case-43-flood-below-our-path", &[Pv], flood),
    Case::new("faults/case-48-keys-never-the-same", &[Pv], swap),
];

/// A guest has as many nodes as xenstored permits.
fn quota(context: &mut Context) -> Result<()> {
    let text = context.succeed(Place::Guest("pv"), "vchan-testing fault quota xen:0/data/q")?;
    ensure!(text.contains("quota: refused, then served"), "{text}");
    Ok(())
}

/// A guest writes without end below the path at which dom0 looks for it.
fn flood(context: &mut Context) -> Result<()> {
    let domid = context.host.guest_domid("pv")?;
    let flood = context.start(
        Place::Guest("pv"),
        "exec vchan-testing fault flood xen:0/data/vgpu/flood --timeout 10",
    )?;
    let served = context.start(
        Place::Guest("pv"),
        "exec vchan serve --peer 0 --path data/t --sink",
    )?;
    context.succeed(
        Place::Dom0,
        &format!("vchan connect --peer {domid} --path data/t --pipe </etc/hosts"),
    )?;
    served.wait(context.host.as_mut(), LIMIT)?.text()?;
    // The mediator, which does watch the guest's folder, serves meanwhile.
    vector_add::vector_add(context, Pv, 1_000)?;
    let output = flood.wait(context.host.as_mut(), LIMIT)?;
    let text = output.text()?;
    ensure!(text.starts_with("flood: "), "{text}");
    Ok(())
}

/// Keys that change at every look lead nowhere, and not beyond the deadline.
fn swap(context: &mut Context) -> Result<()> {
    let domid = context.host.guest_domid("pv")?;
    let swapping = context.start(
        Place::Guest("pv"),
        "exec vchan-testing fault swap xen:0/data/t --timeout 8",
    )?;
    let there = format!(
        "n=0; until xenstore-exists /local/domain/{domid}/data/t/event-channel; do \
         [ $n -lt 100 ] || exit 1; n=$((n + 1)); usleep 100000; done"
    );
    context.succeed(Place::Dom0, &there)?;
    let connect = format!("vchan connect --peer {domid} --path data/t --timeout 3 --echo");
    let error = context.fail(Place::Dom0, &connect);
    swapping.wait(context.host.as_mut(), LIMIT)?.text()?;
    error.map(drop)
}

//! Many channels: one after the other, checked for leaks, and all at once.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Case, Context};
use crate::lab::guest::Kind::Pv;
use crate::lab::host::{Output, Place};

/// Takes a minute or two on an idle machine.
const LIMIT: Duration = Duration::from_secs(1200);

pub(crate) const CASES: &[Case] = &[
    Case::new("vchan/no-leaks", &[Pv], no_leaks),
    Case::new("vchan/hundred-channels-in-one-thread", &[Pv], hundred),
];

/// Runs both sides' commands together; returns the guest's and dom0's output.
fn pair(context: &mut Context, in_guest: &str, in_dom0: &str) -> Result<[String; 2]> {
    let theirs = context.start(Place::Guest("pv"), in_guest)?;
    let ours = context.start(Place::Dom0, in_dom0)?;
    let text = |output: Output, script: &str| match output.success() {
        true => Ok(output.stdout),
        false => Err(anyhow::anyhow!("`{script}`: {}", output.last_words())),
    };
    let ours = text(ours.wait(context.host.as_mut(), LIMIT)?, in_dom0);
    let theirs = text(theirs.wait(context.host.as_mut(), LIMIT)?, in_guest);
    Ok([theirs?, ours?])
}

/// 1,000 channels that are closed and 100 of which one side is killed. Each command looks at the
/// descriptors, mappings and threads of its process, which lives through all of it; the runner at
/// grants, event channels, nodes and processes; this case at the pages that the guest has granted,
/// by what is left to grant.
fn no_leaks(context: &mut Context) -> Result<()> {
    let domid = context.host.guest_domid("pv")?;
    let left =
        |context: &mut Context| context.succeed(Place::Guest("pv"), "vchan-testing pages-left");
    let before = left(context)?;
    let outcome = pair(
        context,
        "vchan-testing cycle-serve xen:0/data/cycle",
        &format!("vchan-testing cycle-connect xen:{domid}/data/cycle"),
    );
    // Each channel removes its own node; the folder around them belongs to this case.
    context.succeed(
        Place::Guest("pv"),
        "[ -z \"$(xenstore-list data/cycle)\" ] && xenstore-rm data/cycle",
    )?;
    for text in outcome? {
        ensure!(
            text.starts_with("closed: 1000 rounds\nkilled: 100 rounds\nheld: "),
            "{text}"
        );
    }
    let after = left(context)?;
    ensure!(before == after, "{before} before, {after} after");
    Ok(())
}

/// A hundred channels in one thread on each side, two of which dom0 never reads.
fn hundred(context: &mut Context) -> Result<()> {
    let domid = context.host.guest_domid("pv")?;
    let outcome = pair(
        context,
        "vchan-testing many-serve xen:0/data/many",
        &format!("vchan-testing many-connect xen:{domid}/data/many --stalled 2"),
    );
    context.succeed(Place::Guest("pv"), "xenstore-rm data/many")?;
    let [theirs, ours] = outcome?;
    ensure!(
        theirs.contains("2 with bytes left, served: 100 channels, 1 event-channel handles"),
        "{theirs}"
    );
    ensure!(
        ours.contains("checked: 100 channels, 1 event-channel handles"),
        "{ours}"
    );
    Ok(())
}

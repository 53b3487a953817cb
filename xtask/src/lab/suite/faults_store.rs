//! Cases 41, 43 and 48 of `docs/threat-model.md` with a real xenstored: used-up quotas, floods,
//! and keys that keep changing.

use anyhow::{Result, bail, ensure};

use super::{Case, Context, vector_add};
use crate::lab::guest::Kind::{Pv, Pvh};
use crate::lab::host::{LIMIT, Place};

pub(crate) const CASES: &[Case] = &[
    Case::with_mediator("faults/case-41-quotas-used-up", &[Pv, Pvh], quotas),
    Case::with_mediator("faults/case-43-flood-below-our-path", &[Pv], flood),
    Case::new("faults/case-48-keys-never-the-same", &[Pv], swap),
];

/// Nodes and transactions that a guest may have: XCP-ng's quotas, as `lab/image.rs` gives them to oxenstored, and the
/// defaults of C xenstored.
const OF_XCP_NG: (u32, u32) = (8192, 10);
const OF_C_XENSTORED: (u32, u32) = (1000, 10);

/// At most so many nodes are left for the guest to make, and for those that it has from the start.
const ITS_OWN: u32 = 150;

/// A guest has all that xenstored permits it. It is told so, nobody else notices, and it is served once it has
/// removed what it has.
fn quotas(context: &mut Context) -> Result<()> {
    let is_oxenstored = context.host.exec(Place::Dom0, "pidof oxenstored", LIMIT)?;
    let (nodes, transactions) = match is_oxenstored.success() {
        true => OF_XCP_NG,
        false => OF_C_XENSTORED,
    };
    let domid = context.host.guest_domid("pv")?;
    // All but the last in dom0, where each takes a fraction of the time. Their folders count as well.
    let made = (nodes - ITS_OWN) * 50 / 51;
    let fill = format!("vchan-testing fault fill /local/domain/{domid}/data/q/filler {made}");
    context.succeed(Place::Dom0, &fill)?;
    let full = context.start(
        Place::Guest("pv"),
        "exec vchan-testing fault quota xen:0/data/q",
    )?;
    let output = full.wait_for(context.host.as_mut(), "full: ", LIMIT)?;
    let full_line = output
        .stdout
        .lines()
        .find_map(|line| line.strip_prefix("full: "));
    let words: Vec<&str> = full_line.unwrap_or_default().split(' ').collect();
    let [more, "nodes", "more,", begun, "transactions"] = words[..] else {
        bail!("it does not say what it has: {}", output.stdout);
    };
    // The rest is what a guest has anyway.
    let near = more
        .parse()
        .is_ok_and(|more: u32| (1..=ITS_OWN).contains(&more));
    // oxenstored looks before it counts the new one.
    let begun_all = begun.parse() == Ok(transactions) || begun.parse() == Ok(transactions + 1);
    ensure!(
        near && begun_all,
        "{more} nodes beyond {made}, {begun} transactions: {}",
        output.stdout
    );
    let error = context.fail(
        Place::Guest("pv"),
        "vgpu --endpoint xen: vector-add --n 1000",
    )?;
    for words in ["xenstore quota reached", "xenstore-ls data"] {
        ensure!(error.contains(words), "not `{words}`: {error}");
    }
    // Another guest, and dom0, have what they need.
    vector_add::vector_add(context, Pvh, 1_000)?;
    context.succeed(
        Place::Dom0,
        "vgpuctl status >/dev/null && xenstore-write /tool/quota 1 && xenstore-rm /tool/quota",
    )?;
    full.signal(context.host.as_mut(), "TERM")?;
    let output = full.wait(context.host.as_mut(), LIMIT)?;
    let text = output.text()?;
    ensure!(text.contains("quota: refused, then served"), "{text}");
    vector_add::vector_add(context, Pv, 1_000)
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

//! Shared regions over real grants: bytes both ways, revocation, the kernel's limit of grants, and
//! the end of either side while the other holds the region.

use anyhow::{Result, ensure};

use super::{Case, Context};
use crate::lab::guest::GuestSpec;
use crate::lab::guest::Kind::Pv;
use crate::lab::host::{LIMIT, Place};
use crate::lab::job::Job;

pub(crate) const CASES: &[Case] = &[
    Case::new(
        "region/both-ways-budget-and-killed-peers",
        &[Pv],
        shared_guest,
    ),
    Case::new("region/destroyed-guest-is-no-zombie", &[], destroyed_guest),
];

/// The guest's end, which makes the region, and dom0's, which maps it.
fn start(context: &mut Context, guest: &str, work: &str) -> Result<[Job; 2]> {
    let domid = context.host.guest_domid(guest)?;
    let serve = "exec vchan-testing region-serve xen:0/data/region";
    let connect = format!("exec vchan-testing region-connect xen:{domid}/data/region --to {work}");
    Ok([
        context.start(Place::Guest(guest), serve)?,
        context.start(Place::Dom0, &connect)?,
    ])
}

fn shared_guest(context: &mut Context) -> Result<()> {
    both_ways(context)?;
    // dom0's kernel tells the guest that the pages are free, and then its process is gone too.
    let [guest, dom0] = start(context, "pv", "hold")?;
    dom0.wait_for(context.host.as_mut(), "region: mapped", LIMIT)?;
    dom0.signal(context.host.as_mut(), "KILL")?;
    let output = guest.wait(context.host.as_mut(), LIMIT)?;
    ensure!(
        output.text()?.contains("region: revoked after"),
        "the revocation did not end: {}",
        output.last_words()
    );
    // The reverse: dom0's end lives on, without the mapping.
    let [guest, dom0] = start(context, "pv", "hold")?;
    dom0.wait_for(context.host.as_mut(), "region: mapped", LIMIT)?;
    guest.signal(context.host.as_mut(), "KILL")?;
    let seen = dom0.wait_for(context.host.as_mut(), "region: after", LIMIT)?;
    ensure!(
        seen.stdout.contains("mapped: false"),
        "still mapped: {}",
        seen.stdout
    );
    dom0.signal(context.host.as_mut(), "KILL")
}

/// 2 MiB both ways, by checksums; revoked; a region of all 1,024 pages is refused, two hundred
/// times, and none of the attempts keeps a page.
fn both_ways(context: &mut Context) -> Result<()> {
    let [guest, dom0] = start(context, "pv", "check")?;
    let line = "region: 2097152 bytes both ways, revoked";
    let output = dom0.wait(context.host.as_mut(), LIMIT)?;
    ensure!(output.text()? == line, "dom0: {}", output.last_words());
    let output = guest.wait(context.host.as_mut(), LIMIT)?;
    let text = output.text()?;
    ensure!(text.starts_with(line), "guest: {}", output.last_words());
    ensure!(
        text.contains("/sys/module/xen_gntalloc/parameters/limit"),
        "the refusal does not name the limit: {text}"
    );
    Ok(())
}

/// The guest's domain ends while dom0's process goes on and keeps its value for the region.
fn destroyed_guest(context: &mut Context) -> Result<()> {
    let mut spec = GuestSpec::new("victim", Pv);
    spec.memory_mib = 256;
    context.create(&spec)?;
    let domid = context.host.guest_domid("victim")?;
    let [_, dom0] = start(context, "victim", "hold")?;
    dom0.wait_for(context.host.as_mut(), "region: mapped", LIMIT)?;
    context.host.guest_destroy("victim")?;
    let seen = dom0.wait_for(context.host.as_mut(), "region: after", LIMIT)?;
    ensure!(
        seen.stdout.contains("PeerLost") && seen.stdout.contains("mapped: false"),
        "dom0's end did not learn of it: {}",
        seen.stdout
    );
    let forgotten = format!(
        "n=0; while [ $n -lt 100 ]; do xl list | awk '$2 == {domid} {{ found = 1 }} \
         END {{ exit !found }}' || exit 0; n=$((n + 1)); usleep 100000; done; xl list >&2; exit 1"
    );
    context.succeed(Place::Dom0, &forgotten)?;
    ensure!(
        dom0.poll(context.host.as_mut())?.is_none(),
        "dom0's end did not live on"
    );
    dom0.signal(context.host.as_mut(), "KILL")
}

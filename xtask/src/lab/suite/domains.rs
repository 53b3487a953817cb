//! Guests that end while a channel is open.

use anyhow::{Result, ensure};

use super::context::ensure_failed_well;
use super::{Case, Context, vchan, vector_add};
use crate::lab::guest::GuestSpec;
use crate::lab::guest::Kind::Pv;
use crate::lab::host::{LIMIT, Place};

pub(crate) const CASES: &[Case] = &[Case::with_mediator(
    "domains/guest-destroyed-in-a-session",
    &[Pv],
    guest_destroyed,
)];

/// In a session, in a transfer, and with a hundred more channels.
fn guest_destroyed(context: &mut Context) -> Result<()> {
    let mut spec = GuestSpec::new("victim", Pv);
    spec.memory_mib = 256;
    context.create(&spec)?;
    let domid = context.host.guest_domid("victim")?;
    // A hundred, of one thread on each side, before anything else keeps the machine busy.
    context.start(
        Place::Guest("victim"),
        "vchan-testing many-serve xen:0/data/many --timeout 240",
    )?;
    let connect_many = format!(
        "vchan-testing many-connect xen:{domid}/data/many --timeout 240 --until-lost --stalled 2"
    );
    let many = context.start(Place::Dom0, &connect_many)?;
    many.wait_for(context.host.as_mut(), "connected: 100", LIMIT)?;
    let [_, client] = vchan::endless(context, "victim")?;
    let sessions = "while vgpu --timeout 60s --endpoint xen: vector-add --n 1048576; do :; done";
    let sessions = context.start(Place::Guest("victim"), sessions)?;
    let appeared = "n=0; while [ $n -lt 300 ]; do \
         [ $(pidof vgpu-mediatord | wc -w) -gt 1 ] && exit 0; n=$((n + 1)); usleep 100000; \
         done; echo no worker came >&2; exit 1";
    context.succeed(Place::Dom0, appeared)?;
    for (what, job) in [("transfer", &client), ("session", &sessions)] {
        let ended = job.poll(context.host.as_mut())?;
        ensure!(ended.is_none(), "the {what} ended by itself: {ended:?}");
    }
    context.host.guest_destroy("victim")?;
    let output = client.wait(context.host.as_mut(), LIMIT)?;
    ensure_failed_well("vchan connect", &output)?;
    let output = many.wait(context.host.as_mut(), LIMIT)?;
    ensure!(
        output.text()?.contains("lost: 98 channels"),
        "{}",
        output.last_words()
    );
    // The mediator is unharmed, and serves the others.
    vector_add::vector_add(context, Pv, 1_000)
}

//! Guests that end while a channel is open.

use anyhow::{Result, ensure};

use super::context::ensure_failed_well;
use super::{Case, Context, vector_add};
use crate::lab::guest::GuestSpec;
use crate::lab::guest::Kind::Pv;
use crate::lab::host::{LIMIT, Place};

pub(crate) const CASES: &[Case] = &[
    Case::new("domains/guest-destroyed-mid-transfer", &[], guest_destroyed),
    Case::with_mediator(
        "domains/guest-destroyed-in-a-session",
        &[Pv],
        guest_destroyed_in_session,
    ),
];

fn victim(context: &mut Context) -> Result<u16> {
    let mut spec = GuestSpec::new("victim", Pv);
    spec.memory_mib = 256;
    context.create(&spec)?;
    context.host.guest_domid("victim")
}

fn guest_destroyed(context: &mut Context) -> Result<()> {
    let domid = victim(context)?;
    context.start(
        Place::Guest("victim"),
        "vchan serve --peer 0 --path data/t --pipe </dev/zero",
    )?;
    let connect = format!("vchan connect --peer {domid} --path data/t --sink");
    let client = context.start(Place::Dom0, &connect)?;
    // And a hundred more, of one thread on each side.
    context.start(
        Place::Guest("victim"),
        "vchan-testing many-serve xen:0/data/many",
    )?;
    let connect_many =
        format!("vchan-testing many-connect xen:{domid}/data/many --until-lost --stalled 2");
    let many = context.start(Place::Dom0, &connect_many)?;
    many.wait_for(context.host.as_mut(), "connected: 100", LIMIT)?;
    ensure!(
        client.poll(context.host.as_mut())?.is_none(),
        "the transfer ended by itself"
    );
    context.host.guest_destroy("victim")?;
    let output = client.wait(context.host.as_mut(), LIMIT)?;
    ensure_failed_well(&connect, &output)?;
    let output = many.wait(context.host.as_mut(), LIMIT)?;
    ensure!(
        output.text()?.contains("lost: 98 channels"),
        "{}",
        output.last_words()
    );
    Ok(())
}

fn guest_destroyed_in_session(context: &mut Context) -> Result<()> {
    victim(context)?;
    let script = "while vgpu --endpoint xen: vector-add --n 1048576; do :; done";
    context.start(Place::Guest("victim"), script)?;
    let appeared = "n=0; while [ $n -lt 60 ]; do \
         [ $(pidof vgpu-mediatord | wc -w) -gt 1 ] && exit 0; n=$((n + 1)); usleep 300000; \
         done; echo no worker came >&2; exit 1";
    context.succeed(Place::Dom0, appeared)?;
    context.host.guest_destroy("victim")?;
    // The mediator is whole, and serves the others.
    vector_add::vector_add(context, Pv, 1_000)
}

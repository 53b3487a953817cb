//! The programs when part of Xen, or the other side, is missing.

use anyhow::{Result, ensure};

use super::{Case, Context};
use crate::lab::guest::GuestSpec;
use crate::lab::guest::Kind::Pv;
use crate::lab::host::Place;

pub(crate) const CASES: &[Case] = &[
    Case::new("missing-pieces/no-mediator", &[Pv], |c| {
        let error = c.fail(
            Place::Guest("pv"),
            "vgpu --endpoint xen: vector-add --n 1000",
        )?;
        ensure!(
            error.contains("mediator"),
            "does not name the mediator: {error}"
        );
        Ok(())
    }),
    Case::new("missing-pieces/no-such-domain", &[], |c| {
        c.fail(
            Place::Dom0,
            "vchan connect --peer 999 --path data/none --timeout 3 --echo",
        )?;
        c.fail(
            Place::Dom0,
            "vchan serve --peer 999 --path data/none --timeout 3 --echo",
        )
        .map(drop)
    }),
    Case::new("missing-pieces/path-without-keys", &[Pv], |c| {
        let domid = c.host.guest_domid("pv")?;
        let command = format!("vchan connect --peer {domid} --path data/none --timeout 3 --echo");
        c.fail(Place::Dom0, &command).map(drop)
    }),
    Case::new("missing-pieces/keys-that-are-no-numbers", &[Pv], |c| {
        bad_keys(c, "a\u{300}b", "0x10")
    }),
    Case::new("missing-pieces/keys-out-of-range", &[Pv], |c| {
        bad_keys(c, "99999999999999999999", "5000000000")?;
        bad_keys(c, "8", "4294967295")?;
        bad_keys(c, "4294967295", "3")
    }),
    Case::new("missing-pieces/no-modules-no-dev-xen", &[], no_modules),
];

/// A guest that publishes nonsense causes an error in dom0's client and nothing else.
fn bad_keys(context: &mut Context, ring_ref: &str, event_channel: &str) -> Result<()> {
    let domid = context.host.guest_domid("pv")?;
    let write = format!(
        "xenstore-write data/bad/ring-ref '{ring_ref}' data/bad/event-channel '{event_channel}'"
    );
    context.succeed(Place::Guest("pv"), &write)?;
    let command = format!("vchan connect --peer {domid} --path data/bad --timeout 3 --echo");
    let outcome = context.fail(Place::Dom0, &command);
    context.succeed(Place::Guest("pv"), "xenstore-rm data/bad")?;
    outcome.map(drop)
}

fn no_modules(context: &mut Context) -> Result<()> {
    let mut spec = GuestSpec::new("bare", Pv);
    spec.memory_mib = 256;
    spec.command_line = "lab.modules=none".to_owned();
    context.create(&spec)?;
    let outcome = (|| {
        let guest = Place::Guest("bare");
        let error = context.fail(guest, "vgpu --endpoint xen: vector-add --n 1000")?;
        ensure!(
            error.contains("xen"),
            "does not name what is missing: {error}"
        );
        context.fail(
            guest,
            "vchan serve --peer 0 --path data/x --timeout 3 --echo",
        )?;
        context
            .succeed(guest, "vgpu --endpoint xen: doctor; true")
            .map(drop)
    })();
    context.host.guest_destroy("bare")?;
    outcome
}

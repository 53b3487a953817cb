//! Guests and other guests: refused under SILO, as on XCP-ng, and possible without it.
//!
//! Whatever goes through dom0 is the same under both; the other topics have it.

use anyhow::{Context as _, Result, ensure};

use super::{Case, Context};
use crate::lab::guest::GuestSpec;
use crate::lab::guest::Kind::Pv;
use crate::lab::host::{LIMIT, Lacking, Place};
use crate::lab::hypervisor::Xsm;

pub(crate) const CASES: &[Case] = &[
    Case::new("silo/guest-to-guest-channel", &[Pv], |c| {
        with_second_guest(c, channel)
    }),
    Case::new("silo/guest-to-guest-grant", &[Pv], |c| {
        with_second_guest(c, grant)
    }),
];

/// Text that a program's error must contain when Xen refuses it another guest.
const NAMED: &str = "SILO";

/// A second guest, which may map: else SILO would not be the reason why it cannot.
const SECOND: &str = "second";

/// The domains of a case, and what their hypervisor allows.
struct Guests {
    first: u16,
    second: u16,
    xsm: Xsm,
}

fn with_second_guest(
    context: &mut Context,
    test: fn(&mut Context, &Guests) -> Result<()>,
) -> Result<()> {
    let Some(xsm) = context.host.xsm() else {
        let what = "a hypervisor that says whether it runs SILO".to_owned();
        return Err(Lacking(what).into());
    };
    if xsm == Xsm::None && !context.host.has_spare_guests() {
        let what = "guests that may map, or a hypervisor with SILO".to_owned();
        return Err(Lacking(what).into());
    }
    let mut spec = GuestSpec::new(SECOND, Pv);
    spec.memory_mib = 256;
    spec.maptrack_frames = None;
    context.create(&spec)?;
    let outcome = domids(context).and_then(|(first, second)| {
        let guests = Guests { first, second, xsm };
        test(context, &guests)
    });
    let ended = context.host.guest_destroy(SECOND);
    // Given guests stay.
    if context.host.has_spare_guests() {
        ended?;
    }
    outcome
}

fn domids(context: &mut Context) -> Result<(u16, u16)> {
    let first = context.host.guest_domid("pv")?;
    Ok((first, context.host.guest_domid(SECOND)?))
}

/// One guest serves, another connects.
fn channel(context: &mut Context, guests: &Guests) -> Result<()> {
    let Guests { first, second, xsm } = guests;
    let serve = format!("vchan serve --peer {second} --path data/silo --timeout 60 --sink");
    if *xsm == Xsm::Silo {
        let error = context.fail(Place::Guest("pv"), &serve)?;
        ensure!(error.contains(NAMED), "does not say why: {error}");
        // Nothing is left that a client could wait for.
        context.succeed(Place::Guest("pv"), "! xenstore-exists data/silo")?;
        return Ok(());
    }
    // The client must be able to read what the server publishes there.
    let readable = format!(
        "xenstore-write data/silo '' && xenstore-chmod data/silo n{first} r{second} && exec {serve}"
    );
    let server = context.start(Place::Guest("pv"), &readable)?;
    let connect = format!(
        "vchan connect --peer {first} --path /local/domain/{first}/data/silo --pipe </etc/fstab"
    );
    context.succeed(Place::Guest(SECOND), &connect)?;
    let output = server.wait(context.host.as_mut(), LIMIT)?;
    let text = output.text().context("the server")?;
    ensure!(text.starts_with("sink: "), "the server says {text}");
    Ok(())
}

/// One guest grants a page, another maps it. Granting needs no leave; the map and the event channel
/// do.
fn grant(context: &mut Context, guests: &Guests) -> Result<()> {
    let Guests { first, second, xsm } = guests;
    let allowed = match xsm {
        Xsm::Silo => "refused",
        Xsm::None => "allowed",
    };
    let program = "xen-sys-real-xen --ignored --test-threads=1 --nocapture --exact";
    for provider in ["libraries", "ioctls"] {
        let grant = format!(
            "export XEN_SYS_PROVIDER={provider} XEN_SYS_PEER={second} XEN_SYS_EXPECT={allowed}; \
             {program} between_guests::a_guest_grants 2>&1"
        );
        let granting = context.start(Place::Guest("pv"), &grant)?;
        let node = format!("/local/domain/{first}/data/xen-sys");
        let published = format!(
            "for n in $(seq 300); do xenstore-read {node} 2>/dev/null && exit; usleep 200000; done; \
             exit 1"
        );
        let reference = context.succeed(Place::Dom0, &published);
        let outcome = match reference {
            Ok(reference) => {
                let map = format!(
                    "export XEN_SYS_PROVIDER={provider} XEN_SYS_PEER={first} \
                     XEN_SYS_REFERENCE={reference} XEN_SYS_EXPECT={allowed}; \
                     {program} between_guests::a_guest_maps 2>&1"
                );
                context.succeed(Place::Guest(SECOND), &map)
            }
            Err(error) => Err(error),
        };
        context.succeed(Place::Dom0, &format!("xenstore-rm {node}; true"))?;
        let output = granting.wait(context.host.as_mut(), LIMIT)?;
        let granted = output.text().context("the granting guest")?;
        for report in [granted, &outcome.context("the mapping guest")?] {
            ensure!(
                report.contains("1 passed"),
                "{provider}: nothing ran: {report}"
            );
        }
    }
    Ok(())
}

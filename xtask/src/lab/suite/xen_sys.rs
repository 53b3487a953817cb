//! The tests of the crate xen-sys, which is one program: grants, event channels
//! and unmap notifications, by the C libraries and by the kernel's ioctls.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Case, Context};
use crate::lab::guest::GuestSpec;
use crate::lab::guest::Kind::{self, Pv, Pvh};
use crate::lab::host::Place;

/// The program, with arguments to run the tests that need Xen one after the other.
const PROGRAM: &str = "xen-sys-real-xen --ignored --test-threads=1";

/// All of its tests take seconds; an emulated machine may be busy.
const PROGRAM_LIMIT: Duration = Duration::from_secs(900);

/// At least this many tests must have run: a program that ran none proves nothing.
const AT_LEAST: u32 = 100;

const PROVIDERS: [&str; 2] = ["libraries", "ioctls"];

pub(crate) const CASES: &[Case] = &[
    Case::new("xen-sys/loopback-in-dom0", &[], |c| {
        loopback(c, Place::Dom0, 0)
    }),
    Case::new("xen-sys/loopback-in-a-guest", &[], |c| {
        let mut spec = GuestSpec::new("mapper", Pv);
        spec.memory_mib = 256;
        // A guest like XCP-ng's cannot map anything, its own grants included.
        spec.maptrack_frames = None;
        c.create(&spec)?;
        let outcome = c
            .host
            .guest_domid("mapper")
            .and_then(|domid| loopback(c, Place::Guest("mapper"), domid));
        c.host.guest_destroy("mapper")?;
        outcome
    }),
    Case::new("xen-sys/no-maptrack-frames", &[Pv], no_maptrack_frames),
    Case::new("xen-sys/pv-grants-dom0-maps", &[Pv], |c| two_domains(c, Pv)),
    Case::new("xen-sys/pvh-grants-dom0-maps", &[Pvh], |c| {
        two_domains(c, Pvh)
    }),
];

/// The whole program in one domain.
fn loopback(context: &mut Context, place: Place<'_>, domid: u16) -> Result<()> {
    let script = format!("XEN_SYS_DOMID={domid} {PROGRAM} 2>&1");
    let output = context.host.exec(place, &script, PROGRAM_LIMIT)?;
    let failed: Vec<&str> = output
        .stdout
        .lines()
        .filter(|line| line.ends_with("... FAILED"))
        .collect();
    ensure!(
        failed.is_empty(),
        "{} ({})",
        failed.join(", "),
        output.last_words()
    );
    let skipped = output
        .stdout
        .lines()
        .find(|line| line.contains("SKIPPED: "));
    ensure!(skipped.is_none(), "{}", skipped.unwrap_or_default());
    let passed = passed(output.text()?)?;
    ensure!(passed >= AT_LEAST, "only {passed} tests ran");
    Ok(())
}

/// The number in `test result: ok. N passed; …`.
fn passed(report: &str) -> Result<u32> {
    let (_, rest) = report
        .split_once("test result: ok. ")
        .context("no result in the report")?;
    let (number, _) = rest
        .split_once(" passed")
        .context("no number in the result")?;
    number.parse().context("the number of passed tests")
}

/// A guest like XCP-ng's is refused, with the reason.
fn no_maptrack_frames(context: &mut Context) -> Result<()> {
    for provider in PROVIDERS {
        let test = format!("{provider}::pages_are_zeroed_and_shared_both_ways");
        let script = format!("{PROGRAM} --exact {test} 2>&1");
        let domid = context.host.guest_domid("pv")?;
        let script = format!("export XEN_SYS_DOMID={domid}; {script}");
        let output = context
            .host
            .exec(Place::Guest("pv"), &script, PROGRAM_LIMIT)?;
        ensure!(
            !output.success()
                && output.stdout.contains("MapRefused")
                && output.stdout.contains("max_maptrack_frames=0"),
            "{provider}: {}",
            output.stdout
        );
    }
    Ok(())
}

/// A guest grants and dom0 maps, with each provider at each end.
fn two_domains(context: &mut Context, kind: Kind) -> Result<()> {
    let guest = Context::shared(kind);
    let domid = context.host.guest_domid(guest)?;
    for (granting, mapping) in PROVIDERS
        .iter()
        .flat_map(|granting| PROVIDERS.map(|mapping| (*granting, mapping)))
    {
        let ends = format!("guest {granting}, dom0 {mapping}");
        let grant = format!(
            "export XEN_SYS_TWO_DOMAINS=1 XEN_SYS_PROVIDER={granting}; \
             {PROGRAM} --exact two_domains::the_guest_grants 2>&1"
        );
        let map = format!(
            "export XEN_SYS_PEER={domid} XEN_SYS_PROVIDER={mapping}; \
             {PROGRAM} --exact two_domains::dom0_maps 2>&1"
        );
        let granting = context.start(Place::Guest(guest), &grant)?;
        // In the background too: a wait for a job ends where the host has lost the guest.
        let mapping = context.start(Place::Dom0, &map)?;
        for job in [mapping, granting] {
            let output = job.wait(context.host.as_mut(), PROGRAM_LIMIT)?;
            let report = output.text().with_context(|| ends.clone())?;
            ensure!(passed(report)? == 1, "{ends}: nothing ran: {report}");
        }
    }
    Ok(())
}

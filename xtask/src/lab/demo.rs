//! `cargo xtask lab demo`: the mediator in dom0, a PV and a PVH guest adding vectors at the same
//! time, and Xen's own tables before, during and after.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::guest::{GuestSpec, Kind};
use super::host::{Host, LIMIT, Place};
use super::job::Job;
use super::suite::Footprint;

/// Runs session after session until it is asked to end.
const ON_AND_ON: &str =
    "trap exit TERM; while vgpu --endpoint xen: vector-add --n 2097152; do :; done";

/// Number of readings of Xen's tables meanwhile.
const LOOKS: u32 = 4;

const MEDIATOR: &str = "exec vgpu-mediatord --listen xen: --executor cpu --allow-all";
const WORK: &str = "vgpu --endpoint xen: vector-add --n 1048576";
const WORK_LIMIT: Duration = Duration::from_secs(300);

/// Runs it; everything it prints goes to standard output.
///
/// # Errors
/// A sum was wrong, something did not start, or something stayed behind.
pub(crate) fn run(host: &mut dyn Host) -> Result<()> {
    let kinds = [Kind::Pv, Kind::Pvh];
    for kind in kinds {
        host.guest_create(&GuestSpec::new(kind.name(), kind))?;
    }
    let guests: Vec<String> = kinds.iter().map(|kind| kind.name().to_owned()).collect();
    println!(
        "\n# xl list\n{}",
        host.exec(Place::Dom0, "xl list", LIMIT)?.stdout
    );

    println!("# dom0: {MEDIATOR}");
    let mediator = Job::start(host, Place::Dom0, "mediator", MEDIATOR)?;
    let said = mediator.wait_for(host, "listening on xen:", LIMIT)?;
    print!("{}{}", said.stdout, said.stderr);
    let before = Footprint::take(host, &guests)?;
    println!("\n# before, as Xen sees it\n{before}");

    println!("# both guests at once: {WORK}");
    let mut jobs = Vec::new();
    for guest in &guests {
        jobs.push(Job::start(host, Place::Guest(guest), "work", WORK)?);
    }
    for (guest, job) in guests.iter().zip(&jobs) {
        let output = job.wait(host, WORK_LIMIT)?;
        println!("# guest {guest}, status {}", output.status);
        print!("{}{}", output.stdout, output.stderr);
        if !output.success() {
            bail!("the vector add in guest {guest} failed");
        }
    }
    // Grants and event channels exist while sessions do, and one is over in a fraction of a second:
    // let the guests go on until they appear.
    let mut busy = Vec::new();
    for guest in &guests {
        busy.push(Job::start(host, Place::Guest(guest), "busy", ON_AND_ON)?);
    }
    let mut during = before.clone();
    for _ in 0..LOOKS {
        let now = Footprint::take(host, &[])?;
        if now.mapped_grants() > during.mapped_grants() {
            during = now;
        }
    }
    for job in &busy {
        // QEMU may have lost a PVH guest by now (docs/lab.md); the work above was verified.
        let _ = job.signal(host, "TERM");
        let _ = job.wait(host, WORK_LIMIT);
    }
    println!("\n# during\n{during}");
    if during.mapped_grants() <= before.mapped_grants() {
        bail!("no session showed in Xen's tables");
    }

    mediator.signal(host, "TERM")?;
    mediator
        .wait(host, Duration::from_secs(60))
        .context("ending the mediator")?;
    let after = Footprint::take(host, &[])?;
    println!("# after, without the mediator\n{after}");
    if after.mapped_grants() > before.mapped_grants() {
        bail!(
            "grants stayed mapped: {}",
            before.differences(&after).join(", ")
        );
    }
    println!("both guests verified every element; no grant stayed mapped");
    Ok(())
}

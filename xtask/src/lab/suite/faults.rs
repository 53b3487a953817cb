//! Faults of Xen, its kernels and its toolstack under a channel. The numbers are those of the cases
//! of `docs/threat-model.md`.

use anyhow::{Context as _, Result, ensure};

use super::{Case, Context};
use crate::lab::guest::GuestSpec;
use crate::lab::guest::Kind::Pv;
use crate::lab::host::{LIMIT, Lacking, Place};
use crate::lab::job::Job;

pub(crate) const CASES: &[Case] = &[
    Case::new("faults/case-14-15-pages-that-are-none", &[Pv], bad_pages),
    Case::new("faults/case-26-domain-gone-in-every-call", &[], |context| {
        domain_gone(context, |context, _| context.host.guest_destroy("victim"))
    }),
    Case::new("faults/case-35-domain-saved", &[], |context| {
        domain_gone(context, save)
    }),
    Case::new("faults/case-32-33-one-client-at-a-time", &[Pv], one_client),
    Case::new("faults/case-37-no-page-at-any-step", &[Pv], pages),
    Case::new("faults/case-38-nothing-can-be-mapped", &[Pv], no_maptrack),
    Case::new("faults/case-39-peer-never-unmaps", &[Pv], never_unmaps),
];

/// Waits until the job has printed `text`, for a minute at most.
fn says(context: &mut Context, job: &Job, text: &str) -> Result<()> {
    job.wait_for(context.host.as_mut(), text, LIMIT).map(drop)
}

/// Channels whose pages break one rule each, including the grants of the ring, and the extension.
fn bad_pages(context: &mut Context) -> Result<()> {
    let domid = context.host.guest_domid("pv")?;
    let offer = context.start(
        Place::Guest("pv"),
        "exec vchan-testing fault offer xen:0/data/f",
    )?;
    says(context, &offer, "offered: ")?;
    let refuse = format!("vchan-testing fault refuse xen:{domid}/data/f --timeout 1");
    let text = context.succeed(Place::Dom0, &refuse);
    let ended = offer.poll(context.host.as_mut())?;
    offer.signal(context.host.as_mut(), "KILL")?;
    context.succeed(Place::Guest("pv"), "xenstore-rm data/f")?;
    let text = text?;
    ensure!(ended.is_none(), "the offer ended: {ended:?}");
    ensure!(text.contains("refused: 19 pages"), "{text}");
    Ok(())
}

/// Nine calls wait for one domain, and it goes away.
fn domain_gone(
    context: &mut Context,
    go: impl FnOnce(&mut Context, u16) -> Result<()>,
) -> Result<()> {
    let mut spec = GuestSpec::new("victim", Pv);
    spec.memory_mib = 256;
    context.create(&spec)?;
    let domid = context.host.guest_domid("victim")?;
    let outcome = blocked(context, "victim", domid).and_then(|job| {
        go(context, domid)?;
        every_call_ended(context, &job)
    });
    let _ = context.host.guest_destroy("victim");
    outcome
}

/// Suspends the guest, writes it to a file and destroys it. Its state after a restore, with another
/// number and without its event channels, is not tested.
fn save(context: &mut Context, domid: u16) -> Result<()> {
    let script = format!(
        "xl save {domid} /tmp/saved; status=$?; ls -l /tmp/saved; rm -f /tmp/saved; exit $status"
    );
    let output = context.host.exec(Place::Dom0, &script, LIMIT)?;
    match output.success() {
        true => Ok(()),
        false => Err(Lacking(format!(
            "a guest that can be saved: {}",
            output.last_words()
        ))
        .into()),
    }
}

/// Starts the driver that waits in every call.
fn blocked(context: &mut Context, guest: &str, domid: u16) -> Result<Job> {
    context.start(
        Place::Guest(guest),
        "exec vchan-testing fault hold xen:0/data/f",
    )?;
    let script = format!(
        "exec vchan-testing fault blocked xen:{domid}/data/f \
         --serve-path /local/domain/{domid}/data/g"
    );
    let job = context.start(Place::Dom0, &script)?;
    says(context, &job, "blocked: 9 calls")?;
    Ok(job)
}

fn every_call_ended(context: &mut Context, job: &Job) -> Result<()> {
    let output = job.wait(context.host.as_mut(), LIMIT)?;
    let lines = output.stdout.lines();
    let good = lines.filter(|line| line.starts_with("ok ")).count();
    ensure!(
        output.success() && good == 9,
        "{} | {}",
        output.stdout.replace('\n', " | "),
        output.last_words()
    );
    Ok(())
}

/// Two clients come for one server; then a new session on the same path.
fn one_client(context: &mut Context) -> Result<()> {
    let domid = context.host.guest_domid("pv")?;
    let script = format!(
        "vchan connect --peer {domid} --path data/t --timeout 60 --sink >/tmp/one 2>&1 & one=$!\n\
         vchan connect --peer {domid} --path data/t --timeout 60 --sink >/tmp/two 2>&1 & two=$!\n\
         wait $one; wait $two; cat /tmp/one /tmp/two; rm /tmp/one /tmp/two"
    );
    let clients = context.start(Place::Dom0, &script)?;
    for word in ["first", "second"] {
        // The client that does not get the first session waits for the second.
        let serve = format!(
            "echo {word} session | vchan serve --peer 0 --path data/t --timeout 60 --pipe --linger 0"
        );
        context.succeed(Place::Guest("pv"), &serve)?;
    }
    let output = clients.wait(context.host.as_mut(), LIMIT)?;
    let mut said: Vec<&str> = output
        .stdout
        .lines()
        .filter(|line| line.starts_with("sink: "))
        .collect();
    said.sort_unstable();
    // `first session` and `second session`, each with its newline, each once and whole.
    ensure!(
        said.len() == 2
            && said[0].starts_with("sink: 14 bytes")
            && said[1].starts_with("sink: 15 bytes"),
        "{}",
        output.last_words()
    );
    Ok(())
}

fn pages(context: &mut Context) -> Result<()> {
    let text = context.succeed(Place::Guest("pv"), "vchan-testing fault pages xen:0/data/f")?;
    ensure!(text.contains("pages: failed at each of"), "{text}");
    context
        .succeed(Place::Guest("pv"), "! xenstore-exists data/f")
        .map(drop)
}

/// A domain that may map nothing, like guests of XCP-ng: gets an error at once, and nothing stays
/// behind.
fn no_maptrack(context: &mut Context) -> Result<()> {
    let domid = context.host.guest_domid("pv")?;
    let path = format!("/local/domain/{domid}/data/t");
    let serve = format!("exec vchan serve --peer {domid} --path {path} --timeout 60 --echo");
    let server = context.start(Place::Dom0, &serve)?;
    let connect = format!("vchan connect --peer 0 --path {path} --timeout 4 --echo");
    let error = context.fail(Place::Guest("pv"), &connect);
    server.signal(context.host.as_mut(), "TERM")?;
    server.wait(context.host.as_mut(), LIMIT)?;
    let error = error?;
    ensure!(
        error.contains("max_maptrack_frames=0"),
        "does not say why: {error}"
    );
    Ok(())
}

/// Clients that keep what they have mapped: each holds the pages of its own channel and no more,
/// the server goes on meanwhile, and all comes back when they end.
fn never_unmaps(context: &mut Context) -> Result<()> {
    let domid = context.host.guest_domid("pv")?;
    let mut keepers = Vec::new();
    for round in 0..3 {
        let server = context.start(
            Place::Guest("pv"),
            "exec vchan serve --peer 0 --path data/t --ring 64K --echo",
        )?;
        let connect = format!("exec vchan connect --peer {domid} --path data/t --echo");
        let keeper = context.start(Place::Dom0, &connect)?;
        let mapped = format!(
            "n=0; until [ \"$(grep -ls /dev/xen/gntdev /proc/[0-9]*/maps | wc -l)\" -gt {round} ]; \
             do [ $n -lt 100 ] || exit 1; n=$((n + 1)); usleep 200000; done"
        );
        context.succeed(Place::Dom0, &mapped)?;
        keeper.signal(context.host.as_mut(), "STOP")?;
        keepers.push(keeper);
        server.signal(context.host.as_mut(), "KILL")?;
        context.succeed(
            Place::Guest("pv"),
            "while pidof vchan; do usleep 100000; done",
        )?;
    }
    let held = context
        .succeed(
            Place::Dom0,
            "grep -hs /dev/xen/gntdev /proc/[0-9]*/maps | awk '{ split($1, a, \"-\"); n++ } END { print n }'",
        )
        .context("mappings of the keepers")?;
    for keeper in &keepers {
        keeper.signal(context.host.as_mut(), "KILL")?;
    }
    // At most five mappings a channel: control page, extension page, two rings and what goes
    // with the largest of them.
    let held: u32 = held.trim().parse().unwrap_or(0);
    ensure!((3..=15).contains(&held), "{held} mappings are held");
    // The runner checks next that the footprint is unchanged.
    Ok(())
}

//! The command `vchan` over Xen: providers, roles, and ends of every kind.
//!
//! The destruction of a guest is tested in `domains.rs`, missing pieces in `missing_pieces.rs`, the
//! generic suite runs in `channel.rs`.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::context::ensure_failed_well;
use super::{Case, Context};
use crate::lab::guest::GuestSpec;
use crate::lab::guest::Kind::{Pv, Pvh};
use crate::lab::host::{LIMIT, Lacking, Place};

const SUITE_LIMIT: Duration = Duration::from_secs(300);

pub(crate) const CASES: &[Case] = &[
    Case::new("vchan/every-pair-of-providers", &[Pv], providers),
    Case::new("vchan/client-killed-mid-transfer", &[Pv], client_killed),
    Case::new("vchan/server-killed-mid-transfer", &[Pv], server_killed),
    Case::new("vchan/stale-keys-then-a-new-server", &[Pv], stale_keys),
    Case::new("vchan/server-stopped-while-waiting", &[Pv], stopped),
    Case::new("vchan/no-pages-left-to-grant", &[Pv], no_pages),
    Case::new("vchan/paused-guest-goes-on", &[Pv], paused),
    Case::ends_guest("vchan/destroyed-guest-is-no-zombie", &[Pvh], no_zombie),
    Case::new("vchan/no-permission", &[Pv], no_permission),
    Case::new("vchan/stuck-xenstored", &[Pv], stuck_xenstored),
    Case::new("vchan/conformance-dom0-serves", &[], dom0_serves),
];

/// Guest's and dom0's commands, run together; both must succeed.
pub(super) fn pair(
    context: &mut Context,
    guest: &str,
    in_guest: &str,
    in_dom0: &str,
) -> Result<()> {
    let theirs = context.start(Place::Guest(guest), in_guest)?;
    let ours = context.start(Place::Dom0, in_dom0)?;
    for (script, job) in [(in_dom0, ours), (in_guest, theirs)] {
        let output = job.wait(context.host.as_mut(), SUITE_LIMIT)?;
        let failed: Vec<&str> = output
            .stdout
            .lines()
            .filter(|line| line.starts_with("FAILED"))
            .collect();
        ensure!(
            output.success(),
            "`{script}`: {} {}",
            failed.join(", "),
            output.last_words()
        );
    }
    Ok(())
}

/// The C libraries and the ioctls, on either side.
fn providers(context: &mut Context) -> Result<()> {
    let domid = context.host.guest_domid("pv")?;
    for server in ["libraries", "ioctls"] {
        for client in ["libraries", "ioctls"] {
            let serve =
                format!("XEN_SYS_PROVIDER={server} vchan serve --peer 0 --path data/t --echo");
            let connect = format!(
                "head -c 300000 /dev/urandom >/tmp/sent; XEN_SYS_PROVIDER={client} \
                 vchan connect --peer {domid} --path data/t --pipe --linger 3 </tmp/sent \
                 | cmp - /tmp/sent; status=$?; rm /tmp/sent; exit $status"
            );
            pair(context, "pv", &serve, &connect)
                .with_context(|| format!("server {server}, client {client}"))?;
        }
    }
    Ok(())
}

/// The reverse roles, in a guest that may map dom0's pages.
fn dom0_serves(context: &mut Context) -> Result<()> {
    let mut spec = GuestSpec::new("mapper", Pv);
    spec.memory_mib = 256;
    spec.maptrack_frames = None;
    context.create(&spec)?;
    let domid = context.host.guest_domid("mapper")?;
    let path = format!("/local/domain/{domid}/data/conformance");
    let outcome = pair(
        context,
        "mapper",
        &format!("vchan-testing conformance-connect xen:0/{path}"),
        &format!("vchan-testing conformance-serve xen:{domid}/{path}"),
    );
    context.host.guest_destroy("mapper")?;
    outcome
}

/// Starts an endless transfer from the guest's server to dom0's client.
pub(super) fn endless(context: &mut Context, guest: &str) -> Result<[crate::lab::job::Job; 2]> {
    let domid = context.host.guest_domid(guest)?;
    let server = context.start(
        Place::Guest(guest),
        "exec vchan serve --peer 0 --path data/t --pipe </dev/zero",
    )?;
    let connect = format!("exec vchan connect --peer {domid} --path data/t --sink");
    let client = context.start(Place::Dom0, &connect)?;
    let mapped = "n=0; until grep -qs /dev/xen/gntdev /proc/$(pidof vchan | cut -d' ' -f1)/maps; do \
         [ $n -lt 100 ] || exit 1; n=$((n + 1)); usleep 200000; done";
    context.succeed(Place::Dom0, mapped)?;
    for job in [&server, &client] {
        let ended = job.poll(context.host.as_mut())?;
        ensure!(ended.is_none(), "the transfer ended by itself: {ended:?}");
    }
    Ok([server, client])
}

fn client_killed(context: &mut Context) -> Result<()> {
    let [server, client] = endless(context, "pv")?;
    client.signal(context.host.as_mut(), "KILL")?;
    // The kernel of dom0 clears the live byte and rings: the server sees a close.
    let output = server.wait(context.host.as_mut(), LIMIT)?;
    ensure_failed_well("vchan serve", &output)?;
    ensure!(
        output.stderr.contains("closed the channel"),
        "{}",
        output.last_words()
    );
    Ok(())
}

fn server_killed(context: &mut Context) -> Result<()> {
    let [server, client] = endless(context, "pv")?;
    server.signal(context.host.as_mut(), "KILL")?;
    // The sink prints the bytes received, and knows that the stream was not complete.
    let output = client.wait(context.host.as_mut(), LIMIT)?;
    ensure_failed_well("vchan connect", &output)?;
    ensure!(
        output.stdout.starts_with("sink: "),
        "{}",
        output.last_words()
    );
    Ok(())
}

/// A killed server leaves its keys. They lead nowhere, and the next server replaces them.
fn stale_keys(context: &mut Context) -> Result<()> {
    let domid = context.host.guest_domid("pv")?;
    let server = context.start(
        Place::Guest("pv"),
        "exec vchan serve --peer 0 --path data/t --sink",
    )?;
    let published = "n=0; while [ $n -lt 100 ] && ! xenstore-exists data/t/event-channel; do \
         n=$((n + 1)); usleep 100000; done; xenstore-exists data/t/event-channel";
    context.succeed(Place::Guest("pv"), published)?;
    server.signal(context.host.as_mut(), "KILL")?;
    context.succeed(Place::Guest("pv"), "xenstore-exists data/t/ring-ref")?;

    let connect = format!("vchan connect --peer {domid} --path data/t --pipe </etc/hosts");
    let error = context.fail(
        Place::Dom0,
        &connect.replace("--pipe", "--timeout 3 --pipe"),
    )?;
    ensure!(error.contains("stale"), "does not say why: {error}");

    // A client that waits takes the new server's keys whenever they appear.
    let client = context.start(Place::Dom0, &connect)?;
    let output = context.host.exec(
        Place::Guest("pv"),
        "vchan serve --peer 0 --path data/t --sink",
        LIMIT,
    )?;
    ensure!(
        output.text()?.starts_with("sink: "),
        "{}",
        output.last_words()
    );
    client.wait(context.host.as_mut(), LIMIT)?.text()?;
    context.succeed(
        Place::Guest("pv"),
        "! xenstore-exists data/t || { xenstore-ls data; exit 1; }",
    )?;
    Ok(())
}

/// A signal, or a time-out: either way nothing stays behind.
fn stopped(context: &mut Context) -> Result<()> {
    let serve = "exec vchan serve --peer 0 --path data/t --echo";
    let server = context.start(Place::Guest("pv"), serve)?;
    let published = "n=0; while [ $n -lt 100 ] && ! xenstore-exists data/t/event-channel; do \
         n=$((n + 1)); usleep 100000; done; xenstore-exists data/t/event-channel";
    context.succeed(Place::Guest("pv"), published)?;
    server.signal(context.host.as_mut(), "TERM")?;
    let output = server.wait(context.host.as_mut(), LIMIT)?;
    ensure!(
        output.status == 130 && output.stderr.contains("stopped by a signal"),
        "`{serve}` ended with status {}: {}",
        output.status,
        output.last_words()
    );
    context.fail(
        Place::Guest("pv"),
        "vchan serve --peer 0 --path data/t --timeout 1 --echo",
    )?;
    context.succeed(Place::Guest("pv"), "! xenstore-exists data/t")?;
    Ok(())
}

fn no_pages(context: &mut Context) -> Result<()> {
    let limit = "/sys/module/xen_gntalloc/parameters/limit";
    context.succeed(Place::Guest("pv"), &format!("echo 40 >{limit}"))?;
    let outcome = few_pages(context);
    context.succeed(Place::Guest("pv"), &format!("echo 1024 >{limit}"))?;
    outcome
}

/// With 40 pages: 1 + 2 × 16 fit, 1 + 2 × 256 do not.
fn few_pages(context: &mut Context) -> Result<()> {
    let domid = context.host.guest_domid("pv")?;
    let error = context.fail(
        Place::Guest("pv"),
        "vchan serve --peer 0 --path data/t --ring 1M --timeout 5 --echo",
    )?;
    ensure!(
        error.contains("gntalloc"),
        "does not say what to do: {error}"
    );
    context.succeed(Place::Guest("pv"), "! xenstore-exists data/t")?;
    // Without --ring the default shrinks until it fits; and the failures above kept no page.
    pair(
        context,
        "pv",
        "vchan serve --peer 0 --path data/t --sink",
        &format!("vchan connect --peer {domid} --path data/t --pipe </etc/hosts"),
    )
}

/// A guest that is paused for a while is not dead.
fn paused(context: &mut Context) -> Result<()> {
    let domid = context.host.guest_domid("pv")?;
    let server = context.start(
        Place::Guest("pv"),
        "vchan-c-peer pattern --bytes 33554432 | vchan serve --peer 0 --path data/t --pipe",
    )?;
    let client = context.start(
        Place::Dom0,
        &format!("vchan connect --peer {domid} --path data/t --sink"),
    )?;
    let pause = format!(
        "for round in 1 2; do xl pause {domid}; sleep 3; xl unpause {domid}; usleep 300000; done"
    );
    context.succeed(Place::Dom0, &pause)?;
    let received = client.wait(context.host.as_mut(), SUITE_LIMIT)?;
    let sent = server.wait(context.host.as_mut(), SUITE_LIMIT)?;
    sent.text()?;
    ensure!(
        received.text()?.strip_prefix("sink: ")
            == sent
                .stderr
                .lines()
                .find_map(|line| line.strip_prefix("source: ")),
        "sent {}, received {}",
        sent.last_words(),
        received.last_words()
    );
    Ok(())
}

/// Pages that stay mapped would keep the dead domain, nameless, in Xen's list.
fn no_zombie(context: &mut Context) -> Result<()> {
    let [_, client] = endless(context, Context::shared(Pvh))?;
    let domid = context.end_guest(Pvh)?;
    let output = client.wait(context.host.as_mut(), LIMIT)?;
    ensure_failed_well("vchan connect", &output)?;
    ensure!(
        output.stderr.contains("destroyed"),
        "does not say what happened: {}",
        output.last_words()
    );
    let forgotten = format!(
        "n=0; while [ $n -lt 100 ]; do xl list | awk '$2 == {domid} {{ found = 1 }} \
         END {{ exit !found }}' || exit 0; n=$((n + 1)); usleep 100000; done; xl list >&2; exit 1"
    );
    context.succeed(Place::Dom0, &forgotten).map(drop)
}

fn no_permission(context: &mut Context) -> Result<()> {
    let domid = context.host.guest_domid("pv")?;
    let connect = format!("connect --peer {domid} --path data/t --timeout 3 --echo");
    let serve = "serve --peer 0 --path data/t --timeout 3 --echo";
    for (place, arguments) in [(Place::Dom0, connect.as_str()), (Place::Guest("pv"), serve)] {
        // The lab's image knows no user but root.
        let as_nobody = format!(
            "grep -q '^nobody:' /etc/passwd || \
             echo 'nobody:x:65534:65534::/:/bin/sh' >>/etc/passwd; \
             exec su -s /bin/sh nobody -c \"$(command -v vchan) {arguments}\""
        );
        let error = context.fail(place, &as_nobody)?;
        ensure!(error.contains("root"), "does not say what to do: {error}");
    }
    Ok(())
}

/// xenstored is stopped: every call still ends, near its deadline, and one that has time goes on afterwards.
fn stuck_xenstored(context: &mut Context) -> Result<()> {
    let ours = context
        .host
        .exec(Place::Dom0, "[ -e /lab/functions.sh ]", LIMIT)?;
    if !ours.success() {
        return Err(Lacking("a xenstored that may be stopped for a while".to_owned()).into());
    }
    let domid = context.host.guest_domid("pv")?;
    // Started beforehand: while xenstored is stopped no guest's console can be found.
    let serve = "sleep 6; exec vchan serve --peer 0 --path data/t --timeout 3 --echo";
    let server = context.start(Place::Guest("pv"), serve)?;
    let patient = "sleep 6; exec vchan serve --peer 0 --path data/u --timeout 200 --echo";
    let patient = context.start(Place::Guest("pv"), patient)?;
    let connect = format!(
        "xenstored=$(cat /run/xenstored.pid); trap 'kill -CONT $xenstored' EXIT; \
         kill -STOP $xenstored; \
         vchan connect --peer {domid} --path data/t --timeout 3 --echo; status=$?; \
         sleep 12; exit $status"
    );
    let error = context.fail(Place::Dom0, &connect)?;
    ensure!(error.contains("xenstore"), "does not say why: {error}");
    let output = server.wait(context.host.as_mut(), LIMIT)?;
    ensure_failed_well(serve, &output)?;
    context.succeed(Place::Guest("pv"), "! xenstore-exists data/t")?;
    let connect = format!(
        "echo hello | vchan connect --peer {domid} --path data/u --timeout 60 --pipe --linger 3"
    );
    let back = context.succeed(Place::Dom0, &connect)?;
    ensure!(back == "hello", "the server that waited sent {back:?}");
    let output = patient.wait(context.host.as_mut(), LIMIT)?;
    ensure!(
        output.success(),
        "the server that waited: {}",
        output.last_words()
    );
    Ok(())
}

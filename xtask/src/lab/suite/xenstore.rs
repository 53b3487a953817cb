//! The two clients of xenstore that `vchan` has, its own and xenstore-rs, over dom0's socket and a
//! guest's device.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Case, Context, vchan};
use crate::lab::guest::Kind::Pv;
use crate::lab::host::Place;

/// It takes seconds; an emulated machine may be busy.
const SUITE_LIMIT: Duration = Duration::from_secs(300);

/// At least this many of its cases must have passed: a suite that ran none proves nothing.
const AT_LEAST: usize = 10;

const CLIENTS: [&str; 2] = ["own", "xenstore-rs"];

pub(crate) const CASES: &[Case] = &[
    Case::new("xenstore/clients-in-dom0", &[], |c| {
        requests(c, Place::Dom0)
    }),
    Case::new("xenstore/clients-in-a-guest", &[Pv], |c| {
        requests(c, Place::Guest("pv"))
    }),
    Case::new("xenstore/channel-by-every-pair-of-clients", &[Pv], channel),
];

/// Every request and watch, by either client.
fn requests(context: &mut Context, place: Place<'_>) -> Result<()> {
    for client in CLIENTS {
        let script =
            format!("VCHAN_XENSTORE={client} vchan-testing xenstore-suite data/xenstore-suite");
        let output = context.host.exec(place, &script, SUITE_LIMIT)?;
        let lines = |start: &'static str| {
            output
                .stdout
                .lines()
                .filter(move |line| line.starts_with(start))
        };
        let failed: Vec<&str> = lines("FAILED").collect();
        ensure!(
            output.success(),
            "{client}: {} | {}",
            failed.join(", "),
            output.last_words()
        );
        let passed = lines("ok ").count();
        ensure!(passed >= AT_LEAST, "{client}: only {passed} cases ran");
    }
    Ok(())
}

/// A server and its client meet, whichever client of xenstore either uses.
fn channel(context: &mut Context) -> Result<()> {
    let domid = context.host.guest_domid("pv")?;
    for (server, client) in CLIENTS
        .iter()
        .flat_map(|server| CLIENTS.map(|client| (*server, client)))
    {
        let serve = format!("VCHAN_XENSTORE={server} vchan serve --peer 0 --path data/t --echo");
        let connect = format!(
            "echo met | VCHAN_XENSTORE={client} vchan connect --peer {domid} --path data/t --pipe \
             --linger 3 | grep -qx met"
        );
        vchan::pair(context, "pv", &serve, &connect)
            .with_context(|| format!("server {server}, client {client}"))?;
    }
    Ok(())
}

//! Case 48 of the reference with a real xenstored: keys that do not stand still.

use anyhow::Result;

use super::{Case, Context};
use crate::lab::guest::Kind::Pv;
use crate::lab::host::{LIMIT, Place};

pub(crate) const CASES: &[Case] = &[Case::new("faults/case-48-keys-never-the-same", &[Pv], swap)];

/// Keys that are others at every look lead nowhere, and not beyond the deadline.
fn swap(context: &mut Context) -> Result<()> {
    let domid = context.host.guest_domid("pv")?;
    let swapping = context.start(
        Place::Guest("pv"),
        "exec vchan fault swap --peer 0 --path data/t --timeout 8",
    )?;
    let there = format!(
        "n=0; until xenstore-exists /local/domain/{domid}/data/t/event-channel; do \
         [ $n -lt 100 ] || exit 1; n=$((n + 1)); usleep 100000; done"
    );
    context.succeed(Place::Dom0, &there)?;
    let connect = format!("vchan connect --peer {domid} --path data/t --timeout 3 --echo");
    let error = context.fail(Place::Dom0, &connect);
    swapping.wait(context.host.as_mut(), LIMIT)?.text()?;
    error.map(drop)
}

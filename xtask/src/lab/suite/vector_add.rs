//! The first whole path: a guest adds two vectors through dom0.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Case, Context};
use crate::lab::guest::Kind::{self, Pv, Pvh};
use crate::lab::host::Place;

/// 16 million elements are 192 MiB through the emulated ring.
const LARGE_LIMIT: Duration = Duration::from_secs(400);

pub(crate) const CASES: &[Case] = &[
    Case::with_mediator("vector-add/pv-1", &[Pv], |c| vector_add(c, Pv, 1)),
    Case::with_mediator("vector-add/pv-1000", &[Pv], |c| vector_add(c, Pv, 1_000)),
    Case::with_mediator("vector-add/pv-1048576-and-again", &[Pv], |c| {
        vector_add(c, Pv, 1_048_576)?;
        vector_add(c, Pv, 1_048_576)
    }),
    Case::with_mediator("vector-add/pv-16777216", &[Pv], |c| {
        vector_add(c, Pv, 16_777_216)
    }),
    Case::with_mediator("vector-add/pvh-1", &[Pvh], |c| vector_add(c, Pvh, 1)),
    Case::with_mediator("vector-add/pvh-1000", &[Pvh], |c| vector_add(c, Pvh, 1_000)),
    Case::with_mediator("vector-add/pvh-1048576", &[Pvh], |c| {
        vector_add(c, Pvh, 1_048_576)
    }),
    Case::with_mediator("vector-add/pvh-16777216", &[Pvh], |c| {
        vector_add(c, Pvh, 16_777_216)
    }),
    Case::with_mediator(
        "vector-add/two-guests-at-once",
        &[Pv, Pvh],
        two_guests_at_once,
    ),
    Case::with_mediator(
        "vector-add/mediator-restarted-between",
        &[Pv],
        mediator_restarted,
    ),
    Case::with_mediator("vector-add/info-and-ping", &[Pv], info_and_ping),
];

/// One verified vector add in the shared guest of this kind.
pub(crate) fn vector_add(context: &mut Context, kind: Kind, elements: u64) -> Result<()> {
    let script = format!("vgpu --endpoint xen: --json vector-add --n {elements}");
    let limit = if elements > 2_000_000 {
        LARGE_LIMIT
    } else {
        crate::lab::host::LIMIT
    };
    let text = context.succeed_within(Place::Guest(Context::shared(kind)), &script, limit)?;
    ensure_verified(&text, elements)
}

/// Checks the object that `vgpu --json vector-add` prints.
pub(crate) fn ensure_verified(text: &str, elements: u64) -> Result<()> {
    ensure_verified_by(text, elements, "cpu")
}

/// The same for another executor.
pub(crate) fn ensure_verified_by(text: &str, elements: u64, executor: &str) -> Result<()> {
    let last = text.lines().last().unwrap_or_default();
    let result: serde_json::Value =
        serde_json::from_str(last).with_context(|| format!("not one JSON object: {text}"))?;
    ensure!(
        result["elements"] == elements,
        "not {elements} elements: {last}"
    );
    ensure!(result["errors"] == 0, "wrong sums: {last}");
    ensure!(
        result["executor"] == executor,
        "not the {executor} executor: {last}"
    );
    Ok(())
}

fn two_guests_at_once(context: &mut Context) -> Result<()> {
    let script = "vgpu --endpoint xen: --json vector-add --n 1048576";
    let jobs = [
        context.start(Place::Guest("pv"), script)?,
        context.start(Place::Guest("pvh"), script)?,
    ];
    for job in jobs {
        let output = job.wait(context.host.as_mut(), LARGE_LIMIT)?;
        ensure_verified(output.text()?, 1_048_576)?;
    }
    Ok(())
}

fn mediator_restarted(context: &mut Context) -> Result<()> {
    vector_add(context, Pv, 1_000)?;
    context.stop_mediator()?;
    context.start_mediator()?;
    vector_add(context, Pv, 1_000)
}

fn info_and_ping(context: &mut Context) -> Result<()> {
    let guest = Place::Guest("pv");
    let info = context.succeed(guest, "vgpu --endpoint xen: info")?;
    ensure!(
        info.to_lowercase().contains("cpu"),
        "info names no executor: {info}"
    );
    context
        .succeed(guest, "vgpu --endpoint xen: ping")
        .map(drop)
}

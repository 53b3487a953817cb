//! Mediators that die, hang, or are started twice.

use anyhow::{Result, ensure};

use super::context::{MEDIATOR, ensure_failed_well};
use super::{Case, Context, vector_add};
use crate::lab::guest::Kind::Pv;
use crate::lab::host::{LIMIT, Place};

pub(crate) const CASES: &[Case] = &[
    Case::with_mediator("mediators/second-one-is-refused", &[], |c| {
        let error = c.fail(Place::Dom0, MEDIATOR)?;
        ensure!(
            error.contains("already") || error.contains("pid"),
            "says not why: {error}"
        );
        Ok(())
    }),
    Case::with_mediator("mediators/killed-mid-transfer", &[Pv], killed_mid_transfer),
    Case::with_mediator("mediators/worker-killed-mid-transfer", &[Pv], worker_killed),
    Case::with_mediator("mediators/worker-is-confined", &[Pv], worker_confined),
    Case::with_mediator("mediators/vgpuctl-sees-it", &[], |c| {
        c.succeed(Place::Dom0, "vgpuctl status").map(drop)
    }),
    Case::new("mediators/denied-by-default", &[Pv], denied_by_default),
    Case::new(
        "mediators/allowed-by-the-guests-table",
        &[Pv],
        allowed_by_table,
    ),
];

/// Runs until something fails, and fails with it.
const ON_AND_ON: &str =
    "while :; do vgpu --endpoint xen: vector-add --n 4194304 >/dev/null || exit; done";

/// Stops a worker in the middle of its session and prints its pid. That it was in the middle shows
/// in that its guest does not go on to the next session.
const STOP_WORKER: &str = r#"
for n in $(seq 100); do
    set -- $(pidof vgpu-mediatord | tr ' ' '\n' | sort -n)
    if [ $# -gt 1 ]; then
        eval worker=\${$#}
        kill -STOP $worker; sleep 2
        set -- $(pidof vgpu-mediatord)
        [ $# -eq 2 ] && { echo $worker; exit 0; }
        kill -KILL $worker
    fi
    usleep 100000
done
echo no worker came >&2; exit 1"#;

fn killed_mid_transfer(context: &mut Context) -> Result<()> {
    let client = context.start(Place::Guest("pv"), ON_AND_ON)?;
    context.succeed(Place::Dom0, STOP_WORKER)?;
    let mediator = context.take_mediator()?;
    mediator.signal(context.host.as_mut(), "KILL")?;
    let output = client.wait(context.host.as_mut(), LIMIT)?;
    ensure_failed_well(ON_AND_ON, &output)?;
    // A new one takes over, although the old one could not clean up.
    context.start_mediator()?;
    vector_add::vector_add(context, Pv, 1_000)
}

fn worker_killed(context: &mut Context) -> Result<()> {
    let client = context.start(Place::Guest("pv"), ON_AND_ON)?;
    let worker = context.succeed(Place::Dom0, STOP_WORKER)?;
    context.succeed(Place::Dom0, &format!("kill -KILL {worker}"))?;
    let output = client.wait(context.host.as_mut(), LIMIT)?;
    ensure_failed_well(ON_AND_ON, &output)?;
    vector_add::vector_add(context, Pv, 1_000)
}

/// Stops a worker that has sealed itself and prints its pid. It has more filters than this script, which has some
/// itself where dom0 is limited to an old kernel's system calls.
const STOP_SEALED_WORKER: &str = r#"
filters() { awk '/^Seccomp/ { n += $2 } END { print n + 0 }' /proc/$1/status; }
own=$(filters self)
for n in $(seq 300); do
    for worker in $(pidof vgpu-mediatord); do
        if [ "$(filters $worker)" -gt "$own" ]; then
            kill -STOP $worker && echo $worker && exit 0
        fi
    done
    usleep 50000
done
echo no worker was sealed >&2; exit 1"#;

/// A worker over a ring runs as nobody, and has given up xenstore and Xen's control interface.
fn worker_confined(context: &mut Context) -> Result<()> {
    let client = context.start(Place::Guest("pv"), ON_AND_ON)?;
    let worker = context.succeed(Place::Dom0, STOP_SEALED_WORKER)?;
    let worker = worker.trim();
    let look = format!(
        "cd /proc/{worker}; cat status; ls -l fd ns; echo the broker; ls -l /proc/self/ns; ls root root/dev"
    );
    let seen = context.succeed(Place::Dom0, &look)?;
    context.succeed(Place::Dom0, &format!("kill -KILL {worker}"))?;
    let output = client.wait(context.host.as_mut(), LIMIT)?;
    ensure_failed_well(ON_AND_ON, &output)?;
    let words = |name: &str| -> Vec<&str> {
        let line = seen.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().split_whitespace().collect()
    };
    for ids in [words("Uid:"), words("Gid:")] {
        let number = ids.first().and_then(|id| id.parse::<u32>().ok());
        ensure!(number.is_some_and(|id| id >= 2_080_000_000), "{seen}");
        ensure!(ids.iter().all(|id| Some(id) == ids.first()), "{seen}");
    }
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        ensure!(words(set) == ["0000000000000000"], "{set}: {seen}");
    }
    ensure!(words("Seccomp:") == ["2"], "{seen}");
    // Its ring's devices, and two sockets to the broker: for messages and for its log.
    ensure!(
        seen.contains("/dev/xen/gntdev") && seen.contains("/dev/xen/evtchn"),
        "{seen}"
    );
    for forbidden in ["privcmd", "hypercall", "xenbus"] {
        let open = seen
            .lines()
            .any(|line| line.contains("->") && line.contains(forbidden));
        ensure!(!open, "{forbidden} is open: {seen}");
    }
    let sockets = seen
        .lines()
        .filter_map(|line| line.split_once("-> socket:"));
    let sockets: std::collections::BTreeSet<&str> = sockets.map(|(_, number)| number).collect();
    ensure!(sockets.len() <= 2, "a third socket is open: {seen}");
    for namespace in ["net:[", "mnt:[", "ipc:["] {
        let found = seen
            .lines()
            .filter_map(|line| line.split_once(namespace).map(|(_, number)| number));
        let found: std::collections::BTreeSet<&str> = found.collect();
        ensure!(found.len() == 2, "it shares {namespace}]: {seen}");
    }
    vector_add::vector_add(context, Pv, 1_000)
}

fn denied_by_default(context: &mut Context) -> Result<()> {
    with_mediator(
        context,
        "vgpu-mediatord --listen xen: --executor cpu",
        |context| {
            let command = "vgpu --endpoint xen: vector-add --n 1000";
            let error = context.fail(Place::Guest("pv"), command)?;
            ensure!(
                error.contains("den") || error.contains("allow"),
                "says not why: {error}"
            );
            Ok(())
        },
    )
}

fn allowed_by_table(context: &mut Context) -> Result<()> {
    for key in [
        "domid:$(guest_domid pv)",
        "pv",
        "uuid:$(xl vm-list | awk '$3 == \"pv\" {print $1}')",
    ] {
        let command = format!(
            "printf '[guests]\\n\"%s\" = \"allow\"\\n' \"{key}\" >/tmp/policy.toml\n\
             exec vgpu-mediatord --listen xen: --executor cpu --config /tmp/policy.toml"
        );
        with_mediator(context, &command, |context| {
            vector_add::vector_add(context, Pv, 1_000)
        })?;
    }
    context
        .succeed(Place::Dom0, "rm -f /tmp/policy.toml")
        .map(drop)
}

/// Runs `test` while a mediator of its own runs in dom0.
fn with_mediator(
    context: &mut Context,
    command: &str,
    test: impl FnOnce(&mut Context) -> Result<()>,
) -> Result<()> {
    let mediator = context.start(Place::Dom0, &format!(". /lab/functions.sh; {command}"))?;
    let outcome = mediator
        .wait_for(context.host.as_mut(), "listening on xen:", LIMIT)
        .and_then(|_| test(context));
    mediator.signal(context.host.as_mut(), "TERM")?;
    mediator.wait(context.host.as_mut(), LIMIT)?;
    outcome
}

//! Kernels of the guests' own: PTX over granted pages, on the `cpu` executor of dom0 and through the
//! relay; and that a guest whose kernels never end or go astray harms itself alone.

use anyhow::{Context as _, Result, bail, ensure};
use data_encoding::BASE64;

use super::Case;
use super::Context;
use super::relay::{LISTENING, start_relay};
use crate::lab::guest::Kind::{Pv, Pvh};
use crate::lab::host::{LIMIT, Place};
use crate::lab::job::Job;

pub(crate) const CASES: &[Case] = &[
    Case::with_mediator(
        "gpu/one-guest-hurts-itself-alone",
        &[Pv, Pvh],
        one_guest_hurts_itself_alone,
    ),
    Case::new("gpu/through-the-relay", &[Pv, Pvh], through_the_relay),
];

const KERNELS: &str = include_str!("gpu.ptx");

/// Rows and columns of the matrices: two tiles each way.
const SIDE: usize = 32;

/// Runs a kernel of gpu.ptx, in /tmp/gpu. The mediators share two emulated processors with kernels that
/// spin, so a session may take longer to open than anybody waits for it; such a one is tried again, as its
/// error advises. `$json` is empty or `--json`.
const RUN: &str = r#"
run() {
    for n in $(seq 20); do
        vgpu --timeout 60s --endpoint xen: $json run gpu.ptx "$@" >said 2>errors && cat said && return 0
        grep -qE '^error: connect: |"what":"connect: ' said errors || break
    done
    cat said errors >&2; return 1
}
cd /tmp/gpu || exit
"#;

/// A matrix product and the sum of a matrix, in /tmp/gpu; each result is in place only when it is whole.
fn work() -> String {
    let bytes = SIDE * SIDE * size_of::<f32>();
    format!(
        "{RUN} json=--json; rm -f c.f32 sum.f32 || exit
         run --entry matmul --grid 2,2 --block 16,16 --arg in:a.f32 --arg in:b.f32 \
             --arg out:c.f32:{bytes} --arg u32:{SIDE} || exit
         run --entry reduce --grid 4 --block 256 --arg in:a.f32 --arg out:sum.f32:4 || exit\n"
    )
}

/// Whole numbers, so that every order of additions gives the same sums.
fn factors() -> [Vec<f32>; 2] {
    let small = |a: usize, b: usize, most: usize| {
        let value = i8::try_from((a + b) % most).expect("a small number");
        f32::from(value) - 2.0
    };
    let matrix = |value: &dyn Fn(usize, usize) -> f32| {
        let places = (0..SIDE).flat_map(|row| (0..SIDE).map(move |column| (row, column)));
        places.map(|(row, column)| value(row, column)).collect()
    };
    [
        matrix(&|row, column| small(3 * row, 5 * column, 7)),
        matrix(&|row, column| small(2 * row, column, 5)),
    ]
}

fn bytes(floats: &[f32]) -> Vec<u8> {
    floats
        .iter()
        .flat_map(|float| float.to_le_bytes())
        .collect()
}

/// Puts kernels and data into a guest.
fn provide(context: &mut Context, guest: &str) -> Result<()> {
    let [a, b] = factors().map(|floats| BASE64.encode(&bytes(&floats)));
    let script = format!(
        "mkdir -p /tmp/gpu && cd /tmp/gpu || exit
         echo {a} | base64 -d >a.f32 && echo {b} | base64 -d >b.f32 || exit
         cat >gpu.ptx <<'END'\n{KERNELS}END\n"
    );
    context.succeed(Place::Guest(guest), &script).map(drop)
}

/// Checks what [`work`] has left in a guest and printed.
fn ensure_right(context: &mut Context, guest: &str, printed: &str, executor: &str) -> Result<()> {
    let lines: Vec<serde_json::Value> = printed
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .with_context(|| format!("no lines of JSON: {printed}"))?;
    ensure!(lines.len() >= 2, "not two kernels have run: {printed}");
    for line in &lines {
        let ran = line["device_ns"].as_u64() > Some(0);
        ensure!(ran && line["executor"] == executor, "{guest}: {line}");
    }
    let script = "cd /tmp/gpu && base64 c.f32 | tr -d '\\n' && echo && base64 sum.f32";
    let text = context.succeed(Place::Guest(guest), script)?;
    let found: Vec<_> = text
        .lines()
        .map(|line| BASE64.decode(line.as_bytes()).ok())
        .collect();
    let [a, b] = factors();
    let product: Vec<f32> = (0..SIDE * SIDE)
        .map(|at| {
            let (row, column) = (at / SIDE, at % SIDE);
            (0..SIDE)
                .map(|k| a[row * SIDE + k] * b[k * SIDE + column])
                .sum()
        })
        .collect();
    let sum: f32 = a.iter().sum();
    ensure!(
        found == [Some(bytes(&product)), Some(bytes(&[sum]))],
        "{guest} has wrong results: {text}"
    );
    Ok(())
}

/// Starts [`work`].
fn start_work(context: &mut Context, guest: &str) -> Result<Job> {
    context.start(Place::Guest(guest), &work())
}

/// One kernel that never ends and one that writes to nowhere, each in a session of its own, again and
/// again until there is a file `enough`, and at least once each. Prints what they said.
fn mischief() -> String {
    format!(
        "{RUN} rm -f enough || exit
         echo begun
         while :; do
             run --entry endless --deadline 1 --grid 1 --block 1 2>&1 && exit 1
             run --entry stray --grid 1 --block 1 2>&1 && exit 1
             [ ! -e enough ] || exit 0
         done"
    )
}

/// While one guest's kernels spin and go astray, the other's results are right. Each of the first's
/// errors has CUDA's name and number and names its request, and its next session is served.
fn one_guest_hurts_itself_alone(context: &mut Context) -> Result<()> {
    let (bad, good) = (Context::shared(Pv), Context::shared(Pvh));
    provide(context, bad)?;
    provide(context, good)?;
    let mischief = context.start(Place::Guest(bad), &mischief())?;
    mischief.wait_for(context.host.as_mut(), "begun", LIMIT)?;
    let output = start_work(context, good)?.wait(context.host.as_mut(), LIMIT)?;
    ensure_right(context, good, output.text()?, "cpu")?;
    context.succeed(Place::Guest(bad), "touch /tmp/gpu/enough")?;
    let output = mischief.wait(context.host.as_mut(), LIMIT)?;
    let said = output.text()?;
    let (mut endless, mut stray) = (0, 0);
    for line in said.lines().filter(|line| line.starts_with("error: ")) {
        ensure!(
            line.contains("Launch, request "),
            "names no request: {line}"
        );
        endless += usize::from(line.contains("CUDA_ERROR_LAUNCH_TIMEOUT (702)"));
        stray += usize::from(line.contains("CUDA_ERROR_ILLEGAL_ADDRESS (700)"));
    }
    ensure!(endless > 0 && stray == endless, "said otherwise: {said}");
    // Both at once, now that the one behaves.
    let mut jobs = Vec::new();
    for guest in [bad, good] {
        jobs.push((guest, start_work(context, guest)?));
    }
    for (guest, job) in jobs {
        let output = job.wait(context.host.as_mut(), LIMIT)?;
        ensure_right(context, guest, output.text()?, "cpu")?;
    }
    forget(context, &[bad, good])
}

/// The same kernels from the PV guest, through dom0's relay, on a mediator in the PVH guest.
fn through_the_relay(context: &mut Context) -> Result<()> {
    let (client, device) = (Context::shared(Pv), Context::shared(Pvh));
    provide(context, client)?;
    let script = "exec vgpu-mediatord --listen xen: --executor cpu --control /run/vgpu/c.sock";
    let far = context.start(Place::Guest(device), script)?;
    far.wait_for(context.host.as_mut(), LISTENING, LIMIT)
        .context("the mediator in the device's domain")?;
    let relay = start_relay(context, &format!("relay:xen:{device}"))?;
    if let Err(error) = work_and_mischief(context, client) {
        let near = relay.output_so_far(context.host.as_mut())?;
        let far = far.output_so_far(context.host.as_mut())?;
        bail!("{error:#}; relay: {}; far: {}", near.stderr, far.stderr);
    }
    context.end_mediator(&relay)?;
    far.signal(context.host.as_mut(), "TERM")?;
    let output = far.wait(context.host.as_mut(), LIMIT)?;
    ensure!(output.success(), "{}", output.last_words());
    // The node of its offers, which a domain that is meant for that would keep.
    let offers = format!(
        ". /lab/functions.sh; xenstore-rm /local/domain/$(guest_domid {device})/data/vgpu-offer"
    );
    context.succeed(Place::Dom0, &offers)?;
    forget(context, &[client])
}

fn work_and_mischief(context: &mut Context, client: &str) -> Result<()> {
    let output = start_work(context, client)?.wait(context.host.as_mut(), LIMIT)?;
    ensure_right(context, client, output.text()?, "relay")?;
    let errors = [
        ("endless --deadline 1", "CUDA_ERROR_LAUNCH_TIMEOUT (702)"),
        ("stray", "CUDA_ERROR_ILLEGAL_ADDRESS (700)"),
    ];
    for (entry, error) in errors {
        let script = format!("{RUN} run --grid 1 --block 1 --entry {entry}");
        let said = context.fail(Place::Guest(client), &script)?;
        ensure!(
            said.contains(error) && said.contains("Launch, request "),
            "said otherwise: {said}"
        );
    }
    let output = start_work(context, client)?.wait(context.host.as_mut(), LIMIT)?;
    ensure_right(context, client, output.text()?, "relay")
}

fn forget(context: &mut Context, guests: &[&str]) -> Result<()> {
    for guest in guests {
        context.succeed(Place::Guest(guest), "rm -rf /tmp/gpu")?;
    }
    Ok(())
}

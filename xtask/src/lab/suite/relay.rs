//! Sessions that dom0 passes on: to a mediator in a GPU domain, and to one outside this Xen.

use std::fs::{self, OpenOptions};
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::context::ensure_failed_well;
use super::vector_add::ensure_verified_by;
use super::{Case, Context};
use crate::lab::guest::GuestSpec;
use crate::lab::guest::Kind::{self, Pv, Pvh};
use crate::lab::host::{LIMIT, Lacking, Place};
use crate::lab::job::Job;
use crate::lab::project;

pub(crate) const CASES: &[Case] = &[
    Case::new("relay/gpu-domain-pv", &[Pv, Pvh], |c| gpu_domain(c, Pv)),
    Case::new("relay/gpu-domain-pvh", &[Pv], |c| gpu_domain(c, Pvh)),
    Case::new("relay/gpu-domain-destroyed", &[Pv], destroyed),
    Case::new("relay/garbage-offers", &[Pv], garbage_offers),
    Case::new("relay/tcp-outside", &[Pv], tcp_outside),
];

/// 16 million elements are 192 MiB through two emulated rings.
const LARGE_LIMIT: Duration = Duration::from_secs(600);

/// Memory of a GPU domain: it holds only a few chunks of a vector.
const GPU_MEMORY_MIB: u32 = 256;

pub(super) const LISTENING: &str = "listening on xen:";

/// Starts a domain called `gpu` with a mediator in it that offers channels.
fn start_gpu_domain(context: &mut Context, kind: Kind) -> Result<()> {
    create_gpu_domain(context, kind)?;
    start_offering(context)
}

fn create_gpu_domain(context: &mut Context, kind: Kind) -> Result<()> {
    let mut spec = GuestSpec::new("gpu", kind);
    spec.memory_mib = GPU_MEMORY_MIB;
    context.create(&spec)
}

fn start_offering(context: &mut Context) -> Result<()> {
    let script = "exec vgpu-mediatord --listen xen: --executor cpu --control /run/vgpu/c.sock";
    let job = context.start(Place::Guest("gpu"), script)?;
    job.wait_for(context.host.as_mut(), LISTENING, LIMIT)
        .context("the mediator in the GPU domain")?;
    Ok(())
}

/// Starts the mediator in dom0 that passes sessions on to `executor`.
pub(super) fn start_relay(context: &mut Context, executor: &str) -> Result<Job> {
    let script = format!(
        "exec vgpu-mediatord --listen xen: --executor {executor} --allow-all \
         --control /run/vgpu/mediatord.sock"
    );
    let job = context.start(Place::Dom0, &script)?;
    job.wait_for(context.host.as_mut(), LISTENING, LIMIT)
        .context("the mediator in dom0")?;
    Ok(job)
}

/// With long time limits: four domains share two emulated processors.
fn add(elements: u64) -> String {
    format!("vgpu --timeout 60s --endpoint xen: --json vector-add --n {elements}")
}

fn verified(context: &mut Context, guest: &str, elements: u64) -> Result<()> {
    let text = context.succeed_within(Place::Guest(guest), &add(elements), LARGE_LIMIT)?;
    ensure_verified_by(&text, elements, "relay")
}

fn gpu_domain(context: &mut Context, kind: Kind) -> Result<()> {
    start_gpu_domain(context, kind)?;
    let relay = start_relay(context, "relay:xen:gpu")?;
    let info = context.succeed(
        Place::Guest("pv"),
        "vgpu --timeout 60s --endpoint xen: info",
    )?;
    ensure!(
        info.contains("relay") && info.contains("cpu at xen:gpu"),
        "info does not say what is behind: {info}"
    );
    context.succeed(
        Place::Guest("pv"),
        "vgpu --timeout 60s --endpoint xen: ping",
    )?;
    // Two clients at once: of two guests where there are two, else two programs of one.
    let clients = match kind {
        Pv => ["pv", "pvh"],
        Pvh => ["pv", "pv"],
    };
    let mut jobs = Vec::new();
    for client in clients {
        jobs.push(context.start(Place::Guest(client), &add(1_048_576))?);
    }
    for job in jobs {
        let output = job.wait(context.host.as_mut(), LARGE_LIMIT)?;
        ensure_verified_by(output.text()?, 1_048_576, "relay")?;
    }
    verified(context, "pv", 16_777_216)?;
    // One channel is on offer, and the sessions' use is in dom0's accounts.
    let offers = "xenstore-list /local/domain/$(guest_domid gpu)/data/vgpu-offer | wc -w";
    let offered = context.succeed(Place::Dom0, &format!(". /lab/functions.sh; {offers}"))?;
    ensure!(offered == "1", "{offered} channels are on offer");
    let status = context.succeed(Place::Dom0, "vgpuctl --json status")?;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    // Two floats went up for each element, and one came down.
    let elements = 16_777_216 + 2 * 1_048_576;
    let booked = |figure: &str| status["usage"][figure].as_u64();
    ensure!(
        booked("bytes_in") > Some(8 * elements)
            && booked("bytes_out") > Some(4 * elements)
            && status["executor"]["kind"] == "relay",
        "dom0's accounts are wrong: {status}"
    );
    context.end_mediator(&relay)?;
    context.host.guest_destroy("gpu")
}

/// Waits until a session has moved some megabytes.
const UNDER_WAY: &str = r#"
for n in $(seq 300); do
    most=$(vgpuctl --json status | tr ',{' '\n\n' | sed -n 's/^"bytes_in":\([0-9]*\)$/\1/p' | sort -n | tail -n 1)
    [ "${most:-0}" -gt 4000000 ] && exit 0
    usleep 200000
done
echo nothing moves >&2; exit 1"#;

/// Sixty offers: some with keys that are not numbers, some with numbers that lead nowhere.
const GARBAGE: &str = r#"
set --
for n in $(seq 20); do
    node=data/vgpu-offer/$(printf %016x $n)
    set -- "$@" $node/ring-ref many $node/event-channel 0x1
    node=data/vgpu-offer/$(printf %016x $((n + 100)))
    set -- "$@" $node/ring-ref 99999 $node/event-channel 1000
    set -- "$@" data/vgpu-offer/not-an-offer-$n x
done
xenstore-write "$@""#;

fn destroyed(context: &mut Context) -> Result<()> {
    start_gpu_domain(context, Pv)?;
    let relay = start_relay(context, "relay:xen:gpu")?;
    verified(context, "pv", 1_000)?;
    let endless = "while :; do vgpu --timeout 60s --endpoint xen: vector-add --n 4194304 >/dev/null || exit; done";
    let client = context.start(Place::Guest("pv"), endless)?;
    context.succeed(Place::Dom0, UNDER_WAY)?;
    context.host.guest_destroy("gpu")?;
    let output = client.wait(context.host.as_mut(), LIMIT)?;
    ensure_failed_well(endless, &output)?;
    ensure!(
        output.stderr.contains("xen:gpu"),
        "does not say which mediator is gone: {}",
        output.last_words()
    );
    let error = context.fail(Place::Guest("pv"), &add(10))?;
    ensure!(
        error.contains("there is no domain"),
        "does not say that the domain is missing: {error}"
    );
    // The same name, another domain id.
    start_gpu_domain(context, Pv)?;
    verified(context, "pv", 1_048_576)?;
    context.end_mediator(&relay)?;
    context.host.guest_destroy("gpu")
}

/// A GPU domain whose offers lead nowhere costs a session seven seconds, and its own mediator
/// removes them once it starts.
fn garbage_offers(context: &mut Context) -> Result<()> {
    create_gpu_domain(context, Pv)?;
    context.succeed(Place::Guest("gpu"), GARBAGE)?;
    let relay = start_relay(context, "relay:xen:gpu")?;
    let error = context.fail(Place::Guest("pv"), &add(10))?;
    ensure!(
        error.contains("xen:gpu) cannot be reached"),
        "garbage is not refused as it should be: {error}"
    );
    start_offering(context)?;
    verified(context, "pv", 1_000)?;
    context.end_mediator(&relay)?;
    context.host.guest_destroy("gpu")
}

/// Gives dom0 an address in QEMU's user network, in which the test machine is 10.0.2.2.
const OUTSIDE_UP: &str = r#"
. /lab/functions.sh
network_up && modprobe e1000 || exit
for n in $(seq 100); do
    for device in /sys/class/net/*; do
        case $(readlink "$device/device/driver") in
        */e1000)
            device=${device##*/}
            ip link set "$device" up && ip address replace 10.0.2.15/24 dev "$device"
            exit ;;
        esac
    done
    usleep 100000
done
echo no network card came up >&2; exit 1"#;

/// Removes the card's interrupt again.
const OUTSIDE_DOWN: &str = "rm -f /tmp/relay-secret
for device in /sys/class/net/*; do
    case $(readlink $device/device/driver) in
    */e1000) ip link set ${device##*/} down ;;
    esac
done
rmmod e1000";

/// A mediator on the test machine itself; killed when dropped.
struct Outside {
    child: Child,
    secret: String,
    port: u16,
    folder: std::path::PathBuf,
}

impl Drop for Outside {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Outside {
    fn start() -> Result<Self> {
        let programs = project::target().join(project::TESTED_FOLDER);
        let made = Command::new(programs.join("vgpuctl"))
            .args(["secret", "dom0"])
            .output()
            .context("running vgpuctl")?;
        ensure!(made.status.success(), "vgpuctl secret failed: {made:?}");
        let secret = String::from_utf8(made.stdout)?;
        let folder = project::runs().join(format!("outside-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let secrets = folder.join("secrets");
        let _ = fs::remove_file(&secrets);
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600);
        std::io::Write::write_all(&mut file.open(&secrets)?, secret.as_bytes())?;
        // Free a moment ago; if it is taken meanwhile the case fails, not the machine.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let child = Command::new(programs.join("vgpu-mediatord"))
            .args(["--executor", "cpu", "--listen"])
            .arg(format!("tcp:127.0.0.1:{port}"))
            .arg("--secrets")
            .arg(&secrets)
            .arg("--control")
            .arg(folder.join("control.sock"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.join("log"))?)
            .spawn()
            .context("starting the mediator outside")?;
        let mut outside = Self {
            child,
            secret,
            port,
            folder,
        };
        let deadline = Instant::now() + LIMIT;
        while !outside.log().contains("listening on tcp:") {
            if outside.child.try_wait()?.is_some() || Instant::now() > deadline {
                bail!("the mediator outside does not listen: {}", outside.log());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(outside)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

fn tcp_outside(context: &mut Context) -> Result<()> {
    if !context.host.has_spare_guests() {
        let why = "the test machine is not known to this host's dom0".to_owned();
        return Err(Lacking(why).into());
    }
    let outside = Outside::start()?;
    context.succeed(Place::Dom0, OUTSIDE_UP)?;
    let file = format!(
        "umask 077; cat >/tmp/relay-secret <<'END'\n{}\nEND\n",
        outside.secret.trim()
    );
    context.succeed(Place::Dom0, &file)?;
    let executor = format!(
        "relay:tcp:10.0.2.2:{} --relay-secret /tmp/relay-secret",
        outside.port
    );
    let relay = start_relay(context, &executor)?;
    // The last goes in two pieces of different sizes.
    for elements in [1, 1_000, 600_000] {
        verified(context, "pv", elements).with_context(|| format!("outside: {}", outside.log()))?;
    }
    context.succeed(
        Place::Guest("pv"),
        "vgpu --timeout 60s --endpoint xen: ping",
    )?;
    // It dies; the guest is notified.
    drop(outside);
    let error = context.fail(Place::Guest("pv"), &add(10))?;
    ensure!(
        error.contains("tcp:10.0.2.2"),
        "does not say which mediator is gone: {error}"
    );
    context.end_mediator(&relay)?;
    context.succeed(Place::Dom0, OUTSIDE_DOWN).map(drop)
}

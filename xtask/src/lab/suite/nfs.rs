//! The file protocol in its intended place: dom0 exports a directory for each of two guests by NFS
//! 4.2, and they mount it over their network.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::context::ensure_failed_well;
use super::vector_add::ensure_verified;
use super::{Case, Context};
use crate::lab::host::{LIMIT, Place};
use crate::lab::job::Job;
use crate::two_files;

pub(crate) const CASES: &[Case] = &[
    Case::networked("nfs/both-protocols-at-once", both_protocols),
    Case::networked("nfs/guide", guide),
    Case::networked("nfs/sessions", sessions),
    Case::networked("nfs/mediator-killed", mediator_killed),
    Case::networked("nfs/export-withdrawn", export_withdrawn),
    Case::networked("nfs/file-system-replaced", replaced),
];

/// Three chunks, and more bytes up than the largest file of a session holds. More elements would
/// only repeat this, at a minute or two per million; windows and full file systems are tested in
/// `file-transport/tests/directories/session_model.rs` and `session_stream.rs`.
const LARGE: u64 = 131_073;

/// A session over NFS on an emulated network takes ten seconds.
const SESSION_LIMIT: Duration = Duration::from_secs(900);

/// Time limit in seconds for a client whose session must succeed. With default mount options, Linux
/// shows a new file up to a minute late; each step of a session is several calls over an emulated
/// network, on a machine that may be busy.
const PATIENCE_S: u32 = 300;

/// The same for a client that must notice a failure.
const IMPATIENCE_S: u32 = 100;

/// The mediator of these cases, with the same time limits as its clients.
const MEDIATOR: &str = "printf '[limits]\\nconnect_timeout_s = 300\\nhello_timeout_s = 300\\n\
     stall_timeout_s = 100\\nfile_silence_s = 100\\n' >/run/lab/mediatord.toml
     exec vgpu-mediatord --listen file:/dev/shm/vgpu --executor cpu --allow-all \
     --config /run/lab/mediatord.toml --control /run/vgpu/mediatord.sock";

/// The mount options of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mount {
    /// As `docs/file-protocol.md` recommends.
    Recommended,
    /// With no option of ours.
    Default,
}

impl Mount {
    const BOTH: [Mount; 2] = [Mount::Recommended, Mount::Default];

    /// The command that mounts a guest's directory at `/mnt/vgpu`; by its path, because the shell
    /// has a built-in `mount`.
    pub(crate) fn command(self) -> String {
        format!(
            "mkdir -p /mnt/vgpu && /usr/bin/mount -t nfs -o {} 10.77.0.1:/ /mnt/vgpu",
            self.options()
        )
    }

    fn options(self) -> &'static str {
        match self {
            Mount::Recommended => "vers=4.2,hard,actimeo=0,lookupcache=none",
            Mount::Default => "vers=4.2",
        }
    }
}

/// Exports a directory to each guest, which outlives the case, and starts the mediator.
fn serve(context: &mut Context) -> Result<Job> {
    let mut script = "network_up && . /lab/network.sh && nfsd_start || exit\n".to_owned();
    for (name, address) in Context::networked() {
        script += &format!("share_make {name} && share_export {name} {address} || exit\n");
    }
    context.succeed(Place::Dom0, &script)?;
    start_mediator(context)
}

fn start_mediator(context: &mut Context) -> Result<Job> {
    let mediator = context.start(Place::Dom0, MEDIATOR)?;
    for (name, _) in Context::networked() {
        let script = format!(
            "until grep -q . /dev/shm/vgpu/{name}/response.txt; do usleep 100000; done 2>/dev/null"
        );
        context.succeed(Place::Dom0, &script)?;
    }
    Ok(mediator)
}

/// Runs `test` while both guests have their directory mounted at `/mnt/vgpu`, one like this and the other like that.
fn mounted(
    context: &mut Context,
    mounts: [Mount; 2],
    test: impl FnOnce(&mut Context) -> Result<()>,
) -> Result<()> {
    for ((name, _), mount) in Context::networked().into_iter().zip(mounts) {
        // One left by a failed case would be below.
        let script = format!("umount -l /mnt/vgpu 2>/dev/null; {}", mount.command());
        context.succeed(Place::Guest(name), &script)?;
    }
    let outcome = test(context);
    for (name, _) in Context::networked() {
        let gone = context.succeed(Place::Guest(name), "/usr/bin/umount /mnt/vgpu");
        if outcome.is_ok() {
            gone?;
        }
    }
    outcome
}

/// The client of the guide: writes a number, waits a second, looks. It cannot tell an old answer from its
/// own, and on a busy host a second may be too short, so it runs where any earlier answer reads the same.
const GUIDE: &str = r#"echo 1 >/mnt/vgpu/command.txt && sleep 1 || exit
until line=$(cat /mnt/vgpu/response.txt); [ "${line%%:*}" != 0 ]; do usleep 500000; done
echo "$line"
"#;

const VECTOR_ADD: &str = "1:Vector add PASSED: 1024 elements, 0 errors (cpu executor";

/// Starts the guide's client in both guests, and those that wait for `0:Ready`, for the shell and in C.
fn start_guide_clients(context: &mut Context) -> Result<Vec<Job>> {
    let ask = two_files::ask("/mnt/vgpu", "usleep 500000");
    let client = format!(
        "{GUIDE}{ask}for number in 2 9; do ask $number || exit; done; guide_client /mnt/vgpu 1"
    );
    let guests = Context::networked().into_iter();
    guests
        .map(|(name, _)| context.start(Place::Guest(name), &client))
        .collect()
}

fn check_guide_client(context: &mut Context, client: &Job) -> Result<()> {
    let output = client.wait(context.host.as_mut(), LIMIT)?;
    let lines: Vec<&str> = output.text()?.lines().collect();
    let expected = [
        VECTOR_ADD,
        "1:",
        "2:command 9 is unknown; write 0 (nothing), 1 (vector add) or 2 (GPU info)",
        VECTOR_ADD,
    ];
    let alike =
        lines.len() == expected.len() && lines.iter().zip(expected).all(|(l, e)| l.starts_with(e));
    ensure!(alike && lines[1].contains("(cpu executor"), "{lines:?}");
    Ok(())
}

fn guide(context: &mut Context) -> Result<()> {
    let mediator = serve(context)?;
    for mount in Mount::BOTH {
        mounted(context, [mount; 2], |context| {
            let clients = start_guide_clients(context)?;
            let mut clients = clients.iter();
            clients.try_for_each(|client| check_guide_client(context, client))
        })
        .with_context(|| format!("{mount:?}"))?;
    }
    context.end_mediator(&mediator)
}

/// One verified vector add.
fn vector_add(context: &mut Context, guest: &str, elements: u64) -> Result<()> {
    let script = session(elements, PATIENCE_S);
    let text = context.succeed_within(Place::Guest(guest), &script, SESSION_LIMIT)?;
    ensure_verified(&text, elements)
}

fn session(elements: u64, timeout_s: u32) -> String {
    format!("vgpu --timeout {timeout_s} --endpoint file:/mnt/vgpu --json vector-add --n {elements}")
}

/// Starts a session in each guest, of so many elements.
fn start_sessions(context: &mut Context, sizes: [u64; 2]) -> Result<Vec<(Job, u64)>> {
    let guests = Context::networked().into_iter().zip(sizes);
    guests
        .map(|((name, _), elements)| {
            let client = context.start(Place::Guest(name), &session(elements, PATIENCE_S))?;
            Ok((client, elements))
        })
        .collect()
}

fn check_session(context: &mut Context, (client, elements): &(Job, u64)) -> Result<()> {
    let output = client.wait(context.host.as_mut(), SESSION_LIMIT)?;
    ensure_verified(output.text()?, *elements)
}

fn sessions(context: &mut Context) -> Result<()> {
    let mediator = serve(context)?;
    // Both guests at once, each with both sizes, and both sizes over either mount.
    for (mount, sizes) in Mount::BOTH
        .into_iter()
        .zip([[1_024, LARGE], [LARGE, 1_024]])
    {
        mounted(context, [mount; 2], |context| {
            let clients = start_sessions(context, sizes)?;
            let mut clients = clients.iter();
            clients.try_for_each(|client| check_session(context, client))
        })?;
    }
    context.end_mediator(&mediator)
}

/// `nfs/guide` and `nfs/sessions` in one round: over either mount the guide's clients and a session, in two guests, all at
/// once in their directories.
fn both_protocols(context: &mut Context) -> Result<()> {
    let mediator = serve(context)?;
    mounted(context, Mount::BOTH, |context| {
        let clients = start_guide_clients(context)?;
        let sessions = start_sessions(context, [LARGE, 1_024])?;
        let mut clients = clients.iter();
        clients.try_for_each(|client| check_guide_client(context, client))?;
        let mut sessions = sessions.iter();
        sessions.try_for_each(|client| check_session(context, client))
    })?;
    context.end_mediator(&mediator)
}

/// Runs until something fails, and fails with it.
const ON_AND_ON: &str = "while :; do \
     vgpu --timeout 100 --endpoint file:/mnt/vgpu vector-add --n 1048576 >/dev/null || exit; done";

/// Starts [`ON_AND_ON`] in `vm1`, and does `first` in dom0 while numbers are on their way.
fn interrupt(context: &mut Context, first: &str) -> Result<Job> {
    let client = context.start(Place::Guest("vm1"), ON_AND_ON)?;
    let script = format!(
        "n=0; cd /dev/shm/vgpu/vm1/sessions || exit
         until [ -e \"$(echo */g-data-*4 | cut -d ' ' -f 1)\" ]; do
             n=$((n + 1)); [ $n -lt 6000 ] || exit
             usleep 10000
         done
         cd /; . /lab/network.sh; {first}"
    );
    context.succeed(Place::Dom0, &script)?;
    Ok(client)
}

/// Waits until the client has failed as it should.
fn failed_well(context: &mut Context, client: &Job) -> Result<String> {
    let output = client.wait(context.host.as_mut(), LIMIT)?;
    ensure_failed_well(ON_AND_ON, &output)?;
    Ok(output.stderr)
}

fn mediator_killed(context: &mut Context) -> Result<()> {
    let mut mediator = serve(context)?;
    for mount in Mount::BOTH {
        mounted(context, [mount; 2], |context| {
            let kill = "kill -KILL $(pidof vgpu-mediatord)";
            let client = interrupt(context, kill)?;
            mediator.wait(context.host.as_mut(), LIMIT)?;
            mediator = start_mediator(context)?;
            failed_well(context, &client)?;
            vector_add(context, "vm1", 1_024)
        })?;
    }
    context.end_mediator(&mediator)
}

fn export_withdrawn(context: &mut Context) -> Result<()> {
    let mediator = serve(context)?;
    for mount in Mount::BOTH {
        mounted(context, [mount; 2], |context| {
            let client = interrupt(context, "share_withdraw vm1 10.77.0.11")?;
            says_withdrawn(&failed_well(context, &client)?)?;
            says_withdrawn(&context.fail(Place::Guest("vm1"), &session(1_024, IMPATIENCE_S))?)?;
            vector_add(context, "vm2", 1_024)?;
            let again = ". /lab/network.sh; share_export vm1 10.77.0.11";
            context.succeed(Place::Dom0, again)?;
            vector_add(context, "vm1", 1_024)
        })?;
    }
    context.end_mediator(&mediator)
}

/// The server refuses the guest, or no longer knows its handles.
fn says_withdrawn(error: &str) -> Result<()> {
    let small = error.to_lowercase();
    let named = ["permission", "stale", "gone"]
        .iter()
        .any(|word| small.contains(word));
    ensure!(named, "says not why: {error}");
    Ok(())
}

/// The exported tmpfs is suddenly another one, as after a restart of dom0.
fn replaced(context: &mut Context) -> Result<()> {
    let mediator = serve(context)?;
    mounted(context, [Mount::Recommended; 2], |context| {
        let replace = "umount -l /dev/shm/vgpu/vm1 && share_make vm1 && exportfs -f";
        let client = interrupt(context, replace)?;
        failed_well(context, &client)?;
        // The mediator must notice it too.
        let served = "until [ -d /dev/shm/vgpu/vm1/sessions ]; do usleep 100000; done";
        context.succeed(Place::Dom0, served)?;
        vector_add(context, "vm1", 1_024)
    })?;
    context.end_mediator(&mediator)
}

//! The file protocol where it is meant to be used: dom0 exports a directory for each of two guests
//! by NFS 4.2, and they mount it over their network.

use anyhow::{Result, ensure};

use super::{Case, Context};
use crate::lab::host::{LIMIT, Place};
use crate::lab::job::Job;

pub(crate) const CASES: &[Case] = &[Case::networked("nfs/guide", guide)];

/// The mediator of these cases.
const MEDIATOR: &str = "exec vgpu-mediatord --listen file:/dev/shm/vgpu --executor cpu \
     --allow-all --control /run/vgpu/mediatord.sock";

/// How a guest mounts its directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mount {
    /// As `docs/file-protocol.md` recommends.
    Recommended,
    /// With no option of ours.
    Default,
}

impl Mount {
    const BOTH: [Mount; 2] = [Mount::Recommended, Mount::Default];

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

/// Ends the mediator as an administrator does.
fn stop(context: &mut Context, mediator: &Job) -> Result<()> {
    mediator.signal(context.host.as_mut(), "TERM")?;
    let output = mediator.wait(context.host.as_mut(), LIMIT)?;
    ensure!(
        output.success(),
        "the mediator ended badly: {}",
        output.last_words()
    );
    Ok(())
}

/// Runs `test` while both guests have their directory mounted at `/mnt/vgpu`.
fn mounted(
    context: &mut Context,
    mount: Mount,
    test: impl FnOnce(&mut Context) -> Result<()>,
) -> Result<()> {
    // One that a failed case left would lie below. By its path, because the shell has one built in.
    let script = format!(
        "umount -l /mnt/vgpu 2>/dev/null; mkdir -p /mnt/vgpu &&
         /usr/bin/mount -t nfs -o {} 10.77.0.1:/ /mnt/vgpu",
        mount.options()
    );
    for (name, _) in Context::networked() {
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

/// The client of the guide, for a shell: writes a number, waits a second, looks every 100 ms.
const ASK: &str = r#"ask() {
    echo "$1" >/mnt/vgpu/command.txt || return
    sleep 1
    for n in $(seq 600); do
        line=$(cat /mnt/vgpu/response.txt)
        case $line in
        0:*) usleep 100000 ;;
        *) echo "$line"; return ;;
        esac
    done
    echo "no answer: $line"
    return 1
}
"#;

const VECTOR_ADD: &str = "1:Vector add PASSED: 1024 elements, 0 errors (cpu executor";

fn guide(context: &mut Context) -> Result<()> {
    let mediator = serve(context)?;
    for mount in Mount::BOTH {
        mounted(context, mount, |context| {
            let client = format!(
                "{ASK}for number in 1 1 2 9; do ask $number || exit; done; guide_client /mnt/vgpu 1"
            );
            let mut clients = Vec::new();
            for (name, _) in Context::networked() {
                clients.push(context.start(Place::Guest(name), &client)?);
            }
            for client in clients {
                let output = client.wait(context.host.as_mut(), LIMIT)?;
                let lines: Vec<&str> = output.text()?.lines().collect();
                let expected = [
                    VECTOR_ADD,
                    VECTOR_ADD,
                    "1:",
                    "2:command 9 is unknown; write 0 (nothing), 1 (vector add) or 2 (GPU info)",
                    VECTOR_ADD,
                ];
                let alike = lines.len() == expected.len()
                    && lines.iter().zip(expected).all(|(l, e)| l.starts_with(e));
                ensure!(
                    alike && lines[2].contains("(cpu executor"),
                    "{mount:?}: {lines:?}"
                );
            }
            Ok(())
        })?;
    }
    stop(context, &mediator)
}

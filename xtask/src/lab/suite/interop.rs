//! Our channel against the stock libxenvchan: the peer of `vchan/tests/c-peer`.
//!
//! Every transfer is the peer's fixed pattern, and the lengths and checksums that both programs
//! print must agree.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Case, Context};
use crate::lab::guest::GuestSpec;
use crate::lab::guest::Kind::{self, Pv, Pvh};
use crate::lab::host::Place;

/// 64 MiB through an emulated ring, on a busy machine.
const TRANSFER_LIMIT: Duration = Duration::from_secs(300);

/// The peer ends itself after this.
const PEER_TIMEOUT: &str = "--timeout 280";

const MIB: u64 = 1 << 20;

pub(crate) const CASES: &[Case] = &[
    Case::new("interop/pv-in-page-1024-2048", &[Pv], |c| {
        guest_serves(c, Pv, 1024, 2048, MIB)
    }),
    Case::new("interop/pv-in-page-2048-1024", &[Pv], |c| {
        guest_serves(c, Pv, 2048, 1024, MIB)
    }),
    Case::new("interop/pv-1024-65536", &[Pv], |c| {
        guest_serves(c, Pv, 1024, 65536, MIB)
    }),
    Case::new("interop/pv-1048576-2048", &[Pv], |c| {
        guest_serves(c, Pv, 1 << 20, 2048, MIB)
    }),
    Case::new("interop/pv-65536-64-mib", &[Pv], |c| {
        guest_serves(c, Pv, 65536, 65536, 64 * MIB)
    }),
    Case::new("interop/pv-1048576-64-mib", &[Pv], |c| {
        guest_serves(c, Pv, 1 << 20, 1 << 20, 64 * MIB)
    }),
    Case::new("interop/pvh-in-page-1024-2048", &[Pvh], |c| {
        guest_serves(c, Pvh, 1024, 2048, MIB)
    }),
    // Less than for PV: QEMU's emulation ends a PVH guest with a triple fault now and then, the
    // more likely the longer it runs.
    Case::new("interop/pvh-65536", &[Pvh], |c| {
        guest_serves(c, Pvh, 65536, 65536, 4 * MIB)
    }),
    Case::new("interop/pvh-1048576-4096", &[Pvh], |c| {
        guest_serves(c, Pvh, 1 << 20, 4096, 4 * MIB)
    }),
    Case::new("interop/echo-both-roles", &[Pv], echo),
    Case::new("interop/dom0-serves", &[], dom0_serves),
];

/// The programs of both sides, and the direction of the data.
struct Transfer<'a> {
    server: Place<'a>,
    client: Place<'a>,
    /// `--peer` of the server and of the client.
    peers: (u16, u16),
    /// The channel's path, as the server and as the client name it.
    paths: (&'a str, &'a str),
    /// Bytes of the rings: to the server, to the client.
    rings: (usize, usize),
    bytes: u64,
    /// Whether the C program is the vchan server (else the client).
    c_serves: bool,
    to_server: bool,
    nonblocking: bool,
}

impl Transfer<'_> {
    /// The two commands: the server's and the client's.
    fn commands(&self) -> (String, String) {
        let (server_sends, client_sends) = (!self.to_server, self.to_server);
        let (to_server, to_client) = self.rings;
        let rings = format!("--to-server {to_server} --to-client {to_client}");
        let server = self.command(
            "server",
            self.c_serves,
            server_sends,
            self.peers.0,
            self.paths.0,
        );
        let client = self.command(
            "client",
            !self.c_serves,
            client_sends,
            self.peers.1,
            self.paths.1,
        );
        if self.c_serves {
            (format!("{server} {rings}"), client)
        } else {
            // Our server writes the ring that goes to the client.
            (
                format!("{server} --ring {to_server} --write-ring {to_client}"),
                client,
            )
        }
    }

    fn command(&self, role: &str, c: bool, sends: bool, peer: u16, path: &str) -> String {
        let bytes = self.bytes;
        if c {
            let mode = if sends { "source" } else { "sink" };
            let calls = if self.nonblocking {
                "--nonblocking"
            } else {
                ""
            };
            return format!(
                "exec vchan-c-peer {role} {peer} {path} {mode} --bytes {bytes} {calls} {PEER_TIMEOUT}"
            );
        }
        let verb = if role == "server" { "serve" } else { "connect" };
        let place = format!("--peer {peer} --path {path}");
        if sends {
            format!("vchan-c-peer pattern --bytes {bytes} | vchan {verb} --pipe {place}")
        } else {
            format!("exec vchan {verb} --sink {place}")
        }
    }

    fn run(&self, context: &mut Context) -> Result<()> {
        let (server, client) = self.commands();
        let serving = context.start(self.server, &server)?;
        let connecting = context.start(self.client, &client)?;
        let mut sums = Vec::new();
        for (script, job) in [(client, connecting), (server, serving)] {
            let output = job
                .wait(context.host.as_mut(), TRANSFER_LIMIT)
                .with_context(|| format!("`{script}`"))?;
            ensure!(
                output.success(),
                "`{script}` ended with {}: {}",
                output.status,
                output.last_words()
            );
            let text = format!("{}{}", output.stdout, output.stderr);
            let sum = text.lines().find_map(|line| {
                line.strip_prefix("sink: ")
                    .or_else(|| line.strip_prefix("source: "))
                    .map(str::to_owned)
            });
            sums.push(sum.with_context(|| format!("`{script}` printed no checksum: {text}"))?);
        }
        ensure!(
            sums[0] == sums[1],
            "sent and received differ: {} and {}",
            sums[0],
            sums[1]
        );
        ensure!(
            sums[0].starts_with(&format!("{} bytes", self.bytes)),
            "not all came: {}",
            sums[0]
        );
        Ok(())
    }
}

/// All four combinations of the stock C side and the direction of the data, with the guest as the
/// vchan server; blocking and non-blocking calls of the library take turns.
fn guest_serves(
    context: &mut Context,
    kind: Kind,
    to_server: usize,
    to_client: usize,
    bytes: u64,
) -> Result<()> {
    let guest = Context::shared(kind);
    let domid = context.host.guest_domid(guest)?;
    let absolute = format!("/local/domain/{domid}/data/interop");
    for (c_serves, to_server_direction) in
        [(true, true), (true, false), (false, true), (false, false)]
    {
        let transfer = Transfer {
            server: Place::Guest(guest),
            client: Place::Dom0,
            peers: (0, domid),
            paths: ("data/interop", &absolute),
            rings: (to_server, to_client),
            bytes,
            c_serves,
            to_server: to_server_direction,
            nonblocking: c_serves != to_server_direction,
        };
        transfer.run(context).with_context(|| {
            format!(
                "C as the {}, data to the {}",
                if c_serves { "server" } else { "client" },
                if to_server_direction {
                    "server"
                } else {
                    "client"
                }
            )
        })?;
    }
    Ok(())
}

/// dom0 as the server, below the guest's data node, which the guest may read.
fn dom0_serves(context: &mut Context) -> Result<()> {
    let mut spec = GuestSpec::new("mapper", Pv);
    spec.memory_mib = 256;
    spec.maptrack_frames = None; // the guest maps dom0's pages
    context.create(&spec)?;
    let outcome = dom0_serves_guest(context, "mapper");
    context.host.guest_destroy("mapper")?;
    outcome
}

fn dom0_serves_guest(context: &mut Context, guest: &str) -> Result<()> {
    let domid = context.host.guest_domid(guest)?;
    let path = format!("/local/domain/{domid}/data/interop");
    for (c_serves, to_server) in [(true, true), (true, false), (false, true), (false, false)] {
        let transfer = Transfer {
            server: Place::Dom0,
            client: Place::Guest(guest),
            peers: (domid, 0),
            paths: (&path, &path),
            rings: (65536, 4096),
            bytes: 4 * MIB,
            c_serves,
            to_server,
            nonblocking: c_serves == to_server,
        };
        transfer
            .run(context)
            .with_context(|| format!("C serves: {c_serves}, to the server: {to_server}"))?;
    }
    Ok(())
}

/// Both directions at once: one program echoes, the other compares the echo.
fn echo(context: &mut Context) -> Result<()> {
    let guest = Context::shared(Pv);
    let domid = context.host.guest_domid(guest)?;
    let absolute = format!("/local/domain/{domid}/data/interop-echo");
    for calls in ["", "--nonblocking"] {
        let serve = format!(
            "exec vchan-c-peer server 0 data/interop-echo echo --to-server 4096 --to-client 65536 \
             {calls} {PEER_TIMEOUT}"
        );
        let compare = format!(
            "vchan-c-peer pattern --bytes 600001 >/tmp/interop-sent 2>/dev/null; \
             vchan connect --peer {domid} --path data/interop-echo --pipe --linger 5 \
             </tmp/interop-sent >/tmp/interop-back && cmp /tmp/interop-sent /tmp/interop-back; \
             status=$?; rm -f /tmp/interop-sent /tmp/interop-back; exit $status"
        );
        both_succeed(context, guest, &serve, &compare)?;

        let serve = "exec vchan serve --peer 0 --path data/interop-echo --ring 64K --echo";
        let source = format!(
            "exec vchan-c-peer client {domid} {absolute} ping --bytes 100001 --chunk 4096 \
             {calls} {PEER_TIMEOUT}"
        );
        both_succeed(context, guest, serve, &source)?;
    }
    Ok(())
}

fn both_succeed(context: &mut Context, guest: &str, serve: &str, connect: &str) -> Result<()> {
    let server = context.start(Place::Guest(guest), serve)?;
    let client = context.start(Place::Dom0, connect)?;
    for (script, job) in [(connect, client), (serve, server)] {
        let output = job.wait(context.host.as_mut(), TRANSFER_LIMIT)?;
        output.text().with_context(|| format!("`{script}`"))?;
    }
    Ok(())
}

//! `fault quota`: everything of xenstore's that a guest has a quota of, used up.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use signal_hook::consts::SIGTERM;
use signal_hook::iterator::Signals;
use vchan::Error;
use vchan::xen;
use vgpu_cli::{Failure, print_line};

use crate::faults::{RING, WAIT_LIMIT, publish, wrong};
use crate::place::Place;

/// More than any quota should allow: of nodes Xen's default is 1000 a domain, and XCP-ng's 8192.
const TOO_MANY_NODES: u32 = 20_000;
const TOO_MANY_TRANSACTIONS: u32 = 100;

const DEVICE: &str = "/dev/xen/xenbus";

/// The socket of dom0's xenstored.
const SOCKET: &str = "/run/xenstored/socket";

/// Message types of xenstore's protocol.
const TRANSACTION_START: u32 = 6;
const WRITE: u32 = 11;

/// Nodes that are written between two looks at the answers: in an emulated machine to change between two processes
/// costs more than a write.
const AT_ONCE: u32 = 64;

/// Makes this many nodes in dom0 below `folder`. In a guest's own folder they are the guest's, and count as its own.
pub(crate) fn fill(folder: &str, nodes: u32) -> Result<(), Failure> {
    fill_all(folder, nodes).map_err(|error| {
        Failure::new(
            format!("cannot make nodes: {error}"),
            "run as root in dom0, where xenstored runs",
        )
    })
}

fn fill_all(folder: &str, nodes: u32) -> io::Result<()> {
    let mut socket = UnixStream::connect(SOCKET)?;
    socket.set_read_timeout(Some(WAIT_LIMIT))?;
    for first in (0..nodes).step_by(AT_ONCE as usize) {
        let some = first..nodes.min(first + AT_ONCE);
        let writes = some.clone().flat_map(|number| {
            let body = format!("{folder}/d{}/{number}\0", number / 50);
            message(WRITE, body.as_bytes())
        });
        socket.write_all(&writes.collect::<Vec<u8>>())?;
        for number in some {
            let kind = answer(&mut socket)?;
            if kind != WRITE {
                return Err(io::Error::other(format!("node {number} is refused")));
            }
        }
    }
    Ok(())
}

/// Uses up the quotas of nodes and transactions, shows that a server reports it and leaves nothing behind,
/// and keeps all of it until SIGTERM; then a server works again.
pub(crate) fn quota(place: &Place) -> Result<(), Failure> {
    let (peer, path) = place.xen()?;
    let mut end = Signals::new([SIGTERM]).map_err(|error| failed(&error))?;
    let deadline = || Instant::now() + WAIT_LIMIT;
    let store = xen::store::Store::open(deadline()).map_err(Error::from)?;
    let (filler, channel) = (format!("{path}/filler"), format!("{path}/channel"));
    let refused = (0..TOO_MANY_NODES).find_map(|number| {
        // Spread over several parents, since a node may not have too many children either.
        let node = format!("{filler}/{}/{number}", number / 50);
        let written = store.write(&node, "", deadline());
        written.err().map(|error| (number, error))
    });
    let Some((nodes, refusal)) = refused else {
        store.remove(&filler, deadline()).map_err(Error::from)?;
        return Err(wrong(format!("{TOO_MANY_NODES} nodes were taken")));
    };
    let mut device = device()?;
    let outcome = begin_all(&mut device).and_then(|transactions| {
        match publish(peer, &channel, RING).map(drop) {
            Err(error) if error.to_string().contains("quota") => {
                print_line(format_args!("ok after {nodes} nodes ({refusal}): {error}"))?;
            }
            other => return Err(wrong(format!("beyond the quota: {other:?}"))),
        }
        print_line(format_args!(
            "full: {nodes} nodes more, {transactions} transactions"
        ))?;
        end.forever().next();
        Ok(())
    });
    drop(device);
    store.remove(&filler, deadline()).map_err(Error::from)?;
    outcome?;
    let left = store
        .read_if_present(&channel, deadline())
        .map_err(Error::from)?;
    if left.is_some() {
        return Err(wrong(format!("{channel} was left behind")));
    }
    drop(publish(peer, &channel, RING)?);
    store.remove(path, deadline()).map_err(Error::from)?;
    print_line(format_args!("quota: refused, then served"))
}

/// A connection to xenstored by the guest's kernel, which ends the transactions of one that is closed.
fn device() -> Result<File, Failure> {
    let device = File::options().read(true).write(true).open(DEVICE);
    device.map_err(|error| failed(&error))
}

/// Begins transactions until xenstored refuses one; returns how many there are.
fn begin_all(device: &mut File) -> Result<u32, Failure> {
    for number in 0..TOO_MANY_TRANSACTIONS {
        let begun = device
            .write_all(&message(TRANSACTION_START, b"\0"))
            .and_then(|()| answer(device));
        if begun.map_err(|error| failed(&error))? != TRANSACTION_START {
            return Ok(number);
        }
    }
    Err(wrong(format!(
        "{TOO_MANY_TRANSACTIONS} transactions were begun"
    )))
}

/// A message of xenstore's protocol: its type, ids of request and transaction, its length, its body.
fn message(kind: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("short");
    let words = [kind, 0, 0, length].map(u32::to_ne_bytes);
    [words.as_flattened(), body].concat()
}

/// The type of the next message.
fn answer(from: &mut impl Read) -> io::Result<u32> {
    let mut words = [[0; 4]; 4];
    from.read_exact(words.as_flattened_mut())?;
    let [kind, .., length] = words.map(u32::from_ne_bytes);
    io::copy(&mut from.take(length.into()), &mut io::sink())?;
    Ok(kind)
}

fn failed(error: &io::Error) -> Failure {
    Failure::new(
        format!("cannot use {DEVICE}: {error}"),
        "run as root in a guest with xenfs",
    )
}

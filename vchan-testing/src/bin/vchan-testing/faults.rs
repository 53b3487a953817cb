//! `fault`: one side each of tests in which Xen, its toolstack or the peer takes something
//! away. The cases are those of the lab's suite (`xtask/src/lab/suite/faults*.rs`).

use std::fs;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use clap::Subcommand;
use vchan::Interest;
use vchan::{Channel, DomId, Error, RingSizes, Setup, xen};
use vchan_testing::hostile::Offer;
use vgpu_cli::{Failure, print_line};

use crate::place::Place;
use crate::quota::{fill, quota};

/// Far beyond any of these waits.
pub(crate) const WAIT_LIMIT: Duration = Duration::from_secs(300);
/// Time for a thread to reach its wait.
const THREAD_START: Duration = Duration::from_millis(500);
/// gntalloc's limit on pages, for the whole kernel.
const LIMIT: &str = "/sys/module/xen_gntalloc/parameters/limit";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve the channels of `blocked`, and do nothing with them until killed.
    Hold {
        #[command(flatten)]
        place: Place,
    },
    /// Wait in every call that waits, until the peer's domain goes away; print how each ended.
    Blocked {
        #[command(flatten)]
        place: Place,
        /// A path at which the peer may be served.
        #[arg(long)]
        serve_path: String,
    },
    /// Publish channels whose pages no client may accept, and keep them until killed.
    Offer {
        #[command(flatten)]
        place: Place,
    },
    /// Connect to each of these; every one must be refused.
    Refuse {
        #[command(flatten)]
        place: Place,
    },
    /// Serve with one page too few, at every page that the set-up needs; needs root.
    Pages {
        #[command(flatten)]
        place: Place,
    },
    /// Rewrite nodes below the path as fast as xenstored takes it, for this many seconds.
    Flood {
        #[command(flatten)]
        place: Place,
    },
    /// Make this many nodes below a folder, in dom0.
    Fill {
        /// The folder, from the root.
        folder: String,
        /// How many.
        nodes: u32,
    },
    /// Use up every quota of xenstore's, and keep that until SIGTERM; a server is refused meanwhile, and works then.
    Quota {
        #[command(flatten)]
        place: Place,
    },
    /// Publish keys that are never the same twice, for this many seconds.
    Swap {
        #[command(flatten)]
        place: Place,
    },
}

pub(crate) fn main(command: Command) -> Result<(), Failure> {
    match command {
        Command::Hold { place } => hold(&place),
        Command::Blocked { place, serve_path } => blocked(&place, serve_path),
        Command::Offer { place } => offer(&place),
        Command::Refuse { place } => refuse(&place),
        Command::Pages { place } => pages(&place),
        Command::Flood { place } => flood(&place),
        Command::Fill { folder, nodes } => fill(&folder, nodes),
        Command::Quota { place } => quota(&place),
        Command::Swap { place } => swap(&place),
    }
}

/// A call that waits, and a function that makes it wait.
type Call = (&'static str, fn(&mut Channel, Instant) -> vchan::Result<()>);

/// The ring's bytes, from which writers know how much is too much.
pub(crate) const RING: usize = 4096;

const CALLS: [Call; 7] = [
    ("read", |channel, deadline| {
        channel.read(&mut [0; 8], deadline).map(drop)
    }),
    ("write_all", |channel, deadline| {
        channel.write_all(&[0; 3 * RING], deadline)
    }),
    ("drain", |channel, deadline| {
        channel.write_all(b"unread", deadline)?;
        channel.drain(deadline)
    }),
    ("close", |channel, deadline| {
        channel.write_all(b"unread", deadline)?;
        channel.close(deadline)
    }),
    ("wait to read", |channel, deadline| {
        wait(channel, Interest::Read, deadline)
    }),
    ("wait to write", |channel, deadline| {
        channel.write_all(&[0; RING], deadline)?;
        wait(channel, Interest::Write, deadline)
    }),
    ("wait for both", |channel, deadline| {
        channel.write_all(&[0; RING], deadline)?;
        wait(channel, Interest::ReadOrWrite, deadline)
    }),
];

/// Waits, then makes the call whose result the wait announced.
fn wait(channel: &mut Channel, interest: Interest, deadline: Instant) -> vchan::Result<()> {
    channel.wait(interest, deadline)?;
    channel.read(&mut [0; 8], deadline).map(drop)
}

fn hold(place: &Place) -> Result<(), Failure> {
    let mut held = Vec::new();
    for (number, _) in CALLS.iter().enumerate() {
        held.push(place.part(number)?.serve(Some(RING.into()))?);
    }
    print_line(format_args!("held: {} channels", held.len()))?;
    loop {
        thread::park();
    }
}

fn blocked(place: &Place, serve_path: String) -> Result<(), Failure> {
    let (peer, path) = place.xen()?;
    let mut waiting: Vec<(&str, JoinHandle<vchan::Result<()>>)> = Vec::new();
    for (number, (name, call)) in CALLS.into_iter().enumerate() {
        let mut channel = place.part(number)?.connect()?;
        waiting.push((
            name,
            thread::spawn(move || call(&mut channel, Instant::now() + WAIT_LIMIT)),
        ));
    }
    let mut server = publish(peer, &serve_path, RING)?;
    waiting.push((
        "accept",
        thread::spawn(move || server.wait_for_client(Instant::now() + WAIT_LIMIT)),
    ));
    let nobody = format!("{path}/nobody");
    waiting.push((
        "connect",
        thread::spawn(move || xen::connect(peer, &nobody, Instant::now() + WAIT_LIMIT).map(drop)),
    ));
    thread::sleep(THREAD_START);
    for (name, thread) in &waiting {
        if thread.is_finished() {
            return Err(wrong(format!("`{name}` did not wait")));
        }
    }
    print_line(format_args!("blocked: {} calls", waiting.len()))?;
    let mut good = true;
    for (name, thread) in waiting {
        let outcome = thread
            .join()
            .map_err(|_| wrong(format!("`{name}` panicked")))?;
        let (word, text) = match outcome {
            Err(Error::PeerLost) => ("ok", "PeerLost".to_owned()),
            Err(Error::Setup { what, .. }) if what.contains("destroyed") => ("ok", what),
            other => {
                good = false;
                ("FAILED", format!("{other:?}"))
            }
        };
        print_line(format_args!("{word} {name}: {text}"))?;
    }
    match good {
        true => Ok(()),
        false => Err(wrong(
            "a call did not say that the domain is gone".to_owned(),
        )),
    }
}

pub(crate) fn wrong(what: String) -> Failure {
    Failure::new(what, "see the lines before")
}

fn offer(place: &Place) -> Result<(), Failure> {
    let (peer, path) = place.xen()?;
    let mut offers = Vec::new();
    for (number, _) in Offer::lies().enumerate() {
        offers.push(Offer::publish(peer, &format!("{path}/{number}"), number)?);
    }
    print_line(format_args!("offered: {} pages", offers.len()))?;
    let mut seen = vec![false; offers.len()];
    loop {
        thread::sleep(THREAD_START);
        for ((offer, lie), seen) in offers.iter().zip(Offer::lies()).zip(&mut seen) {
            // Twice: the place of a ring is checked last, by a client that has already declared
            // itself connected and that closes at once.
            if std::mem::replace(seen, offer.is_accepted()) && *seen {
                return Err(wrong(format!("`{lie}` was accepted")));
            }
        }
    }
}

fn refuse(place: &Place) -> Result<(), Failure> {
    let (peer, path) = place.xen()?;
    let mut refused = 0;
    for (number, lie) in Offer::lies().enumerate() {
        let path = format!("{path}/{number}");
        match xen::connect(peer, &path, Instant::now() + place.timeout) {
            Ok(_) => return Err(wrong(format!("`{lie}` was accepted"))),
            Err(error @ (Error::Peer(_) | Error::Setup { .. } | Error::Os { .. })) => {
                print_line(format_args!("ok {lie}: {error}"))?;
                refused += 1;
            }
            Err(error) => return Err(wrong(format!("`{lie}`: {error:?}"))),
        }
    }
    print_line(format_args!("refused: {refused} pages"))
}

/// Every set-up of a channel with rings of 16 pages each, from no page at all to enough pages.
fn pages(place: &Place) -> Result<(), Failure> {
    let (peer, path) = place.xen()?;
    let before = read_limit()?;
    let outcome = fail_at_every_page(peer, path);
    set_limit(&before)?;
    let failures = outcome?;
    if failures < 33 {
        return Err(wrong(format!("only {failures} set-ups failed")));
    }
    print_line(format_args!(
        "pages: failed at each of {failures}, then worked"
    ))
}

/// Publishes a server; xenstored gets as long for it as for everything else here.
pub(crate) fn publish(peer: DomId, path: &str, ring: usize) -> vchan::Result<xen::Server> {
    let setup = Setup::new().deadline(Instant::now() + WAIT_LIMIT);
    xen::Server::publish_with(&setup, peer, path, RingSizes::from(ring))
}

fn fail_at_every_page(peer: DomId, path: &str) -> Result<usize, Failure> {
    for limit in 0..64 {
        set_limit(&limit.to_string())?;
        match publish(peer, path, 64 << 10) {
            Ok(_) => return Ok(limit),
            Err(Error::Os { source, advice, .. })
                if source.raw_os_error() == Some(libc::ENOSPC) && advice.contains("gntalloc") => {}
            Err(error) => return Err(wrong(format!("with {limit} pages: {error:?}"))),
        }
        // Nothing may be kept: the next attempt, with one page more, would fail at the same place.
        let store = xen::store::Store::open(Instant::now() + WAIT_LIMIT).map_err(Error::from)?;
        let node = format!("{path}/ring-ref");
        let left = store
            .read_if_present(&node, Instant::now() + WAIT_LIMIT)
            .map_err(Error::from)?;
        if left.is_some() {
            return Err(wrong(format!("with {limit} pages a key was left")));
        }
    }
    Err(wrong("64 pages are not enough for 33".to_owned()))
}

fn read_limit() -> Result<String, Failure> {
    fs::read_to_string(LIMIT)
        .map(|text| text.trim().to_owned())
        .map_err(|error| limit_failed(&error))
}

fn set_limit(limit: &str) -> Result<(), Failure> {
    fs::write(LIMIT, limit).map_err(|error| limit_failed(&error))
}

fn limit_failed(error: &std::io::Error) -> Failure {
    Failure::new(
        format!("cannot use {LIMIT}: {error}"),
        "run as root in a guest with xen-gntalloc",
    )
}

/// Causes as many events as a guest can, for `--timeout` seconds.
fn flood(place: &Place) -> Result<(), Failure> {
    let (_, path) = place.xen()?;
    let store = xen::store::Store::open(Instant::now() + WAIT_LIMIT).map_err(Error::from)?;
    let end = Instant::now() + place.timeout;
    let mut writes = 0u64;
    while Instant::now() < end {
        let node = format!("{path}/{}", writes % 16);
        store
            .write(&node, &writes.to_string(), Instant::now() + WAIT_LIMIT)
            .map_err(Error::from)?;
        writes += 1;
    }
    store
        .remove(path, Instant::now() + WAIT_LIMIT)
        .map_err(Error::from)?;
    print_line(format_args!("flood: {writes} writes"))
}

/// Keys of no server, different at each look.
fn swap(place: &Place) -> Result<(), Failure> {
    let (_, path) = place.xen()?;
    let store = xen::store::Store::open(Instant::now() + WAIT_LIMIT).map_err(Error::from)?;
    let end = Instant::now() + place.timeout;
    let mut number = 8u32;
    while Instant::now() < end {
        for key in ["ring-ref", "event-channel"] {
            number = number % 1000 + 1;
            let node = format!("{path}/{key}");
            store
                .write(&node, &number.to_string(), Instant::now() + WAIT_LIMIT)
                .map_err(Error::from)?;
        }
    }
    store
        .remove(path, Instant::now() + WAIT_LIMIT)
        .map_err(Error::from)?;
    print_line(format_args!("swap: done"))
}

//! `cycle-serve` and `cycle-connect`: many channels one after the other, and peers that are killed,
//! to check for leaks.
//!
//! Both sides go through the same rounds, each at a path of its own. In the first `count` the
//! channel is closed in one of four ways. In the `kills` after them one side, by turns, leaves its
//! end to a child process, which is killed in the middle of an endless transfer; the other side
//! lives on. At the end each side counts the resources it holds.

use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use vchan::layout::Role;
use vchan::local::{self, Listener};
use vchan::{Channel, Error, RingSizes, Setup, xen};
use vgpu_cli::{Failure, print_line};

use crate::held::{self, Held};
use crate::place::{Carrier, Place};

/// Tells a child the round in which it dies.
const CHILD: &str = "VCHAN_CYCLE_CHILD";
/// Rounds before the first count: threads start, caches fill.
const WARM_UP: u32 = 4;
/// Time for which the resources held must not change before they are counted.
const SETTLED_FOR: Duration = Duration::from_secs(1);
/// Threads that go through the rounds.
const LANES: u32 = 8;
/// The bytes sent in a round that ends with a close.
const MESSAGE: [u8; 300] = [0xA5; 300];
/// Bytes that must have moved before a transfer counts as one.
const FLOWING: u64 = 16 << 10;
/// The longest that one round may take.
const ROUND_LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Rounds {
    /// Channels that are opened and closed.
    #[arg(long, default_value_t = 1000)]
    count: u32,
    /// Channels of which one side is killed, after those.
    #[arg(long, default_value_t = 100)]
    kills: u32,
}

pub(crate) fn serve(place: &Place, rounds: Rounds) -> Result<(), Failure> {
    run(place, rounds, Role::Server)
}

pub(crate) fn connect(place: &Place, rounds: Rounds) -> Result<(), Failure> {
    run(place, rounds, Role::Client)
}

fn run(place: &Place, Rounds { count, kills }: Rounds, role: Role) -> Result<(), Failure> {
    if let Some(round) = child_round() {
        return die(place, role, round);
    }
    let listener = match (role, place.carrier()?) {
        (Role::Server, Carrier::Local(path)) => Some(Listener::bind(path)?),
        _ => None,
    };
    let warm_up = WARM_UP.min(count);
    let close = |first, rounds: Range<u32>| {
        in_lanes(first, rounds, |lane| {
            close_all(place, listener.as_ref(), role, lane)
        })
    };
    close(1, 0..warm_up)?;
    let before = settled()?;
    close(LANES, warm_up..count)?;
    print_line(format_args!("closed: {count} rounds"))?;
    in_lanes(LANES, count..count + kills, |lane| {
        for round in lane {
            let outcome = match victim(round) == role {
                true => kill_child(round),
                false => survive(place, role, round),
            };
            outcome.map_err(|error| in_round(round, error))?;
        }
        Ok(())
    })?;
    print_line(format_args!("killed: {kills} rounds"))?;
    // A joined thread stays in the kernel's list for a moment.
    let deadline = soon();
    let mut after = Held::now()?;
    while before != after && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
        after = Held::now()?;
    }
    if before != after {
        held::list_descriptors();
        return Err(Failure::new(
            format!("held {before} before and {after} after"),
            "something was left behind: report it",
        ));
    }
    print_line(format_args!("held: {after}, before and after"))
}

/// The resources held once the threads started by the first rounds are ready themselves: one of
/// them makes its connections to xenstored while the rounds go on.
fn settled() -> Result<Held, Failure> {
    let deadline = soon();
    let mut held = Held::now()?;
    loop {
        thread::sleep(SETTLED_FOR);
        let again = Held::now()?;
        if again == held || Instant::now() >= deadline {
            return Ok(again);
        }
        held = again;
    }
}

/// The rounds of one thread.
type Lane<'a> = &'a mut dyn Iterator<Item = u32>;

/// Runs the rounds in several threads, each every n-th: while one waits for xenstored or for the
/// other domain, others go on.
fn in_lanes(
    lanes: u32,
    rounds: Range<u32>,
    run: impl Fn(Lane<'_>) -> Result<(), Failure> + Sync,
) -> Result<(), Failure> {
    let run = &run;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..lanes)
            .map(|lane| {
                let mut rounds = rounds.clone().filter(move |round| round % lanes == lane);
                scope.spawn(move || run(&mut rounds))
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("no lane panics"))
    })
}

fn in_round(round: u32, failure: Failure) -> Failure {
    Failure::new(format!("round {round}: {}", failure.what), failure.advice)
}

fn soon() -> Instant {
    Instant::now() + ROUND_LIMIT
}

/// Rounds that end with a close.
fn close_all(
    place: &Place,
    listener: Option<&Listener>,
    role: Role,
    lane: Lane<'_>,
) -> Result<(), Failure> {
    let mut lane = lane.peekable();
    let mut published = None;
    while let Some(round) = lane.next() {
        let carrier = place.carrier()?;
        let mut open = || match (listener, role, carrier) {
            (Some(listener), ..) => Ok(local::serve_on(
                listener.accept(soon())?,
                rings(round),
                soon(),
            )?),
            (None, Role::Server, Carrier::Xen(..)) => {
                let server = match published.take() {
                    Some(server) => server,
                    None => publish(place, round)?,
                };
                // While the client is still busy, so that it need not look for the keys again and
                // again.
                if let Some(&next) = lane.peek() {
                    published = Some(publish(place, next)?);
                }
                Ok(server.accept(soon())?)
            }
            (None, Role::Client, Carrier::Local(path)) => Ok(local::connect(path, soon())?),
            _ => open_end(place, role, round),
        };
        open()
            .and_then(|channel| close_one(channel, role, round))
            .map_err(|error| in_round(round, error))?;
    }
    Ok(())
}

fn close_one(mut channel: Channel, role: Role, mut round: u32) -> Result<(), Failure> {
    channel.set_spin(Duration::ZERO);
    // Without Xen the lanes' clients arrive in any order.
    let mut number = round.to_le_bytes();
    match role {
        Role::Client => channel.write_all(&number, soon())?,
        Role::Server => {
            channel.read_exact(&mut number, soon())?;
            round = u32::from_le_bytes(number);
        }
    }
    close_somehow(channel, role, round)
}

fn publish(place: &Place, round: u32) -> Result<xen::Server, Failure> {
    let place = place.part(round)?;
    let (peer, path) = place.xen()?;
    let setup = Setup::new().deadline(soon());
    Ok(xen::Server::publish_with(&setup, peer, path, rings(round))?)
}

fn rings(round: u32) -> RingSizes {
    RingSizes::from(match round.is_multiple_of(2) {
        true => 16 << 10,
        false => 1 << 10,
    })
}

/// An end at the round's own path.
fn open_end(place: &Place, role: Role, round: u32) -> Result<Channel, Failure> {
    let deadline = soon();
    let own = place.part(round)?;
    let mut channel = match (own.carrier()?, role) {
        (Carrier::Xen(..), Role::Server) => publish(place, round)?.accept(deadline)?,
        (Carrier::Xen(peer, path), Role::Client) => xen::connect(peer, path, deadline)?,
        (Carrier::Local(path), Role::Server) => local::serve(path, rings(round), deadline)?,
        (Carrier::Local(path), Role::Client) => local::connect(path, deadline)?,
    };
    // Many threads share a processor here.
    channel.set_spin(Duration::ZERO);
    Ok(channel)
}

/// One of four ends: either side closes in good order, or drops bytes that the other still has to
/// read.
fn close_somehow(mut channel: Channel, role: Role, round: u32) -> Result<(), Failure> {
    let first = match round.is_multiple_of(2) {
        true => Role::Server,
        false => Role::Client,
    };
    let mut got = MESSAGE.map(|_| 0);
    let in_order = (round / 2).is_multiple_of(2);
    if role == first {
        channel.write_all(&MESSAGE, soon())?;
        if in_order {
            channel.read_exact(&mut got, soon())?;
            channel.close(soon())?;
        }
        drop(channel);
    } else {
        channel.read_exact(&mut got, soon())?;
        if in_order {
            channel.write_all(&got, soon())?;
        }
        if channel.read(&mut [0], soon())? != 0 {
            return Err(Failure::new("a byte too many came", "report it"));
        }
    }
    match role == first && !in_order || got == MESSAGE {
        true => Ok(()),
        false => Err(Failure::new("other bytes came than were sent", "report it")),
    }
}

/// The side whose end is killed.
fn victim(round: u32) -> Role {
    match round.is_multiple_of(2) {
        true => Role::Server,
        false => Role::Client,
    }
}

/// Whether the victim of the round is the side that writes.
fn victim_writes(round: u32) -> bool {
    (round / 2).is_multiple_of(2)
}

fn child_round() -> Option<u32> {
    std::env::var(CHILD).ok()?.parse().ok()
}

/// The child: moves bytes until it is killed.
fn die(place: &Place, role: Role, round: u32) -> Result<(), Failure> {
    let channel = open_end(place, role, round)?;
    move_bytes(channel, victim_writes(round), || {
        print_line(format_args!("moving"))
    })?;
    Err(Failure::new(
        "the other side has ended a transfer without end",
        "look at its output",
    ))
}

/// Kills a child in the middle of its transfer.
fn kill_child(round: u32) -> Result<(), Failure> {
    let failed = |what: &str, error: std::io::Error| {
        Failure::new(format!("cannot {what} a child: {error}"), "look at dmesg")
    };
    let mut child = Command::new("/proc/self/exe")
        .args(std::env::args_os().skip(1))
        .env(CHILD, round.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed("start", error))?;
    let said = wait_until_moving(&mut child);
    child.kill().map_err(|error| failed("kill", error))?;
    child.wait().map_err(|error| failed("wait for", error))?;
    said.map_err(|error| failed("hear from", error))
}

fn wait_until_moving(child: &mut Child) -> std::io::Result<()> {
    let stdout = child.stdout.take().ok_or(std::io::ErrorKind::BrokenPipe)?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    match line.as_str() {
        "moving\n" => Ok(()),
        _ => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}

/// The other side: the peer's death ends the stream like any other end.
fn survive(place: &Place, role: Role, round: u32) -> Result<(), Failure> {
    let channel = open_end(place, role, round)?;
    let mut flowed = false;
    move_bytes(channel, !victim_writes(round), || {
        flowed = true;
        Ok(())
    })?;
    match flowed {
        true => Ok(()),
        false => Err(Failure::new(
            "the other side ended before anything moved",
            "look at its output",
        )),
    }
}

/// Writes, or reads, until the peer is gone.
fn move_bytes(
    mut channel: Channel,
    write: bool,
    mut flowing: impl FnMut() -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut buf = vec![0x5A; 4096];
    let mut moved = 0;
    loop {
        let outcome = match write {
            true => channel.write_all(&buf, soon()).map(|()| buf.len()),
            false => channel.read(&mut buf, soon()),
        };
        let n = match outcome {
            Ok(0) | Err(Error::PeerClosed { .. }) => return Ok(()),
            outcome => outcome? as u64,
        };
        if moved < FLOWING && moved + n >= FLOWING {
            flowing()?;
        }
        moved += n;
    }
}

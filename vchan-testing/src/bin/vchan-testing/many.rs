//! `many-serve` and `many-connect`: any number of channels in one thread, over one event-channel
//! handle.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use clap::Args;
use vchan::local::{self, Listener};
use vchan::reactor::{Reactor, Token};
use vchan::{Channel, Error, RingSizes, Setup, xen};
use vchan_testing::conformance::many::{Ask, Echo, Many, Work};
use vgpu_cli::{Failure, print_line};

use crate::held;
use crate::place::{Carrier, Place};

/// Bytes of each ring.
const RING: usize = 4096;
const EVENT_CHANNELS: &str = "/dev/xen/evtchn";
/// Longest wait of a turn in which nothing happens.
const TURN_LIMIT: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Count {
    /// Number of channels.
    #[arg(long, default_value_t = 100)]
    count: usize,
}

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Asking {
    #[command(flatten)]
    count: Count,
    /// Bytes to send on each channel and to receive back.
    #[arg(long, default_value_t = 65536)]
    bytes: u64,
    /// This many of the channels write until they would block, and never read.
    #[arg(long, default_value_t = 0)]
    stalled: usize,
    /// Ask until every peer is lost with its domain.
    #[arg(long)]
    until_lost: bool,
}

/// Echoes on all channels until all clients have closed.
pub(crate) fn serve(place: &Place, count: Count) -> Result<(), Failure> {
    let rings = RingSizes::from(RING);
    let mut reactor = Reactor::new()?;
    let mut echoes = Many::default();
    let deadline = Instant::now() + place.timeout;
    let mut waiting = HashMap::new();
    match place.carrier()? {
        Carrier::Xen(peer, path) => {
            for number in 0..count.count {
                let path = format!("{path}/{number}");
                let setup = Setup::new().reactor(reactor.handle()).deadline(deadline);
                let server = xen::Server::publish_with(&setup, peer, &path, rings)?;
                waiting.insert(token_of(server.token()), server);
            }
        }
        Carrier::Local(path) => {
            let listener = Listener::bind(path)?;
            for _ in 0..count.count {
                let stream = listener.accept(deadline)?;
                let channel = local::serve_on_reactor(reactor.handle(), stream, rings, deadline)?;
                echoes.add(channel, Echo::default());
            }
        }
    }
    while !(waiting.is_empty() && echoes.is_empty()) {
        let until = Instant::now() + TURN_LIMIT;
        for token in echoes.turn(&mut reactor, until)? {
            if let Some(channel) = arrived(&mut waiting, token)? {
                echoes.add(channel, Echo::default());
            }
        }
        if !waiting.is_empty() && Instant::now() >= deadline {
            return Err(Failure::new(
                format!("{} clients did not come", waiting.len()),
                "look at the other side's output",
            ));
        }
    }
    // A peer that never reads leaves its answers unread.
    let unread = |end: &Result<(), Error>| matches!(end, Err(Error::PeerClosed { .. }));
    all_well(&echoes, unread)?;
    let left = echoes.ended().iter().filter(|(_, end)| unread(end)).count();
    report(&format!("{left} with bytes left, served"), count.count)
}

/// Accepts the channel of a server whose client has arrived.
fn arrived(
    waiting: &mut HashMap<Token, xen::Server>,
    token: Token,
) -> Result<Option<Channel>, Failure> {
    let Some(mut server) = waiting.remove(&token) else {
        return Ok(None);
    };
    match server.wait_for_client(Instant::now()) {
        Ok(()) => Ok(Some(server.accept(Instant::now() + TURN_LIMIT)?)),
        Err(Error::TimedOut(_)) => {
            waiting.insert(token, server);
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Asks on all channels at once and checks every answer.
pub(crate) fn connect(place: &Place, asking: Asking) -> Result<(), Failure> {
    let count = asking.count.count;
    let bytes = match asking.until_lost {
        true => u64::MAX,
        false => asking.bytes,
    };
    let mut reactor = Reactor::new()?;
    let deadline = Instant::now() + place.timeout;
    let (mut asks, mut stalled) = (Many::default(), Vec::new());
    for number in 0..count {
        let mut channel = match place.carrier()? {
            Carrier::Xen(peer, path) => {
                let path = format!("{path}/{number}");
                xen::connect_on_reactor(reactor.handle(), peer, &path, deadline)?
            }
            Carrier::Local(path) => {
                let stream = local::connect_stream(path, deadline)?;
                local::connect_on_reactor(reactor.handle(), stream, deadline)?
            }
        };
        if number < asking.stalled {
            while channel.try_write(&[7; 512])? > 0 {}
            stalled.push(channel);
        } else {
            asks.add(channel, Ask::new(number as u64, bytes));
        }
    }
    report("connected", count)?;
    while !asks.is_empty() {
        for token in asks.turn(&mut reactor, Instant::now() + TURN_LIMIT)? {
            // A stalled one goes on filling its ring, if it can.
            if let Some(channel) = stalled.iter_mut().find(|it| it.token() == Some(token)) {
                while matches!(channel.try_write(&[7; 512]), Ok(1..)) {}
            }
        }
    }
    if asking.until_lost {
        let lost = |end: &Result<(), Error>| matches!(end, Err(Error::PeerLost));
        let others: Vec<_> = asks.ended().iter().filter(|(_, end)| !lost(end)).collect();
        if !others.is_empty() {
            return Err(Failure::new(
                format!("{} channels ended otherwise: {:?}", others.len(), others[0]),
                "report it",
            ));
        }
        return print_line(format_args!("lost: {} channels", asks.ended().len()));
    }
    all_well(&asks, |_| false)?;
    report("checked", count)
}

fn token_of(token: Option<Token>) -> Token {
    token.expect("it was put on a reactor")
}

fn all_well<W: Work>(
    many: &Many<W>,
    excused: impl Fn(&Result<(), Error>) -> bool,
) -> Result<(), Failure> {
    let mut ends = many.ended().iter().filter(|(_, end)| !excused(end));
    match ends.find_map(|(_, end)| end.as_ref().err()) {
        None => Ok(()),
        Some(error) => Err(Failure::new(error.to_string(), error.advice())),
    }
}

fn report(done: &str, count: usize) -> Result<(), Failure> {
    let handles = held::open_on(EVENT_CHANNELS)?;
    print_line(format_args!(
        "{done}: {count} channels, {handles} event-channel handles"
    ))
}

//! `vchan bench`: throughput by message size, and round trips.

mod amount;
mod baselines;
mod figure;
mod messages;
mod options;
mod points;
mod read_exact;
mod serve;
mod words;

use std::io::{BufRead, stdin};
use std::time::{Duration, Instant};

use vchan::{Channel, Error, RingSizes};
use vgpu_cli::{Failure, print_line};

use amount::Amount;
use figure::Figure;
use messages::{Command, Kind, POINT_LIMIT};
pub(crate) use options::BenchOptions;
use options::set_spin;
use points::{Point, Points, Threads, Work};
use read_exact::read_exact;
pub(crate) use serve::run as serve;

pub(crate) fn run(mut channel: Channel, options: &BenchOptions) -> Result<(), Failure> {
    set_spin(&mut channel, options.spin);
    let sizes = channel.ring_sizes();
    let amount = match options.bytes {
        Some(bytes) => Amount::Bytes(bytes),
        None => Amount::Time(options.time),
    };
    if !options.json {
        print_line(format_args!(
            "{} ({} format, rings: {} bytes to the server, {} to the client)",
            channel.describe(),
            channel.format(),
            sizes.client_to_server,
            sizes.server_to_client
        ))?;
    }
    let (baselines, points): (Vec<Point>, Vec<Point>) = chosen(options)
        .0
        .into_iter()
        .partition(|point| point.work.is_baseline());
    for point in points {
        step(options, &point)?;
        measure(&mut channel, point, sizes, amount)?.print(options.json)?;
    }
    if let Some(idle) = options.idle {
        step(options, &"idle")?;
        stay_idle(&mut channel, idle)?;
    }
    step(options, &"end")?;
    let end = Command {
        kind: Kind::End,
        message_bytes: 0,
        count: 0,
    };
    let deadline = Instant::now() + POINT_LIMIT;
    channel.write_all(&end.encode(), deadline)?;
    channel.close(deadline)?;

    // Baselines use no channel, and run once the server is gone: they need the machine to
    // themselves.
    for point in baselines {
        let block = point.message_bytes as usize;
        let (messages, elapsed) = match point.work {
            Work::SocketPair(threads) => baselines::socket_pair(block, threads, amount)?,
            _ => baselines::memcpy(block, sizes.client_to_server, amount)?,
        };
        let ring_bytes = match point.work {
            Work::SocketPair(_) => 0,
            _ => sizes.client_to_server,
        };
        let events_sent = 0;
        Figure {
            point,
            ring_bytes,
            messages,
            elapsed,
            events_sent,
            format: None,
        }
        .print(options.json)?;
    }
    Ok(())
}

/// The points given on the command line, or the usual ones.
fn chosen(options: &BenchOptions) -> Points {
    let mut points = options
        .points
        .clone()
        .unwrap_or_else(|| Points::usual(&[Work::Sink, Work::Source, Work::Echo, Work::Memcpy]));
    if options.baseline {
        points
            .0
            .extend(Points::usual(&[Work::SocketPair(Threads::Apart)]).0);
    }
    points
}

/// With `--step`: announces the next step and waits for a line, so that the system can be inspected
/// in between.
fn step(options: &BenchOptions, next: &dyn std::fmt::Display) -> Result<(), Failure> {
    if !options.step {
        return Ok(());
    }
    print_line(format_args!("{{\"step\":\"{next}\"}}"))?;
    let mut line = String::new();
    stdin()
        .lock()
        .read_line(&mut line)
        .map_err(|error| Failure::standard("input", &error))?;
    Ok(())
}

/// Waits without traffic; anything the server sends meanwhile is a failure.
fn stay_idle(channel: &mut Channel, idle: Duration) -> Result<(), Failure> {
    match channel.read(&mut [0], Instant::now() + idle) {
        Err(Error::TimedOut(_)) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(_) => Err(Failure::new(
            "the other side did not stay silent",
            "report this as a defect",
        )),
    }
}

fn measure(
    channel: &mut Channel,
    point: Point,
    sizes: RingSizes,
    amount: Amount,
) -> Result<Figure, Failure> {
    let (kind, ring_bytes) = match point.work {
        Work::Source => (Kind::Source, sizes.server_to_client),
        Work::Echo => (Kind::Echo, sizes.client_to_server),
        Work::Produce(access) => (Kind::Produce(access), sizes.client_to_server),
        Work::Consume(access) => (Kind::Consume(access), sizes.server_to_client),
        _ => (Kind::Sink, sizes.client_to_server),
    };
    let message_bytes = point.message_bytes;
    let mut buf = vec![0x5A; message_bytes as usize];
    let mut events_before = 0;
    let (messages, elapsed) = amount.run(buf.len(), |count| {
        events_before = channel.stats().events_sent;
        let command = Command {
            kind,
            message_bytes,
            count,
        };
        let start = Instant::now();
        exchange(channel, command, &mut buf)?;
        Ok(start.elapsed())
    })?;
    Ok(Figure {
        point,
        ring_bytes,
        messages,
        elapsed,
        events_sent: channel.stats().events_sent - events_before,
        format: Some(channel.format()),
    })
}

/// Sends one command and does this side's part of it.
fn exchange(channel: &mut Channel, command: Command, buf: &mut [u8]) -> Result<(), Failure> {
    let deadline = Instant::now() + POINT_LIMIT;
    channel.write_all(&command.encode(), deadline)?;
    match command.kind {
        Kind::Sink => {
            for _ in 0..command.count {
                channel.write_all(buf, deadline)?;
            }
            check_total(channel, command, deadline)?;
        }
        Kind::Source => {
            for _ in 0..command.count {
                read_exact(channel, buf, deadline)?;
            }
        }
        Kind::Echo => {
            for _ in 0..command.count {
                channel.write_all(buf, deadline)?;
                read_exact(channel, buf, deadline)?;
            }
        }
        Kind::Produce(access) => {
            words::produce(channel, access, command.count, buf, deadline)?;
            check_total(channel, command, deadline)?;
            let mut sum = [0; 8];
            read_exact(channel, &mut sum, deadline)?;
            check_sum(command, u64::from_le_bytes(sum))?;
        }
        Kind::Consume(access) => {
            let sum = words::consume(channel, access, command.count, buf, deadline)?;
            check_sum(command, sum)?;
        }
        Kind::End => {}
    }
    Ok(())
}

/// Reads the server's count of bytes read and checks it.
fn check_total(channel: &mut Channel, command: Command, deadline: Instant) -> Result<(), Failure> {
    let mut total = [0; 8];
    read_exact(channel, &mut total, deadline)?;
    if u64::from_le_bytes(total) != command.count * u64::from(command.message_bytes) {
        return Err(Failure::new(
            "the other side read another number of bytes than were sent",
            "report this as a defect",
        ));
    }
    Ok(())
}

fn check_sum(command: Command, sum: u64) -> Result<(), Failure> {
    let expected = words::expected_sum(command.count, command.message_bytes);
    if sum != expected {
        return Err(Failure::new(
            format!("the words that came add up to {sum}, those that went to {expected}"),
            "report this as a defect",
        ));
    }
    Ok(())
}

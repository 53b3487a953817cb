//! `vchan bench`: throughput by message size, and round trips.

use std::hint::black_box;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use vchan::Channel;

use crate::bench_messages::{Command, Kind};
use crate::bench_serve::{POINT_LIMIT, read_exact};
use crate::cli::BenchOptions;
use crate::failure::Failure;
use crate::stream::say;

const STREAM_BYTES: [u32; 5] = [64, 1 << 10, 4 << 10, 16 << 10, 64 << 10];
const ECHO_BYTES: [u32; 2] = [16, 1 << 10];
/// The block of the memcpy that throughput is compared with.
const COPY_BYTES: u32 = 64 << 10;

pub(crate) fn run(mut channel: Channel, options: &BenchOptions) -> Result<(), Failure> {
    if let Some(spin) = options.spin {
        channel.set_spin(Duration::from_micros(spin));
    }
    let sizes = channel.ring_sizes();
    let print = |point: &Point| point.print(options.json);
    if !options.json {
        say(format_args!(
            "{} (rings: {} bytes to the server, {} to the client)",
            channel.describe(),
            sizes.client_to_server,
            sizes.server_to_client
        ))?;
    }
    for (kind, ring_bytes) in [
        (Kind::Sink, sizes.client_to_server),
        (Kind::Source, sizes.server_to_client),
    ] {
        for message_bytes in STREAM_BYTES {
            print(&measure(
                &mut channel,
                kind,
                message_bytes,
                ring_bytes,
                options.time,
            )?)?;
        }
    }
    for message_bytes in ECHO_BYTES {
        let ring_bytes = sizes.client_to_server;
        print(&measure(
            &mut channel,
            Kind::Echo,
            message_bytes,
            ring_bytes,
            options.time,
        )?)?;
    }
    let end = Command {
        kind: Kind::End,
        message_bytes: 0,
        count: 0,
    };
    let deadline = Instant::now() + POINT_LIMIT;
    channel.write_all(&end.encode(), deadline)?;
    channel.close(deadline)?;

    print(&memcpy(sizes.client_to_server, options.time))?;
    if options.baseline {
        for message_bytes in ECHO_BYTES {
            print(&socket_pair(message_bytes, options.time)?)?;
        }
    }
    Ok(())
}

/// One measured point.
struct Point {
    kind: &'static str,
    message_bytes: u32,
    ring_bytes: usize,
    messages: u64,
    elapsed: Duration,
    /// Times this side rang the other.
    events_sent: u64,
    round_trip: bool,
}

impl Point {
    fn megabytes_per_second(&self) -> f64 {
        self.messages as f64 * f64::from(self.message_bytes) / self.elapsed.as_secs_f64() / 1e6
    }

    fn microseconds(&self) -> f64 {
        self.elapsed.as_secs_f64() * 1e6 / self.messages as f64
    }

    fn print(&self, as_json: bool) -> Result<(), Failure> {
        if as_json {
            let mut object = Map::new();
            object.insert("kind".into(), self.kind.into());
            object.insert("message_bytes".into(), self.message_bytes.into());
            object.insert("ring_bytes".into(), self.ring_bytes.into());
            let (name, value) = if self.round_trip {
                ("us_per_round_trip", self.microseconds())
            } else {
                ("mb_per_s", self.megabytes_per_second())
            };
            object.insert(name.into(), json!((value * 1000.0).round() / 1000.0));
            object.insert("messages".into(), self.messages.into());
            object.insert("seconds".into(), json!(self.elapsed.as_secs_f64()));
            object.insert("events_sent".into(), self.events_sent.into());
            say(format_args!("{}", Value::Object(object)))
        } else if self.round_trip {
            let micros = self.microseconds();
            say(format_args!(
                "{:>12} {:>6} B  {micros:>10.2} us/round trip",
                self.kind, self.message_bytes
            ))
        } else {
            let rate = self.megabytes_per_second();
            say(format_args!(
                "{:>12} {:>6} B  {rate:>10.1} MB/s",
                self.kind, self.message_bytes
            ))
        }
    }
}

/// Repeats with a growing count until a run lasts about `time`.
fn adapt(
    time: Duration,
    mut run: impl FnMut(u64) -> Result<Duration, Failure>,
) -> Result<(u64, Duration), Failure> {
    let mut count = 8;
    loop {
        let elapsed = run(count)?;
        if elapsed * 2 >= time {
            return Ok((count, elapsed));
        }
        // Aim at the wanted time, but do not trust a short run for more than a factor of 16.
        let sixteenths = time.as_nanos() * 16 / elapsed.as_nanos().max(1);
        count = count.saturating_mul(u64::try_from(sixteenths).unwrap_or(256).clamp(32, 256)) / 16;
    }
}

fn measure(
    channel: &mut Channel,
    kind: Kind,
    message_bytes: u32,
    ring_bytes: usize,
    time: Duration,
) -> Result<Point, Failure> {
    let mut buf = vec![0x5A; message_bytes as usize];
    let mut events_before = 0;
    let (messages, elapsed) = adapt(time, |count| {
        events_before = channel.stats().events_sent;
        let deadline = Instant::now() + POINT_LIMIT;
        let start = Instant::now();
        channel.write_all(
            &Command {
                kind,
                message_bytes,
                count,
            }
            .encode(),
            deadline,
        )?;
        match kind {
            Kind::Sink => {
                for _ in 0..count {
                    channel.write_all(&buf, deadline)?;
                }
                let mut total = [0; 8];
                read_exact(channel, &mut total, deadline)?;
                if u64::from_le_bytes(total) != count * u64::from(message_bytes) {
                    return Err(Failure::new(
                        "the other side read another number of bytes than were sent",
                        "report this as a defect",
                    ));
                }
            }
            Kind::Source => {
                for _ in 0..count {
                    read_exact(channel, &mut buf, deadline)?;
                }
            }
            Kind::Echo => {
                for _ in 0..count {
                    channel.write_all(&buf, deadline)?;
                    read_exact(channel, &mut buf, deadline)?;
                }
            }
            Kind::End => {}
        }
        Ok(start.elapsed())
    })?;
    let events_sent = channel.stats().events_sent - events_before;
    let name = match kind {
        Kind::Sink => "sink",
        Kind::Source => "source",
        Kind::Echo => "echo",
        Kind::End => "end",
    };
    let round_trip = kind == Kind::Echo;
    Ok(Point {
        kind: name,
        message_bytes,
        ring_bytes,
        messages,
        elapsed,
        events_sent,
        round_trip,
    })
}

/// What this machine copies on one processor, from one block into a ring-sized buffer.
fn memcpy(ring_bytes: usize, time: Duration) -> Point {
    let block = COPY_BYTES as usize;
    let from = vec![0x5A; block];
    let mut to = vec![0; ring_bytes.max(block)];
    let (messages, elapsed) = adapt(time, |count| {
        let start = Instant::now();
        for i in 0..count {
            let places = (to.len() / block) as u64;
            let offset = usize::try_from(i % places).unwrap_or(0) * block;
            to[offset..offset + block].copy_from_slice(black_box(&from));
            black_box(&mut to);
        }
        Ok(start.elapsed())
    })
    .unwrap_or((1, time));
    let kind = "memcpy";
    let message_bytes = COPY_BYTES;
    Point {
        kind,
        message_bytes,
        ring_bytes,
        messages,
        elapsed,
        events_sent: 0,
        round_trip: false,
    }
}

/// The same echo over a Unix socket pair between two threads.
fn socket_pair(message_bytes: u32, time: Duration) -> Result<Point, Failure> {
    let failed = |error| Failure::standard("socket pair", &error);
    let (mut near, mut far) = UnixStream::pair().map_err(failed)?;
    let size = message_bytes as usize;
    let echo = std::thread::spawn(move || {
        let mut buf = vec![0; size];
        while far.read_exact(&mut buf).is_ok() && far.write_all(&buf).is_ok() {}
    });
    let mut buf = vec![0; size];
    let measured = adapt(time, |count| {
        let start = Instant::now();
        for _ in 0..count {
            near.write_all(&buf)
                .and_then(|()| near.read_exact(&mut buf))
                .map_err(failed)?;
        }
        Ok(start.elapsed())
    });
    drop(near);
    let _ = echo.join();
    let (messages, elapsed) = measured?;
    let kind = "socket-pair";
    Ok(Point {
        kind,
        message_bytes,
        ring_bytes: 0,
        messages,
        elapsed,
        events_sent: 0,
        round_trip: true,
    })
}

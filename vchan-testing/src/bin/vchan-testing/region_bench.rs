//! Bytes through a region with small messages over the ring, beside the ring alone.

use std::time::{Duration, Instant};

use serde_json::json;
use vchan::Channel;
use vchan::region::{MappedRegion, OwnedRegion};
use vgpu_cli::{Failure, print_line};

/// Longest time for one way.
const WAY_LIMIT: Duration = Duration::from_secs(120);
/// Bytes that move at a time.
const BLOCK: usize = 64 << 10;
/// Blocks of a trial round, which only measures how many fill the wanted time.
const TRIAL: u64 = 64;
/// Bytes of the client's command: the way, and the number of blocks.
const COMMAND: usize = 9;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Ring = 1,
    Region = 2,
    End = 3,
}

/// Takes blocks from the client until it has enough.
pub(crate) fn serve(channel: &mut Channel, region: &OwnedRegion) -> Result<(), Failure> {
    let mut block = vec![0; BLOCK];
    loop {
        let deadline = Instant::now() + WAY_LIMIT;
        let mut command = [0; COMMAND];
        channel.read_exact(&mut command, deadline)?;
        let mut count = [0; 8];
        count.copy_from_slice(&command[1..]);
        let count = u64::from_le_bytes(count);
        match command[0] {
            way if way == Way::Ring as u8 => {
                for _ in 0..count {
                    channel.read_exact(&mut block, deadline)?;
                }
                channel.write_all(&[0], deadline)?;
            }
            way if way == Way::Region as u8 => {
                for _ in 0..count {
                    let mut at = [0; 4];
                    channel.read_exact(&mut at, deadline)?;
                    region.read_at(u32::from_le_bytes(at) as usize, &mut block)?;
                    channel.write_all(&[1], deadline)?;
                }
            }
            _ => return Ok(()),
        }
    }
}

/// Measures both ways and prints a line for each, and their ratio.
pub(crate) fn connect(
    channel: &mut Channel,
    region: &mut MappedRegion,
    time: Duration,
) -> Result<(), Failure> {
    if region.len() < BLOCK {
        return Err(Failure::new(
            format!("a region of {} bytes has no room for a block", region.len()),
            "give the server --bytes 64K or more",
        ));
    }
    let mut rates = [0.0; 2];
    for (way, rate) in [Way::Ring, Way::Region].into_iter().zip(&mut rates) {
        let trial = blocks(channel, region, way, TRIAL)?;
        let per_block = trial.as_secs_f64() / 64.0;
        // As many as take the wanted time, within a range that any machine manages.
        let count = (time.as_secs_f64() / per_block).clamp(64.0, 1e7);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped to small positive numbers"
        )]
        let count = count as u64;
        let elapsed = blocks(channel, region, way, count)?;
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 bytes")]
        let bytes = (count * BLOCK as u64) as f64;
        *rate = bytes / elapsed.as_secs_f64() / 1e6;
        print_line(format_args!(
            "{}",
            json!({
                "kind": if way == Way::Ring { "ring" } else { "region" },
                "message_bytes": BLOCK,
                "ring_bytes": channel.outgoing_ring_bytes(),
                "region_bytes": region.len(),
                "mb_per_s": (*rate * 10.0).round() / 10.0,
            })
        ))?;
    }
    print_line(format_args!(
        "ratio region / ring: {:.2}",
        rates[1] / rates[0]
    ))?;
    command(channel, Way::End, 0)?;
    Ok(channel.close(Instant::now() + WAY_LIMIT)?)
}

fn command(channel: &mut Channel, way: Way, count: u64) -> Result<(), Failure> {
    let mut bytes = [0; COMMAND];
    bytes[0] = way as u8;
    bytes[1..].copy_from_slice(&count.to_le_bytes());
    Ok(channel.write_all(&bytes, Instant::now() + WAY_LIMIT)?)
}

/// Moves `count` blocks to the server; returns the time taken.
fn blocks(
    channel: &mut Channel,
    region: &mut MappedRegion,
    way: Way,
    count: u64,
) -> Result<Duration, Failure> {
    let deadline = Instant::now() + WAY_LIMIT;
    let block = vec![0x5A; BLOCK];
    command(channel, way, count)?;
    let start = Instant::now();
    if way == Way::Ring {
        for _ in 0..count {
            channel.write_all(&block, deadline)?;
        }
        channel.read_exact(&mut [0], deadline)?;
        return Ok(start.elapsed());
    }
    let slots = region.len() / BLOCK;
    let (mut at, mut free) = (0, slots);
    let mut answers = vec![0; slots];
    for _ in 0..count {
        if free == 0 {
            free = channel.read(&mut answers, deadline)?;
        }
        region.write_at(at * BLOCK, &block)?;
        let offset = u32::try_from(at * BLOCK).unwrap_or(u32::MAX);
        channel.write_all(&offset.to_le_bytes(), deadline)?;
        at = (at + 1) % slots;
        free = free.saturating_sub(1);
    }
    while free < slots {
        match channel.read(&mut answers, deadline)? {
            0 => break,
            n => free += n,
        }
    }
    Ok(start.elapsed())
}

//! Both ends of a shared region, for tests between two processes or two domains.
//!
//! The client names its task with one byte; the server makes the region.

use std::time::{Duration, Instant};

use vchan::region::{Access, MappedRegion, OwnedRegion, TICKET_BYTES};
use vchan::{Channel, Error};
use vgpu_cli::{Failure, print_line};

use crate::region_bench;
use crate::region_work::RegionWork;

/// Time limit for one step on a slow machine.
const STEP_LIMIT: Duration = Duration::from_secs(120);
/// Longest time for which a region is held: until a person or the suite ends the other side.
const HOLD_LIMIT: Duration = Duration::from_secs(24 * 3600);
/// Bytes at a time, chosen so that accesses begin and end at all sorts of offsets.
const CHUNK: usize = 60_007;
/// Refused attempts that a leak of a page each would make visible.
const REFUSALS: usize = 200;

fn deadline() -> Instant {
    Instant::now() + STEP_LIMIT
}

/// The server's end.
pub(crate) fn serve(mut channel: Channel, bytes: usize) -> Result<(), Failure> {
    let mut work = [0];
    channel.read_exact(&mut work, deadline())?;
    let Some(work) = RegionWork::from_byte(work[0]) else {
        return Err(Failure::new(
            format!("the client asked for {:#04x}", work[0]),
            "connect with `vchan-testing region-connect`, of the same version",
        ));
    };
    let mut region = channel.create_region(bytes, Access::Both)?;
    channel.write_all(&region.ticket(), deadline())?;
    match work {
        RegionWork::Check => serve_check(&mut channel, &mut region),
        RegionWork::Hold => serve_hold(&mut channel, &mut region),
        RegionWork::Bench => region_bench::serve(&mut channel, &region),
    }?;
    drop(region);
    Ok(channel.close(deadline())?)
}

/// The client's end.
pub(crate) fn connect(
    mut channel: Channel,
    work: RegionWork,
    time: Duration,
) -> Result<(), Failure> {
    channel.write_all(&[work.byte()], deadline())?;
    let mut ticket = [0; TICKET_BYTES];
    channel.read_exact(&mut ticket, deadline())?;
    let mut region = channel.map_region(&ticket, deadline())?;
    match work {
        RegionWork::Check => connect_check(&mut channel, &mut region, ticket),
        RegionWork::Hold => connect_hold(channel, &region),
        RegionWork::Bench => region_bench::connect(&mut channel, &mut region, time),
    }
}

/// Both directions with checksums, the revocation, and requests beyond the limits.
fn serve_check(channel: &mut Channel, region: &mut OwnedRegion) -> Result<(), Failure> {
    let len = region.len();
    let ours = fill(len, 1, |at, bytes| region.write_at(at, bytes))?;
    channel.write_all(&ours.to_le_bytes(), deadline())?;
    // The client reports that it has filled the region with its own bytes.
    let mut theirs = [0; 4];
    channel.read_exact(&mut theirs, deadline())?;
    let found = checksum(len, |at, bytes| region.read_at(at, bytes))?;
    expect_sum("from the client", u32::from_le_bytes(theirs), found)?;
    region.revoke(deadline())?;
    print_line(format_args!("region: {len} bytes both ways, revoked"))?;
    channel.write_all(b"r", deadline())?;

    // More than the kernel grants, or more than the channel's own limit.
    let mut refusal = String::new();
    for _ in 0..REFUSALS {
        match channel.create_region(beyond_the_budget(), Access::Both) {
            Ok(_) => {
                return Err(Failure::new(
                    "a region beyond the budget was granted",
                    "set /sys/module/xen_gntalloc/parameters/limit to its default, 1024",
                ));
            }
            Err(error) => refusal = format!("{error}; {}", error.advice()),
        }
    }
    print_line(format_args!("refused: {refusal}"))?;
    // The refused attempts kept no page: enough pages for another region are still there.
    let after = channel.create_region(len / 2, Access::PeerReads)?;
    channel.write_all(&after.ticket(), deadline())?;
    let mut mapped = [0];
    Ok(channel.read_exact(&mut mapped, deadline())?)
}

fn connect_check(
    channel: &mut Channel,
    region: &mut MappedRegion,
    used: [u8; TICKET_BYTES],
) -> Result<(), Failure> {
    let len = region.len();
    let mut theirs = [0; 4];
    channel.read_exact(&mut theirs, deadline())?;
    let found = checksum(len, |at, bytes| region.read_at(at, bytes))?;
    expect_sum("from the server", u32::from_le_bytes(theirs), found)?;
    let ours = fill(len, 2, |at, bytes| region.write_at(at, bytes))?;
    channel.write_all(&ours.to_le_bytes(), deadline())?;

    // The region is revoked, and unmapped, while this side waits in a call.
    let mut revoked = [0];
    channel.read_exact(&mut revoked, deadline())?;
    let end = region.read_at(0, &mut revoked);
    if is_mapped(len) || !matches!(end, Err(Error::Region(_))) {
        return Err(Failure::new(
            format!("the revoked region is still there: {end:?}"),
            "this is a defect of vchan; please report it",
        ));
    }
    print_line(format_args!("region: {len} bytes both ways, revoked"))?;

    let mut ticket = [0; TICKET_BYTES];
    channel.read_exact(&mut ticket, deadline())?;
    refuse_bad_tickets(channel, &used, &ticket)?;
    let mut reads_only = channel.map_region(&ticket, deadline())?;
    let refused = reads_only.write_at(0, b"x");
    reads_only.read_at(0, &mut [0])?;
    if refused.is_ok() {
        return Err(Failure::new(
            "a region that is only to be read was written",
            "this is a defect of vchan; please report it",
        ));
    }
    channel.write_all(b"m", deadline())?;
    Ok(channel.close(deadline())?)
}

/// Tickets that were used already, or changed on the way, are errors and harm nothing.
fn refuse_bad_tickets(
    channel: &Channel,
    used: &[u8; TICKET_BYTES],
    good: &[u8; TICKET_BYTES],
) -> Result<(), Failure> {
    // Id, nonce, length, reference of the header page: see the format in `region::ticket`.
    let changed = [8, 20, 33, 41].map(|at| {
        let mut ticket = *good;
        ticket[at] ^= 0x10;
        ticket
    });
    for ticket in changed.iter().chain([used]) {
        let soon = Instant::now() + Duration::from_millis(20);
        if channel.map_region(ticket, soon).is_ok() {
            return Err(Failure::new(
                format!("a bad ticket was mapped: {ticket:02x?}"),
                "this is a defect of vchan; please report it",
            ));
        }
    }
    Ok(())
}

/// Waits for the client's end, then revokes the region.
fn serve_hold(channel: &mut Channel, region: &mut OwnedRegion) -> Result<(), Failure> {
    let mut mapped = [0];
    channel.read_exact(&mut mapped, deadline())?;
    print_line(format_args!("region: mapped"))?;
    let end = channel.read(&mut mapped, Instant::now() + HOLD_LIMIT);
    region.revoke(deadline())?;
    print_line(format_args!("region: revoked after {end:?}"))
}

/// Holds the region until the server is gone, and the `MappedRegion` even longer.
fn connect_hold(mut channel: Channel, region: &MappedRegion) -> Result<(), Failure> {
    channel.write_all(b"m", deadline())?;
    print_line(format_args!("region: mapped"))?;
    let end = channel.read(&mut [0], Instant::now() + HOLD_LIMIT);
    let access = region.read_at(0, &mut [0]);
    let held = is_mapped(region.len());
    // The rings would keep a dead domain in `xl list` as well.
    drop(channel);
    print_line(format_args!(
        "region: after {end:?} {access:?}, mapped: {held}"
    ))?;
    std::thread::sleep(STEP_LIMIT);
    Ok(())
}

/// Writes the pattern of `seed` over the whole region; returns its checksum.
fn fill(
    len: usize,
    seed: usize,
    mut write: impl FnMut(usize, &[u8]) -> vchan::Result<()>,
) -> Result<u32, Failure> {
    let mut crc = 0;
    for at in (0..len).step_by(CHUNK) {
        let bytes: Vec<u8> = (at..len.min(at + CHUNK))
            .map(|i| i.wrapping_mul(seed).wrapping_mul(0x9E37_79B9).to_le_bytes()[3])
            .collect();
        write(at, &bytes)?;
        crc = crc32c::crc32c_append(crc, &bytes);
    }
    Ok(crc)
}

fn checksum(
    len: usize,
    read: impl Fn(usize, &mut [u8]) -> vchan::Result<()>,
) -> Result<u32, Failure> {
    let mut crc = 0;
    let mut bytes = vec![0; CHUNK];
    for at in (0..len).step_by(CHUNK) {
        let part = &mut bytes[..CHUNK.min(len - at)];
        read(at, part)?;
        crc = crc32c::crc32c_append(crc, part);
    }
    Ok(crc)
}

fn expect_sum(what: &str, announced: u32, found: u32) -> Result<(), Failure> {
    if announced == found {
        return Ok(());
    }
    Err(Failure::new(
        format!("the bytes {what} have checksum {found:08x} instead of {announced:08x}"),
        "this is a defect of vchan; please report it",
    ))
}

fn beyond_the_budget() -> usize {
    std::fs::read_to_string("/sys/module/xen_gntalloc/parameters/limit")
        .ok()
        .and_then(|limit| limit.trim().parse::<usize>().ok())
        .and_then(|pages| pages.checked_mul(4096))
        .unwrap_or(vchan::region::DEFAULT_LIMIT)
}

/// Whether a mapping of `bytes` shared with a peer is among those of this process.
fn is_mapped(bytes: usize) -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    maps.lines()
        .filter(|line| line.contains("/dev/xen/gntdev") || line.contains("memfd:vchan"))
        .filter_map(|line| line.split_once(' ')?.0.split_once('-'))
        .filter_map(|(start, end)| {
            let number = |hex| usize::from_str_radix(hex, 16).ok();
            number(end)?.checked_sub(number(start)?)
        })
        .any(|length| length == bytes.next_multiple_of(4096))
}

//! Copies, rectangles and fills.

use vgpu_protocol::status::ErrorCode;

use crate::client::{Device, DeviceRows, Module};
use crate::conformance::{at, check, fails};
use crate::error::Cause;

use super::{LONG, Outcome, is, pattern, same};

pub(in crate::conformance) fn copies(device: &Device, _: &Module) -> Outcome {
    for n in [1, 3, 4096, 65_535, 65_536, 65_537, 524_288, 600_001, LONG] {
        let bytes = pattern(n, 1);
        let buffer = device.clone_htod(&bytes).map_err(at("up"))?;
        let back = device.clone_dtoh(&buffer).map_err(at("down"))?;
        same(&format!("{n} bytes there and back"), &back, &bytes)?;
    }
    // Parts, at places that are aligned to nothing.
    let mut whole = pattern(100_003, 2);
    let mut buffer = device.clone_htod(&whole).map_err(at("up"))?;
    for (from, n) in [(0, 1), (1, 4_097), (777, 70_001), (100_002, 1), (50_000, 0)] {
        let part = pattern(n, 9);
        whole[from..from + n].copy_from_slice(&part);
        device
            .memcpy_htod(&part, &mut buffer.slice_mut(from..from + n))
            .map_err(at("a part up"))?;
        let back = device
            .clone_dtoh(&buffer.slice(from..from + n))
            .map_err(at("a part down"))?;
        same("a part", &back, &part)?;
    }
    same(
        "the whole",
        &device.clone_dtoh(&buffer).map_err(at("down"))?,
        &whole,
    )?;
    // Within the device.
    let mut other = device.alloc_zeros::<u8>(100_003).map_err(at("zeros"))?;
    device
        .memcpy_dtod(&buffer.slice(13..90_013), &mut other.slice_mut(5..))
        .map_err(at("across"))?;
    let mut wanted = vec![0; 100_003];
    wanted[5..90_005].copy_from_slice(&whole[13..90_013]);
    same(
        "across",
        &device.clone_dtoh(&other).map_err(at("down"))?,
        &wanted,
    )?;
    // More than there is room for is noticed here.
    let error = fails(
        "too long",
        device.memcpy_htod(&[0; 11], &mut other.slice_mut(..10)),
    )?;
    check(matches!(error.cause(), Cause::Input(_)), || {
        error.to_string()
    })?;
    Ok(())
}

/// The bytes of `height` rows of `width`, each `pitch` after the one before it.
fn rows_of(bytes: &[u8], pitch: usize, width: usize, height: usize) -> Vec<u8> {
    let rows = bytes.chunks(pitch.max(1)).take(height);
    rows.flat_map(|row| &row[..width.min(row.len())])
        .copied()
        .collect()
}

pub(in crate::conformance) fn rows(device: &Device, _: &Module) -> Outcome {
    // Rows of a byte, of odd lengths, longer than a buffer here and in the mediator; and only themselves travel.
    let shapes = [
        (1, 1, 1),
        (1, 4_000, 3),
        (13, 700, 13),
        (1_001, 1_003, 1_100),
        (70_003, 9, 70_004),
        (300_007, 5, 400_000),
        (600_001, 3, 600_001),
        (1_100_000, 2, 1_200_000),
    ];
    for (width, height, pitch) in shapes {
        let name = format!("{height} rows of {width} bytes, {pitch} here");
        let host = pattern((height - 1) * pitch + width, 5);
        let wanted = rows_of(&host, pitch, width, height);
        let mut there = device
            .alloc_pitched::<u8>(width, height)
            .map_err(at("allocate rows"))?;
        check(there.pitch() >= width, || {
            format!("{name}: a pitch of {}", there.pitch())
        })?;
        device
            .memcpy_2d_htod(&host, pitch, &mut there)
            .map_err(at("rows up"))?;
        // To another distance, with something between the rows that stays.
        let mut back = vec![0x77; (height - 1) * (pitch + 3) + width];
        device
            .memcpy_2d_dtoh(&there, &mut back, pitch + 3)
            .map_err(at("rows down"))?;
        let between = back
            .chunks(pitch + 3)
            .all(|row| row[width.min(row.len())..].iter().all(|byte| *byte == 0x77));
        check(between, || format!("{name}: what is between came down"))?;
        same(&name, &rows_of(&back, pitch + 3, width, height), &wanted)?;
        // Across, to rows without anything between; what is down in one piece is the same.
        let mut dense = device
            .alloc_zeros::<u8>(width * height)
            .map_err(at("zeros"))?;
        device
            .memcpy_2d_dtod(&there, &mut dense.rows_mut(width))
            .map_err(at("rows across"))?;
        let back = device.clone_dtoh(&dense).map_err(at("down"))?;
        same(&format!("{name} across"), &back, &wanted)?;
    }
    // Rectangles, of numbers, and to places that are aligned to nothing but those.
    let (width, height) = (250, 90);
    let numbers: Vec<u32> = (0..width * height).collect();
    let (width, height) = (width as usize, height as usize);
    let mut image = device
        .alloc_pitched::<u32>(width, height)
        .map_err(at("allocate rows"))?;
    device
        .memcpy_2d_htod(&numbers, width, &mut image)
        .map_err(at("up"))?;
    device
        .memset_2d(&mut image.slice_mut(3..40, 5..80), 0xdead_beef)
        .map_err(at("fill rows"))?;
    device
        .memset_2d_zeros(&mut image.slice_mut(249.., 89..))
        .map_err(at("zero rows"))?;
    let mut wanted = numbers.clone();
    for row in 5..80 {
        wanted[row * width + 3..row * width + 40].fill(0xdead_beef);
    }
    wanted[249 + 89 * width] = 0;
    let mut back = vec![0; width * height];
    device
        .memcpy_2d_dtoh(&image, &mut back, width)
        .map_err(at("down"))?;
    same("a filled rectangle", &back, &wanted)?;
    let mut dense = device.clone_htod(&numbers).map_err(at("up"))?;
    device
        .memcpy_2d_dtod(
            &image.slice(2..52, 4..24),
            &mut dense.rows_mut(width).slice_mut(100..150, 60..80),
        )
        .map_err(at("a rectangle across"))?;
    let mut changed = numbers;
    for row in 0..20 {
        let (from, to) = ((row + 4) * width + 2, (row + 60) * width + 100);
        changed[to..to + 50].copy_from_slice(&wanted[from..from + 50]);
    }
    let back = device.clone_dtoh(&dense).map_err(at("down"))?;
    same("a rectangle across", &back, &changed)?;
    let mut bytes = device.alloc_pitched::<u8>(70, 30).map_err(at("rows"))?;
    device.memset_2d_zeros(&mut bytes).map_err(at("zeros"))?;
    device
        .memset_2d(&mut bytes.slice_mut(1..69, 1..29), 0xa5)
        .map_err(at("bytes"))?;
    let mut back = vec![0; 70 * 30];
    device
        .memcpy_2d_dtoh(&bytes, &mut back, 70)
        .map_err(at("down"))?;
    let inside = |k: usize| (1..69).contains(&(k % 70)) && (1..29).contains(&(k / 70));
    let wanted: Vec<u8> = (0..70 * 30).map(|k| 0xa5 * u8::from(inside(k))).collect();
    same("filled bytes", &back, &wanted)?;
    // Rows that do not fit are an error without a request; empty ones need no work.
    let short = vec![0; 69 * 70 + 69];
    let mut square = device.alloc_pitched::<u8>(70, 70).map_err(at("rows"))?;
    for wrong in [
        device.memcpy_2d_htod(&short, 70, &mut square),
        device.memcpy_2d_htod(&[0; 5000], 69, &mut square),
        device.memcpy_2d_dtoh(&square, &mut [0; 5000], usize::MAX),
        device.memcpy_2d_dtod(&square.slice(.., 1..), &mut bytes),
    ] {
        let error = fails("rows that do not fit", wrong)?;
        check(matches!(error.cause(), Cause::Input(_)), || {
            error.to_string()
        })?;
    }
    for (width, height) in [(0, 5), (5, 0)] {
        let mut none = device
            .alloc_pitched::<u64>(width, height)
            .map_err(at("no rows"))?;
        device
            .memcpy_2d_htod(&[], 0, &mut none)
            .map_err(at("no rows"))?;
        device.memset_2d_zeros(&mut none).map_err(at("no rows"))?;
    }
    let total = usize::try_from(device.total_memory()).unwrap_or(usize::MAX);
    let error = fails(
        "more rows than there is memory",
        device.alloc_pitched::<u8>(1, total),
    )?;
    is(&error, ErrorCode::QuotaMemory)?;
    Ok(())
}

pub(in crate::conformance) fn fills(device: &Device, _: &Module) -> Outcome {
    let mut bytes = device.alloc_zeros::<u8>(70_001).map_err(at("zeros"))?;
    device
        .memset(&mut bytes.slice_mut(3..70_000), 0xa5)
        .map_err(at("bytes"))?;
    let mut wanted = vec![0xa5; 70_001];
    wanted[..3].fill(0);
    wanted[70_000] = 0;
    same(
        "bytes",
        &device.clone_dtoh(&bytes).map_err(at("down"))?,
        &wanted,
    )?;
    let mut halves = device.alloc::<u16>(10_001).map_err(at("allocate"))?;
    device.memset(&mut halves, 0x1234).map_err(at("halves"))?;
    let back = device.clone_dtoh(&halves).map_err(at("down"))?;
    same("halves", &back, &[0x1234; 10_001])?;
    let mut floats = device.alloc::<f32>(300_007).map_err(at("allocate"))?;
    device.memset(&mut floats, -1.5).map_err(at("floats"))?;
    let back = device.clone_dtoh(&floats).map_err(at("down"))?;
    same("floats", &back, &vec![-1.5; 300_007])?;
    Ok(())
}

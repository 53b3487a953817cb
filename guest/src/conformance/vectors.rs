//! Vector adds, every sum of which is checked.

use crate::client::{Client, PIECE};

use super::{at, check, repeated};

/// Adds two vectors of `n` elements whose values depend on their place, so that a piece in the
/// wrong place or from another request is noticed.
pub(super) fn add(client: &mut Client, n: usize) -> Result<(), String> {
    // The first counts up, again and again; the second tells which time it is.
    let ramp: Vec<f32> = (0..16_381).map(|i| i as f32).collect();
    let a = repeated(&ramp, n);
    let mut b = vec![0.0; n];
    for (time, part) in b.chunks_mut(ramp.len()).enumerate() {
        part.fill(time as f32 + n as f32);
    }
    let sum = sum(client, &a, &b)?;
    for (i, sum) in sum.iter().enumerate() {
        let wanted = a[i] + b[i];
        check(*sum == wanted, || {
            format!("element {i} of {n} is {sum}, not {wanted}")
        })?;
    }
    Ok(())
}

fn sum(client: &mut Client, a: &[f32], b: &[f32]) -> Result<Vec<f32>, String> {
    let n = a.len();
    let mut sum = vec![f32::NAN; n];
    let report = client
        .vector_add(a, b, &mut sum)
        .map_err(|error| format!("{n} elements: {error}"))?;
    check(report.elements == n, || {
        format!("{n} elements: {} reported", report.elements)
    })?;
    Ok(sum)
}

pub(super) fn around_a_piece(client: &mut Client) -> Result<(), String> {
    for n in [
        0,
        1,
        2,
        3,
        4,
        5,
        1023,
        1024,
        1025,
        65_537,
        PIECE - 1,
        PIECE,
        PIECE + 1,
    ] {
        add(client, n)?;
    }
    Ok(())
}

pub(super) fn several_pieces(client: &mut Client) -> Result<(), String> {
    add(client, 3 * PIECE + 4099)?;
    // The second uses the memory that the first left on the device.
    add(client, 2 * PIECE)?;
    Ok(())
}

/// Sends bytes of all lengths there and back.
pub(super) fn exchanges(client: &mut Client) -> Result<(), String> {
    // A period that no length and no part of one is a multiple of.
    let period: Vec<u8> = (0..65_537u64)
        .map(|i| ((i * 0x9e37_79b9) >> 13).to_le_bytes()[0])
        .collect();
    let bytes = repeated(&period, 5_000_011);
    for up in [
        0,
        1,
        1000,
        (512 << 10) - 1,
        512 << 10,
        (512 << 10) + 1,
        1 << 20,
        bytes.len(),
    ] {
        for down in [0, 1, up / 3, up] {
            let mut back = vec![0; down.min(up)];
            let data = &bytes[bytes.len() - up..];
            client.exchange(data, &mut back).map_err(at("exchange"))?;
            check(back == data[..back.len()], || {
                format!("other bytes came back of {up}, of which {down} were due")
            })?;
        }
    }
    Ok(())
}

pub(super) fn million(client: &mut Client) -> Result<(), String> {
    add(client, 1 << 20)?;
    Ok(())
}

pub(super) fn special_values(client: &mut Client) -> Result<(), String> {
    let values = [
        0.0,
        -0.0,
        1.0,
        -1.5,
        f32::MAX,
        f32::MIN,
        f32::MIN_POSITIVE,
        f32::from_bits(1),
        f32::EPSILON,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        16_777_216.0,
    ];
    let a: Vec<f32> = values.iter().flat_map(|a| values.map(|_| *a)).collect();
    let b: Vec<f32> = values.iter().flat_map(|_| values).collect();
    let sum = sum(client, &a, &b)?;
    for (i, sum) in sum.iter().enumerate() {
        let wanted = a[i] + b[i];
        // Which NaN it is, IEEE 754 leaves open.
        let same = sum.to_bits() == wanted.to_bits() || (sum.is_nan() && wanted.is_nan());
        check(same, || format!("{:e} + {:e} is {sum:e}", a[i], b[i]))?;
    }
    Ok(())
}

pub(super) fn large_then_small(client: &mut Client) -> Result<(), String> {
    for round in 0..3 {
        add(client, (1 << 17) + round)?;
        for size in [1, 4096, 7] {
            client
                .ping(&vec![1; size])
                .map_err(|error| format!("ping after a large vector: {error}"))?;
        }
        add(client, 1 + round)?;
    }
    Ok(())
}

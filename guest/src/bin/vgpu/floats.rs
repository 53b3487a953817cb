//! Vectors of floats: made, read, checked.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use vgpu_cli::Failure;

use crate::output;

/// Bytes of one element.
const ELEMENT: u64 = size_of::<f32>() as u64;

/// Vectors held at once: two inputs and their sum.
const VECTORS: u64 = 3;

/// Checks that the vectors of a vector add fit the memory that is free.
///
/// # Errors
/// A failure that names the bytes needed.
pub(crate) fn check_memory(elements: u64) -> Result<usize, Failure> {
    check_against(elements, available_memory())
}

fn check_against(elements: u64, available: Option<u64>) -> Result<usize, Failure> {
    let advice = "use a smaller --n, or a guest with more memory";
    let needed = elements.checked_mul(ELEMENT * VECTORS);
    match (needed, available) {
        (Some(needed), Some(available)) if needed > available => Err(Failure::new(
            format!(
                "{elements} elements need {needed} bytes for three vectors, and {available} bytes \
                 ({}) of memory are free",
                output::bytes(available)
            ),
            advice,
        )),
        (Some(_), _) => usize::try_from(elements).map_err(|_| too_many(elements)),
        (None, _) => Err(too_many(elements)),
    }
}

fn too_many(elements: u64) -> Failure {
    let needed = u128::from(elements) * u128::from(ELEMENT * VECTORS);
    Failure::new(
        format!("{elements} elements need {needed} bytes, more than can be addressed"),
        "use a smaller --n",
    )
}

/// Bytes that could be allocated without swapping, as the kernel estimates.
fn available_memory() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// A vector with room for `elements`, or an error where the program would otherwise be aborted.
pub(crate) fn allocate(elements: usize) -> Result<Vec<f32>, Failure> {
    let mut vector = Vec::new();
    vector.try_reserve_exact(elements).map_err(|_| {
        let bytes = elements as u64 * ELEMENT;
        Failure::new(
            format!("the system gives no {bytes} bytes for a vector of {elements} elements"),
            "use a smaller --n, or lift the memory limit of this process (ulimit -v)",
        )
    })?;
    Ok(vector)
}

/// A vector that no result resembles, so that an element nobody wrote is found.
pub(crate) fn unwritten(elements: usize) -> Result<Vec<f32>, Failure> {
    let mut vector = allocate(elements)?;
    vector.resize(elements, f32::NAN);
    Ok(vector)
}

/// Two vectors, the same every time: values over many magnitudes, so that sums are rounded.
pub(crate) fn generate(elements: usize) -> Result<(Vec<f32>, Vec<f32>), Failure> {
    let (mut a, mut b) = (allocate(elements)?, allocate(elements)?);
    a.extend((0..elements).map(|i| value(i as u64)));
    b.extend((0..elements).map(|i| value(!(i as u64))));
    Ok((a, b))
}

/// A float between −2¹⁵ and 2¹⁵ from the bits of `seed`, well mixed.
fn value(seed: u64) -> f32 {
    let mixed = (seed ^ (seed >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    let [b0, b1, b2, b3, ..] = mixed.to_be_bytes();
    i32::from_be_bytes([b0, b1, b2, b3]) as f32 / 65536.0
}

/// Comparison of a sum with the expected value.
#[derive(Debug, PartialEq)]
pub(crate) struct Verdict {
    /// Elements that differ.
    pub(crate) errors: u64,
    /// The first of them: index, what came, what was due.
    pub(crate) first: Option<(usize, f32, f32)>,
}

/// Compares every element of `out` with `a[i] + b[i]`, bit by bit. Where a NaN is due any NaN will
/// do: which one a sum gives differs between processors.
pub(crate) fn verify(a: &[f32], b: &[f32], out: &[f32]) -> Verdict {
    let mut verdict = Verdict {
        errors: 0,
        first: None,
    };
    for (index, ((a, b), &found)) in a.iter().zip(b).zip(out).enumerate() {
        let due = a + b;
        let same = found.to_bits() == due.to_bits() || (found.is_nan() && due.is_nan());
        if !same {
            verdict.errors += 1;
            verdict.first.get_or_insert((index, found, due));
        }
    }
    verdict
}

/// The elements in two files, checked before anything is read.
pub(crate) fn lengths(a: &Path, b: &Path) -> Result<u64, Failure> {
    let (len_a, len_b) = (length(a)?, length(b)?);
    if len_a != len_b {
        return Err(Failure::new(
            format!(
                "the inputs differ in length: {} has {len_a} elements, {} has {len_b}",
                a.display(),
                b.display()
            ),
            "give two files of the same length",
        ));
    }
    Ok(len_a)
}

fn length(path: &Path) -> Result<u64, Failure> {
    let metadata = std::fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    let (name, bytes) = (path.display(), metadata.len());
    let advice = "give a file of 32-bit little-endian floats and nothing else";
    if !metadata.is_file() {
        return Err(Failure::new(
            format!("{name} is not a regular file"),
            advice,
        ));
    }
    if bytes == 0 {
        return Err(Failure::new(format!("{name} is empty"), advice));
    }
    if bytes % ELEMENT != 0 {
        let what = format!("{name} has {bytes} bytes, not a multiple of {ELEMENT}");
        return Err(Failure::new(what, advice));
    }
    Ok(bytes / ELEMENT)
}

/// Reads a vector of `elements` from a file.
pub(crate) fn read(path: &Path, elements: usize) -> Result<Vec<f32>, Failure> {
    let mut vector = allocate(elements)?;
    vector.resize(elements, 0.0);
    File::open(path)
        .and_then(|mut file| file.read_exact(bytemuck::cast_slice_mut(&mut vector)))
        .map_err(|error| unreadable(path, &error))?;
    Ok(vector)
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(
        format!("cannot read {}: {error}", path.display()),
        "check the path and its permissions",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vectors_are_always_the_same_and_their_sums_are_rounded() {
        let (a, b) = generate(1000).unwrap_or_default();
        let (again, _) = generate(10).unwrap_or_default();
        assert_eq!(a[..10], again);
        assert!(a.iter().chain(&b).all(|x| x.abs() <= 32768.0));
        let rounded = a
            .iter()
            .zip(&b)
            .filter(|&(a, b)| (a + b) as f64 != *a as f64 + *b as f64);
        assert!(rounded.count() > 100);
    }

    #[test]
    fn every_wrong_element_is_counted_and_the_first_is_named() {
        let (a, b) = generate(100).unwrap_or_default();
        let mut out: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
        assert_eq!(
            verify(&a, &b, &out),
            Verdict {
                errors: 0,
                first: None
            }
        );
        out[7] = f32::from_bits(out[7].to_bits() ^ 1);
        out[99] = f32::NAN;
        let verdict = verify(&a, &b, &out);
        assert_eq!(verdict.errors, 2);
        assert_eq!(verdict.first.map(|(index, ..)| index), Some(7));
    }

    #[test]
    fn zeros_and_nans_are_told_apart() {
        let nan = f32::from_bits(0x7fc0_1234);
        assert_eq!(verify(&[nan], &[1.0], &[f32::NAN]).errors, 0);
        assert_eq!(verify(&[1.0], &[1.0], &[f32::NAN]).errors, 1);
        assert_eq!(verify(&[-0.0], &[-0.0], &[0.0]).errors, 1);
        assert_eq!(verify(&[f32::MAX], &[f32::MAX], &[f32::INFINITY]).errors, 0);
    }

    #[test]
    fn memory_is_checked_before_it_is_asked_for() {
        assert_eq!(check_against(1000, Some(12_000)).ok(), Some(1000));
        assert_eq!(check_against(1000, None).ok(), Some(1000));
        for (elements, expected) in [
            (
                1001,
                "1001 elements need 12012 bytes for three vectors, and 12000 bytes",
            ),
            (
                u64::MAX,
                "221360928884514619380 bytes, more than can be addressed",
            ),
        ] {
            let failure = check_against(elements, Some(12_000)).expect_err("too much");
            let text = failure.to_string();
            assert!(text.contains(expected), "{text}");
        }
        assert!(available_memory().is_some_and(|bytes| bytes > 1 << 20));
    }
}

#![forbid(unsafe_code)]
//! Offsets and lengths against a region's size. Pure.

use super::error::RegionError;

/// Checks that `len` bytes at `offset` lie within `region` bytes.
///
/// # Errors
/// [`RegionError::OutOfBounds`], also where the end overflows.
pub(super) fn check(offset: usize, len: usize, region: usize) -> Result<(), RegionError> {
    if offset <= region && len <= region - offset {
        return Ok(());
    }
    Err(RegionError::OutOfBounds {
        offset: offset as u64,
        len: len as u64,
        region: region as u64,
    })
}

/// Checks a word of `size` bytes at `offset`.
///
/// # Errors
/// [`RegionError::OutOfBounds`], [`RegionError::Misaligned`].
pub(super) fn check_word(offset: usize, size: usize, region: usize) -> Result<(), RegionError> {
    check(offset, size, region)?;
    if !offset.is_multiple_of(size) {
        return Err(RegionError::Misaligned {
            offset: offset as u64,
            size,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn edges() {
        for (offset, len) in [(0, 0), (0, 10), (10, 0), (9, 1)] {
            assert_eq!(check(offset, len, 10), Ok(()), "{len} at {offset}");
        }
        for (offset, len) in [
            (0, 11),
            (10, 1),
            (11, 0),
            (1, usize::MAX),
            (usize::MAX, 1),
            (usize::MAX, usize::MAX),
        ] {
            let error = check(offset, len, 10).unwrap_err();
            assert!(matches!(error, RegionError::OutOfBounds { region: 10, .. }));
        }
        assert_eq!(check_word(4, 4, 8), Ok(()));
        let error = check_word(2, 4, 8);
        assert_eq!(error, Err(RegionError::Misaligned { offset: 2, size: 4 }));
        assert!(check_word(8, 4, 8).is_err());
    }

    proptest! {
        #[test]
        fn agrees_with_wide_arithmetic(offset: usize, len: usize, region: usize) {
            let inside = offset as u128 + len as u128 <= region as u128;
            prop_assert_eq!(check(offset, len, region).is_ok(), inside);
        }
    }
}

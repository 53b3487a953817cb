//! A guest's module image, made fit for a driver call that takes no length.
//!
//! `cuModuleLoadData` finds the end of an image by the image itself. So what an image says of its own
//! length is checked against what there is, and text gets the NUL that ends it. The driver's own parsers
//! are as good as they are; they run in the guest's worker, and in nobody else's.

use super::super::cuda_result;
use super::super::gpu::device::DeviceError;

/// First bytes of an ELF file.
const ELF: [u8; 4] = *b"\x7fELF";

/// First bytes of a fatbin.
const FATBIN: [u8; 4] = 0xba55_ed50_u32.to_le_bytes();

/// First bytes of what nvcc links around a fatbin: it holds an address.
const FATBIN_WRAPPER: [u8; 4] = 0x4662_43b1_u32.to_le_bytes();

/// Zeros behind every image: a parser may look a little further.
const PADDING: usize = 64;

/// The image as the driver may have it.
///
/// # Errors
/// It says that it is longer than it is, or is nothing that could be a module.
pub(super) fn fit(mut image: Vec<u8>) -> Result<Vec<u8>, DeviceError> {
    check(&image).map_err(|text| DeviceError::new(cuda_result::INVALID_IMAGE, text))?;
    if image.try_reserve_exact(PADDING).is_err() {
        let text = "no memory for the module's image";
        return Err(DeviceError::new(cuda_result::OUT_OF_MEMORY, text));
    }
    image.resize(image.len() + PADDING, 0);
    Ok(image)
}

/// Whether a kernel of it may print: it names the function that does.
pub(super) fn may_print(image: &[u8]) -> bool {
    const VPRINTF: &[u8] = b"vprintf";
    // What is in a fatbin is compressed as a rule.
    image.starts_with(&FATBIN) || image.windows(VPRINTF.len()).any(|name| name == VPRINTF)
}

fn check(image: &[u8]) -> Result<(), &'static str> {
    match image.first_chunk::<4>() {
        Some(&ELF) => elf(image).ok_or("a cubin that is cut short, or no cubin"),
        Some(&FATBIN) => fatbin(image).ok_or("a fatbin that is cut short"),
        Some(&FATBIN_WRAPPER) => Err("what nvcc links around a fatbin, and not the fatbin"),
        _ if image.iter().any(|byte| *byte != 0) => Ok(()),
        _ => Err("an image with nothing in it"),
    }
}

fn number<const N: usize>(image: &[u8], at: u64) -> Option<u64> {
    let at = usize::try_from(at).ok()?;
    let bytes = image.get(at..at.checked_add(N)?)?;
    let mut whole = [0; 8];
    whole[..N].copy_from_slice(bytes);
    Some(u64::from_le_bytes(whole))
}

/// Whether `count` entries of `size` bytes at `offset` are there.
fn table(image: &[u8], offset: u64, size: u64, count: u64) -> Option<()> {
    let end = offset.checked_add(size.checked_mul(count)?)?;
    (end <= image.len() as u64).then_some(())
}

/// A 64-bit little-endian ELF file whose headers and sections are there.
fn elf(image: &[u8]) -> Option<()> {
    const SHT_NOBITS: u64 = 8;
    (image.get(4..6)? == [2, 1]).then_some(())?;
    let programs = (number::<8>(image, 32)?, number::<2>(image, 54)?);
    let sections = (number::<8>(image, 40)?, number::<2>(image, 58)?);
    let (programs_count, sections_count) = (number::<2>(image, 56)?, number::<2>(image, 60)?);
    table(image, programs.0, programs.1, programs_count)?;
    table(image, sections.0, sections.1, sections_count)?;
    for k in 0..programs_count {
        let at = programs.0 + k * programs.1;
        (programs.1 >= 56).then_some(())?;
        table(
            image,
            number::<8>(image, at + 8)?,
            1,
            number::<8>(image, at + 32)?,
        )?;
    }
    for k in 0..sections_count {
        let at = sections.0 + k * sections.1;
        (sections.1 >= 64).then_some(())?;
        if number::<4>(image, at + 4)? != SHT_NOBITS {
            table(
                image,
                number::<8>(image, at + 24)?,
                1,
                number::<8>(image, at + 32)?,
            )?;
        }
    }
    Some(())
}

/// A header that says how long it is and how much follows.
fn fatbin(image: &[u8]) -> Option<()> {
    let header = number::<2>(image, 6)?;
    let rest = number::<8>(image, 8)?;
    (header >= 16).then_some(())?;
    table(image, header, rest, 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An ELF file with one section of `bytes` at `offset`.
    fn cubin(offset: u64, bytes: u64, kind: u32) -> Vec<u8> {
        let mut image = vec![0; 64 + 64 + 16];
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        image[40..48].copy_from_slice(&64u64.to_le_bytes());
        image[54..56].copy_from_slice(&56u16.to_le_bytes());
        image[58..60].copy_from_slice(&64u16.to_le_bytes());
        image[60..62].copy_from_slice(&1u16.to_le_bytes());
        image[68..72].copy_from_slice(&kind.to_le_bytes());
        image[88..96].copy_from_slice(&offset.to_le_bytes());
        image[96..104].copy_from_slice(&bytes.to_le_bytes());
        image
    }

    #[test]
    fn a_cubin_is_no_longer_than_it_is() {
        assert!(check(&cubin(128, 16, 1)).is_ok());
        assert!(check(&cubin(128, 17, 1)).is_err());
        assert!(check(&cubin(u64::MAX, 1, 1)).is_err());
        assert!(check(&cubin(1, u64::MAX, 1)).is_err());
        // Memory that the file does not hold may be of any size.
        assert!(check(&cubin(128, 1 << 40, 8)).is_ok());
        let whole = cubin(128, 16, 1);
        for cut in 4..whole.len() {
            assert!(check(&whole[..cut]).is_err(), "{cut}");
        }
        let mut far = whole.clone();
        far[40..48].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(check(&far).is_err());
        let mut many = whole;
        many[60..62].copy_from_slice(&u16::MAX.to_le_bytes());
        assert!(check(&many).is_err());
    }

    #[test]
    fn a_fatbin_is_no_longer_than_it_is() {
        let fatbin = |header: u16, rest: u64| {
            let mut image = vec![0; 24];
            image[..4].copy_from_slice(&FATBIN);
            image[6..8].copy_from_slice(&header.to_le_bytes());
            image[8..16].copy_from_slice(&rest.to_le_bytes());
            image
        };
        assert!(check(&fatbin(16, 8)).is_ok());
        for (header, rest) in [(16, 9), (16, u64::MAX), (17, 8), (0, 8), (u16::MAX, 0)] {
            assert!(check(&fatbin(header, rest)).is_err(), "{header} {rest}");
        }
        assert!(check(&fatbin(16, 8)[..15]).is_err());
        assert!(check(&FATBIN_WRAPPER).is_err());
    }

    #[test]
    fn kernels_may_print_where_the_function_is_named_or_cannot_be_seen() {
        assert!(may_print(
            b".extern .func (.param .b32 n) vprintf (.param .b64 f)"
        ));
        assert!(may_print(&[&FATBIN[..], &[0; 20]].concat()));
        assert!(!may_print(include_bytes!("../vector_add.ptx")));
        assert!(!may_print(&cubin(128, 16, 1)));
    }

    #[test]
    fn text_ends_with_a_nul_and_nothing_is_no_module() {
        let fitted = fit(b".version 8.0".to_vec()).expect("text");
        assert!(fitted.starts_with(b".version 8.0\0"));
        for nothing in [&[][..], &[0; 9]] {
            let error = fit(nothing.to_vec()).expect_err("no module");
            assert_eq!(error.code, cuda_result::INVALID_IMAGE);
        }
    }

    /// A field of a header or an entry, as a parser reads it.
    fn field(image: &[u8], at: u128, bytes: usize) -> u128 {
        let at = usize::try_from(at).expect("within the image");
        let read = image[at..at + bytes].iter().rev();
        read.fold(0, |n, byte| n << 8 | u128::from(*byte))
    }

    /// The end of everything that a cubin or a fatbin says of itself, in numbers that do not overflow.
    fn end(image: &[u8]) -> u128 {
        let at = |at: u128, bytes| field(image, at, bytes);
        if image.starts_with(&FATBIN) {
            return at(6, 2) + at(8, 8);
        }
        // Entries by their table: its offset, the size of one and their number; where the kind, offset and length are.
        let tables = [
            (at(32, 8), at(54, 2), at(56, 2), (0, 8, 32)),
            (at(40, 8), at(58, 2), at(60, 2), (4, 24, 32)),
        ];
        let mut end = 0;
        for (first, size, count, (kind, offset, length)) in tables {
            end = end.max(first + size * count);
            for k in 0..count {
                let entry = first + k * size;
                let is_section_without_bytes = kind == 4 && at(entry + kind, 4) == 8;
                if !is_section_without_bytes {
                    end = end.max(at(entry + offset, 8) + at(entry + length, 8));
                }
            }
        }
        end
    }

    /// One of the values that matter in a field of an image of `len` bytes.
    fn value(len: u64) -> impl Strategy<Value = u64> {
        prop_oneof![
            0..200u64,
            len - 2..len + 2,
            Just(u64::MAX),
            (u64::MAX - 200)..u64::MAX,
            any::<u64>(),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 5000, ..ProptestConfig::default() })]

        /// Whatever the fields say, nothing panics, and no image is taken that reaches beyond its end.
        #[test]
        fn no_image_is_longer_than_it_is(
            fatbin: bool,
            fields in prop::collection::vec((0..140usize, 1..=8usize, value(144)), 0..4),
            cut in prop_oneof![Just(144usize), 0..144usize],
        ) {
            let mut image = cubin(128, 16, 1);
            if fatbin {
                image[..16].copy_from_slice(&[&FATBIN[..], &[1, 0, 16, 0, 128, 0, 0, 0, 0, 0, 0, 0]].concat());
            }
            for (at, bytes, value) in fields {
                // The kind of image stays.
                let at = at.max(6).min(image.len() - bytes);
                image[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
            }
            image.truncate(cut);
            let accepted = check(&image).is_ok();
            may_print(&image);
            if accepted && image.len() > 4 {
                let end = end(&image);
                prop_assert!(end <= image.len() as u128, "{end} of {}", image.len());
                // All that was checked is still there for the driver, and zeros behind it.
                let fitted = fit(image.clone()).expect("the same image");
                prop_assert!(fitted.starts_with(&image));
                prop_assert_eq!(fitted.len(), image.len() + PADDING);
            }
        }

        #[test]
        fn any_bytes_are_an_image_or_none(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0..4usize) {
            let magic = [&[][..], &ELF, &FATBIN, &FATBIN_WRAPPER][kind];
            let image = [magic, &bytes].concat();
            if let Ok(fitted) = fit(image.clone()) {
                prop_assert!(fitted.starts_with(&image));
            }
        }
    }
}

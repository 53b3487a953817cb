//! Detection of the kind of image that a program loads.

use std::borrow::Cow;

use crate::error::{Code, Error};

/// The magic numbers of a fatbin, and of the wrapper that nvcc puts around one.
const FATBIN: u32 = 0xba55_ed50;
const ELF: [u8; 4] = *b"\x7fELF";
/// `e_machine` of a cubin.
const EM_CUDA: u16 = 190;
/// Kinds of entries in a fatbin.
const KIND_PTX: u16 = 1;
const KIND_CUBIN: u16 = 2;
/// Longest text in bytes, packed or not.
const TEXT_LIMIT: usize = 64 << 20;
/// Flags of an entry.
const COMPRESSED_LZ4: u64 = 0x2000;
const COMPRESSED_ZSTD: u64 = 0x8000;

fn not_recognized() -> Error {
    Error::new(
        Code::InvalidImage,
        "error   : Binary format for key='0', ident='' is not recognized",
    )
}

fn machine_code() -> Error {
    Error::new(
        Code::NoBinaryForGpu,
        "machine code; the cpu executor runs PTX: compile with -arch=compute_80 (nvcc), or fetch PTX instead of CUBIN (NVRTC)",
    )
}

/// The PTX of an image, up to its first NUL.
pub(crate) fn text(image: &[u8]) -> Result<Cow<'_, str>, Error> {
    if image.starts_with(&ELF) {
        let machine = image
            .get(18..20)
            .map_or(0, |b| u16::from_le_bytes([b[0], b[1]]));
        return Err(if machine == EM_CUDA {
            machine_code()
        } else {
            not_recognized()
        });
    }
    if word(image, 0) == Some(FATBIN) {
        return fatbin(image).map(Cow::Owned);
    }
    let end = image.iter().position(|b| *b == 0).unwrap_or(image.len());
    if end > TEXT_LIMIT {
        return Err(not_recognized());
    }
    let text = String::from_utf8_lossy(&image[..end]);
    if begins_with_version(&text) {
        return Ok(text);
    }
    let mut e = not_recognized();
    if image.starts_with(b"BC\xc0\xde") {
        e.text += "\nLLVM bitcode or LTO-IR: compile it to PTX first";
    } else if text.contains("__global__") {
        e.text += "\nCUDA source: compile it to PTX first (nvcc -ptx, NVRTC)";
    }
    Err(e)
}

fn begins_with_version(text: &str) -> bool {
    let mut rest = text.trim_start();
    loop {
        rest = if let Some(comment) = rest.strip_prefix("//") {
            comment.split_once('\n').map_or("", |(_, r)| r).trim_start()
        } else if let Some(comment) = rest.strip_prefix("/*") {
            comment.split_once("*/").map_or("", |(_, r)| r).trim_start()
        } else {
            return rest.starts_with(".version");
        };
    }
}

fn word(b: &[u8], at: usize) -> Option<u32> {
    b.get(at..at.checked_add(4)?)?
        .try_into()
        .ok()
        .map(u32::from_le_bytes)
}

fn long(b: &[u8], at: usize) -> Option<u64> {
    b.get(at..at.checked_add(8)?)?
        .try_into()
        .ok()
        .map(u64::from_le_bytes)
}

/// The newest PTX entry of a fatbin for at most the reported compute capability or a little above.
fn fatbin(image: &[u8]) -> Result<String, Error> {
    let header = image
        .get(6..8)
        .map_or(0, |b| usize::from(u16::from_le_bytes([b[0], b[1]])));
    let mut at = header;
    let (mut best, mut cubin): (Option<(u32, String)>, bool) = (None, false);
    while let (Some(head), Some(payload)) = (word(image, at), long(image, at + 8)) {
        let Ok(kind) = u16::try_from(head & 0xffff) else {
            break;
        };
        let (Some(header), Ok(payload)) = (
            word(image, at + 4).map(|h| h as usize),
            usize::try_from(payload),
        ) else {
            break;
        };
        let Some(from) = at.checked_add(header).filter(|_| header >= 24) else {
            break;
        };
        let Some(body) = from.checked_add(payload).and_then(|to| image.get(from..to)) else {
            break;
        };
        cubin |= kind == KIND_CUBIN;
        if kind == KIND_PTX {
            let arch = word(image, at + 28).unwrap_or(0);
            let flags = long(image, at + 40).unwrap_or(0);
            let plain = if flags & COMPRESSED_ZSTD != 0 {
                None
            } else if flags & COMPRESSED_LZ4 != 0 {
                let packed = word(image, at + 16)
                    .map_or(payload, |n| n as usize)
                    .min(body.len());
                let size = long(image, at + 56)
                    .and_then(|n| usize::try_from(n).ok())
                    .unwrap_or(TEXT_LIMIT);
                lz4(&body[..packed], size.min(TEXT_LIMIT))
            } else {
                Some(body.to_vec())
            };
            if let Some(mut t) = plain {
                t.truncate(t.iter().position(|b| *b == 0).unwrap_or(t.len()));
                let t = String::from_utf8_lossy(&t).into_owned();
                if begins_with_version(&t) && best.as_ref().is_none_or(|(a, _)| arch >= *a) {
                    best = Some((arch, t));
                }
            }
        }
        at = from + payload;
    }
    match best {
        Some((_, t)) => Ok(t),
        None if cubin => Err(machine_code()),
        None => Err(not_recognized()),
    }
}

/// Unpacks a block of LZ4 (the format has no checksum and no size of its own).
fn lz4(packed: &[u8], size: usize) -> Option<Vec<u8>> {
    let mut out: Vec<u8> = Vec::new();
    let mut input = packed.iter().copied();
    let length = |first: u8, input: &mut dyn Iterator<Item = u8>| {
        let mut n = usize::from(first);
        if first == 15 {
            loop {
                let b = input.next()?;
                n = n.checked_add(usize::from(b))?;
                if b != 255 {
                    break;
                }
            }
        }
        Some(n)
    };
    while let Some(token) = input.next() {
        let literals = length(token >> 4, &mut input)?;
        if out.len().checked_add(literals)? > size {
            return None;
        }
        for _ in 0..literals {
            out.push(input.next()?);
        }
        let Some(low) = input.next() else { break };
        let offset = usize::from(u16::from_le_bytes([low, input.next()?]));
        let n = length(token & 15, &mut input)?.checked_add(4)?;
        let from = out.len().checked_sub(offset).filter(|_| offset > 0)?;
        if out.len().checked_add(n)? > size {
            return None;
        }
        for k in 0..n {
            out.push(out[from + k]);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lz4_repeats_what_it_has_written_and_stops_at_its_size() {
        // four literals, then a match of eight bytes four back
        let packed = [0x44, b'a', b'b', b'c', b'd', 4, 0, 0x10, b'!'];
        assert_eq!(lz4(&packed, 64).unwrap(), b"abcdabcdabcd!");
        assert_eq!(lz4(&packed, 12), None);
        assert_eq!(lz4(&[0x04, 9, 0], 64), None);
    }

    #[test]
    fn images_that_are_no_ptx_have_the_drivers_numbers() {
        assert_eq!(text(b"").unwrap_err().code, Code::InvalidImage);
        let mut elf = b"\x7fELF".to_vec();
        elf.resize(64, 0);
        assert_eq!(text(&elf).unwrap_err().code, Code::InvalidImage);
        elf[18] = 190;
        assert_eq!(text(&elf).unwrap_err().code, Code::NoBinaryForGpu);
        let source = text(b"__global__ void k() {}").unwrap_err();
        assert!(source.code == Code::InvalidImage && source.text.contains("CUDA source"));
        assert!(text(b"// c\n/* d */ .version 8.0\n\0junk").is_ok());
    }

    #[test]
    fn a_fatbin_gives_its_ptx() {
        let ptx = b".version 8.0\n.target sm_75\n\0";
        let mut f = Vec::new();
        f.extend(FATBIN.to_le_bytes());
        f.extend([1, 0, 16, 0]);
        f.extend((64 + ptx.len() as u64).to_le_bytes());
        let mut entry = vec![0; 64];
        entry[0] = 1;
        entry[4] = 64;
        entry[8..16].copy_from_slice(&(ptx.len() as u64).to_le_bytes());
        entry[28] = 75;
        f.extend(entry);
        f.extend(ptx);
        assert!(text(&f).unwrap().starts_with(".version 8.0"));
        f[16] = 2;
        assert_eq!(text(&f).unwrap_err().code, Code::NoBinaryForGpu);
    }
}

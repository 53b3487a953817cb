//! Extracts the plain ELF kernel from a compressed `vmlinuz`: unpacking it under emulation, for
//! dom0 and again for every guest, would cost seconds each time.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Offsets in the setup header of a bzImage (Linux boot protocol 2.08).
const SETUP_SECTORS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// The ELF file inside the bzImage `image`.
pub(crate) fn extract(image: &[u8]) -> Result<Vec<u8>> {
    if image.get(MAGIC..MAGIC + 4) != Some(b"HdrS") {
        bail!("the kernel is not a bzImage");
    }
    let word = |at: usize| -> Result<usize> {
        let bytes = image
            .get(at..at + 4)
            .context("the kernel's header is cut short")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    let code = (usize::from(image[SETUP_SECTORS]) + 1) * 512;
    let start = code + word(PAYLOAD_OFFSET)?;
    // Four bytes follow the compressed stream: the size of its contents.
    let end = start + word(PAYLOAD_LENGTH)?.saturating_sub(4);
    let payload = image
        .get(start..end)
        .context("the kernel's payload is cut short")?;
    let mut child = Command::new("xz")
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("running xz")?;
    let mut input = child.stdin.take().context("no pipe to xz")?;
    let output = std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(payload));
        child.wait_with_output()
    })?;
    if !output.stdout.starts_with(b"\x7fELF") {
        bail!("the kernel's payload is not what Debian 12 has: an ELF file under xz");
    }
    Ok(output.stdout)
}

//! The arguments of `run`: `i32:-5`, `in:FILE`, …

use std::path::PathBuf;

use anyhow::{Context, bail};
use vgpu_ptx::{Device, Kernel};

/// A buffer is no larger than this.
const BUFFER: u64 = 1 << 40;

/// One `--arg`.
#[derive(Debug)]
pub(crate) enum Argument {
    /// A value as it lies in memory.
    Value(Vec<u8>),
    Buffer {
        content: Content,
        out: Option<PathBuf>,
    },
}

#[derive(Debug)]
pub(crate) enum Content {
    Bytes(Vec<u8>),
    Zero(u64),
}

fn bytes(text: &str) -> anyhow::Result<u64> {
    let n: u64 = text
        .parse()
        .with_context(|| format!("'{text}' is no number of bytes"))?;
    if n == 0 || n > BUFFER {
        bail!("a buffer of {n} bytes cannot be");
    }
    Ok(n)
}

fn file(path: &str) -> anyhow::Result<Content> {
    let content = std::fs::read(path).with_context(|| format!("cannot read {path}"))?;
    if content.is_empty() {
        bail!("{path} is empty: a buffer has at least one byte");
    }
    Ok(Content::Bytes(content))
}

impl Argument {
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let Some((kind, value)) = text.split_once(':') else {
            bail!("--arg {text}: wants TYPE:VALUE, as in i32:5 or in:FILE")
        };
        macro_rules! number {
            ($t:ty) => {
                Self::Value(
                    value
                        .parse::<$t>()
                        .with_context(|| format!("--arg {text}: '{value}' is no {kind}"))?
                        .to_le_bytes()
                        .to_vec(),
                )
            };
        }
        Ok(match kind {
            "i8" => number!(i8),
            "i16" => number!(i16),
            "i32" => number!(i32),
            "i64" => number!(i64),
            "u8" => number!(u8),
            "u16" => number!(u16),
            "u32" => number!(u32),
            "u64" => number!(u64),
            "f32" => number!(f32),
            "f64" => number!(f64),
            "bytes" => {
                let digits: Vec<u8> = value.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
                let pair = |p: &[u8]| {
                    std::str::from_utf8(p)
                        .ok()
                        .filter(|_| p.len() == 2)
                        .and_then(|s| u8::from_str_radix(s, 16).ok())
                };
                let all: Option<Vec<u8>> = digits.chunks(2).map(pair).collect();
                Self::Value(all.with_context(|| {
                    format!("--arg {text}: wants an even number of hexadecimal digits")
                })?)
            }
            "in" => Self::Buffer {
                content: file(value)?,
                out: None,
            },
            "inout" => {
                let (from, to) = value
                    .split_once(':')
                    .with_context(|| format!("--arg {text}: wants inout:FILE:OUTFILE"))?;
                Self::Buffer {
                    content: file(from)?,
                    out: Some(to.into()),
                }
            }
            "out" => {
                let (to, n) = value
                    .rsplit_once(':')
                    .with_context(|| format!("--arg {text}: wants out:FILE:BYTES"))?;
                Self::Buffer {
                    content: Content::Zero(bytes(n)?),
                    out: Some(to.into()),
                }
            }
            "zero" => Self::Buffer {
                content: Content::Zero(bytes(value)?),
                out: None,
            },
            _ => bail!(
                "--arg {text}: '{kind}' is none of i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 bytes in out inout zero"
            ),
        })
    }
}

/// A wrong number or size of arguments is refused before anything runs.
pub(crate) fn fits(kernel: &Kernel, arguments: &[Argument]) -> anyhow::Result<()> {
    if arguments.len() != kernel.parameters.len() {
        bail!(
            "kernel '{}' has {} parameters, {} arguments were given",
            kernel.name,
            kernel.parameters.len(),
            arguments.len()
        );
    }
    for (k, (a, p)) in arguments.iter().zip(&kernel.parameters).enumerate() {
        let size = match a {
            Argument::Value(v) => v.len() as u64,
            Argument::Buffer { .. } => 8,
        };
        if size != u64::from(p.size) {
            bail!(
                "argument {k} has {size} bytes; parameter '{}' of kernel '{}' has {}",
                p.name,
                kernel.name,
                p.size
            );
        }
    }
    Ok(())
}

/// The packed parameters, and the buffers to write to files afterwards.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) bytes: Vec<u8>,
    results: Vec<(u64, u64, PathBuf)>,
}

impl Packed {
    pub(crate) fn new(
        device: &Device,
        kernel: &Kernel,
        arguments: &[Argument],
    ) -> anyhow::Result<Self> {
        let mut bytes = vec![0; kernel.parameter_bytes as usize];
        let mut results = Vec::new();
        for (a, p) in arguments.iter().zip(&kernel.parameters) {
            let value = match a {
                Argument::Value(v) => v.clone(),
                Argument::Buffer { content, out } => {
                    let (size, data) = match content {
                        Content::Bytes(d) => (d.len() as u64, Some(d)),
                        Content::Zero(n) => (*n, None),
                    };
                    let at = device.allocate(size)?;
                    if let Some(d) = data {
                        device.write(at, d)?;
                    }
                    if let Some(path) = out {
                        results.push((at, size, path.clone()));
                    }
                    at.to_le_bytes().to_vec()
                }
            };
            let from = p.offset as usize;
            bytes[from..from + value.len()].copy_from_slice(&value);
        }
        Ok(Self { bytes, results })
    }

    pub(crate) fn write_results(&self, device: &Device) -> anyhow::Result<()> {
        for (at, size, path) in &self.results {
            let mut data = vec![0; usize::try_from(*size)?];
            device.read(*at, &mut data)?;
            std::fs::write(path, data)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

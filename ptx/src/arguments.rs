//! The arguments of `run`: `i32:-5`, `in:FILE`, …

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use vgpu_protocol::argument;
use vgpu_ptx::{Device, Kernel};

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

fn file(path: &Path) -> anyhow::Result<Content> {
    let shown = path.display();
    let content = std::fs::read(path).with_context(|| format!("cannot read {shown}"))?;
    if content.is_empty() {
        bail!("{shown} is empty: a buffer has at least one byte");
    }
    Ok(Content::Bytes(content))
}

impl Argument {
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let parsed = argument::Argument::parse(text).with_context(|| format!("--arg {text}"))?;
        Ok(match parsed {
            argument::Argument::Value(value) => Self::Value(value),
            argument::Argument::File(from, out) => Self::Buffer {
                content: file(&from)?,
                out,
            },
            argument::Argument::Zeros(bytes, out) => Self::Buffer {
                content: Content::Zero(bytes),
                out,
            },
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

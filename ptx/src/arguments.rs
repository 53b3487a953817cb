//! The arguments of `run`: `i32:-5`, `in:FILE`, …

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use vgpu_protocol::argument::{self, Content};
use vgpu_ptx::{Device, Kernel};

/// One `--arg`, with the contents of its file.
pub(crate) type Argument = argument::Argument<Vec<u8>>;

fn file(path: &Path) -> anyhow::Result<Vec<u8>> {
    let shown = path.display();
    let content = std::fs::read(path).with_context(|| format!("cannot read {shown}"))?;
    if content.is_empty() {
        bail!("{shown} is empty: a buffer has at least one byte");
    }
    Ok(content)
}

/// Parses one argument, and reads the file that it names.
pub(crate) fn parse(text: &str) -> anyhow::Result<Argument> {
    let parsed = argument::Argument::parse(text).with_context(|| format!("--arg {text}"))?;
    parsed.read(file)
}

/// Refuses a wrong number or size of arguments before anything runs.
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
        let size = a.size();
        if size != p.size as usize {
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
                        Content::File(d) => (d.len() as u64, Some(d)),
                        Content::Zeros(n) => (*n, None),
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

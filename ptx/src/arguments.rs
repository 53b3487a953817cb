//! The arguments of `run`: `i32:-5`, `in:FILE`, …

use std::path::{Path, PathBuf};

use anyhow::Context;
use vgpu_protocol::argument::{self, Content};
use vgpu_ptx::{Device, Kernel};

/// One `--arg`, with the contents of its file.
pub(crate) type Argument = argument::Argument<Vec<u8>>;

fn file(path: &Path) -> anyhow::Result<Vec<u8>> {
    let shown = path.display();
    let content = std::fs::read(path).with_context(|| format!("cannot read {shown}"))?;
    if content.is_empty() {
        anyhow::bail!("{shown} is empty: a buffer has at least one byte");
    }
    Ok(content)
}

/// The command line makes no sense.
#[derive(Debug)]
pub(crate) struct Misuse(String);

impl std::fmt::Display for Misuse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Misuse {}

/// Parses one argument, and reads the file that it names.
pub(crate) fn parse(text: &str) -> anyhow::Result<Argument> {
    let parsed = argument::Argument::parse(text)
        .map_err(|error| Misuse(format!("--arg {text}: {error}")))?;
    parsed.read(file)
}

/// Refuses a wrong number or size of arguments before anything runs.
pub(crate) fn fits(kernel: &Kernel, arguments: &[Argument]) -> Result<(), Misuse> {
    if arguments.len() != kernel.parameters.len() {
        return Err(Misuse(format!(
            "kernel '{}' has {} parameters, {} arguments were given",
            kernel.name,
            kernel.parameters.len(),
            arguments.len()
        )));
    }
    for (k, (a, p)) in arguments.iter().zip(&kernel.parameters).enumerate() {
        let size = a.size();
        if size != p.size as usize {
            return Err(Misuse(format!(
                "argument {k} has {size} bytes; parameter '{}' of kernel '{}' has {}",
                p.name, kernel.name, p.size
            )));
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

//! The machine's GPUs, for people.

use vgpu_mediator::control::Gpu;

use crate::figures::{self, bytes};

/// The headings of [`cells`].
pub(crate) const HEADINGS: [&str; 6] = ["GPU", "BUSY", "MEMORY", "HEAT", "POWER", "ECC"];

/// A GPU's figures; `-` for one that it does not give.
pub(crate) fn cells(gpu: &Gpu) -> [String; 6] {
    let name = match gpu.name.as_str() {
        "" => "does not answer",
        name => name,
    };
    let or_none = |cell: Option<String>| cell.unwrap_or_else(|| "-".to_owned());
    let watts = |milliwatts: u32| milliwatts / 1000;
    let memory = gpu.memory_used.zip(gpu.total_memory);
    let memory =
        memory.map(|(used, total)| format!("{} of {}", bytes(used as f64), bytes(total as f64)));
    let power = gpu.power_mw.map(|power| match gpu.power_limit_mw {
        Some(limit) => format!("{} W of {} W", watts(power), watts(limit)),
        None => format!("{} W", watts(power)),
    });
    [
        format!("{} {name}", gpu.index),
        or_none(gpu.busy_percent.map(|part| format!("{part} %"))),
        or_none(memory),
        or_none(gpu.temperature_c.map(|degrees| format!("{degrees} °C"))),
        or_none(power),
        // Those that were corrected have done no harm.
        or_none(gpu.ecc_uncorrected.map(|errors| errors.to_string())),
    ]
}

/// A line for each.
pub(crate) fn table(gpus: &[Gpu]) -> String {
    let mut lines = vec![HEADINGS.map(str::to_owned).to_vec()];
    lines.extend(gpus.iter().map(|gpu| cells(gpu).to_vec()));
    figures::table(&lines, 1)
}

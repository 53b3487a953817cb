//! Adding vectors.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use vgpu_protocol::op::{VECTOR_ADD_CHUNK, VectorAdd};

use super::Client;
use crate::data::{Data, Incoming, Outgoing};
use crate::error::{Cause, Result};

/// Bytes of one vector in a chunk.
#[allow(clippy::cast_possible_truncation, reason = "a small constant")]
const CHUNK_BYTES: usize = VECTOR_ADD_CHUNK as usize * size_of::<f32>();

/// What a vector add took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VectorAddReport {
    /// Elements added.
    pub elements: usize,
    /// From the call to its end.
    pub elapsed: Duration,
    /// Time the device worked, as the mediator's executor measured it.
    pub device_time: Duration,
}

impl Client {
    /// Writes `a[i] + b[i]` to `out[i]` for every `i`.
    ///
    /// The vectors travel from where they are to where the sum belongs: no copy of them is made
    /// here, whatever their length. There is no limit on the total time, only on the time in which
    /// nothing moves ([`Options::stall_timeout`](crate::Options::stall_timeout)).
    ///
    /// # Errors
    /// Vectors of different lengths; whatever the mediator answers. Then `out` holds a part of the
    /// sum, or none of it.
    pub fn vector_add(&mut self, a: &[f32], b: &[f32], out: &mut [f32]) -> Result<VectorAddReport> {
        self.vector_add_watched(a, b, out, |_| ())
    }

    /// Like [`vector_add`](Self::vector_add); `progress` receives how many elements are complete. While
    /// it runs, no other client of the session goes on.
    ///
    /// # Errors
    /// Those of [`vector_add`](Self::vector_add).
    pub fn vector_add_watched(
        &mut self,
        a: &[f32],
        b: &[f32],
        out: &mut [f32],
        mut progress: impl FnMut(usize),
    ) -> Result<VectorAddReport> {
        const DOING: &str = "vector add";
        let start = Instant::now();
        if a.len() != b.len() || a.len() != out.len() {
            let what = format!(
                "vectors of different lengths: a has {} elements, b {}, out {}",
                a.len(),
                b.len(),
                out.len()
            );
            return Err(self.error(DOING, Cause::Input(what)));
        }
        let mut report = VectorAddReport {
            elements: a.len(),
            elapsed: Duration::ZERO,
            device_time: Duration::ZERO,
        };
        let Some(elements) = NonZeroU64::new(a.len() as u64) else {
            return Ok(report);
        };
        let vectors = [bytemuck::cast_slice(a), bytemuck::cast_slice(b)];
        let mut in_elements = |bytes| progress(bytes / size_of::<f32>());
        let mut data = Data {
            up: Outgoing::interleaved(&vectors, CHUNK_BYTES),
            down: Incoming::new(bytemuck::cast_slice_mut(out), Some(&mut in_elements)),
        };
        let reply = self.request_with(DOING, VectorAdd { elements }, &mut data)?;
        report.elapsed = start.elapsed();
        report.device_time = Duration::from_nanos(reply.device_ns);
        Ok(report)
    }
}

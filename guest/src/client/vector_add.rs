//! The vector add of a [`Client`].

use std::time::{Duration, Instant};

use vgpu_protocol::frame::Flags;
use vgpu_protocol::message::{DataType, Features, Op, VectorAdd, VectorAddReply};

use super::Client;
use crate::error::{Cause, Result};
use crate::session::{Incoming, Outgoing, exchange_vectors};

/// Elements of a chunk where the mediator has no preference: 512 KiB of each vector.
const CHUNK_ELEMENTS: u32 = 128 << 10;

/// What a vector add took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VectorAddReport {
    /// Elements added.
    pub elements: usize,
    /// Elements of each chunk they travelled in.
    pub chunk_elements: usize,
    /// From the call to its end.
    pub elapsed: Duration,
    /// Time the device worked, as the mediator's executor measured it.
    pub device_time: Duration,
}

impl Client {
    /// Writes `a[i] + b[i]` to `out[i]` for every `i`.
    ///
    /// The vectors travel in chunks from where they are to where the sum belongs: no copy of them is
    /// made here, whatever their length. There is no limit on the total time, only on the time in
    /// which nothing moves ([`Options::stall_timeout`](crate::Options::stall_timeout)).
    ///
    /// # Errors
    /// Vectors of different lengths or longer than the mediator takes; whatever the mediator
    /// answers. Then `out` holds a part of the sum, or none of it.
    pub fn vector_add(&mut self, a: &[f32], b: &[f32], out: &mut [f32]) -> Result<VectorAddReport> {
        self.vector_add_watched(a, b, out, |_| ())
    }

    /// Like [`vector_add`](Self::vector_add); `progress` is told how many elements are complete.
    ///
    /// # Errors
    /// As [`vector_add`](Self::vector_add).
    pub fn vector_add_watched(
        &mut self,
        a: &[f32],
        b: &[f32],
        out: &mut [f32],
        mut progress: impl FnMut(usize),
    ) -> Result<VectorAddReport> {
        self.request("vector add", |client| {
            client.stream_vectors(a, b, out, &mut progress)
        })
    }

    fn stream_vectors(
        &mut self,
        a: &[f32],
        b: &[f32],
        out: &mut [f32],
        progress: &mut dyn FnMut(usize),
    ) -> std::result::Result<VectorAddReport, Cause> {
        let start = Instant::now();
        let add = self.plan_vector_add(a.len(), b.len(), out.len())?;
        let mut report = VectorAddReport {
            elements: a.len(),
            chunk_elements: add.chunk_elements as usize,
            elapsed: Duration::ZERO,
            device_time: Duration::ZERO,
        };
        if a.is_empty() {
            return Ok(report);
        }
        let handle = self.streams.mint().ok_or_else(|| {
            Cause::Input("no stream is free: the mediator allows none to this session".into())
        })?;
        let request = self
            .next_request(Op::VectorAdd)
            .with_flags(Flags::MORE)
            .with_handle(handle)
            .with_body_len(16)
            .with_deadline_ms(self.wire.deadline_ms());
        let (a, b) = (bytemuck::cast_slice(a), bytemuck::cast_slice(b));
        let out = bytemuck::cast_slice_mut(out);
        let mut outgoing = Outgoing::new(a, b, request, &add);
        let mut incoming = Incoming::new(out, request, &add);
        let reply = exchange_vectors(&mut self.wire, &mut outgoing, &mut incoming, &mut |bytes| {
            progress(bytes / size_of::<f32>());
        });
        self.streams.release(handle);
        let reply = VectorAddReply::decode(&reply?)?;
        if reply.elements != add.elements {
            return Err(Cause::Protocol(format!(
                "the mediator says it added {} elements of {}",
                reply.elements, add.elements
            )));
        }
        report.elapsed = start.elapsed();
        report.device_time = Duration::from_nanos(reply.device_ns);
        Ok(report)
    }

    fn plan_vector_add(
        &self,
        a: usize,
        b: usize,
        out: usize,
    ) -> std::result::Result<VectorAdd, Cause> {
        self.needs(Features::VECTOR_ADD_F32, Op::VectorAdd)?;
        if a != b || a != out {
            return Err(Cause::Input(format!(
                "vectors of different lengths: a has {a} elements, b {b}, out {out}"
            )));
        }
        let limits = &self.hello.limits;
        let elements = a as u64;
        if elements > limits.max_elements {
            return Err(Cause::Input(format!(
                "{elements} elements; this mediator takes at most {}",
                limits.max_elements
            )));
        }
        let wanted = match limits.preferred_chunk_elements {
            0 => CHUNK_ELEMENTS,
            preferred => preferred,
        };
        // A chunk of each of two vectors of 4-byte elements in one body.
        let chunk_elements = wanted
            .min(limits.max_chunk_elements)
            .min(limits.max_body / 8)
            .min(u32::try_from(elements.max(1)).unwrap_or(u32::MAX));
        if chunk_elements == 0 {
            return Err(Cause::Input("this mediator takes no vector data".into()));
        }
        Ok(VectorAdd {
            elements,
            chunk_elements,
            data_type: DataType::F32,
        })
    }
}

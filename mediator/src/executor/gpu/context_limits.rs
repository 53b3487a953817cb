//! Limits of stacks, heap and printed output. The driver takes memory of the device for them, so the quota counts all
//! beyond its own values.

use vgpu_protocol::op::{
    Body, ContextLimit, ContextLimitReply, ContextSetLimit, ContextSetLimitReply,
};
use vgpu_protocol::session::server::Failure;

use super::captures;
use super::device::{Answer, AnsweredOf, Call, Device, Limit};
use super::queue::Purpose;
use super::{Gpu, Refused, cuda_result};

/// `CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT`.
const MULTIPROCESSORS: usize = 16;
/// `CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR`.
const THREADS: usize = 39;

/// The limits of a session, by their numbers.
#[derive(Debug, Default)]
pub(super) struct ContextLimits([Known; 3]);

#[derive(Debug, Default)]
struct Known {
    /// The driver's own value, once it was asked.
    own: Option<u64>,
    /// Bytes of the quota that go beyond that.
    counted: u64,
}

fn named(number: u32) -> Result<Limit, Refused> {
    match number {
        0 => Ok(Limit::Stack),
        1 => Ok(Limit::Printed),
        2 => Ok(Limit::Heap),
        other => {
            let text = format!("limit {other} is not known");
            Err(captures::error(cuda_result::UNSUPPORTED_LIMIT, text))
        }
    }
}

impl<D: Device> Gpu<D> {
    pub(super) fn context_limit(
        &mut self,
        asked: &ContextLimit,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let bytes = self.limit_of(named(asked.limit)?)?;
        Ok(Some(ContextLimitReply { bytes }.encode()))
    }

    fn limit_of(&mut self, limit: Limit) -> Result<u64, Refused> {
        let bytes = self.device.limit(limit);
        bytes.map_err(|error| Failure::from(&error))
    }

    pub(super) fn context_set_limit(
        &mut self,
        id: u32,
        set: &ContextSetLimit,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let limit = named(set.limit)?;
        let own = match self.context_limits.0[limit as usize].own {
            Some(own) => own,
            None => self.limit_of(limit)?,
        };
        let known = &mut self.context_limits.0[limit as usize];
        known.own = Some(own);
        let before = known.counted;
        let taken = self.beyond(limit, set.bytes).saturating_sub(before);
        self.count(taken, "a larger limit")?;
        let purpose = Purpose::SetLimit { id, limit, taken };
        self.call(purpose, Call::SetLimit(limit, set.bytes));
        Ok(None)
    }

    /// Bytes of device memory that a limit takes beyond the driver's own value.
    fn beyond(&self, limit: Limit, bytes: u64) -> u64 {
        let own = self.context_limits.0[limit as usize].own.unwrap_or(0);
        let each = bytes.saturating_sub(own);
        let attributes = &self.device.description().attributes;
        let number = |at: usize| attributes.get(at).and_then(|n| u64::try_from(*n).ok());
        match limit {
            // One for each thread that can be on the device.
            Limit::Stack => [MULTIPROCESSORS, THREADS]
                .into_iter()
                .filter_map(number)
                .fold(each, |all, n| all.saturating_mul(n.max(1))),
            Limit::Printed | Limit::Heap => each,
        }
    }

    /// The driver has set a limit, or not; `taken` was counted for it.
    pub(super) fn limit_set(&mut self, id: u32, limit: Limit, taken: u64, answer: AnsweredOf<D>) {
        let Ok(Answer::Limit(bytes)) = answer else {
            self.quota.give(taken);
            return self.answer_failed(id, answer);
        };
        let wanted = self.beyond(limit, bytes);
        let known = &mut self.context_limits.0[limit as usize];
        let counted = known.counted + taken;
        known.counted = wanted;
        // The driver may have rounded it.
        match wanted.checked_sub(counted) {
            Some(more) => self.quota.take_all(more),
            None => self.quota.give(counted - wanted),
        }
        self.done(id, Ok(ContextSetLimitReply {}.encode()));
    }
}

//! Limits of stacks, heap and printed output.

use vgpu_protocol::op::{ContextLimit, ContextSetLimit};

use super::Device;
use crate::error::Result;

/// A limit of a context, in bytes (`CUlimit`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limit {
    /// The stack of each thread (`CU_LIMIT_STACK_SIZE`).
    StackSize,
    /// The buffer for printed output (`CU_LIMIT_PRINTF_FIFO_SIZE`). The mediator keeps as much until the guest takes it,
    /// 16 MiB at most where the device is a GPU.
    PrintfFifoSize,
    /// The heap of `malloc` in kernels (`CU_LIMIT_MALLOC_HEAP_SIZE`).
    MallocHeapSize,
}

impl Limit {
    fn number(self) -> u32 {
        match self {
            Self::StackSize => 0,
            Self::PrintfFifoSize => 1,
            Self::MallocHeapSize => 2,
        }
    }
}

impl Device {
    /// The value of a limit, in bytes (`cuCtxGetLimit`).
    ///
    /// # Errors
    /// The session failed.
    pub fn limit(&self, limit: Limit) -> Result<u64> {
        let limit = limit.number();
        let reply = self.ask("ask for a limit", ContextLimit { limit })?;
        Ok(reply.bytes)
    }

    /// Sets a limit, in bytes, for all kernels of the session that are launched later (`cuCtxSetLimit`). The device may round
    /// it up. Device memory beyond that for the driver's own value counts as memory of the session: a stack as
    /// often as there can be threads on the device.
    ///
    /// # Errors
    /// It is more than the session may have ([`ErrorCode::QuotaMemory`]); the device does not take it
    /// (`CUDA_ERROR_INVALID_VALUE`), as a heap's once a kernel with `malloc` was launched, and with a GPU that of printed
    /// output once a kernel that prints was; the session failed.
    ///
    /// [`ErrorCode::QuotaMemory`]: vgpu_protocol::status::ErrorCode::QuotaMemory
    pub fn set_limit(&self, limit: Limit, bytes: u64) -> Result<()> {
        let limit = limit.number();
        self.ask("set a limit", ContextSetLimit { limit, bytes })?;
        Ok(())
    }
}

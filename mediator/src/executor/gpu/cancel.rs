//! Kernels that nobody wants any more.

use std::collections::BTreeSet;

use vgpu_protocol::op::{Body, StreamCancel, StreamCancelReply};
use vgpu_protocol::session::server::Failure;
use vgpu_protocol::status::ErrorCode;

use super::device::{Device, DeviceError};
use super::{Gpu, Refused};

/// The end of a kernel that was cancelled before the device had it.
pub(super) fn cancelled() -> DeviceError {
    let code = ErrorCode::Cancelled.to_raw();
    DeviceError::new(code, "the kernel was cancelled before it began")
}

impl<D: Device> Gpu<D> {
    /// Ends the kernels that were sent to a stream; each is reported as one that has failed. Those that the device has
    /// and cannot end run on: that is an error where nothing else was there to end.
    pub(super) fn stream_cancel(
        &mut self,
        cancel: &StreamCancel,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let stream = self.live(cancel.stream)?;
        self.take_done();
        self.sound()?;
        let here = self
            .queue
            .values()
            .filter(|queued| queued.stream() == stream);
        // Branches of a graph are in other streams; the launch's own waits for them.
        let graphs: BTreeSet<u32> = here.filter_map(|queued| queued.graph()).collect();
        let kernels: Vec<u64> = (self.queue.iter())
            .filter(|(_, queued)| {
                let of_graph = queued.graph().is_some_and(|id| graphs.contains(&id));
                queued.kernel().is_some() && (queued.stream() == stream || of_graph)
            })
            .map(|(tag, _)| *tag)
            .collect();
        // The last one first: with the end of one before it, it could run before it is ended itself. So what waits for
        // its turn, or for the queue to have room, comes before what the device has.
        let mut ended = self.withdraw_launch(stream);
        if let Some(held) = self.held.take_if(|held| held.is_kernel_in(stream)) {
            self.turns.forget();
            ended += 1;
            self.done(held.id, Err(Failure::from(&cancelled())));
        }
        let mut runs_on = None;
        for tag in kernels.into_iter().rev() {
            match self.device.cancel(tag) {
                Ok(found) => ended += u32::from(found),
                Err(error) => runs_on = Some(error),
            }
        }
        match runs_on {
            Some(error) if ended == 0 => Err(Failure::from(&error)),
            _ => Ok(Some(StreamCancelReply { kernels: ended }.encode())),
        }
    }
}

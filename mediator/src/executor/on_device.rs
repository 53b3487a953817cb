//! An executor is a device, and what a session may have of it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use vgpu_protocol::frame::FrameHeader;
use vgpu_protocol::op::{Features, FenceReply, Request};

use super::gpu::Gpu;
use super::gpu::device::Device;
use super::{Executor, ExecutorError, ExecutorInfo, Limits, unsupported};
use crate::compile::Compile;
use crate::policy::Share;
use crate::session::backend::{Also, Backend, Event};
use crate::usage::Load;
use crate::worker::turns::Turns;

/// Source of an executor's device.
pub(super) trait Open: Send {
    /// The device that it opens.
    type Device: Device;

    /// Whether it hands over what kernels print.
    fn prints(&self) -> bool;

    /// Opens it for a session that may have so much.
    ///
    /// # Errors
    /// It cannot be opened.
    fn open(&self, info: &ExecutorInfo, limits: &Limits) -> Result<Self::Device, ExecutorError>;
}

/// Runs a guest's work on a device, which is opened with the first request that is for it.
#[allow(private_bounds, reason = "devices are made in this module alone")]
pub struct OnDevice<O: Open> {
    pub(super) info: ExecutorInfo,
    pub(super) limits: Limits,
    turns: Arc<Turns>,
    compiler: Option<Arc<dyn Compile>>,
    /// Present from the first request on that is for it. Dropped before what it came from.
    pub(super) gpu: Option<Gpu<O::Device>>,
    /// Of requests that never came to the device.
    refused: VecDeque<Event>,
    pub(super) open: O,
}

impl<O: Open> fmt::Debug for OnDevice<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnDevice")
            .field("info", &self.info)
            .field("gpu", &self.gpu)
            .finish_non_exhaustive()
    }
}

#[allow(private_bounds, reason = "devices are made in this module alone")]
impl<O: Open> OnDevice<O> {
    pub(super) fn from(open: O, info: ExecutorInfo, limits: Limits) -> Self {
        Self {
            info,
            limits,
            turns: Arc::default(),
            compiler: None,
            gpu: None,
            refused: VecDeque::new(),
            open,
        }
    }

    fn gpu(&mut self) -> Result<&mut Gpu<O::Device>, ExecutorError> {
        if self.gpu.is_none() {
            let device = self.open.open(&self.info, &self.limits)?;
            let mut gpu = Gpu::new(device, self.limits, &self.turns);
            gpu.set_compiler(self.compiler.clone());
            self.gpu = Some(gpu);
        }
        Ok(self.gpu.as_mut().expect("just put there"))
    }

    fn refuse(&mut self, id: u32, error: &ExecutorError) {
        self.refused.push_back(Event::Done(id, Err(error.into())));
        if error.ends_session() {
            self.refused.push_back(Event::Lost(error.into()));
        }
    }
}

impl<O: Open> Executor for OnDevice<O> {
    fn info(&self) -> &ExecutorInfo {
        &self.info
    }

    fn features(&self) -> Features {
        match self.open.prints() {
            true => Features::ALL,
            false => Features(Features::ALL.0 & !Features::PRINTED.0),
        }
    }

    fn set_share(&mut self, share: Share) {
        self.limits.take(share);
    }

    fn set_turns(&mut self, turns: &Arc<Turns>) {
        self.turns = Arc::clone(turns);
    }

    fn set_compiler(&mut self, compiler: Arc<dyn Compile>) {
        self.compiler = Some(compiler);
    }

    fn take_failures(&mut self) -> FenceReply {
        let gpu = self.gpu.as_mut();
        gpu.map(Gpu::take_failures).unwrap_or_default()
    }
}

impl<O: Open> Backend for OnDevice<O> {
    fn start(&mut self, header: &FrameHeader, request: Request) {
        let started = self.gpu().map(|gpu| gpu.start(header, request));
        let refused = match started {
            Ok(Ok(())) => return,
            Ok(Err(request)) => unsupported(&self.info, request.op()),
            Err(error) => error,
        };
        self.refuse(header.request_id, &refused);
    }

    fn input(&mut self, id: u32) -> &mut [u8] {
        let gpu = self.gpu.as_mut();
        gpu.map(|gpu| gpu.input(id)).unwrap_or_default()
    }

    fn filled(&mut self, id: u32, n: usize) {
        if let Some(gpu) = &mut self.gpu {
            gpu.filled(id, n);
        }
    }

    fn output(&mut self, id: u32) -> &[u8] {
        let gpu = self.gpu.as_mut();
        gpu.map_or(&[], |gpu| gpu.output(id))
    }

    fn sent(&mut self, id: u32, n: usize) {
        if let Some(gpu) = &mut self.gpu {
            gpu.sent(id, n);
        }
    }

    fn cancel(&mut self, id: u32) {
        if let Some(gpu) = &mut self.gpu {
            gpu.cancel(id);
        }
        self.refused.retain(|event| event.request() != Some(id));
    }

    fn may_start(&self) -> bool {
        self.gpu.as_ref().is_none_or(Gpu::may_start)
    }

    fn load(&self) -> Load {
        let memory_limit = self.limits.memory;
        let gpu = self.gpu.as_ref().map(Gpu::standing);
        gpu.unwrap_or(Load {
            memory_limit,
            ..Load::default()
        })
    }

    fn next_event(&mut self) -> Option<Event> {
        let refused = self.refused.pop_front();
        refused.or_else(|| self.gpu.as_mut()?.next_event())
    }

    fn also(&mut self) -> Also<'_> {
        if let Some(gpu) = &mut self.gpu {
            gpu.before_wait();
        }
        match self.gpu.as_ref().and_then(Gpu::awaited) {
            Some(waker) => Also::Waker(waker),
            None => Also::Nothing,
        }
    }

    fn due(&self) -> Option<Instant> {
        self.gpu.as_ref()?;
        self.turns.due()
    }
}

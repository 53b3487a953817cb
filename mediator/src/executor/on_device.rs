//! An executor is a device, and what a session may have of it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use vchan::region::Regions;
use vgpu_protocol::frame::FrameHeader;
use vgpu_protocol::op::field::Bytes;
use vgpu_protocol::op::{Body, DeviceInfoReply, DeviceSelectReply, Features, FenceReply, Request};
use vgpu_protocol::session::server::Failure;

use super::gpu::Gpu;
use super::gpu::device::{Description, Device, DeviceError};
use super::gpu::quota::OfGuest;
use super::{Executor, ExecutorError, ExecutorInfo, Limits, cuda_result, unsupported};
use crate::compile::Compile;
use crate::devices;
use crate::guest_memory::GuestMemory;
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

    /// Whether what is open still works, before it is used.
    ///
    /// # Errors
    /// It does not.
    fn check(&self) -> Result<(), ExecutorError>;

    /// From now on [`open`](Self::open) opens this device, which is one of the executor's.
    ///
    /// # Errors
    /// It cannot be used, and what was open is as it was.
    fn select(&mut self, device: &devices::Device) -> Result<(), ExecutorError>;
}

/// Runs a guest's work on a device, which is opened with the first request that is for it.
#[allow(private_bounds, reason = "devices are made in this module alone")]
pub struct OnDevice<O: Open> {
    pub(super) info: ExecutorInfo,
    /// The properties of each of its devices.
    descriptions: Vec<Description>,
    /// Which of them the session uses.
    selected: u32,
    /// There was a request that is about the one it uses.
    in_use: bool,
    /// Bytes of memory that the session may have of any of them.
    most_memory: u64,
    pub(super) limits: Limits,
    /// Bytes that its guest may have in all its sessions.
    most_of_guest: u64,
    of_guest: Option<OfGuest>,
    turns: Arc<Turns>,
    regions: Option<Regions>,
    compiler: Option<Arc<dyn Compile>>,
    /// Present from the first request on that is for it. Dropped before what it came from.
    pub(super) gpu: Option<Gpu<O::Device>>,
    /// Of requests that never came to the device.
    answered: VecDeque<Event>,
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
    /// `limits` are those of the first of the devices that `descriptions` describe.
    pub(super) fn from(
        open: O,
        info: ExecutorInfo,
        descriptions: Vec<Description>,
        limits: Limits,
    ) -> Self {
        Self {
            info,
            descriptions,
            selected: 0,
            in_use: false,
            most_memory: u64::MAX,
            limits,
            most_of_guest: u64::MAX,
            of_guest: None,
            turns: Arc::default(),
            regions: None,
            compiler: None,
            gpu: None,
            answered: VecDeque::new(),
            open,
        }
    }

    /// The requests so far belonged to no session: it begins with the next one.
    pub(super) fn forget_use(&mut self) {
        self.gpu = None;
        self.in_use = false;
    }

    /// The description of a device of the session.
    fn description(&self, device: u32) -> Result<&Description, Failure> {
        let description = self.descriptions.get(device as usize);
        description.ok_or_else(|| {
            let text = format!("there is no device {device}");
            Failure::from(&DeviceError::new(cuda_result::INVALID_DEVICE, text))
        })
    }

    fn device_info(&self, device: u32) -> Result<Vec<u8>, Failure> {
        let description = self.description(device)?;
        let mut reply = DeviceInfoReply {
            devices: u32::try_from(self.descriptions.len()).unwrap_or(u32::MAX),
            total_memory: description.total_memory.min(self.most_memory),
            driver_version: description.driver_version,
            uuid: Bytes::new(&description.uuid).expect("16 bytes"),
            name: description.name.as_str().into(),
            attributes: Default::default(),
        };
        for value in &description.attributes {
            if reply.attributes.push(*value).is_err() {
                break;
            }
        }
        Ok(reply.encode())
    }

    fn select(&mut self, device: u32) -> Result<Vec<u8>, Failure> {
        let memory = self.description(device)?.total_memory;
        if self.in_use {
            let text = format!("device {} is in use already", self.selected);
            let error = DeviceError::new(cuda_result::PRIMARY_CONTEXT_ACTIVE, text);
            return Err(Failure::from(&error));
        }
        if device != self.selected
            && let Some(wanted) = self.info.devices.get(device as usize)
        {
            self.open
                .select(wanted)
                .map_err(|error| Failure::from(&error))?;
            self.limits.memory = memory.min(self.most_memory);
            self.turns.select(device);
            self.selected = device;
            self.info.device.clone_from(&wanted.name);
            self.info.total_memory = wanted.total_memory;
            self.answered.push_back(Event::Uses(device));
        }
        Ok(DeviceSelectReply {}.encode())
    }

    fn gpu(&mut self) -> Result<&mut Gpu<O::Device>, ExecutorError> {
        if self.gpu.is_none() {
            let device = self.open.open(&self.info, &self.limits)?;
            let mut gpu = Gpu::new(device, self.limits, self.of_guest.clone(), &self.turns);
            gpu.set_compiler(self.compiler.clone());
            gpu.set_regions(self.regions.clone());
            self.gpu = Some(gpu);
        }
        Ok(self.gpu.as_mut().expect("just put there"))
    }

    fn refuse(&mut self, id: u32, error: &ExecutorError) {
        self.answered.push_back(Event::Done(id, Err(error.into())));
        if error.ends_session() {
            self.answered.push_back(Event::Lost(Box::new(error.into())));
        }
    }
}

impl<O: Open> Executor for OnDevice<O> {
    fn info(&self) -> &ExecutorInfo {
        &self.info
    }

    fn features(&self) -> Features {
        let mut features = Features::ALL;
        if !self.open.prints() {
            features = features.without(Features::PRINTED);
        }
        if self.regions.is_none() || self.limits.pinned == 0 {
            features = features.without(Features::REGIONS);
        }
        features
    }

    fn set_share(&mut self, share: Share) {
        self.limits.take(share);
        if let Some(mib) = share.memory_mib {
            self.most_of_guest = u64::from(mib) << 20;
            self.most_memory = self.most_memory.min(self.most_of_guest);
        }
    }

    fn set_guest_memory(&mut self, sessions: Arc<GuestMemory>) {
        let most = self.most_of_guest;
        self.of_guest = Some(OfGuest { sessions, most });
    }

    fn set_regions(&mut self, regions: Regions) {
        self.regions = Some(regions);
    }

    fn set_turns(&mut self, turns: &Arc<Turns>) {
        self.turns = Arc::clone(turns);
    }

    fn set_compiler(&mut self, compiler: Arc<dyn Compile>) {
        self.compiler = Some(compiler);
    }

    fn check(&mut self) -> Result<(), ExecutorError> {
        self.open.check()
    }

    fn take_failures(&mut self) -> FenceReply {
        let gpu = self.gpu.as_mut();
        gpu.map(Gpu::take_failures).unwrap_or_default()
    }
}

impl<O: Open> Backend for OnDevice<O> {
    fn start(&mut self, header: &FrameHeader, request: Request) {
        let id = header.request_id;
        let answer = match &request {
            Request::DeviceInfo(info) => Some(self.device_info(info.device)),
            Request::DeviceSelect(select) => Some(self.select(select.device)),
            _ => None,
        };
        if let Some(answer) = answer {
            return self.answered.push_back(Event::Done(id, answer));
        }
        self.in_use = true;
        let started = self.gpu().map(|gpu| gpu.start(header, request));
        let refused = match started {
            Ok(Ok(())) => return,
            Ok(Err(request)) => unsupported(&self.info, request.op()),
            Err(error) => error,
        };
        self.refuse(id, &refused);
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
        self.answered.retain(|event| event.request() != Some(id));
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
        let answered = self.answered.pop_front();
        answered.or_else(|| self.gpu.as_mut()?.next_event())
    }

    fn also(&mut self) -> Also<'_> {
        match self.gpu.as_mut().and_then(Gpu::awaited) {
            Some(awaited) => Also::Awaited(awaited),
            None => Also::Nothing,
        }
    }

    fn due(&self) -> Option<Instant> {
        self.gpu.as_ref()?;
        self.turns.due()
    }
}

//! Launches.

use std::time::Duration;

use bytemuck::Pod;
use vgpu_protocol::op::field::{Bytes, List};
use vgpu_protocol::op::{Launch, LaunchAttribute, MAX_LAUNCH_ATTRIBUTES};

use super::{
    Device, DeviceBuffer, DevicePtr, DeviceRows, DeviceSlice, DeviceSliceMut, Function,
    PitchedBuffer, PitchedSlice, PitchedSliceMut, explained,
};
use crate::attributes::{
    CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X as MAX_BLOCK_DIM,
    CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X as MAX_GRID_DIM,
    CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK as MAX_THREADS,
    CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES as FIXED_SHARED,
};
use crate::error::{Error, Result};

/// How many blocks of how many threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaunchConfig {
    /// Blocks of the grid: x, y, z.
    pub grid_dim: (u32, u32, u32),
    /// Threads of a block: x, y, z.
    pub block_dim: (u32, u32, u32),
    /// Dynamic shared memory of a block, in bytes.
    pub shared_mem_bytes: u32,
}

impl LaunchConfig {
    /// A thread for each of `n` elements, and some more: blocks of 1024.
    pub fn for_num_elems(n: u32) -> Self {
        Self {
            grid_dim: (n.div_ceil(1024).max(1), 1, 1),
            block_dim: (1024, 1, 1),
            shared_mem_bytes: 0,
        }
    }
}

/// An argument of a kernel: a value of any plain type, or memory, which is passed by its address.
pub trait KernelArg {
    /// Appends the bytes of the parameter.
    fn write(&self, parameters: &mut Vec<u8>);

    /// The device that owns the memory, if the argument names memory.
    fn device(&self) -> Option<&Device> {
        None
    }

    /// A kernel in the stream of `device` may use the memory from here on.
    ///
    /// # Errors
    /// Why no kernel can.
    fn is_used_by(&self, device: &Device) -> std::result::Result<(), &'static str> {
        let _ = device;
        Ok(())
    }
}

impl<T: Pod> KernelArg for T {
    fn write(&self, parameters: &mut Vec<u8>) {
        parameters.extend_from_slice(bytemuck::bytes_of(self));
    }
}

macro_rules! memory {
    ($($memory:ty as $way:ident),*) => {$(
        impl<T: Pod> KernelArg for $memory {
            fn write(&self, parameters: &mut Vec<u8>) {
                parameters.extend_from_slice(&self.address().to_le_bytes());
            }

            fn device(&self) -> Option<&Device> {
                Some($way::device(self))
            }
        }
    )*};
}

memory!(
    DeviceBuffer<T> as DevicePtr,
    DeviceSlice<'_, T> as DevicePtr,
    DeviceSliceMut<'_, T> as DevicePtr,
    PitchedBuffer<T> as DeviceRows,
    PitchedSlice<'_, T> as DeviceRows,
    PitchedSliceMut<'_, T> as DeviceRows
);

/// A launch that is being put together. Before anything is sent, number and sizes of the arguments and whose memory it is
/// are checked, and grid, block and shared memory against the limits of the kernel and the device.
#[derive(Debug)]
#[must_use = "nothing runs before `launch`"]
pub struct LaunchBuilder<'l> {
    device: &'l Device,
    function: &'l Function,
    parameters: Vec<u8>,
    given: usize,
    attributes: List<LaunchAttribute, MAX_LAUNCH_ATTRIBUTES>,
    deadline: Duration,
    wrong: Option<Error>,
    /// What the device refuses is sent, in tests of that.
    beyond_limits: bool,
}

const DOING: &str = "launch";

impl Device {
    /// Begins a launch of `function`.
    pub fn launch_builder<'l>(&'l self, function: &'l Function) -> LaunchBuilder<'l> {
        LaunchBuilder {
            device: self,
            function,
            parameters: Vec::with_capacity(function.parameter_bytes()),
            given: 0,
            attributes: List::default(),
            deadline: Duration::ZERO,
            wrong: self.check_session(DOING, function.device()).err(),
            beyond_limits: false,
        }
    }
}

impl LaunchBuilder<'_> {
    /// The next argument. Its bytes are taken now.
    pub fn arg(mut self, argument: &impl KernelArg) -> Self {
        let mut bytes = Vec::new();
        argument.write(&mut bytes);
        if let Some(of) = argument.device()
            && let Err(error) = self.device.check_session(DOING, of)
        {
            self.wrong.get_or_insert(error);
        }
        if let Err(why) = argument.is_used_by(self.device) {
            let what = format!("argument {}: {why}", self.given);
            self.wrong
                .get_or_insert_with(|| self.device.wrong(DOING, what));
        }
        self.arg_bytes(&bytes)
    }

    /// The next argument, by its bytes: of a parameter of any type.
    pub fn arg_bytes(mut self, bytes: &[u8]) -> Self {
        let k = self.given;
        self.given += 1;
        // Surplus arguments are reported later, by their number.
        let Some(place) = self.function.parameters().get(k) else {
            return self;
        };
        let (offset, size) = (place.offset as usize, place.size as usize);
        if bytes.len() != size {
            let what = format!(
                "argument {k} has {} bytes; parameter {k} of kernel '{}' has {size}",
                bytes.len(),
                self.function.name()
            );
            let wrong = self.device.wrong(DOING, what);
            self.wrong.get_or_insert(wrong);
            return self;
        }
        let end = offset + size;
        if self.parameters.len() < end {
            self.parameters.resize(end, 0);
        }
        self.parameters[offset..end].copy_from_slice(bytes);
        self
    }

    /// The longest time that the kernel may run, if that is less than the mediator allows. One that runs longer
    /// ends the context (`CUDA_ERROR_LAUNCH_TIMEOUT`).
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Runs all blocks at once, so that they may wait for each other (`cuLaunchCooperativeKernel`). A grid that the device
    /// has no room for is refused (`CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE`).
    pub fn cooperative(self) -> Self {
        self.words(LaunchAttribute::COOPERATIVE, [1, 0, 0])
    }

    /// Runs the blocks in clusters of so many in x, y and z, on a device of compute capability 9.0 and more; others refuse
    /// clusters of more than one block (`CUDA_ERROR_INVALID_CLUSTER_SIZE`).
    pub fn cluster(self, blocks: [u32; 3]) -> Self {
        self.words(LaunchAttribute::CLUSTER_DIMENSION, blocks)
    }

    fn words(self, id: u32, words: [u32; 3]) -> Self {
        let bytes = words.map(u32::to_le_bytes);
        self.attribute(LaunchAttribute::new(id, bytes.as_flattened()).expect("12 of 64 bytes"))
    }

    /// Launches with this `CUlaunchAttribute`, as `cuLaunchKernelEx` does; of those with one id the last counts. At most
    /// [`MAX_LAUNCH_ATTRIBUTES`], and the mediator refuses those whose value names an event or a node of a graph
    /// ([`ErrorCode::Unsupported`]).
    ///
    /// [`ErrorCode::Unsupported`]: vgpu_protocol::status::ErrorCode::Unsupported
    pub fn attribute(mut self, attribute: LaunchAttribute) -> Self {
        let mut known = self.attributes.as_slice().iter();
        let same = known.position(|known| known.id == attribute.id);
        if let Some(same) = same.and_then(|at| self.attributes.get_mut(at)) {
            *same = attribute;
        } else if self.attributes.push(attribute).is_err() {
            let what = format!("more than {MAX_LAUNCH_ATTRIBUTES} attributes");
            self.wrong
                .get_or_insert_with(|| self.device.wrong(DOING, what));
        }
        self
    }

    /// Leaves the limits of the device to the device.
    pub(crate) fn beyond_limits(mut self) -> Self {
        self.beyond_limits = true;
        self
    }

    /// Launches it and does not wait. A later failure is the error of the next
    /// [`synchronize`](Device::synchronize) or copy from the device.
    ///
    /// # Errors
    /// Arguments that do not fit the kernel, or a configuration beyond the limits, before anything is sent; the session
    /// failed.
    pub fn launch(self, config: LaunchConfig) -> Result<()> {
        let device = self.device;
        let launch = self.check(config)?;
        device.send(DOING, launch)
    }

    /// Launches it and waits until the device has it in its queue: what is wrong with the launch itself is
    /// the error of this call, with the device's words.
    ///
    /// # Errors
    /// Those of [`launch`](Self::launch); the device does not take it.
    pub fn launch_checked(self, config: LaunchConfig) -> Result<()> {
        let device = self.device;
        let launch = self.check(config)?;
        let mut client = device.client()?;
        let reply = client.request_noted(DOING, launch);
        explained(&mut client, reply).map(drop)
    }

    fn check(mut self, config: LaunchConfig) -> Result<Launch> {
        if let Some(wrong) = self.wrong {
            return Err(wrong);
        }
        let (device, function) = (self.device, self.function);
        let wrong = |what: String| Err(device.wrong(DOING, what));
        let wanted = function.parameters().len();
        if self.given != wanted {
            return wrong(format!(
                "kernel '{}' has {wanted} parameters, {} arguments were given",
                function.name(),
                self.given
            ));
        }
        let triple = |(x, y, z)| [x, y, z];
        let (grid, block) = (triple(config.grid_dim), triple(config.block_dim));
        if grid.contains(&0) || block.contains(&0) {
            return wrong(format!("a grid of {grid:?} blocks of {block:?} threads"));
        }
        if !self.beyond_limits
            && let Some(what) = self.beyond(grid, block, config.shared_mem_bytes)
        {
            return wrong(what);
        }
        // Behind the last parameter there may be bytes that are nobody's.
        self.parameters.resize(function.parameter_bytes(), 0);
        let parameters = Bytes::new(&self.parameters).expect("no more than the mediator told");
        let ms = self.deadline.as_nanos().div_ceil(1_000_000);
        Ok(Launch {
            module: function.handle(),
            function: function.number(),
            grid,
            block,
            shared_bytes: config.shared_mem_bytes,
            stream: device.stream_ref(),
            deadline_ms: u32::try_from(ms).unwrap_or(u32::MAX),
            parameters,
            attributes: self.attributes,
        })
    }

    /// The limit that a launch goes beyond, if there is one.
    fn beyond(&self, grid: [u32; 3], block: [u32; 3], shared: u32) -> Option<String> {
        let (device, function) = (self.device, self.function);
        let name = function.name();
        let limit = |value: Option<i32>| value.and_then(|most| u32::try_from(most).ok());
        let threads: u64 = block.iter().map(|n| u64::from(*n)).product();
        let most = limit(function.attribute(MAX_THREADS)).unwrap_or(1024);
        if threads > u64::from(most) {
            return Some(format!(
                "a block of {threads} threads; kernel '{name}' allows {most}"
            ));
        }
        // Of y and z they follow.
        for (what, first, sizes) in [
            ("a grid of", MAX_GRID_DIM, grid),
            ("a block of", MAX_BLOCK_DIM, block),
        ] {
            for ((axis, size), number) in ["x", "y", "z"].iter().zip(sizes).zip(first..) {
                if let Some(most) = limit(device.attribute(number))
                    && size > most
                {
                    return Some(format!(
                        "{what} {sizes:?}; the device allows {most} in {axis}"
                    ));
                }
            }
        }
        if shared == 0 {
            return None;
        }
        let most = function.most_dynamic_shared()?;
        let fixed = limit(function.attribute(FIXED_SHARED)).unwrap_or(0);
        (shared > most).then(|| {
            format!(
                "{shared} bytes of dynamic shared memory; kernel '{name}', which has {fixed} of its own, allows {most} \
                 (CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)"
            )
        })
    }
}

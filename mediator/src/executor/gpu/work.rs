//! Work without data of the guest's own: kernels, copies within the device, fills. Its addresses and handles are
//! checked each time that it is about to be done, also where a graph has recorded it.

use vgpu_protocol::frame::within;
use vgpu_protocol::op::field::StreamRef;
use vgpu_protocol::op::{FillRange, FillRows, Launch as LaunchRequest, Op};

use std::num::NonZeroU64;

use super::action::Action;
use super::captures::Place;
use super::device::{Device, Launch, Rows, Work, WorkOf};
use super::modules::Kernel;
use super::{Gpu, Refused, invalid, launch_attributes};

impl<D: Device> Gpu<D> {
    /// Has a stream do work, or its capture record it.
    pub(super) fn act(
        &mut self,
        id: u32,
        op: Op,
        stream: StreamRef,
        action: Result<Action, Refused>,
    ) -> Result<Option<Vec<u8>>, Refused> {
        match self.place(stream)? {
            Place::Stream(key) => {
                let work = self.work(action?)?;
                self.submit_in_turn(id, op, key, work, Self::answer(op))
            }
            Place::Capture(member) => {
                self.capture(member, action)?;
                Ok(Some(Self::answer(op)))
            }
        }
    }

    pub(super) fn fill_range(fill: &FillRange) -> Action {
        let size = u64::from(fill.element_bytes);
        Action::Fill {
            to: Rows::range(fill.to, fill.count.get().saturating_mul(size)),
            value: fill.value,
            element_bytes: fill.element_bytes,
        }
    }

    pub(super) fn fill_rows(&self, fill: &FillRows) -> Result<Action, Refused> {
        let size = NonZeroU64::new(fill.element_bytes.into()).unwrap_or(NonZeroU64::MIN);
        let width = fill.width.saturating_mul(size);
        Ok(Action::Fill {
            to: self.rows(fill.to, fill.pitch, width, fill.height)?,
            value: fill.value,
            element_bytes: fill.element_bytes,
        })
    }

    /// Whether work is sound now: its kernel is loaded, its parameters have the right size, its memory is the session's.
    ///
    /// # Errors
    /// CUDA's, in words.
    pub(super) fn check(&mut self, action: &Action) -> Result<(), Refused> {
        match action {
            Action::Launch(launch) => self.kernel_of(launch).map(drop),
            Action::Copy { to, from } => {
                self.ranges.check_rows(*to).map_err(invalid)?;
                self.ranges.check_rows(*from).map_err(invalid)
            }
            Action::Fill {
                to, element_bytes, ..
            } => {
                let size = u64::from(*element_bytes);
                let (address, pitch) = (to.address, to.pitch);
                if !address.is_multiple_of(size) || !pitch.is_multiple_of(size) {
                    return Err(invalid(format!(
                        "elements of {size} bytes at {address:#x}, every {pitch} bytes, which are no multiples of that"
                    )));
                }
                self.ranges.check_rows(*to).map_err(invalid)
            }
        }
    }

    /// The work for the device, checked.
    ///
    /// # Errors
    /// Those of [`check`](Self::check).
    pub(super) fn work(&mut self, action: Action) -> Result<WorkOf<D>, Refused> {
        if !matches!(action, Action::Launch(_)) {
            self.check(&action)?;
        }
        Ok(match action {
            Action::Launch(launch) => {
                let deadline = within(self.limits.kernel_time, launch.deadline_ms);
                Work::Launch(Launch {
                    function: self.kernel_of(&launch)?.function(),
                    grid: launch.grid,
                    block: launch.block,
                    shared_bytes: launch.shared_bytes,
                    parameters: launch.parameters.into(),
                    attributes: launch.attributes.into(),
                    deadline,
                })
            }
            Action::Copy { to, from } => Work::Copy { to, from },
            Action::Fill {
                to,
                value,
                element_bytes,
            } => Work::Fill {
                to,
                value,
                element_bytes,
            },
        })
    }

    /// The kernel that a launch names, with as many bytes of parameters as it has, and attributes that it may have.
    fn kernel_of(&mut self, launch: &LaunchRequest) -> Result<&Kernel<D::Function>, Refused> {
        for attribute in launch.attributes.as_slice() {
            launch_attributes::check(attribute, &self.ranges)?;
        }
        let kernel = self.modules.kernel(launch.module, launch.function)?;
        let given = launch.parameters.as_slice().len();
        let wanted = kernel.parameter_bytes();
        if given != wanted as usize {
            return Err(invalid(format!(
                "{given} bytes of parameters, where kernel {} has {wanted}",
                kernel.name()
            )));
        }
        Ok(kernel)
    }
}

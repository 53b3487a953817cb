//! Sessions that several cases use one after the other.

use crate::client::{Client, Device, Module};

use super::{Ground, Run, at, check, goodbye, gpu};

/// The sessions at hand. One in which a case has failed is not used again.
#[derive(Default)]
pub(super) struct Shared {
    client: Option<Client>,
    device: Option<OnDevice>,
}

struct OnDevice {
    device: Device,
    kernels: Module,
    /// Bytes of device memory in use before the first case.
    memory: u64,
}

impl Shared {
    /// Runs one case.
    pub(super) fn run(&mut self, ground: &Ground<'_>, run: Run) -> Result<(), String> {
        match run {
            Run::Alone(run) => run(ground),
            Run::InSession(run) => {
                let mut client = match self.client.take() {
                    Some(client) => client,
                    None => ground.connect()?,
                };
                run(&mut client)?;
                self.client = Some(client);
                Ok(())
            }
            Run::OnDevice(run) => {
                let session = match self.device.take() {
                    Some(session) => session,
                    None => OnDevice::open(ground)?,
                };
                run(&session.device, &session.kernels)?;
                session.is_as_before()?;
                self.device = Some(session);
                Ok(())
            }
        }
    }

    /// Ends the sessions at hand.
    pub(super) fn end(&mut self) -> Result<(), String> {
        self.client.take().map_or(Ok(()), goodbye)?;
        let device = self.device.take();
        device.map_or(Ok(()), |session| gpu::end(session.device))
    }
}

impl OnDevice {
    fn open(ground: &Ground<'_>) -> Result<Self, String> {
        let (device, kernels) = gpu::open_with_kernels(ground)?;
        let memory = device.statistics().map_err(at("statistics"))?.memory;
        Ok(Self {
            device,
            kernels,
            memory,
        })
    }

    /// A case leaves nothing behind: all that it dropped is given back, and nothing is under way.
    fn is_as_before(&self) -> Result<(), String> {
        self.device.synchronize().map_err(at("after the case"))?;
        let left = self.device.statistics().map_err(at("statistics"))?;
        // The request that asks counts.
        check(left.memory == self.memory && left.queue == 1, || {
            format!(
                "the case has left {} bytes in use where there were {}, and a queue of {}",
                left.memory, self.memory, left.queue
            )
        })
    }
}

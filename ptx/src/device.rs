//! A device: its memory, the modules on it, and its streams.

use std::sync::{Arc, mpsc};

use crate::allocations::{PIECE, Range, Transfer};
use crate::context::{Config, Context};
use crate::environment::Printed;
use crate::error::{Code, Error, invalid};
use crate::grid::Report;
use crate::launch::Launch;
use crate::loaded::Loaded;
use crate::module::{Kernel, Module};
use crate::pool::Pool;
use crate::stream::{Owner, Stream, Work, fill_bytes};

/// A device. Clones are the same, and everything on it may be used from several threads at once. What still
/// runs or is queued when the last clone and the last [`Stream`] go is ended, with error 709, and the
/// device's threads with it.
#[derive(Debug, Clone)]
pub struct Device(Arc<Owner>);

impl Device {
    /// A device with nothing on it. Its threads start with the first work.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self(Arc::new(Owner {
            pool: Pool::new(config.workers),
            context: Arc::new(Context::new(config)),
        }))
    }

    fn context(&self) -> &Context {
        &self.0.context
    }

    /// A queue for work. There may be any number of them.
    #[must_use]
    pub fn stream(&self) -> Stream {
        Stream::new(Arc::clone(&self.0))
    }

    /// Ends everything on the device: what runs ends within some milliseconds; what is queued, and all calls
    /// from now on, answer `error`, or that of an earlier fault. Never blocks.
    pub fn kill(&self, error: Error) {
        self.context().fail(error);
    }

    /// What everything answers after a fault or [`Self::kill`].
    #[must_use]
    pub fn fault(&self) -> Option<Error> {
        self.context().fault()
    }

    /// Allocates memory, all zero, at an address that is a multiple of 512.
    ///
    /// # Errors
    ///
    /// 1 for no bytes, 2 beyond the quota, the error of an earlier fault.
    pub fn allocate(&self, bytes: u64) -> Result<u64, Error> {
        if bytes == 0 {
            return invalid("an allocation of no bytes");
        }
        self.context().sound()?.add(bytes, false)
    }

    /// Frees an allocation. Launches that are running keep it, and count it, until they end.
    ///
    /// # Errors
    ///
    /// 1 if nothing begins at the address, the error of an earlier fault.
    pub fn free(&self, address: u64) -> Result<(), Error> {
        let gone = self.context().sound()?.remove(address)?;
        // Not under the lock: the system takes its time over many pages.
        drop(gone);
        Ok(())
    }

    /// The allocation that an address lies in: where it begins, and its bytes.
    ///
    /// # Errors
    ///
    /// 1 if it is in none.
    pub fn range(&self, address: u64) -> Result<(u64, u64), Error> {
        let r = self.context().sound()?.region(address, 1)?;
        Ok((r.base, r.bytes.len()))
    }

    fn part(&self, address: u64, len: u64) -> Result<Range, Error> {
        let r = self.context().sound()?.region(address, len)?;
        Ok(Range::new(r, address))
    }

    /// Copies from the device, now: beside what streams do, not after it.
    ///
    /// # Errors
    ///
    /// 1 if the range is not inside one allocation, the error of an earlier fault.
    pub fn read(&self, address: u64, out: &mut [u8]) -> Result<(), Error> {
        let part = self.part(address, out.len() as u64)?;
        for (at, piece) in (0..).step_by(PIECE).zip(out.chunks_mut(PIECE)) {
            self.context().check()?;
            part.read(at, piece)?;
        }
        Ok(())
    }

    /// Copies to the device, now.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), Error> {
        let part = self.part(address, data.len() as u64)?;
        for (at, piece) in (0..).step_by(PIECE).zip(data.chunks(PIECE)) {
            self.context().check()?;
            part.write(at, piece)?;
        }
        Ok(())
    }

    /// Copies within the device, now; the ranges may overlap.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub fn copy(&self, to: u64, from: u64, bytes: u64) -> Result<(), Error> {
        let (to, from) = (self.part(to, bytes)?, self.part(from, bytes)?);
        self.transfer(Transfer::copy(to, from, bytes))
    }

    /// Fills `count` elements of 1, 2 or 4 bytes with a value, now.
    ///
    /// # Errors
    ///
    /// 1 for another size, for an address not aligned to it, and as [`Self::read`].
    pub fn fill(&self, address: u64, value: u32, size: u32, count: u64) -> Result<(), Error> {
        let bytes = fill_bytes(address, size, count)?;
        let element = &value.to_le_bytes()[..size as usize];
        self.transfer(Transfer::fill(self.part(address, bytes)?, element, bytes))
    }

    /// To its end, unless the device is killed meanwhile.
    fn transfer(&self, mut t: Transfer) -> Result<(), Error> {
        while t.step()? {
            self.context().check()?;
        }
        Ok(())
    }

    /// Bytes that allocations take, and the quota.
    #[must_use]
    pub fn memory(&self) -> (u64, u64) {
        let a = self.context().allocations();
        (a.quota().used(), a.quota().limit())
    }

    /// Puts a module's variables on the device.
    ///
    /// # Errors
    ///
    /// 2 beyond the quota, the error of an earlier fault.
    pub fn load(&self, module: &Module) -> Result<Loaded, Error> {
        Loaded::new(module, &mut *self.context().sound()?)
    }

    /// Takes a module's variables away again.
    ///
    /// # Errors
    ///
    /// The error of an earlier fault.
    pub fn unload(&self, loaded: &Loaded) -> Result<(), Error> {
        let gone = self.context().sound()?.remove_all(loaded.addresses());
        drop(gone);
        Ok(())
    }

    /// At most so many bytes of what kernels have printed, the oldest first. What a launch printed is all there
    /// when its end is told.
    #[must_use]
    pub fn take_printed(&self, most: usize) -> Printed {
        self.context().environment.take_printed(most)
    }

    /// Whether [`Self::take_printed`] has something to give.
    #[must_use]
    pub fn has_printed(&self) -> bool {
        self.context().environment.has_printed()
    }

    /// Runs a kernel to its end, beside what streams do: [`Stream::submit`] and a wait. `parameters` are packed
    /// as [`Kernel::parameters`] says.
    ///
    /// # Errors
    ///
    /// 1 for a launch that cannot be, 400 for a kernel of another module, 720 for a cooperative launch
    /// that is too large; 700, 702, 710, 715 to 719 for what happens in the kernel, and from then on
    /// for everything on this device.
    pub fn launch(
        &self,
        loaded: &Loaded,
        kernel: &Kernel,
        how: &Launch,
        parameters: &[u8],
    ) -> Result<Report, Error> {
        let (tell, told) = mpsc::channel();
        let work = Work::Launch {
            loaded: loaded.clone(),
            kernel: kernel.clone(),
            how: how.clone(),
            parameters: parameters.to_vec(),
        };
        self.stream().submit(work, move |done| {
            // Received below; the receiver lives until then.
            let _ = tell.send(done.result);
        })?;
        let lost = |_| Error::new(Code::Unknown, "the launch was lost");
        told.recv().map_err(lost)?
    }
}

//! A device: its memory, the modules on it, and its streams.

use std::sync::{Arc, mpsc};

use crate::allocations::{PIECE, ROW, Range, Rows, Transfer};
use crate::context::{Config, Context, Limit};
use crate::error::{Code, Error, invalid};
use crate::grid::Report;
use crate::launch::Launch;
use crate::loaded::Loaded;
use crate::memory::HostMemory;
use crate::module::{Kernel, Module};
use crate::output::Printed;
use crate::pool::Pool;
use crate::stream::{Owner, Stream, Work, check_fill, same_shape};

/// A device. Clones are the same device, and everything on it may be used from several threads at
/// once. When the last clone and the last [`Stream`] are dropped, work that still runs or is queued
/// ends with error 709, and the device's threads end with it.
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

    /// Creates a queue for work. There may be any number of them.
    #[must_use]
    pub fn stream(&self) -> Stream {
        Stream::new(Arc::clone(&self.0))
    }

    /// Ends everything on the device: running work ends within some milliseconds; queued work, and
    /// all calls from now on, return `error`, or that of an earlier fault. Never blocks.
    pub fn kill(&self, error: Error) {
        self.context().fail(error);
    }

    /// The error that every call returns after a fault or [`Self::kill`].
    #[must_use]
    pub fn fault(&self) -> Option<Error> {
        self.context().fault()
    }

    /// Allocates zeroed memory at an address that is a multiple of 512.
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

    /// Frees an allocation. Running launches keep it, and keep its charge, until they end.
    ///
    /// # Errors
    ///
    /// 1 if nothing begins at the address, the error of an earlier fault.
    pub fn free(&self, address: u64) -> Result<(), Error> {
        let gone = self.context().sound()?.remove(address)?;
        // Not under the lock: freeing many pages takes the system some time.
        drop(gone);
        Ok(())
    }

    /// Makes memory of the program's part of the device's, and returns its address there: that in this process, unless
    /// the device has something there. It counts against no quota.
    ///
    /// # Errors
    ///
    /// 2 if no addresses are left, the error of an earlier fault.
    pub fn register(&self, memory: &HostMemory) -> Result<u64, Error> {
        self.context().sound()?.register(memory)
    }

    /// Ends that, also after a fault. Running launches keep the memory until they end.
    ///
    /// # Errors
    ///
    /// 1 if no memory of the program's begins at the address.
    pub fn unregister(&self, address: u64) -> Result<(), Error> {
        let gone = self.context().allocations().unregister(address)?;
        // Not under the lock: unmapping takes the system some time.
        drop(gone);
        Ok(())
    }

    /// The start and the size in bytes of the allocation that contains an address.
    ///
    /// # Errors
    ///
    /// 1 if it is in none.
    pub fn range(&self, address: u64) -> Result<(u64, u64), Error> {
        let r = self.context().sound()?.region(address, 1)?;
        Ok((r.base, r.bytes.len()))
    }

    fn part(&self, rows: Rows) -> Result<Range, Error> {
        let r = self.context().sound()?.region(rows.address, rows.span()?)?;
        Ok(Range::new(r, rows.address))
    }

    /// Copies from the device at once: concurrently with streams, not after them.
    ///
    /// # Errors
    ///
    /// 1 if the range is not inside one allocation, the error of an earlier fault.
    pub fn read(&self, address: u64, out: &mut [u8]) -> Result<(), Error> {
        self.read_rows(Rows::range(address, out.len() as u64), out)
    }

    /// Copies rows from the device, now, to `out`, where they lie behind each other.
    ///
    /// # Errors
    ///
    /// As [`Self::read`]; 1 if `out` has not their length.
    pub fn read_rows(&self, from: Rows, out: &mut [u8]) -> Result<(), Error> {
        let part = self.part(from)?;
        let mut out = out;
        self.pieces(from, out.len(), |at, n| {
            let (piece, rest) = std::mem::take(&mut out).split_at_mut(n);
            out = rest;
            part.read(at, piece)
        })
    }

    /// Copies to the device at once.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), Error> {
        self.write_rows(Rows::range(address, data.len() as u64), data)
    }

    /// Copies to rows on the device, now, from `data`, where they lie behind each other.
    ///
    /// # Errors
    ///
    /// As [`Self::read_rows`].
    pub fn write_rows(&self, to: Rows, data: &[u8]) -> Result<(), Error> {
        let part = self.part(to)?;
        let mut data = data;
        self.pieces(to, data.len(), |at, n| {
            let (piece, rest) = data.split_at(n);
            data = rest;
            part.write(at, piece)
        })
    }

    /// Calls `copy` with the place of each piece of the rows, from the first byte of the first, and its length.
    fn pieces(
        &self,
        rows: Rows,
        given: usize,
        mut copy: impl FnMut(u64, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if rows.bytes()? != given as u64 {
            return invalid(format!("{given} bytes for {rows:?}"));
        }
        let Ok(width) = usize::try_from(rows.width) else {
            return invalid("rows that no memory holds");
        };
        if width == 0 {
            return Ok(());
        }
        let mut room = PIECE;
        for row in 0..rows.height {
            for from in (0..width).step_by(PIECE) {
                if room == 0 {
                    self.context().check()?;
                    room = PIECE;
                }
                let n = PIECE.min(width - from);
                copy(row * rows.pitch + from as u64, n)?;
                room = room.saturating_sub(n + ROW);
            }
        }
        Ok(())
    }

    /// Copies within the device at once; the ranges may overlap.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub fn copy(&self, to: u64, from: u64, bytes: u64) -> Result<(), Error> {
        self.copy_rows(Rows::range(to, bytes), Rows::range(from, bytes))
    }

    /// Copies rows within the device, now, to as many of the same length. Where several overlap, the outcome is
    /// not defined.
    ///
    /// # Errors
    ///
    /// As [`Self::read`]; 1 if the two have not the same shape.
    pub fn copy_rows(&self, to: Rows, from: Rows) -> Result<(), Error> {
        same_shape(to, from)?;
        let (to, from) = ((self.part(to)?, to), (self.part(from)?, from));
        self.transfer(Transfer::copy(to, from))
    }

    /// Fills `count` elements of 1, 2 or 4 bytes with a value at once.
    ///
    /// # Errors
    ///
    /// 1 for another size, for an address not aligned to it, and as [`Self::read`].
    pub fn fill(&self, address: u64, value: u32, size: u32, count: u64) -> Result<(), Error> {
        let Some(bytes) = count.checked_mul(u64::from(size)) else {
            return invalid("too many elements");
        };
        self.fill_rows(Rows::range(address, bytes), value, size)
    }

    /// Fills the elements of rows with a value, now.
    ///
    /// # Errors
    ///
    /// As [`Self::fill`], also for rows not aligned to the element, or with a part of one.
    pub fn fill_rows(&self, to: Rows, value: u32, size: u32) -> Result<(), Error> {
        check_fill(to, size)?;
        let element = &value.to_le_bytes()[..size as usize];
        self.transfer(Transfer::fill((self.part(to)?, to), element))
    }

    /// Runs a transfer to its end, unless the device is killed meanwhile.
    fn transfer(&self, mut t: Transfer) -> Result<(), Error> {
        while t.step()? {
            self.context().check()?;
        }
        Ok(())
    }

    /// Bytes in use by allocations, and the quota in bytes.
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

    /// Frees a module's variables.
    ///
    /// # Errors
    ///
    /// The error of an earlier fault.
    pub fn unload(&self, loaded: &Loaded) -> Result<(), Error> {
        let gone = self.context().sound()?.remove_all(loaded.addresses());
        drop(gone);
        Ok(())
    }

    /// The value of a limit, in bytes.
    #[must_use]
    pub fn limit(&self, limit: Limit) -> u64 {
        self.context().limit(limit)
    }

    /// Sets a limit, in bytes, for launches that begin later.
    ///
    /// # Errors
    ///
    /// 1 for a stack of more than 512 KiB, and for a heap once a kernel with `malloc` has begun; the error of an earlier
    /// fault.
    pub fn set_limit(&self, limit: Limit, bytes: u64) -> Result<(), Error> {
        self.context().set_limit(limit, bytes)
    }

    /// Takes at most `most` bytes of the kernels' output, the oldest first. A launch's output is
    /// complete when its end is reported.
    #[must_use]
    pub fn take_printed(&self, most: usize) -> Printed {
        self.context().environment.take_printed(most)
    }

    /// Whether [`Self::take_printed`] would return anything.
    #[must_use]
    pub fn has_printed(&self) -> bool {
        self.context().environment.has_printed()
    }

    /// Runs a kernel to its end, concurrently with streams: [`Stream::submit`] and a wait.
    /// `parameters` are packed as in [`Kernel::parameters`].
    ///
    /// # Errors
    ///
    /// 1 for an impossible launch, 400 for a kernel of another module, 720 for a cooperative launch
    /// that is too large; 700, 702, 710, 715 to 719 for a fault in the kernel, which every later
    /// call on this device returns too.
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

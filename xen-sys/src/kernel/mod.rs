//! The provider that talks to the kernel's devices by ioctls; needs no C library.

mod evtchn;
mod gntalloc;
mod gntdev;

pub(crate) use evtchn::Evtchn;
pub(crate) use gntalloc::Gntalloc;
pub(crate) use gntdev::Gntdev;

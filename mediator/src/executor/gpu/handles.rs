//! Objects by the handles under which requests name them, with the words for a handle that names none.
//!
//! An object that could not be made leaves its failure in its place: requests that name it fail in the same way
//! until it is closed.

use std::fmt::Display;

use vgpu_protocol::handle::{Handle, HandleTable};
use vgpu_protocol::session::server::Failure;
use vgpu_protocol::status::ErrorCode;

use super::{Refused, refused};

/// Objects, and what could not be made.
pub(super) type Objects<T> = HandleTable<Result<T, Failure>>;

/// Why `handle` names nothing that the request could mean.
pub(super) fn wrong(handle: Handle, why: impl Display) -> Refused {
    refused(ErrorCode::Handle, format!("{handle:?} {why}"))
}

/// The object that `handle` names.
pub(super) fn named<T>(objects: &mut Objects<T>, handle: Handle) -> Result<&mut T, Refused> {
    match objects.get_mut(handle) {
        Ok(Ok(object)) => Ok(object),
        Ok(Err(failure)) => Err(failure.clone()),
        Err(error) => Err(wrong(handle, error)),
    }
}

/// Puts an object under `handle`, which must name none.
pub(super) fn open<T>(
    table: &mut HandleTable<T>,
    handle: Handle,
    object: T,
) -> Result<(), Refused> {
    let opened = table.open(handle, object);
    opened.map(drop).map_err(|error| wrong(handle, error))
}

/// Takes out what `handle` names.
pub(super) fn close<T>(table: &mut HandleTable<T>, handle: Handle) -> Result<T, Refused> {
    let closed = table.close(handle);
    closed.map_err(|error| wrong(handle, error))
}

//! Pointers of C programs, checked as far as they can be before they are used.

use std::ffi::{CStr, c_char};
use std::slice;

use crate::failure::Failure;

/// A place for a result. `what` it is names it in errors.
pub(crate) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// # Safety
    /// NULL, or a place for a `T` that nobody else uses before this is dropped.
    pub(crate) unsafe fn new(place: *mut T, what: &str) -> Result<Self, Failure> {
        if place.is_null() || !place.is_aligned() {
            return Err(Failure::argument(format!(
                "the place for the {what} is {place:p}"
            )));
        }
        Ok(Self(place))
    }

    pub(crate) fn set(self, value: T) {
        // SAFETY: neither NULL nor misaligned, and by `new`'s contract a place for a `T`.
        unsafe { self.0.write(value) }
    }
}

fn check<T>(data: *const T, len: usize, what: &str) -> Result<(), Failure> {
    if data.is_null() {
        return Err(Failure::argument(format!("the {what} is NULL")));
    }
    if !data.is_aligned() {
        return Err(Failure::argument(format!(
            "the {what} at {data:p} is not aligned to {} bytes",
            align_of::<T>()
        )));
    }
    let bytes = len.checked_mul(size_of::<T>());
    // No object is larger than this, nor goes over the end of the addresses.
    let fits = bytes.filter(|bytes| isize::try_from(*bytes).is_ok());
    match fits.and_then(|bytes| data.addr().checked_add(bytes)) {
        Some(_) => Ok(()),
        None => Err(Failure::argument(format!(
            "the {what} at {data:p} cannot have {len} elements"
        ))),
    }
}

/// `len` elements to read.
///
/// # Safety
/// NULL, or `len` elements that nobody writes in `'p`; NULL with a `len` of 0 has none.
pub(crate) unsafe fn elements<'p, T: Copy>(
    data: *const T,
    len: usize,
    what: &str,
) -> Result<&'p [T], Failure> {
    if len == 0 {
        return Ok(&[]);
    }
    check(data, len, what)?;
    // SAFETY: checked as far as possible; the rest is this function's contract.
    Ok(unsafe { slice::from_raw_parts(data, len) })
}

/// `len` elements to write.
///
/// # Safety
/// NULL, or `len` elements that nobody else uses in `'p`; NULL with a `len` of 0 has none. Every bit pattern is a `T`.
pub(crate) unsafe fn elements_mut<'p, T: Copy>(
    data: *mut T,
    len: usize,
    what: &str,
) -> Result<&'p mut [T], Failure> {
    if len == 0 {
        return Ok(&mut []);
    }
    check(data, len, what)?;
    // SAFETY: checked as far as possible; the rest is this function's contract. What C left there is some `T`.
    Ok(unsafe { slice::from_raw_parts_mut(data, len) })
}

/// A struct of options, which begins with its own size; `None` for NULL. `name` is its name in C.
///
/// # Safety
/// NULL, or a size, and behind it the rest of a `T` if it is that of one.
pub(crate) unsafe fn sized<T: Copy>(given: *const T, name: &str) -> Result<Option<T>, Failure> {
    if given.is_null() {
        return Ok(None);
    }
    // SAFETY: at least a size is there, whichever version of the header the program was built with.
    let size = unsafe { elements(given.cast::<usize>(), 1, "options")? }[0];
    if size != size_of::<T>() {
        return Err(Failure::argument(format!(
            "options of {size} bytes; set `size` to sizeof({name}), which is {}",
            size_of::<T>()
        )));
    }
    // SAFETY: they say themselves that they are all there.
    Ok(Some(unsafe { elements(given, 1, "options")? }[0]))
}

/// A text.
///
/// # Safety
/// NULL, or a text that ends with a NUL and that nobody writes in `'p`.
pub(crate) unsafe fn text<'p>(text: *const c_char, what: &str) -> Result<&'p str, Failure> {
    if text.is_null() {
        return Err(Failure::argument(format!("the {what} is NULL")));
    }
    // SAFETY: not NULL; the rest is this function's contract.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str()
        .map_err(|_| Failure::argument(format!("the {what} is not UTF-8")))
}

/// The same, where NULL stands for none.
///
/// # Safety
/// As for [`text`].
pub(crate) unsafe fn optional_text<'p>(
    text: *const c_char,
    what: &str,
) -> Result<Option<&'p str>, Failure> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: as this function.
    unsafe { self::text(text, what) }.map(Some)
}

/// Whether two areas have bytes in common.
pub(crate) fn overlap<T>(one: &[T], other: *const T, len: usize) -> bool {
    let (start, from) = (one.as_ptr().addr(), other.addr());
    let end = start + size_of_val(one);
    let to = from.saturating_add(len.saturating_mul(size_of::<T>()));
    start < to && from < end
}

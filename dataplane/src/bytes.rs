//! Plain types as the bytes of a map's key or value.

use std::{mem::MaybeUninit, ptr, slice};

use crate::store::Plain;

/// The bytes of a value.
pub(crate) fn of<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: `Plain` promises that there is no padding, so every byte is initialised.
    unsafe { slice::from_raw_parts(ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// The value that lies in these bytes, at any alignment.
///
/// # Panics
/// When they are fewer than the type has.
pub(crate) fn to<T: Plain>(bytes: &[u8]) -> T {
    let bytes = &bytes[..size_of::<T>()];
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: both sides are `size_of::<T>()` bytes, and `Plain` promises that every bit pattern is a value.
    unsafe {
        ptr::copy_nonoverlapping(bytes.as_ptr(), value.as_mut_ptr().cast(), bytes.len());
        value.assume_init()
    }
}

/// The values that lie in these bytes, one after the other.
pub(crate) fn each<T: Plain>(bytes: &[u8]) -> impl Iterator<Item = T> {
    bytes.chunks_exact(size_of::<T>()).map(to)
}

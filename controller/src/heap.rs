//! The program's memory.
//!
//! In a large cluster one thread makes what another one frees, all the time. The heaps of C libraries have a lock for all of it: with glibc threads of an
//! agent waited for each other some 400 times a second there, and each time that it gave memory back, which had to be asked for, all of them for
//! some 0.2 s. The heap of musl, of which the static program would be, has one lock as well.

use std::ffi::c_char;

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static HEAP: Jemalloc = Jemalloc;

/// A text of C.
#[repr(transparent)]
struct Settings(*const c_char);

// SAFETY: it points to a constant.
unsafe impl Sync for Settings {}

/// One arena, since holes of one that other threads allocate from would stay; what is free for a second goes back to the kernel. Jemalloc looks for it
/// when the first thread begins: `malloc_conf` in its manual, with the prefix that the crate gives all names.
// SAFETY: that name is jemalloc's, and of this type.
#[unsafe(export_name = "_rjem_malloc_conf")]
static MALLOC_CONF: Settings = Settings(c"narenas:1,dirty_decay_ms:1000,muzzy_decay_ms:0".as_ptr());

#[cfg(test)]
mod tests {
    use std::{ffi::CStr, ptr};

    /// A setting of jemalloc, of the type that its manual names.
    fn setting<T: Default>(name: &CStr) -> T {
        let mut value = T::default();
        let mut len = size_of::<T>();
        // SAFETY: the name ends with 0, and what is written fits: a value of another length is refused.
        let error = unsafe {
            tikv_jemalloc_sys::mallctl(name.as_ptr(), (&raw mut value).cast(), &raw mut len, ptr::null_mut(), 0)
        };
        assert_eq!((error, len), (0, size_of::<T>()), "{name:?}");
        value
    }

    /// They are in force: jemalloc leaves out what it does not know.
    #[test]
    fn settings_are_taken() {
        assert_eq!(setting::<u32>(c"opt.narenas"), 1);
        assert_eq!(setting::<isize>(c"opt.dirty_decay_ms"), 1000);
        assert_eq!(setting::<isize>(c"opt.muzzy_decay_ms"), 0);
    }
}

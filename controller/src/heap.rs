//! How an agent's memory is kept small with glibc; other C libraries have no such settings.

/// Bytes of a buffer that is large.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 128 << 10;

/// Has all threads allocate from one heap: in a large cluster one thread makes what another one frees, and a heap for each would keep the holes. Large
/// buffers are apart from it and go back to the kernel; glibc would raise what counts as large with each one that is freed.
///
/// To be called before there are other threads.
pub fn share() {
    #[cfg(target_env = "gnu")]
    for (what, value) in [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, LARGE), (libc::M_TRIM_THRESHOLD, LARGE)] {
        // SAFETY: it takes plain numbers.
        unsafe { libc::mallopt(what, value) };
    }
}

/// Gives holes back to the kernel that are as large as pages.
pub(crate) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a plain number, and changes nothing that somebody has.
    unsafe {
        libc::malloc_trim(0);
    }
}

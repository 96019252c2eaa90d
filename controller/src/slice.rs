//! Short slices of a processor's time, for who is waited for.

use std::io;

use libc::{SCHED_OTHER, SYS_sched_getattr, SYS_sched_setattr, sched_attr};

/// In nanoseconds. A thread that wishes for none has some 0.7 ms times one more than the binary logarithm of the processors, of which eight count at most (1.4 to
/// 2.8 ms): with a shorter one it is preferred when it wakes. What one change takes should fit in, though: who has used his slice up waits behind others,
/// and with the shortest that the kernel gives, 0.1 ms, several times for each change.
const SHORT: u64 = 500_000;

/// Has the calling thread, and threads that it starts from then on, run sooner after they wake, beside others that run already. Their share of a processor
/// stays what it was, and so does their niceness: what ends sooner begins sooner. Where the thread is not scheduled by shares nothing changes, nor by kernels
/// before 6.12, which know no slices of threads.
///
/// # Errors
/// The kernel's.
pub(crate) fn shorten() -> io::Result<()> {
    let mut attributes = attributes()?;
    if attributes.sched_policy != SCHED_OTHER.cast_unsigned() {
        return Ok(());
    }
    attributes.sched_runtime = SHORT;
    // SAFETY: the structure lives until the call returns, and says its own size.
    let result = unsafe { libc::syscall(SYS_sched_setattr, 0, &raw const attributes, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// How the calling thread is scheduled.
fn attributes() -> io::Result<sched_attr> {
    let size = size_of::<sched_attr>() as u32;
    let mut attributes = sched_attr {
        size,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the structure is as large as is said, and lives until the call returns.
    let result = unsafe { libc::syscall(SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(attributes) }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use bulkhead_fixtures::skip;

    use super::*;

    #[test]
    fn a_thread_gets_short_slices_and_nothing_else_is_other() {
        let known = attributes().unwrap().sched_runtime != 0;
        if !skip::require("a kernel with slices of threads, 6.12 or later", known) {
            return;
        }
        let (before, after) = thread::spawn(|| {
            let before = attributes().unwrap();
            shorten().unwrap();
            (before, attributes().unwrap())
        })
        .join()
        .unwrap();
        assert_ne!(before.sched_runtime, SHORT);
        assert_eq!(after.sched_runtime, SHORT);
        assert_eq!((before.sched_policy, before.sched_nice), (after.sched_policy, after.sched_nice));
        assert_ne!(attributes().unwrap().sched_runtime, SHORT, "others keep theirs");
    }
}

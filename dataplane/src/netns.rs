//! Work in another network namespace.

use std::{fs::File, io, os::fd::AsFd as _, thread};

use nix::sched::{CloneFlags, setns};

/// Runs something in a network namespace, on a thread of its own: this one stays where it is. Needs `CAP_SYS_ADMIN`.
///
/// # Errors
/// The namespace cannot be entered, or what `work` returns.
pub(crate) fn within<T: Send>(namespace: &File, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let inside = scope.spawn(move || {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
            work()
        });
        inside.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace ended")))
    })
}

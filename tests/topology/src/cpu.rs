//! On which processors threads run.

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

use crate::{Error, Result};

/// Numbers of the processors on which the calling thread may run, in order.
///
/// # Errors
/// The kernel does not tell.
pub fn allowed() -> Result<Vec<usize>> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).map_err(Error::errno("ask which processors there are"))?;
    Ok((0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false)).collect())
}

/// Keeps the calling thread, and threads that it starts from now on, on one processor.
///
/// # Errors
/// It is none of [`allowed`].
pub fn stay_on(cpu: usize) -> Result<()> {
    let stay = || {
        let mut only = CpuSet::new();
        only.set(cpu)?;
        sched_setaffinity(Pid::from_raw(0), &only)
    };
    stay().map_err(Error::errno(format_args!("stay on processor {cpu}")))
}

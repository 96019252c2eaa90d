//! System calls: an allow-list for the agent and for nft and iptables-save, which it starts. What is not on it fails with EPERM.
//!
//! EPERM and not death: a call that a newer C library makes and this list does not know makes one function fail, with a line in the log, instead of
//! taking away the agent over and over; enforcement goes on in both cases. The call itself does not happen in either.
//!
//! Not on it: other namespaces and mounts, modules and kexec, tracing and other processes' memory, keys, clocks, users and groups, `io_uring` and
//! `userfaultfd`, `perf_event_open`, handles to files, swap, quotas and the like.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter,
};

use super::ConfineError;

/// Calls that may be made whatever their arguments are. Beside them there are `clone` without namespaces and `socket` of four families.
const ALLOWED: &[c_long] = &[
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_msync,
    libc::SYS_munmap,
    // Threads and programs that are started. What `clone3` asks for cannot be seen here, and a filter of its own says that there is none.
    libc::SYS_clone3,
    libc::SYS_execve,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_get_robust_list,
    libc::SYS_getpgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getpriority,
    libc::SYS_gettid,
    libc::SYS_kill,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_prctl,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getattr,
    libc::SYS_sched_setattr,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_setpriority,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_tkill,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // Who one is.
    libc::SYS_capget,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getuid,
    // Files.
    libc::SYS_chdir,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_ioctl,
    libc::SYS_linkat,
    libc::SYS_lseek,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pipe2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_sendfile,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_sync_file_range,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_write,
    libc::SYS_writev,
    // Sockets.
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_socketpair,
    // Waiting and time.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_signalfd4,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    libc::SYS_times,
    // The machine.
    libc::SYS_bpf,
    libc::SYS_getcpu,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_prlimit64,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

/// The same by their older names, which newer architectures lack.
#[cfg(target_arch = "x86_64")]
const OLDER: &[c_long] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_dup2,
    libc::SYS_epoll_wait,
    libc::SYS_fork,
    libc::SYS_getpgrp,
    libc::SYS_getrlimit,
    libc::SYS_link,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_select,
    libc::SYS_setrlimit,
    libc::SYS_stat,
    libc::SYS_time,
    libc::SYS_unlink,
    libc::SYS_vfork,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[c_long] = &[];

/// Flags of `clone` that make namespaces.
const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWUTS,
];

/// Sockets of the API, of the metrics and of iptables (raw ones), and of netlink. Packet sockets, which `CAP_NET_RAW` would give, are none of these.
const FAMILIES: [i32; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// How many calls are left.
pub(super) const LEFT: usize = ALLOWED.len() + OLDER.len() + 2;

/// Refuses everything else, to this thread and what it starts.
pub(super) fn restrict() -> Result<(), ConfineError> {
    for filter in filters().map_err(keeps)? {
        apply_filter(&filter).map_err(keeps)?;
    }
    Ok(())
}

fn keeps(error: impl Into<seccompiler::Error>) -> ConfineError {
    ConfineError::Keeps { what: "system calls", why: error.into().to_string() }
}

/// The strictest answer of all filters holds.
fn filters() -> Result<[BpfProgram; 2], seccompiler::BackendError> {
    let argument = |operator, value: i32| {
        // Arguments of 32 bits: the kernel ignores what stands above.
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, operator, u64::from(value.cast_unsigned()))
            .and_then(|condition| SeccompRule::new(vec![condition]))
    };
    let namespaces = NAMESPACES.iter().fold(0, |all, flag| all | flag);
    let mut allowed: BTreeMap<c_long, Vec<SeccompRule>> =
        ALLOWED.iter().chain(OLDER).map(|call| (*call, vec![])).collect();
    let plain = argument(SeccompCmpOp::MaskedEq(u64::from(namespaces.cast_unsigned())), 0)?;
    allowed.insert(libc::SYS_clone, vec![plain]);
    let families = FAMILIES.map(|family| argument(SeccompCmpOp::Eq, family));
    allowed.insert(libc::SYS_socket, families.into_iter().collect::<Result<_, _>>()?);
    let refuse = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    // A C library that is told that there is no `clone3` takes `clone`.
    let (clone3, absent) =
        (BTreeMap::from([(libc::SYS_clone3, vec![])]), SeccompAction::Errno(libc::ENOSYS.cast_unsigned()));
    let compile = |rules, otherwise, listed| {
        SeccompFilter::new(rules, otherwise, listed, std::env::consts::ARCH.try_into()?)?.try_into()
    };
    Ok([compile(clone3, SeccompAction::Allow, absent)?, compile(allowed, refuse, SeccompAction::Allow)?])
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        io,
        net::{TcpListener, TcpStream},
        process::Command,
        thread,
    };

    use super::*;

    #[test]
    fn nothing_is_listed_twice() {
        let all: Vec<_> = ALLOWED.iter().chain(OLDER).collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    }

    /// A thread's filter is its own, and that of what it starts.
    #[test]
    fn what_is_not_listed_is_refused_and_the_rest_works() {
        // No call below gets to look at its arguments.
        let call = |number: c_long, argument: i32| {
            // SAFETY: no pointer is given; a child of `clone` would share nothing, and the calls that are refused do nothing.
            let result = unsafe { libc::syscall(number, argument, 0, 0, 0, 0) };
            (result < 0).then(|| io::Error::last_os_error().raw_os_error()).flatten()
        };
        let confined = move || {
            nix::sys::prctl::set_no_new_privs().unwrap();
            restrict().unwrap();
            let refused = [
                call(libc::SYS_unshare, libc::CLONE_NEWUSER),
                call(libc::SYS_setns, 0),
                call(libc::SYS_mount, 0),
                call(libc::SYS_ptrace, libc::PTRACE_TRACEME.cast_signed()),
                call(libc::SYS_io_uring_setup, 1),
                call(libc::SYS_socket, libc::AF_PACKET),
                call(libc::SYS_clone, libc::CLONE_NEWUSER | libc::SIGCHLD),
                thread::spawn(move || call(libc::SYS_unshare, libc::CLONE_NEWUTS)).join().unwrap(),
            ];
            let clone3 = call(libc::SYS_clone3, 0);
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (refused, clone3, Command::new("true").status().unwrap().success())
        };
        let (refused, clone3, started) = thread::spawn(confined).join().unwrap();
        assert_eq!(refused, [Some(libc::EPERM); 8], "the last by a thread of the thread");
        assert_eq!(clone3, Some(libc::ENOSYS));
        assert!(started, "programs start");
    }
}

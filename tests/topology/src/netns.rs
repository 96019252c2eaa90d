//! Network namespaces that have an owner.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{self, File},
    io,
    marker::PhantomData,
    ops::{Deref, DerefMut},
    os::{
        fd::{AsRawFd, RawFd},
        unix::{fs::MetadataExt, process::CommandExt},
    },
    panic,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::Arc,
    thread,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{Error, Result, rtnl::Rtnl};

/// Where `ip netns` looks for names.
const RUN_DIR: &str = "/run/netns";
/// Every name starts with this; then the owner's process id or [`KEPT`], the topology's id and a label, with
/// hyphens between.
const PREFIX: &str = "bh-";
const KEPT: &str = "keep";

/// What every namespace gets before it has a link: no duplicate address detection and no router
/// solicitations, so that addresses serve at once and captures hold no chatter; and datagram ICMP sockets for
/// everyone, which the kernel gives to nobody by default.
const SYSCTLS: [(&str, &str); 5] = [
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/all/accept_ra", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
];

/// A named network namespace, as `ip netns` knows it. Clones are handles to the same one; it is removed with
/// the last handle, or by its [`Topology`](crate::Topology). The kernel frees what was in it once no process or
/// socket uses it any more.
#[derive(Clone, Debug)]
pub struct Netns(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    path: PathBuf,
    file: File,
    keep: bool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if !self.keep {
            detach(&self.path);
        }
    }
}

impl Netns {
    /// A new namespace with its loopback up and no other link. `label` ends its name, for people who look
    /// around.
    pub fn new(label: &str) -> Result<Self> {
        Self::create(&name(false, &random_id(), label), false)
    }

    pub(crate) fn create(name: &str, keep: bool) -> Result<Self> {
        let path = Path::new(RUN_DIR).join(name);
        prepare_run_dir()?;
        File::create_new(&path).map_err(Error::os(format!("create {}", path.display())))?;
        let made = on_thread(|| -> Result<Self> {
            unshare(CloneFlags::CLONE_NEWNET).map_err(Error::errno("create a network namespace"))?;
            let own = Path::new("/proc/thread-self/ns/net");
            mount(Some(own), &path, None::<&Path>, MsFlags::MS_BIND, None::<&Path>)
                .map_err(Error::errno(format!("bind a network namespace to {}", path.display())))?;
            let file = File::open(&path).map_err(Error::os(format!("open {}", path.display())))?;
            SYSCTLS.iter().try_for_each(|(key, value)| write_sysctl(name, key, value))?;
            Ok(Self(Arc::new(Inner { name: name.to_owned(), path: path.clone(), file, keep })))
        });
        let netns = made.inspect_err(|_| detach(&path))?;
        let mut rtnl = Rtnl::open(&netns)?;
        let loopback = rtnl.link("lo")?.index;
        rtnl.set_up(loopback)?;
        Ok(netns)
    }

    /// Its name under `/run/netns`, for `ip -n NAME ...`.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The file that holds it, for `nsenter --net=PATH`. (`ip netns exec` mounts another `/sys`, which hides
    /// bpffs.)
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Runs `f` on a thread of its own inside the namespace. Mounts stay as they are, so `/sys/fs/bpf` is the
    /// caller's; `/proc/sys/net` is the namespace's. A panic in `f` goes on in the caller. What `f` spawns
    /// starts in the namespace too.
    ///
    /// # Panics
    /// If the namespace cannot be entered.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        on_thread(|| {
            setns(&self.0.file, CloneFlags::CLONE_NEWNET)
                .unwrap_or_else(|errno| panic!("enter {}: {errno}", self.0.name));
            f()
        })
    }

    /// Moves the current thread into the namespace until the guard is dropped.
    pub fn enter(&self) -> Result<NetnsGuard> {
        let before = File::open("/proc/thread-self/ns/net").map_err(Error::os("open the current network namespace"))?;
        setns(&self.0.file, CloneFlags::CLONE_NEWNET).map_err(Error::errno(format!("enter {}", self.0.name)))?;
        Ok(NetnsGuard { before, _this_thread: PhantomData })
    }

    /// A command whose process will start in the namespace, with all mounts as they are here (bpffs stays
    /// visible). Make the child a
    /// [`Process`] so that it does not outlive its test.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let netns = self.clone();
        // SAFETY: between fork and exec only async-signal-safe calls are permitted; setns is a plain system
        // call, and the closure neither allocates nor locks. The namespace's file is open in the child
        // because the closure owns a handle.
        unsafe { command.pre_exec(move || Ok(setns(&netns.0.file, CloneFlags::CLONE_NEWNET)?)) };
        command
    }

    /// Gives a link another name; while it is down before Linux 6.2, which asks for that.
    pub fn rename_link(&self, from: &str, to: &str) -> Result<()> {
        let live = format!("ip link set {from} name {to} 2>/dev/null");
        let script = format!("{live} || {{ ip link set {from} down && {live} && ip link set {to} up; }}");
        let done = self.command("sh").args(["-c", &script]).status();
        let done =
            done.and_then(|status| if status.success() { Ok(()) } else { Err(io::Error::other(status.to_string())) });
        done.map_err(Error::os(format!("{}: rename {from} to {to}", self.name())))
    }

    /// Writes a sysctl of the namespace; `key` with slashes, such as `net/ipv4/ip_forward`.
    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.run(|| write_sysctl(self.name(), key, value))
    }

    /// Reads a sysctl of the namespace, without the line's end.
    pub fn sysctl(&self, key: &str) -> Result<String> {
        let read = self.run(|| fs::read_to_string(Path::new("/proc/sys").join(key)));
        Ok(read.map_err(Error::os(format!("{}: read {key}", self.name())))?.trim_end().to_owned())
    }

    /// UDP datagrams that arrived and were lost because a socket's buffer was full (`RcvbufErrors`, both
    /// families). A test that counts datagrams is only valid while this does not grow.
    pub fn udp_buffer_errors(&self) -> Result<u64> {
        let read = |file: &str| fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        let (v4, v6) = self
            .run(|| Ok((read("snmp")?, read("snmp6")?)))
            .map_err(Error::os(format!("{}: read UDP counters", self.name())))?;
        let mut lines = v4.lines().filter(|line| line.starts_with("Udp:")).map(|line| line.split_ascii_whitespace());
        let (names, values) = (lines.next(), lines.next());
        let v4 =
            names.zip(values).and_then(|(names, values)| names.zip(values).find(|(name, _)| *name == "RcvbufErrors"));
        let v6 = v6
            .lines()
            .filter_map(|line| line.split_once(char::is_whitespace))
            .find(|(name, _)| *name == "Udp6RcvbufErrors");
        match (
            v4.and_then(|(_, value)| value.parse::<u64>().ok()),
            v6.and_then(|(_, value)| value.trim().parse::<u64>().ok()),
        ) {
            (Some(v4), Some(v6)) => Ok(v4 + v6),
            _ => Err(Error::Invalid(format!("{}: no RcvbufErrors in /proc/net/snmp and snmp6", self.name()))),
        }
    }

    /// Takes the name away now, although handles exist. They stay usable.
    pub(crate) fn remove(&self) {
        detach(&self.0.path);
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.0.file.as_raw_fd()
    }
}

/// Brings the thread back to the namespace that it came from. See [`Netns::enter`].
#[derive(Debug)]
pub struct NetnsGuard {
    before: File,
    /// Not `Send`: on another thread the drop would move that one.
    _this_thread: PhantomData<*const ()>,
}

impl Drop for NetnsGuard {
    fn drop(&mut self) {
        // A thread that stays in the wrong namespace would make every later test of this thread lie.
        setns(&self.before, CloneFlags::CLONE_NEWNET).expect("go back to the network namespace before");
    }
}

/// A child process that is killed and reaped when it goes out of scope.
#[derive(Debug)]
pub struct Process(Child);

impl From<Child> for Process {
    fn from(child: Child) -> Self {
        Self(child)
    }
}

impl Deref for Process {
    type Target = Child;
    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Process {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only for a process that has ended and been waited for.
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// Removes the namespaces, and ends the processes in them, of owners that no longer exist. Returns the names.
/// [`Builder::build`] calls it.
///
/// The owner is the process id in the name, so processes that share `/run/netns` must share a process id
/// namespace too.
///
/// [`Builder::build`]: crate::Builder::build
pub fn sweep() -> Vec<String> {
    remove_where(|owner, _| owner.parse::<u32>().is_ok_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()))
}

/// The ids of the topologies that [`Builder::keep`] left standing.
///
/// [`Builder::keep`]: crate::Builder::keep
pub fn kept() -> BTreeSet<String> {
    names().filter_map(|name| Some(owner_and_id(&name).filter(|(owner, _)| *owner == KEPT)?.1.to_owned())).collect()
}

/// Removes the namespaces of the kept topology with this id, and ends the processes in them. Returns the
/// names.
pub fn remove_kept(id: &str) -> Vec<String> {
    remove_where(|owner, of| owner == KEPT && of == id)
}

/// Names of all namespaces; none if the directory does not exist.
fn names() -> impl Iterator<Item = String> {
    let entries = fs::read_dir(RUN_DIR).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

fn owner_and_id(name: &str) -> Option<(&str, &str)> {
    let mut parts = name.strip_prefix(PREFIX)?.split('-');
    parts.next().zip(parts.next())
}

fn remove_where(goes: impl Fn(&str, &str) -> bool) -> Vec<String> {
    let mut gone: Vec<_> =
        names().filter(|name| owner_and_id(name).is_some_and(|(owner, id)| goes(owner, id))).collect();
    gone.sort();
    for name in &gone {
        let path = Path::new(RUN_DIR).join(name);
        end_processes_in(&path);
        detach(&path);
    }
    gone
}

fn end_processes_in(netns: &Path) {
    let identity = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    let Some(wanted) = identity(netns) else {
        return;
    };
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if identity(&entry.path().join("ns/net")) == Some(wanted) {
            // Gone already is as good.
            let _ended = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Makes the directory a shared mount, as `ip netns add` does when it finds that it is none. It does so by a
/// recursive bind mount, under which the namespaces that were there before would be buried: busy, and out of
/// reach. So it is done before the first one.
fn prepare_run_dir() -> Result<()> {
    let prepare = || -> io::Result<()> {
        fs::create_dir_all(RUN_DIR)?;
        // Against others who find the same; `ip` takes this lock too. Released when the file is closed.
        let directory = File::open(RUN_DIR)?;
        directory.lock()?;
        let (none, recursive) = (None::<&Path>, MsFlags::MS_REC);
        match mount(none, RUN_DIR, none, MsFlags::MS_SHARED | recursive, none) {
            Err(Errno::EINVAL) => {
                mount(Some(RUN_DIR), RUN_DIR, none, MsFlags::MS_BIND | recursive, none)?;
                Ok(mount(none, RUN_DIR, none, MsFlags::MS_SHARED | recursive, none)?)
            }
            result => Ok(result?),
        }
    };
    prepare().map_err(Error::os(format!("make {RUN_DIR} a shared mount")))
}

/// Unmounts and unlinks. Both may have been done already, by `ip netns del` or another sweep.
fn detach(path: &Path) {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(errno) => eprintln!("bulkhead-topology: unmount {}: {errno}", path.display()),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            eprintln!("bulkhead-topology: remove {}: {error}", path.display());
        }
        _ => {}
    }
}

pub(crate) fn name(keep: bool, id: &str, label: &str) -> String {
    let owner = if keep { KEPT.to_owned() } else { std::process::id().to_string() };
    format!("{PREFIX}{owner}-{id}-{label}")
}

pub(crate) fn random_id() -> String {
    format!("{:06x}", fastrand::u32(..1 << 24))
}

fn write_sysctl(netns: &str, key: &str, value: &str) -> Result<()> {
    fs::write(Path::new("/proc/sys").join(key), value).map_err(Error::os(format!("{netns}: set {key} to {value}")))
}

fn on_thread<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(f).join()).unwrap_or_else(|payload| panic::resume_unwind(payload))
}

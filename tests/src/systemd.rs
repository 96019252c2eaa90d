//! systemd as process 1 of namespaces of its own, over a copy of this machine's files that nobody else sees. What it starts has its own network, BPF file
//! system, `/run` and `/tmp`, and everything goes with it.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

/// The program; not in any `PATH`.
pub const SYSTEMD: &str = "/lib/systemd/systemd";
/// Its control groups, where they are a hierarchy of version 1 (else all have one, of version 2).
const NAMED: &str = "/sys/fs/cgroup/systemd";
/// How long it may take to start, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Prepares the file system and becomes systemd. `$1` is a directory for what changes, `$2` one that is to be seen at `/mnt`.
const BOOT: &str = r#"
set -e
mount --make-rprivate /
mount -t tmpfs changes "$1"
cd "$1"
mkdir changed work root
mount -t overlay root -o lowerdir=/,upperdir=changed,workdir=work root
cd root
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t bpf bpf sys/fs/bpf
mount -t tmpfs cgroup sys/fs/cgroup
if [ "$3" = named ]; then
  mkdir sys/fs/cgroup/systemd
  mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
else
  mount -t cgroup2 cgroup sys/fs/cgroup
fi
mount --rbind /dev dev
mount -t tmpfs run run
mount -t tmpfs tmp tmp
mount --bind "$2" mnt
ip link set lo up
echo bulkhead-node >etc/hostname
# Nothing of the machine's own starts but what a unit needs to start at all.
rm -rf etc/systemd/system
mkdir etc/systemd/system
printf '[Unit]\nRequires=sysinit.target\n' > etc/systemd/system/bulkhead-test.target
for unit in modules-load networkd random-seed remount-fs resolved sysctl timesyncd udev-trigger udevd; do
  ln -s /dev/null "etc/systemd/system/systemd-$unit.service"
done
exec env -i container=bulkhead-test PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot . /lib/systemd/systemd --unit=bulkhead-test.target
"#;

/// A running systemd. Dropped, it ends with all that it started.
#[derive(Debug)]
pub struct Systemd {
    unshare: Child,
    /// Its number as we see it.
    pid: u32,
    group: PathBuf,
    _changes: tempfile::TempDir,
}

impl Systemd {
    /// Starts it, and waits until it is ready. A directory is seen at `/mnt`.
    ///
    /// # Errors
    /// It does not start; what it printed went to our standard error.
    pub fn start(mnt: &Path) -> Result<Self> {
        let changes = tempfile::tempdir()?;
        let (hierarchy, groups) =
            if Path::new(NAMED).exists() { ("named", NAMED) } else { ("unified", "/sys/fs/cgroup") };
        // A group of its own, since that of whoever starts it is the root of what it sees.
        let name = changes.path().file_name().unwrap_or_default().to_string_lossy();
        let group = Path::new(groups).join(format!("bulkhead-test{name}"));
        fs::create_dir(&group).with_context(|| format!("make {}", group.display()))?;
        let enter = r#"echo $$ > "$0"/cgroup.procs && exec "$@""#;
        let unshare = Command::new("sh")
            .args(["-c", enter])
            .arg(&group)
            .args(["unshare", "-mpuiCn", "--fork", "--kill-child", "sh", "-c", BOOT, "boot"])
            .args([changes.path(), mnt])
            .arg(hierarchy)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("start unshare")?;
        let mut systemd = Self { unshare, pid: 0, group, _changes: changes };
        let start = Instant::now();
        loop {
            if let Some(pid) = systemd.first_child()? {
                systemd.pid = pid;
                let state = systemd.run(&["systemctl", "is-system-running"])?;
                if matches!(String::from_utf8_lossy(&state.stdout).trim(), "running" | "degraded") {
                    return Ok(systemd);
                }
            }
            ensure!(systemd.unshare.try_wait()?.is_none(), "systemd ended");
            ensure!(start.elapsed() < PATIENCE, "systemd is not ready after {PATIENCE:?}");
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// The one that is process 1 inside, once it is systemd.
    fn first_child(&self) -> Result<Option<u32>> {
        let unshare = self.unshare.id();
        let children = match fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")) {
            Err(error) if error.kind() == ErrorKind::NotFound => bail!("unshare ended"),
            children => children?,
        };
        let Some(child) = children.split_whitespace().next() else { return Ok(None) };
        let name = fs::read_to_string(format!("/proc/{child}/comm"));
        let is_systemd = matches!(name, Ok(name) if name.trim() == "systemd");
        Ok(if is_systemd { Some(child.parse()?) } else { None })
    }

    /// Runs a program inside.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run(&self, words: &[&str]) -> io::Result<Output> {
        let pid = self.pid.to_string();
        Command::new("nsenter")
            .args(["-t", &pid, "-m", "-p", "-u", "-i", "-C", "-n", "-r", "-w", "--"])
            .args(words)
            .output()
    }

    /// What a program inside printed.
    ///
    /// # Errors
    /// It failed; the error has what it printed.
    pub fn good(&self, words: &[&str]) -> Result<String> {
        let output = self.run(words)?;
        let [said, wrong] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        ensure!(output.status.success(), "{words:?}: {}: {said}{wrong}", output.status);
        Ok(said)
    }

    /// A property of a unit, as `systemctl show` has it.
    ///
    /// # Errors
    /// There is no answer.
    pub fn property(&self, unit: &str, name: &str) -> Result<String> {
        Ok(self.good(&["systemctl", "show", "--value", "--property", name, unit])?.trim().to_owned())
    }

    /// A file inside.
    #[must_use]
    pub fn file(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.pid))
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        // Its first child goes with it, and with that one all of the namespace.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        // The last process may still be on its way out.
        let start = Instant::now();
        while remove_groups(&self.group).is_err() && start.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Removes a control group with those below it.
fn remove_groups(group: &Path) -> io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_groups(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

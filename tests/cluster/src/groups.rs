//! Control groups, of version 1 (one hierarchy for each controller) or 2 (one for all; not tried yet).

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

const ROOT: &str = "/sys/fs/cgroup";
/// How long the last processes may take to leave.
const PATIENCE: Duration = Duration::from_secs(20);

/// A control group in all hierarchies, removed with all below it when it is dropped.
#[derive(Debug)]
pub(crate) struct Groups {
    name: String,
}

impl Groups {
    pub(crate) fn new(name: &str) -> Result<Self> {
        let groups = Self { name: name.to_owned() };
        enable_controllers();
        for hierarchy in hierarchies() {
            let group = hierarchy.join(name);
            match fs::create_dir(&group) {
                // `cpu` and `cpuacct` may be two names of one.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                result => result.with_context(|| format!("make {}", group.display()))?,
            }
            // A new group of this controller has none of either, and takes no process until it has.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(all) = fs::read(hierarchy.join(file)) {
                    fs::write(group.join(file), all)?;
                }
            }
        }
        Ok(groups)
    }

    /// As kubelet's settings have it.
    pub(crate) fn root(&self) -> String {
        format!("/{}", self.name)
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        let start = Instant::now();
        for group in all_hierarchies().into_iter().map(|hierarchy| hierarchy.join(&self.name)) {
            while group.exists() && remove(&group).is_err() && start.elapsed() < PATIENCE {
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// Removes empty groups with names that say that they are to go.
pub(crate) fn sweep(goes: impl Fn(&str) -> bool) {
    for hierarchy in all_hierarchies() {
        for entry in fs::read_dir(hierarchy).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_some_and(&goes) {
                // Its processes may be on their way out; the next one tries again.
                let _ = remove(&entry.path());
            }
        }
    }
}

/// Those that kubelet looks for its group in.
fn hierarchies() -> Vec<PathBuf> {
    let mut all = all_hierarchies();
    if all.len() > 1 {
        // Beside those of version 1 it has no controllers.
        all.retain(|hierarchy| !hierarchy.ends_with("unified"));
    }
    all
}

/// In version 2 a group has the controllers that the one above hands down, and the kubelet wants all.
fn enable_controllers() {
    for controller in
        fs::read_to_string(Path::new(ROOT).join("cgroup.controllers")).unwrap_or_default().split_whitespace()
    {
        // Some may be in use by others; the kubelet says what it lacks.
        let _ = fs::write(Path::new(ROOT).join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

fn all_hierarchies() -> Vec<PathBuf> {
    let root = Path::new(ROOT);
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    let entries = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.join("cgroup.procs").exists()).collect()
}

fn remove(group: &Path) -> io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

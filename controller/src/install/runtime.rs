//! Container runtimes: where each has its networks and plugins, and how one tells which of them a node has.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::place::Placement;

/// A container runtime that uses CNI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// containerd, as Kubernetes uses it.
    Containerd,
    /// CRI-O.
    Crio,
    /// k3s, with the containerd that it brings along.
    K3s,
    /// podman on its CNI back end.
    Podman,
}

impl Runtime {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Containerd, Self::Crio, Self::K3s, Self::Podman];

    /// As it is called on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Crio => "crio",
            Self::K3s => "k3s",
            Self::Podman => "podman",
        }
    }

    /// How it chooses among networks.
    #[must_use]
    pub const fn placement(self) -> Placement {
        match self {
            Self::Containerd | Self::Crio | Self::K3s => Placement::First,
            // Each container names its networks.
            Self::Podman => Placement::InPlace,
        }
    }

    /// Directory of its networks, where it is not configured otherwise.
    #[must_use]
    pub const fn networks(self) -> &'static str {
        match self {
            Self::K3s => "/var/lib/rancher/k3s/agent/etc/cni/net.d",
            Self::Containerd | Self::Crio | Self::Podman => "/etc/cni/net.d",
        }
    }

    /// Directory of its plugins: the first of the usual ones that is there, else the most usual one.
    #[must_use]
    pub fn plugins(self, root: &Path) -> PathBuf {
        let usual: &[&str] = match self {
            Self::Containerd | Self::Crio => &["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"],
            // Since 1.28 plugins of others have a place that an upgrade leaves alone.
            Self::K3s => &["/var/lib/rancher/k3s/data/cni", "/var/lib/rancher/k3s/data/current/bin"],
            Self::Podman => &["/usr/lib/cni", "/usr/libexec/cni", "/opt/cni/bin"],
        };
        let there = usual.iter().find(|path| below(root, path).is_dir());
        PathBuf::from(there.unwrap_or(&usual[0]))
    }

    /// Whether a node has it.
    fn is_there(self, root: &Path) -> bool {
        let signs: &[&str] = match self {
            Self::Containerd => &["/run/containerd/containerd.sock"],
            Self::Crio => &["/run/crio/crio.sock"],
            Self::K3s => &["/var/lib/rancher/k3s/agent"],
            Self::Podman => &["/usr/bin/podman"],
        };
        signs.iter().any(|path| below(root, path).exists())
    }

    /// Those that a node has, whose root directory this is.
    #[must_use]
    pub fn found(root: &Path) -> Vec<Self> {
        Self::ALL.into_iter().filter(|runtime| runtime.is_there(root)).collect()
    }
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn runtimes_are_told_by_what_they_leave_on_a_node() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Runtime::found(root.path()), []);
        assert_eq!(Runtime::Podman.plugins(root.path()), Path::new("/usr/lib/cni"));
        for directory in ["usr/bin", "opt/cni/bin", "var/lib/rancher/k3s/agent"] {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        fs::write(root.path().join("usr/bin/podman"), "").unwrap();
        assert_eq!(Runtime::found(root.path()), [Runtime::K3s, Runtime::Podman]);
        assert_eq!(Runtime::Podman.plugins(root.path()), Path::new("/opt/cni/bin"));
    }
}

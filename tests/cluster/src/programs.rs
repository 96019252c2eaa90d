//! What a cluster is made of, and whether it is there.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// What brings whatever is missing.
const REMEDY: &str = "`tests/setup/setup.sh --test` installs it";
/// From packages.
const INSTALLED: [&str; 9] =
    ["conntrack", "containerd", "containerd-shim-runc-v2", "ctr", "iptables", "nsenter", "openssl", "runc", "unshare"];
/// Where they may be.
const PATH: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// Reference CNI plugins.
const REFERENCE: &str = "/usr/lib/cni";
/// Written last when the programs have been built.
const STAMP: &str = "stamp";

/// Directories of programs.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    /// Those of Kubernetes, etcd and flannel, and the images.
    directory: PathBuf,
    /// Flannel's CNI plugin.
    flannel: PathBuf,
}

impl Programs {
    /// Finds them beside the program that runs: both are below cargo's target directory.
    pub(crate) fn find() -> Result<Self> {
        let running = env::current_exe()?;
        let mut above = running.ancestors().skip(1).take(4);
        let target = above.find(|directory| directory.join("kubernetes").join(STAMP).is_file()).with_context(|| {
            format!(
                "no programs of Kubernetes in a directory above {} ({REMEDY}; it needs Go 1.25 or later)",
                running.display()
            )
        })?;
        Ok(Self { directory: target.join("kubernetes"), flannel: target.join("cni/flannel") })
    }

    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Archive of all images.
    pub(crate) fn images(&self) -> PathBuf {
        self.directory.join("images.tar")
    }

    /// A `PATH` with these programs.
    pub(crate) fn path(&self) -> String {
        format!("{}:{}", self.directory.display(), PATH.join(":"))
    }

    /// Copies all CNI plugins, the reference ones and flannel's.
    pub(crate) fn copy_plugins(&self, to: &Path) -> Result<()> {
        for entry in fs::read_dir(REFERENCE).with_context(|| format!("read {REFERENCE}"))? {
            let entry = entry?;
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
        fs::copy(&self.flannel, to.join("flannel")).with_context(|| format!("copy {}", self.flannel.display()))?;
        Ok(())
    }
}

/// Whether a [`Cluster`](crate::Cluster) can start here.
///
/// # Errors
/// What is missing, and the remedy.
pub fn available() -> Result<(), String> {
    let there = |name: &&str| PATH.iter().any(|directory| Path::new(directory).join(name).exists());
    if let Some(missing) = INSTALLED.iter().find(|name| !there(name)) {
        return Err(format!("{missing} ({REMEDY})"));
    }
    let programs = Programs::find().map_err(|error| error.to_string())?;
    for file in [&programs.flannel, &Path::new(REFERENCE).join("bridge")] {
        if !file.is_file() {
            return Err(format!("{} ({REMEDY})", file.display()));
        }
    }
    Ok(())
}

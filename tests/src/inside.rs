//! What runs in a pod's network, without a process of its own there.

use std::{
    fs::{self, File},
    net::{IpAddr, UdpSocket},
    path::PathBuf,
    sync::mpsc,
    thread,
};

use anyhow::{Context as _, Result};
use bulkhead_cluster::Node;
use nix::sched::{CloneFlags, setns};

/// A pod's network.
#[derive(Debug)]
pub struct Pod {
    namespace: PathBuf,
    /// Its address.
    pub address: IpAddr,
}

impl Pod {
    /// Finds it among the network namespaces of a node, by its address.
    ///
    /// # Errors
    /// No namespace has it.
    pub fn new(node: &Node, address: &str) -> Result<Self> {
        let address: IpAddr = address.parse()?;
        let mut namespaces = fs::read_dir(node.file("/run/netns"))?.map(|entry| Ok(entry?.path()));
        let found = namespaces.find_map(|namespace: Result<PathBuf>| {
            let pod = Self { namespace: namespace.ok()?, address };
            pod.spawn(move || UdpSocket::bind((address, 0)).is_ok()).ok()?.recv().ok()?.then_some(pod)
        });
        found.with_context(|| format!("no pod of {} has {address}", node.name))
    }

    /// Runs something there, on a thread of its own. What it came to is sent, unless nobody listens.
    ///
    /// # Errors
    /// The pod is gone.
    pub fn spawn<T: Send + 'static>(&self, run: impl FnOnce() -> T + Send + 'static) -> Result<mpsc::Receiver<T>> {
        let namespace = File::open(&self.namespace)?;
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            if setns(namespace, CloneFlags::CLONE_NEWNET).is_ok() {
                let _ = sender.send(run());
            }
        });
        Ok(receiver)
    }
}

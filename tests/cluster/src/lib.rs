//! A real Kubernetes with flannel in namespaces of this machine.
//!
//! A [`Cluster`] is an API server with etcd, controller manager and scheduler in a network namespace of their own, and two or more nodes in namespaces of
//! theirs, each with containerd, kubelet, flanneld (VXLAN, VNI 1, UDP 8472), kube-proxy and what the pods bring; and CoreDNS. The machine's own network
//! namespace stays as it is. Everything goes when the value is dropped, also on a panic; when its process is killed, all processes end with it, and the next
//! cluster removes their empty control groups, namespaces and directories.
//!
//! ```no_run
//! use bulkhead_cluster::{Cluster, ProxyMode};
//!
//! let cluster = Cluster::builder().nodes(2).proxy(ProxyMode::Nftables).start()?;
//! cluster.apply("{apiVersion: v1, kind: Namespace, metadata: {name: shop}}")?;
//! println!("{}", cluster.kubectl(&["get", "namespaces"])?);
//! # anyhow::Ok(())
//! ```
//!
//! The programs are built and the images made by `tests/setup/setup.sh --test`, from the Go module in `tests/kubernetes`; no registry is asked. See
//! [`available`].

mod cluster;
mod control;
mod credentials;
mod daemon;
mod groups;
mod node;
mod plan;
mod programs;
mod shared;
mod space;

pub use self::{
    cluster::{Builder, Cluster, sweep},
    daemon::Daemon,
    node::Node,
    plan::{Backend, ProxyMode},
    programs::available,
};

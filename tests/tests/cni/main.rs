//! The CNI plugin, called as a container runtime calls it, behind the reference plugins on real links and a real overlay.
//!
//! Containers are network namespaces; those of a real runtime are in `podman`.

mod chain;
mod lifecycle;
mod podman;

//! Kubernetes manifests: what is read of them, and what is said of bad ones.

mod data;
mod diagnostics;
mod own;

//! A real Kubernetes with flannel whose nodes Bulkhead guards, with the API server as the source.

mod admin;
mod agree;
mod crd;
mod daemonset;
mod dump;
mod flood;
mod forged;
mod hand;
mod handover;
mod lasting;
mod mesh;
mod monitor;
mod moving;
mod netpol;
mod open;
mod parted;
mod plain;
mod puppet;
mod said;
mod sctp;
mod services;
mod shop;

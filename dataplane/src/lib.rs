//! The node half of Bulkhead: loads, pins and attaches the eBPF programs, publishes tables, discovers links, reads events.
//!
//! No call of bpf(2), netlink or nftables stands outside this crate. The intent half knows it by [`node::Node`] alone.

pub mod attach;
pub mod baseline;
pub mod bypass;
mod bytes;
pub mod causes;
pub mod check;
pub mod clock;
pub mod cni;
mod command;
pub mod connections;
pub mod desired;
pub mod expedite;
mod filters;
pub mod gate;
mod grace;
pub mod input_rule;
mod iptables_save;
pub mod kernel;
pub mod listed;
pub mod load;
pub mod mark;
pub mod memory;
pub mod names;
mod netlink;
mod netns;
pub mod network;
mod nft;
pub mod node;
pub mod pieces;
pub mod pins;
pub mod publish;
pub mod read;
pub mod rights;
pub mod store;
pub mod sys;

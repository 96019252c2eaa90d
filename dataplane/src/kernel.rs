//! The node as the kernel has it.

mod node;
mod store;

pub use self::{
    node::{GATE, INPUT_RULE, KernelNode, Options, Reader, XdpMode, attached, detach, idle},
    store::KernelStore,
};

//! The node as the kernel has it.

mod node;
mod reader;
mod standing;
mod store;

pub use self::{
    node::{KernelNode, Options, XdpMode, attached, detach, idle},
    reader::{GATE, INPUT_RULE, Reader},
    store::KernelStore,
};

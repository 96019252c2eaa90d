//! The programs in the kernel.

use bulkhead_dataplane::{kernel::KernelStore, node::NodeError};
use bulkhead_ebpf::abi::Direction;
use bulkhead_model::{
    Packet,
    generate::TUNNEL_PORT,
    packet::{Body, Broken},
};
use bulkhead_tests::test_run::{Frame, Kernel, Passed, small};

use crate::walls::Programs;

/// Loads them with tables of their own.
pub(crate) fn load() -> Result<(KernelStore, Kernel), NodeError> {
    Kernel::load(&small(), [TUNNEL_PORT, 0, 0, 0])
}

impl Programs for Kernel {
    type Store = KernelStore;

    fn published(&mut self, _fresh: &[u32]) {}

    fn can_run(&self, packet: &Packet) -> bool {
        // Since 6.18 a test run refuses frames that say they are IP and do not hold the whole header.
        !matches!(packet.body, Body::Broken(Broken::CutHeader(_)))
    }

    fn run(&mut self, direction: Direction, slot: u32, frame: &Frame) -> Result<Passed, String> {
        self.wall(direction, slot, frame)
    }

    fn leave(&mut self, vni: u32, frame: &Frame) -> Result<Passed, String> {
        self.overlay_out(vni, frame)
    }
}

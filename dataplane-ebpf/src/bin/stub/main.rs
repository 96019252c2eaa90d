//! The stub of each link: stores what the link is and jumps to the program, so that one array write upgrades every link.
//!
//! Built for `bpfel-unknown-none` by the build script of `bulkhead-dataplane`; on the host this file is an empty program.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        bindings::xdp_action,
        macros::{classifier, map, xdp},
        maps::ProgramArray,
        programs::{TcContext, XdpContext},
    };
    use bulkhead_ebpf::abi::program;

    /// Programs for TC, by [`program`].
    #[map]
    static PROGRAMS_TC: ProgramArray = ProgramArray::with_max_entries(program::COUNT, 0);
    /// The kernel wants an array for each program type.
    #[map]
    static PROGRAMS_XDP: ProgramArray = ProgramArray::with_max_entries(1, 0);
    /// And one for programs that take packets in one buffer only.
    #[map]
    static PROGRAMS_XDP_GENERIC: ProgramArray = ProgramArray::with_max_entries(1, 0);

    /// Slot of the endpoint, or [`bulkhead_ebpf::abi::overlay`] of a VXLAN device. Set by the loader.
    #[unsafe(no_mangle)]
    static VALUE: u32 = 0;
    /// Index of the program. Set by the loader.
    #[unsafe(no_mangle)]
    static INDEX: u32 = 0;

    /// Reads a constant that the loader sets, which the compiler must not fold.
    #[inline(always)]
    fn setting(value: &'static u32) -> u32 {
        // SAFETY: a reference.
        unsafe { core::ptr::read_volatile(value) }
    }

    /// TC: a failed jump drops.
    #[classifier]
    fn tc_stub(mut context: TcContext) -> i32 {
        context.cb_mut()[0] = setting(&VALUE);
        // Returns only when it fails.
        let _ = unsafe { PROGRAMS_TC.tail_call(&context, setting(&INDEX)) };
        2
    }

    /// XDP in drivers: a failed jump drops.
    #[xdp(frags)]
    fn xdp_stub(context: XdpContext) -> u32 {
        // Returns only when it fails.
        let _ = unsafe { PROGRAMS_XDP.tail_call(&context, program::UNDERLAY) };
        xdp_action::XDP_DROP
    }

    /// Generic XDP: a failed jump drops.
    #[xdp]
    fn xdp_stub_generic(context: XdpContext) -> u32 {
        // Returns only when it fails.
        let _ = unsafe { PROGRAMS_XDP_GENERIC.tail_call(&context, program::UNDERLAY) };
        xdp_action::XDP_DROP
    }

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
        // No program can panic: the verifier refuses one that might get here.
        loop {}
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

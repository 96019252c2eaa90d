//! What the benchmarks measure against: programs that do nothing, programs that do the least that keeping flows can cost, and drivers, which
//! make each run of a test run a fresh packet before they jump to the program under test. (A test run gives every run the packet and the mark
//! that the run before it left.) What a driver costs is what it costs before [`empty_tc`].
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
        maps::{Array, LruHashMap, PerCpuArray, ProgramArray},
        programs::{TcContext, XdpContext},
    };
    use bulkhead_ebpf::abi::{Counter, FlowKey4, node};

    /// Flows, filled by the benchmark.
    #[map]
    static FLOOR_FLOWS: LruHashMap<FlowKey4, u64> = LruHashMap::with_max_entries(16_384, 0);
    /// Two counters.
    #[map]
    static FLOOR_COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(2, 0);

    /// `TCX_NEXT`.
    const NEXT: i32 = -1;

    /// Does nothing, TC.
    #[classifier]
    fn empty_tc(_context: TcContext) -> i32 {
        NEXT
    }

    /// Does nothing, XDP.
    #[xdp(frags)]
    fn empty_xdp(_context: XdpContext) -> u32 {
        xdp_action::XDP_PASS
    }

    /// Parses IPv4 and TCP or UDP ports at fixed places, looks one flow up, counts twice.
    #[classifier]
    fn floor_tc(context: TcContext) -> i32 {
        floor(context.data(), context.data_end(), context.len());
        NEXT
    }

    /// See [`floor_tc`].
    #[xdp(frags)]
    fn floor_xdp(context: XdpContext) -> u32 {
        let (start, end) = (context.data(), context.data_end());
        floor(start, end, (end - start) as u32);
        xdp_action::XDP_PASS
    }

    /// The program that the drivers jump to.
    #[map]
    static TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);
    /// The tables' own map of this name.
    #[map]
    static ENDPOINTS: Array<u64> = Array::with_max_entries(1024, 1 << 10);
    /// Likewise.
    #[map]
    static NODE: Array<u64> = Array::with_max_entries(node::COUNT, 1 << 10);

    /// `TCX_DROP`.
    const DROP: i32 = 2;

    /// Sets the mark that the packet came with, from `cb[2]`, and jumps. (`cb[1]` is the programs' own.)
    #[inline(always)]
    fn jump(context: &TcContext) -> i32 {
        context.set_mark(context.cb()[2]);
        // SAFETY: nothing is left to be dropped here. Returns only when it fails.
        unsafe { TARGET.tail_call(context, 0) };
        DROP
    }

    /// A packet of the same flow as the one before it.
    #[classifier]
    fn same_flow(context: TcContext) -> i32 {
        jump(&context)
    }

    /// A packet from another port than the one before it: TCP or UDP behind a header without options or extensions.
    #[classifier]
    fn next_flow(context: TcContext) -> i32 {
        let (start, end) = (context.data(), context.data_end());
        if start + 58 <= end {
            // SAFETY: 58 bytes are there; unaligned access to packet data is what the verifier permits on this architecture.
            unsafe {
                let v4 = ((start + 12) as *const u16).read() == 0x0800_u16.to_be();
                let port = (start + if v4 { 34 } else { 54 }) as *mut u16;
                port.write(u16::from_be(port.read()).wrapping_add(1).to_be());
            }
        }
        jump(&context)
    }

    /// A packet in another epoch of the endpoint in `cb[0]` than the one before it: its flow must be judged again.
    #[classifier]
    fn next_epoch(context: TcContext) -> i32 {
        if let Some(word) = ENDPOINTS.get_ptr_mut(context.cb()[0]) {
            // SAFETY: an aligned word in an array; nobody else writes it meanwhile.
            unsafe { word.write_volatile(word.read_volatile().wrapping_add(1 << 32)) };
        }
        jump(&context)
    }

    /// A packet in another generation of the overlays' tables than the one before it.
    #[classifier]
    fn next_overlays(context: TcContext) -> i32 {
        if let Some(generation) = NODE.get_ptr_mut(node::OVERLAYS) {
            // SAFETY: an aligned word in an array; nobody else writes it meanwhile.
            unsafe { generation.write_volatile(generation.read_volatile().wrapping_add(1)) };
        }
        jump(&context)
    }

    /// Number of the flow that [`each_flow`] comes to next, and the state of [`random_flow`]'s generator.
    #[map]
    static SPREAD: Array<u32> = Array::with_max_entries(2, 0);

    /// A packet of each of `cb[3]` flows in turn.
    #[classifier]
    fn each_flow(context: TcContext) -> i32 {
        if let Some(next) = SPREAD.get_ptr_mut(0) {
            // SAFETY: an aligned word in an array; nobody else writes it meanwhile.
            let number = unsafe {
                *next = (*next).wrapping_add(1);
                *next
            };
            let flows = context.cb()[3];
            one_of(&context, if flows == 0 { 0 } else { number % flows });
        }
        jump(&context)
    }

    /// A packet of one of `cb[3]` flows, drawn at random (xorshift32).
    #[classifier]
    fn random_flow(context: TcContext) -> i32 {
        if let Some(state) = SPREAD.get_ptr_mut(1) {
            // SAFETY: as above.
            let number = unsafe {
                let mut x = if *state == 0 { 0x9e37_79b9 } else { *state };
                x ^= x << 13;
                x ^= x >> 17;
                x ^= x << 5;
                *state = x;
                x
            };
            one_of(&context, ((number as u64 * context.cb()[3] as u64) >> 32) as u32);
        }
        jump(&context)
    }

    /// Peers among which flows are spread: workloads of that many nodes.
    const PEERS: u32 = 250;

    /// Makes the packet one of the flow of this number: the peer's node, at `cb[4]` in its address, and the lower one of the two ports.
    #[inline(always)]
    fn one_of(context: &TcContext, number: u32) {
        let (start, end) = (context.data(), context.data_end());
        let at = start + (context.cb()[4] & 0x3f) as usize;
        // Two bytes: the verifier does not see what a comparison with the end itself means.
        if start + 64 <= end && at + 2 <= end {
            // SAFETY: 64 bytes are there, and the place is one of them; unaligned access as above.
            unsafe {
                (at as *mut u8).write((1 + number % PEERS) as u8);
                let v4 = ((start + 12) as *const u16).read() == 0x0800_u16.to_be();
                ((start + if v4 { 34 } else { 54 }) as *mut u16).write((1024 + number / PEERS) as u16);
            }
        }
    }

    #[inline(always)]
    fn floor(start: usize, end: usize, len: u32) {
        if start + 38 > end {
            return;
        }
        // SAFETY: 38 bytes are there; unaligned loads of packet data are what the verifier permits on this architecture.
        let key = unsafe {
            if ((start + 12) as *const u16).read() != 0x0800_u16.to_be() || ((start + 14) as *const u8).read() != 0x45 {
                return;
            }
            FlowKey4 {
                local: ((start + 26) as *const u32).read(),
                remote: ((start + 30) as *const u32).read(),
                local_port: ((start + 34) as *const u16).read(),
                remote_port: ((start + 36) as *const u16).read(),
                protocol: ((start + 23) as *const u8).read(),
                padding: [0; 3],
            }
        };
        let known = FLOOR_FLOWS.get_ptr(&key).is_some();
        for index in [0, known as u32] {
            if let Some(counter) = FLOOR_COUNTERS.get_ptr_mut(index) {
                // SAFETY: this CPU's slot of a per-CPU array.
                unsafe {
                    (*counter).packets += 1;
                    (*counter).bytes += len as u64;
                }
            }
        }
    }

    /// Frames that [`replay_xdp`] plays, all of one length; and which comes next.
    #[map]
    static REPLAY: Array<[u8; REPLAY_LEN]> = Array::with_max_entries(REPLAY_FRAMES, 0);
    #[map]
    static REPLAY_NEXT: Array<u32> = Array::with_max_entries(1, 0);
    const REPLAY_LEN: usize = 192;
    const REPLAY_FRAMES: u32 = 64;

    /// Writes the next frame over the one that came, so that one live-frames run puts different frames into one batch.
    #[xdp(frags)]
    fn replay_xdp(context: XdpContext) -> u32 {
        let Some(next) = REPLAY_NEXT.get_ptr_mut(0) else {
            return xdp_action::XDP_DROP;
        };
        // SAFETY: a live-frames run is the only one that uses it.
        let number = unsafe {
            *next = (*next).wrapping_add(1);
            (*next).wrapping_sub(1)
        };
        let Some(frame) = REPLAY.get(number % REPLAY_FRAMES) else {
            return xdp_action::XDP_DROP;
        };
        if context.data() + REPLAY_LEN > context.data_end() {
            return xdp_action::XDP_DROP;
        }
        // Word by word: the stack has no room for a frame.
        let (to, from) = (context.data() as *mut u64, core::ptr::from_ref(frame).cast::<u64>());
        for word in 0..REPLAY_LEN / 8 {
            // SAFETY: that many bytes are there; unaligned access to packet data is what the verifier permits on this architecture.
            unsafe { to.add(word).write(from.add(word).read()) };
        }
        xdp_action::XDP_PASS
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

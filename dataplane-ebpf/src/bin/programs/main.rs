//! The programs: thin wrappers around the library, for TC (TCX or clsact) and XDP.
//!
//! Built for `bpfel-unknown-none` by the build script of `bulkhead-dataplane`; on the host this file is an empty program.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod skb;

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        bindings::{__sk_buff, xdp_action},
        macros::{classifier, map, xdp},
        maps::ProgramArray,
        programs::{TcContext, XdpContext},
    };
    use bulkhead_ebpf::{
        abi::{Direction, endpoint_counter, mark, overlay, program},
        direct::{self, Arrival, Way},
        packet::Fault,
        reason::Reason,
        tables::{Size, Tables},
        underlay::{self, Passage},
        verdict::{self, Next, Outcome},
    };

    use crate::{
        maps::Maps,
        skb::{Buffer, Skb, hide},
    };

    /// Go on with the next program of this link: `TCX_NEXT`, which clsact calls `TC_ACT_UNSPEC`. `TC_ACT_OK` would skip other people's programs.
    const NEXT: i32 = -1;
    /// `TC_ACT_SHOT`, `TCX_DROP`.
    const DROP: i32 = 2;
    /// The programs, to jump to [`translated`] and back.
    #[map]
    static PROGRAMS_TC: ProgramArray = ProgramArray::with_max_entries(program::COUNT, 0);
    /// Where a packet is when it has its verdict, in `cb[1]` between programs. [`translated`] goes on into an overlay or into the workload whose slot
    /// is in `cb[0]`.
    mod stage {
        /// It leaves a workload.
        pub(super) const FROM: u32 = 0;
        /// It enters a workload.
        pub(super) const TO: u32 = 1;
        /// Its sender is judged, before it enters a workload.
        pub(super) const SENDER_TO: u32 = 2;
        /// The same, before it enters an overlay.
        pub(super) const SENDER_OUT: u32 = 3;
    }

    /// A header is not in the readable part: make it readable and call again. Never returned to the kernel.
    const AGAIN: i32 = -100;

    /// What becomes of a packet whose headers are not there, or cannot be made readable.
    #[derive(Clone, Copy)]
    enum Unread {
        /// It goes on: somebody else judges it.
        Passes,
        /// At the node's boundary: what ends in the middle of a header goes on, which no tunnel takes; what memory is too short for is dropped.
        OfNode(Direction),
        /// It is dropped, and counted for the endpoint of this slot; where it is observed, it goes on from this stage.
        OfEndpoint { slot: u32, direction: Direction, stage: u32 },
    }

    /// Runs a program's body; again, with more of the packet readable, when it asks for that. A packet that asks twice is malformed.
    ///
    /// The body is inlined, and stands in a loop so that there is one copy of it: a call costs 7 ns where returns are guarded.
    #[inline(always)]
    fn run(context: &TcContext, body: impl Fn(*mut __sk_buff) -> i32, unread: Unread) -> i32 {
        let skb = Skb::new(context.skb.skb);
        let mut pulled = 0;
        let reason = loop {
            let action = body(skb.0);
            if action != AGAIN {
                return action;
            }
            // Hidden, or the compiler makes two copies of the body out of the loop.
            if hide(pulled) != 0 {
                break Reason::Malformed;
            }
            if !skb.pull() {
                break Reason::NoMemory;
            }
            pulled = 1;
        };
        match unread {
            Unread::Passes => NEXT,
            Unread::OfNode(direction) => {
                let short = matches!(reason, Reason::NoMemory);
                if short && !underlay::refuse(&Maps, direction, reason, skb.len(), skb.segments()) {
                    DROP
                } else {
                    NEXT
                }
            }
            Unread::OfEndpoint { slot, direction, stage } => {
                let size = Size { packets: skb.segments() as u64, bytes: skb.len() as u64 };
                let observed = verdict::observes(&Maps, slot, Maps.now());
                let reason = if observed { Reason::Observed } else { reason };
                Maps.count_endpoint(endpoint_counter(slot, direction, reason as u8), size, 0);
                if !observed {
                    return DROP;
                }
                conclude(skb, stage, Outcome { pass: true, reason, next: Next::Settled })
            }
        }
    }

    /// The same packet, of which the compiler does not know what it read of it: it would keep all of that on the stack for the long way while it goes
    /// the short one.
    #[inline(always)]
    fn afresh(context: TcContext) -> TcContext {
        TcContext::new(hide(context.skb.skb as u64) as *mut __sk_buff)
    }

    /// Host side of a workload's veth, TC ingress.
    #[classifier]
    #[inline(always)]
    fn from_workload(context: TcContext) -> i32 {
        let skb = Skb::new(context.skb.skb);
        if let Some(outcome) = verdict::established(&Maps, &skb.buffer(), &skb.meta(), Direction::Egress) {
            return conclude(skb, stage::FROM, outcome);
        }
        let context = afresh(context);
        let slot = Skb::new(context.skb.skb).value();
        run(&context, from_workload_body, Unread::OfEndpoint { slot, direction: Direction::Egress, stage: stage::FROM })
    }

    #[inline(always)]
    fn from_workload_body(skb: *mut __sk_buff) -> i32 {
        let skb = Skb::new(skb);
        match verdict::from_workload(&Maps, &skb.buffer(), &skb.meta()) {
            Ok(outcome) => act(skb, stage::FROM, outcome),
            Err(Fault::Truncated) => AGAIN,
            Err(Fault::Malformed) => DROP,
        }
    }

    /// Host side of a workload's veth, TC egress.
    #[classifier]
    #[inline(always)]
    fn to_workload(context: TcContext) -> i32 {
        let skb = Skb::new(context.skb.skb);
        if verdict::unsettled(skb.transit(), skb.mark()) {
            return judge_sender(skb, stage::SENDER_TO);
        }
        if let Some(outcome) = verdict::established(&Maps, &skb.buffer(), &skb.meta(), Direction::Ingress) {
            return conclude(skb, stage::TO, outcome);
        }
        let context = afresh(context);
        let skb = Skb::new(context.skb.skb);
        let unread = Unread::OfEndpoint { slot: skb.value(), direction: Direction::Ingress, stage: stage::TO };
        run(&context, to_workload_body, unread)
    }

    #[inline(always)]
    fn to_workload_body(skb: *mut __sk_buff) -> i32 {
        let skb = Skb::new(skb);
        match verdict::to_workload(&Maps, &skb.buffer(), &skb.meta()) {
            Ok(outcome) => act(skb, stage::TO, outcome),
            Err(Fault::Truncated) => AGAIN,
            Err(Fault::Malformed) => DROP,
        }
    }

    /// Does what a verdict says, or jumps to where the lists are asked.
    #[inline(always)]
    fn act(skb: Skb, stage: u32, outcome: Outcome) -> i32 {
        match outcome.next {
            Next::Decide4 => {
                skb.set_stage(stage);
                jump::<{ program::DECIDE4 }>(skb)
            }
            Next::Decide6 => {
                skb.set_stage(stage);
                jump::<{ program::DECIDE6 }>(skb)
            }
            Next::Settled | Next::Provisional | Next::Direct => conclude(skb, stage, outcome),
        }
    }

    /// A failed jump drops. Its number is fixed at each place, and stays so: only such a jump is a direct one for the kernel's compiler.
    #[inline(always)]
    fn jump<const PROGRAM: u32>(skb: Skb) -> i32 {
        // SAFETY: nothing is left to be dropped here. Returns only when it fails.
        let _ = unsafe { PROGRAMS_TC.tail_call(&TcContext::new(skb.0), PROGRAM) };
        // SAFETY: a register that nobody has is set; an instruction of its own, so that the compiler does not make one jump of two.
        unsafe { core::arch::asm!("{0} = {1}", out(reg) _, const PROGRAM, options(nostack, preserves_flags)) };
        DROP
    }

    /// Does what a verdict says.
    #[inline(always)]
    fn conclude(skb: Skb, stage: u32, outcome: Outcome) -> i32 {
        if !outcome.pass {
            return DROP;
        }
        match stage {
            stage::FROM => {
                let ours = verdict::outgoing_mark(skb.value(), outcome.is_provisional());
                skb.set_mark(ours);
                if matches!(outcome.next, Next::Direct) {
                    return jump::<{ program::FORWARD }>(skb);
                }
            }
            stage::SENDER_TO => {
                skb.set_mark(skb.mark() | mark::FINAL);
                return jump::<{ program::TO_WORKLOAD }>(skb);
            }
            _ => skb.clear_mark(),
        }
        NEXT
    }

    /// Asks the lists about an IPv4 packet of which a program of a workload found no flow that holds.
    #[classifier]
    #[inline(always)]
    fn decide4(context: TcContext) -> i32 {
        let skb = Skb::new(context.skb.skb);
        conclude(skb, skb.stage(), Maps.kept4())
    }

    /// The same, IPv6.
    #[classifier]
    #[inline(always)]
    fn decide6(context: TcContext) -> i32 {
        let skb = Skb::new(context.skb.skb);
        conclude(skb, skb.stage(), Maps.kept6())
    }

    /// Forwards directly what a workload sent. What it has no way for takes the node's way.
    #[classifier]
    #[inline(always)]
    fn forward(context: TcContext) -> i32 {
        run(&context, forward_body, Unread::Passes)
    }

    #[inline(always)]
    fn forward_body(skb: *mut __sk_buff) -> i32 {
        let skb = Skb::new(skb);
        let slot = skb.value();
        let link = match direct::leaves(&Maps, &skb.buffer(), slot) {
            Ok(Way::Link(link)) => link,
            Ok(Way::Overlay(hop)) => skb.route(&hop).unwrap_or(0),
            Ok(Way::Node) | Err(Fault::Malformed) => 0,
            Err(Fault::Truncated) => return AGAIN,
        };
        if link == 0 {
            direct::gives_up(&Maps, &skb.buffer(), slot);
            return NEXT;
        }
        skb.set_mark(slot & mark::SLOT | mark::DIRECT);
        skb.redirect(link)
    }

    /// Jumps to [`translated`].
    #[inline(always)]
    fn judge_sender(skb: Skb, stage: u32) -> i32 {
        skb.set_stage(stage);
        jump::<{ program::TRANSLATED }>(skb)
    }

    /// Judges by the sender's policy what was sent to a service address, now that the node has chosen a backend, and goes on where it was going.
    #[classifier]
    #[inline(always)]
    fn translated(context: TcContext) -> i32 {
        let skb = Skb::new(context.skb.skb);
        let slot = skb.mark() & mark::SLOT;
        let unread = Unread::OfEndpoint { slot, direction: Direction::Egress, stage: skb.stage() };
        run(&context, translated_body, unread)
    }

    #[inline(always)]
    fn translated_body(skb: *mut __sk_buff) -> i32 {
        let skb = Skb::new(skb);
        let segment = skb.value() & overlay::VNI;
        match verdict::translated(&Maps, &skb.buffer(), &skb.meta(), segment) {
            Ok(outcome) => act(skb, skb.stage(), outcome),
            Err(Fault::Truncated) => AGAIN,
            Err(Fault::Malformed) => DROP,
        }
    }

    /// TC ingress of links that carry the overlay. What cannot be read is foreign and passes without the bit: no tunnel socket takes it.
    #[classifier]
    #[inline(always)]
    fn underlay(context: TcContext) -> i32 {
        run(&context, underlay_body, Unread::Passes)
    }

    #[inline(always)]
    fn underlay_body(skb: *mut __sk_buff) -> i32 {
        let skb = Skb::new(skb);
        match underlay::arrives(&Maps, &skb.buffer(), skb.len(), skb.segments(), skb.vlan_id(), false) {
            Ok(Passage::Foreign) => NEXT,
            Ok(Passage::Verified) => {
                let size = Size { packets: skb.segments() as u64, bytes: skb.len() as u64 };
                underlay::count_verified(&Maps, size);
                skb.set_mark(mark::VERIFIED);
                NEXT
            }
            Ok(Passage::Observed) => {
                skb.set_mark(mark::VERIFIED);
                NEXT
            }
            Ok(Passage::Drop(_) | Passage::Denied) => DROP,
            Err(Fault::Truncated) => AGAIN,
            Err(Fault::Malformed) => NEXT,
        }
    }

    /// TC egress of links that carry the overlay.
    #[classifier]
    #[inline(always)]
    fn underlay_out(context: TcContext) -> i32 {
        if !Skb::new(context.skb.skb).transit() {
            return NEXT;
        }
        run(&context, underlay_out_body, Unread::OfNode(Direction::Egress))
    }

    #[inline(always)]
    fn underlay_out_body(skb: *mut __sk_buff) -> i32 {
        let skb = Skb::new(skb);
        match underlay::forwards_tunnel(&Maps, &skb.buffer(), skb.len(), skb.segments()) {
            Ok(true) => DROP,
            Err(Fault::Truncated) => AGAIN,
            Ok(false) | Err(Fault::Malformed) => NEXT,
        }
    }

    /// TC ingress of a VXLAN device. The bit stays: `to_workload` asks for it.
    #[classifier]
    #[inline(always)]
    fn overlay_in(context: TcContext) -> i32 {
        let skb = Skb::new(context.skb.skb);
        if !underlay::decapsulated(&Maps, skb.value(), skb.mark(), skb.len(), skb.segments()) {
            return DROP;
        }
        run(&context, overlay_in_body, Unread::OfNode(Direction::Ingress))
    }

    #[inline(always)]
    fn overlay_in_body(skb: *mut __sk_buff) -> i32 {
        let skb = Skb::new(skb);
        match underlay::nested(&Maps, &skb.buffer(), skb.value(), skb.len(), skb.segments()) {
            Ok(true) => return DROP,
            Err(Fault::Truncated) => return AGAIN,
            Ok(false) | Err(Fault::Malformed) => {}
        }
        // What the device did not get for itself, it would not route either.
        if !skb.for_device() {
            return NEXT;
        }
        match direct::arrives(&Maps, &skb.buffer(), skb.value() & overlay::VNI, skb.mark(), skb.device()) {
            Ok(Arrival::Link(mac, link)) => {
                if !skb.deliver(mac) {
                    return NEXT;
                }
                skb.set_mark(mark::DIRECT);
                skb.redirect(link)
            }
            Ok(Arrival::Marked) => {
                skb.set_mark(mark::DIRECT);
                NEXT
            }
            Ok(Arrival::Node) | Err(Fault::Malformed) => NEXT,
            Err(Fault::Truncated) => AGAIN,
        }
    }

    /// TC egress of a VXLAN device. What was sent to a service address has its verdict here, and nothing of ours is left on a packet that leaves
    /// the node.
    #[classifier]
    #[inline(always)]
    fn overlay_out(context: TcContext) -> i32 {
        let skb = Skb::new(context.skb.skb);
        if !skb.transit() {
            return NEXT;
        }
        // Also where the device's socket is in another namespace: the mark is lost behind the device, not before it.
        if verdict::unsettled_out(true, skb.mark()) {
            return judge_sender(skb, stage::SENDER_OUT);
        }
        skb.clear_mark();
        NEXT
    }

    /// The underlay check in XDP, where dropping is cheapest, of what is forged and of what the endpoint's policy denies for certain. What it lets
    /// pass is checked again in TC, which alone can mark it.
    #[xdp(frags)]
    fn underlay_xdp(context: XdpContext) -> u32 {
        underlay_xdp_body(&context)
    }

    /// The same for generic XDP, whose packets lie in one buffer.
    #[xdp]
    fn underlay_xdp_generic(context: XdpContext) -> u32 {
        underlay_xdp_body(&context)
    }

    #[inline(always)]
    fn underlay_xdp_body(context: &XdpContext) -> u32 {
        let buffer = Buffer::new(context.data(), context.data_end());
        let len = (context.data_end() - context.data()) as u32;
        match underlay::arrives(&Maps, &buffer, len, 1, 0, true) {
            Ok(Passage::Drop(_) | Passage::Denied) => xdp_action::XDP_DROP,
            _ => xdp_action::XDP_PASS,
        }
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

//! Where our bits lie in `skb->mark`.
//!
//! Verdict code knows them in one form alone, [`mark`]. A node may need other places for them, where somebody else uses these. The programs
//! translate where they read and write the mark, and nobody else sees a difference.

use crate::abi::mark;

/// Places of our bits.
///
/// The slot has the longest run of adjacent bits of the mask (the lowest of several), as many of it as a slot may need; the two flags have the
/// lowest bits that are left. What is left then has no meaning, and is ours all the same: it is cleared with the rest.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Not 0: another one than [`Self::DEFAULT`]. The verifier knows which, and leaves only the branch for it: the default costs no shifting.
    pub moved: u32,
    /// All bits that are ours.
    pub mask: u32,
    /// Bits of a slot before it is shifted into its place.
    pub slot: u32,
    /// How far it is shifted.
    pub shift: u32,
    /// Number of the bit for [`mark::VERIFIED`].
    pub verified_bit: u32,
    /// Number of the bit for [`mark::FINAL`].
    pub final_bit: u32,
}

/// The loader writes it byte by byte.
const _: () = assert!(size_of::<Layout>() == 6 * size_of::<u32>());

impl Layout {
    /// As [`mark`] has them.
    pub const DEFAULT: Self = Self {
        moved: 0,
        mask: mark::MASK,
        slot: mark::SLOT,
        shift: mark::SLOT.trailing_zeros(),
        verified_bit: mark::VERIFIED.trailing_zeros(),
        final_bit: mark::FINAL.trailing_zeros(),
    };

    /// Places within a mask; `None` if it has no room for a slot and two flags.
    #[must_use]
    pub const fn new(mask: u32) -> Option<Self> {
        if mask.count_ones() < 3 {
            return None;
        }
        let (mut run, mut shift, mut rest) = (0, 0, mask);
        while rest != 0 {
            let start = rest.trailing_zeros();
            let length = (rest >> start).trailing_ones();
            if length > run {
                (run, shift) = (length, start);
            }
            // A run that ends at the top leaves nothing, and cannot be shifted out.
            rest = if start + length == u32::BITS { 0 } else { rest >> (start + length) << (start + length) };
        }
        let mut bits = mark::SLOT.count_ones();
        if bits > run {
            bits = run;
        }
        if bits > mask.count_ones() - 2 {
            bits = mask.count_ones() - 2;
        }
        let slot = (1 << bits) - 1;
        let flags = mask & !(slot << shift);
        let verified_bit = flags.trailing_zeros();
        let final_bit = (flags & !(1 << verified_bit)).trailing_zeros();
        let moved = (mask != Self::DEFAULT.mask) as u32;
        Some(Self { moved, mask, slot, shift, verified_bit, final_bit })
    }

    /// How many slots there may be, 0 included.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        self.slot + 1
    }

    /// The bit for [`mark::VERIFIED`].
    #[must_use]
    pub const fn verified(&self) -> u32 {
        1 << self.verified_bit
    }

    /// The bit for [`mark::FINAL`].
    #[must_use]
    pub const fn settled(&self) -> u32 {
        1 << self.final_bit
    }

    /// Our bits of a packet's mark, as [`mark`] has them. Without branches, of which the verifier would follow each combination to the end.
    #[must_use]
    #[inline(always)]
    pub const fn decode(&self, packet_mark: u32) -> u32 {
        if self.moved == 0 {
            return packet_mark & (mark::SLOT | mark::VERIFIED | mark::FINAL);
        }
        packet_mark >> self.shift & self.slot & mark::SLOT
            | (packet_mark >> self.verified_bit & 1) << Self::DEFAULT.verified_bit
            | (packet_mark >> self.final_bit & 1) << Self::DEFAULT.final_bit
    }

    /// A packet's mark with these bits of ours, and its other bits as they were.
    #[must_use]
    #[inline(always)]
    pub const fn encode(&self, packet_mark: u32, ours: u32) -> u32 {
        if self.moved == 0 {
            return packet_mark & !mark::MASK | ours;
        }
        packet_mark & !self.mask
            | (ours & self.slot) << self.shift
            | (ours >> Self::DEFAULT.verified_bit & 1) << self.verified_bit
            | (ours >> Self::DEFAULT.final_bit & 1) << self.final_bit
    }

    /// A packet's mark without any bit of ours.
    #[must_use]
    #[inline(always)]
    pub const fn clear(&self, packet_mark: u32) -> u32 {
        if self.moved == 0 { packet_mark & !mark::MASK } else { packet_mark & !self.mask }
    }
}

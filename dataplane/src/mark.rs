//! Which bits of `skb->mark` are Bulkhead's on a node, and who else uses them.

mod iptables;
mod nft;
mod users;

pub use self::users::conflicts;

use bulkhead_ebpf::{abi::mark, mark::Layout};

use crate::load::Sizes;

/// The mask, unless another one is set.
pub const DEFAULT: u32 = mark::MASK;

/// Why a mask cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MaskError {
    /// It is no number.
    #[error("{0:?} is no 32-bit number in hexadecimal; write it as {DEFAULT:#010x}")]
    NoNumber(String),
    /// It has bits that belong to Kubernetes.
    #[error("{:#010x} of it are kube-proxy's (0x4000) or kubelet's (0x8000); {:#010x} would do", .mask & mark::RESERVED, .remedy)]
    Reserved {
        /// The mask.
        mask: u32,
        /// Another one.
        remedy: u32,
    },
    /// It has not enough bits, or they are scattered.
    #[error(
        "{slots} endpoints need {bits} adjacent bits, and two flags two bits more, adjacent or not, which {mask:#010x} has not; {remedy:#010x} would do"
    )]
    Narrow {
        /// The mask.
        mask: u32,
        /// How many slots are configured.
        slots: u32,
        /// Bits of a slot.
        bits: u32,
        /// Another one.
        remedy: u32,
    },
}

/// Where the bits lie in this mask, if so many slots fit.
///
/// # Errors
/// The mask cannot be used.
pub fn layout(mask: u32, slots: u32) -> Result<Layout, MaskError> {
    let remedy = |better: u32| match layout(better, slots) {
        Ok(_) => better,
        Err(_) => suggest(0, slots).unwrap_or(DEFAULT),
    };
    if mask & mark::RESERVED != 0 {
        return Err(MaskError::Reserved { mask, remedy: remedy(mask & !mark::RESERVED) });
    }
    let narrow = || MaskError::Narrow { mask, slots, bits: bits(slots), remedy: suggest(0, slots).unwrap_or(DEFAULT) };
    layout_of(mask, slots).ok_or_else(narrow)
}

/// Reads a mask as people write it, `0x3f000fff`, for a node of the usual sizes.
///
/// # Errors
/// It is no number, or the mask cannot be used.
pub fn parse(text: &str) -> Result<u32, MaskError> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    // `from_str_radix` takes a sign.
    let number = u32::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'));
    let mask = number.ok_or_else(|| MaskError::NoNumber(text.to_owned()))?;
    layout(mask, Sizes::default().slots).map(|layout| layout.mask)
}

/// A mask without any of these bits for so many slots, and no larger than they need, unless it is the default. `None` when there is no room.
#[must_use]
pub fn suggest(taken: u32, slots: u32) -> Option<u32> {
    if taken & DEFAULT == 0 && layout_of(DEFAULT, slots).is_some() {
        return Some(DEFAULT);
    }
    let widest = layout_of(!(taken | mark::RESERVED), slots)?;
    let slot = (1 << bits(slots)) - 1;
    // A flag right behind the slot keeps ours together, and other runs for others.
    let behind = (widest.slot & !slot) << widest.shift;
    let behind = (0..u32::BITS).map(|bit| 1 << bit).filter(|bit| behind & bit != 0);
    let flags = behind.chain([widest.verified(), widest.settled()]).take(2);
    Some(slot << widest.shift | flags.fold(0, |all, flag| all | flag))
}

fn layout_of(mask: u32, slots: u32) -> Option<Layout> {
    Layout::new(mask).filter(|layout| layout.slots() >= slots)
}

/// Bits of a slot's number.
const fn bits(slots: u32) -> u32 {
    u32::BITS - slots.saturating_sub(1).leading_zeros()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn masks_are_read_as_people_write_them() {
        for text in ["0x3f000fff", "3f000fff", "0X3F000FFF"] {
            assert_eq!(parse(text), Ok(DEFAULT), "{text}");
        }
        for text in ["", "0x", "mask", "+3f000fff", "-1", "0x13f000fff", " 3f000fff"] {
            let refused = parse(text).unwrap_err().to_string();
            assert!(refused.contains("no 32-bit number") && refused.contains("0x3f000fff"), "{refused}");
        }
        for (text, slot, verified, settled) in [
            // What Calico and Kubernetes leave: one run.
            ("0x3fff", 0xfff, 1 << 12, 1 << 13),
            ("0x0fff0000", 0x03ff_0000, 1 << 26, 1 << 27),
            ("0xffff0000", 0x0fff_0000, 1 << 28, 1 << 29),
            // Flags wherever they are.
            ("0x80003ff1", 0x3ff0, 1, 1 << 31),
            ("0x3f000fff", 0xfff, 1 << 24, 1 << 25),
        ] {
            let layout = Layout::new(parse(text).unwrap()).unwrap();
            assert_eq!(
                (layout.slot << layout.shift, layout.verified(), layout.settled()),
                (slot, verified, settled),
                "{text}"
            );
        }
    }

    #[test]
    fn what_cannot_be_used_is_told_with_what_can() {
        for (mask, expected) in [
            ("0x3f00cfff", "0x0000c000 of it are kube-proxy's (0x4000) or kubelet's (0x8000); 0x3f000fff would do"),
            ("0x0fff4000", "0x00004000 of it are kube-proxy's (0x4000) or kubelet's (0x8000); 0x0fff0000 would do"),
            // Without those bits it has too few.
            ("0x0000c3ff", "0x0000c000 of it are kube-proxy's (0x4000) or kubelet's (0x8000); 0x3f000fff would do"),
            (
                "0x0",
                "1024 endpoints need 10 adjacent bits, and two flags two bits more, adjacent or not, which 0x00000000 has not; 0x3f000fff would do",
            ),
            ("0x7ff", "which 0x000007ff has not"),
            ("0x55551555", "which 0x55551555 has not"),
        ] {
            let refused = parse(mask).unwrap_err().to_string();
            assert!(refused.contains(expected), "{mask}: {refused}");
        }
        assert!(layout(0x3f00_0fff, 4096).is_ok());
        assert!(layout(0x0fff_0000, 4096).unwrap_err().to_string().contains("4096 endpoints need 12 adjacent bits"));
        assert!(layout(0x3f, 16).is_ok());
    }

    #[test]
    fn free_bits_are_found() {
        assert_eq!(suggest(0, 1024), Some(DEFAULT));
        assert_eq!(suggest(0xffff_0000, 1024), Some(0x0fff), "beside Calico's");
        assert_eq!(suggest(0xffff_ff00, 1024), None);
        assert_eq!(suggest(0xff, 1024), Some(0x0fff_0000));
        assert_eq!(suggest(0xf000_0f00, 1024), Some(0x0fff_0000));
        assert_eq!(suggest(0xfc00_0f00, 1024), Some(0x03ff_0003), "flags elsewhere");
        assert_eq!(suggest(0xf00f_0f00, 1024), None);
        assert_eq!(suggest(u32::MAX, 2), None);
    }

    proptest! {
        /// What is suggested can be used, avoids what is taken, and is there whenever there is room.
        #[test]
        fn suggestions_can_be_used(taken: u32, also: u32, slots in 2..=4096_u32) {
            let taken = taken & also;
            match suggest(taken, slots) {
                Some(mask) => {
                    prop_assert_eq!(mask & taken, 0);
                    prop_assert!(layout(mask, slots).is_ok());
                }
                None => prop_assert!(layout(!taken & !mark::RESERVED, slots).is_err()),
            }
        }

        /// Slot, flags and what others have keep apart.
        #[test]
        fn marks_keep_what_they_are_given(mask: u32, packet_mark: u32, slot in 0..4096_u32, verified: bool, settled: bool) {
            let Some(layout) = Layout::new(mask) else { return Ok(()) };
            let slot = slot & layout.slot;
            let flags = if verified { mark::VERIFIED } else { 0 } | if settled { mark::FINAL } else { 0 };
            let encoded = layout.encode(packet_mark, slot | flags);
            prop_assert_eq!(encoded & !mask, packet_mark & !mask, "bits of others");
            prop_assert_eq!(layout.decode(encoded), slot | flags);
            prop_assert_eq!(layout.decode(encoded ^ (packet_mark & !mask)), slot | flags, "whatever others write");
            prop_assert_eq!(layout.clear(encoded), packet_mark & !mask);
            // Three places within the mask that do not overlap.
            let places = [layout.slot << layout.shift, layout.verified(), layout.settled()];
            prop_assert_eq!(places[0] ^ places[1] ^ places[2], places[0] | places[1] | places[2]);
            prop_assert_eq!((places[0] | places[1] | places[2]) & !mask, 0);
            prop_assert!(places.iter().all(|place| *place != 0));
        }
    }

    /// Verdict code, and what the tests and benchmarks write into marks by hand, see the default as it is.
    #[test]
    fn the_default_layout_is_that_of_the_verdict_code() {
        assert_eq!(Layout::new(DEFAULT), Some(Layout::DEFAULT));
        assert_eq!(layout(DEFAULT, Sizes::default().slots), Ok(Layout::DEFAULT));
        for ours in [0, 77 | mark::FINAL, mark::SLOT, mark::VERIFIED] {
            assert_eq!(
                (Layout::DEFAULT.encode(0x4000, ours), Layout::DEFAULT.decode(ours | 0x4000)),
                (ours | 0x4000, ours)
            );
        }
    }
}

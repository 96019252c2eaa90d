//! Ranges of addresses, and which prefix is the longest in each.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnetwork::IpNetwork;

/// Addresses from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    v6: bool,
    first: u128,
    last: u128,
}

impl Range {
    /// Whether it is of IPv6.
    #[must_use]
    pub const fn is_ipv6(&self) -> bool {
        self.v6
    }

    /// The first address.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        self.address(self.first)
    }

    /// The last address.
    #[must_use]
    pub fn last(&self) -> IpAddr {
        self.address(self.last)
    }

    fn address(&self, bits: u128) -> IpAddr {
        match self.v6 {
            true => Ipv6Addr::from(bits).into(),
            false => Ipv4Addr::from(u32::try_from(bits).unwrap_or(u32::MAX)).into(),
        }
    }

    /// Both as one, where the other begins behind this one's end.
    #[must_use]
    pub fn join(&self, next: Self) -> Option<Self> {
        let joins = self.v6 == next.v6 && self.last.checked_add(1) == Some(next.first);
        joins.then_some(Self { last: next.last, ..*self })
    }

    /// Whether it is all of its family.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.first == 0 && self.last == highest(self.v6)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first(), self.last())
    }
}

const fn highest(v6: bool) -> u128 {
    if v6 { u128::MAX } else { u32::MAX as u128 }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// What the longest prefix of one family says, by the first address of each stretch.
#[derive(Clone, Debug)]
pub(super) struct Covers<T> {
    stretches: Vec<(u128, BTreeSet<T>)>,
}

impl<T: Ord + Clone> Covers<T> {
    /// Prefixes of one family with what they say. What none of them holds says nothing.
    pub(super) fn new(mut prefixes: Vec<(IpNetwork, BTreeSet<T>)>) -> Self {
        prefixes.sort_by_key(|(net, _)| (bits(net.network()), net.prefix()));
        let mut edges = BTreeSet::from([0]);
        for (net, _) in &prefixes {
            edges.insert(bits(net.network()));
            let last = bits(net.broadcast());
            edges.extend((last < highest(net.is_ipv6())).then(|| last + 1));
        }
        let mut next = prefixes.iter().peekable();
        let mut within: Vec<&(IpNetwork, BTreeSet<T>)> = Vec::new();
        let stretches = edges.into_iter().map(|edge| {
            within.retain(|(net, _)| bits(net.broadcast()) >= edge);
            while let Some(prefix) = next.next_if(|(net, _)| bits(net.network()) <= edge) {
                within.push(prefix);
            }
            (edge, within.last().map(|(_, says)| says.clone()).unwrap_or_default())
        });
        Self { stretches: stretches.collect() }
    }

    /// What is said of an address.
    pub(super) fn at(&self, address: IpAddr) -> Option<&BTreeSet<T>> {
        let after = self.stretches.partition_point(|(first, _)| *first <= bits(address));
        self.stretches[..after].last().map(|(_, says)| says)
    }

    /// The same stretches that say something else.
    pub(super) fn map(&self, say: impl Fn(&BTreeSet<T>) -> BTreeSet<T>) -> Self {
        Self { stretches: self.stretches.iter().map(|(first, says)| (*first, say(says))).collect() }
    }
}

/// The widest ranges in which each of `all` says one thing.
pub(super) fn partition<T: Ord + Clone>(all: &[Covers<T>], v6: bool) -> Vec<Range> {
    let mut edges = BTreeSet::from([0]);
    for covers in all {
        for pair in covers.stretches.windows(2) {
            if pair[0].1 != pair[1].1 {
                edges.insert(pair[1].0);
            }
        }
    }
    let edges: Vec<u128> = edges.into_iter().collect();
    let lasts = edges.iter().skip(1).map(|next| next - 1).chain([highest(v6)]);
    edges.iter().zip(lasts).map(|(&first, last)| Range { v6, first, last }).collect()
}

/// The widest ranges that none of two partitions cuts.
pub(super) fn refine(one: &[Range], other: &[Range]) -> Vec<Range> {
    let mut refined = Vec::new();
    for v6 in [false, true] {
        let firsts = one.iter().chain(other).filter(|range| range.v6 == v6).map(|range| range.first);
        let firsts: Vec<u128> = firsts.collect::<BTreeSet<_>>().into_iter().collect();
        let lasts = firsts.iter().skip(1).map(|next| next - 1).chain([highest(v6)]);
        refined.extend(firsts.iter().zip(lasts).map(|(&first, last)| Range { v6, first, last }));
    }
    refined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covers(prefixes: &[(&str, u8)]) -> Covers<u8> {
        Covers::new(prefixes.iter().map(|(net, says)| (net.parse().unwrap(), BTreeSet::from([*says]))).collect())
    }

    fn says(covers: &Covers<u8>, address: &str) -> Vec<u8> {
        covers.at(address.parse().unwrap()).unwrap().iter().copied().collect()
    }

    #[test]
    fn the_longest_prefix_decides() {
        let covers = covers(&[
            ("0.0.0.0/0", 0),
            ("10.0.0.0/8", 1),
            ("10.1.0.0/16", 2),
            ("10.1.2.3/32", 3),
            ("255.255.255.255/32", 4),
        ]);
        for (address, expected) in [
            ("0.0.0.0", 0),
            ("9.255.255.255", 0),
            ("10.0.0.0", 1),
            ("10.1.0.0", 2),
            ("10.1.2.2", 2),
            ("10.1.2.3", 3),
            ("10.1.2.4", 2),
            ("10.2.0.0", 1),
            ("11.0.0.0", 0),
            ("255.255.255.255", 4),
        ] {
            assert_eq!(says(&covers, address), [expected], "{address}");
        }
    }

    #[test]
    fn ranges_are_as_wide_as_they_can_be() {
        let text = |covers: &[Covers<u8>]| partition(covers, false).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(text(&[]), ["0.0.0.0-255.255.255.255"]);
        let one = covers(&[("0.0.0.0/0", 0), ("10.0.0.0/8", 1), ("11.0.0.0/8", 1), ("12.0.0.0/8", 0)]);
        assert_eq!(
            text(std::slice::from_ref(&one)),
            ["0.0.0.0-9.255.255.255", "10.0.0.0-11.255.255.255", "12.0.0.0-255.255.255.255"]
        );
        let other = covers(&[("0.0.0.0/0", 0), ("10.255.0.0/16", 1)]);
        assert_eq!(text(&[one, other]).len(), 5);
    }
}

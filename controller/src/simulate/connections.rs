//! Sets of ports, and how they are written.

use std::fmt;

use bulkhead_ebpf::abi::Class;

use crate::ports::point;

/// For each class the stretches of its axis, ascending and apart from each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connections([Vec<(u16, u16)>; Class::COUNT as usize]);

/// Classes whose axis is a port, in the order in which they are written.
const PORTS: [(Class, &str); 3] = [(Class::Sctp, "SCTP"), (Class::Tcp, "TCP"), (Class::Udp, "UDP")];
/// The others.
const OTHERS: [Class; 3] = [Class::Icmp, Class::Icmp6, Class::Other];

impl Connections {
    /// Adds `first..=last`.
    pub fn add(&mut self, class: Class, first: u16, last: u16) {
        let stretches = &mut self.0[class as usize];
        stretches.push((first, last));
        stretches.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::new();
        for &(first, last) in stretches.iter() {
            match merged.last_mut() {
                Some(before) if u32::from(first) <= u32::from(before.1) + 1 => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        *stretches = merged;
    }

    /// Whether nothing passes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(Vec::is_empty)
    }

    /// Whether everything passes, whatever the protocol.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.0.iter().all(|stretches| *stretches == [(0, u16::MAX)])
    }

    /// Stretches of a class. Ports begin at 1.
    pub fn of(&self, class: Class) -> impl Iterator<Item = (u16, u16)> {
        let least = u16::from(PORTS.iter().any(|(port, _)| *port == class));
        let stretches = self.0[class as usize].iter();
        stretches.filter(move |(_, last)| *last >= least).map(move |&(first, last)| (first.max(least), last))
    }

    /// What `self` has and `other` lacks.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut rest = Self::default();
        for class in Class::ALL {
            for &(first, last) in &self.0[class as usize] {
                let mut next = u32::from(first);
                for &(from, to) in &other.0[class as usize] {
                    if u32::from(from) > next && from <= last {
                        rest.add(class, u16::try_from(next).unwrap_or(u16::MAX), from - 1);
                    }
                    if to >= first && from <= last {
                        next = next.max(u32::from(to) + 1);
                    }
                }
                if let Ok(next) = u16::try_from(next)
                    && next <= last
                {
                    rest.add(class, next, last);
                }
            }
        }
        rest
    }

    /// Protocols with ports alone: `TCP 80,8000-8099,UDP 53`, or `All Connections`. Empty when none of them passes.
    #[must_use]
    pub fn list(&self) -> String {
        let whole = |(class, _): &(Class, &str)| self.of(*class).eq([(1, u16::MAX)]);
        if PORTS.iter().all(whole) {
            return "All Connections".to_owned();
        }
        let protocols = PORTS.iter().filter_map(|&(class, name)| {
            let ranges: Vec<_> = self.of(class).map(range).collect();
            (!ranges.is_empty()).then(|| format!("{name} {}", ranges.join(",")))
        });
        protocols.collect::<Vec<_>>().join(",")
    }
}

fn range((first, last): (u16, u16)) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

/// All protocols, as policies write them: `80/tcp, 53/udp, echo/icmp`, or `everything`.
impl fmt::Display for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_everything() {
            return f.write_str("everything");
        }
        let mut words = Vec::new();
        for (class, name) in [(Class::Tcp, "tcp"), (Class::Udp, "udp"), (Class::Sctp, "sctp")] {
            words.extend(self.of(class).map(|stretch| match stretch {
                (1, u16::MAX) => format!("any {name}"),
                stretch => format!("{}/{name}", range(stretch)),
            }));
        }
        for class in OTHERS {
            words.extend(self.of(class).map(|(first, last)| match (class, first, last) {
                (Class::Icmp, 0, u16::MAX) => "any icmp".to_owned(),
                (Class::Icmp6, 0, u16::MAX) => "any icmp6".to_owned(),
                (Class::Other, 0, u16::MAX) => "other protocols".to_owned(),
                (class, first, last) if first == last => point(class, first),
                (class, first, last) => format!("{} to {}", point(class, first), point(class, last)),
            }));
        }
        // Echo of both families is one word of a policy.
        words.dedup();
        f.write_str(&words.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(stretches: &[(Class, u16, u16)]) -> Connections {
        let mut connections = Connections::default();
        stretches.iter().for_each(|&(class, first, last)| connections.add(class, first, last));
        connections
    }

    #[test]
    fn lists_are_written_in_the_form_of_others() {
        let all = of(&[(Class::Tcp, 0, u16::MAX), (Class::Udp, 0, u16::MAX), (Class::Sctp, 1, u16::MAX)]);
        assert_eq!(all.list(), "All Connections");
        assert_eq!(all.to_string(), "any tcp, any udp, any sctp");
        let some = of(&[(Class::Udp, 0, 52), (Class::Udp, 54, u16::MAX), (Class::Tcp, 80, 80), (Class::Tcp, 90, 99)]);
        assert_eq!(some.list(), "TCP 80,90-99,UDP 1-52,54-65535");
        assert_eq!(some.to_string(), "80/tcp, 90-99/tcp, 1-52/udp, 54-65535/udp");
        assert_eq!(of(&[(Class::Icmp, 8 << 8, 8 << 8), (Class::Icmp6, 128 << 8, 128 << 8)]).to_string(), "echo/icmp");
        assert_eq!(of(&[(Class::Tcp, 0, 0)]).list(), "", "port 0 is none");
    }

    proptest! {
        #[test]
        fn sets_are_sets(
            one in prop::collection::vec((any::<u16>(), 0..9_u16), 0..8),
            other in prop::collection::vec((any::<u16>(), 0..9_u16), 0..8),
            more in prop::collection::vec(any::<u16>(), 8),
        ) {
            let ends = |list: &[(u16, u16)]| -> Vec<_> { list.iter().map(|&(first, len)| (Class::Tcp, first, first.saturating_add(len))).collect() };
            let (one, other) = (ends(&one), ends(&other));
            let holds = |list: &[(Class, u16, u16)], value| list.iter().any(|&(_, first, last)| (first..=last).contains(&value));
            let rest = of(&one).without(&of(&other));
            let found = |value: u16| rest.0[Class::Tcp as usize].iter().any(|&(first, last)| (first..=last).contains(&value));
            let edges = one.iter().chain(&other).flat_map(|&(_, a, b)| [a, b, a.wrapping_sub(1), b.wrapping_add(1)]);
            for value in edges.chain(more) {
                prop_assert_eq!(found(value), holds(&one, value) && !holds(&other, value), "{}", value);
            }
            prop_assert!(rest.0[Class::Tcp as usize].windows(2).all(|pair| u32::from(pair[0].1) + 1 < u32::from(pair[1].0)));
        }
    }
}

//! What is known of addresses and prefixes, and how it changes step by step.
//!
//! A known address is the most specific of prefixes, so that one rule orders all writes: what is inserted or changed goes from the most specific to
//! the widest, what is removed the other way round. Then an address goes from its old row to its new one in a single write, whatever covers it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use bulkhead_ebpf::abi::{AddressKey4, AddressKey6, AddressWord, PrefixKey4, PrefixKey6};
use ipnetwork::IpNetwork;

use crate::{
    desired::Segment,
    node::NodeError,
    pieces::{Neighbours, Piece, Pieces, among_neighbours, neighbours},
    store::{Addresses4, Addresses6, LpmKey, Prefixes4, Prefixes6, Store},
};

/// Length of a known address: more specific than any prefix.
pub(crate) const KNOWN: u8 = u8::MAX;
/// Bits of a segment in an LPM key.
pub(crate) const SEGMENT_BITS: u32 = 32;

/// A known address or a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) segment: Segment,
    pub(crate) address: IpAddr,
    /// Length of the prefix, [`KNOWN`] for an address.
    pub(crate) len: u8,
}

impl Key {
    pub(crate) const fn known(segment: Segment, address: IpAddr) -> Self {
        Self { segment, address, len: KNOWN }
    }

    pub(crate) fn prefix(segment: Segment, network: IpNetwork) -> Self {
        Self { segment, address: network.network(), len: network.prefix() }
    }

    /// The prefix that covers this address alone.
    pub(crate) const fn alone(&self) -> Self {
        let len = if self.address.is_ipv4() { Ipv4Addr::BITS } else { Ipv6Addr::BITS };
        Self { len: len as u8, ..*self }
    }

    /// Which of the four tables: addresses and prefixes, IPv4 first.
    pub(crate) fn table(&self) -> usize {
        usize::from(self.len != KNOWN) * 2 + usize::from(self.address.is_ipv6())
    }

    /// The prefix of length `len` that covers this.
    fn cover(&self, len: u8) -> Self {
        let address = match self.address {
            IpAddr::V4(a) => IpAddr::V4((a.to_bits() & u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0)).into()),
            IpAddr::V6(a) => {
                IpAddr::V6((a.to_bits() & u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)).into())
            }
        };
        Self { address, len, ..*self }
    }
}

impl Piece for Key {
    fn piece(&self) -> Self {
        Self { segment: self.segment, address: neighbours(self.address), len: 0 }
    }

    fn place(&self) -> u8 {
        among_neighbours(self.address)
    }
}

/// Its word, but for the tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) row: u32,
    pub(crate) slot: u16,
    pub(crate) flags: u8,
}

impl Place {
    pub(crate) const fn from_word(word: u64) -> Self {
        let word = AddressWord(word);
        Self { row: word.row(), slot: word.slot() as u16, flags: word.flags() }
    }

    /// It is a service's address.
    pub(crate) const fn is_service(self) -> bool {
        self.flags & AddressWord::SERVICE != 0
    }

    pub(crate) const fn is_node(self) -> bool {
        self.flags & AddressWord::NODE != 0
    }

    const fn word(self, tag: u32) -> u64 {
        AddressWord::new(tag, self.row as u16, self.slot, self.flags).0
    }
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    /// Known addresses of somebody.
    known: Pieces<Key, Place>,
    /// Prefixes, and the addresses of services.
    others: Arc<BTreeMap<Key, Place>>,
    /// Prefix lengths in use, by segment and family.
    lengths: BTreeMap<(Segment, bool), BTreeSet<u8>>,
}

impl Places {
    pub(crate) fn insert(&mut self, key: Key, place: Place) -> Option<Place> {
        if key.len != KNOWN {
            self.lengths.entry((key.segment, key.address.is_ipv6())).or_default().insert(key.len);
            return Arc::make_mut(&mut self.others).insert(key, place);
        }
        let before = self.remove(&key);
        if place.is_service() {
            Arc::make_mut(&mut self.others).insert(key, place);
        } else {
            self.known.insert(key, place);
        }
        before
    }

    fn remove(&mut self, key: &Key) -> Option<Place> {
        let of_others = || self.others.contains_key(key).then(|| Arc::make_mut(&mut self.others).remove(key)).flatten();
        self.known.remove(key).or_else(of_others)
    }

    /// Takes prefixes and addresses of services from another, where they are the same, so that both share them.
    pub(crate) fn share_others(&mut self, with: &Self) {
        if self.others == with.others {
            self.others = Arc::clone(&with.others);
        }
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Place> {
        self.known.get(key).or_else(|| self.others.get(key))
    }

    pub(crate) fn contains_key(&self, key: &Key) -> bool {
        self.get(key).is_some()
    }

    /// Rows that known addresses have, one for each.
    pub(crate) fn rows_of_known(&self) -> impl Iterator<Item = u32> {
        self.known.values().map(|place| place.row)
    }

    /// Rows that prefixes and addresses of services have.
    pub(crate) fn rows_of_others(&self) -> impl Iterator<Item = u32> {
        self.others.values().map(|place| place.row)
    }

    /// A piece of known addresses.
    pub(crate) fn piece(&self, of: &Key) -> Option<&Arc<Neighbours<Key, Place>>> {
        self.known.piece(of)
    }

    /// Puts a piece of known addresses, of which none is there.
    pub(crate) fn put_piece(&mut self, piece: Arc<Neighbours<Key, Place>>) {
        self.known.put_piece(piece);
    }

    /// Keys that are not the same in both. Costs little where pieces are shared.
    pub(crate) fn differing(&self, other: &Self) -> BTreeSet<Key> {
        let mut keys = self.known.differing(&other.known);
        if !Arc::ptr_eq(&self.others, &other.others) {
            let of_others = self.others.keys().chain(other.others.keys());
            keys.extend(of_others.filter(|key| self.others.get(key) != other.others.get(key)));
        }
        // One that goes from one part to the other may be the same.
        keys.retain(|key| self.get(key) != other.get(key));
        keys
    }

    /// What is known between this and another: the same where they are, and what is told of the rest.
    pub(crate) fn with(&self, changed: impl IntoIterator<Item = (Key, Option<Place>)>) -> Self {
        let mut between = self.clone();
        for (key, place) in changed {
            match place {
                Some(place) => _ = between.insert(key, place),
                None => _ = between.remove(&key),
            }
        }
        between
    }

    /// What covers a key that is not there itself; nothing is the null place.
    pub(crate) fn covering(&self, key: &Key) -> Place {
        let lengths = self.lengths.get(&(key.segment, key.address.is_ipv6()));
        let covers = lengths
            .into_iter()
            .flat_map(|lengths| lengths.range(..key.len).rev())
            .filter_map(|len| self.others.get(&key.cover(*len)));
        covers.copied().next().unwrap_or_default()
    }

    /// What is known of a key: its own, or what covers it.
    pub(crate) fn effective(&self, key: &Key) -> Place {
        self.get(key).copied().unwrap_or_else(|| self.covering(key))
    }

    /// With `ports` those of nodes lead elsewhere meanwhile: see [`Change`]. `judged` says whether some verdict tells two places apart.
    pub(crate) fn change_to(&self, to: &Self, ports: bool, judged: impl Fn(Place, Place) -> bool) -> Change {
        let covered = |key: &Key| judged(self.covering(key), to.covering(key));
        let (put, delete): (Vec<Key>, Vec<Key>) = self.differing(to).into_iter().partition(|key| to.contains_key(key));
        let mut change = Change { delete, ..Change::default() };
        let nodes = |key: &&Key| ports && key.len == KNOWN && self.effective(key).is_node();
        change.leave.extend(change.delete.iter().filter(nodes).map(|key| (*key, to.covering(key))));
        for (key, place) in put.iter().filter_map(|key| Some((key, to.get(key)?))) {
            let before = self.get(key).filter(|_| key.len == KNOWN);
            match (before.map(|before| before.is_node()), place.is_node()) {
                (Some(false), true) => {
                    change.enter.push((*key, *place));
                    continue;
                }
                (Some(true), false) => {
                    change.wait |= covered(key);
                    change.leave.push((*key, *place));
                    continue;
                }
                (None, node) if key.len == KNOWN => {
                    change.wait |= covered(key);
                    if node && ports {
                        change.put.push((*key, self.covering(key)));
                        change.enter.push((*key, *place));
                        continue;
                    }
                }
                _ => {}
            }
            change.put.push((*key, *place));
        }
        change
    }

    pub(crate) fn read<S: Store>(store: &S) -> Result<Self, NodeError> {
        let mut all = Self::default();
        for (key, word) in store.entries::<Addresses4>()? {
            all.insert(Key::known(key.segment, IpAddr::from(key.address.to_ne_bytes())), Place::from_word(word));
        }
        for (key, word) in store.entries::<Addresses6>()? {
            all.insert(Key::known(key.segment, from_packet(key.address)), Place::from_word(word));
        }
        for (LpmKey { prefix_len, data }, word) in store.entries::<Prefixes4>()? {
            let len = prefix_len.saturating_sub(SEGMENT_BITS) as u8;
            all.insert(
                Key { segment: u32::from_be_bytes(data.segment), address: data.address.into(), len },
                Place::from_word(word),
            );
        }
        for (LpmKey { prefix_len, data }, word) in store.entries::<Prefixes6>()? {
            let len = prefix_len.saturating_sub(SEGMENT_BITS) as u8;
            all.insert(
                Key { segment: u32::from_be_bytes(data.segment), address: data.address.into(), len },
                Place::from_word(word),
            );
        }
        Ok(all)
    }

    /// Entries of each of the four tables: addresses and prefixes, IPv4 first.
    pub(crate) fn counts(&self) -> [usize; 4] {
        let mut counts = [0; 4];
        self.known.pieces().for_each(|(of, piece)| counts[Key::known(of.segment, of.address).table()] += piece.len());
        self.others.keys().for_each(|key| counts[key.table()] += 1);
        counts
    }

    /// The same while what is not there any more stands beside it.
    pub(crate) fn counts_beside(&self, before: &Self) -> [usize; 4] {
        let mut counts = self.counts();
        let leaving = before.differing(self).into_iter().filter(|key| !self.contains_key(key));
        leaving.for_each(|key| counts[key.table()] += 1);
        counts
    }
}

/// Writes that lead from one state to another, in three parts.
///
/// A program looks an address up before it looks for a prefix, and prefixes decide where the address is not known, or is a node's. So where both
/// change, it must not meet the old address and the new prefix.
///
/// The ports of all nodes are the same entries of `SERVICES`, which no single write changes together with an address. So what is no node's address
/// any more is none before they change, and what becomes one is none until they have changed. An address that is known only as a node's has what
/// covers it for its own meanwhile.
#[derive(Clone, Debug, Default)]
pub(crate) struct Change {
    /// What was a node's.
    leave: Vec<(Key, Place)>,
    put: Vec<(Key, Place)>,
    /// Prefixes change, in what some verdict reads, for programs that did not find what is put: these have to end first.
    wait: bool,
    delete: Vec<Key>,
    /// What becomes a node's: prefixes decide from then on.
    enter: Vec<(Key, Place)>,
}

/// Entries of the four tables.
#[derive(Default)]
struct Entries {
    known4: Vec<(AddressKey4, u64)>,
    known6: Vec<(AddressKey6, u64)>,
    prefixes4: Vec<(LpmKey<PrefixKey4>, u64)>,
    prefixes6: Vec<(LpmKey<PrefixKey6>, u64)>,
}

impl Entries {
    fn new(entries: impl Iterator<Item = (Key, Place)>) -> Self {
        let mut all = Self::default();
        for (key, place) in entries {
            match (key.address, key.len) {
                (IpAddr::V4(_), KNOWN) => {
                    let key = AddressKey4 { segment: key.segment, address: to_packet(key.address)[3] };
                    all.known4.push((key, place.word(key.tag())));
                }
                (IpAddr::V6(_), KNOWN) => {
                    let key = AddressKey6 { segment: key.segment, address: to_packet(key.address) };
                    all.known6.push((key, place.word(key.tag())));
                }
                // An LPM trie does not recycle values, and the key of a look-up is not the entry's.
                (IpAddr::V4(a), len) => {
                    let data = PrefixKey4 { segment: key.segment.to_be_bytes(), address: a.octets() };
                    all.prefixes4.push((LpmKey { prefix_len: SEGMENT_BITS + u32::from(len), data }, place.word(0)));
                }
                (IpAddr::V6(a), len) => {
                    let data = PrefixKey6 { segment: key.segment.to_be_bytes(), address: a.octets() };
                    all.prefixes6.push((LpmKey { prefix_len: SEGMENT_BITS + u32::from(len), data }, place.word(0)));
                }
            }
        }
        all.prefixes4.sort_by_key(|(key, _)| Reverse(key.prefix_len));
        all.prefixes6.sort_by_key(|(key, _)| Reverse(key.prefix_len));
        all
    }
}

impl Change {
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn len(&self) -> usize {
        self.keys().count()
    }

    /// Some more than once.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.leave.iter().chain(&self.put).chain(&self.enter).map(|(key, _)| key).chain(&self.delete)
    }

    /// Whether something was a node's.
    pub(crate) fn leaves(&self) -> bool {
        !self.leave.is_empty()
    }

    /// The first part.
    pub(crate) fn leave<S: Store>(&self, store: &mut S) -> Result<(), NodeError> {
        known(store, &self.leave)
    }

    /// The second part, in the one order that shows no address a row that is neither the old nor the new one.
    pub(crate) fn write<S: Store>(&self, store: &mut S, grace_period: impl FnOnce(&mut S)) -> Result<(), NodeError> {
        let entries = Entries::new(self.put.iter().copied());
        put::<S, Addresses4>(store, &entries.known4)?;
        put::<S, Addresses6>(store, &entries.known6)?;
        if self.wait {
            grace_period(store);
        }
        put::<S, Prefixes4>(store, &entries.prefixes4)?;
        put::<S, Prefixes6>(store, &entries.prefixes6)?;

        let entries = Entries::new(self.delete.iter().map(|key| (*key, Place::default())));
        delete::<S, Prefixes4>(store, &keys(entries.prefixes4.iter().rev()))?;
        delete::<S, Prefixes6>(store, &keys(entries.prefixes6.iter().rev()))?;
        delete::<S, Addresses4>(store, &keys(entries.known4.iter()))?;
        delete::<S, Addresses6>(store, &keys(entries.known6.iter()))
    }

    /// The third part.
    pub(crate) fn enter<S: Store>(&self, store: &mut S) -> Result<(), NodeError> {
        known(store, &self.enter)
    }
}

fn known<S: Store>(store: &mut S, addresses: &[(Key, Place)]) -> Result<(), NodeError> {
    let entries = Entries::new(addresses.iter().copied());
    put::<S, Addresses4>(store, &entries.known4)?;
    put::<S, Addresses6>(store, &entries.known6)
}

fn keys<'a, K: Copy + 'a>(entries: impl Iterator<Item = &'a (K, u64)>) -> Vec<K> {
    entries.map(|(key, _)| *key).collect()
}

/// Sixteen octets; IPv4 as ::ffff:a.b.c.d.
pub(crate) fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
        IpAddr::V6(a) => a.octets(),
    }
}

/// Four words as they lie in a packet; IPv4 as ::ffff:a.b.c.d.
pub(crate) fn to_packet(address: IpAddr) -> [u32; 4] {
    let octets = octets(address);
    std::array::from_fn(|word| {
        u32::from_ne_bytes([octets[word * 4], octets[word * 4 + 1], octets[word * 4 + 2], octets[word * 4 + 3]])
    })
}

/// The other way round; ::ffff:a.b.c.d stays IPv6.
pub(crate) fn from_packet(words: [u32; 4]) -> IpAddr {
    let mut octets = [0; 16];
    octets.chunks_exact_mut(4).zip(words).for_each(|(chunk, word)| chunk.copy_from_slice(&word.to_ne_bytes()));
    octets.into()
}

/// One call for each table and step, none for nothing.
pub(crate) fn put<S: Store, T: crate::store::Table>(
    store: &mut S,
    entries: &[(T::Key, T::Value)],
) -> Result<(), NodeError> {
    if entries.is_empty() { Ok(()) } else { store.put::<T>(entries) }
}

/// As [`put`].
pub(crate) fn delete<S: Store, T: crate::store::Table>(store: &mut S, keys: &[T::Key]) -> Result<(), NodeError> {
    if keys.is_empty() { Ok(()) } else { store.delete::<T>(keys) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_not_the_known_address_that_it_begins_with() {
        let (address, network) = ("10.0.0.0".parse().unwrap(), "10.0.0.0/24".parse().unwrap());
        let (known, prefix) = (Key::known(1, address), Key::prefix(1, network));
        let (one, another) = (Place { row: 1, ..Place::default() }, Place { row: 2, ..Place::default() });
        let mut places = Places::default();
        places.insert(known, one);
        assert_eq!((places.get(&known), places.get(&prefix)), (Some(&one), None));
        assert_eq!(places.insert(prefix, another), None);
        assert_eq!((places.get(&known), places.get(&prefix)), (Some(&one), Some(&another)));
        assert_eq!(places.remove(&prefix), Some(another));
        assert_eq!((places.get(&known), places.get(&prefix)), (Some(&one), None));
    }
}

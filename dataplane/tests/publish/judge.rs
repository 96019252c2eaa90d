//! Two judges that know nothing of each other: one asks a [`Desired`] by its meaning, one reads the tables as the programs do.

use std::{collections::BTreeSet, net::IpAddr};

use bulkhead_dataplane::{
    desired::{Desired, Endpoint, Peers},
    memory::{Snapshot, from_bytes, to_bytes},
    names::{endpoint_identity, rule_hash},
    store::{
        Addresses4, Addresses6, CounterKeys, EndpointInfos, Endpoints, Lists, LpmKey, Ports, Prefixes4, Prefixes6,
        Rows, RuleCounters, Table, Views,
    },
};
use bulkhead_ebpf::{
    abi::{
        Action, AddressKey4, AddressKey6, AddressWord, Class, Direction, EndpointWord, Entry, LIST_CHAIN, Mode,
        PortTable, PrefixKey4, PrefixKey6, ROW_WORDS, VIEW_CHAIN,
    },
    reason::Reason,
};

/// Jiffies of [`bulkhead_dataplane::memory::MemoryStore`].
pub(crate) const NOW: u64 = 1_000_000;

/// The start of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) direction: Direction,
    pub(crate) peer: IpAddr,
    /// The packet comes in through the node, from elsewhere.
    pub(crate) transit: bool,
    pub(crate) class: Class,
    pub(crate) value: u16,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Answer {
    /// By mode alone.
    Mode(u8),
    Judged {
        allow: bool,
        reason: Reason,
        /// Hash of the rule's name, and whose counter counts it.
        rule: (u64, u64),
    },
}

impl Answer {
    pub(crate) fn allows(self) -> bool {
        matches!(self, Self::Judged { allow: true, .. })
    }
}

/// Every question that is worth asking of an endpoint.
pub(crate) fn questions() -> Vec<Question> {
    let mut all = Vec::new();
    for peer in crate::world::peers() {
        for direction in [Direction::Ingress, Direction::Egress] {
            let icmp = if peer.is_ipv4() { Class::Icmp } else { Class::Icmp6 };
            for (class, values) in
                [(Class::Tcp, &[1, 80, 500, 1005, 1285, 1555, 8080][..]), (icmp, &[8 << 8]), (Class::Other, &[47])]
            {
                all.extend(values.iter().map(|value| Question {
                    direction,
                    peer,
                    transit: *value == 500 && direction == Direction::Ingress,
                    class,
                    value: *value,
                }));
            }
        }
    }
    all
}

/// What a [`Desired`] says: several answers where several rules match alike.
pub(crate) fn meant(desired: &Desired, endpoint: &Endpoint, question: &Question) -> BTreeSet<Answer> {
    if endpoint.mode != Mode::Enforce {
        return [Answer::Mode(endpoint.mode as u8)].into();
    }
    let known =
        desired.addresses.get(&(endpoint.segment, question.peer)).filter(|known| !(question.transit && known.node));
    let covering = desired
        .prefixes
        .iter()
        .filter(|((segment, prefix), _)| *segment == endpoint.segment && prefix.contains(question.peer));
    let empty = BTreeSet::new();
    let selectors = match known {
        Some(known) => &known.selectors,
        None => covering.max_by_key(|((_, prefix), _)| prefix.prefix()).map_or(&empty, |(_, prefix)| &prefix.selectors),
    };
    let view = endpoint.views.iter().find(|view| view.until.is_none_or(|until| until > 1)).unwrap();
    let set =
        &desired.sets[if question.direction == Direction::Ingress { view.ingress } else { view.egress }.0 as usize];
    let interval =
        set.classes[question.class as usize].iter().rev().find(|interval| interval.start <= question.value).unwrap();
    let mut tier = 0;
    for entry in interval.entries.iter().filter(|entry| !entry.audit) {
        let rules: Vec<u32> = match &entry.peers {
            Peers::Any(rule) => vec![rule.0],
            Peers::Selectors(some) => {
                some.iter().filter(|(selector, _)| selectors.contains(selector)).map(|(_, rule)| rule.0).collect()
            }
        };
        if entry.tier < tier || rules.is_empty() {
            continue;
        }
        if entry.action == Action::Pass {
            tier = entry.tier + 1;
            continue;
        }
        let identity = endpoint_identity(&endpoint.name);
        let answer = |rule: u32| Answer::Judged {
            allow: entry.action == Action::Allow,
            reason: entry.reason,
            rule: (rule_hash(&desired.rules[rule as usize].name), identity),
        };
        return rules.into_iter().map(answer).collect();
    }
    unreachable!("the last entry matches everyone")
}

/// How a program sees tables: each look-up at some moment.
pub(crate) trait Look {
    fn bytes(&mut self, table: &'static str, key: &[u8]) -> Option<Vec<u8>>;
    fn all(&mut self, table: &'static str) -> Vec<(Vec<u8>, Vec<u8>)>;
}

impl Look for &Snapshot {
    fn bytes(&mut self, table: &'static str, key: &[u8]) -> Option<Vec<u8>> {
        self.get(table)?.get(key).cloned()
    }

    fn all(&mut self, table: &'static str) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.get(table).into_iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}

fn array<T: Table<Key = u32>>(tables: &mut impl Look, index: u32) -> T::Value {
    let zero = || from_bytes(&vec![0; size_of::<T::Value>()]);
    tables.bytes(T::NAME, &to_bytes(&index)).map_or_else(zero, |bytes| from_bytes(&bytes))
}

fn longest<T: Table<Value = u64>>(tables: &mut impl Look, fits: impl Fn(&T::Key) -> Option<u32>) -> u64 {
    let entries =
        tables.all(T::NAME).into_iter().map(|(key, value)| (from_bytes::<T::Key>(&key), from_bytes::<u64>(&value)));
    entries.filter_map(|(key, word)| Some((fits(&key)?, word))).max_by_key(|(len, _)| *len).map_or(0, |(_, word)| word)
}

fn same_bits(a: &[u8], b: &[u8], bits: u32) -> bool {
    (0..bits as usize).all(|bit| (a[bit / 8] ^ b[bit / 8]) & (0x80 >> (bit % 8)) == 0)
}

fn peer(tables: &mut impl Look, segment: u32, address: IpAddr, transit: bool) -> AddressWord {
    let known = match address {
        IpAddr::V4(a) => {
            let key = AddressKey4 { segment, address: u32::from_ne_bytes(a.octets()) };
            tables.bytes(Addresses4::NAME, &to_bytes(&key)).map(|word| (AddressWord(from_bytes(&word)), key.tag()))
        }
        IpAddr::V6(a) => {
            let words: Vec<u32> =
                a.octets().chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect();
            let key = AddressKey6 { segment, address: words.try_into().unwrap() };
            tables.bytes(Addresses6::NAME, &to_bytes(&key)).map(|word| (AddressWord(from_bytes(&word)), key.tag()))
        }
    };
    match known {
        Some((word, tag)) if word.tag() == tag && !(transit && word.flags() & AddressWord::NODE != 0) => return word,
        _ => {}
    }
    AddressWord(match address {
        IpAddr::V4(a) => longest::<Prefixes4>(tables, |key: &LpmKey<PrefixKey4>| {
            (key.data.segment == segment.to_be_bytes()
                && same_bits(&key.data.address, &a.octets(), key.prefix_len - 32))
            .then_some(key.prefix_len)
        }),
        IpAddr::V6(a) => longest::<Prefixes6>(tables, |key: &LpmKey<PrefixKey6>| {
            (key.data.segment == segment.to_be_bytes()
                && same_bits(&key.data.address, &a.octets(), key.prefix_len - 32))
            .then_some(key.prefix_len)
        }),
    })
}

/// What the tables say, looked up in the order in which the programs do.
pub(crate) fn read(tables: &mut impl Look, slot: u32, question: &Question) -> Answer {
    // A program's first look-up of what is published; the static data of its own slot does not change under it.
    let word = EndpointWord(array::<Endpoints>(tables, slot));
    let info = array::<EndpointInfos>(tables, slot);
    if word.mode() != Mode::Enforce {
        return Answer::Mode(word.mode() as u8);
    }
    let mut index = word.view();
    let mut view = array::<Views>(tables, index);
    for _ in 1..VIEW_CHAIN {
        if NOW < view.deadline {
            break;
        }
        index = view.next;
        view = array::<Views>(tables, index);
    }
    if NOW >= view.deadline {
        return Answer::Mode(Mode::Pending as u8);
    }
    let row = peer(tables, info.segment, question.peer, question.transit).row();
    let half = view.half(question.direction);
    let (action, reason, rule) = walk(tables, half.set, question, row);
    let counter = array::<RuleCounters>(tables, half.counters + u32::from(rule));
    let key = array::<CounterKeys>(tables, counter as u32);
    assert_eq!((key.direction, key.reason), (question.direction as u8, reason as u8), "the counter of another reason");
    Answer::Judged { allow: action == Action::Allow as u8, reason, rule: (key.rule, key.endpoint) }
}

fn walk(tables: &mut impl Look, set: u32, question: &Question, row: u32) -> (u8, Reason, u16) {
    let mut interval = |set: u32| {
        let table = array::<Ports>(tables, set * Class::COUNT + question.class as u32);
        let at = (0..table.len as usize).rev().find(|at| table.starts[*at] <= question.value);
        table.lists[at.expect("an interval begins at 0")]
    };
    let mut block = interval(set);
    if block & PortTable::MORE != 0 {
        block = interval(block & !PortTable::MORE);
    }
    let mut tier = 0;
    for _ in 0..LIST_CHAIN {
        assert_ne!(block, 0, "a list without end");
        let list = array::<Lists>(tables, block);
        for entry in &list.entries[..list.len as usize] {
            if entry.tier < tier || entry.flags & Entry::AUDIT != 0 {
                continue;
            }
            let mut rule = entry.rule;
            if entry.flags & Entry::ANY == 0 {
                let hits = array::<Rows>(tables, row * ROW_WORDS + u32::from(entry.word)) & entry.mask;
                if hits == 0 {
                    continue;
                }
                rule += (0..hits.trailing_zeros()).filter(|bit| entry.mask & (1 << bit) != 0).count() as u16;
            }
            if entry.action == Action::Pass as u8 {
                tier = entry.tier + 1;
                continue;
            }
            return (entry.action, Reason::from_u8(entry.reason).unwrap(), rule);
        }
        block = list.next;
    }
    panic!("no entry of the list matches");
}

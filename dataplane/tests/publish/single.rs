//! Single cases: what a publish costs, what it keeps, what it refuses.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    ops::ControlFlow,
    time::{Duration, UNIX_EPOCH},
};

use bulkhead_dataplane::{
    desired::{Address, Desired, Endpoint, EndpointName, PolicySet, SetId},
    listed::Listed,
    memory::{Links, MemoryNode, MemoryStore},
    names::{FILE, endpoint_identity, rule_hash},
    node::{ContactRecord, Node, NodeError, Port, Published, Reading, Wire},
    publish::{CrashPoint, Publisher},
    read,
    store::{
        Addresses4, ContactTable, CounterKeys, EndpointInfos, Endpoints, Ids, Lists, Owners, Ports, Prefixes4, Rows,
        RuleCounters, Store, Table, Views, Vteps,
    },
};
use bulkhead_ebpf::{
    abi::{
        AddressKey4, AddressWord, Class, Contact, ContactKey, Counter, Direction, EndpointWord, Flow, FlowKey4,
        FlowKey6, ROW_WORDS, endpoint_counter, mapped,
    },
    reason::Reason,
};

use crate::{
    build::Build,
    history::{History, Moment},
    judge::{Answer, Look, Question, questions, read as ask},
    rig::{Rig, wire},
    world::name,
};

fn tcp(direction: Direction, peer: &str) -> Question {
    Question { direction, peer: peer.parse().unwrap(), transit: false, class: Class::Tcp, value: 80 }
}

/// Publishes, and asks endpoint 0 at every single moment.
fn at_every_moment(rig: &mut Rig, desired: &Desired, question: &Question) -> (Published, Vec<Answer>) {
    let start = rig.store.snapshot();
    rig.store.memory().journal = Some(Vec::new());
    let published = rig.publish(desired).unwrap();
    let history = History::new(&start, rig.store.memory().journal.take().unwrap());
    let moments = 0..=*history.ends.last().unwrap();
    (published, moments.map(|moment| ask(&mut Moment(&history, moment), rig.slots[&name(0)], question)).collect())
}

#[test]
fn labels_and_policy_that_change_together_open_nothing() {
    let old = Build::default().endpoint(0, &[], &["web"], &[]).address("10.0.0.9", &["ops"]).0;
    let new = Build::default().endpoint(0, &[], &["ops"], &[]).address("10.0.0.9", &["web"]).0;
    let mut rig = Rig::new();
    rig.publish(&old).unwrap();
    let (_, answers) = at_every_moment(&mut rig, &new, &tcp(Direction::Ingress, "10.0.0.9"));
    assert!(answers.iter().all(|answer| !answer.allows()), "{answers:?}");

    // The same where both bits are read on both sides: nothing but removal first can do it.
    let old = Build::default().endpoint(0, &[], &["web", "a"], &["ops"]).address("10.0.0.9", &["ops"]).0;
    let new = Build::default().endpoint(0, &[], &["ops", "a"], &["web"]).address("10.0.0.9", &["web"]).0;
    let mut rig = Rig::new();
    rig.publish(&old).unwrap();
    let (published, answers) = at_every_moment(&mut rig, &new, &tcp(Direction::Ingress, "10.0.0.9"));
    assert!(answers.iter().all(|answer| !answer.allows()), "{answers:?}");
    assert_eq!(published.grace_periods, 3, "step 1, step 2, and what is freed after step 3");
}

/// An address is nobody's, a workload's or a node's before and after, beside a prefix that covers it, while the policy changes: all ways from one to another.
#[test]
fn an_address_that_turns_into_a_nodes_or_a_workloads_opens_nothing() {
    let labels: [&[&str]; 3] = [&[], &["old"], &["new"]];
    let mut states = Vec::new();
    for prefix in labels {
        states.push((prefix, None, labels[0], None));
        states.extend(labels.iter().flat_map(|own| [false, true].map(|node| (prefix, Some(node), *own, None))));
    }
    // As a node has it where traffic of its pods may come by its address.
    states.extend(labels.iter().flat_map(|own| [1, 2].map(|alone| (labels[0], Some(true), *own, Some(labels[alone])))));
    let build = |policy: &[&str], (prefix, node, own, alone): (&[&str], Option<bool>, &[&str], Option<&[&str]>)| {
        let mut build = Build::default().endpoint(0, &[], policy, &[]).prefix("10.0.0.0/24", prefix);
        if let Some(alone) = alone {
            build = build.prefix("10.0.0.9/32", alone);
        }
        let Some(node) = node else { return build.0 };
        let mut desired = build.address("10.0.0.9", own).0;
        desired.addresses.get_mut(&(1, "10.0.0.9".parse().unwrap())).unwrap().node = node;
        desired
    };
    for (from, to) in states.iter().flat_map(|from| states.iter().map(move |to| (*from, *to))) {
        for transit in [false, true] {
            let question = Question { transit, ..tcp(Direction::Ingress, "10.0.0.9") };
            let mut rig = Rig::new();
            rig.publish(&build(&["old"], from)).unwrap();
            let (_, answers) = at_every_moment(&mut rig, &build(&["new"], to), &question);
            let [first, .., last] = answers[..] else { panic!("{answers:?}") };
            assert!(
                first.allows() || last.allows() || answers.iter().all(|answer| !answer.allows()),
                "{from:?} to {to:?}, {transit}: {answers:?}"
            );
        }
    }
}

#[test]
fn nested_prefixes_go_from_old_to_new_at_once() {
    let states: [&[(&str, &[&str])]; 5] = [
        &[("10.0.0.0/8", &["a"])],
        &[("10.0.0.0/8", &["b"]), ("10.0.0.0/16", &["c"]), ("10.0.0.0/24", &["a"])],
        &[("10.0.0.0/8", &["b"])],
        &[("10.0.0.0/8", &["c"]), ("10.0.0.0/16", &["a"]), ("10.0.0.0/28", &["b"])],
        &[("10.0.0.0/8", &["c"])],
    ];
    let mut rig = Rig::new();
    for prefixes in states {
        let policy = Build::default().endpoint(0, &[], &["a", "b", "c"], &[]);
        let desired = prefixes.iter().fold(policy, |all, (prefix, labels)| all.prefix(prefix, labels)).0;
        if rig.slots.is_empty() {
            rig.publish(&desired).unwrap();
            continue;
        }
        let (_, mut answers) = at_every_moment(&mut rig, &desired, &tcp(Direction::Ingress, "10.0.0.7"));
        answers.dedup();
        assert!(answers.len() <= 2, "{prefixes:?}: {answers:?}");
    }
}

/// A program that looks for an address at one moment, and for everything after that at a later one.
struct Slow<'a> {
    history: &'a History,
    now: usize,
    later: usize,
}

impl Look for Slow<'_> {
    fn bytes(&mut self, table: &'static str, key: &[u8]) -> Option<Vec<u8>> {
        let found = self.history.at(self.now, table, key);
        if table == Addresses4::NAME {
            self.now = self.later;
        }
        found
    }

    fn all(&mut self, table: &'static str) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.history.all(self.now, table)
    }
}

#[test]
fn an_address_and_what_covers_it_change_as_one() {
    let policy = Build::default().endpoint(0, &[], &["a", "b", "c"], &[]);
    let known = |label| policy.clone().address("10.0.0.9", &[label]);
    let node = |label| {
        let mut known = known(label);
        known.0.addresses.get_mut(&(1, "10.0.0.9".parse().unwrap())).unwrap().node = true;
        known
    };
    let states = [
        policy.clone().prefix("10.0.0.0/8", &["a"]),
        known("b").prefix("10.0.0.0/8", &["c"]),
        policy.clone().prefix("10.0.0.0/8", &["a"]),
        node("b").prefix("10.0.0.0/8", &["c"]),
        known("a").prefix("10.0.0.0/8", &["b"]),
        node("a").prefix("10.0.0.0/8", &["c"]),
        policy.clone().prefix("10.0.0.0/16", &["b"]),
    ];
    let mut rig = Rig::new();
    rig.publish(&states[0].0).unwrap();
    for state in &states[1..] {
        let start = rig.store.snapshot();
        rig.store.memory().journal = Some(Vec::new());
        rig.publish(&state.0).unwrap();
        let history = History::new(&start, rig.store.memory().journal.take().unwrap());
        let (slot, last) = (rig.slots[&name(0)], *history.ends.last().unwrap());
        for transit in [false, true] {
            let question = Question { transit, ..tcp(Direction::Ingress, "10.0.0.9") };
            let revisions = [0, last].map(|moment| ask(&mut Moment(&history, moment), slot, &question));
            for now in 0..=last {
                let end = history.ends.iter().copied().find(|end| *end > now).unwrap_or(last);
                for later in now..=end {
                    let answer = ask(&mut Slow { history: &history, now, later }, slot, &question);
                    assert!(
                        revisions.contains(&answer),
                        "{now}, then {later} of {last}: {answer:?}, not one of {revisions:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_replica_waits_for_nothing_and_cuts_only_whom_it_concerns() {
    let three = Build::default().endpoint(0, &["web"], &[], &["cart"]).endpoint(1, &["cart"], &["web"], &[]).endpoint(
        2,
        &["db"],
        &["cart"],
        &[],
    );
    let mut rig = Rig::new();
    rig.publish(&three.0).unwrap();
    let words = |rig: &Rig| -> BTreeMap<u32, u64> { rig.store.entries::<Endpoints>().unwrap().into_iter().collect() };
    let before = words(&rig);
    let published = rig.publish(&three.endpoint(3, &["web"], &[], &["cart"]).0).unwrap();
    assert_eq!(published.grace_periods, 0);
    let after = words(&rig);
    let changed: Vec<usize> =
        (0..3).filter(|at| before[&rig.slots[&name(*at)]] != after[&rig.slots[&name(*at)]]).collect();
    assert_eq!(changed, [1], "only cart's lists read what a new web has");
    let (old, new) = (EndpointWord(before[&rig.slots[&name(1)]]), EndpointWord(after[&rig.slots[&name(1)]]));
    assert!(new.epoch() > old.epoch() && new.view() == old.view());
}

/// What nobody else has: its views may read bits that rows get only now.
#[test]
fn the_first_of_a_service_waits_once_at_most() {
    let others = Build::default().endpoint(0, &["web"], &[], &["cart"]).endpoint(1, &["cart"], &["web"], &[]);
    let covered = |build: Build, far: &[&str], world: &[&str]| {
        build.address("10.1.0.1", far).prefix("10.0.0.0/16", &[]).prefix("0.0.0.0/0", world).0
    };
    let none: &[&str] = &[];
    for (calls, far, world, waits) in [
        ("web", none, none, 0),
        // Who was there already, what covers the newcomer, and the newcomer itself get a bit that only the newcomer reads.
        ("payments", &["payments"], none, 1),
        ("world", none, &["world"], 1),
        ("db", none, none, 1),
    ] {
        let without = covered(others.clone(), none, none);
        let with = covered(others.clone().endpoint(2, &["db"], &[], &[calls]), far, world);
        let mut rig = Rig::new();
        rig.publish(&without).unwrap();
        // What it has goes with it, and is there again with the next one.
        for _ in 0..2 {
            assert_eq!(rig.publish(&with).unwrap().grace_periods, waits, "{calls}");
            rig.publish(&without).unwrap();
        }
    }
}

#[test]
fn what_does_not_fit_changes_nothing_and_says_whose_need_it_is() {
    let small = Build::default().endpoint(0, &["a"], &["a"], &["b"]).prefix("10.0.0.0/8", &["b"]).0;
    let mut large = Build(small.clone());
    for at in 1..6 {
        let labels = [format!("l{at}"), format!("m{at}")];
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        large = large.endpoint(at, &labels, &labels, &labels[1..]).prefix(&format!("10.{at}.0.0/16"), &labels);
    }
    let peers = |n: u8| {
        (0..n).map(|n| (IpAddr::from([192, 0, 2, n]), [format!("10.{n}.0.0/16").parse().unwrap()].into())).collect()
    };
    large.0.overlays.push(bulkhead_dataplane::desired::Overlay {
        vni: 1,
        port: 8472,
        own: Vec::new(),
        peers: peers(5),
    });
    let large = large.0;

    fn refuses<T: Table>(small: &Desired, large: &Desired, limit: usize, table: &str, whose: &str) {
        let mut rig = Rig::with_limit::<T>(limit);
        rig.publish(small).unwrap();
        let (tables, names) = (rig.store.snapshot(), fs::read(rig.directory.path().join(FILE)).unwrap());
        let usage = rig.usage();
        let rehearsed = rig.rehearse(large).unwrap_err();
        let error = rig.publish(large).unwrap_err();
        assert_eq!(format!("{rehearsed:?}"), format!("{error:?}"));
        let NodeError::Capacity { what, table: named, need, limit: said } = &error else { panic!("{table}: {error}") };
        assert_eq!(*named, table);
        assert!(what.contains(whose), "{error}");
        assert!(need > said && *said <= limit, "{error}");
        assert_eq!(rig.store.snapshot(), tables, "{table}");
        assert_eq!(fs::read(rig.directory.path().join(FILE)).unwrap(), names, "{table}");
        assert_eq!(rig.usage(), usage, "{table}");
        // What fits goes on, and what does not fit now does when there is room.
        rig.publish(small).unwrap();
        rig.assert_means(small, &questions());
        rig.store.set_limit::<T>(100_000);
        let mut rig = rig.fork();
        rig.publish(large).unwrap();
        rig.assert_means(large, &questions());
    }
    refuses::<Endpoints>(&small, &large, 4, Endpoints::NAME, "shop/w");
    refuses::<EndpointInfos>(&small, &large, 4, Endpoints::NAME, "shop/w");
    refuses::<Views>(&small, &large, 5, Views::NAME, "shop/w");
    refuses::<Ports>(&small, &large, 30, Ports::NAME, "of shop/w");
    refuses::<Lists>(&small, &large, 5, Lists::NAME, "of shop/w");
    refuses::<Rows>(&small, &large, 4 * ROW_WORDS as usize, Rows::NAME, "10.");
    refuses::<RuleCounters>(&small, &large, 12, "RULE_COUNTERS", "shop/w");
    refuses::<CounterKeys>(&small, &large, 12, "COUNTERS", "shop/w");
    refuses::<Addresses4>(&small, &large, 3, Addresses4::NAME, "known addresses");
    refuses::<Prefixes4>(&small, &large, 3, Prefixes4::NAME, "prefixes");
    refuses::<Vteps>(&small, &large, 3, Vteps::NAME, "overlays' nodes");
    refuses::<Owners>(&small, &large, 3, Owners::NAME, "overlays' prefixes");
    refuses::<Ids>(&small, &large, 5, Ids::NAME, "selectors");
}

#[test]
fn lists_chain_up_to_their_limit() {
    let labels: Vec<String> = (0..70).map(|n| format!("label {n}")).collect();
    let mut some = Build::default()
        .endpoint(0, &[], &[], &[])
        .address("10.0.0.9", &["label 20"])
        .address("10.0.0.7", &["label 64"]);
    let groups: Vec<[&str; 1]> = labels.iter().map(|label| [label.as_str()]).collect();
    let groups: Vec<&[&str]> = groups.iter().map(<[&str; 1]>::as_slice).collect();
    some.0.endpoints[0].views[0].ingress = some.set(Direction::Ingress, &groups[..63]);
    let mut rig = Rig::new();
    rig.publish(&some.0).unwrap();
    let ask = |rig: &Rig, peer| ask(&mut &rig.store.snapshot(), rig.slots[&name(0)], &tcp(Direction::Ingress, peer));
    let Answer::Judged { allow: true, rule, .. } = ask(&rig, "10.0.0.9") else { panic!() };
    assert_eq!(rule, (rule_hash("label 20"), endpoint_identity(&name(0))));
    assert!(!ask(&rig, "10.0.0.7").allows());

    some.0.endpoints[0].views[0].ingress = some.set(Direction::Ingress, &groups);
    let error = rig.publish(&some.0).unwrap_err().to_string();
    assert_eq!(
        error,
        "ingress of shop/w0 (Tcp from 0) needs 71 entries of one list, 64 are configured; nothing was changed"
    );

    // The same selectors in one entry are as many entries as they have words.
    let all: Vec<&str> = labels.iter().map(String::as_str).collect();
    some.0.endpoints[0].views[0].ingress = some.set(Direction::Ingress, &[&all]);
    rig.publish(&some.0).unwrap();
    assert!(ask(&rig, "10.0.0.7").allows());
}

#[test]
fn selectors_that_are_used_together_share_a_word() {
    let first: Vec<String> = (0..60).map(|n| format!("first {n}")).collect();
    let first: Vec<&str> = first.iter().map(String::as_str).collect();
    let second: Vec<String> = (0..10).map(|n| format!("second {n}")).collect();
    let second: Vec<&str> = second.iter().map(String::as_str).collect();
    let mut rig = Rig::new();
    rig.publish(&Build::default().endpoint(0, &[], &first, &[]).0).unwrap();
    let desired = Build::default().endpoint(0, &[], &first, &second).0;
    rig.publish(&desired).unwrap();
    // Four places are left in the first word: they stay empty rather than to split the ten.
    let masks = rig
        .store
        .entries::<Lists>()
        .unwrap()
        .into_iter()
        .flat_map(|(_, list)| list.entries.into_iter().take(list.len as usize));
    let masks: Vec<(u16, u32)> =
        masks.filter(|entry| entry.mask != 0).map(|entry| (entry.word, entry.mask.count_ones())).collect();
    assert!(masks.contains(&(0, 60)) && masks.iter().any(|(word, bits)| *word != 0 && *bits == 10), "{masks:?}");
    // Nobody is moved by those that come or go.
    let ids = |rig: &Rig| rig.store.entries::<Ids>().unwrap().into_iter().collect::<BTreeMap<_, _>>();
    let before = ids(&rig);
    rig.publish(&Build::default().endpoint(0, &[], &[], &second).0).unwrap();
    let after = ids(&rig);
    assert_eq!(after.len(), 10);
    assert!(after.iter().all(|(key, bit)| before[key] == *bit));
}

fn index(rig: &Rig, at: usize, rule: &str) -> u32 {
    let wanted = (rule_hash(rule), endpoint_identity(&name(at)));
    let keys = rig.store.entries::<CounterKeys>().unwrap();
    keys.into_iter().find(|(index, key)| index % 2 == 0 && (key.rule, key.endpoint) == wanted).unwrap().0
}

#[test]
fn counters_outlive_policies_publishers_and_endpoints() {
    let mut rig = Rig::new();
    let first = Build::default().endpoint(0, &["a"], &["a", "b"], &[]).endpoint(1, &["b"], &["a"], &[]).0;
    rig.publish(&first).unwrap();
    let of_b = index(&rig, 0, "b");
    let count = |packets| Counter { packets, bytes: packets * 100, flows: 1 };
    rig.store.memory().counters.extend([(of_b, count(5)), (of_b + 1, count(4))]);

    let second = Build::default().endpoint(0, &["a"], &["0", "b", "c"], &["b"]).0;
    rig.publish(&second).unwrap();
    let mut rig = rig.fork();
    rig.publish(&first).unwrap();
    assert_eq!(index(&rig, 0, "b"), of_b);
    // The endpoint goes: its counters stay, with their names, for readers without an agent.
    rig.publisher.set_clock(|| UNIX_EPOCH + Duration::from_secs(1000));
    rig.publish(&Build::default().endpoint(1, &["b"], &["a"], &[]).0).unwrap();
    let readings =
        read::with_names(rig.directory.path(), |names| read::counters(&rig.store, names, &mut read::Idle::default()))
            .unwrap();
    let reading = |direction, reason, packets| Reading {
        endpoint: Some(name(0)),
        service: "service".to_owned(),
        gone: Some(1_000_000_000_000),
        direction,
        reason,
        rule: "b".to_owned(),
        packets,
        bytes: packets * 100,
        flows: 1,
    };
    assert_eq!(readings, [reading("ingress", Reason::Rule, 5), reading("egress", Reason::Reply, 4)]);
}

/// It is when the last of its endpoints is.
#[test]
fn readers_tell_since_when_a_workload_is_gone() {
    let mut rig = Rig::new();
    let one = Build::default().endpoint(0, &[], &["a"], &[]);
    let mut both = one.clone().endpoint(1, &[], &["a"], &[]).0;
    let second = EndpointName { index: 1, ..name(0) };
    let address = Address { endpoint: Some(Box::new(second.clone())), ..Address::default() };
    both.addresses.insert((1, both.endpoints[1].addresses[0]), address);
    both.endpoints[1].name = second;
    rig.publish(&both).unwrap();
    for slot in rig.slots.values() {
        let spoofed = endpoint_counter(*slot, Direction::Egress, Reason::SpoofedSource as u8);
        let counter = Counter { packets: 1, bytes: 60, flows: 0 };
        rig.store.memory().endpoint_counters.insert(spoofed, counter);
    }
    let gone = |rig: &Rig| {
        let readings = read::with_names(rig.directory.path(), |names| {
            read::counters(&rig.store, names, &mut read::Idle::default())
        });
        let of = |reading: Reading| (reading.endpoint.unwrap().index, reading.gone);
        readings.unwrap().into_iter().map(of).collect::<BTreeMap<_, _>>()
    };
    let there = BTreeMap::from([(0, None), (1, None)]);
    assert_eq!(gone(&rig), there);
    rig.publisher.set_clock(|| UNIX_EPOCH + Duration::from_secs(1000));
    rig.publish(&one.0).unwrap();
    assert_eq!(gone(&rig), there, "one of two is left");
    rig.publisher.set_clock(|| UNIX_EPOCH + Duration::from_secs(2000));
    rig.publish(&Desired::default()).unwrap();
    let since = Some(2_000_000_000_000);
    assert_eq!(gone(&rig), BTreeMap::from([(0, since), (1, since)]));
    rig.publisher.set_clock(|| UNIX_EPOCH + Duration::from_secs(3000));
    rig.publish(&Build::default().endpoint(2, &[], &["a"], &[]).0).unwrap();
    assert_eq!(gone(&rig), BTreeMap::from([(0, since), (1, since)]), "it did not go once more");
    rig.publish(&one.0).unwrap();
    assert_eq!(gone(&rig), there);
}

#[test]
fn counters_that_run_out_are_taken_from_who_is_gone_longest() {
    let mut rig = Rig::with_limit::<CounterKeys>(2 + 3 * 8);
    // Each endpoint has four: two rules, two isolations.
    let only = |at| Build::default().endpoint(at, &[], &["a"], &["b"]).0;
    let of = |rig: &Rig, at| {
        rig.store
            .entries::<CounterKeys>()
            .unwrap()
            .into_iter()
            .filter(|(_, key)| key.endpoint == endpoint_identity(&name(at)))
            .count()
    };
    for at in [0, 1, 2] {
        rig.publish(&only(at)).unwrap();
    }
    let taken = index(&rig, 0, "a");
    rig.store.memory().counters.insert(taken, Counter { packets: 7, bytes: 7, flows: 7 });
    assert_eq!((of(&rig, 0), of(&rig, 1), of(&rig, 2)), (8, 8, 8));
    // After a restart as well: who is gone since when is on disk.
    let mut rig = rig.fork();
    rig.publish(&only(3)).unwrap();
    assert_eq!((of(&rig, 0), of(&rig, 1), of(&rig, 2), of(&rig, 3)), (0, 8, 8, 8));
    assert!(!rig.store.memory().counters.contains_key(&taken), "reset before it was given away");
    let names = fs::read_to_string(rig.directory.path().join(FILE)).unwrap();
    assert!(names.contains(&endpoint_identity(&name(1)).to_string()));
    rig.publish(&only(4)).unwrap();
    assert_eq!((of(&rig, 1), of(&rig, 2), of(&rig, 3), of(&rig, 4)), (0, 8, 8, 8));
}

#[test]
fn a_slot_that_changes_hands_takes_no_counts_along() {
    let mut rig = Rig::with_limit::<EndpointInfos>(2);
    let none = Desired::default();
    let only = |at| Build::default().endpoint(at, &[], &["a"], &["b"]).0;
    rig.publish(&only(0)).unwrap();
    let spoofed = endpoint_counter(1, Direction::Egress, Reason::SpoofedSource as u8);
    let count = |rig: &Rig, packets| {
        rig.store.memory().endpoint_counters.extend([(spoofed, Counter { packets, bytes: 60 * packets, flows: 0 })]);
    };
    let counted = |rig: &Rig| -> Vec<(usize, u64)> {
        let readings = read::with_names(rig.directory.path(), |names| {
            read::counters(&rig.store, names, &mut read::Idle::default())
        })
        .unwrap();
        (0..2)
            .map(|at| (at, readings.iter().filter(|r| r.endpoint == Some(name(at))).map(|r| r.packets).sum()))
            .collect()
    };
    count(&rig, 10);
    rig.publish(&none).unwrap();
    assert_eq!(counted(&rig), [(0, 10), (1, 0)]);
    rig.publish(&only(1)).unwrap();
    assert_eq!(counted(&rig), [(0, 10), (1, 0)]);
    count(&rig, 13);
    assert_eq!(counted(&rig), [(0, 10), (1, 3)]);
    let mut rig = rig.fork();
    rig.publish(&none).unwrap();
    rig.publish(&only(0)).unwrap();
    count(&rig, 20);
    assert_eq!(counted(&rig), [(0, 17), (1, 3)], "what it had, and what came since it is back");

    // After a reboot the tables count from 0, and the file is still there.
    let store = MemoryStore::default();
    store.set_limit::<EndpointInfos>(2);
    let mut rig = Rig::open(store, rig.directory);
    rig.publish(&only(0)).unwrap();
    count(&rig, 2);
    assert_eq!(counted(&rig), [(0, 2), (1, 0)]);
}

/// Nobody is blamed for what was denied of whom his slot had before.
#[test]
fn a_slot_that_changes_hands_takes_no_contacts_along() {
    let mut rig = Rig::with_limit::<EndpointInfos>(3);
    let both = |at| Build::default().endpoint(0, &[], &["a"], &[]).endpoint(at, &[], &["a"], &[]).0;
    let deny = |rig: &mut Rig, slot: u32, port| {
        let key = ContactKey { slot: slot as u16, port, reason: Reason::Isolated as u8, ..ContactKey::default() };
        rig.store.put::<ContactTable>(&[(key, Contact { packets: 1, ..Contact::default() })]).unwrap();
    };
    let told = |rig: &Rig| -> BTreeSet<(Option<String>, u16)> {
        let contacts = read::with_names(rig.directory.path(), |names| read::contacts(&rig.store, names)).unwrap();
        let of = |contact: ContactRecord| (contact.endpoint.map(|name| name.workload.clone()), contact.port);
        contacts.records.into_iter().map(of).collect()
    };
    let of = |workload: &str, port| (Some(workload.to_owned()), port);
    rig.publish(&both(1)).unwrap();
    let (stays, slot) = (rig.slots[&name(0)], rig.slots[&name(1)]);
    deny(&mut rig, 0, 4789);
    deny(&mut rig, stays, 80);
    deny(&mut rig, slot, 5432);
    let others = [(None, 4789), of("w0", 80)];
    let all = others.iter().cloned().chain([of("w1", 5432)]).collect();
    assert_eq!(told(&rig), all);
    // It is told of whom it was for as long as nobody else has the slot, by the next agent too, and when he is back.
    rig.publish(&Build::default().endpoint(0, &[], &["a"], &[]).0).unwrap();
    assert_eq!(told(&rig), all);
    let mut rig = rig.fork();
    rig.publish(&both(1)).unwrap();
    assert_eq!((rig.slots[&name(1)], told(&rig)), (slot, all));
    rig.publish(&Build::default().endpoint(0, &[], &["a"], &[]).0).unwrap();
    rig.publish(&both(2)).unwrap();
    assert_eq!((rig.slots[&name(2)], told(&rig)), (slot, others.iter().cloned().collect()));
    deny(&mut rig, slot, 5432);
    assert_eq!(told(&rig), others.into_iter().chain([of("w2", 5432)]).collect());
}

/// Who reads again and again looks at slots of nobody once, and tells all the same what is told to who reads for the first time.
#[test]
fn what_is_counted_is_told_to_who_reads_again_as_to_who_is_new() {
    let mut rig = Rig::with_limit::<EndpointInfos>(4);
    let only = |at| Build::default().endpoint(at, &[], &["a"], &["b"]).0;
    let count = |rig: &Rig, slot, packets| {
        let spoofed = endpoint_counter(slot, Direction::Egress, Reason::SpoofedSource as u8);
        rig.store.memory().endpoint_counters.extend([(spoofed, Counter { packets, bytes: 60 * packets, flows: 0 })]);
    };
    let read = |rig: &Rig, idle: &mut read::Idle| {
        read::with_names(rig.directory.path(), |names| read::counters(&rig.store, names, idle)).unwrap()
    };
    let mut idle = read::Idle::default();
    let mut told = |rig: &Rig| -> u64 {
        let (again, anew) = (read(rig, &mut idle), read(rig, &mut read::Idle::default()));
        assert_eq!(again, anew);
        again.iter().map(|reading| reading.packets).sum()
    };
    rig.publish(&only(0)).unwrap();
    let slot = rig.slots[&name(0)];
    count(&rig, 0, 1);
    count(&rig, slot, 10);
    assert_eq!(told(&rig), 11);
    count(&rig, 0, 2);
    count(&rig, slot, 20);
    assert_eq!(told(&rig), 22);
    // Nobody knows whose it was: it is the node's, and stays told.
    rig.publish(&Desired::default()).unwrap();
    fs::remove_file(rig.directory.path().join(FILE)).unwrap();
    let mut rig = Rig::open(rig.store.clone(), rig.directory);
    assert_eq!(told(&rig), 22);
    assert_eq!(told(&rig), 22);
    // Somebody has a slot now that was nobody's a moment ago.
    rig.publish(&only(1)).unwrap();
    count(&rig, rig.slots[&name(1)], 300);
    assert!(told(&rig) >= 300);
    count(&rig, rig.slots[&name(1)], 400);
    assert!(told(&rig) >= 400);
}

#[test]
fn flows_do_not_outlive_whom_they_name() {
    let mut rig = Rig::with_limit::<EndpointInfos>(3);
    let web = Build::default().endpoint(0, &[], &["a"], &[]);
    let with = |at| web.clone().endpoint(at, &[], &[], &[]).0;
    let word = |rig: &Rig| EndpointWord(rig.store.get::<Endpoints>(&rig.slots[&name(0)]).unwrap().unwrap());
    let tenancy = |rig: &Rig, slot| rig.store.get::<EndpointInfos>(&slot).unwrap().unwrap().tenancy;
    rig.publish(&with(1)).unwrap();
    let (slot, first, before) = (rig.slots[&name(1)], tenancy(&rig, rig.slots[&name(1)]), word(&rig));
    // Nothing that web's lists read changes with its neighbour.
    rig.publish(&web.0).unwrap();
    let after = word(&rig);
    assert!(after.epoch() > before.epoch() && after.view() == before.view(), "{before:?}, {after:?}");
    rig.publish(&with(2)).unwrap();
    assert_eq!(word(&rig), after, "who comes is named by no flow yet");
    assert_eq!(rig.slots[&name(2)], slot);
    let second = tenancy(&rig, slot);
    assert_ne!(second, first);
    // It stays what it is for the next publisher.
    let mut rig = rig.fork();
    assert_eq!(rig.publish(&with(2)).unwrap().writes, 0);
    assert_eq!(tenancy(&rig, slot), second);
}

#[test]
fn another_link_is_no_new_endpoint() {
    let mut rig = Rig::new();
    let desired = Build::default().endpoint(0, &["a"], &["a"], &[]).0;
    rig.publish(&desired).unwrap();
    let slot = rig.slots[&name(0)];
    for (link, bridge, router) in [(7, 3, 1), (8, 3, 1), (8, 3, 2), (8, 0, 2)] {
        let router = [2, 0, 0, 0, 1, router];
        let mut by = |endpoint: &Endpoint| Ok(Wire { port: Port { link, bridge, router }, ..wire(endpoint)? });
        let plan = rig.publisher.prepare(&desired, &mut by).unwrap();
        assert_eq!((plan.attach[0].new, plan.attach[0].slot, plan.removed.len()), (false, slot, 0));
        rig.publisher.commit(plan).unwrap();
        let info = rig.store.get::<EndpointInfos>(&slot).unwrap().unwrap();
        assert_eq!((info.link, info.bridge, info.router), (link, bridge, router));
        // Whoever comes next finds it so.
        rig.publisher.reopen().unwrap();
    }
}

#[test]
fn a_new_address_is_a_new_slot_with_the_counters_of_the_old() {
    let mut rig = Rig::new();
    let mut desired = Build::default().endpoint(0, &["a"], &["a"], &[]).0;
    rig.publish(&desired).unwrap();
    let (slot, counter) = (rig.slots[&name(0)], index(&rig, 0, "a"));
    rig.store.memory().flows.get_mut(&slot).unwrap().v4.push((FlowKey4::default(), Flow::default()));
    desired.endpoints[0].addresses.push("10.0.7.7".parse().unwrap());
    let plan = rig.publisher.prepare(&desired, &mut wire).unwrap();
    assert!(plan.attach[0].new && plan.attach[0].slot != slot);
    assert_eq!(
        (plan.removed.len(), plan.removed[0].slot, &plan.removed[0].link),
        (1, slot, &None),
        "the link stays, with another slot"
    );
    let new = plan.attach[0].slot;
    assert_eq!(rig.store.get::<Endpoints>(&new).unwrap(), Some(0), "pending until the commit");
    let removed = plan.removed.clone();
    rig.publisher.commit(plan).unwrap();
    rig.publisher.release(&removed).unwrap();
    assert_eq!(index(&rig, 0, "a"), counter);
    assert_eq!(rig.store.get::<CounterKeys>(&counter).unwrap().unwrap().slot, new as u16);
    assert!(rig.store.memory().flows[&new].v4.is_empty());
    assert_eq!(rig.store.get::<EndpointInfos>(&slot).unwrap().unwrap().identity, 0);
}

#[test]
fn a_plan_that_is_not_carried_out_leaves_nothing_enforced() {
    let mut rig = Rig::new();
    let desired = Build::default().endpoint(0, &["a"], &["a"], &[]).0;
    rig.publish(&desired).unwrap();
    let tables = rig.store.snapshot();
    let more = Build(desired.clone()).endpoint(1, &["b"], &["a", "b"], &["c"]);
    // Its MAC is not to be had: nothing at all.
    let error = rig.publisher.prepare(&more.0, &mut |endpoint| match endpoint.link.as_str() {
        "veth1" => Err(NodeError::Link {
            link: "veth1".to_owned(),
            endpoint: "shop/w1".to_owned(),
            why: "no such link".to_owned(),
        }),
        _ => wire(endpoint),
    });
    assert!(matches!(error, Err(NodeError::Link { .. })));
    assert_eq!(rig.store.snapshot(), tables);
    // Its link cannot be attached: the slot waits, pending.
    let plan = rig.publisher.prepare(&more.0, &mut wire).unwrap();
    let slot = plan.attach.iter().find(|attach| attach.new).unwrap().slot;
    let later = rig.publisher.prepare(&desired, &mut wire).unwrap();
    assert!(rig.publisher.commit(plan).unwrap_err().to_string().contains("out of date"));
    assert!(rig.publisher.commit(later).is_ok_and(|published| published.writes == 0));
    let plan = rig.publisher.prepare(&desired, &mut wire).unwrap();
    assert_eq!(
        plan.removed.iter().map(|removed| (removed.slot, removed.link.as_deref())).collect::<Vec<_>>(),
        [(slot, Some("veth1"))]
    );
    let removed = plan.removed.clone();
    rig.publisher.commit(plan).unwrap();
    rig.publisher.release(&removed).unwrap();
    assert_eq!(rig.store.snapshot(), tables);
}

#[test]
fn an_error_on_the_way_is_made_good_by_the_next_publish() {
    let mut rig = Rig::new();
    rig.publish(&Build::default().endpoint(0, &["a"], &["a"], &[]).0).unwrap();
    let next = Build::default().endpoint(0, &["b"], &["b"], &["c"]).endpoint(1, &["c"], &["b"], &[]).0;
    rig.publisher.set_hook(Some(Box::new(|point| {
        if point == CrashPoint::Flips { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })));
    let error = rig.publish(&next).unwrap_err().to_string();
    assert_eq!(error, "publish: stopped at Flips");
    rig.publisher.set_hook(None);
    rig.publish(&next).unwrap();
    rig.assert_means(&next, &questions());
}

#[test]
fn a_crash_between_rows_and_epochs_has_every_flow_judged_again() {
    let mut rig = Rig::new();
    let policy = Build::default().endpoint(0, &[], &["a"], &[]);
    rig.publish(&policy.clone().address("10.0.0.9", &["a"]).0).unwrap();
    let word = |rig: &Rig| EndpointWord(rig.store.get::<Endpoints>(&rig.slots[&name(0)]).unwrap().unwrap());
    let judged = word(&rig);
    rig.publisher.set_hook(Some(Box::new(|point| {
        if point == CrashPoint::FirstRows { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })));
    rig.publish(&policy.clone().address("10.0.0.9", &[]).0).unwrap_err();
    assert_eq!(word(&rig), judged, "the peer has lost its label, and its flows are still good");
    let rig = rig.fork();
    assert!(word(&rig).epoch() > judged.epoch() && word(&rig).view() == judged.view());
}

#[test]
fn a_state_that_contradicts_itself_is_an_error() {
    let good = Build::default().endpoint(0, &["a"], &["a"], &[]).endpoint(1, &[], &[], &[]).0;
    let mut rig = Rig::new();
    let mut refused = |change: fn(&mut Desired), says: &str| {
        let mut bad = good.clone();
        change(&mut bad);
        let error = rig.publish(&bad).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert!(rig.store.snapshot().is_empty());
    };
    refused(|d| d.endpoints[1].name = name(0), "two endpoints are called shop/w0");
    refused(|d| d.endpoints[1].link = "veth0".to_owned(), "link veth0 of shop/w1 is another endpoint's");
    refused(|d| d.endpoints[0].views[0].ingress = SetId(99), "has no policy set 99");
    refused(
        |d| d.endpoints[0].views[0].ingress = d.endpoints[0].views[0].egress,
        "ingress of shop/w0 has no policy set",
    );
    refused(|d| d.endpoints[0].views[0].until = Some(5), "the last one ends");
    refused(|d| d.endpoints[0].views.clear(), "the last one ends");
    refused(|d| change_set(d, |set| set.classes[0][0].start = 1), "do not begin at 0");
    refused(|d| d.selectors.truncate(0), "selector");
    refused(|d| d.rules.truncate(1), "rule that is not there");
    refused(|d| drop(d.endpoints.remove(0)), "which is no endpoint of this node");
    refused(
        |d| {
            let prefix = |text: &str| (1, text.parse().unwrap());
            d.prefixes.insert(prefix("10.0.0.1/8"), Default::default());
            d.prefixes.insert(prefix("10.0.0.2/8"), Default::default());
        },
        "stands there twice",
    );
    refused(
        |d| d.endpoints[0].addresses = (0..5).map(|n| IpAddr::from([10, 0, 0, n])).collect(),
        "needs 5 addresses of one family",
    );
}

#[test]
fn a_clock_step_moves_deadlines_and_nothing_else_does() {
    let mut rig = Rig::new();
    let mut desired = Build::default().endpoint(0, &["a"], &["a"], &[]).0;
    let until = std::time::SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64 + 3_600_000_000_000;
    let mut before = desired.endpoints[0].views[0];
    before.until = Some(until);
    desired.endpoints[0].views.insert(0, before);
    rig.store.set_jiffies(1_000_000);
    rig.publish(&desired).unwrap();
    let deadline = |rig: &Rig| {
        let word = EndpointWord(rig.store.get::<Endpoints>(&rig.slots[&name(0)]).unwrap().unwrap());
        let view = rig.store.get::<Views>(&word.view()).unwrap().unwrap();
        assert_ne!(view.next, 0);
        view.deadline
    };
    assert!(deadline(&rig).abs_diff(1_000_000 + 3_600 * 250) < 250, "{}", deadline(&rig));
    assert_eq!(rig.publish(&desired).unwrap().writes, 0);
    assert_eq!(rig.fork().publish(&desired).unwrap().writes, 0);
    rig.store.set_jiffies(2_000_000);
    assert!(rig.publish(&desired).unwrap().writes > 0);
    assert!(deadline(&rig).abs_diff(2_000_000 + 3_600 * 250) < 250);
}

#[test]
fn lost_names_cost_names_only() {
    let mut rig = Rig::new();
    let desired = Build::default().endpoint(0, &["a"], &["a"], &[]).0;
    rig.publish(&desired).unwrap();
    let counter = index(&rig, 0, "a");
    for content in [None, Some("{\"rules\": 5")] {
        let path = rig.directory.path().join(FILE);
        match content {
            None => fs::remove_file(&path).unwrap(),
            Some(text) => fs::write(&path, text).unwrap(),
        }
        rig.publisher = Publisher::open(rig.store.clone(), rig.directory.path()).unwrap();
        rig.publish(&desired).unwrap();
        rig.assert_means(&desired, &questions());
        assert_eq!(index(&rig, 0, "a"), counter);
        assert!(fs::read_to_string(path).unwrap().contains("\"a\""), "written anew");
    }
}

#[test]
fn readers_tell_flows_contacts_and_status() {
    let mut rig = Rig::new();
    let mut desired = Build::default().endpoint(0, &["a"], &["a"], &[]).0;
    desired.endpoints[0].addresses.push("fd00::1".parse().unwrap());
    rig.publish(&desired).unwrap();
    rig.store.set_jiffies(1_000_000);
    let slot = rig.slots[&name(0)];
    let word = rig.store.get::<Endpoints>(&slot).unwrap().unwrap();
    let counter = index(&rig, 0, "a");
    let flow =
        Flow { word, packets: [3, 2], bytes: [300, 200], first: 999_000, last: 999_750, counter, ..Flow::default() };
    let ip4 = |text: &str| u32::from_ne_bytes(text.parse::<std::net::Ipv4Addr>().unwrap().octets());
    let key4 = FlowKey4 {
        local: ip4("10.0.0.1"),
        remote: ip4("10.0.0.9"),
        local_port: 80,
        remote_port: 40_000,
        protocol: 6,
        padding: [0; 3],
    };
    let peer6 = mapped(ip4("10.0.0.9"));
    let key6 = |local| FlowKey6 { remote: peer6, local, protocol: 17, ..FlowKey6::default() };
    let mut isolated = ContactKey {
        peer: peer6,
        slot: slot as u16,
        port: 5432,
        protocol: 6,
        reason: Reason::Isolated as u8,
        ..ContactKey::default()
    };
    {
        let mut memory = rig.store.memory();
        memory.flows.get_mut(&slot).unwrap().v4.push((key4, flow));
        memory.flows.get_mut(&slot).unwrap().v6.extend([(key6(0), Flow { word: 1, ..flow }), (key6(4), flow)]);
        memory.unsent = 12;
    }
    let contact = Contact {
        packets: 1,
        bytes: 60,
        first: 999_000,
        last: 999_750,
        counter: index(&rig, 0, "isolated"),
        ..Contact::default()
    };
    rig.store.put::<ContactTable>(&[(isolated, contact)]).unwrap();
    isolated.direction = Direction::Egress as u8;
    let foreign = Contact { counter, ..contact };
    let underlay = ContactKey { peer: peer6, reason: Reason::WrongVtep as u8, ..ContactKey::default() };
    let inner = Contact { vni: 7, inner: mapped(ip4("10.0.0.3")), counter: 0, ..contact };
    rig.store.put::<ContactTable>(&[(isolated, foreign), (underlay, inner)]).unwrap();

    let (flows, contacts, status) = read::with_names(rig.directory.path(), |names| {
        Ok((
            read::flows(&rig.store, names)?,
            read::contacts(&rig.store, names)?,
            read::status(&rig.store, names, None)?,
        ))
    })
    .unwrap();
    assert_eq!(
        flows.iter().map(|flow| (flow.local.to_string(), flow.current)).collect::<Vec<_>>(),
        [("10.0.0.1".to_owned(), true), ("fd00::1".to_owned(), false), ("fe80::ff:fe00:30".to_owned(), true)]
    );
    let first = &flows[0];
    assert_eq!(
        (&*first.rule, first.reason, first.direction, first.remote_port),
        ("a", Reason::Rule, "ingress", 40_000)
    );
    assert_eq!((first.packets, first.bytes, first.last - first.first), ([3, 2], [300, 200], 3_000_000_000));
    assert_eq!(contacts.unsent, 12);
    let mut told: Vec<_> = contacts
        .records
        .iter()
        .map(|c| (c.endpoint.is_some(), c.direction, &*c.rule, c.peer.to_string(), c.inner))
        .collect();
    told.sort();
    let peer = || "10.0.0.9".to_owned();
    assert_eq!(
        told,
        [
            (false, "ingress", "", peer(), Some((7, "10.0.0.3".parse().unwrap()))),
            (true, "egress", "", peer(), None),
            (true, "ingress", "isolated", peer(), None)
        ]
    );
    assert_eq!(
        (status.endpoints[0].slot, status.endpoints[0].link.as_str(), status.epoch),
        (slot, "veth0", EndpointWord(word).epoch())
    );
    let table = |name| status.tables.iter().find(|table| table.table == name).map(|table| (table.used, table.limit));
    assert_eq!(table("ADDRESSES4"), Some((1, 65_536)));
    assert_eq!(table("CONTACTS"), Some((3, 8192)));
    assert_eq!(table("selectors"), Some((1, 4096)));
}

#[test]
fn a_node_in_memory_keeps_the_contract_of_nodes() {
    let (store, links, directory) = (MemoryStore::default(), Links::default(), tempfile::tempdir().unwrap());
    let mut node: Box<dyn Node> = Box::new(MemoryNode::open(store.clone(), links.clone(), directory.path()).unwrap());
    let two = Build::default().endpoint(0, &["a"], &["a"], &[]).endpoint(1, &[], &["a"], &[]).0;
    links.network().broken.insert("veth1".to_owned(), "it is no veth".to_owned());
    let error = node.publish(&two).unwrap_err().to_string();
    assert_eq!(error, "link veth1 of shop/w1 cannot be guarded: it is no veth");
    assert!(store.snapshot().is_empty());
    links.network().broken.clear();
    assert!(node.publish(&two).unwrap().epoch > 0);
    assert!(node.status().unwrap().endpoints.iter().all(|endpoint| endpoint.attached));
    node.publish(&Build::default().endpoint(0, &["a"], &["a"], &[]).0).unwrap();
    assert_eq!(links.network().attached.keys().collect::<Vec<_>>(), ["veth0"]);
    assert_eq!(node.status().unwrap().endpoints.len(), 1);
    let observer = node.observer().unwrap();
    assert!(observer.flows().unwrap().is_empty() && observer.counters().unwrap().is_empty());
    assert_eq!(
        (observer.contacts().unwrap().unsent, node.discover().unwrap()),
        (0, bulkhead_dataplane::node::Discovered::default())
    );
}

/// Known addresses that are as they were, far from those of this node, mean what their selectors mean now.
#[test]
fn an_address_that_stays_follows_what_its_selectors_are_called() {
    let (endpoint, far) = (|| Build::default().endpoint(0, &[], &["web"], &[]), "10.0.9.9");
    let question = tcp(Direction::Ingress, far);
    let allows = |rig: &Rig| ask(&mut &rig.store.snapshot(), rig.slots[&name(0)], &question).allows();
    let mut rig = Rig::new();
    let web = endpoint().address(far, &["web"]).0;
    rig.publish(&web).unwrap();
    assert!(allows(&rig));

    // The same id is another selector's now.
    let mut ops = web.clone();
    ops.selectors = vec!["ops".to_owned(), "web".to_owned()].into();
    ops.sets = Build(Desired { sets: Listed::default(), endpoints: Vec::new(), ..ops.clone() })
        .endpoint(0, &[], &["web"], &[])
        .0
        .sets;
    assert_eq!((&web.addresses, &web.endpoints), (&ops.addresses, &ops.endpoints));
    rig.publish(&ops).unwrap();
    assert!(!allows(&rig));
    rig.publish(&web).unwrap();
    assert!(allows(&rig));

    // Or nobody's: that is refused, and changes nothing.
    let mut gone = ops;
    gone.selectors.set(0, String::new());
    let refused = rig.publish(&gone).unwrap_err();
    assert!(refused.to_string().contains("has a selector that is not there"), "{refused}");
    rig.publish(&web).unwrap();
    assert!(allows(&rig));
}

/// Changes the first set.
fn change_set(desired: &mut Desired, change: impl FnOnce(&mut PolicySet)) {
    let mut set = PolicySet::clone(&desired.sets[0]);
    change(&mut set);
    desired.sets.set(0, set.into());
}

/// The same address leads to another slot when its endpoint has one.
#[test]
fn an_address_that_stays_follows_its_endpoint_to_another_slot() {
    let mut rig = Rig::new();
    let mut desired = Build::default().endpoint(0, &["a"], &["a"], &["a"]).0;
    let word = |rig: &Rig| {
        let key = AddressKey4 { segment: 1, address: u32::from_ne_bytes([10, 0, 0, 1]) };
        AddressWord(rig.store.get::<Addresses4>(&key).unwrap().unwrap()).slot()
    };
    rig.publish(&desired).unwrap();
    let slot = rig.slots[&name(0)];
    assert_eq!(word(&rig), slot);
    // Another link, and with it another MAC.
    desired.endpoints[0].link = "vethX".to_owned();
    rig.publish(&desired).unwrap();
    assert_ne!(rig.slots[&name(0)], slot);
    assert_eq!(word(&rig), rig.slots[&name(0)]);
}

//! Maps, tables and programs.

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
    sync::atomic::Ordering,
    thread,
};

use aya_obj::generated::bpf_map_type::{BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_LPM_TRIE};
use bulkhead_dataplane::{
    kernel::{self, KernelStore},
    load::{Maps, Programs, Sizes},
    pins::Kind,
    store::{self, LpmKey, Store as _},
    sys::{self, Map, Shape, SkbContext, Words},
};
use bulkhead_ebpf::{
    abi::{self, Direction, EndpointInfo, endpoint_counter, node, program},
    reason::Reason,
};
use bulkhead_fixtures::skip;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

use crate::{Directory, ready, refused};

/// Small, so that tests are quick.
const SMALL: Sizes = Sizes {
    slots: 8,
    views: 16,
    sets: 4,
    lists: 16,
    rows: 16,
    addresses: 64,
    prefixes: 64,
    rule_counters: 64,
    counters: 10_000,
    vteps: 16,
    owners: 16,
    services: 16,
    backends: 16,
    contacts: 16,
    flows: 64,
};

const ARRAY: Shape = Shape { kind: BPF_MAP_TYPE_ARRAY as u32, key_size: 4, value_size: 8, max_entries: 4, flags: 0 };

#[test]
fn what_is_pinned_is_opened_again() {
    if !ready() {
        return;
    }
    let directory = Directory::new();
    let pins = directory.pins();
    let why = refused(Maps::open(&pins));
    assert!(why.contains("nothing is pinned there"), "{why}");

    let mut store = KernelStore::new(Maps::create(&pins, &SMALL).unwrap()).unwrap();
    let key = abi::AddressKey4 { segment: 1, address: 2 };
    store.put::<store::Addresses4>(&[(key, 3)]).unwrap();
    store.put::<store::Endpoints>(&[(4, 5)]).unwrap();
    let ids = |maps: &Maps| ["ADDRESSES4", "FLOWS6", "PROGRAMS_TC", "IDS"].map(|name| maps.get(name).unwrap().id());
    let before = ids(store.maps());
    drop(store);

    for maps in [Maps::open(&pins).unwrap(), Maps::create(&pins, &SMALL).unwrap()] {
        assert_eq!(ids(&maps), before);
        let store = KernelStore::new(maps).unwrap();
        assert_eq!(store.get::<store::Addresses4>(&key).unwrap(), Some(3));
        assert_eq!(store.entries::<store::Endpoints>().unwrap(), [(4, 5)]);
        assert_eq!(store.limit::<store::Addresses4>(), SMALL.addresses as usize);
        assert_eq!(store.limit::<store::Ports>(), SMALL.sets as usize * abi::Class::COUNT as usize);
    }

    pins.remove_all().unwrap();
    assert!(!directory.0.exists());
}

#[test]
fn another_size_is_refused() {
    if !ready() {
        return;
    }
    let directory = Directory::new();
    drop(Maps::create(&directory.pins(), &SMALL).unwrap());
    let why = refused(Maps::create(&directory.pins(), &Sizes { prefixes: 65, ..SMALL }));
    assert!(
        why.contains("PREFIXES4: it has 64 entries, 65 are configured") && why.contains("bulkhead detach"),
        "{why}"
    );
    // Readers take any size.
    Maps::open(&directory.pins()).unwrap();
}

#[test]
fn another_layout_is_refused() {
    if !ready() {
        return;
    }
    let wrong = [
        ("VIEWS", Shape { max_entries: SMALL.views, ..ARRAY }, "values of 8 bytes"),
        ("NODE", Shape { max_entries: node::COUNT, ..ARRAY }, "flags 0x0"),
        (
            "ADDRESSES4",
            Shape { kind: BPF_MAP_TYPE_LPM_TRIE as u32, key_size: 8, max_entries: SMALL.addresses, flags: 1, ..ARRAY },
            "lpm_trie",
        ),
    ];
    for (name, shape, text) in wrong {
        let directory = Directory::new();
        directory.pins().create().unwrap();
        let path = directory.pins().path(Kind::Map, name);
        Map::create(name, &shape, None).unwrap().pin(&path).unwrap();
        let create = refused(Maps::create(&directory.pins(), &SMALL));
        assert!(create.contains(name) && create.contains(text) && create.contains("bulkhead detach"), "{create}");
        assert_eq!(*Map::from_pin(&path).unwrap().shape(), shape, "it stays as it was");
    }
}

#[test]
fn pins_of_another_layout_are_left_alone() {
    if !ready() {
        return;
    }
    let directory = Directory::new();
    let other = directory.0.join("v999");
    fs::create_dir_all(&other).unwrap();
    let why = refused(Maps::create(&directory.pins(), &SMALL));
    assert!(why.contains("v999 holds pins of another layout"), "{why}");
    // Nor is it said that nothing is there: what that version attached is in force.
    let asked = [kernel::idle(&directory.0), kernel::attached(&directory.0).map(drop), kernel::detach(&directory.0)];
    for why in asked.map(refused) {
        assert!(why.contains("v999 holds pins of another layout") && why.contains("detach --all"), "{why}");
    }
    assert!(other.exists());
}

#[test]
fn a_place_that_loses_pins_is_refused() {
    if !ready() {
        return;
    }
    let ordinary = tempfile::tempdir().unwrap();
    let why = refused(Directory::below(ordinary.path(), "").pins().create());
    assert!(why.contains("not on a BPF file system") && why.contains("mount -t bpf"), "{why}");

    let private = tempfile::tempdir().unwrap();
    let place = private.path().to_owned();
    let (why, read_only) = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        mount(Some("bpf"), &place, Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        let why = refused(Directory::below(&place, "").pins().create());
        umount2(&place, MntFlags::MNT_DETACH).unwrap();
        // The host's own, but as containers often see it.
        mount(Some("/sys/fs/bpf"), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, &place, None::<&str>, flags, None::<&str>).unwrap();
        let read_only = refused(Directory::below(&place, "").pins().check());
        umount2(&place, MntFlags::MNT_DETACH).unwrap();
        (why, read_only)
    })
    .join()
    .unwrap();
    assert!(why.contains("is not the host's") && why.contains("mount the host's /sys/fs/bpf"), "{why}");
    assert!(read_only.contains("cannot be written") && read_only.contains("read-write"), "{read_only}");
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    if !ready() {
        return;
    }
    let directory = Directory::new();
    let why = refused(Maps::create(&directory.pins(), &Sizes { slots: 4097, ..SMALL }));
    assert!(why.contains("4097 slots are too many: at most 4096"), "{why}");
    let why = refused(Maps::create(&directory.pins(), &Sizes { views: 0, ..SMALL }));
    assert!(why.contains("0 views are too few"), "{why}");
    assert!(!directory.0.exists());
}

#[test]
fn programs_are_replaced_in_their_arrays() {
    if !ready() {
        return;
    }
    let directory = Directory::new();
    let pins = directory.pins();
    let mut maps = Maps::create(&pins, &SMALL).unwrap();
    let settings = |budget| abi::Config { budget, tunnel_ports: [8472, 0, 0, 0], ..abi::Config::default() };
    let in_force = |maps: &Maps| {
        let mut ids: Vec<u32> = Vec::new();
        for (array, count) in [("PROGRAMS_TC", program::COUNT), ("PROGRAMS_XDP", 1), ("PROGRAMS_XDP_GENERIC", 1)] {
            let values = (0..count).map(|index| {
                let mut id = [0; 4];
                assert!(maps.get(array).unwrap().get(&u32::to_ne_bytes(index), &mut id).unwrap(), "{array} {index}");
                u32::from_ne_bytes(id)
            });
            ids.extend(values);
        }
        ids
    };
    let names = [
        "underlay",
        "underlay_out",
        "overlay_in",
        "overlay_out",
        "from_workload",
        "to_workload",
        "translated",
        "decide4",
        "decide6",
        "forward",
        "underlay_xdp",
        "underlay_xdp_generic",
    ];
    let mut seen: Vec<u32> = Vec::new();
    let mut check = |maps: &mut Maps, budget, new| {
        let programs = Programs::load(&pins, maps, &settings(budget)).unwrap();
        let loaded: Vec<u32> =
            names.iter().map(|name| sys::program_id(&programs.get(name).unwrap()).unwrap()).collect();
        assert_eq!(in_force(maps), loaded, "in the order of `abi::program`");
        assert_eq!(loaded.iter().all(|id| !seen.contains(id)), new, "{loaded:?} after {seen:?}");
        let config = Map::from_pin(&pins.path(Kind::Map, "CONFIG")).unwrap();
        for name in ["underlay", "underlay_xdp", "decide4"] {
            let uses = sys::program_maps(&programs.get(name).unwrap()).unwrap();
            assert!(uses.contains(&config.id()), "{name} reads the CONFIG that is pinned");
        }
        assert_eq!(
            KernelStore::new(Maps::open(&pins).unwrap()).unwrap().get::<store::Config>(&0).unwrap(),
            Some(settings(budget))
        );
        seen = loaded;
    };
    check(&mut maps, 7, true);
    check(&mut maps, 8, true);
    // As after a restart.
    let mut maps = Maps::create(&pins, &SMALL).unwrap();
    check(&mut maps, 8, false);
    // As after a crash half-way.
    maps.get("PROGRAMS_TC").unwrap().remove(&program::UNDERLAY.to_ne_bytes()).unwrap();
    check(&mut maps, 8, true);
    assert_eq!(pins.names(Kind::Program).unwrap().len(), names.len() + 1, "and a marker");
}

/// Programs see what user space stores into mapped words, and count where user space reads.
#[test]
fn programs_and_user_space_share_tables() {
    if !ready() {
        return;
    }
    let directory = Directory::new();
    let mut maps = Maps::create(&directory.pins(), &SMALL).unwrap();
    let programs = Programs::load(&directory.pins(), &mut maps, &abi::Config::default()).unwrap();
    let mut store = KernelStore::new(maps).unwrap();
    let mac = [2, 0, 0, 0, 0, 7];
    let info = EndpointInfo {
        identity: 1,
        mac,
        ipv4_count: 1,
        ipv4: [u32::from_ne_bytes([10, 0, 0, 1]), 0, 0, 0],
        ..Default::default()
    };
    store.put::<store::EndpointInfos>(&[(3, info)]).unwrap();
    store.flow_tables(&[3]).unwrap();

    // UDP over IPv4; checksums are not looked at.
    let mut packet = vec![2, 0, 0, 0, 0, 9];
    packet.extend(mac);
    packet.extend([8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0, 9, 0, 53, 0, 8, 0, 0]);
    let context = SkbContext { cb: [3, 0, 0, 0, 0], ingress_ifindex: 1, ..SkbContext::default() };
    let run = || sys::test_run(&programs.get("from_workload").unwrap(), &packet, context, 1).unwrap();
    let count = |store: &KernelStore, reason: Reason| {
        let index = endpoint_counter(3, Direction::Egress, reason as u8);
        store
            .endpoint_counters(None)
            .unwrap()
            .iter()
            .find(|(at, _)| *at == index)
            .map_or(0, |(_, counter)| counter.packets)
    };
    assert_eq!(run().verdict, 2, "dropped");
    assert_eq!(count(&store, Reason::Pending), 1);

    store.put::<store::Endpoints>(&[(3, abi::EndpointWord::new(1, 0, abi::Mode::Quarantine).0)]).unwrap();
    assert_eq!(run().verdict, 2, "dropped");
    assert_eq!((count(&store, Reason::Pending), count(&store, Reason::Quarantine)), (1, 1));
}

#[test]
fn words_are_mapped() {
    if !ready() {
        return;
    }
    let shape = Shape { flags: 1 << 10, max_entries: 1000, ..ARRAY };
    let map = Map::create("words", &shape, None).unwrap();
    let words = Words::map(&map).unwrap();
    assert_eq!(words.len(), 1000);
    words[999].store(7, Ordering::Release);
    assert_eq!(map.range(999, 1).unwrap(), 7_u64.to_ne_bytes());
    map.put(&5_u32.to_ne_bytes(), &6_u64.to_ne_bytes()).unwrap();
    drop(map);
    assert_eq!(words[5].load(Ordering::Acquire), 6);

    let plain = Map::create("plain", &Shape { flags: 0, ..shape }, None).unwrap();
    assert_eq!(Words::map(&plain).unwrap_err().kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn a_hundred_thousand_entries_in_one_call() {
    if !ready() {
        return;
    }
    let directory = Directory::new();
    let sizes = Sizes { addresses: 100_000, prefixes: 100_000, counters: 100_000, ..SMALL };
    let mut store = KernelStore::new(Maps::create(&directory.pins(), &sizes).unwrap()).unwrap();

    let hash: Vec<_> = (0..100_000).map(|n| (abi::AddressKey4 { segment: 1, address: n }, u64::from(n) + 1)).collect();
    store.put::<store::Addresses4>(&hash).unwrap();
    let sorted = |mut entries: Vec<(abi::AddressKey4, u64)>| {
        entries.sort_unstable();
        entries
    };
    assert_eq!(sorted(store.entries::<store::Addresses4>().unwrap()), hash);
    let why = refused(store.put::<store::Addresses4>(&[(abi::AddressKey4 { segment: 2, address: 0 }, 1)]));
    assert!(why.contains("write ADDRESSES4"), "{why}");
    // Every other one is not there any more when all are deleted.
    let odd: Vec<_> = hash.iter().map(|(key, _)| *key).filter(|key| key.address % 2 == 1).collect();
    store.delete::<store::Addresses4>(&odd[..1000]).unwrap();
    assert_eq!(store.entries::<store::Addresses4>().unwrap().len(), 99_000);
    store.delete::<store::Addresses4>(&odd).unwrap();
    let even: Vec<_> = hash.iter().copied().filter(|(key, _)| key.address % 2 == 0).collect();
    assert_eq!(sorted(store.entries::<store::Addresses4>().unwrap()), even);

    let trie: Vec<_> = (0..100_000_u32)
        .map(|n| {
            (
                LpmKey {
                    prefix_len: 64,
                    data: abi::PrefixKey4 { segment: 1_u32.to_be_bytes(), address: n.to_be_bytes() },
                },
                1,
            )
        })
        .collect();
    store.put::<store::Prefixes4>(&trie).unwrap();
    let mut read = store.entries::<store::Prefixes4>().unwrap();
    read.sort_unstable();
    assert_eq!(read, trie);
    store.delete::<store::Prefixes4>(&trie.iter().map(|(key, _)| *key).collect::<Vec<_>>()).unwrap();
    assert_eq!(store.entries::<store::Prefixes4>().unwrap(), []);

    let key = |n: u32| abi::CounterKey { rule: n.into(), ..abi::CounterKey::default() };
    let array: Vec<_> = (0..100_000_u32).map(|n| (n, key(n))).collect();
    store.put::<store::CounterKeys>(&array).unwrap();
    // Zeroes are as if never written.
    assert_eq!(store.entries::<store::CounterKeys>().unwrap(), array[1..]);
    let why = refused(store.put::<store::CounterKeys>(&[(100_000, key(1))]));
    assert!(why.contains("write COUNTER_KEYS"), "{why}");
    assert_eq!(store.get::<store::CounterKeys>(&100_000).unwrap(), None);
    let why = refused(store.put::<store::Node>(&[(node::COUNT, 1)]));
    assert!(why.contains(&format!("{0} is beyond its {0} words", node::COUNT)), "{why}");
}

/// The same without batch operations, as maps of some types lack them.
#[test]
fn single_operations_do_the_same() {
    if !ready() {
        return;
    }
    // A queue of programs or maps has neither; a hash of maps has no batches before 6.1.
    let inner = Map::create("inner", &ARRAY, None).unwrap();
    let shape =
        Shape { kind: aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_PROG_ARRAY as u32, value_size: 4, ..ARRAY };
    let array = Map::create("programs", &shape, None).unwrap();
    let directory = Directory::new();
    let mut maps = Maps::create(&directory.pins(), &SMALL).unwrap();
    let programs = Programs::load(&directory.pins(), &mut maps, &abi::Config::default()).unwrap();
    let program = programs.get("underlay").unwrap();
    let keys: Vec<u8> = [1_u32, 3].iter().flat_map(|key| key.to_ne_bytes()).collect();
    let value = program.as_raw_fd().to_ne_bytes();
    array.put_batch(&keys, &[value, value].concat()).unwrap();
    let id = sys::program_id(&program).unwrap().to_ne_bytes();
    assert_eq!(array.entries().unwrap(), (keys.clone(), [id, id].concat()));
    array.remove_batch(&[2_u32.to_ne_bytes(), 3_u32.to_ne_bytes()].concat()).unwrap();
    assert_eq!(array.entries().unwrap(), (1_u32.to_ne_bytes().to_vec(), id.to_vec()));

    assert!(array.put(&0_u32.to_ne_bytes(), &inner.as_fd().as_raw_fd().to_ne_bytes()).is_err(), "no program");
}

#[test]
fn counters_are_sums_over_cpus() {
    if !ready() {
        return;
    }
    let directory = Directory::new();
    let mut store = KernelStore::new(Maps::create(&directory.pins(), &SMALL).unwrap()).unwrap();
    let cpus = sys::possible_cpus().unwrap();
    let write = |store: &KernelStore, name: &str, index: u32, packets: u64| {
        let counter = [packets, 10 * packets, 100 * packets];
        let value: Vec<u8> = (0..cpus).flat_map(|_| counter).flat_map(u64::to_ne_bytes).collect();
        store.maps().get(name).unwrap().put(&index.to_ne_bytes(), &value).unwrap();
    };
    let sum = |packets: u64| {
        let packets = packets * cpus as u64;
        abi::Counter { packets, bytes: 10 * packets, flows: 100 * packets }
    };
    for index in [0, 5, 6, 4095, 4096, 9999] {
        write(&store, "COUNTERS", index, u64::from(index) + 1);
    }
    assert_eq!(store.counters(&[9999, 5, 7, 0, 6, 5]).unwrap(), [sum(10_000), sum(6), sum(0), sum(1), sum(7), sum(6)]);
    let all: Vec<u32> = (0..10_000).collect();
    assert_eq!(store.counters(&all).unwrap().iter().filter(|counter| counter.packets > 0).count(), 6);
    assert!(store.counters(&[10_000]).is_err());
    store.reset_counters(&[5, 9999]).unwrap();
    assert_eq!(store.counters(&[5, 6, 9999]).unwrap(), [sum(0), sum(7), sum(0)]);

    let last = SMALL.slots * 2 * bulkhead_ebpf::reason::REASONS - 1;
    write(&store, "ENDPOINT_COUNTERS", last, 3);
    assert_eq!(store.endpoint_counters(None).unwrap(), [(last, sum(3))]);
    assert_eq!(store.endpoint_counters(Some(SMALL.slots - 1)).unwrap(), [(last, sum(3))]);
    assert_eq!(store.endpoint_counters(Some(SMALL.slots - 2)).unwrap(), []);
    let budget: Vec<u8> = (0..cpus).flat_map(|_| [1_u64, 2, 4]).flat_map(u64::to_ne_bytes).collect();
    store.maps().get("BUDGET").unwrap().put(&0_u32.to_ne_bytes(), &budget).unwrap();
    assert_eq!(store.unsent().unwrap(), 4 * cpus as u64);
}

#[test]
fn endpoints_have_flow_tables_of_their_own() {
    if !ready() || !skip::require("look-ups of maps by id", skip::capability(skip::CAP_SYS_ADMIN)) {
        return;
    }
    let directory = Directory::new();
    let mut store = KernelStore::new(Maps::create(&directory.pins(), &SMALL).unwrap()).unwrap();
    let set = |slots: &[u32]| slots.iter().copied().collect::<BTreeSet<u32>>();
    store.keep_ready(&set(&[]), &set(&[2, 3])).unwrap();
    assert_eq!(store.ready_slots(), set(&[2, 3]));
    let ids = |store: &KernelStore, outer: &str| -> Vec<(u32, u32)> {
        let (keys, values) = store.maps().get(outer).unwrap().entries().unwrap();
        let words = |bytes: &[u8]| {
            bytes.chunks_exact(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect::<Vec<_>>()
        };
        words(&keys).into_iter().zip(words(&values)).collect()
    };
    // More than were made ahead.
    let slots: Vec<u32> = (1..8).collect();
    let made = ids(&store, "FLOWS4");
    store.flow_tables(&slots).unwrap();
    assert_eq!(store.ready_slots(), set(&[]), "they have owners");
    assert_eq!(ids(&store, "FLOWS4")[1..3], made, "what was ready was used as it is");
    let [four, six] = ["FLOWS4", "FLOWS6"].map(|outer| ids(&store, outer));
    assert_eq!(four.iter().map(|(slot, _)| *slot).collect::<Vec<_>>(), slots);
    assert_eq!(six.iter().map(|(slot, _)| *slot).collect::<Vec<_>>(), slots);

    let key = abi::FlowKey4 { local: 1, remote: 2, local_port: 3, remote_port: 4, protocol: 6, padding: [0; 3] };
    let mut bytes: Vec<u8> = [1_u32, 2].iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.extend([3_u16, 4].iter().flat_map(|word| word.to_ne_bytes()));
    bytes.extend([6, 0, 0, 0]);
    let table = |(_, id): (u32, u32)| Map::from_id(id).unwrap();
    for entry in &four[..2] {
        table(*entry).put(&bytes, &[1; 64]).unwrap();
    }
    assert_eq!(
        store.flows(1).unwrap().0.iter().map(|(key, flow)| (*key, flow.counter)).collect::<Vec<_>>(),
        [(key, 0x0101_0101)]
    );
    assert_eq!(store.flows(3).unwrap(), (vec![], vec![]));

    store.flow_tables(&[1]).unwrap();
    assert_eq!(store.flows(1).unwrap().0, []);
    assert_eq!(store.flows(2).unwrap().0.len(), 1, "others keep theirs");
    store.drop_flow_tables(&[2, 5]).unwrap();
    store.drop_flow_tables(&[2]).unwrap();
    assert_eq!(store.flows(2).unwrap(), (vec![], vec![]));
    assert_eq!(ids(&store, "FLOWS4").iter().map(|(slot, _)| *slot).collect::<Vec<_>>(), [1, 3, 4, 6, 7]);
    assert_eq!(ids(&store, "FLOWS6").iter().map(|(slot, _)| *slot).collect::<Vec<_>>(), [1, 3, 4, 6, 7]);
    assert_eq!(store.flows(100).unwrap(), (vec![], vec![]), "beyond the table");
    let mut pinned = directory.pins().names(Kind::Flows).unwrap();
    pinned.sort();
    let named = |outer: &str| [1, 3, 4, 6, 7].map(|slot| format!("{outer}-{slot}"));
    assert_eq!(pinned, [named("FLOWS4"), named("FLOWS6")].concat(), "no pin keeps the memory of what was freed");

    // What has no owner is fresh, or gone; what has one is left alone.
    table(ids(&store, "FLOWS4")[0]).put(&bytes, &[1; 64]).unwrap();
    table(ids(&store, "FLOWS4")[1]).put(&bytes, &[1; 64]).unwrap();
    let before = ids(&store, "FLOWS4");
    store.keep_ready(&set(&[1, 4]), &set(&[3, 5])).unwrap();
    let after = ids(&store, "FLOWS4");
    assert_eq!(after.iter().map(|(slot, _)| *slot).collect::<Vec<_>>(), [1, 3, 4, 5]);
    assert_eq!((after[0], after[2]), (before[0], before[2]));
    assert_eq!(store.flows(1).unwrap().0.len(), 1);
    assert_eq!(store.flows(3).unwrap(), (vec![], vec![]));
    assert_eq!(directory.pins().names(Kind::Flows).unwrap().len(), 8);
    store.keep_ready(&set(&[1, 4]), &set(&[3, 5])).unwrap();
    assert_eq!(ids(&store, "FLOWS4"), after, "they are ready already");
    // The next process knows nothing of what is ready.
    let mut next = KernelStore::new(Maps::create(&directory.pins(), &SMALL).unwrap()).unwrap();
    next.keep_ready(&set(&[1, 4]), &set(&[])).unwrap();
    assert_eq!(ids(&next, "FLOWS4"), [before[0], before[2]]);

    // An agent that dies between pin and table leaves another table's pin: it is not taken for the one in force.
    let maps = store.maps();
    maps.pin_inner("FLOWS4", 1, &maps.create_inner("FLOWS4").unwrap()).unwrap();
    assert!(maps.inner("FLOWS4", 1).unwrap().is_none());
    store.flow_tables(&[1]).unwrap();
    assert!(store.maps().inner("FLOWS4", 1).unwrap().is_some());
}

#[test]
fn a_directory_of_pins_survives_being_opened_by_two() {
    if !ready() {
        return;
    }
    let directory = Directory::new();
    let pins = directory.pins();
    let maps: Vec<Maps> = thread::scope(|scope| {
        let open = || scope.spawn(|| Maps::create(&pins, &SMALL));
        let both = [open(), open()];
        both.into_iter().filter_map(|thread| thread.join().unwrap().ok()).collect()
    });
    // One may have lost the race for a pin, and says so; nobody may have a map that is not the pinned one.
    for maps in &maps {
        let pinned = Map::from_pin(&pins.path(Kind::Map, "VIEWS")).unwrap();
        assert_eq!(maps.get("VIEWS").unwrap().id(), pinned.id());
    }
    assert!(Path::new(&directory.0).exists());
    Maps::create(&pins, &SMALL).unwrap();
    let shape = Shape { kind: BPF_MAP_TYPE_HASH as u32, ..ARRAY };
    assert!(
        Map::create("x", &shape, None).unwrap().pin(&pins.path(Kind::Map, "VIEWS")).is_err(),
        "a pin is never overwritten"
    );
}

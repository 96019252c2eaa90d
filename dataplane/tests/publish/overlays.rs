//! Programs rely on whom they have verified for as long as the overlays' tables stay as they are: no generation of them has two contents.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use bulkhead_dataplane::{
    desired::{Desired, Overlay},
    store::{LpmKey, Node, Owners, Store as _, Vteps},
};
use bulkhead_ebpf::abi::{Owner, PrefixKey6, VtepKey, node};

use crate::rig::Rig;

/// What the two tables say.
type Content = (Vec<(VtepKey, u64)>, Vec<(LpmKey<PrefixKey6>, Owner)>);

/// Nodes with the last bytes of their addresses, and the subnets that they own.
fn desired(nodes: &[(u8, &[u8])]) -> Desired {
    let peer = |(host, subnets): &(u8, &[u8])| {
        let subnets = subnets.iter().map(|subnet| format!("10.244.{subnet}.0/24").parse().unwrap());
        (IpAddr::from([192, 0, 2, *host]), subnets.collect::<BTreeSet<_>>())
    };
    let overlay = Overlay { vni: 1, port: 8472, own: Vec::new(), peers: nodes.iter().map(peer).collect() };
    Desired { overlays: vec![overlay], ..Desired::default() }
}

/// Asserts that programs which rely on this generation rely on these tables.
#[track_caller]
fn note(rig: &Rig, known: &mut BTreeMap<u64, Content>) -> u64 {
    let generation = rig.store.get::<Node>(&node::OVERLAYS).unwrap().unwrap();
    let content = (rig.store.entries::<Vteps>().unwrap(), rig.store.entries::<Owners>().unwrap());
    if generation != 0 && generation.is_multiple_of(2) {
        assert_eq!(known.entry(generation).or_insert_with(|| content.clone()), &content, "generation {generation}");
    }
    generation
}

#[test]
fn no_generation_has_two_contents() {
    let before = desired(&[(1, &[1, 2]), (2, &[3]), (3, &[4])]);
    // A subnet moves, another goes with its node, a node comes.
    let after = desired(&[(1, &[1]), (2, &[2, 3]), (4, &[5])]);
    let mut cuts = 0;
    for budget in 0.. {
        let mut known = BTreeMap::new();
        let mut rig = Rig::new();
        assert_eq!(note(&rig, &mut known), 0, "nothing is kept on an empty node");
        rig.publish(&before).unwrap();
        let first = note(&rig, &mut known);
        rig.publish(&before).unwrap();
        assert_eq!(note(&rig, &mut known), first, "nothing has changed");

        rig.store.memory().budget = Some(budget);
        let whole = rig.publish(&after).is_ok();
        rig.store.memory().budget = None;
        let second = note(&rig, &mut known);
        // By the same publisher, and by one that takes over.
        for mut rig in [rig.fork(), rig] {
            let mut known = known.clone();
            assert!(note(&rig, &mut known) >= second);
            rig.publish(&after).unwrap();
            note(&rig, &mut known);
            rig.publish(&before).unwrap();
            assert!(note(&rig, &mut known) > second);
        }
        if whole {
            break;
        }
        cuts += 1;
    }
    assert!(cuts > 5, "each write was the last one once: {cuts}");
}

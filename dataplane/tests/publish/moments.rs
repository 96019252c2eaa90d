//! A call to a service address meets one revision at every moment of a publish, whatever of it is written already, also where it takes so long that
//! it meets several of these moments.

use bulkhead_dataplane::{
    desired::{Backend, Desired, ServiceAddress},
    memory::{Event, Snapshot},
};
use bulkhead_ebpf::host::HostTables;
use proptest::prelude::*;

use crate::{
    build::Build,
    history::apply,
    probes::{Verdicts, calls, host, slots},
    random::{Revisions, config, sequence},
    rig::Rig,
    slow::SEEN,
    world::Verbs,
};

/// Tables as a program meets them that read words and addresses at an earlier moment than what services lead to.
fn torn(earlier: &Snapshot, later: &Snapshot) -> HostTables {
    let (earlier, mut tables) = (host(earlier), host(later));
    tables.words = earlier.words;
    tables.addresses4 = earlier.addresses4;
    tables.addresses6 = earlier.addresses6;
    tables.prefixes4 = earlier.prefixes4;
    tables.prefixes6 = earlier.prefixes6;
    tables
}

/// Endpoint 0 may call `web`. What is known of a node (its labels), what is not known otherwise (likewise), and where a port of every node and one
/// of a cluster IP lead. Another node is there when the first is not.
fn nodes(node: Option<&[&str]>, others: &[&str], backends: Option<&[&str]>) -> Desired {
    let mut build = Build::default().endpoint(0, &[], &[], &["web"]).prefix("0.0.0.0/0", others);
    build = build.address("10.0.9.8", &["ops"]).address("10.0.9.9", &["web"]);
    let (address, labels) = node.map_or(("192.0.2.2", &[][..]), |labels| ("192.0.2.1", labels));
    let mut desired = build.address(address, labels).0;
    desired.addresses.get_mut(&(1, address.parse().unwrap())).unwrap().node = true;
    for (service, port) in [(None, 30_080), (Some("10.96.3.4"), 80)] {
        let address = service.map(|service| service.parse().unwrap());
        let service = ServiceAddress { segment: 1, address, protocol: 6, port };
        let backend = |at: &&str| Backend { address: at.parse().unwrap(), port: 8080, judged_later: true };
        desired.services.extend(backends.map(|backends| (service, backends.iter().map(backend).collect())));
    }
    desired
}

#[test]
fn addresses_and_what_they_lead_to_change_as_one() {
    let labels = [&["web"][..], &[]];
    let leads = [None, Some(&[][..]), Some(&["10.0.9.9"]), Some(&["10.0.9.8"])];
    let nodes = |node| labels.iter().flat_map(move |others| leads.map(|leads| nodes(node, others, leads)));
    let states: Vec<Desired> = [None, Some(labels[0]), Some(labels[1])].into_iter().flat_map(nodes).collect();
    for before in &states {
        let mut rig = Rig::new();
        rig.publish(before).unwrap();
        let calls = calls(&slots(&rig.store.snapshot()).collect::<Vec<_>>());
        for after in &states {
            let copy = &mut rig.fork();
            let mut tables = copy.store.snapshot();
            copy.store.memory().journal = Some(Vec::new());
            copy.publish(after).unwrap();
            let journal = copy.store.memory().journal.take().unwrap();
            let (old, new) = (host(&tables), host(&copy.store.snapshot()));
            let right: Vec<_> = calls.iter().map(|call| [&old, &new].map(|tables| call.judged(tables))).collect();
            // Moments that a program may have met which runs still.
            let mut moments = vec![tables.clone()];
            for event in journal {
                apply(&event, &mut tables);
                match event {
                    Event::GracePeriod => moments.clear(),
                    Event::Write { table, .. } if !SEEN.contains(&table) => continue,
                    Event::Write { .. } => {}
                }
                moments.push(tables.clone());
                for moment in &moments {
                    let torn = torn(moment, &tables);
                    for (call, right) in calls.iter().zip(&right) {
                        let verdict = call.judged(&torn).all(true, false);
                        let right = right.map(|right| right.all(true, false));
                        assert!(
                            right.contains(&verdict),
                            "{event:?}: {call:x?} says {verdict:?}, not one of {right:?}; from {before:?} to {after:?}"
                        );
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(config(24))]

    #[test]
    fn calls_to_service_addresses_meet_one_revision((mut world, edits) in sequence(Verbs::Anything, 4)) {
        let mut rig = Rig::new();
        rig.publish(&world.desired()).unwrap();
        for edits in &edits {
            world.apply(edits);
            let (Revisions(met), next) = Revisions::of(&rig, &world);
            let endpoints: Vec<_> = met.iter().flat_map(slots).collect();
            let calls = calls(&endpoints);
            let mut right = vec![Verdicts::default(); calls.len()];
            for tables in met.iter().map(host) {
                right.iter_mut().zip(&calls).for_each(|(right, call)| right.add(call.judged(&tables)));
            }
            let mut tables = rig.store.snapshot();
            // The earliest moment that a program may have met which runs still.
            let mut earliest = tables.clone();
            let copy = &mut rig.fork();
            copy.store.memory().journal = Some(Vec::new());
            copy.publish(&world.desired()).unwrap();
            for event in copy.store.memory().journal.take().unwrap() {
                apply(&event, &mut tables);
                if event == Event::GracePeriod {
                    earliest.clone_from(&tables);
                }
                let Event::Write { table, key, .. } = event else { continue };
                if !SEEN.contains(&table) {
                    continue;
                }
                for now in [host(&tables), torn(&earliest, &tables)] {
                    for (call, right) in calls.iter().zip(&right) {
                        let Some(right) = right.all(true, true) else { continue };
                        let verdict = call.judged(&now).all(true, false).unwrap();
                        prop_assert!(verdict & right != 0, "after a write to {table} at {key:x?}: {call:x?} says {verdict:#b}, not one of {right:#b}");
                    }
                }
            }
            rig = next;
        }
    }
}

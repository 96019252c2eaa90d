//! A call to a service address meets one revision at every moment of a publish, whatever of it is written already.

use bulkhead_dataplane::memory::Event;
use proptest::prelude::*;

use crate::{
    history::apply,
    probes::{Verdicts, calls, host, slots},
    random::{Revisions, config, sequence},
    rig::Rig,
    slow::SEEN,
};

proptest! {
    #![proptest_config(config(24))]

    #[test]
    fn calls_to_service_addresses_meet_one_revision((mut world, edits) in sequence(false, 4)) {
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
            let copy = &mut rig.fork();
            copy.store.memory().journal = Some(Vec::new());
            copy.publish(&world.desired()).unwrap();
            for event in copy.store.memory().journal.take().unwrap() {
                apply(&event, &mut tables);
                let Event::Write { table, key, .. } = event else { continue };
                if !SEEN.contains(&table) {
                    continue;
                }
                let now = host(&tables);
                for (call, right) in calls.iter().zip(&right) {
                    let Some(right) = right.all(true, true) else { continue };
                    let verdict = call.judged(&now).all(true, false).unwrap();
                    prop_assert!(verdict & right != 0, "after a write to {table} at {key:x?}: {call:x?} says {verdict:#b}, not one of {right:#b}");
                }
            }
            rig = next;
        }
    }
}

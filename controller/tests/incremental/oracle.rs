//! Whatever happens, in whatever order: the full compile says the same.

use std::collections::BTreeSet;

use proptest::prelude::*;

use crate::{
    canonical::Canonical,
    cluster::{Cluster, DOCUMENTS, Event, event},
    moved::assert_tells,
};

fn check(events: &[Event]) {
    let mut cluster = Cluster::new();
    let mut compiler = cluster.compiler();
    for (at, event) in events.iter().enumerate() {
        let when = format!("at event {at}, {event:?}");
        let with = cluster.with(event);
        let before = compiler.desired().clone();
        let Some(told) = cluster.tell(&mut compiler, event) else { continue };
        let built = with.model().ok();
        match told {
            Ok(change) => {
                assert_tells(&change, &before, compiler.desired(), &when);
                cluster = with;
            }
            Err(refusal) => {
                assert_eq!(&before, compiler.desired(), "{when}: refused, and yet it moved");
                if let Some(model) = &built {
                    assert_eq!(cluster.with(event).compile(model), Err(refusal), "{when}");
                }
            }
        }
        let found = Canonical::of(compiler.desired());
        let oracle = cluster.compile(compiler.model()).unwrap_or_else(|found| panic!("{when}: {found}"));
        found.assert_is(&Canonical::of(&oracle), &when);
        // Rules that `dns: cluster` made of a service stay until all is replaced.
        if let Ok(model) = cluster.model()
            && !cluster.asks_dns()
        {
            let oracle = cluster.compile(&model).unwrap_or_else(|found| panic!("{when}: {found}"));
            found.assert_is(&Canonical::of(&oracle), &format!("of a model built anew {when}"));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_full_compile_says_the_same(events in prop::collection::vec(event(), 1..48)) {
        check(&events);
    }
}

#[test]
fn every_document_is_read() {
    let all = Event::Replace { documents: (0..DOCUMENTS.len()).collect::<BTreeSet<_>>(), devices: true, later: false };
    check(&[all]);
}

//! Random and damaged frames over tables that random bytes have changed: see `harness` for what must hold.

use bulkhead_ebpf::{
    abi::{Action, Class, Direction, Entry},
    host::{HostTables, Line, entry, everyone},
    reason::Reason,
    verdict::walk,
};
use bulkhead_fixtures::{
    Mac,
    catalogue::{A, B, Host},
    skip, strategy,
};
use proptest::{collection::vec, prelude::*, test_runner::FileFailurePersistence};

use crate::{harness, node};

/// An input of [`harness::verdict`]: what the kernel knows of the packet, changes of the tables, a frame.
fn input(frame: impl Strategy<Value = Vec<u8>>, patches: usize) -> impl Strategy<Value = Vec<u8>> {
    let meta = prop_oneof![3 => Just([0; 7]), 1 => any::<[u8; 7]>()];
    (meta, vec(any::<[u8; 12]>(), 0..patches), frame).prop_map(|(meta, patches, frame)| {
        let count = u8::try_from(patches.len()).expect("few");
        [&meta[..], &[count], &patches.concat(), &frame].concat()
    })
}

/// The frame with a MAC of the lab's at `at`, and these addresses in its IP header, so that more than the addresses is looked at.
pub(crate) fn addressed(mut frame: Vec<u8>, source: Host, destination: Host, mac: Mac, at: usize) -> Vec<u8> {
    if let Some(place) = frame.get_mut(at..at + 6) {
        place.copy_from_slice(&mac);
    }
    match frame.get(12..14) {
        Some([8, 0]) if frame.len() >= 34 => {
            frame[26..30].copy_from_slice(&source.v4.octets());
            frame[30..34].copy_from_slice(&destination.v4.octets());
        }
        Some([0x86, 0xdd]) if frame.len() >= 54 => {
            frame[22..38].copy_from_slice(&source.v6.octets());
            frame[38..54].copy_from_slice(&destination.v6.octets());
        }
        _ => {}
    }
    frame
}

/// Frames that the lab's endpoint sends or gets.
fn concerned() -> impl Strategy<Value = Vec<u8>> {
    (strategy::damaged(), any::<bool>()).prop_map(|(frame, sent)| match sent {
        true => addressed(frame, A, B, A.mac, 6),
        false => addressed(frame, B, A, A.mac, 0),
    })
}

fn class() -> impl Strategy<Value = Class> {
    (0..6_usize).prop_map(|i| Class::ALL[i])
}

/// A line of a policy: what it covers, and what it says.
fn line() -> impl Strategy<Value = Line> {
    let values = prop_oneof![Just((0, u16::MAX)), (strategy::port(), strategy::port())];
    let selectors = prop_oneof![Just(vec![]), vec(0..64_u32, 1..4), vec(64..128_u32, 1..4)];
    (vec(class(), 1..6), values, selectors, 0..3_u8, 0..3_usize, 0..5_u16, 0..8_u8).prop_map(
        |(classes, (a, b), selectors, tier, action, rule, audit)| {
            let action = [Action::Deny, Action::Allow, Action::Pass][action];
            let entry = if selectors.is_empty() {
                everyone(action, Reason::Rule, rule)
            } else {
                entry(action, Reason::Rule, rule, &selectors)
            };
            let flags = entry.flags | if audit == 0 { Entry::AUDIT } else { 0 };
            Line { classes, values: a.min(b)..=a.max(b), entry: Entry { tier, flags, ..entry } }
        },
    )
}

/// What `lines` say of a value and a peer, straight from their meaning: action (none if no line decides) and rule.
fn meaning(lines: &[Line], class: Class, value: u16, selectors: &[u32]) -> Option<(u8, u16)> {
    let mut least = 0;
    for Line { classes, values, entry } in lines {
        let concerns = classes.contains(&class) && values.contains(&value) && entry.tier >= least;
        let bits: Vec<_> = (0..64).filter(|bit| entry.mask >> bit & 1 == 1).collect();
        let hit = bits.iter().position(|bit| selectors.contains(&(u32::from(entry.word) * 64 + bit)));
        let (found, rank) = if entry.flags & Entry::ANY != 0 { (true, 0) } else { (hit.is_some(), hit.unwrap_or(0)) };
        if !concerns || !found || entry.flags & Entry::AUDIT != 0 {
            continue;
        }
        if entry.action != Action::Pass as u8 {
            return Some((entry.action, entry.rule + u16::try_from(rank).expect("few")));
        }
        least = entry.tier + 1;
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::with_cases(if skip::long() { 100_000 } else { 1_000 })
    })]

    #[test]
    fn damaged_frames_over_the_lab(input in input(strategy::damaged(), 1)) {
        harness::verdict(&input);
    }

    #[test]
    fn frames_that_concern_the_lab(input in input(concerned(), 1)) {
        harness::verdict(&input);
    }

    #[test]
    fn frames_over_random_tables(input in input(concerned(), 12)) {
        harness::verdict(&input);
    }

    #[test]
    fn damaged_frames_are_read(frame in strategy::damaged()) {
        harness::packet(&frame);
    }

    #[test]
    fn any_bytes_are_read(bytes in vec(any::<u8>(), 0..300)) {
        harness::packet(&bytes);
        harness::verdict(&bytes);
    }

    #[test]
    fn lists_say_what_their_lines_mean(
        mut lines in vec(line(), 0..12),
        selectors in vec(0..128_u32, 0..6),
        class in class(),
        values in vec(strategy::port(), 20),
    ) {
        lines.sort_by_key(|line| line.entry.tier);
        let mut tables = HostTables::default();
        tables.set_policy(1, &lines);
        tables.set_row(1, &selectors);
        for value in values {
            let found = walk(&tables, 1, class, value, 1, false);
            let (action, rule) = meaning(&lines, class, value, &selectors).unwrap_or((0, 0));
            prop_assert_eq!((found.action(), found.rule()), (action, rule), "{:?} {}", class, value);
        }
    }
}

/// The tables that the lab starts from are as large as they look: nothing above tests an empty one.
#[test]
fn the_lab_is_not_empty() {
    let tables = node::tables();
    let counts = [tables.lists.len(), tables.ports.len(), tables.addresses4.len(), tables.addresses6.len()];
    assert!(counts.iter().all(|count| *count > 4), "{counts:?}");
    assert!(tables.views[&node::CLOSED].half(Direction::Egress).set != 0);
}

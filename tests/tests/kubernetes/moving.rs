//! Addresses and ranges of addresses that go from one to another.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use bulkhead_cluster::Cluster;
use bulkhead_fixtures::{Frame, tcp};

use bulkhead_tests::guarded::{Guarded, NAMESPACE, POLICY, Way, eventually, server};

use crate::puppet::{Puppet, claim, dropped, mac_of, puppet, replace};

/// So soon an address that a pod had is that of a pod of another node.
const SOON: Duration = Duration::from_secs(1);
/// So often it is tried to be as quick as that.
const TURNS: usize = 5;

/// Of two pods that say they have an address the one has it that said it last, however old they are and whatever they are called; and a pod has it only
/// behind the node whose range it is of, however soon that is another one.
#[test]
fn the_last_to_claim_an_address_has_it() {
    let Some(guarded) = Guarded::start_as(Cluster::builder(), Way::ALONE) else { return };
    guarded.apply(&[NAMESPACE, &server("db", "n2"), "---\n", POLICY].concat());
    guarded.wait_for(&["db"]);
    let db: Ipv4Addr = guarded.address("db").parse().unwrap();
    let node = guarded.cluster.node(1);
    let [address, aside] = [5, 6].map(|last| Ipv4Addr::new(10, 244, 8, last));
    let [one, other] = [8, 9].map(|number| Puppet::new(&guarded, number));
    let becomes = |from: &Puppet<'_>, answered: bool| {
        eventually(&format!("behind {}: {answered}", from.name()), || from.is_answered(address, node, db) == answered);
    };
    one.register("10.244.8.0/24");
    other.register("10.244.9.0/24");
    // All of one second.
    let pods = [("early", "web"), ("guest", "guest"), ("late", "web")];
    guarded.apply(&pods.map(|(name, app)| puppet(name, "n8", app)).concat());
    claim(&guarded, "early", address);
    becomes(&one, true);
    assert!(!other.is_answered(address, node, db), "it is behind another node");
    claim(&guarded, "guest", address);
    becomes(&one, false);
    claim(&guarded, "late", address);
    becomes(&one, true);
    for pods in [["early", "guest"], ["guest", "late"]].into_iter().cycle().take(10) {
        for pod in pods {
            claim(&guarded, pod, aside);
            claim(&guarded, pod, address);
        }
    }
    becomes(&one, true);
    claim(&guarded, "guest", aside);
    claim(&guarded, "guest", address);
    becomes(&one, false);
    claim(&guarded, "late", aside);
    claim(&guarded, "late", address);
    becomes(&one, true);

    // The range goes from one node to the other, and an address in it from a pod of the former, which is answered, to one of the latter, which may not call.
    // That the one before may, and still says that it has it, helps nobody.
    let (mut had, mut has) = (&one, &other);
    for turn in 1.. {
        let pod = format!("moved-{turn}");
        guarded.apply(&puppet(&pod, &has.name(), "guest"));
        becomes(had, true);
        let last = Instant::now();
        replace(&guarded, [(had, "10.244.9.0/24"), (has, "10.244.8.0/24")]);
        claim(&guarded, &pod, address);
        let between = last.elapsed();
        let before = dropped(&guarded, 1, "wrong_vtep");
        eventually("the range is not that of the node it was of", || {
            !had.is_answered(address, node, db) && dropped(&guarded, 1, "wrong_vtep") > before
        });
        assert!(!has.is_answered(address, node, db), "it is another pod's");
        guarded.kubectl(&["--namespace=shop", "label", "pod", &pod, "app=web", "--overwrite"]);
        becomes(has, true);
        assert!(!had.is_answered(address, node, db));
        println!("an address was on another node {between:.2?} after it was answered on the one before");
        if between < SOON {
            guarded.kubectl(&["--namespace=shop", "label", "pod", &pod, "app=guest", "--overwrite"]);
            becomes(has, false);
            break;
        }
        assert!(turn < TURNS, "this machine is too slow for what is to happen within {SOON:?}");
        (had, has) = (has, had);
    }
}

/// A node is taken out, and joins again as a new machine, with the same name and underlay address and another range of pods' addresses.
#[test]
fn a_node_that_joins_again_has_its_new_range_alone() {
    let Some(mut guarded) = Guarded::start(Cluster::builder()) else { return };
    let callers = [server("web", "n2"), server("guest", "n2")].concat();
    guarded.apply(&[NAMESPACE, &server("db", "n1"), &callers, POLICY].concat());
    guarded.wait_for(&["db", "web", "guest"]);
    let db: Ipv4Addr = guarded.address("db").parse().unwrap();
    let served = format!("{db}:8080");
    guarded.becomes("guest", &served, false);
    guarded.becomes("web", &served, true);
    let old: Ipv4Addr = guarded.address("web").parse().unwrap();

    guarded.remove_last_node();
    guarded.kubectl(&["--namespace=shop", "delete", "pod", "web", "guest", "--force", "--grace-period=0"]);
    guarded.add_node("10.244.7.0/24");
    guarded.apply(&callers);
    guarded.wait_for(&["web", "guest"]);
    let new: Ipv4Addr = guarded.address("web").parse().unwrap();
    assert!(old.octets()[2] == 2 && new.octets()[2] == 7, "{old} {new}");
    guarded.becomes("web", &served, true);
    guarded.becomes("guest", &served, false);
    // The other way, to where the pods are now.
    guarded.becomes("db", &format!("{new}:8080"), true);

    // The old range is not the node's to send from, though it was.
    let callee = guarded.cluster.node(0);
    let frame = Frame::eth([2, 0, 0, 0, 0, 9], mac_of(callee, "flannel.1")).ipv4(old, db).tcp(6666, 8080, tcp::SYN);
    let before = dropped(&guarded, 0, "wrong_vtep");
    Puppet::of(&guarded, 1).send(&frame, callee);
    eventually("what comes from the old range is dropped", || dropped(&guarded, 0, "wrong_vtep") > before);
    for node in 0..2 {
        assert_eq!(guarded.metric(node, "bulkhead_unenforced_starts_total", &[]), 0.0, "{}", guarded.log(node));
    }
}

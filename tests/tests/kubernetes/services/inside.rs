//! Addresses that are good inside of the cluster.

use std::collections::BTreeSet;

use bulkhead_tests::guarded::eventually;

use super::{
    calls::{Caller, NOBODY},
    shop::{POLICIES, Shop},
};

/// Who answers in the end is judged, at the port where it listens: by the caller's policy and by its own. The address itself is nobody's.
pub(super) fn cluster_ip(shop: &Shop) {
    let [cart, db] = ["cart", "db"].map(|name| shop.service(name));
    shop.expect(&[
        (Caller::Pod("web-1"), &cart, &["cart-1", "cart-2"]),
        (Caller::Pod("web-2"), &cart, &["cart-1", "cart-2"]),
        (Caller::Pod("guest"), &cart, &[NOBODY]),
        (Caller::Pod("web-1"), &db, &[NOBODY]),
        (Caller::Pod("guest"), &db, &["db"]),
        // Its policy names the addresses of services.
        (Caller::Pod("vip"), &cart, &[NOBODY]),
        (Caller::Pod("vip"), &db, &[NOBODY]),
    ]);
    assert_eq!(shop.seen_as(Caller::Pod("web-1"), &cart), [shop.guarded.address("web-1")].into());
}

/// The name leads to pods: nothing is translated.
pub(super) fn headless(shop: &Shop) {
    let carts = ["cart-1", "cart-2"].map(|pod| shop.guarded.address(pod));
    let found = shop.resolve("web-1", "cart-pods").unwrap_or_default();
    assert!(carts.iter().all(|address| found.contains(address)), "{found}");
    let [cart_1, cart_2] = carts.map(|address| format!("{address}:8080"));
    let db = "db-pods.shop.svc.cluster.local:8080";
    shop.expect(&[
        (Caller::Pod("web-1"), &cart_1, &["cart-1"]),
        (Caller::Pod("web-1"), &cart_2, &["cart-2"]),
        (Caller::Pod("guest"), &cart_1, &[NOBODY]),
        (Caller::Pod("guest"), &cart_2, &[NOBODY]),
        (Caller::Pod("web-1"), db, &[NOBODY]),
        (Caller::Pod("guest"), db, &["db"]),
    ]);
}

/// The resolvers' pods are called, not their service's address.
pub(super) fn dns(shop: &Shop) {
    for (pod, resolves) in [("web-1", true), ("web-2", true), ("vip", false), ("cart-1", false)] {
        eventually(&format!("{pod} resolves names: {resolves}"), || shop.resolve(pod, "cart").is_some() == resolves);
        shop.guarded.becomes(pod, "10.96.0.10:53", resolves);
    }
}

/// A caller stays with one that answers, and is judged by that one, whoever else would do.
pub(super) fn session_affinity(shop: &Shop) {
    let [kept, any] = ["cart-kept", "cart"].map(|name| shop.service(name));
    let first = |shop: &Shop| {
        let mut names: BTreeSet<_> = shop.ask(&[(Caller::Pod("web-1"), format!("{kept}/hostname"))]).remove(0);
        names.remove(NOBODY);
        names.pop_first()
    };
    let mut found = None;
    eventually("somebody answers", || {
        found = first(shop);
        found.is_some()
    });
    let (mine, other, part) = match found.as_deref() {
        Some("cart-1") => ("cart-1", "cart-2", "2"),
        _ => ("cart-2", "cart-1", "1"),
    };
    shop.expect(&[(Caller::Pod("web-1"), &kept, &[mine]), (Caller::Pod("guest"), &kept, &[NOBODY])]);
    let egress = "    - { to: [{ podSelector: { matchLabels: { app: cart } } }], ports: [{ port: 8080 }] }";
    assert!(POLICIES.contains(egress));
    shop.guarded.apply(&POLICIES.replace(egress, &egress.replace("app: cart", &format!("part: '{part}'"))));
    shop.expect(&[(Caller::Pod("web-1"), &any, &[other, NOBODY]), (Caller::Pod("web-1"), &kept, &[NOBODY])]);
    shop.guarded.apply(POLICIES);
    shop.expect(&[(Caller::Pod("web-1"), &kept, &[mine])]);
}

/// Who calls itself needs no policy. Its replica is somebody else.
pub(super) fn hairpin(shop: &Shop) {
    let [alone, both] = ["cart-1", "cart"].map(|name| shop.service(name));
    let replica = format!("{}:8080", shop.guarded.address("cart-2"));
    shop.expect(&[
        (Caller::Pod("cart-1"), &alone, &["cart-1"]),
        (Caller::Pod("cart-1"), &both, &["cart-1", NOBODY]),
        (Caller::Pod("cart-1"), &replica, &[NOBODY]),
        (Caller::Pod("web-1"), &replica, &["cart-2"]),
        (Caller::Pod("guest"), &alone, &[NOBODY]),
    ]);
}

/// It answers at an address of the underlay and a port of its own: a policy has to name both.
pub(super) fn api_server(shop: &Shop) {
    let service = "10.96.0.1:443";
    for (pod, connects) in [("ops", true), ("guest", true), ("web-1", false), ("vip", false)] {
        shop.guarded.becomes(pod, service, connects);
    }
    let opened = shop.open_to(&shop.outside(), 443);
    shop.guarded.becomes("vip", service, false);
    drop(opened);
    let _opened = shop.open_to(&shop.outside(), 6443);
    shop.guarded.becomes("vip", service, true);
}

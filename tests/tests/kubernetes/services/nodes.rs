//! Ports of nodes, and what nodes call.

use bulkhead_tests::guarded::eventually;

use super::{
    calls::{Caller, NOBODY},
    shop::{CART_LOCAL_NODE_PORT, CART_NODE_PORT, DB_NODE_PORT, HOST, HOST_PORT, Shop},
};

/// The node that is called puts an address of its own in place of the caller's: its bridge's, and for who answers on another node its VXLAN device's.
/// Only who calls its own node is still known there.
pub(super) fn node_port(shop: &Shop) {
    let [one, two] = [0, 1].map(|node| shop.node(node, CART_NODE_PORT));
    let db = shop.node(0, DB_NODE_PORT);
    shop.expect(&[
        (Caller::Outside, &one, &[NOBODY]),
        (Caller::Outside, &two, &[NOBODY]),
        (Caller::Pod("web-1"), &one, &["cart-1", NOBODY]),
        (Caller::Pod("web-1"), &two, &[NOBODY]),
        (Caller::Pod("web-2"), &two, &["cart-2", NOBODY]),
        (Caller::Pod("web-2"), &one, &[NOBODY]),
        (Caller::Pod("guest"), &one, &[NOBODY]),
        (Caller::Pod("guest"), &two, &[NOBODY]),
        // No way around the caller's policy.
        (Caller::Pod("web-1"), &db, &[NOBODY]),
        (Caller::Pod("ops"), &db, &[NOBODY]),
        (Caller::Pod("guest"), &db, &["db"]),
    ]);
    let senders = [0, 1].map(|node| shop.senders(node)).concat();
    let opened = shop.open_cart(&senders);
    shop.expect(&[
        (Caller::Outside, &one, &["cart-1", "cart-2"]),
        (Caller::Outside, &two, &["cart-1", "cart-2"]),
        (Caller::Pod("web-1"), &two, &["cart-1", "cart-2"]),
        (Caller::Pod("web-2"), &one, &["cart-1", "cart-2"]),
        // So whoever may call a node's port comes in, but where it is known.
        (Caller::Pod("guest"), &two, &["cart-1", "cart-2"]),
        (Caller::Pod("guest"), &one, &["cart-2", NOBODY]),
        (Caller::Pod("web-1"), &db, &[NOBODY]),
    ]);
    let seen = shop.seen_as(Caller::Outside, &one);
    assert!(!seen.is_empty() && seen.iter().all(|address| senders.contains(address)), "{seen:?}");
    drop(opened);
    let _opened = shop.open_cart(&[shop.outside()]);
    shop.expect(&[
        (Caller::Outside, &one, &[NOBODY]),
        (Caller::Outside, &two, &[NOBODY]),
        (Caller::Outside, &shop.node(0, CART_LOCAL_NODE_PORT), &["cart-1"]),
    ]);
}

/// The caller keeps its address, and only those of the node that is called answer. Pods of that node call as by the ClusterIP; those of others come with
/// the address of their node, as flannel sends out what leaves the overlay.
pub(super) fn node_port_local(shop: &Shop) {
    let [one, two] = [0, 1].map(|node| shop.node(node, CART_LOCAL_NODE_PORT));
    shop.expect(&[
        (Caller::Outside, &one, &[NOBODY]),
        (Caller::Outside, &two, &[NOBODY]),
        (Caller::Pod("web-1"), &one, &["cart-1", "cart-2"]),
        (Caller::Pod("web-1"), &two, &[NOBODY]),
        (Caller::Pod("guest"), &one, &[NOBODY]),
        (Caller::Pod("guest"), &two, &[NOBODY]),
        // Everybody may call it.
        (Caller::Outside, &shop.node(1, DB_NODE_PORT), &["db"]),
    ]);
    let outside = shop.outside();
    let opened = shop.open_cart(std::slice::from_ref(&outside));
    shop.expect(&[(Caller::Outside, &one, &["cart-1"]), (Caller::Outside, &two, &["cart-2"])]);
    assert_eq!(shop.seen_as(Caller::Outside, &two), [outside].into());
    drop(opened);
    let _opened = shop.open_cart(&[shop.address_of_node(0)]);
    shop.expect(&[
        (Caller::Pod("web-1"), &two, &["cart-2"]),
        (Caller::Pod("guest"), &two, &["cart-2"]),
        (Caller::Outside, &two, &[NOBODY]),
    ]);
}

/// For the caller it is a port of the node, and the pod is asked by its own port: from outside and from other nodes by the caller's address, of their pods by
/// the node's, from its own node by the pod that calls.
pub(super) fn host_port(shop: &Shop) {
    let port = shop.node(0, HOST_PORT);
    shop.expect(&[
        (Caller::Outside, &port, &[NOBODY]),
        (Caller::Node(1), &port, &[NOBODY]),
        (Caller::Pod("ops"), &port, &["cart-1"]),
        // May call every node, and the pod: but from another node it comes with that one's address.
        (Caller::Pod("ops-2"), &port, &[NOBODY]),
        // May call the pod, but no node.
        (Caller::Pod("web-1"), &port, &[NOBODY]),
        (Caller::Pod("web-2"), &port, &[NOBODY]),
        // May call every node, but not the pod.
        (Caller::Pod("guest"), &port, &[NOBODY]),
    ]);
    let outside = shop.outside();
    let _opened = shop.open_cart(&[outside.clone(), shop.address_of_node(1)]);
    shop.expect(&[
        (Caller::Outside, &port, &["cart-1"]),
        (Caller::Node(1), &port, &["cart-1"]),
        (Caller::Pod("ops-2"), &port, &["cart-1"]),
        (Caller::Pod("web-1"), &port, &[NOBODY]),
        (Caller::Pod("web-2"), &port, &[NOBODY]),
        (Caller::Pod("guest"), &port, &[NOBODY]),
    ]);
    assert_eq!(shop.seen_as(Caller::Outside, &port), [outside].into());
    assert_eq!(shop.seen_as(Caller::Pod("ops-2"), &port), [shop.address_of_node(1)].into());
}

/// Those of kubelet pass, since a node may reach its own pods: nobody else reaches one whom no policy opens.
pub(super) fn probes(shop: &Shop) {
    let probed = || {
        let labels = ["workload=\"vip\"", "direction=\"ingress\"", "rule=\"node may reach its workloads\""];
        shop.guarded.metric(0, "bulkhead_packets_total", &labels)
    };
    let before = probed();
    eventually("probes are counted", || probed() > before);
    let vip = format!("{}:8080", shop.guarded.address("vip"));
    shop.expect(&[
        (Caller::Node(0), &vip, &["vip"]),
        (Caller::Node(1), &vip, &[NOBODY]),
        (Caller::Pod("guest"), &vip, &[NOBODY]),
    ]);
    let state = "--output=jsonpath={.status.containerStatuses[0].ready} {.status.containerStatuses[0].restartCount}";
    assert_eq!(shop.guarded.kubectl(&["--namespace=shop", "get", "pod", "vip", state]), "true 0");
}

/// A pod in its node's own network is its node, whatever its labels: it calls with the node's address and is called at it, and no policy is about it.
pub(super) fn host_network(shop: &Shop) {
    let [cart_1, cart_2] = ["cart-1", "cart-2"].map(|pod| format!("{}:8080", shop.guarded.address(pod)));
    let port = shop.node(0, HOST);
    let service = shop.service("host");
    shop.expect(&[
        (Caller::Pod("host"), &cart_1, &["cart-1"]),
        // The policy of `cart` names its label, and so does that of `web`.
        (Caller::Pod("host"), &cart_2, &[NOBODY]),
        (Caller::Pod("web-1"), &port, &[NOBODY]),
        (Caller::Pod("web-1"), &service, &[NOBODY]),
        (Caller::Pod("ops"), &port, &["n1"]),
        (Caller::Pod("ops"), &service, &["n1"]),
        // It is selected by the policy that isolates all.
        (Caller::Outside, &port, &["n1"]),
    ]);
    let [_, device] = shop.senders(0);
    let _opened = shop.open_cart(&[device]);
    shop.expect(&[(Caller::Pod("host"), &cart_2, &["cart-2"]), (Caller::Node(1), &cart_1, &[NOBODY])]);
}

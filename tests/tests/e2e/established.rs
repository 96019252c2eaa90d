//! A change of policy, labels or addresses cuts established connections on their next packet.

use std::net::{SocketAddr, TcpStream};

use bulkhead_fixtures::skip;
use bulkhead_tests::Lab;
use bulkhead_topology::traffic::{Outcome, echo};

use crate::{
    policy::{SHOP, shop},
    probe::{BRIEF, PATIENCE, Servers},
};

/// Live connections from `web` to both replicas of `cart`, in both families.
pub(crate) fn connections(lab: &Lab) -> Vec<TcpStream> {
    let web = lab.topology.workload("web");
    let mut streams = Vec::new();
    for cart in ["cart-1", "cart-2"] {
        for address in lab.topology.workload(cart).addresses() {
            let to: SocketAddr = (address, 8080).into();
            streams.push(web.client().deadline(PATIENCE).connect(to).unwrap());
        }
    }
    streams
}

#[track_caller]
pub(crate) fn alive(streams: &mut [TcpStream]) {
    for stream in streams {
        let peer = stream.peer_addr().unwrap();
        assert_eq!(echo(stream, PATIENCE).unwrap(), Outcome::Answered, "{peer}");
    }
}

#[track_caller]
pub(crate) fn cut(streams: &mut [TcpStream]) {
    for stream in streams {
        let peer = stream.peer_addr().unwrap();
        assert_eq!(echo(stream, BRIEF).unwrap(), Outcome::TimedOut, "{peer}");
    }
}

#[test]
fn a_revoked_rule_cuts_and_other_changes_do_not() {
    if skip::root() {
        revokes(shop(), |_| {});
    }
}

/// `begun` runs when policy holds, before anybody calls.
pub(crate) fn revokes(mut lab: Lab, begun: fn(&Lab)) {
    let _servers = [Servers::start(&lab, "cart-1", &[8080], &[]), Servers::start(&lab, "cart-2", &[8080], &[])];
    lab.publish().unwrap();
    begun(&lab);
    let mut streams = connections(&lab);
    alive(&mut streams);
    // Something else changes: the connections live on.
    lab.policy("shop.yaml", &SHOP.replace("db:5432", "db:5433")).unwrap();
    lab.publish().unwrap();
    alive(&mut streams);
    lab.policy("shop.yaml", &SHOP.replace("cart:8080, ", "")).unwrap();
    lab.publish().unwrap();
    cut(&mut streams);
}

#[test]
fn a_peer_that_loses_its_label_is_cut() {
    if !skip::root() {
        return;
    }
    let mut lab = shop();
    let _servers = [Servers::start(&lab, "cart-1", &[8080], &[]), Servers::start(&lab, "cart-2", &[8080], &[])];
    lab.publish().unwrap();
    let mut streams = connections(&lab);
    alive(&mut streams);
    // `web` becomes something else: cart's walls close for it.
    lab.roles.get_mut("web").unwrap().labels.insert("app".into(), "shed".into());
    lab.write_workloads().unwrap();
    lab.publish().unwrap();
    cut(&mut streams);
}

#[test]
fn a_peer_that_loses_its_address_is_cut() {
    if !skip::root() {
        return;
    }
    let mut lab = shop();
    let _servers = [Servers::start(&lab, "cart-1", &[8080], &[]), Servers::start(&lab, "cart-2", &[8080], &[])];
    lab.publish().unwrap();
    let mut streams = connections(&lab);
    alive(&mut streams);
    // The replicas disappear from the file: nobody knows whose those addresses are.
    for cart in ["cart-1", "cart-2"] {
        lab.roles.get_mut(cart).unwrap().listed = false;
    }
    lab.write_workloads().unwrap();
    lab.publish().unwrap();
    cut(&mut streams);
}

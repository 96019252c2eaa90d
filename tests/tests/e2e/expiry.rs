//! What a Guard allows or denies until some time ends then, with no agent alive.

use std::{
    thread,
    time::{Duration, SystemTime},
};

use bulkhead_fixtures::skip;
use bulkhead_tests::{Agent, visit};

use crate::{
    established::{alive, cut},
    policy::{SHOP, shop},
    probe::{Ask, PATIENCE, Servers, allowed, denied},
};

#[test]
fn what_expires_ends_though_the_agents_are_dead() {
    if !skip::root() {
        return;
    }
    let lab = shop();
    let servers = ["cart-1", "cart-2"].map(|cart| Servers::start(&lab, cart, &[8080], &[5300]));
    let mut agents: Vec<_> = (0..2).map(|node| Agent::start(&lab, node, &[]).unwrap()).collect();
    denied(&lab, "guest", "cart-1", Ask::Tcp(8080));
    allowed(&lab, "web", "cart-1", Ask::Udp(5300));

    let guest = lab.topology.workload("guest");
    let to: Vec<_> =
        ["cart-1", "cart-2"].into_iter().flat_map(|cart| lab.topology.workload(cart).addresses()).collect();
    // A machine that is too busy to look before the time is over gets more of it.
    for seconds in [5, 20, 60] {
        let end = SystemTime::now() + Duration::from_secs(seconds);
        let guard = visit(end, end);
        let [first, second] = &mut agents[..] else { unreachable!("two nodes") };
        first.apply(|| second.apply(|| lab.policy("guard.yaml", &guard))).unwrap();
        let connect = || {
            to.iter()
                .map(|&to| guest.client().deadline(PATIENCE).connect((to, 8080).into()))
                .collect::<Result<Vec<_>, _>>()
        };
        if SystemTime::now() + Duration::from_secs(2) > end {
            continue;
        }
        let mut streams = connect().unwrap();
        alive(&mut streams);
        denied(&lab, "web", "cart-1", Ask::Udp(5300));
        denied(&lab, "web", "cart-2", Ask::Udp(5300));
        for agent in agents {
            agent.kill().unwrap();
        }
        thread::sleep(end.duration_since(SystemTime::now()).unwrap_or_default() + Duration::from_secs(1));

        let seen = || servers.iter().map(Servers::seen).sum::<u64>();
        let before = seen();
        cut(&mut streams);
        for cart in ["cart-1", "cart-2"] {
            denied(&lab, "guest", cart, Ask::Tcp(8080));
        }
        assert_eq!(seen(), before, "nothing new reached a server");
        for cart in ["cart-1", "cart-2"] {
            allowed(&lab, "web", cart, Ask::Udp(5300));
            allowed(&lab, "web", cart, Ask::Tcp(8080));
        }
        assert!(SHOP.contains("cart:5300/udp"), "what the Guard denied for a while");
        return;
    }
    panic!("a minute was not enough to apply a policy");
}

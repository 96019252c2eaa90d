//! A service whose walls only report: what the kernel says they would have blocked.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use anyhow::Result;
use bulkhead_controller::{compile::isolated, model::ServiceName};
use bulkhead_dataplane::{desired::EndpointName, node::direction_label};
use bulkhead_ebpf::{abi::Direction, reason::Reason};

use crate::{
    calls::{Answer, Ask, Call},
    shop::Shop,
    show,
};

/// The service.
pub(crate) const SERVICE: &str = "payments";
/// The node on which it runs.
const NODE: usize = 1;

/// What would have been blocked, by direction, peer and port.
type Sample = (String, IpAddr, u16);

/// Shows what the kernel of the service's node has counted and sampled. Returns whether that is what the policy says of these calls: each that would
/// be blocked, over IPv4 and IPv6, and no other.
pub(crate) fn reported(shop: &Shop, answers: &[Answer]) -> Result<bool> {
    let own = shop.party(SERVICE).workload;
    let own =
        |endpoint: Option<&EndpointName>| endpoint.map(|name| &name.workload) == own.as_ref().map(|name| &name.name);
    let (mut contacts, mut counters) = (shop.contacts(NODE)?, shop.counters(NODE)?);
    contacts.retain(|contact| contact.reason == Reason::WouldDeny && own(contact.endpoint.as_deref()));
    counters.retain(|reading| reading.reason == Reason::WouldDeny && own(reading.endpoint.as_ref()));
    let wanted: BTreeSet<Sample> =
        answers.iter().filter(|answer| would_be_blocked(answer)).flat_map(|answer| sample(shop, answer.call)).collect();

    let mut good = !wanted.is_empty();
    let mut rows = vec![["counted as would_deny", "packets", "sampled"].map(str::to_owned).to_vec()];
    for direction in [Direction::Ingress, Direction::Egress] {
        let service = ServiceName::new("shop".to_owned(), SERVICE.to_owned());
        let rule = isolated(&service, direction);
        let direction = direction_label(direction);
        // Answers count for the rule that judged the question.
        let packets: u64 = counters.iter().filter(|reading| reading.rule == rule).map(|reading| reading.packets).sum();
        let wanted = wanted.iter().filter(|(wall, ..)| wall == direction).cloned().collect();
        let found = contacts.iter().filter(|contact| *contact.rule == *rule);
        let found: BTreeSet<Sample> =
            found.map(|contact| (contact.direction.to_owned(), contact.peer, contact.port)).collect();
        good &= found == wanted && (packets > 0) != wanted.is_empty();
        let sampled: Vec<_> = found
            .iter()
            .map(|&(_, peer, port)| {
                if direction == "ingress" {
                    format!("{peer} -> {SERVICE}:{port}")
                } else {
                    format!("{SERVICE} -> {}", SocketAddr::new(peer, port))
                }
            })
            .collect();
        rows.push(vec![rule, packets.to_string(), sampled.join(", ")]);
    }
    show::table(&rows);
    Ok(good)
}

/// Whether it passes only because the wall that would block it is audited.
pub(crate) fn would_be_blocked(answer: &Answer) -> bool {
    answer.expected.allowed && !answer.expected.would_be_allowed
}

/// What a call is to the service's own node.
fn sample(shop: &Shop, call: Call) -> Vec<Sample> {
    let Ask::Tcp(port) = call.ask else { return Vec::new() };
    let (direction, peer) = if call.to == SERVICE { ("ingress", call.from) } else { ("egress", call.to) };
    shop.party(peer).addresses.map(|address| (direction.to_owned(), address, port)).to_vec()
}

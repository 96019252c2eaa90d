//! What passes although something is against it: endpoints and nodes that observe, and audited policies.

use bulkhead_ebpf::{
    abi::{Action, ContactKey, Direction, EndpointWord, Entry, Mode, View, node},
    host::{HostTables, Line, entry, everyone, words},
    reason::Reason,
};
use bulkhead_fixtures::{
    Frame,
    catalogue::{A, B, NODE_A},
    proto, tcp,
};

use crate::{
    lab::{BRIDGE, Lab, Name, Packet, from, gets, sends, to},
    node::{CLOSED, FAMILIES, ISOLATED, SLOT, allow, selector},
};

crate::scenarios! {
    an_endpoint_that_observes_drops_nothing
    a_node_that_observes_drops_nothing
    bypass_ends_by_itself
    would_be_denials_are_counted_beside
    would_be_allowances_are_counted_beside
}

use Reason::{Isolated, NotForUs, Observed, Quarantine, Rule, SpoofedSource, WouldAllow, WouldDeny};

fn observed(packet: Packet, flows: isize) -> crate::lab::Step {
    packet.settled(Observed).starts(flows.unsigned_abs() as u64).grows(flows)
}

fn an_endpoint_that_observes_drops_nothing() {
    for family in FAMILIES {
        let b = B.ip(family);
        let mut lab = Lab::new();
        lab.publish(1, CLOSED, Mode::Observe);
        lab.check([
            // What policy allows is what it was.
            gets(&from(b).tcp(1, 5432, tcp::SYN)).begins(Rule, 1),
            sends(&to(b).tcp(5432, 1, tcp::ACK)).replies(1),
            // What it forbids is a flow all the same: answers are no questions.
            observed(gets(&from(b).udp(1, 54)), 1),
            observed(gets(&from(b).udp(1, 54)), 0),
            observed(sends(&to(b).udp(54, 1)), 0),
            observed(sends(&to(b).tcp(7, 9, tcp::SYN)), 1),
            observed(gets(&from(b).tcp(9, 7, tcp::SYN | tcp::ACK)), 0),
            observed(sends(&Frame::eth(A.mac, BRIDGE).ip(b, b).udp(1, 2)), 0),
            observed(gets(&from(b).udp(1, 2)).mark(0), 0),
            observed(sends(&to(b).udp(1, 2)).vlan(), 0),
            gets(&Frame::eth(BRIDGE, B.mac).ip(b, A.ip(family)).udp(1, 2)).settled(NotForUs),
        ]);
        let key = ContactKey {
            peer: words(b),
            slot: 1,
            port: 54,
            protocol: proto::UDP,
            direction: Direction::Ingress as u8,
            reason: Isolated as u8,
            flags: ContactKey::OBSERVED,
        };
        let contacts = lab.tables.contacts();
        assert_eq!(contacts[&key].packets, 2, "{contacts:?}");
        assert_eq!(contacts[&key].counter, HostTables::rule_counter(CLOSED, Direction::Ingress, ISOLATED));
        // Enforced from now on: what was forbidden is, also in flows that are known.
        lab.publish(2, CLOSED, Mode::Enforce);
        lab.check([
            gets(&from(b).udp(1, 54)).refused(Isolated, ISOLATED).forgets(),
            gets(&from(b).tcp(1, 5432, tcp::ACK)).goes_on(1),
            sends(&Frame::eth(A.mac, BRIDGE).ip(b, b).udp(1, 2)).settled(SpoofedSource),
        ]);
    }
}

fn a_node_that_observes_drops_nothing() {
    for family in FAMILIES {
        let b = B.ip(family);
        let mut lab = Lab::new();
        lab.tables.node.insert(node::OBSERVE, 1);
        lab.check([
            gets(&from(b).tcp(1, 5432, tcp::SYN)).begins(Rule, 1),
            observed(gets(&from(b).udp(1, 54)), 1),
            observed(sends(&Frame::eth(B.mac, BRIDGE).ip(A.ip(family), b).udp(1, 2)), 0),
        ]);
        lab.publish(1, CLOSED, Mode::Quarantine);
        lab.check([observed(gets(&from(b).tcp(1, 5432, tcp::ACK)), 0)]);
        lab.tables.words.insert(SLOT, EndpointWord::default());
        lab.check([observed(gets(&from(b).tcp(1, 5432, tcp::ACK)), 0)]);
    }
}

fn bypass_ends_by_itself() {
    for family in FAMILIES {
        let b = B.ip(family);
        let mut lab = Lab::new();
        lab.tables.node.insert(node::BYPASS, lab.tables.now + 5);
        lab.publish(1, CLOSED, Mode::Quarantine);
        lab.check([observed(gets(&from(b).udp(1, 54)), 0)]);
        lab.tables.now += 5;
        lab.check([gets(&from(b).udp(1, 54)).settled(Quarantine)]);
    }
}

/// A node on which these entries are `A`'s ingress, with a would-be verdict.
fn audited(entries: &[Entry]) -> Lab {
    let mut lab = Lab::new();
    let lines: Vec<_> = entries.iter().copied().map(Line::everything).collect();
    lab.tables.set_policy(5, &lines);
    lab.tables.set_view(3, 5, 2, View::AUDIT_INGRESS);
    lab.publish(1, 3, Mode::Enforce);
    lab
}

const fn audit(entry: Entry) -> Entry {
    Entry { flags: entry.flags | Entry::AUDIT, ..entry }
}

fn would_be_denials_are_counted_beside() {
    for family in FAMILIES {
        let (b, node) = (B.ip(family), NODE_A.ip(family));
        // Isolated by an audited document only, which lets the node in.
        let mut lab = audited(&[
            audit(allow(1, selector::NODE)),
            audit(everyone(Action::Deny, WouldDeny, 2)),
            everyone(Action::Allow, Rule, 3),
        ]);
        let would = |direction| match direction {
            Direction::Ingress => Name::Rule(3, Direction::Ingress, 2),
            Direction::Egress => Name::Replies(3, Direction::Ingress, 2),
        };
        lab.check([
            gets(&from(b).tcp(1, 9, tcp::SYN)).view(3).begins(Rule, 3).also(would(Direction::Ingress), 1),
            gets(&from(b).tcp(1, 9, tcp::ACK)).view(3).goes_on(3).also(would(Direction::Ingress), 0),
            sends(&to(b).tcp(9, 1, tcp::ACK)).view(3).replies(3).also(would(Direction::Egress), 0),
            // Where both say the same, one word is enough.
            gets(&from(node).tcp(1, 9, tcp::SYN)).by_node().view(3).begins(Rule, 3),
            gets(&from(node).tcp(1, 9, tcp::ACK)).by_node().view(3).goes_on(3),
        ]);
        let contacts = lab.tables.contacts();
        let (key, contact) = contacts.first_key_value().unwrap();
        assert_eq!((contacts.len(), key.reason, key.flags, key.port), (1, WouldDeny as u8, 0, 9));
        assert_eq!((contact.packets, contact.counter), (2, HostTables::rule_counter(3, Direction::Ingress, 2)));
        // Enforced, it denies.
        let mut enforced =
            audited(&[allow(1, selector::NODE), everyone(Action::Deny, Isolated, 2), everyone(Action::Allow, Rule, 3)]);
        enforced.check([gets(&from(b).tcp(1, 9, tcp::SYN)).view(3).refused(Isolated, 2)]);
    }
}

fn would_be_allowances_are_counted_beside() {
    for family in FAMILIES {
        let b = B.ip(family);
        let mut lab = audited(&[
            audit(entry(Action::Allow, WouldAllow, 1, &[selector::PEER])),
            everyone(Action::Deny, Isolated, 2),
        ]);
        let syn = || gets(&from(b).tcp(1, 9, tcp::SYN)).view(3);
        lab.check([
            syn().refused(Isolated, 2).also(Name::Rule(3, Direction::Ingress, 1), 1),
            gets(&from(b).tcp(1, 9, tcp::ACK)).settled(Reason::NoFlow).also(Name::Rule(3, Direction::Ingress, 1), 0),
        ]);
        let key = *lab.tables.contacts().first_key_value().unwrap().0;
        assert_eq!((key.reason, key.flags), (Isolated as u8, ContactKey::WOULD_PASS));
        // An audited pass leaves it to a rule that is enforced: that is no rule's count, since nobody asked it.
        let mut lab = audited(&[
            audit(entry(Action::Pass, Rule, 1, &[selector::PEER])),
            entry(Action::Deny, Reason::DeniedByRule, 2, &[selector::PEER]),
            Entry { tier: 1, ..everyone(Action::Allow, Rule, 3) },
        ]);
        lab.check([syn()
            .refused(Reason::DeniedByRule, 2)
            .also(Name::Endpoint(SLOT, Direction::Ingress, WouldAllow), 1)]);
        let mut lab = audited(&[
            audit(entry(Action::Pass, Rule, 1, &[selector::PEER])),
            entry(Action::Allow, Rule, 2, &[selector::PEER]),
            Entry { tier: 1, ..everyone(Action::Deny, Reason::DeniedByRule, 3) },
        ]);
        lab.check([syn().begins(Rule, 2).also(Name::Endpoint(SLOT, Direction::Ingress, WouldDeny), 1)]);
    }
}

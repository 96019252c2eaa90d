//! What workloads send and get.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bulkhead_ebpf::{
    abi::{
        Action, AddressKey4, AddressKey6, AddressWord, Class, ContactKey, Direction, EndpointWord, Entry, LIST_CHAIN,
        LIST_ENTRIES, Mode, PORT_INTERVALS, PortTable, SET_INTERVALS, VIEW_CHAIN, View, mark,
    },
    host::{HostTables, Line, entry, everyone, words},
    reason::Reason,
    verdict::outgoing_mark,
};
use bulkhead_fixtures::{
    Frame, IcmpError, Mac, NdOption, VXLAN_PORT,
    catalogue::{A, B, Family, Health, NODE_A, NODE_B, Part, VNI, catalogue, named},
    multicast_mac, proto, solicited_node, tcp,
};

use crate::{
    lab::{BRIDGE, Lab, from, gets, nobody, sends, to, world},
    node::{CLOSED, FAMILIES, ISOLATED, LOCAL, OPEN, SLOT, allow, egress, ingress, local, row, selector},
};

crate::scenarios! {
    a_flow_is_allowed_established_and_answered
    datagrams_and_other_protocols_make_flows
    what_no_rule_allows_is_refused
    a_syn_against_the_initiator_begins_another_flow
    replies_without_a_flow_are_refused
    a_new_epoch_has_flows_judged_again
    revocation_cuts_both_directions
    what_is_sent_again_after_a_revocation_is_no_call
    a_revoked_and_restored_flow_counts_for_its_new_rule
    echoes_are_told_apart_by_who_asks
    an_unasked_echo_reply_begins_nothing
    errors_pass_about_own_flows_only
    an_error_never_makes_a_flow
    errors_about_fragments_and_rubbish_are_refused
    other_icmp_has_no_replies
    fragments_pass_open_directions_only
    a_first_fragment_is_read
    whole_packets_in_fragment_headers_are_whole
    the_node_is_not_what_passes_through_it
    a_flow_of_the_node_does_not_open_for_what_passes_through_it
    local_senders_are_known_by_their_marks
    processes_of_the_node_carry_no_marks
    deadlines_pass_from_view_to_view
    tiers_and_pass
    audited_entries_change_nothing
    actions_that_are_unknown_deny
    an_allow_allows_whatever_reason_it_gives
    counters_may_have_any_number
    lists_chain_eight_blocks
    port_tables_cut_where_they_say
    entries_tell_their_rule_by_rank
    what_is_missing_denies
    foreign_tags_tell_nothing
    longest_prefixes_decide
    groups
    frames_for_others
    address_resolution
    neighbour_discovery
    resolution_passes_what_has_no_policy_yet
    vlan_tags
    tunnel_traffic_to_nodes
    merged_packets_count_as_segments
    plain_packets_with_overlay_sources
    a_peer_that_moves_is_expected_elsewhere
    modes
    spoofed_sources
    what_is_neither_ip_nor_arp
    malformed_packets
    link_local_addresses_are_own
    contacts_are_sampled_within_the_budget
    the_mark_that_is_left
}

use Reason::{
    Changing, DeniedByRule, Fragment, Isolated, Malformed, NoEndpoint, NoFlow, NotForUs, NotIp, NotIsolated, Pending,
    PlainOverlaySource, Quarantine, Related, Resolution, Revoked, Rule, SpoofedMac, SpoofedResolution, SpoofedSource,
    Tunnel, VlanTag,
};

const SYN_ACK: u8 = tcp::SYN | tcp::ACK;
const DATA: u8 = tcp::PSH | tcp::ACK;

fn a_flow_is_allowed_established_and_answered() {
    for family in FAMILIES {
        let b = B.ip(family);
        Lab::new().check([
            gets(&from(b).tcp(40_000, 5432, tcp::SYN)).begins(Rule, 1),
            gets(&from(b).tcp(40_000, 5432, tcp::SYN)).goes_on(1),
            sends(&to(b).tcp(5432, 40_000, SYN_ACK)).replies(1),
            gets(&from(b).tcp(40_000, 5432, tcp::ACK)).goes_on(1),
            gets(&from(b).tcp(40_000, 5432, DATA).payload(100)).goes_on(1),
            sends(&to(b).tcp(5432, 40_000, DATA).payload(900)).replies(1),
            sends(&to(b).tcp(5432, 40_000, tcp::RST)).replies(1),
            sends(&to(b).tcp(40_000, 8080, tcp::SYN)).begins(Rule, 1),
            gets(&from(b).tcp(8080, 40_000, SYN_ACK)).replies(1),
            sends(&to(b).tcp(40_000, 8080, DATA)).goes_on(1),
            // Ports the other way round are another flow.
            gets(&from(b).tcp(5432, 40_000, tcp::ACK)).settled(NoFlow),
        ]);
    }
}

fn datagrams_and_other_protocols_make_flows() {
    for family in FAMILIES {
        let (b, world) = (B.ip(family), world(family));
        Lab::new().check([
            gets(&from(b).udp(40_000, 53).payload(16)).begins(Rule, 2),
            sends(&to(b).udp(53, 40_000).payload(64)).replies(2),
            gets(&from(b).udp(40_000, 53)).goes_on(2),
            sends(&to(world).udp(40_000, 53)).begins(Rule, 2),
            gets(&from(world).udp(53, 40_000)).mark(0).replies(2),
            gets(&from(b).sctp(5000, 9000)).begins(Rule, 7),
            sends(&to(b).sctp(9000, 5000)).replies(7),
            gets(&from(b).raw_l4(proto::GRE, &[0; 8])).begins(Rule, 8),
            sends(&to(b).raw_l4(proto::GRE, &[0; 8])).replies(8),
            gets(&from(b).raw_l4(proto::ESP, &[0; 8])).refused(Isolated, ISOLATED),
        ]);
    }
}

fn what_no_rule_allows_is_refused() {
    for family in FAMILIES {
        let b = B.ip(family);
        let steps = || {
            [
                gets(&from(b).tcp(40_000, 22, tcp::SYN)).refused(DeniedByRule, 6),
                gets(&from(b).tcp(40_000, 5433, tcp::SYN)).refused(Isolated, ISOLATED),
                gets(&from(b).udp(40_000, 54)).refused(Isolated, ISOLATED),
                gets(&from(b).sctp(5000, 9101)).refused(Isolated, ISOLATED),
                gets(&from(world(family)).tcp(40_000, 5432, tcp::SYN)).mark(0).refused(Isolated, ISOLATED),
                // Of no known workload, and not of the world either.
                gets(&from(nobody(family)).tcp(40_000, 8443, tcp::SYN)).refused(Isolated, ISOLATED),
                sends(&to(b).tcp(40_000, 8081, tcp::SYN)).refused(Isolated, ISOLATED),
                sends(&to(world(family)).tcp(40_000, 53, tcp::SYN)).refused(Isolated, ISOLATED),
                sends(&to(b).udp(40_000, 53)).refused(Isolated, ISOLATED),
            ]
        };
        let mut lab = Lab::new();
        // Nothing of it is remembered.
        lab.check(steps());
        lab.check(steps());
    }
}

fn a_syn_against_the_initiator_begins_another_flow() {
    for family in FAMILIES {
        let b = B.ip(family);
        Lab::new().check([
            sends(&to(b).tcp(40_000, 8080, tcp::SYN)).begins(Rule, 1),
            gets(&from(b).tcp(8080, 40_000, tcp::SYN)).refused(Isolated, ISOLATED),
            // With ACK it is an answer, whatever else is set.
            gets(&from(b).tcp(8080, 40_000, SYN_ACK)).replies(1),
            gets(&from(b).tcp(8080, 40_000, tcp::SYN | tcp::FIN)).refused(Isolated, ISOLATED),
            sends(&to(b).tcp(40_000, 8080, tcp::ACK)).goes_on(1),
        ]);
        Lab::open().check([
            sends(&to(b).tcp(40_000, 8080, tcp::SYN)).view(OPEN).begins(NotIsolated, 0),
            gets(&from(b).tcp(8080, 40_000, tcp::SYN)).view(OPEN).begins(NotIsolated, 0).replaces(),
            sends(&to(b).tcp(40_000, 8080, SYN_ACK)).view(OPEN).replies(0),
        ]);
    }
}

fn replies_without_a_flow_are_refused() {
    for family in FAMILIES {
        let b = B.ip(family);
        let echo_reply = |frame: Frame| frame.icmp_echo_reply(7, 1);
        Lab::new().check([
            gets(&from(b).tcp(8080, 40_000, SYN_ACK)).settled(NoFlow),
            gets(&from(b).tcp(8080, 40_000, tcp::RST)).settled(NoFlow),
            gets(&from(b).tcp(8080, 40_000, 0)).settled(NoFlow),
            gets(&echo_reply(from(b))).settled(NoFlow),
            sends(&to(b).tcp(5432, 40_000, DATA)).settled(NoFlow),
            sends(&echo_reply(to(b))).settled(NoFlow),
            // A rule that names it says more.
            gets(&from(b).tcp(40_000, 22, tcp::ACK)).refused(DeniedByRule, 6).starts(0),
            // What a rule allows needs no beginning: the entry may have been evicted.
            gets(&from(b).tcp(40_000, 5432, tcp::ACK)).begins(Rule, 1),
            sends(&to(b).tcp(5432, 40_000, tcp::ACK)).replies(1),
        ]);
    }
}

fn a_new_epoch_has_flows_judged_again() {
    for family in FAMILIES {
        let b = B.ip(family);
        let mut lab = Lab::new();
        lab.check([
            gets(&from(b).tcp(40_000, 5432, tcp::SYN)).begins(Rule, 1),
            gets(&from(b).udp(40_000, 53)).begins(Rule, 2),
            sends(&to(b).icmp_echo(7, 1)).begins(Rule, 4),
        ]);
        lab.publish(2, CLOSED, Mode::Enforce);
        lab.check([
            // In the initiator's direction, whoever comes first.
            sends(&to(b).tcp(5432, 40_000, SYN_ACK)).replies(1),
            sends(&to(b).udp(53, 40_000)).replies(2),
            gets(&from(b).icmp_echo_reply(7, 1)).replies(4),
        ]);
        lab.publish(3, CLOSED, Mode::Enforce);
        lab.check([
            gets(&from(b).tcp(40_000, 5432, tcp::SYN)).goes_on(1),
            gets(&from(b).udp(40_000, 53)).goes_on(2),
            sends(&to(b).icmp_echo(7, 2)).goes_on(4),
        ]);
        let good = lab.tables.words[&SLOT].0;
        let words: Vec<_> = lab.tables.flows4().into_values().chain(lab.tables.flows6().into_values()).collect();
        assert!(words.len() == 3 && words.iter().all(|flow| flow.word == good), "{words:?}");
    }
}

/// The lab's policy without what it allows.
fn revoke(lab: &mut Lab, view: u32) {
    let deny = |rule, selector| entry(Action::Deny, Isolated, rule, &[selector]);
    lab.tables.set_policy(11, &ingress(&deny));
    lab.tables.set_policy(12, &egress(&deny));
    lab.tables.set_view(view, 11, 12, 0);
    lab.publish(view, view, Mode::Enforce);
}

fn revocation_cuts_both_directions() {
    for family in FAMILIES {
        let b = B.ip(family);
        let mut lab = Lab::new();
        for port in [40_000, 40_001] {
            lab.check([
                gets(&from(b).tcp(port, 5432, tcp::SYN)).begins(Rule, 1),
                gets(&from(b).udp(port, 53)).begins(Rule, 2),
                gets(&from(b).icmp_echo(port, 1)).begins(Rule, 3),
                sends(&to(b).tcp(port, 8080, tcp::SYN)).begins(Rule, 1),
            ]);
        }
        revoke(&mut lab, 3);
        lab.check([
            // From the initiator.
            gets(&from(b).tcp(40_000, 5432, DATA)).view(3).refused(Isolated, 1).starts(0),
            gets(&from(b).tcp(40_000, 5432, DATA)).view(3).refused(Isolated, 1).starts(0),
            gets(&from(b).udp(40_000, 53)).view(3).refused(Isolated, 2).forgets(),
            gets(&from(b).udp(40_000, 53)).view(3).refused(Isolated, 2),
            gets(&from(b).icmp_echo(40_000, 1)).view(3).refused(Isolated, 3).forgets(),
            sends(&to(b).tcp(40_000, 8080, DATA)).view(3).refused(Isolated, 1).starts(0),
            // From who answers.
            sends(&to(b).tcp(5432, 40_001, DATA)).settled(Revoked),
            sends(&to(b).tcp(5432, 40_001, DATA)).settled(Revoked),
            sends(&to(b).udp(53, 40_001)).settled(Revoked).starts(1).forgets(),
            sends(&to(b).udp(53, 40_001)).view(3).refused(Isolated, ISOLATED),
            sends(&to(b).icmp_echo_reply(40_001, 1)).settled(Revoked).forgets(),
            gets(&from(b).tcp(8080, 40_001, DATA)).settled(Revoked),
            // Whoever begins anew begins a flow of its own.
            sends(&to(b).tcp(5432, 40_001, tcp::SYN)).view(3).refused(Isolated, ISOLATED),
        ]);
        // Those of TCP are known, and good for nothing.
        assert_eq!(lab.flows(), 4);
    }
}

/// Where only what comes in is walled, as by most policies of Kubernetes.
fn what_is_sent_again_after_a_revocation_is_no_call() {
    for family in FAMILIES {
        let b = B.ip(family);
        let mut lab = Lab::new();
        lab.tables.set_view(4, 1, 3, View::OPEN_EGRESS);
        lab.publish(2, 4, Mode::Enforce);
        let (asks, answers) = (gets(&from(b).tcp(1, 5432, DATA)), sends(&to(b).tcp(5432, 1, DATA)));
        lab.check([gets(&from(b).tcp(1, 5432, tcp::SYN)).view(4).begins(Rule, 1), answers.clone().view(4).replies(1)]);
        let deny = |rule, selector| entry(Action::Deny, Isolated, rule, &[selector]);
        lab.tables.set_policy(11, &ingress(&deny));
        lab.tables.set_view(5, 11, 3, View::OPEN_EGRESS);
        lab.publish(3, 5, Mode::Enforce);
        let asks = asks.view(5);
        lab.check([
            answers.clone().settled(Revoked),
            answers.clone().settled(Revoked),
            asks.clone().refused(Isolated, 1).starts(0),
            answers.settled(Revoked),
            asks.refused(Isolated, 1).starts(0),
        ]);
        // Its own calls to there are free, on the same ports too.
        lab.check([sends(&to(b).tcp(5432, 1, tcp::SYN)).view(5).begins(NotIsolated, 0).replaces()]);
    }
}

fn a_revoked_and_restored_flow_counts_for_its_new_rule() {
    let b = B.ip(Family::V4);
    let mut lab = Lab::new();
    lab.check([gets(&from(b).tcp(40_000, 5432, tcp::SYN)).begins(Rule, 1)]);
    lab.publish(2, OPEN, Mode::Enforce);
    lab.check([
        sends(&to(b).tcp(5432, 40_000, SYN_ACK)).view(OPEN).replies(0),
        gets(&from(b).tcp(40_000, 5432, tcp::ACK)).view(OPEN).goes_on(0),
    ]);
}

fn echoes_are_told_apart_by_who_asks() {
    for family in FAMILIES {
        let b = B.ip(family);
        Lab::new().check([
            sends(&to(b).icmp_echo(7, 1)).begins(Rule, 4),
            gets(&from(b).icmp_echo(7, 1)).begins(Rule, 3),
            gets(&from(b).icmp_echo_reply(7, 1)).replies(4),
            sends(&to(b).icmp_echo_reply(7, 1)).replies(3),
            sends(&to(b).icmp_echo(7, 2)).goes_on(4),
            gets(&from(b).icmp_echo(7, 2)).goes_on(3),
            gets(&from(b).icmp_echo_reply(8, 1)).settled(NoFlow),
            gets(&from(world(family)).icmp_echo_reply(7, 1)).mark(0).settled(NoFlow),
        ]);
    }
}

fn an_unasked_echo_reply_begins_nothing() {
    for family in FAMILIES {
        let b = B.ip(family);
        let mut lab = Lab::open();
        lab.check([gets(&from(b).icmp_echo_reply(7, 1)).view(OPEN).passes_alone(NotIsolated, 0)]);
        // Nobody may be asked, and an answer before the question does not change that.
        lab.tables.set_policy(11, &[Line::everything(everyone(Action::Deny, Isolated, ISOLATED))]);
        lab.tables.set_view(3, 3, 11, View::OPEN_INGRESS);
        lab.publish(2, 3, Mode::Enforce);
        lab.check([
            gets(&from(b).icmp_echo_reply(7, 1)).view(3).passes_alone(NotIsolated, 0),
            sends(&to(b).icmp_echo(7, 1)).view(3).refused(Isolated, ISOLATED),
        ]);
    }
}

fn errors_pass_about_own_flows_only() {
    for family in FAMILIES {
        let b = B.ip(family);
        let router = NODE_B.ip(family);
        let request = to(b).tcp(40_000, 8080, tcp::SYN);
        let question = from(b).udp(40_000, 53).payload(8);
        let ping = to(b).icmp_echo(7, 1);
        let errors = [
            IcmpError::PortUnreachable,
            IcmpError::HostUnreachable,
            IcmpError::AdminProhibited,
            IcmpError::TooBig { mtu: 1280 },
            IcmpError::TimeExceeded,
            IcmpError::ParameterProblem { pointer: 6 },
        ];
        let mut lab = Lab::new();
        lab.check([sends(&request).begins(Rule, 1), gets(&question).begins(Rule, 2), sends(&ping).begins(Rule, 4)]);
        for error in errors {
            lab.check([
                // About what the workload sent, and about what it got; also from routers, and about echoes.
                gets(&from(b).icmp_error(error, &request)).settled(Related),
                gets(&from(router).icmp_error(error, &request)).mark(0).settled(Related),
                gets(&from(b).icmp_error(error, &ping)).settled(Related),
                sends(&to(b).icmp_error(error, &question)).settled(Related),
                gets(&from(b).icmp_error(error, &to(b).udp(53, 40_000))).settled(Related),
                // About a flow that nobody has.
                gets(&from(b).icmp_error(error, &to(b).tcp(40_001, 8080, tcp::SYN))).settled(NoFlow),
                sends(&to(b).icmp_error(error, &from(b).udp(40_000, 54))).settled(NoFlow),
                // To the workload about what it got, and the other way round.
                gets(&from(b).icmp_error(error, &question)).settled(NoFlow),
                sends(&to(b).icmp_error(error, &request)).settled(NoFlow),
                // Between others.
                gets(&from(b).icmp_error(error, &Frame::bare().ip(local(family), b).tcp(40_000, 8080, tcp::SYN)))
                    .settled(NoFlow),
                // To somebody else than who sent what it is about.
                sends(&to(world(family)).icmp_error(error, &question)).settled(NoFlow),
                // Forged on the underlay.
                gets(&from(b).icmp_error(error, &request)).mark(0).settled(PlainOverlaySource),
            ]);
        }
        // About the same ports of another protocol.
        let about = Frame::bare().ip(A.ip(family), b).udp(40_000, 8080);
        lab.check([gets(&from(b).icmp_error(IcmpError::PortUnreachable, &about)).settled(NoFlow)]);
        // About flows that were not judged since: by what holds now.
        let all = |settled: Reason| {
            [
                gets(&from(b).icmp_error(IcmpError::PortUnreachable, &request)).settled(settled),
                gets(&from(b).icmp_error(IcmpError::PortUnreachable, &ping)).settled(settled),
                gets(&from(b).icmp_error(IcmpError::PortUnreachable, &to(b).udp(53, 40_000))).settled(settled),
                sends(&to(b).icmp_error(IcmpError::PortUnreachable, &question)).settled(settled),
            ]
        };
        lab.publish(2, CLOSED, Mode::Enforce);
        lab.check(all(Related));
        revoke(&mut lab, 3);
        lab.check(all(NoFlow));
        assert_eq!(lab.flows(), 3, "an error forgets nothing");
        // About what the workload sent to its node, which is the node then, whoever forwards the packets.
        let mut lab = Lab::new();
        let node = NODE_A.ip(family);
        lab.tables.set_policy(12, &[Line::everything(allow(1, selector::NODE))]);
        lab.tables.set_view(3, 1, 12, 0);
        lab.publish(1, 3, Mode::Enforce);
        lab.check([sends(&to(node).udp(1, 9)).view(3).begins(Rule, 1)]);
        lab.publish(2, 3, Mode::Enforce);
        let error = from(node).icmp_error(IcmpError::PortUnreachable, &to(node).udp(1, 9));
        lab.check([gets(&error).by_node().settled(Related)]);
    }
}

fn an_error_never_makes_a_flow() {
    for family in FAMILIES {
        let b = B.ip(family);
        let error = |frame: Frame, about: &Frame| frame.icmp_error(IcmpError::PortUnreachable, about);
        let (out, back) = (error(to(b), &from(b).udp(1, 9)), error(from(b), &to(b).udp(9, 1)));
        Lab::open().check([
            sends(&out).settled(NotIsolated),
            sends(&out).settled(NotIsolated),
            gets(&back).settled(NotIsolated),
        ]);
        // Open outwards: an error that went out is no reason to let others in.
        let mut lab = Lab::new();
        lab.tables.set_view(3, 1, 3, View::OPEN_EGRESS);
        lab.publish(1, 3, Mode::Enforce);
        lab.check([sends(&out).settled(NotIsolated), gets(&back).settled(NoFlow)]);
        // A rule that allows anything to somebody allows no errors about nothing.
        let node = NODE_A.ip(family);
        lab.check([gets(&error(from(node), &to(node).udp(9, 1))).by_node().settled(NoFlow)]);
    }
}

fn errors_about_fragments_and_rubbish_are_refused() {
    for family in ["ipv4", "ipv6"] {
        for name in ["stranger", "quote-ip", "quote-cut", "quote-none", "quote-junk"] {
            let frame = named(&format!("{family}/icmp/{name}")).frame;
            Lab::new().check([gets(&Raw(to_a(frame.build())).frame()).settled(NoFlow)]);
        }
        Lab::new().check([sends(&named(&format!("{family}/icmp/about-error")).frame).settled(NoFlow)]);
    }
    let b = B.ip(Family::V4);
    let later = Frame::bare().ip(A.ip(Family::V4), b).fragment(7, 1480, false).raw_l4(proto::UDP, &[0; 16]);
    Lab::new().check([
        sends(&to(b).tcp(40_000, 8080, tcp::SYN)).begins(Rule, 1),
        gets(&from(b).icmp_error(IcmpError::TimeExceeded, &later)).settled(NoFlow),
    ]);
}

/// The frame on `A`'s link.
fn to_a(mut frame: Vec<u8>) -> Vec<u8> {
    if let Some(destination) = frame.first_chunk_mut() {
        *destination = A.mac;
    }
    frame
}

/// Bytes of a frame as they are.
struct Raw(Vec<u8>);

impl Raw {
    fn frame(self) -> Frame {
        Frame::bare().bytes(&self.0)
    }
}

fn other_icmp_has_no_replies() {
    let b = B.ip(Family::V4);
    let mut lab = Lab::new();
    lab.tables.set_view(3, 1, 3, View::OPEN_EGRESS);
    lab.publish(1, 3, Mode::Enforce);
    // A question of the other side is no answer, nor is what they call the answer: nothing tells whose it is.
    lab.check([
        sends(&to(b).icmp(13, 0, [0; 4]).payload(12)).view(3).begins(NotIsolated, 0),
        sends(&to(b).icmp(13, 0, [0; 4]).payload(12)).view(3).goes_on(0),
        gets(&from(b).icmp(13, 0, [0; 4]).payload(12)).view(3).refused(Isolated, ISOLATED),
        gets(&from(b).icmp(14, 0, [0; 4]).payload(12)).view(3).refused(Isolated, ISOLATED),
    ]);
    lab.publish(2, OPEN, Mode::Enforce);
    lab.check([
        gets(&from(b).icmp(13, 0, [0; 4]).payload(12)).view(OPEN).begins(NotIsolated, 0),
        sends(&to(b).icmp(13, 0, [0; 4]).payload(12)).view(OPEN).passes_alone(NotIsolated, 0),
    ]);
}

fn fragments_pass_open_directions_only() {
    for family in FAMILIES {
        let b = B.ip(family);
        let pieces = |frame: Frame| frame.udp(40_000, 53).payload(64).fragmented(0, 32, 9);
        let mut lab = Lab::new();
        for piece in pieces(from(b)) {
            lab.check([gets(&piece).settled(Fragment)]);
        }
        for piece in pieces(to(b)) {
            lab.check([sends(&piece).settled(Fragment)]);
        }
        // Also those of a flow: its ports are in the first one only.
        lab.check([gets(&from(b).udp(40_000, 53)).begins(Rule, 2)]);
        for piece in pieces(from(b)) {
            lab.check([gets(&piece).settled(Fragment)]);
        }
        let mut lab = Lab::open();
        for piece in pieces(from(b)) {
            lab.check([gets(&piece).settled(NotIsolated)]);
        }
        for piece in pieces(to(b)) {
            lab.check([sends(&piece).settled(NotIsolated)]);
        }
        // One direction open.
        lab.tables.set_view(3, 1, 3, View::OPEN_EGRESS);
        lab.publish(2, 3, Mode::Enforce);
        for piece in pieces(from(b)) {
            lab.check([gets(&piece).settled(Fragment)]);
        }
        for piece in pieces(to(b)) {
            lab.check([sends(&piece).settled(NotIsolated)]);
        }
        // Fragments forge no sources.
        let forged = Frame::eth(A.mac, BRIDGE).ip(local(family), b);
        for piece in pieces(forged) {
            lab.check([sends(&piece).settled(SpoofedSource)]);
        }
    }
}

fn a_first_fragment_is_read() {
    for family in FAMILIES {
        let node = NODE_B.ip(family);
        let [first, later, ..] = &to(node).udp(40_000, VXLAN_PORT).payload(64).fragmented(0, 32, 9)[..] else {
            panic!()
        };
        Lab::open().check([
            sends(first).settled(Tunnel).starts(1),
            // Nothing is reassembled without the first.
            sends(later).settled(NotIsolated),
        ]);
    }
    // Neighbour discovery in fragments (RFC 6980), from a workload that nothing isolates.
    let claim = Frame::eth(A.mac, multicast_mac(all_nodes())).ipv6(A.v6, all_nodes()).nd_na(
        B.v6,
        0x20,
        &[NdOption::Target(A.mac)],
    );
    Lab::open().check([
        sends(&claim.fragmented(0, 24, 9)[0]).settled(SpoofedResolution),
        // Cut in what it claims.
        sends(&claim.fragmented(0, 16, 9)[0]).settled(Malformed),
    ]);
    let claim = Frame::eth(BRIDGE, multicast_mac(all_nodes())).ipv6(B.v6, all_nodes()).nd_na(
        B.v6,
        0x20,
        &[NdOption::Target(B.mac)],
    );
    Lab::open().check([gets(&claim.fragmented(0, 24, 9)[0]).settled(SpoofedResolution)]);
    // A header that the first fragment cuts.
    let cut = named("ipv4/fragment/tiny").frame;
    Lab::open().check([sends(&cut).settled(Malformed)]);
}

fn all_nodes() -> Ipv6Addr {
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)
}

fn whole_packets_in_fragment_headers_are_whole() {
    let b = B.ip(Family::V6);
    Lab::new().check([
        gets(&from(b).fragment(7, 0, false).tcp(40_000, 5432, tcp::SYN)).begins(Rule, 1),
        sends(&to(b).fragment(7, 0, false).tcp(5432, 40_000, SYN_ACK)).replies(1),
    ]);
}

fn the_node_is_not_what_passes_through_it() {
    for family in FAMILIES {
        let (own, other) = (NODE_A.ip(family), NODE_B.ip(family));
        Lab::new().check([
            gets(&from(own).tcp(40_000, 9999, tcp::SYN)).by_node().begins(Rule, 4),
            sends(&to(own).tcp(9999, 40_000, SYN_ACK)).replies(4),
            gets(&from(own).icmp_echo(7, 1)).by_node().begins(Rule, 4),
            sends(&to(own).icmp_echo_reply(7, 1)).replies(4),
            // With the node's address, through it: world and nodes, not the node.
            gets(&from(own).tcp(40_001, 9999, tcp::SYN)).mark(0).refused(Isolated, ISOLATED),
            gets(&from(own).tcp(40_001, 8443, tcp::SYN)).mark(0).begins(Rule, 5),
            sends(&to(own).tcp(8443, 40_001, SYN_ACK)).replies(5),
            gets(&from(own).tcp(40_001, 8443, DATA)).mark(0).goes_on(5),
            gets(&from(other).tcp(40_001, 8443, tcp::SYN)).mark(0).begins(Rule, 5),
            // Another node is no world when it is spoken to.
            sends(&to(other).udp(40_000, 53)).begins(Rule, 3),
            // A process of the node that uses another address is judged by that.
            gets(&from(world(family)).tcp(40_001, 9999, tcp::SYN)).by_node().refused(Isolated, ISOLATED),
            gets(&from(world(family)).tcp(40_001, 8443, tcp::SYN)).by_node().begins(Rule, 5),
        ]);
    }
}

fn a_flow_of_the_node_does_not_open_for_what_passes_through_it() {
    for family in FAMILIES {
        let own = NODE_A.ip(family);
        let mut lab = Lab::new();
        lab.check([
            gets(&from(own).tcp(40_000, 9999, tcp::SYN)).by_node().begins(Rule, 4),
            gets(&from(own).udp(40_000, 9999)).by_node().begins(Rule, 4),
            gets(&from(own).tcp(40_000, 9999, tcp::SYN)).mark(0).refused(Isolated, ISOLATED),
            gets(&from(own).tcp(40_000, 9999, DATA)).mark(0).settled(NoFlow),
            gets(&from(own).udp(40_000, 9999)).mark(0).refused(Isolated, ISOLATED),
            // The node's own go on.
            gets(&from(own).tcp(40_000, 9999, DATA)).by_node().goes_on(4),
            sends(&to(own).udp(9999, 40_000)).replies(4),
        ]);
        lab.publish(2, CLOSED, Mode::Enforce);
        lab.check([
            gets(&from(own).tcp(40_000, 9999, DATA)).mark(0).settled(NoFlow),
            sends(&to(own).tcp(9999, 40_000, DATA)).replies(4),
            // The other way round: the masqueraded one was there first.
            gets(&from(own).tcp(40_001, 8443, tcp::SYN)).mark(0).begins(Rule, 5),
            gets(&from(own).tcp(40_001, 8443, tcp::SYN)).by_node().begins(Rule, 4).replaces(),
            gets(&from(own).tcp(40_001, 8443, DATA)).mark(0).begins(Rule, 5).replaces(),
        ]);
    }
}

fn local_senders_are_known_by_their_marks() {
    let settled = LOCAL | mark::FINAL;
    for family in FAMILIES {
        let (peer, own, world) = (local(family), NODE_A.ip(family), world(family));
        let syn = |port| from(peer).tcp(port, 5432, tcp::SYN);
        let mut lab = Lab::new();
        lab.check([
            gets(&syn(1)).mark(settled).begins(Rule, 1),
            // Whoever has its address and not its mark is somebody else, in a flow that is known as well.
            gets(&syn(2)).mark(0).settled(PlainOverlaySource),
            gets(&syn(2)).mark(mark::VERIFIED).settled(PlainOverlaySource),
            gets(&syn(2)).mark(77 | mark::FINAL).settled(PlainOverlaySource),
            gets(&syn(1)).mark(0).settled(PlainOverlaySource),
            gets(&from(peer).tcp(1, 5432, DATA)).mark(0).settled(PlainOverlaySource),
            gets(&from(peer).tcp(1, 5432, DATA)).mark(settled).goes_on(1),
            // An address that the node put in place of its own changes nothing: the rule is for the peer.
            gets(&from(own).tcp(3, 5432, tcp::SYN)).mark(settled).begins(Rule, 1),
            gets(&from(own).tcp(3, 5432, DATA)).mark(settled).goes_on(1),
            sends(&to(own).tcp(5432, 3, DATA)).replies(1),
            // The same from outside, on the same ports, is another's.
            gets(&from(own).tcp(3, 5432, DATA)).mark(0).settled(NoFlow),
            gets(&from(world).tcp(4, 8443, tcp::SYN)).mark(settled).refused(Isolated, ISOLATED),
            // Answers are the peer's as well.
            sends(&to(peer).tcp(5, 8080, tcp::SYN)).begins(Rule, 1),
            gets(&from(peer).tcp(8080, 5, SYN_ACK)).mark(0).settled(PlainOverlaySource),
            gets(&from(peer).tcp(8080, 5, SYN_ACK)).mark(settled).replies(1),
        ]);
        lab.publish(2, CLOSED, Mode::Enforce);
        lab.check([
            gets(&from(peer).tcp(1, 5432, DATA)).mark(0).settled(PlainOverlaySource),
            gets(&from(peer).tcp(1, 5432, DATA)).mark(settled).goes_on(1),
            sends(&to(own).tcp(5432, 3, DATA)).replies(1),
            gets(&from(own).tcp(3, 5432, DATA)).mark(settled).goes_on(1),
        ]);
    }
}

fn processes_of_the_node_carry_no_marks() {
    for family in FAMILIES {
        let own = NODE_A.ip(family);
        let mut lab = Lab::new();
        lab.tables.words.insert(LOCAL, EndpointWord::default());
        lab.check([
            // The slot in the mark is nobody's.
            gets(&from(own).tcp(1, 9999, tcp::SYN)).by_node().mark(LOCAL).begins(Rule, 4),
            // In a workload's name it needs what the workload may.
            gets(&from(local(family)).tcp(1, 5432, tcp::SYN)).by_node().settled(PlainOverlaySource),
        ]);
    }
}

fn deadlines_pass_from_view_to_view() {
    for family in FAMILIES {
        let b = B.ip(family);
        let syn = |port| gets(&from(b).tcp(port, 5432, tcp::SYN));
        let mut lab = Lab::new();
        // Each view allows until its deadline; the last one isolates.
        for i in 0..VIEW_CHAIN {
            lab.tables.set_view(10 + i, if i == VIEW_CHAIN - 1 { 99 } else { 1 }, 2, 0);
            let view = lab.tables.views.get_mut(&(10 + i)).unwrap();
            (view.deadline, view.next) = (1_000_010 + u64::from(i) * 10, 11 + i);
        }
        lab.tables.set_view(10 + VIEW_CHAIN, 1, 2, 0);
        lab.publish(1, 10, Mode::Enforce);
        lab.check([syn(1).view(10).begins(Rule, 1)]);
        lab.tables.now = 1_000_009;
        lab.check([syn(1).view(10).goes_on(1)]);
        lab.tables.now = 1_000_010;
        lab.check([
            syn(1).view(11).goes_on(1),
            sends(&to(b).tcp(5432, 1, SYN_ACK)).view(11).replies(1),
            syn(2).view(11).begins(Rule, 1),
        ]);
        let (end, last) = (1_000_000 + 10 * u64::from(VIEW_CHAIN - 1), 9 + VIEW_CHAIN);
        lab.tables.now = end - 1;
        lab.check([sends(&to(b).tcp(5432, 2, SYN_ACK)).view(last - 1).replies(1)]);
        lab.tables.now = end;
        lab.check([syn(1).view(last).refused(Isolated, 0), sends(&to(b).tcp(5432, 2, DATA)).settled(Revoked)]);
        // A chain ends, whatever it points to.
        lab.tables.now = end + 10;
        lab.check([syn(1).settled(Pending), sends(&to(b).tcp(1, 8080, tcp::SYN)).settled(Pending)]);
        lab.tables.views.get_mut(&last).unwrap().next = 10;
        lab.check([syn(1).settled(Pending)]);
    }
}

/// A node on which `A`'s ingress is this list, for everything.
fn ruled(entries: &[Entry]) -> Lab {
    let mut lab = Lab::new();
    let lines: Vec<_> = entries.iter().copied().map(Line::everything).collect();
    lab.tables.set_policy(5, &lines);
    lab.tables.set_view(3, 5, 2, 0);
    lab.publish(1, 3, Mode::Enforce);
    lab
}

const DENY: Entry = everyone(Action::Deny, Isolated, ISOLATED);

/// What `entries` say of a packet of the peer.
fn decides(entries: &[Entry], allowed: bool, reason: Reason, rule: u16) {
    for family in FAMILIES {
        let packet = gets(&from(B.ip(family)).udp(1, 2)).view(3);
        let step = if allowed { packet.begins(reason, rule) } else { packet.refused(reason, rule) };
        ruled(entries).check([step]);
    }
}

fn at(tier: u8, entry: Entry) -> Entry {
    Entry { tier, ..entry }
}

fn tiers_and_pass() {
    let peer = |action, rule| entry(action, if action == Action::Allow { Rule } else { DeniedByRule }, rule, &[0]);
    let pass = |rule| peer(Action::Pass, rule);
    // The first that matches decides.
    decides(&[peer(Action::Allow, 1), peer(Action::Deny, 2)], true, Rule, 1);
    decides(&[peer(Action::Deny, 1), peer(Action::Allow, 2)], false, DeniedByRule, 1);
    // Pass leaves it to the next tier, whatever else its own says.
    decides(&[pass(1), peer(Action::Deny, 2), at(1, peer(Action::Allow, 3)), at(1, DENY)], true, Rule, 3);
    decides(&[pass(1), peer(Action::Allow, 2), at(1, DENY)], false, Isolated, ISOLATED);
    decides(&[pass(1), at(1, pass(2)), at(1, peer(Action::Deny, 3)), at(2, peer(Action::Allow, 4))], true, Rule, 4);
    decides(&[at(3, pass(1)), at(3, DENY), at(7, peer(Action::Allow, 2))], true, Rule, 2);
    // No match is a pass.
    decides(&[entry(Action::Deny, DeniedByRule, 1, &[1]), at(1, peer(Action::Allow, 2))], true, Rule, 2);
    // There is nothing behind the last tier.
    decides(&[at(255, pass(1)), at(255, peer(Action::Allow, 2))], false, Isolated, 0);
    // Across blocks of a list.
    let mut long = vec![pass(1)];
    long.extend([peer(Action::Deny, 2); 9]);
    long.push(at(1, peer(Action::Allow, 3)));
    decides(&long, true, Rule, 3);
    // Nothing decides: isolated, by rule 0.
    decides(&[pass(1)], false, Isolated, 0);
    decides(&[], false, Isolated, 0);
}

fn audited_entries_change_nothing() {
    let audited = |entry: Entry| Entry { flags: entry.flags | Entry::AUDIT, ..entry };
    let peer = |action, rule| entry(action, Rule, rule, &[0]);
    decides(&[audited(peer(Action::Allow, 1)), DENY], false, Isolated, ISOLATED);
    decides(&[audited(peer(Action::Deny, 1)), peer(Action::Allow, 2)], true, Rule, 2);
    decides(&[audited(everyone(Action::Deny, DeniedByRule, 1)), peer(Action::Allow, 2)], true, Rule, 2);
    decides(&[audited(peer(Action::Pass, 1)), peer(Action::Allow, 2), at(1, DENY)], true, Rule, 2);
}

fn actions_that_are_unknown_deny() {
    for action in (0..=u8::MAX).filter(|action| ![Action::Allow as u8, Action::Pass as u8].contains(action)) {
        decides(&[Entry { action, ..everyone(Action::Deny, DeniedByRule, 1) }], false, DeniedByRule, 1);
    }
    // Reserved: it drops, and says nothing.
    decides(&[everyone(Action::Reject, DeniedByRule, 1)], false, DeniedByRule, 1);
}

fn an_allow_allows_whatever_reason_it_gives() {
    decides(&[everyone(Action::Allow, Isolated, 1)], true, Isolated, 1);
    decides(&[everyone(Action::Deny, Rule, 1)], false, Rule, 1);
}

fn counters_may_have_any_number() {
    let mut lab = Lab::new();
    lab.tables.rule_counters.values_mut().for_each(|counter| *counter = u32::MAX);
    for (packet, count) in [
        (gets(&from(B.v4.into()).udp(1, 53)), [0, 1]),
        (sends(&to(B.v4.into()).udp(53, 1)), [1, 1]),
        (sends(&to(B.v4.into()).udp(53, 2)), [1, 2]),
    ] {
        packet.judge(&lab.tables);
        let counters = lab.tables.counters();
        // Replies count in the next one, wherever that is.
        assert_eq!([0, u32::MAX].map(|index| counters.get(&index).map_or(0, |counter| counter.packets)), count);
    }
}

fn lists_chain_eight_blocks() {
    let last = (LIST_CHAIN as usize) * LIST_ENTRIES - 1;
    let other = entry(Action::Deny, DeniedByRule, 1, &[1]);
    let found = entry(Action::Allow, Rule, 2, &[0]);
    for at in [0, 1, 7, 8, 15, 16, last - 1, last] {
        let mut entries = vec![other; at];
        entries.push(found);
        decides(&entries, true, Rule, 2);
    }
    // What lies behind them is not read, and denies.
    let mut entries = vec![other; last + 1];
    entries.push(found);
    decides(&entries, false, Isolated, 0);
    // A chain that runs in a circle ends.
    let mut lab = ruled(&[other]);
    for (index, list) in &mut lab.tables.lists {
        list.next = *index;
    }
    lab.check([gets(&from(B.v4.into()).udp(1, 2)).view(3).refused(Isolated, 0)]);
}

fn port_tables_cut_where_they_say() {
    let everywhere = [Class::Tcp, Class::Udp, Class::Sctp];
    // Ends of the axis.
    for ports in [0..=0, 65_535..=65_535, 0..=65_535, 1..=65_534, 1023..=1024] {
        let (first, last) = (*ports.start(), *ports.end());
        let mut lab = Lab::new();
        let line = Line { classes: everywhere.to_vec(), values: ports.clone(), entry: allow(1, selector::PEER) };
        lab.tables.set_policy(5, &[line, Line::everything(DENY)]);
        lab.tables.set_view(3, 5, 2, 0);
        lab.publish(1, 3, Mode::Enforce);
        for port in [0, first.saturating_sub(1), first, first / 2 + last / 2, last, last.saturating_add(1), 65_535] {
            for frame in [
                from(B.v4.into()).tcp(7, port, tcp::SYN),
                from(B.v6.into()).udp(7, port),
                from(B.v4.into()).sctp(7, port),
            ] {
                let packet = gets(&frame).view(3);
                let fits = ports.contains(&port);
                lab.check([if fits { packet.begins(Rule, 1) } else { packet.refused(Isolated, ISOLATED) }]);
                lab.tables.forget(SLOT);
            }
        }
    }
    // As many intervals as there is room for, one rule each; every number of them that one table has, and some for which it goes on.
    let more = [PORT_INTERVALS + 1, 2 * PORT_INTERVALS, 2 * PORT_INTERVALS + 1, SET_INTERVALS - 1, SET_INTERVALS];
    for intervals in (1..=PORT_INTERVALS).chain(more) {
        let rule = |i: usize| u16::try_from(i % 128).unwrap();
        let start = |i: usize| u16::try_from(i * 83).unwrap();
        let end = |i: usize| if i + 1 == intervals { u16::MAX } else { start(i + 1) - 1 };
        let line = |i: usize| Line::new(Class::Udp, start(i)..=end(i), allow(rule(i), selector::PEER));
        let mut lab = Lab::new();
        lab.tables.set_policy(5, &(0..intervals).map(line).collect::<Vec<_>>());
        lab.tables.set_view(3, 5, 2, 0);
        lab.publish(1, 3, Mode::Enforce);
        for i in 0..intervals {
            for port in [start(i), start(i) / 2 + end(i) / 2, end(i)] {
                lab.check([gets(&from(B.v4.into()).udp(7, port)).view(3).begins(Rule, rule(i))]);
                lab.tables.forget(SLOT);
            }
        }
    }
    // Other axes: ICMP type and code, protocol number.
    let mut lab = Lab::new();
    let line = |class, value, rule| Line::new(class, value..=value, allow(rule, selector::PEER));
    lab.tables.set_policy(
        5,
        &[
            line(Class::Icmp, 13 << 8 | 2, 1),
            line(Class::Icmp6, 139 << 8 | 1, 2),
            line(Class::Other, 255, 3),
            line(Class::Other, 0, 4),
            line(Class::Other, u16::from(proto::ICMPV6), 5),
            Line::everything(DENY),
        ],
    );
    lab.tables.set_view(3, 5, 2, 0);
    lab.publish(1, 3, Mode::Enforce);
    let (v4, v6) = (IpAddr::from(B.v4), IpAddr::from(B.v6));
    lab.check([
        gets(&from(v4).icmp(13, 2, [0; 4])).view(3).begins(Rule, 1),
        gets(&from(v4).icmp(13, 1, [0; 4])).view(3).refused(Isolated, ISOLATED),
        gets(&from(v6).icmp(139, 1, [0; 4])).view(3).begins(Rule, 2),
        gets(&from(v6).icmp(139, 0, [0; 4])).view(3).refused(Isolated, ISOLATED),
        gets(&from(v4).raw_l4(255, &[0; 8])).view(3).begins(Rule, 3),
        gets(&from(v4).raw_l4(254, &[0; 8])).view(3).refused(Isolated, ISOLATED),
        gets(&from(v4).raw_l4(0, &[0; 8])).view(3).begins(Rule, 4),
        // The other family's ICMP is just another protocol.
        gets(&from(v4).raw_l4(proto::ICMPV6, &[128, 0, 0, 0, 0, 7, 0, 1])).view(3).begins(Rule, 5),
        gets(&from(v6).raw_l4(proto::ICMP, &[8, 0, 0, 0, 0, 7, 0, 1])).view(3).refused(Isolated, ISOLATED),
    ]);
}

fn entries_tell_their_rule_by_rank() {
    // Rules 20, 21, 22 and 23 for four selectors in the second word; the peer's row has the third.
    let far = entry(Action::Allow, Rule, 20, &[65, 68, selector::FAR, 127]);
    let mut lab = ruled(&[entry(Action::Allow, Rule, 1, &[selector::FAR - 64]), far, DENY]);
    lab.tables.set_address(VNI, B.v4.into(), row::FAR, 0, AddressWord::ENCAPSULATED);
    lab.check([gets(&from(B.v4.into()).udp(1, 2)).view(3).begins(Rule, 22)]);
    lab.tables.set_row(row::FAR.into(), &[127]);
    lab.check([gets(&from(B.v4.into()).udp(1, 3)).view(3).begins(Rule, 23)]);
    // The lowest of several.
    lab.tables.set_row(row::FAR.into(), &[127, 68, 66]);
    lab.check([gets(&from(B.v4.into()).udp(1, 4)).view(3).begins(Rule, 21)]);
    lab.tables.set_row(row::FAR.into(), &[66]);
    lab.check([gets(&from(B.v4.into()).udp(1, 5)).view(3).refused(Isolated, ISOLATED)]);
}

fn what_is_missing_denies() {
    let syn = || gets(&from(B.v4.into()).udp(1, 53));
    let publish = |lab: &mut Lab, set| {
        lab.tables.set_view(3, set, set, 0);
        lab.publish(1, 3, Mode::Enforce);
    };
    // No set, no table, an empty table, no list.
    for set in [0, 77, u32::MAX] {
        let mut lab = Lab::new();
        publish(&mut lab, set);
        lab.check([syn().view(3).refused(Isolated, 0)]);
    }
    let mut lab = Lab::new();
    publish(&mut lab, 1);
    lab.tables.ports.insert(Class::COUNT + Class::Udp as u32, Default::default());
    lab.check([syn().view(3).refused(Isolated, 0)]);
    let mut lab = Lab::new();
    publish(&mut lab, 1);
    lab.tables.lists.clear();
    lab.check([syn().view(3).refused(Isolated, 0)]);
    // List 0 is none, whatever lies there.
    let mut lab = Lab::new();
    publish(&mut lab, 1);
    let list = lab.tables.lists[&1];
    lab.tables.lists.insert(0, list);
    lab.tables.ports.values_mut().for_each(|table| table.lists = [0; PORT_INTERVALS]);
    lab.check([syn().view(3).refused(Isolated, 0)]);
    // A table that goes on in one that is not there, in itself, and in one that goes on.
    for set in [77, u32::MAX, 1] {
        let mut lab = Lab::new();
        publish(&mut lab, 1);
        lab.tables.ports.values_mut().for_each(|table| table.lists = [set | PortTable::MORE; PORT_INTERVALS]);
        lab.check([syn().view(3).refused(Isolated, 0)]);
    }
    // No endpoint, though its flow is there.
    let mut lab = Lab::new();
    lab.check([syn().begins(Rule, 2), syn().goes_on(2)]);
    lab.tables.infos.get_mut(&SLOT).expect("A's").identity = 0;
    lab.check([syn().settled(NoEndpoint)]);
    // No view.
    let mut lab = Lab::new();
    lab.publish(1, 60, Mode::Enforce);
    lab.check([syn().settled(Pending)]);
    lab.tables.views.insert(60, View::default());
    lab.check([syn().settled(Pending)]);
    // No row, no prefix.
    let mut lab = Lab::new();
    lab.tables.rows.clear();
    lab.check([syn().refused(Isolated, ISOLATED)]);
    let mut lab = Lab::new();
    lab.tables.prefixes4.clear();
    lab.check([gets(&from(world(Family::V4)).tcp(1, 8443, tcp::SYN)).mark(0).refused(Isolated, ISOLATED)]);
}

fn foreign_tags_tell_nothing() {
    for family in FAMILIES {
        let packet = || gets(&from(B.ip(family)).udp(1, 53));
        let mut lab = Lab::new();
        let [a4, a6] = [words(B.v4.into()), words(B.v6.into())];
        let (key4, key6) = (AddressKey4 { segment: VNI, address: a4[3] }, AddressKey6 { segment: VNI, address: a6 });
        for word in [lab.tables.addresses4.get_mut(&key4).unwrap(), lab.tables.addresses6.get_mut(&key6).unwrap()] {
            *word ^= 1 << 40;
        }
        // Whatever a prefix says, and whether or not anything isolates: nobody knows whose it is.
        lab.check([packet().settled(Changing)]);
        lab.publish(1, OPEN, Mode::Enforce);
        lab.check([packet().settled(Changing), sends(&to(B.ip(family)).udp(1, 53)).settled(Changing)]);
        // Another segment's address is another's.
        let mut lab = Lab::new();
        lab.tables.infos.get_mut(&SLOT).unwrap().segment = 2;
        lab.check([packet().refused(Isolated, ISOLATED)]);
    }
}

fn longest_prefixes_decide() {
    for family in FAMILIES {
        let (inside, outside, wide, narrow): (IpAddr, IpAddr, _, _) = match family {
            Family::V4 => (Ipv4Addr::new(198, 51, 100, 13).into(), Ipv4Addr::new(198, 51, 100, 12).into(), 24, 32),
            Family::V6 => (
                Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 13).into(),
                Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 12).into(),
                48,
                128,
            ),
        };
        let packet = |peer| gets(&from(peer).udp(1, 53)).mark(0);
        let mut lab = Lab::new();
        lab.tables.set_prefix(VNI, inside, wide, row::PEER, 0);
        lab.tables.set_prefix(VNI, inside, narrow, row::WORLD, 0);
        lab.check([packet(inside).refused(Isolated, ISOLATED), packet(outside).begins(Rule, 2)]);
        // Of another segment.
        let mut lab = Lab::new();
        lab.tables.set_prefix(VNI + 1, inside, wide, row::PEER, 0);
        lab.check([packet(inside).refused(Isolated, ISOLATED)]);
    }
}

fn groups() {
    let mdns4 = Ipv4Addr::new(224, 0, 0, 251);
    let mdns6 = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
    let group4 = [1, 0, 0x5e, 0, 0, 0xfb];
    let sent = [
        Frame::eth(A.mac, group4).ipv4(A.v4, mdns4).udp(5353, 5353),
        Frame::eth(A.mac, [0xff; 6]).ipv4(A.v4, Ipv4Addr::BROADCAST).udp(68, 67),
        Frame::eth(A.mac, multicast_mac(mdns6)).ipv6(A.v6, mdns6).udp(5353, 5353),
    ];
    let got = [
        Frame::eth(BRIDGE, group4).ipv4(B.v4, mdns4).udp(5353, 5353),
        Frame::eth(BRIDGE, [0xff; 6]).ipv4(B.v4, Ipv4Addr::BROADCAST).udp(68, 67),
        // To all of the subnet.
        Frame::eth(BRIDGE, [0xff; 6]).ipv4(B.v4, [10, 244, 1, 255].into()).udp(68, 67),
        Frame::eth(BRIDGE, multicast_mac(mdns6)).ipv6(B.v6, mdns6).udp(5353, 5353),
        // To the link's own MAC.
        Frame::eth(BRIDGE, A.mac).ipv4(B.v4, Ipv4Addr::BROADCAST).udp(68, 67),
        Frame::eth(BRIDGE, A.mac).ipv4(B.v4, mdns4).udp(5353, 5353),
    ];
    for frame in &sent {
        // A group is a peer like others: a flow of the sender, while nobody has one as a member.
        Lab::open().check([sends(frame).view(OPEN).begins(NotIsolated, 0), sends(frame).view(OPEN).goes_on(0)]);
    }
    for frame in &got {
        Lab::new().check([gets(frame).refused(Isolated, ISOLATED)]);
        Lab::open().check([
            gets(frame).view(OPEN).passes_alone(NotIsolated, 0),
            gets(frame).view(OPEN).passes_alone(NotIsolated, 0),
        ]);
    }
    let mut lab = Lab::new();
    lab.tables.prefixes4.clear();
    lab.tables.prefixes6.clear();
    for frame in &sent {
        lab.check([sends(frame).refused(Isolated, ISOLATED)]);
    }
}

fn frames_for_others() {
    for family in FAMILIES {
        let b = B.ip(family);
        Lab::open().check([
            gets(&Frame::eth(BRIDGE, B.mac).ip(b, A.ip(family)).udp(1, 53)).settled(NotForUs),
            gets(&Frame::eth(BRIDGE, A.mac).ip(b, local(family)).udp(1, 53)).settled(NotForUs),
            gets(&Frame::eth(BRIDGE, B.mac).vlan(5).ip(b, A.ip(family)).udp(1, 53)).settled(NotForUs),
            gets(&Frame::eth(BRIDGE, B.mac).ether_type(0x88b5).payload(46)).settled(NotForUs),
        ]);
    }
    Lab::open().check([gets(&Frame::eth(BRIDGE, B.mac).arp_request(B.mac, B.v4, A.v4)).settled(NotForUs)]);
}

/// What becomes of a frame that `A` sends, under any policy.
fn sent(name: &str, reason: Reason) {
    let frame = named(name).frame;
    for mut lab in [Lab::new(), Lab::open()] {
        lab.check([sends(&frame).settled(reason)]);
    }
}

/// The catalogue's frames of one kind whose Ethernet source is `A`.
fn from_a(kind: &str) -> Vec<(String, Health)> {
    catalogue()
        .into_iter()
        .filter(|entry| entry.name.starts_with(kind))
        .filter(|entry| entry.bytes()[6..12] == A.mac)
        .map(|entry| (entry.name, entry.health))
        .collect()
}

fn address_resolution() {
    for (name, health) in from_a("arp/") {
        match health {
            Health::Good => sent(&name, Resolution),
            Health::Bad(Part::Network) if name.starts_with("arp/cut") => sent(&name, Malformed),
            _ => sent(&name, SpoofedResolution),
        }
    }
    let claims = |mac: Mac, address: Ipv4Addr, reply: bool| {
        let frame = Frame::eth(A.mac, [0xff; 6]);
        let frame =
            if reply { frame.arp_reply(mac, address, BRIDGE, B.v4) } else { frame.arp_request(mac, address, B.v4) };
        sends(&frame)
    };
    for mut lab in [Lab::new(), Lab::open()] {
        lab.check([
            claims(A.mac, A.v4, true).settled(Resolution),
            claims(A.mac, B.v4, false).settled(SpoofedResolution),
            claims(A.mac, B.v4, true).settled(SpoofedResolution),
            claims(A.mac, [10, 244, 1, 1].into(), true).settled(SpoofedResolution),
            claims(A.mac, Ipv4Addr::UNSPECIFIED, true).settled(SpoofedResolution),
            claims(A.mac, Ipv4Addr::UNSPECIFIED, false).settled(Resolution),
            claims(B.mac, A.v4, false).settled(SpoofedResolution),
            claims(B.mac, Ipv4Addr::UNSPECIFIED, false).settled(SpoofedResolution),
            sends(&Frame::eth(B.mac, [0xff; 6]).arp_request(B.mac, B.v4, A.v4)).settled(SpoofedMac),
            // What arrives was checked where it left.
            gets(&Frame::eth(BRIDGE, [0xff; 6]).arp_request(B.mac, B.v4, A.v4)).settled(Resolution),
            gets(&Frame::eth(BRIDGE, A.mac).arp_reply(BRIDGE, [10, 244, 1, 1].into(), A.mac, A.v4)).settled(Resolution),
            gets(&Frame::eth(BRIDGE, A.mac).arp(9, B.mac, B.v4, A.mac, A.v4)).settled(SpoofedResolution),
            gets(&Frame::eth(BRIDGE, A.mac).arp_request(B.mac, B.v4, A.v4).truncate(41)).settled(Malformed),
        ]);
    }
    // Not more than padding.
    let long = Frame::eth(A.mac, [0xff; 6]).arp_request(A.mac, A.v4, B.v4);
    Lab::open().check([
        sends(&long.clone().payload(18)).settled(Resolution),
        sends(&long.payload(19)).settled(SpoofedResolution),
    ]);
    // Any of its own addresses.
    let second = Ipv4Addr::new(10, 244, 1, 50);
    let mut lab = Lab::new();
    lab.tables.set_info(SLOT, VNI, A.mac, &[A.v4.into(), second.into()]);
    lab.check([claims(A.mac, second, true).settled(Resolution)]);
}

/// What claims nothing that is another's; its receiver sees what is wrong with it.
const CLAIM_NOTHING: &[&str] = &[
    "nd/solicitation-code",
    "nd/solicitation-group",
    "nd/advertisement-solicited-group",
    "nd/solicitation-dad-source",
    "nd/solicitation-dad-unicast",
    "nd/option-cut",
    "nd/solicitation-fragment",
    "mld/no-router-alert",
    "mld/global-source",
];
/// What only routers say.
const OF_ROUTERS: &[&str] = &["nd/router-advertisement", "nd/redirect", "mld/query"];

fn neighbour_discovery() {
    let frames: Vec<_> = from_a("nd/").into_iter().chain(from_a("mld/")).collect();
    let harmless = |name: &String| CLAIM_NOTHING.contains(&name.as_str());
    assert_eq!(frames.iter().filter(|(name, _)| harmless(name)).count(), CLAIM_NOTHING.len());
    for (name, health) in &frames {
        match health {
            _ if OF_ROUTERS.contains(&name.as_str()) => sent(name, SpoofedResolution),
            Health::Good | Health::Odd => sent(name, Resolution),
            Health::Bad(Part::Message) if harmless(name) => sent(name, Resolution),
            Health::Bad(Part::Message) if name == "nd/solicitation-short" => sent(name, Resolution),
            Health::Bad(Part::Message) => sent(name, SpoofedResolution),
            Health::Bad(_) => panic!("{name}: {health:?}"),
        }
    }
    let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x42, 0xaff, 0xfef4, 0x105);
    let stranger = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x99);
    let outside = Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 1);
    // On its link, and nobody knows who it is.
    let beside = Ipv6Addr::from(u128::from(A.v6) ^ 0xff00);
    // A group whose members may be behind routers.
    let wide = Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0, 0x99);
    let says = |source: Ipv6Addr| Frame::eth(A.mac, multicast_mac(all_nodes())).ipv6(source, all_nodes());
    let own = [NdOption::Target(A.mac)];
    let source = [NdOption::Source(A.mac)];
    let many = |kind: u8, count: usize| vec![NdOption::Raw { kind, units: 1, body: vec![0; 6] }; count];
    Lab::open().check([
        sends(&says(A.v6).nd_na(A.v6, 0x20, &own)).settled(Resolution),
        sends(&says(link_local).nd_na(link_local, 0x20, &own)).settled(Resolution),
        sends(&says(link_local).nd_na(A.v6, 0x20, &own)).settled(Resolution),
        // Another's address, from another's address, with a link-local address that the MAC does not imply.
        sends(&says(A.v6).nd_na(B.v6, 0x20, &own)).settled(SpoofedResolution),
        sends(&says(B.v6).nd_na(A.v6, 0x20, &own)).settled(SpoofedResolution),
        sends(&says(A.v6).nd_na(stranger, 0x20, &own)).settled(SpoofedResolution),
        sends(&says(stranger).nd_na(A.v6, 0x20, &own)).settled(SpoofedResolution),
        sends(&says(Ipv6Addr::UNSPECIFIED).nd_na(A.v6, 0x20, &own)).settled(SpoofedResolution),
        // Who asks may have no address yet, or any link-local one.
        sends(&says(stranger).nd_ns(B.v6, &source)).settled(Resolution),
        sends(&says(B.v6).nd_ns(B.v6, &source)).settled(SpoofedResolution),
        sends(&says(B.v6).nd_rs(&source)).settled(SpoofedResolution),
        sends(&says(stranger).nd_rs(&[NdOption::Source(B.mac)])).settled(SpoofedResolution),
        sends(&says(B.v6).ttl(1).mld_report(all_nodes())).settled(SpoofedResolution),
        // A foreign MAC behind other options; more options than anybody needs.
        sends(&says(A.v6).nd_ns(B.v6, &[&many(253, 3)[..], &[NdOption::Source(B.mac)]].concat()))
            .settled(SpoofedResolution),
        sends(&says(A.v6).nd_ns(B.v6, &many(253, 3))).settled(Resolution),
        sends(&says(A.v6).nd_ns(B.v6, &many(253, 4))).settled(SpoofedResolution),
        // One that could carry more than a name.
        sends(&says(A.v6).nd_ns(B.v6, &[NdOption::Raw { kind: 253, units: 2, body: vec![0; 14] }]))
            .settled(SpoofedResolution),
        // To somebody who is known, or on the link; not to where a router would pass it on.
        sends(&to(B.v6.into()).nd_ns(B.v6, &source)).settled(Resolution),
        sends(&to(NODE_A.v6.into()).nd_na(A.v6, 0x60, &own)).settled(Resolution),
        sends(&to(stranger.into()).nd_ns(stranger, &source)).settled(Resolution),
        sends(&to(beside.into()).nd_na(A.v6, 0x60, &own)).settled(Resolution),
        sends(&to(unknown(Family::V6)).nd_na(A.v6, 0x60, &own)).settled(Resolution),
        sends(&to(outside.into()).nd_ns(outside, &source)).settled(SpoofedResolution),
        sends(&to(outside.into()).nd_na(A.v6, 0x60, &own)).settled(SpoofedResolution),
        sends(&to(outside.into()).nd_rs(&source)).settled(SpoofedResolution),
        sends(&to(wide.into()).nd_rs(&source)).settled(SpoofedResolution),
        sends(&to(wide.into()).mld_report(wide)).settled(Resolution),
        sends(&to(B.v6.into()).mld_report(all_nodes())).settled(SpoofedResolution),
        sends(&Frame::eth(B.mac, BRIDGE).ipv6(A.v6, B.v6).nd_na(A.v6, 0x20, &own)).settled(SpoofedMac),
    ]);
    // What arrives.
    let to_us =
        |source: Ipv6Addr| Frame::eth(BRIDGE, multicast_mac(solicited_node(A.v6))).ipv6(source, solicited_node(A.v6));
    let router = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    for mut lab in [Lab::new(), Lab::open()] {
        lab.check([
            gets(&to_us(B.v6).nd_ns(A.v6, &[NdOption::Source(B.mac)])).settled(Resolution),
            gets(&from(B.v6.into()).nd_na(B.v6, 0x60, &[NdOption::Target(B.mac)])).settled(Resolution),
            gets(&to_us(B.v6).nd_ns(A.v6, &[]).ttl(254)).settled(SpoofedResolution),
            gets(&to_us(router).nd_rs(&[])).settled(Resolution),
            gets(&to_us(router).nd_ra(0, 1800, &[])).mark(0).settled(Resolution),
            gets(&to_us(router).nd_ra(0, 1800, &[]).ttl(64)).mark(0).settled(SpoofedResolution),
            gets(&to_us(router).nd_ra(0, 1800, &[])).mark(LOCAL | mark::FINAL).settled(SpoofedResolution),
            gets(&to_us(router).nd_redirect(router, B.v6, &[])).mark(0).settled(Resolution),
            gets(&to_us(router).nd_redirect(router, B.v6, &[])).mark(LOCAL | mark::FINAL).settled(SpoofedResolution),
            gets(&to_us(router).mld_query(Ipv6Addr::UNSPECIFIED)).mark(0).settled(Resolution),
            gets(&to_us(router).mld_query(Ipv6Addr::UNSPECIFIED).ttl(2)).mark(0).settled(SpoofedResolution),
        ]);
    }
}

fn resolution_passes_what_has_no_policy_yet() {
    let mut lab = Lab::new();
    lab.publish(0, 0, Mode::Pending);
    lab.check([
        sends(&named("arp/request").frame).settled(Resolution),
        sends(&named("nd/solicitation").frame).settled(Resolution),
        gets(&Frame::eth(BRIDGE, A.mac).arp_reply(B.mac, B.v4, A.mac, A.v4)).settled(Resolution),
        gets(&from(B.v6.into()).nd_na(B.v6, 0x60, &[])).settled(Resolution),
        sends(&to(B.v4.into()).udp(1, 53)).settled(Pending),
        gets(&from(B.v6.into()).udp(1, 53)).settled(Pending),
        sends(&Frame::eth(A.mac, [0xff; 6]).arp_request(A.mac, B.v4, A.v4)).settled(SpoofedResolution),
    ]);
}

fn vlan_tags() {
    for entry in catalogue().into_iter().filter(|entry| entry.name.starts_with("vlan/")) {
        Lab::open().check([sends(&entry.frame).settled(VlanTag)]);
    }
    for family in FAMILIES {
        let b = B.ip(family);
        Lab::open().check([
            sends(&to(b).udp(1, 53)).vlan().settled(VlanTag),
            gets(&from(b).udp(1, 53)).vlan().settled(VlanTag),
            gets(&Frame::eth(BRIDGE, A.mac).vlan(0).ip(b, A.ip(family)).udp(1, 53)).settled(VlanTag),
            gets(&Frame::eth(BRIDGE, A.mac).vlan_tag(0x9100, 5).ip(b, A.ip(family)).udp(1, 53)).settled(VlanTag),
        ]);
    }
    Lab::open().check([sends(&named("arp/request").frame).vlan().settled(VlanTag)]);
}

/// Somebody in the overlay whom nobody knows.
fn unknown(family: Family) -> IpAddr {
    match B.ip(family) {
        IpAddr::V4(v4) => Ipv4Addr::from(u32::from(v4) ^ 0x80).into(),
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) ^ 0x80).into(),
    }
}

fn tunnel_traffic_to_nodes() {
    for family in FAMILIES {
        let (own, other, b) = (NODE_A.ip(family), NODE_B.ip(family), B.ip(family));
        let mut lab = Lab::new();
        for port in [VXLAN_PORT, 4789] {
            lab.check([
                sends(&to(own).udp(1, port)).settled(Tunnel).starts(1),
                sends(&to(other).udp(1, port)).settled(Tunnel).starts(1),
                // In an overlay a node may have what nobody is known to have.
                sends(&to(unknown(family)).udp(1, port)).settled(Tunnel).starts(1),
                // To anybody else it is just a port.
                sends(&to(b).udp(1, port)).refused(Isolated, ISOLATED),
            ]);
        }
        lab.check([
            sends(&to(other).udp(1, 8473)).begins(Rule, 3),
            sends(&to(other).udp(VXLAN_PORT, 1)).begins(Rule, 3),
            // Port 0 is no tunnel's, though unused places of the table hold it.
            sends(&to(other).udp(1, 0)).begins(Rule, 3),
            // TCP to that port is nobody's tunnel.
            sends(&to(other).tcp(1, VXLAN_PORT, tcp::SYN)).refused(Isolated, ISOLATED),
        ]);
        let mut lab = Lab::open();
        lab.check([
            sends(&to(other).udp(1, VXLAN_PORT)).settled(Tunnel).starts(1),
            sends(&to(b).udp(1, VXLAN_PORT)).view(OPEN).begins(NotIsolated, 0),
            // A service of the workload on that port answers a node, also when its flow is judged again.
            gets(&from(own).udp(1, VXLAN_PORT)).by_node().view(OPEN).begins(NotIsolated, 0),
            sends(&to(own).udp(VXLAN_PORT, 1)).view(OPEN).replies(0),
        ]);
        lab.publish(2, OPEN, Mode::Enforce);
        lab.check([sends(&to(own).udp(VXLAN_PORT, 1)).view(OPEN).replies(0)]);
    }
}

fn merged_packets_count_as_segments() {
    for (family, ip) in FAMILIES.into_iter().zip([20, 40]) {
        let b = B.ip(family);
        let headers = 14 + ip + 20;
        let data = |frame: Frame| frame.payload(9000);
        let sizes = headers * 6 + 9000;
        let mut lab = Lab::new();
        lab.check([
            gets(&from(b).tcp(1, 5432, tcp::SYN)).begins(Rule, 1),
            gets(&data(from(b).tcp(1, 5432, DATA))).segments(6).goes_on(1).bytes(sizes),
            sends(&data(to(b).tcp(5432, 1, DATA))).segments(6).replies(1).bytes(sizes),
            // A driver that does not say how many.
            sends(&to(b).tcp(5432, 1, DATA)).segments(0).replies(1),
            gets(&data(from(b).tcp(2, 5432, DATA))).segments(6).begins(Rule, 1).bytes(sizes),
            gets(&data(from(b).tcp(2, 22, DATA))).segments(6).refused(DeniedByRule, 6).starts(0).bytes(sizes),
            gets(&data(from(b).tcp(2, 23, DATA))).segments(6).settled(NoFlow).bytes(sizes),
            // Options are headers, too.
            gets(&data(from(b).udp(2, 53))).segments(6).begins(Rule, 2).bytes((14 + ip + 8) * 6 + 9000),
        ]);
        lab.publish(2, CLOSED, Mode::Enforce);
        lab.check([sends(&data(to(b).tcp(5432, 1, DATA))).segments(6).replies(1).bytes(sizes)]);
        let flows: Vec<_> = lab.tables.flows4().into_values().chain(lab.tables.flows6().into_values()).collect();
        let flow = flows.iter().find(|flow| flow.packets == [7, 13]).unwrap_or_else(|| panic!("{flows:?}"));
        let small = headers as u64;
        assert_eq!(flow.bytes, [small + sizes as u64, sizes as u64 * 2 + small]);
        assert_eq!(flow.tcp_flags, [tcp::SYN | DATA, DATA]);
    }
}

fn plain_packets_with_overlay_sources() {
    for family in FAMILIES {
        let (b, nobody) = (B.ip(family), nobody(family));
        let mut lab = Lab::open();
        lab.check([
            gets(&from(b).tcp(1, 5432, tcp::SYN)).mark(0).settled(PlainOverlaySource),
            gets(&from(nobody).udp(1, 53)).mark(0).settled(PlainOverlaySource),
            // Also when a local sender's mark, or a final verdict, is on it.
            gets(&from(b).tcp(1, 5432, tcp::SYN)).mark(LOCAL | mark::FINAL).settled(PlainOverlaySource),
            gets(&from(b).tcp(1, 5432, tcp::SYN)).view(OPEN).begins(NotIsolated, 0),
            gets(&from(b).tcp(1, 5432, DATA)).mark(0).settled(PlainOverlaySource),
            gets(&from(b).tcp(1, 5432, DATA)).view(OPEN).goes_on(0),
            sends(&to(b).tcp(1, 8080, tcp::SYN)).view(OPEN).begins(NotIsolated, 0),
            gets(&from(b).tcp(8080, 1, SYN_ACK)).mark(0).settled(PlainOverlaySource),
            gets(&from(b).tcp(8080, 1, SYN_ACK)).view(OPEN).replies(0),
        ]);
        for piece in from(b).udp(1, 53).payload(64).fragmented(0, 32, 9) {
            lab.check([gets(&piece).mark(0).settled(PlainOverlaySource)]);
        }
        // A forged packet cuts no flow, not even one that is to be judged again.
        lab.publish(2, OPEN, Mode::Enforce);
        lab.check([
            gets(&from(b).tcp(1, 5432, DATA)).mark(0).settled(PlainOverlaySource),
            gets(&from(b).tcp(1, 5432, DATA)).view(OPEN).passes_alone(NotIsolated, 0),
        ]);
    }
}

fn a_peer_that_moves_is_expected_elsewhere() {
    for family in FAMILIES {
        let peer = B.ip(family);
        let mut lab = Lab::open();
        let syn = || gets(&from(peer).tcp(1, 5432, tcp::SYN));
        lab.check([syn().view(OPEN).begins(NotIsolated, 0)]);
        // To this node: it needs no encapsulation any more.
        lab.tables.set_address(VNI, peer, row::PEER, 0, 0);
        lab.publish(2, OPEN, Mode::Enforce);
        lab.check([syn().mark(0).view(OPEN).passes_alone(NotIsolated, 0), syn().mark(0).view(OPEN).goes_on(0)]);
        // And back: what comes plain is forged, in a flow that is known as well.
        lab.tables.set_address(VNI, peer, row::PEER, 0, AddressWord::ENCAPSULATED);
        lab.publish(3, OPEN, Mode::Enforce);
        lab.check([syn().view(OPEN).passes_alone(NotIsolated, 0), syn().mark(0).settled(PlainOverlaySource)]);
        // Its replies say so, too.
        lab.tables.set_address(VNI, peer, row::PEER, 0, 0);
        lab.publish(4, OPEN, Mode::Enforce);
        lab.check([sends(&to(peer).tcp(5432, 1, SYN_ACK)).view(OPEN).replies(0), syn().mark(0).view(OPEN).goes_on(0)]);
    }
}

fn modes() {
    for family in FAMILIES {
        let b = B.ip(family);
        let steps = |reason| {
            [
                gets(&from(b).tcp(1, 5432, tcp::SYN)).settled(reason),
                sends(&to(b).tcp(5432, 1, SYN_ACK)).settled(reason),
                sends(&to(b).tcp(1, 8080, tcp::SYN)).settled(reason),
            ]
        };
        let mut lab = Lab::new();
        lab.check([gets(&from(b).tcp(1, 5432, tcp::SYN)).begins(Rule, 1)]);
        for (mode, reason) in [(Mode::Quarantine, Quarantine), (Mode::Pending, Pending)] {
            lab.publish(1, CLOSED, mode);
            lab.check(steps(reason));
        }
        // A mode that nobody knows.
        lab.tables.words.insert(SLOT, EndpointWord(1 << 32 | u64::from(CLOSED) << 8 | 200));
        lab.check(steps(Pending));
        // What was allowed before still is.
        lab.publish(1, CLOSED, Mode::Enforce);
        lab.check([sends(&to(b).tcp(5432, 1, SYN_ACK)).replies(1)]);
        lab.tables.words.remove(&SLOT);
        lab.check(steps(Pending));
        // A slot without an endpoint.
        lab.check([
            sends(&to(b).udp(1, 53)).slot(9).settled(NoEndpoint),
            gets(&from(b).udp(1, 53)).slot(9).settled(NoEndpoint),
            gets(&named("eth/empty").frame).slot(9).settled(NoEndpoint),
        ]);
        lab.tables.infos.get_mut(&SLOT).unwrap().identity = 0;
        lab.check(steps(NoEndpoint));
    }
}

fn spoofed_sources() {
    for family in FAMILIES {
        let b = B.ip(family);
        let as_if = |source| Frame::eth(A.mac, BRIDGE).ip(source, b).tcp(1, 8080, tcp::SYN);
        Lab::open().check([
            sends(&Frame::eth(B.mac, BRIDGE).ip(A.ip(family), b).udp(1, 53)).settled(SpoofedMac),
            sends(&Frame::eth(BRIDGE, A.mac).ip(A.ip(family), b).udp(1, 53)).settled(SpoofedMac),
            sends(&as_if(b)).settled(SpoofedSource),
            sends(&as_if(local(family))).settled(SpoofedSource),
            sends(&as_if(NODE_A.ip(family))).settled(SpoofedSource),
            sends(&as_if(A.ip(family))).view(OPEN).begins(NotIsolated, 0),
        ]);
        // The last of four addresses, and none that is left over from before.
        let more = |i: u8| match A.ip(family) {
            IpAddr::V4(address) => IpAddr::from(Ipv4Addr::from(u32::from(address) + u32::from(i))),
            IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) + u128::from(i)).into(),
        };
        let mut lab = Lab::open();
        lab.tables.set_info(SLOT, VNI, A.mac, &[1, 2, 3, 4].map(more));
        lab.check([
            sends(&as_if(more(4))).view(OPEN).begins(NotIsolated, 0),
            sends(&as_if(more(1))).view(OPEN).begins(NotIsolated, 0),
            sends(&as_if(more(0))).settled(SpoofedSource),
        ]);
        let info = lab.tables.infos.get_mut(&SLOT).unwrap();
        (info.ipv4_count, info.ipv6_count) = (3, 3);
        lab.check([sends(&as_if(more(4))).settled(SpoofedSource)]);
    }
    // DHCP has no own address yet, and no place here: addresses are the network's to give.
    let dhcp = Frame::eth(A.mac, [0xff; 6]).ipv4(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST).udp(68, 67);
    Lab::open().check([sends(&dhcp).settled(SpoofedSource)]);
}

fn what_is_neither_ip_nor_arp() {
    for name in ["eth/unknown-type", "eth/llc", "eth/lldp", "eth/mpls"] {
        let frame = named(name).frame;
        let back = Raw(to_a(frame.build())).frame();
        Lab::open().check([sends(&frame).settled(NotIp), gets(&back).settled(NotIp)]);
    }
}

fn malformed_packets() {
    let broken = catalogue().into_iter().filter(|entry| {
        // Those that the parser refuses; the others are read all the same (see the parser's tests).
        matches!(entry.health, Health::Bad(Part::Link | Part::Network | Part::Transport))
            && ["cut", "short", "version", "ihl-0", "ihl-4", "len-19", "offset-4", "offset-0", "empty", "alone"]
                .iter()
                .any(|what| entry.name.contains(what))
            && !["vlan/", "arp/", "nd/", "mld/"].iter().any(|kind| entry.name.starts_with(kind))
            && entry.name != "ipv4/auth/cut"
            && entry.name != "ipv4/udp/len-short"
    });
    let mut count = 0;
    for entry in broken {
        count += 1;
        Lab::open().check([sends(&entry.frame).settled(Malformed)]);
        Lab::open().check([gets(&Raw(to_a(entry.bytes())).frame()).settled(Malformed)]);
    }
    assert!(count > 20, "only {count} frames");
    // Where the packet goes is hidden in a routing header; too many headers.
    for name in ["ipv6/routing-left", "ipv6/chain-13"] {
        Lab::open().check([sends(&named(name).frame).settled(Malformed)]);
    }
}

fn link_local_addresses_are_own() {
    let own = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x42, 0xaff, 0xfef4, 0x105);
    let peer = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x99);
    Lab::open().check([
        sends(&Frame::eth(A.mac, BRIDGE).ipv6(own, peer).udp(1, 2)).view(OPEN).begins(NotIsolated, 0),
        gets(&Frame::eth(BRIDGE, A.mac).ipv6(peer, own).udp(2, 1)).mark(0).view(OPEN).replies(0),
        sends(&Frame::eth(A.mac, BRIDGE).ipv6(peer, own).udp(1, 2)).settled(SpoofedSource),
        // The same ports with another own address are another flow.
        sends(&Frame::eth(A.mac, BRIDGE).ipv6(A.v6, peer).udp(1, 2)).view(OPEN).begins(NotIsolated, 0),
    ]);
}

fn contacts_are_sampled_within_the_budget() {
    for family in FAMILIES {
        let b = B.ip(family);
        let mut lab = Lab::new();
        let refused = |segments| gets(&from(b).udp(9, 54).payload(92)).segments(segments).refused(Isolated, ISOLATED);
        let headers = if family == Family::V4 { 42 } else { 62 };
        lab.check([refused(1)]);
        lab.tables.now += 7;
        lab.check([refused(3).bytes(92 + 3 * headers), gets(&from(b).tcp(9, 1, tcp::ACK)).settled(NoFlow)]);
        let key = |port, protocol, reason| ContactKey {
            peer: words(b),
            slot: 1,
            port,
            protocol,
            direction: Direction::Ingress as u8,
            reason: reason as u8,
            flags: 0,
        };
        let contacts = lab.tables.contacts();
        assert_eq!(contacts.len(), 2, "{contacts:?}");
        let refused_contact = contacts[&key(54, proto::UDP, Isolated)];
        assert_eq!((refused_contact.packets, refused_contact.bytes), (4, 92 * 2 + 4 * headers as u64));
        assert_eq!((refused_contact.first, refused_contact.last), (1_000_000, 1_000_007));
        assert_eq!(refused_contact.counter, HostTables::rule_counter(CLOSED, Direction::Ingress, ISOLATED));
        assert_eq!(contacts[&key(1, proto::TCP, NoFlow)].counter, 0, "no rule decided");
        // Two samples are taken; the third is not sent, and said so.
        lab.tables.config.budget = 2;
        lab.check([refused(3).bytes(92 + 3 * headers)]);
        assert_eq!((lab.tables.budget().taken, lab.tables.budget().unsent), (3, 3));
        lab.tables.now += 128;
        lab.check([refused(1), refused(1), refused(1)]);
        assert_eq!((lab.tables.budget().taken, lab.tables.budget().unsent), (2, 4));
        // What is settled without a look at the rules is never an event.
        lab.check([gets(&Frame::eth(BRIDGE, B.mac).ip(b, A.ip(family)).udp(1, 2)).settled(NotForUs)]);
        assert_eq!(lab.tables.budget().unsent, 4);
    }
}

fn the_mark_that_is_left() {
    assert_eq!(outgoing_mark(5, false), 5 | mark::FINAL);
    assert_eq!(outgoing_mark(5, true), 5, "to be judged again");
    for slot in [0, 1, 4095, 4096, u32::MAX] {
        assert_eq!(outgoing_mark(slot, false) & !(mark::SLOT | mark::FINAL), 0);
    }
    assert_eq!(mark::MASK & 0xc000, 0, "kube-proxy's and kubelet's");
    assert_eq!(mark::MASK, mark::MASK | mark::SLOT | mark::VERIFIED | mark::FINAL);
}

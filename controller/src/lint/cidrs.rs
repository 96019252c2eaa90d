//! Prefixes that do not mean what they seem to.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use bulkhead_ebpf::abi::Direction;
use ipnetwork::IpNetwork;

use super::{Check, Finding, exposed, quoted, some};
use crate::{
    diagnostic::Place,
    guard::Whom,
    intent::{Cidrs, contains},
    model::{Model, Peer, Wall, Workload, holds},
};

/// Prefixes that are written in one place.
struct Written<'a> {
    place: &'a Place,
    peers: BTreeSet<&'a Cidrs>,
}

/// What prefixes are held against.
struct Known<'a> {
    /// Addresses of workloads, and whose they are.
    workloads: BTreeMap<IpAddr, String>,
    /// Addresses that are translated.
    frontends: BTreeSet<IpAddr>,
    /// Others that are there.
    others: BTreeSet<IpAddr>,
    overlays: Vec<IpNetwork>,
    private: Vec<IpNetwork>,
    model: &'a Model,
}

pub(super) fn check(model: &Model) -> Vec<Finding> {
    let known = Known::new(model);
    let mut findings = Vec::new();
    for ((name, _), written) in written(model) {
        let mut all: Vec<(String, &str)> = written.peers.iter().flat_map(|cidrs| known.odd(cidrs)).collect();
        all.extend(known.one_family(&written.peers));
        let finding = |(what, help): (String, &str)| {
            Finding::new(Check::OddCidr, written.place, format!("`{name}`: {what}"), help)
        };
        findings.extend(all.into_iter().map(finding));
    }
    findings
}

/// Prefixes by the rule that names them. What the model makes of single addresses nobody wrote.
fn written(model: &Model) -> BTreeMap<(&str, Direction), Written<'_>> {
    let mut written: BTreeMap<(&str, Direction), Written<'_>> = BTreeMap::new();
    let mut add = |name, direction, place, cidrs| {
        let fresh = || Written { place, peers: BTreeSet::new() };
        written.entry((name, direction)).or_insert_with(fresh).peers.insert(cidrs);
    };
    for rule in model.guards.iter().flat_map(|guard| &guard.rules) {
        if let Whom::Is(Peer::Cidrs(cidrs)) = &rule.peer {
            add(rule.name.as_str(), rule.direction, &rule.place, cidrs);
        }
    }
    let externals: BTreeSet<(&str, &Cidrs)> =
        model.externals.iter().map(|(name, cidrs)| (name.namespace.as_str(), cidrs)).collect();
    for rule in &model.rules {
        let Peer::Cidrs(cidrs) = &*rule.peer else { continue };
        let by_somebody = match &rule.wall {
            Wall::Policy(_) => true,
            Wall::Service(service) => externals.contains(&(service.namespace.as_str(), cidrs)),
            Wall::Resolvers | Wall::Backends(_) => false,
        };
        if by_somebody {
            add(&rule.named.name, rule.direction, &rule.place, cidrs);
        }
    }
    written
}

impl<'a> Known<'a> {
    fn new(model: &'a Model) -> Self {
        let workloads = model.workloads.iter();
        let nodes = model.nodes.values();
        let outside = model.frontends.values().flat_map(|frontend| &frontend.outside).map(|outside| &outside.address);
        Self {
            workloads: workloads
                .flat_map(|(name, workload)| workload.addresses().map(move |address| (address, name.to_string())))
                .collect(),
            frontends: model.frontends.values().flat_map(|frontend| &frontend.addresses).copied().collect(),
            others: nodes.clone().flat_map(|node| &node.addresses).chain(outside).copied().collect(),
            overlays: nodes.flat_map(|node| &node.segments).flat_map(|segment| &segment.prefixes).copied().collect(),
            private: exposed::private(model),
            model,
        }
    }

    /// What is odd about prefixes by themselves.
    fn odd(&self, cidrs: &Cidrs) -> Vec<(String, &'static str)> {
        let mut odd = Vec::new();
        for &except in &cidrs.except {
            if !cidrs.cidrs.iter().any(|&outer| contains(outer, except)) {
                odd.push((
                    format!("the exception {except} lies in none of its prefixes"),
                    "an exception takes from its own prefixes alone: correct it, or remove it",
                ));
            }
        }
        for &net in &cidrs.cidrs {
            if cidrs.except.iter().any(|&except| contains(except, net)) {
                odd.push((
                    format!("an exception takes away all of {net}"),
                    "make the exception smaller, or remove both",
                ));
            } else if self.translated(net) {
                odd.push((
                    format!("{net} is about service addresses, which are translated before anything is judged"),
                    "name those who answer: their service, or their labels, and the port of the container",
                ));
            }
        }
        let held: Vec<_> = self.workloads.iter().filter(|(address, _)| holds(cidrs, **address)).collect();
        if !held.is_empty() {
            let names: BTreeSet<_> = held.into_iter().map(|(_, name)| quoted(name)).collect();
            odd.push((
                format!("{cidrs} holds addresses of {}, and matches them too", some(names)),
                "addresses of workloads change when they start again: name them by service or labels, and except their prefix here",
            ));
        }
        odd
    }

    /// Whether a prefix holds service addresses and nothing else that is known or could be outside.
    fn translated(&self, net: IpNetwork) -> bool {
        let within = |address: &IpAddr| net.contains(*address);
        let single = IpNetwork::from(net.ip()) == net;
        self.frontends.iter().any(within)
            && !self.workloads.keys().any(within)
            && !self.others.iter().any(within)
            && !self.overlays.iter().any(|&other| contains(net, other) || contains(other, net))
            && (single || self.private.iter().any(|&outer| contains(outer, net)))
    }

    /// Every address of one family, where workloads have addresses of the other and nothing is said of it.
    fn one_family(&self, peers: &BTreeSet<&Cidrs>) -> Option<(String, &'static str)> {
        let nets = || peers.iter().flat_map(|cidrs| &cidrs.cidrs);
        let whole = |v6: bool| nets().any(|net| net.prefix() == 0 && net.is_ipv6() == v6);
        let silent = |v6: bool| !nets().any(|net| net.is_ipv6() == v6) && self.has(v6);
        let help = "add the other family's prefix, or write `world`, which is both";
        match () {
            () if whole(false) && silent(true) => {
                Some(("0.0.0.0/0 is every IPv4 address, and workloads have IPv6 addresses".to_owned(), help))
            }
            () if whole(true) && silent(false) => {
                Some(("::/0 is every IPv6 address, and workloads have IPv4 addresses".to_owned(), help))
            }
            () => None,
        }
    }

    fn has(&self, v6: bool) -> bool {
        self.model.workloads.values().flat_map(Workload::addresses).any(|address| address.is_ipv6() == v6)
    }
}

//! Small states, written by hand.

use std::net::IpAddr;

use bulkhead_dataplane::desired::{
    Address, Desired, Endpoint, Entry, Interval, Peers, PolicySet, Prefix, Rule, RuleId, SelectorId, SetId, View,
};
use bulkhead_ebpf::{
    abi::{Action, Direction, Mode},
    reason::Reason,
};

use crate::world::name;

/// A [`Desired`] that grows line by line. Everything is in segment 1.
#[derive(Clone, Default)]
pub(crate) struct Build(pub(crate) Desired);

impl Build {
    pub(crate) fn selector(&mut self, text: &str) -> SelectorId {
        let selectors = &mut self.0.selectors;
        let known = selectors.iter().position(|selector| selector == text);
        let at = known.unwrap_or_else(|| {
            selectors.push(text.to_owned());
            selectors.len() - 1
        });
        SelectorId(at as u32)
    }

    fn rule(&mut self, name: &str) -> RuleId {
        let rules = &mut self.0.rules;
        let known = rules.iter().position(|rule| rule.name == name);
        let at = known.unwrap_or_else(|| {
            rules.push(Rule { name: name.to_owned(), origin: "shop.yaml:1".to_owned() });
            rules.len() - 1
        });
        RuleId(at as u32)
    }

    /// A set that allows some selectors on every port, each by a rule of the selector's name, one entry for each group.
    pub(crate) fn set(&mut self, direction: Direction, groups: &[&[&str]]) -> SetId {
        let mut entries = Vec::new();
        for group in groups.iter().filter(|group| !group.is_empty()) {
            let peers = group.iter().map(|selector| (self.selector(selector), self.rule(selector))).collect();
            entries.push(Entry {
                tier: 1,
                action: Action::Allow,
                audit: false,
                reason: Reason::Rule,
                peers: Peers::Selectors(peers),
            });
        }
        let isolated = Peers::Any(self.rule("isolated"));
        entries.push(Entry { tier: 1, action: Action::Deny, audit: false, reason: Reason::Isolated, peers: isolated });
        let classes = std::array::from_fn(|_| vec![Interval { start: 0, entries: entries.clone() }]);
        let set = PolicySet { direction, isolated: true, classes };
        let known = self.0.sets.iter().position(|known| **known == set);
        let at = known.unwrap_or_else(|| {
            self.0.sets.push(set.into());
            self.0.sets.len() - 1
        });
        SetId(at as u32)
    }

    /// Endpoint `at` with address 10.0.0.`at + 1`, that lets in, and calls, one group of selectors each.
    pub(crate) fn endpoint(mut self, at: usize, labels: &[&str], accepts: &[&str], calls: &[&str]) -> Self {
        let ingress = self.set(Direction::Ingress, &[accepts]);
        let egress = self.set(Direction::Egress, &[calls]);
        let address: IpAddr = format!("10.0.{}.{}", at / 200, at % 200 + 1).parse().unwrap();
        let selectors = labels.iter().map(|label| self.selector(label)).collect();
        self.0
            .addresses
            .insert((1, address), Address { selectors, endpoint: Some(Box::new(name(at))), ..Address::default() });
        self.0.endpoints.push(Endpoint {
            name: name(at),
            service: "service".to_owned(),
            link: format!("veth{at}"),
            segment: 1,
            addresses: vec![address],
            mode: Mode::Enforce,
            views: vec![View { ingress, egress, until: None }],
        });
        self
    }

    pub(crate) fn address(mut self, address: &str, labels: &[&str]) -> Self {
        let selectors = labels.iter().map(|label| self.selector(label)).collect();
        self.0.addresses.insert((1, address.parse().unwrap()), Address { selectors, ..Address::default() });
        self
    }

    pub(crate) fn prefix(mut self, prefix: &str, labels: &[&str]) -> Self {
        let selectors = labels.iter().map(|label| self.selector(label)).collect();
        self.0.prefixes.insert((1, prefix.parse().unwrap()), Prefix { selectors, ..Prefix::default() });
        self
    }
}

//! How a model changes: one workload, one policy, the labels of one namespace. Costs what changes, not what is there.
//!
//! Warnings stay those of [`Model::build`].

use std::{
    collections::{BTreeMap, BTreeSet},
    iter,
    ops::Bound,
    sync::Arc,
};

use super::{Model, Peer, PolicyName, Rule, Scope, ServiceName, Wall, Workload, opened, select};
use crate::{
    intent::Entity,
    labels::{Labels, NAMESPACE_NAME, Requirement, Selector},
    network_policy::NetworkPolicy,
    workloads::{self, Frontend, Node, WorkloadName},
};

/// Whoever some peer may match, by name.
type Candidates<'a> = Box<dyn Iterator<Item = (&'a WorkloadName, &'a Workload)> + 'a>;

impl Model {
    /// Whether all is the same that no event changes: nodes, resolvers, the service label, Intents and Guards. Where a rule is written is part of it,
    /// where anything else is written is not.
    pub(crate) fn has_frame_of(&self, other: &Self) -> bool {
        let node = |(a, b): ((&String, &Arc<Node>), (&String, &Arc<Node>))| {
            (a.0, &a.1.labels, &a.1.addresses, &a.1.segments) == (b.0, &b.1.labels, &b.1.addresses, &b.1.segments)
        };
        self.nodes.len() == other.nodes.len()
            && self.nodes.iter().zip(&other.nodes).all(node)
            && self.resolvers == other.resolvers
            && self.service_label == other.service_label
            && self.services == other.services
            && self.guards == other.guards
            && self.of_intents().eq(other.of_intents())
    }

    /// Rules of Intents.
    fn of_intents(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().take_while(|rule| !matches!(rule.wall, Wall::Policy(_)))
    }

    /// What the model would say of a workload.
    pub(crate) fn selected(&self, name: &WorkloadName, workload: &Arc<workloads::Workload>) -> Workload {
        let frontends = self.leading(name).iter().cloned().collect();
        select(name, workload, &self.services, &self.network_policies, &self.service_label, frontends)
    }

    /// Puts a workload in the place of what was there, or takes it away. What was there.
    pub(crate) fn put_workload(&mut self, name: &WorkloadName, workload: Option<Workload>) -> Option<Workload> {
        match workload {
            Some(workload) => self.workloads.insert(name.clone(), workload),
            None => self.workloads.remove(name),
        }
    }

    /// Puts a policy in the place of what was there, or takes it away. What was there.
    pub(crate) fn put_network_policy(
        &mut self,
        name: &PolicyName,
        policy: Option<Arc<NetworkPolicy>>,
    ) -> Option<Arc<NetworkPolicy>> {
        self.close(name);
        policy.iter().flat_map(|policy| opened(policy)).for_each(|rule| self.open(rule));
        let members = self.workloads.range_mut(first_of(&name.namespace)..);
        for (_, workload) in members.take_while(|(member, _)| member.namespace == name.namespace) {
            match &policy {
                Some(policy) if !workload.host && policy.pods.matches(&workload.labels) => {
                    workload.policies.insert(name.clone());
                }
                _ => _ = workload.policies.remove(name),
            }
        }
        match policy {
            Some(policy) => self.network_policies.insert(name.clone(), policy),
            None => self.network_policies.remove(name),
        }
    }

    /// Puts labels of a namespace in the place of those that it had, or takes them away. Those that it had.
    pub(crate) fn put_namespace(&mut self, name: &str, labels: Option<&Labels>) -> Option<Labels> {
        for (label, value) in labels.into_iter().flatten() {
            let by_value = self.labelled.entry(label.to_owned()).or_default();
            by_value.entry(value.to_owned()).or_default().insert(name.to_owned());
        }
        let before = match labels {
            Some(labels) => self.namespaces.insert(name.to_owned(), labels.clone()),
            None => self.namespaces.remove(name),
        };
        let kept =
            |label: &str, value: &str| labels.and_then(|labels| labels.get(label)).is_some_and(|kept| kept == value);
        for (label, value) in before.iter().flatten().filter(|(label, value)| !kept(label, value)) {
            let Some(by_value) = self.labelled.get_mut(label) else { continue };
            let rest = by_value.get_mut(value).map(|names| {
                names.remove(name);
                names.is_empty()
            });
            if rest == Some(true) {
                by_value.remove(value);
            }
        }
        before
    }

    /// Puts a service's addresses in the place of what was there, or takes them away. What was there.
    pub(crate) fn put_frontend(&mut self, name: &ServiceName, frontend: Option<Frontend>) -> Option<Frontend> {
        let listed = |frontend: Option<&Frontend>| frontend.map(|some| some.workloads.clone()).unwrap_or_default();
        let (before, after) = (listed(self.frontends.get(name)), listed(frontend.as_ref()));
        for gone in before.difference(&after) {
            let rest = self.leading.get_mut(gone).map(|all| {
                all.remove(name);
                all.is_empty()
            });
            if rest == Some(true) {
                self.leading.remove(gone);
            }
            self.workloads.get_mut(gone).iter_mut().for_each(|workload| _ = workload.frontends.remove(name));
        }
        for new in after.difference(&before) {
            self.leading.entry(new.clone()).or_default().insert(name.clone());
            self.workloads.get_mut(new).iter_mut().for_each(|workload| _ = workload.frontends.insert(name.clone()));
        }
        match frontend {
            Some(frontend) => self.frontends.insert(name.clone(), frontend),
            None => self.frontends.remove(name),
        }
    }

    /// Service addresses that lead to a workload, whether it is there or not.
    pub(crate) fn leading(&self, name: &WorkloadName) -> &BTreeSet<ServiceName> {
        const NONE: &BTreeSet<ServiceName> = &BTreeSet::new();
        self.leading.get(name).unwrap_or(NONE)
    }

    /// Workloads of a namespace.
    pub(crate) fn of_namespace(&self, name: &str) -> impl Iterator<Item = (&WorkloadName, &Workload)> {
        self.workloads.range(first_of(name)..).take_while(move |(member, _)| member.namespace == name)
    }

    /// At least everyone whom [`Model::matches`] finds; nobody of a namespace that the peer leaves out.
    pub(crate) fn candidates<'a>(&'a self, peer: &'a Peer) -> Candidates<'a> {
        match peer {
            Peer::Any | Peer::Entity(Entity::Cluster) | Peer::Cidrs(_) => Box::new(self.workloads.iter()),
            Peer::Entity(_) | Peer::Nodes(_) => Box::new(iter::empty()),
            Peer::Service(name) => Box::new(self.of_namespace(&name.namespace)),
            Peer::Backends(name) => {
                let listed = self.frontends.get(name).into_iter().flat_map(|frontend| &frontend.workloads);
                Box::new(listed.filter_map(|name| self.workloads.get_key_value(name)))
            }
            Peer::Namespaces { label, value, other: false } => {
                Box::new(self.labelled_so(label, value).flat_map(|name| self.of_namespace(name)))
            }
            Peer::Namespaces { label, value, other: true } => {
                let some = self.inhabited().filter(move |name| self.namespace(name).get(label) != Some(value));
                Box::new(some.flat_map(|name| self.of_namespace(name)))
            }
            Peer::Workloads { namespaces, .. } => {
                Box::new(self.namespaces_of(namespaces).flat_map(|name| self.of_namespace(name)))
            }
        }
    }

    /// Namespaces of a scope, at least those with workloads, each once.
    pub(crate) fn namespaces_of<'a>(&'a self, scope: &'a Scope) -> Box<dyn Iterator<Item = &'a str> + 'a> {
        match scope {
            Scope::Named(name) => Box::new(iter::once(name.as_str())),
            Scope::Labelled(selector) => {
                let mut asked = selector.requirements();
                // Then those found are those asked for.
                let alone = matches!((asked.next(), asked.next()), (Some(Requirement::In(..)), None));
                let is_one = move |name: &&str| alone || selector.matches(&self.namespace(name));
                Box::new(self.matching(selector).filter(is_one))
            }
        }
    }

    /// At least all namespaces with workloads that have labels, each once.
    fn matching<'a>(&'a self, selector: &'a Selector) -> Box<dyn Iterator<Item = &'a str> + 'a> {
        let values = selector.requirements().find_map(|requirement| match requirement {
            Requirement::In(label, values) => Some((label, values)),
            _ => None,
        });
        let Some((label, values)) = values else { return Box::new(self.inhabited()) };
        Box::new(values.iter().flat_map(move |value| self.labelled_so(label, value)))
    }

    /// Namespaces whose label has this value, each once; of those that nobody has listed the one of this name.
    fn labelled_so<'a>(&'a self, label: &str, value: &'a str) -> impl Iterator<Item = &'a str> + use<'a> {
        let listed = self.labelled.get(label).and_then(|by_value| by_value.get(value));
        let unlisted = label == NAMESPACE_NAME && !self.namespaces.contains_key(value);
        listed.into_iter().flatten().map(String::as_str).chain(unlisted.then_some(value))
    }

    /// Namespaces that have workloads.
    fn inhabited(&self) -> impl Iterator<Item = &str> {
        let behind = |name: &&str| {
            let last = first_of(&format!("{name}\0"));
            let next = self.workloads.range((Bound::Included(last), Bound::Unbounded)).next();
            next.map(|(member, _)| member.namespace.as_str())
        };
        iter::successors(self.workloads.keys().next().map(|member| member.namespace.as_str()), behind)
    }

    /// Takes the rules of a Kubernetes policy away. The last one, another policy's, moves to where one was.
    fn close(&mut self, name: &PolicyName) {
        let mut indexes = self.by_policy.remove(name).unwrap_or_default();
        indexes.sort_unstable();
        for index in indexes.into_iter().rev() {
            self.rules.swap_remove(index);
            let last = self.rules.len();
            let Some(Rule { wall: Wall::Policy(moved), .. }) = self.rules.get(index) else { continue };
            let indexes = self.by_policy.get_mut(moved).into_iter().flatten();
            indexes.filter(|at| **at == last).for_each(|at| *at = index);
        }
    }
}

/// Namespaces by a label and its value.
pub(super) fn labelled(namespaces: &BTreeMap<String, Labels>) -> BTreeMap<String, BTreeMap<String, BTreeSet<String>>> {
    let mut labelled: BTreeMap<String, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for (name, labels) in namespaces {
        for (label, value) in labels {
            labelled.entry(label.to_owned()).or_default().entry(value.to_owned()).or_default().insert(name.clone());
        }
    }
    labelled
}

/// The least name that a workload of a namespace may have.
fn first_of(namespace: &str) -> WorkloadName {
    WorkloadName::new(namespace.to_owned(), String::new())
}

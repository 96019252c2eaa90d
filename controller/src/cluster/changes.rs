//! What changed in a cluster, one by one. Pure.
//!
//! A pod concerns itself, those that say they have an address of its own, and the services at whose addresses it answers. They are put together as all of
//! the cluster is, from those objects alone that say something of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    net::IpAddr,
    sync::Arc,
};

use super::{
    index::{By, Index, service_of},
    kinds::{Key, NAMESPACES, NODES, PODS, SERVICES, SLICES},
};
use crate::{
    manifest::{self, Seen},
    source::Changes,
    yaml::tree::Item,
};

/// What is news.
#[derive(Debug, Default)]
pub(super) struct News {
    /// What they were.
    pub(super) pods: BTreeMap<Key, Option<Arc<Seen>>>,
    /// Namespaces that are there, new or with other labels.
    pub(super) namespaces: BTreeSet<Key>,
    /// Nodes, services and slices by kind, and what they were.
    pub(super) others: BTreeMap<(usize, Key), Option<Arc<Seen>>>,
    /// Policies by kind, and what is read of their texts, where that is known.
    pub(super) policies: BTreeMap<(usize, Key), Option<Item>>,
    /// Something that concerns whoever knows.
    pub(super) all: bool,
}

impl News {
    pub(super) fn is_none(&self) -> bool {
        let Self { pods, namespaces, others, policies, all } = self;
        !all && pods.is_empty() && namespaces.is_empty() && others.is_empty() && policies.is_empty()
    }

    /// What those of a kind were that is neither pods nor policies.
    fn of(&self, kind: usize) -> impl Iterator<Item = (&Key, Option<&Seen>)> {
        let some = self.others.iter().filter(move |((of, _), _)| *of == kind);
        some.map(|((_, key), before)| (key, before.as_deref()))
    }
}

/// Which pods say that they have an address, and who said it last. That one has it: the API server is told late that a pod is gone, and when pods were made
/// says nothing of who has an address now.
#[derive(Debug, Default)]
pub(super) struct Claims {
    by: By<IpAddr>,
    /// Grows with each pod that says it has other addresses than before.
    since: BTreeMap<Key, u64>,
    last: u64,
}

impl Claims {
    /// A pod is another one now.
    pub(super) fn change(&mut self, name: &Key, before: Option<&Seen>, after: Option<&Seen>) {
        let addresses = |seen: Option<&Seen>| seen.into_iter().flat_map(Seen::claims).collect::<BTreeSet<_>>();
        let (before, after) = (addresses(before), addresses(after));
        if before == after {
            return;
        }
        self.by.change(name, &before, &after);
        if after.is_empty() {
            self.since.remove(name);
            return;
        }
        self.last += 1;
        self.since.insert(name.clone(), self.last);
    }

    /// See [`By::compact`].
    pub(super) fn compact(&mut self) {
        self.by.compact();
        self.since = mem::take(&mut self.since).into_iter().collect();
    }

    fn of(&self, address: IpAddr) -> impl Iterator<Item = &Key> {
        self.by.of(&address)
    }

    /// Orders pods: who said last what addresses it has comes last.
    pub(super) fn since(&self, name: &Key) -> Option<u64> {
        self.since.get(name).copied()
    }
}

/// Objects as they are now.
pub(super) trait Objects {
    fn get(&self, kind: usize, key: &Key) -> Option<&Seen>;
    /// Those of a namespace.
    fn of_namespace<'a>(&'a self, kind: usize, namespace: &'a str) -> impl Iterator<Item = (&'a Key, &'a Seen)>;
    fn all(&self, kind: usize) -> impl Iterator<Item = (&Key, &Seen)>;
}

/// What changed; `None` where that cannot be said without all of the cluster.
pub(super) fn changes(news: &News, (claims, index): (&Claims, &Index), objects: &impl Objects) -> Option<Changes> {
    let named = |namespace: &str| Key::new("", namespace);
    let is_defined = |key: &Key| key.namespace.is_empty() || objects.get(NAMESPACES, &named(&key.namespace)).is_some();
    let pod = |key: &Key| objects.get(PODS, key);
    let told =
        news.pods.keys().chain(news.others.keys().map(|(_, key)| key)).chain(news.policies.keys().map(|(_, key)| key));
    if news.all || !told.into_iter().all(is_defined) {
        return None;
    }
    // Mostly it is a policy.
    if news.pods.is_empty() && news.others.is_empty() && news.namespaces.is_empty() {
        return Some(Changes::default());
    }
    let before = || news.pods.iter().filter_map(|(key, before)| Some((key, before.as_deref()?)));
    let after = || news.pods.keys().filter_map(|key| Some((key, pod(key)?)));
    let addresses: BTreeSet<IpAddr> = before().chain(after()).flat_map(|(_, pod)| pod.claims()).collect();
    let rivals = addresses.iter().flat_map(|address| claims.of(*address));
    let mut concerned: BTreeSet<&Key> = news.pods.keys().chain(rivals).collect();
    concerned.extend(moved(news, objects)?);

    // Who says anything of them.
    let claimed = concerned.iter().filter_map(|key| pod(key)).flat_map(Seen::claims);
    let mut pods: BTreeSet<&Key> = concerned.clone();
    pods.extend(claimed.flat_map(|address| claims.of(address)));
    let services = services(news, &addresses, index, objects);
    let addresses_of = |services: &BTreeSet<Key>| -> BTreeSet<IpAddr> {
        services.iter().filter_map(|name| objects.get(SERVICES, name)).flat_map(Seen::addresses).collect()
    };
    let mut beside = services.clone();
    beside.extend(addresses_of(&services).iter().flat_map(|address| index.services.of(address)).cloned());
    // What rules say of a resolver is said when all is put together.
    let mut others: Vec<&Seen> = beside.iter().filter_map(|name| objects.get(SERVICES, name)).collect();
    let was = news.of(SERVICES).filter_map(|(_, before)| before);
    if !news.others.is_empty() && others.iter().copied().chain(was).any(Seen::is_resolver) {
        return None;
    }
    for name in &services {
        let Some(service) = objects.get(SERVICES, name) else { continue };
        let inside = objects.of_namespace(PODS, &name.namespace);
        pods.extend(inside.filter(|(_, pod)| service.selects(pod)).map(|(key, _)| key));
        for slice in index.slices.of(name).filter_map(|key| objects.get(SLICES, key)) {
            others.push(slice);
            pods.extend(slice.addresses().into_iter().flat_map(|address| claims.of(address)));
        }
    }
    let mut pods: Vec<&Key> = pods.into_iter().collect();
    pods.sort_by_key(|key| claims.since(key));
    let pods: Vec<&Seen> = pods.into_iter().filter_map(pod).collect();
    // A node that nobody describes is known from its pods alone.
    let is_described = |node: &str| objects.get(NODES, &named(node)).is_some();
    if !before().filter_map(|(_, pod)| pod.node()).chain(pods.iter().filter_map(|pod| pod.node())).all(is_described) {
        return None;
    }
    let at = addresses_of(&beside);
    let mut nodes: BTreeSet<Key> = pods.iter().filter_map(|pod| pod.node()).map(named).collect();
    nodes.extend(at.iter().flat_map(|address| index.nodes.of(address)).cloned());
    nodes.extend(news.of(NODES).map(|(key, _)| key.clone()));
    others.extend(nodes.iter().filter_map(|node| objects.get(NODES, node)));
    others.extend(news.namespaces.iter().filter_map(|key| objects.get(NAMESPACES, key)));
    others.extend(pods);

    let (mut part, notes) = manifest::live(others, std::iter::empty());
    // They are told where all is put together.
    if !news.others.is_empty() && !notes.0.is_empty() {
        return None;
    }
    let workloads = concerned.into_iter().map(|name| (name.clone(), part.workloads.remove(name)));
    let frontends = services.iter().map(|name| {
        let name = name.into();
        let frontend = part.frontends.remove(&name);
        (name, frontend)
    });
    let namespaces = news.namespaces.iter().map(|key| (key.name.clone(), part.namespaces.remove(&key.name)));
    let nodes = news.of(NODES).map(|(key, _)| (key.name.clone(), part.nodes.remove(&key.name)));
    Some(Changes {
        policies: BTreeMap::new(),
        namespaces: namespaces.collect(),
        workloads: workloads.collect(),
        frontends: frontends.collect(),
        nodes: nodes.collect(),
    })
}

/// Pods of nodes that are in other overlays now; `None` where one is gone that pods are still on.
fn moved<'a>(news: &News, objects: &'a impl Objects) -> Option<Vec<&'a Key>> {
    let mut nodes = BTreeMap::new();
    for (key, before) in news.of(NODES) {
        let after = objects.get(NODES, key);
        let is_same = match before {
            Some(before) => before.places_pods_as(after),
            None => after.is_none_or(|after| after.places_pods_as(None)),
        };
        if after.is_none() || !is_same {
            nodes.insert(key.name.as_str(), after.is_some());
        }
    }
    if nodes.is_empty() {
        return Some(Vec::new());
    }
    let of = |(key, pod): (&'a Key, &'a Seen)| Some((key, *nodes.get(pod.node()?)?));
    objects.all(PODS).filter_map(of).map(|(key, is_there)| is_there.then_some(key)).collect()
}

/// Services that are others now, that share an address with a node that is, or at which somebody answers who is, or at one of these addresses.
fn services(news: &News, addresses: &BTreeSet<IpAddr>, index: &Index, objects: &impl Objects) -> BTreeSet<Key> {
    let mut services = BTreeSet::new();
    for (key, before) in &news.pods {
        let now = objects.get(PODS, key);
        let selecting = |seen: &Seen| before.as_deref().into_iter().chain(now).any(|pod| seen.selects(pod));
        let inside = objects.of_namespace(SERVICES, &key.namespace);
        services.extend(inside.filter(|(_, service)| selecting(service)).map(|(name, _)| name.clone()));
    }
    let slices = addresses.iter().flat_map(|address| index.answering.of(address));
    services.extend(slices.filter_map(|key| service_of(key, objects.get(SLICES, key)?)));

    let is_and_was = |kind| {
        let some = news.of(kind);
        some.flat_map(move |(key, before)| {
            before.into_iter().chain(objects.get(kind, key)).map(move |seen| (key, seen))
        })
    };
    services.extend(is_and_was(SLICES).filter_map(|(key, slice)| service_of(key, slice)));
    services.extend(news.of(SERVICES).map(|(key, _)| key.clone()));
    let of_nodes = is_and_was(NODES).flat_map(|(_, seen)| seen.addresses());
    services.extend(of_nodes.flat_map(|address| index.services.of(&address)).cloned());
    services
}

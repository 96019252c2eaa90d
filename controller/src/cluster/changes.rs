//! What changed in a cluster, one by one. Pure.
//!
//! A pod concerns itself, those that say they have an address of its own, and the services at whose addresses it answers. They are put together as all of
//! the cluster is, from those objects alone that say something of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::kinds::{Key, NAMESPACES, NODES, PODS, SERVICES, SLICES};
use crate::{
    manifest::{self, Seen},
    model::ServiceName,
    source::Changes,
};

/// What is news.
#[derive(Debug, Default)]
pub(super) struct News {
    /// What they were.
    pub(super) pods: BTreeMap<Key, Option<Arc<Seen>>>,
    /// Namespaces that are there, new or with other labels.
    pub(super) namespaces: BTreeSet<Key>,
    /// Policies by kind.
    pub(super) policies: BTreeSet<(usize, Key)>,
    /// Something that concerns whoever knows.
    pub(super) all: bool,
}

impl News {
    pub(super) fn is_none(&self) -> bool {
        !self.all && self.pods.is_empty() && self.namespaces.is_empty() && self.policies.is_empty()
    }
}

/// Which pods say that they have an address, and who said it last. That one has it: the API server is told late that a pod is gone, and when pods were made
/// says nothing of who has an address now.
#[derive(Debug, Default)]
pub(super) struct Claims {
    by: BTreeSet<(IpAddr, Key)>,
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
        for address in before {
            self.by.remove(&(address, name.clone()));
        }
        if after.is_empty() {
            self.since.remove(name);
            return;
        }
        self.last += 1;
        self.since.insert(name.clone(), self.last);
        for address in after {
            self.by.insert((address, name.clone()));
        }
    }

    fn of(&self, address: IpAddr) -> impl Iterator<Item = &Key> {
        let from = self.by.range((address, Key::new("", ""))..);
        from.take_while(move |(of, _)| *of == address).map(|(_, name)| name)
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

/// What pods and namespaces changed; `None` where that cannot be said without all of the cluster.
pub(super) fn changes(news: &News, claims: &Claims, objects: &impl Objects) -> Option<Changes> {
    let named = |namespace: &str| Key::new(String::new(), namespace.to_owned());
    let is_defined = |namespace: &str| objects.get(NAMESPACES, &named(namespace)).is_some();
    let pod = |key: &Key| objects.get(PODS, key);
    let known = news.pods.keys().all(|key| is_defined(&key.namespace))
        && news.policies.iter().all(|(_, key)| key.namespace.is_empty() || is_defined(&key.namespace));
    if news.all || !known {
        return None;
    }
    let before = || news.pods.iter().filter_map(|(key, before)| Some((key, before.as_deref()?)));
    let after = || news.pods.keys().filter_map(|key| Some((key, pod(key)?)));
    let addresses: BTreeSet<IpAddr> = before().chain(after()).flat_map(|(_, pod)| pod.claims()).collect();
    let rivals = addresses.iter().flat_map(|address| claims.of(*address));
    let concerned: BTreeSet<&Key> = news.pods.keys().chain(rivals).collect();

    // Who says anything of them.
    let claimed = concerned.iter().filter_map(|key| pod(key)).flat_map(Seen::claims);
    let mut pods: BTreeSet<&Key> = concerned.clone();
    pods.extend(claimed.flat_map(|address| claims.of(address)));
    let services = services(news, (&concerned, &addresses), objects);
    let mut others = Vec::new();
    for name in &services {
        let Some(service) = objects.get(SERVICES, &name.into()) else { continue };
        others.push(service);
        let inside = objects.of_namespace(PODS, &name.namespace);
        pods.extend(inside.filter(|(_, pod)| service.selects(pod)).map(|(key, _)| key));
        for (_, slice) in objects.of_namespace(SLICES, &name.namespace) {
            let Some((_, those, there)) = slice.answering().filter(|(of, ..)| *of == name.name) else { continue };
            others.push(slice);
            pods.extend(there.into_iter().flat_map(|address| claims.of(address)));
            let inside = objects.of_namespace(PODS, &name.namespace);
            pods.extend(inside.map(|(key, _)| key).filter(|key| those.contains(key.name.as_str())));
        }
    }
    // A node that nobody describes is known from its pods alone.
    let mut pods: Vec<&Key> = pods.into_iter().collect();
    pods.sort_by_key(|key| claims.since(key));
    let pods: Vec<&Seen> = pods.into_iter().filter_map(pod).collect();
    let nodes: BTreeSet<&str> = pods.iter().filter_map(|pod| pod.node()).collect();
    let nodes = nodes.into_iter().map(|node| objects.get(NODES, &named(node)));
    others.extend(nodes.collect::<Option<Vec<_>>>()?);
    if before().filter_map(|(_, pod)| pod.node()).any(|node| objects.get(NODES, &named(node)).is_none()) {
        return None;
    }
    others.extend(news.namespaces.iter().filter_map(|key| objects.get(NAMESPACES, key)));
    others.extend(pods);

    let (mut part, _) = manifest::live(others, std::iter::empty());
    let workloads = concerned.into_iter().map(|name| (name.clone(), part.workloads.remove(name)));
    let answering = services.into_iter().filter_map(|name| {
        let frontend = part.frontends.remove(&name)?;
        Some((name, (frontend.workloads, frontend.outside)))
    });
    let namespaces = news.namespaces.iter().map(|key| (key.name.clone(), part.namespaces.remove(&key.name)));
    Some(Changes {
        policies: BTreeMap::new(),
        namespaces: namespaces.collect(),
        workloads: workloads.collect(),
        answering: answering.collect(),
    })
}

/// Services at which somebody answers who is another one now, or at one of these addresses.
fn services(
    news: &News,
    (concerned, addresses): (&BTreeSet<&Key>, &BTreeSet<IpAddr>),
    objects: &impl Objects,
) -> BTreeSet<ServiceName> {
    let mut services = BTreeSet::new();
    for (key, before) in &news.pods {
        for (service, seen) in objects.of_namespace(SERVICES, &key.namespace) {
            let now = objects.get(PODS, key);
            if before.as_deref().into_iter().chain(now).any(|pod| seen.selects(pod)) {
                services.insert(service.into());
            }
        }
    }
    for (key, slice) in objects.all(SLICES) {
        let Some((service, pods, there)) = slice.answering() else { continue };
        let named = |pod: &&Key| pod.namespace == key.namespace && pods.contains(pod.name.as_str());
        if concerned.iter().any(named) || !there.is_disjoint(addresses) {
            services.insert(ServiceName::new(key.namespace.as_str(), service));
        }
    }
    services
}

//! Service addresses, kept up to date.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_dataplane::desired::{Segment, ServiceAddress};

use super::{
    super::services::of_frontend,
    rows::{Pen, put},
};
use crate::{model::ServiceName, workloads::Frontend};

/// Which services have a service address.
#[derive(Debug, Default)]
pub(super) struct Frontends {
    by_address: BTreeMap<ServiceAddress, BTreeSet<ServiceName>>,
    segments: BTreeSet<Segment>,
}

impl Frontends {
    /// Writes all of them.
    pub(super) fn new(segments: &BTreeSet<Segment>, pen: &mut Pen<'_>) -> Self {
        let mut all = Self::default();
        all.use_segments(segments, pen);
        all
    }

    /// Has service addresses known in these segments and in no others.
    pub(super) fn use_segments(&mut self, segments: &BTreeSet<Segment>, pen: &mut Pen<'_>) {
        if self.segments == *segments {
            return;
        }
        let frontends = &pen.cluster.model.frontends;
        for segment in segments.difference(&self.segments) {
            for (name, frontend) in frontends {
                addresses(*segment, frontend)
                    .for_each(|at| _ = self.by_address.entry(at).or_default().insert(name.clone()));
            }
        }
        self.by_address.retain(|at, _| segments.contains(&at.segment));
        let before = std::mem::replace(&mut self.segments, segments.clone());
        let gone: Vec<_> = pen.desired.services.keys().filter(|at| !segments.contains(&at.segment)).copied().collect();
        let new = self.by_address.keys().filter(|at| !before.contains(&at.segment)).copied();
        self.write(gone.into_iter().chain(new).collect(), pen);
    }

    /// Another one has the place of a service, or nobody.
    pub(super) fn change(&mut self, name: &ServiceName, before: Option<&Frontend>, pen: &mut Pen<'_>) {
        let after = pen.cluster.model.frontends.get(name);
        let all = |frontend: Option<&Frontend>| -> BTreeSet<ServiceAddress> {
            let some = self.segments.iter().flat_map(|segment| frontend.map(|frontend| addresses(*segment, frontend)));
            some.flatten().collect()
        };
        let (before, after) = (all(before), all(after));
        for at in before.difference(&after) {
            if let Some(names) = self.by_address.get_mut(at) {
                names.remove(name);
                if names.is_empty() {
                    self.by_address.remove(at);
                }
            }
        }
        after.iter().for_each(|at| _ = self.by_address.entry(*at).or_default().insert(name.clone()));
        self.write(before.into_iter().chain(after).collect(), pen);
    }

    /// Writes the addresses of some services anew.
    pub(super) fn renew<'a>(&self, names: impl Iterator<Item = &'a ServiceName>, pen: &mut Pen<'_>) {
        let frontends = names.filter_map(|name| pen.cluster.model.frontends.get(name));
        let all = frontends.flat_map(|frontend| self.segments.iter().flat_map(|segment| addresses(*segment, frontend)));
        self.write(all.collect(), pen);
    }

    fn write(&self, at: BTreeSet<ServiceAddress>, pen: &mut Pen<'_>) {
        let super::Cluster { model, node, underlay, .. } = pen.cluster;
        let mut wanted: BTreeMap<ServiceAddress, BTreeSet<_>> = BTreeMap::new();
        let of: BTreeSet<_> = at.iter().filter_map(|at| Some((at.segment, self.by_address.get(at)?))).collect();
        let of: BTreeSet<_> =
            of.into_iter().flat_map(|(segment, names)| names.iter().map(move |name| (segment, name))).collect();
        for (segment, frontend) in
            of.into_iter().filter_map(|(segment, name)| Some((segment, model.frontends.get(name)?)))
        {
            for (address, backends) in of_frontend(model, node, underlay, segment, frontend) {
                wanted.entry(address).or_default().extend(backends);
            }
        }
        for at in at {
            match wanted.remove(&at) {
                Some(backends) => put(&mut pen.desired.services, at, backends, |at| pen.touch.services.set(at)),
                None => {
                    if pen.desired.services.remove(&at).is_some() {
                        pen.touch.services.removed(at);
                    }
                }
            }
        }
    }
}

/// Service addresses of a service in a segment.
fn addresses(segment: Segment, frontend: &Frontend) -> impl Iterator<Item = ServiceAddress> {
    frontend.ports.iter().flat_map(move |port| {
        let protocol = port.transport.protocol();
        let key = move |address, port| ServiceAddress { segment, address, protocol, port };
        let own = frontend.addresses.iter().map(move |&address| key(Some(address), port.port));
        own.chain(port.node_port.map(|number| key(None, number)))
    })
}

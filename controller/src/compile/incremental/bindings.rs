//! What overlays bind by address, kept up to date.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use bulkhead_dataplane::desired::Segment;
use ipnetwork::IpNetwork;

use super::{
    super::network::{Listed, vnis},
    Cluster,
    rows::Pen,
};
use crate::model::Workload;

/// Of each overlay what binds by prefix, and how many workloads bind an address.
#[derive(Debug, Default)]
pub(super) struct Bindings(BTreeMap<Segment, (Listed, BTreeMap<(IpAddr, IpNetwork), usize>)>);

/// What a workload binds.
type Bound = BTreeSet<(Segment, (IpAddr, IpNetwork))>;

impl Bindings {
    /// Writes all overlays.
    pub(super) fn new(pen: &mut Pen<'_>) -> Self {
        let Cluster { model, node, discovered, .. } = pen.cluster;
        let Some(own) = model.nodes.get(node) else { return Self::default() };
        let of = |vni| (vni, (Listed::new(model, vni), BTreeMap::new()));
        let mut bindings = Self(vnis(own, discovered).into_iter().map(of).collect());
        for bound in
            model.workloads.values().map(|workload| bindings.of(pen.cluster, Some(workload))).collect::<Vec<_>>()
        {
            bindings.count(&Bound::new(), &bound);
        }
        let all = bindings
            .0
            .values()
            .map(|(listed, bound)| listed.overlay(model, node, own, discovered, &bound.keys().copied().collect()));
        pen.desired.overlays = all.collect();
        bindings
    }

    fn of(&self, cluster: &Cluster, workload: Option<&Workload>) -> Bound {
        let others = workload.filter(|workload| *workload.node != *cluster.node);
        let of = |workload| {
            let all = self.0.iter();
            all.flat_map(move |(vni, (listed, _))| {
                listed.bindings(&cluster.model, workload).map(move |bound| (*vni, bound))
            })
        };
        others.into_iter().flat_map(of).collect()
    }

    /// Counts what is bound here and not there any more. What is new or gone with that.
    fn count(&mut self, before: &Bound, after: &Bound) -> Vec<(Segment, (IpAddr, IpNetwork), bool)> {
        let mut changed = Vec::new();
        for &(vni, bound) in after.difference(before) {
            let Some((_, counts)) = self.0.get_mut(&vni) else { continue };
            let count = counts.entry(bound).or_default();
            *count += 1;
            if *count == 1 {
                changed.push((vni, bound, true));
            }
        }
        for &(vni, bound) in before.difference(after) {
            let Some((_, counts)) = self.0.get_mut(&vni) else { continue };
            let Some(count) = counts.get_mut(&bound) else { continue };
            *count -= 1;
            if *count == 0 {
                counts.remove(&bound);
                changed.push((vni, bound, false));
            }
        }
        changed
    }

    /// Another workload has the place of one.
    pub(super) fn change(&mut self, before: Option<&Workload>, after: Option<&Workload>, pen: &mut Pen<'_>) {
        let Cluster { model, node, discovered, .. } = pen.cluster;
        let (before, after) = (self.of(pen.cluster, before), self.of(pen.cluster, after));
        for (vni, (vtep, net), there) in self.count(&before, &after) {
            let Some(overlay) = pen.desired.overlays.iter_mut().find(|overlay| overlay.vni == vni) else { continue };
            let Some((listed, counts)) = self.0.get(&vni) else { continue };
            let device = discovered.overlays.iter().any(|device| device.vni == vni);
            if let Some(own) = model.nodes.get(node).filter(|_| device || listed.binds(&net)) {
                // What the kernel binds depends on all that is written.
                let bound = counts.keys().copied().collect();
                let renewed = listed.overlay(model, node, own, discovered, &bound);
                if *overlay != renewed {
                    *overlay = renewed;
                    pen.touch.overlays.set(vni);
                }
                continue;
            }
            let nets = overlay.peers.entry(vtep).or_default();
            if if there { nets.insert(net) } else { nets.remove(&net) } {
                pen.touch.overlays.set(vni);
            }
        }
    }
}

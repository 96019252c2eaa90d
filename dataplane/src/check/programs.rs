//! Programs and filters of others on links.

use std::{collections::BTreeSet, io};

use serde::Serialize;

use super::Probe;
use crate::{
    attach::{Classifiers, Links},
    filters::{self, Parent},
    network::{Survey, SurveyedLink, XdpPlace},
    pins::Pins,
    sys::{self, LinkKind},
};

/// What hangs on a link and is not ours.
#[derive(Clone, Debug, Serialize)]
pub struct Hanging {
    /// Name of the link.
    pub link: String,
    /// Whether it has an `ingress` qdisc, which excludes clsact.
    pub ingress_qdisc: Probe<bool>,
    /// Programs and filters.
    pub foreign: Probe<Vec<Foreign>>,
}

/// A program or filter of somebody else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Foreign {
    /// Where it hangs.
    pub place: Place,
    /// Id of the BPF program; `None` for a filter of another kind.
    pub id: Option<u32>,
    /// Name of the program; empty when it has none or may not be asked for it.
    pub name: String,
    /// Priority of a filter; lower comes first.
    pub priority: Option<u16>,
}

/// Where a program hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// XDP.
    Xdp(XdpPlace),
    /// TCX, received packets.
    TcxIngress,
    /// TCX, sent packets.
    TcxEgress,
    /// A clsact filter, received packets.
    ClsactIngress,
    /// A clsact filter, sent packets.
    ClsactEgress,
}

/// What hangs on the links that would be guarded: those of the underlay, VXLAN devices and ports of bridges. What an agent with these pins
/// attached is left out.
#[must_use]
pub fn hanging(pins: &Pins, network: &Survey) -> Vec<Hanging> {
    let device = |link: &SurveyedLink| network.devices.iter().any(|device| device.device == link.name);
    let links = network.links.iter().filter(|link| link.underlay || link.port || device(link));
    let own = Links::new(pins, Classifiers::default()).own_programs().map_err(|error| error.to_string());
    let hanging = links.map(|link| Hanging {
        link: link.name.clone(),
        ingress_qdisc: filters::has_ingress(link.index).map_err(|error| format!("list its qdiscs: {error}")),
        foreign: own.clone().and_then(|own| foreign(link, &own)),
    });
    hanging.collect()
}

fn foreign(link: &SurveyedLink, own: &BTreeSet<u32>) -> Probe<Vec<Foreign>> {
    let mut found = Vec::new();
    let mut add = |place, id: Option<u32>, priority| {
        if id.is_none_or(|id| !own.contains(&id)) {
            // A name is a help and no more: the id tells the program too.
            let name = id.and_then(|id| sys::program_name(id).ok()).unwrap_or_default();
            found.push(Foreign { place, id, name, priority });
        }
    };
    for (place, id) in &link.xdp {
        add(Place::Xdp(*place), Some(*id), None);
    }
    for (place, kind) in [(Place::TcxIngress, LinkKind::TcxIngress), (Place::TcxEgress, LinkKind::TcxEgress)] {
        match sys::tcx_programs(link.index, kind) {
            Ok(ids) => ids.into_iter().for_each(|id| add(place, Some(id), None)),
            // This kernel has none.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            Err(error) => return Err(format!("list its TCX programs: {error}")),
        }
    }
    for (place, parent) in [(Place::ClsactIngress, Parent::Ingress), (Place::ClsactEgress, Parent::Egress)] {
        let filters = filters::list(link.index, parent).map_err(|error| format!("list its filters: {error}"))?;
        filters.into_iter().for_each(|filter| add(place, filter.program, Some(filter.priority)));
    }
    // A filter of u32 is listed with its table.
    found.dedup();
    Ok(found)
}

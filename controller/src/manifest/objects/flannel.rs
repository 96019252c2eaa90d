//! What flannel writes on a node: where the node is in the overlay, and which addresses are behind it.
//!
//! With the back end `vxlan`, `public-ip` is the node's VTEP, `backend-data` has the VNI, and the node's ranges of pods are those of its `spec`. The
//! names with `v6` are the same for the overlay of IPv6, whose VNI is of a device of its own. Other back ends have no overlay: there pods are called by
//! plain routes. With all of them a node has the gateway of its pods.

use std::{collections::BTreeSet, net::IpAddr};

use ipnetwork::IpNetwork;

use super::{Machine, list, section};
use crate::{diagnostic::Diagnostics, workloads::NodeSegment, yaml::tree::Fields};

/// What the names of annotations begin with.
const PREFIX: &str = "flannel.alpha.coreos.com/";
/// The back end that is an overlay.
const VXLAN: &str = "vxlan";

/// Reads the overlays of a node. Of annotations that say something else nothing comes: they are flannel's to write.
pub(super) fn read(object: &mut Fields<'_>, machine: &mut Machine, found: &mut Diagnostics) {
    let Some(mut metadata) = section(object, "metadata", found) else { return };
    let annotations = metadata.get("annotations").map(|annotations| annotations.texts(found)).unwrap_or_default();
    let text = |name: &str| annotations.get(&format!("{PREFIX}{name}"));
    let Some(backend) = text("backend-type") else { return };
    let ranges = ranges(object, found);
    // The pods' gateway: the second address of the range is that of the bridge that they are on.
    machine.addresses.extend(ranges.iter().filter_map(|range| range.iter().nth(1)));
    if backend != VXLAN {
        return;
    }
    for (address, data, own) in [
        ("public-ip", "backend-data", IpNetwork::is_ipv4 as fn(&IpNetwork) -> bool),
        ("public-ipv6", "backend-v6-data", IpNetwork::is_ipv6),
    ] {
        let address = text(address).and_then(|address| address.parse::<IpAddr>().ok());
        let (Some(vtep), Some(vni)) = (address, text(data).and_then(|data| vni(data))) else { continue };
        let prefixes: BTreeSet<_> = ranges.iter().copied().filter(own).collect();
        // The device has the first address of the range, and what the node itself sends to other nodes' pods comes from there.
        machine.addresses.extend(prefixes.iter().map(IpNetwork::network));
        machine.addresses.insert(vtep);
        machine.segments.push(NodeSegment { vni, vtep, port: None, prefixes });
    }
}

fn vni(data: &str) -> Option<u32> {
    let data: serde_json::Value = serde_json::from_str(data).ok()?;
    u32::try_from(data.get("VNI")?.as_u64()?).ok()
}

/// Ranges of addresses of the node's pods.
fn ranges(object: &mut Fields<'_>, found: &mut Diagnostics) -> Vec<IpNetwork> {
    let Some(mut spec) = section(object, "spec", found) else { return Vec::new() };
    // The first one stands alone as well.
    let all = list(&mut spec, "podCIDRs", found);
    all.into_iter().filter_map(|range| range.text(found)?.parse().ok()).collect()
}

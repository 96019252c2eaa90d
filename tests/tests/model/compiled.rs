//! From the model's world to what a node shall enforce, by way of the files that people write.

use bulkhead_controller::{
    compile::compile,
    diagnostic::{Diagnostics, source},
    model::Model,
    policy, workloads,
};
use bulkhead_dataplane::{
    desired::Desired,
    node::{Discovered, DiscoveredOverlay},
};
use bulkhead_model::{World, generate::TUNNEL_PORT, yaml};
use ipnetwork::IpNetwork;

/// Compiles the world for the node that judges, at that time: nanoseconds of Unix time.
pub(crate) fn desired(world: &World, now: u64) -> Result<Desired, Diagnostics> {
    let mut policies = Vec::new();
    for (name, text) in yaml::policies(world) {
        policies.extend(policy::parse(&source(name, text))?);
    }
    let workloads = workloads::parse(&source("workloads.yaml", yaml::workloads(world)))?;
    let model = Model::build(&policies, &workloads)?;
    compile(&model, &world.nodes[world.here].name, &discovered(world), now)
}

/// What the network of the node would say: a VXLAN device for each overlay, with permanent entries for the other nodes.
fn discovered(world: &World) -> Discovered {
    let here = &world.nodes[world.here];
    let overlays = here.segments.iter().map(|own| {
        let peers = world.nodes.iter().filter(|node| node.name != here.name).flat_map(|node| &node.segments);
        DiscoveredOverlay {
            device: format!("flannel.{}", own.vni),
            vni: own.vni,
            port: TUNNEL_PORT,
            own: Some(own.vtep),
            underlays: vec!["eth0".to_owned()],
            peers: peers
                .filter(|part| part.vni == own.vni)
                .map(|part| {
                    let net = |prefix: &bulkhead_model::Prefix| {
                        IpNetwork::new(prefix.address, prefix.len).expect("the model's prefixes are right")
                    };
                    (part.vtep, part.prefixes.iter().map(net).collect())
                })
                .collect(),
        }
    });
    Discovered { addresses: here.addresses.clone(), overlays: overlays.collect(), ..Discovered::default() }
}

/// The files of a world, to read and to try.
pub(crate) fn files(world: &World) -> String {
    let mut out = format!("# workloads.yaml, node {}\n{}", world.nodes[world.here].name, yaml::workloads(world));
    for (name, text) in yaml::policies(world) {
        out.push_str(&format!("# {name}\n{text}"));
    }
    out
}

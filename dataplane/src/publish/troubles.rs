//! What of the services cannot be as it was asked for. Nobody else's policy waits for that: it is done as far as it is safe, and told once.

use std::{collections::BTreeSet, net::IpAddr};

use bulkhead_ebpf::abi::{BACKENDS, ServiceKey};

use super::places::from_packet;

/// What was told of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Troubles {
    crowded: BTreeSet<ServiceKey>,
    taken: BTreeSet<IpAddr>,
}

impl Troubles {
    /// Ports of services of which not all kinds of backends have room: who is allowed to a few of them may be refused.
    pub(crate) fn crowded(&mut self, now: BTreeSet<ServiceKey>) {
        for key in now.difference(&self.crowded) {
            tracing::warn!(
                "policies tell more than {BACKENDS} kinds of backends of the service port {}/{} at {} apart: calls to it may be refused that are allowed, until \
                 policies name those backends by labels that they have in common",
                key.port,
                key.protocol,
                from_packet(key.address).to_canonical(),
            );
        }
        self.crowded = now;
    }

    /// Addresses of services that somebody has: policy sees who has them.
    pub(crate) fn taken(&mut self, now: BTreeSet<IpAddr>) {
        for address in now.difference(&self.taken) {
            tracing::warn!(
                "{address} is given to a service and is somebody's own as well: policy is that about who has it, wherever the node's kernel sends what is \
                 for the service; see who wrote it (externalIPs, a load balancer's address on a link of this node)"
            );
        }
        self.taken = now;
    }
}

//! Service addresses: what their backends are to a policy, by what is known of the backends' addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use bulkhead_ebpf::abi::{self, BACKENDS, ServiceKey};

use crate::{
    desired::{Backend, Desired, Segment},
    publish::{
        places::{Key, Places, to_packet},
        state::State,
    },
};

/// Keys of the table with the backends of each, of its family.
pub(crate) struct Services<'a>(BTreeMap<ServiceKey, (Segment, Vec<&'a Backend>)>);

impl<'a> Services<'a> {
    pub(crate) fn of(desired: &'a Desired) -> Self {
        let mut services = BTreeMap::new();
        for (service, backends) in &desired.services {
            let addresses = match service.address {
                Some(address) => vec![address],
                None => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
            };
            for address in addresses {
                let address: IpAddr = address;
                let key = ServiceKey {
                    segment: service.segment,
                    address: to_packet(address),
                    port: service.port,
                    protocol: service.protocol,
                    padding: 0,
                };
                let of_family = backends.iter().filter(|backend| backend.address.is_ipv4() == address.is_ipv4());
                services.insert(key, (service.segment, of_family.collect()));
            }
        }
        Self(services)
    }

    /// Ids of the backends, while `places` is what is known of addresses. Where policies tell more of one service address apart than have room, those
    /// that nothing judges later come first: the programs let nobody pass because of what they were not told.
    pub(crate) fn lower(&self, state: &mut State, places: &Places) -> BTreeMap<ServiceKey, u32> {
        let (mut lowered, mut crowded) = (BTreeMap::new(), BTreeSet::new());
        for (key, (segment, backends)) in &self.0 {
            let who = || format!("the service port {}/{}", key.port, key.protocol);
            let distinct: BTreeSet<abi::Backend> =
                backends.iter().map(|backend| seen(*segment, backend, places)).collect();
            let mut content = abi::Backends { len: distinct.len() as u32, ..abi::Backends::default() };
            if distinct.len() > BACKENDS {
                crowded.insert(*key);
            }
            let mut ordered: Vec<_> = distinct.into_iter().collect();
            // Nodes before others: a tunnel's port is to be seen among them in any case.
            ordered
                .sort_by_key(|backend| (backend.flags & abi::Backend::LATER, backend.flags & abi::Backend::NODE == 0));
            content.backends.iter_mut().zip(ordered).for_each(|(to, backend)| *to = backend);
            lowered.insert(*key, state.backends.intern(content, who));
        }
        state.troubles.crowded(crowded);
        lowered
    }
}

/// Whether it is a port of every node.
pub(crate) fn of_nodes(key: &ServiceKey) -> bool {
    [to_packet(Ipv4Addr::UNSPECIFIED.into()), to_packet(Ipv6Addr::UNSPECIFIED.into())].contains(&key.address)
}

fn seen(segment: Segment, backend: &Backend, places: &Places) -> abi::Backend {
    let place = places.effective(&Key::known(segment, backend.address));
    let flag = |set, flag| if set { flag } else { 0 };
    abi::Backend {
        row: place.row as u16,
        target: backend.port,
        flags: flag(backend.judged_later, abi::Backend::LATER)
            | flag(place.slot != 0, abi::Backend::LOCAL)
            | flag(place.is_node(), abi::Backend::NODE),
        padding: 0,
    }
}

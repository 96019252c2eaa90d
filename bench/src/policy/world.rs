//! A cluster of any size: namespaces with a few applications each, and policies as people write them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use bulkhead_controller::{
    diagnostic::{Place, Source, source},
    intent::Cidrs,
    labels::{Labels, Requirement, Selector},
    model::{Peer, PolicyName, Scope, ServiceName},
    network_policy::{NetworkPolicy, Rule},
    policy::Policy,
    ports::{Ports, Transport},
    workloads::{
        Endpoint, Frontend, FrontendPort, Node, NodeSegment, PortNames, Target, Workload, WorkloadName, Workloads,
    },
};
use bulkhead_ebpf::abi::{Direction, Mode};

/// Sizes of a cluster.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) nodes: u32,
    pub(crate) workloads: u32,
    pub(crate) namespaces: u32,
    pub(crate) policies: u32,
    /// Workloads of the node that is compiled for.
    pub(crate) local: u32,
}

/// Name of the node that is compiled for.
pub(crate) const HERE: &str = "n0";
/// Applications of a namespace.
const APPS: u32 = 5;
/// Teams, each with some namespaces.
const TEAMS: u32 = 50;
/// Pods that may come, of each kind.
pub(crate) const EXTRAS: u32 = 100;

/// Policies and workloads, and the text that all of it pretends to stand in.
pub(crate) struct World {
    pub(crate) size: Size,
    pub(crate) policies: Vec<Policy>,
    pub(crate) workloads: Workloads,
    text: Arc<Source>,
}

fn labels<const N: usize>(labels: [(&str, String); N]) -> Labels {
    labels.into_iter().map(|(label, value)| (label.to_owned(), value)).collect()
}

impl World {
    pub(crate) fn new(size: Size) -> Self {
        let text = source("bench", "");
        let mut world = Self { size, policies: Vec::new(), workloads: Workloads::default(), text };
        for node in 0..size.nodes {
            let description = world.node(node);
            world.workloads.nodes.insert(format!("n{node}"), Arc::new(description));
        }
        for namespace in 0..size.namespaces {
            let team = format!("t{}", namespace % TEAMS);
            let own = labels([("team", team), ("kubernetes.io/metadata.name", format!("ns{namespace}"))]);
            world.workloads.namespaces.insert(format!("ns{namespace}"), own);
        }
        for index in 0..size.workloads {
            let (name, workload) = world.workload(index);
            world.workloads.workloads.insert(name, Arc::new(workload));
        }
        for namespace in 0..size.namespaces {
            let (name, service) = world.service(namespace);
            world.workloads.frontends.insert(name, service);
        }
        for index in 0..size.policies {
            let policy = world.policy(index);
            world.policies.push(Policy::Network(policy));
        }
        world
    }

    fn place(&self) -> Place {
        Place::start(&self.text)
    }

    fn node(&self, node: u32) -> Node {
        let address = IpAddr::from(Ipv4Addr::from_bits(0xc000_0200 + node));
        let prefix = format!("{}/24", Ipv4Addr::from_bits(0x0a00_0000 + (node << 8)));
        let segment = NodeSegment { vni: 1, vtep: address, port: None, prefixes: prefix.parse().into_iter().collect() };
        Node {
            place: self.place(),
            labels: labels([("zone", format!("z{}", node % 3))]),
            addresses: BTreeSet::from([address]),
            segments: vec![segment],
        }
    }

    /// The workload with this number: the first ones are local, the others are spread over the other nodes.
    pub(crate) fn workload(&self, index: u32) -> (WorkloadName, Workload) {
        let Size { nodes, namespaces, local, .. } = self.size;
        let (node, host) = match index.checked_sub(local) {
            None => (0, index),
            Some(rest) => (1 + rest % (nodes - 1), rest / (nodes - 1)),
        };
        let app = (index / namespaces) % APPS;
        let name = WorkloadName::new(format!("ns{}", index % namespaces), format!("a{app}-{index}"));
        (name, self.pod(index, app, node, 2 + host))
    }

    /// A pod that may come, here or on another node, of this application: its namespace has all of them, and one workload here.
    pub(crate) fn extra(&self, index: u32, here: bool, app: u32) -> (WorkloadName, Workload) {
        let others = self.size.nodes - 1;
        let (node, host) = if here { (0, 130 + index) } else { (1 + index % others, 130 + index / others) };
        (self.extra_name(index, here), self.pod(self.size.workloads + index, app, node, host))
    }

    fn extra_name(&self, index: u32, here: bool) -> WorkloadName {
        let kind = if here { "here" } else { "there" };
        // In every fifth one the workload here lets in its neighbours by their application.
        let namespace = APPS * (1 + index % (self.size.local / APPS - 1)) - 1;
        WorkloadName::new(format!("ns{namespace}"), format!("{kind}-{index}"))
    }

    fn pod(&self, index: u32, app: u32, node: u32, host: u32) -> Workload {
        let address = IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 + (node << 8) + host));
        Workload {
            place: self.place(),
            labels: Arc::new(labels([
                ("app", format!("a{app}")),
                ("pod-template-hash", format!("{:x}", index.wrapping_mul(2_654_435_761))),
                ("version", format!("v{}", index % 7)),
            ])),
            node: format!("n{node}").into(),
            mode: Mode::Enforce,
            ports: Arc::new(PortNames::from([("http".to_owned(), vec![(Transport::Tcp, 8080)])])),
            endpoints: vec![Endpoint {
                segment: 1,
                addresses: vec![address],
                link: format!("veth{index}"),
                placeholder: false,
            }],
            host: false,
            owner: None,
            uid: None,
        }
    }

    /// Each namespace has one, of its first application.
    fn service(&self, namespace: u32) -> (ServiceName, Frontend) {
        let Size { workloads, namespaces, .. } = self.size;
        let first = (namespace..workloads).step_by(namespaces as usize * APPS as usize);
        let extras = (0..EXTRAS).flat_map(|index| [true, false].map(|here| self.extra_name(index, here)));
        let own = format!("ns{namespace}");
        let backends = first.map(|index| self.workload(index).0).chain(extras).filter(|name| name.namespace == own);
        let port = FrontendPort { transport: Transport::Tcp, port: 80, target: Target::Number(8080), node_port: None };
        let frontend = Frontend {
            place: self.place(),
            addresses: BTreeSet::from([IpAddr::from(Ipv4Addr::from_bits(0x0a60_0001 + 0x0080_0000 + namespace))]),
            ports: vec![port],
            workloads: backends.collect(),
            outside: BTreeSet::new(),
            resolver: false,
        };
        (ServiceName::new(own.clone(), "first".to_owned()), frontend)
    }

    /// Five to a namespace: default deny, one application to another, a whole team, a prefix outside, resolvers.
    pub(crate) fn policy(&self, index: u32) -> NetworkPolicy {
        let namespace = index % self.size.namespaces;
        let kind = index / self.size.namespaces % 5;
        let own = format!("ns{namespace}");
        let name = PolicyName::new(own.clone(), format!("p{index}"));
        let app =
            |app: u32| -> Selector { [Requirement::is("app", &format!("a{}", app % APPS))].into_iter().collect() };
        let here = |labels| Peer::Workloads { namespaces: Scope::Named(own.clone()), labels };
        let mut policy = NetworkPolicy {
            name: name.clone(),
            place: self.place(),
            pods: Selector::everybody(),
            ingress: false,
            egress: false,
            rules: Vec::new(),
        };
        let rule = |policy: &mut NetworkPolicy, direction, peers, ports| {
            let name = format!("networkpolicy {name}: {direction:?}[{}]", policy.rules.len());
            policy.rules.push(Rule { name, place: self.place(), direction, peers, ports });
        };
        match kind {
            0 => (policy.ingress, policy.egress) = (true, true),
            1 => {
                (policy.pods, policy.ingress) = (app(namespace + 1), true);
                let peers = vec![here(app(namespace)), here(app(namespace + 2))];
                rule(&mut policy, Direction::Ingress, peers, vec![Ports::one(Transport::Tcp, 8080)]);
            }
            2 => {
                let team = [Requirement::is("team", &format!("t{}", (namespace + 7) % TEAMS))].into_iter().collect();
                (policy.pods, policy.ingress) = (app(namespace), true);
                let peers = vec![Peer::Workloads { namespaces: Scope::Labelled(team), labels: app(namespace) }];
                rule(&mut policy, Direction::Ingress, peers, vec![Ports::one(Transport::Tcp, 9090)]);
            }
            3 => {
                policy.egress = true;
                let prefix = format!("198.51.{}.0/24", namespace % 256).parse().into_iter().collect();
                let peers = vec![Peer::Cidrs(Cidrs { cidrs: prefix, except: Vec::new() })];
                rule(&mut policy, Direction::Egress, peers, vec![Ports::one(Transport::Tcp, 443)]);
                rule(&mut policy, Direction::Egress, vec![here(Selector::everybody())], vec![Ports::Any]);
            }
            _ => {
                policy.egress = true;
                let peers = vec![Peer::Workloads { namespaces: Scope::Named("ns0".to_owned()), labels: app(0) }];
                let ports = vec![Ports::one(Transport::Udp, 53), Ports::one(Transport::Tcp, 53)];
                rule(&mut policy, Direction::Egress, peers, ports);
            }
        }
        policy
    }

    /// A policy that may come, for what runs here of a namespace: it lets these in.
    pub(crate) fn extra_policy(&self, index: u32, peer: Peer) -> NetworkPolicy {
        let name = PolicyName::new(format!("ns{}", 1 + index % (self.size.local - 1)), "extra".to_owned());
        let rule = Rule {
            name: format!("networkpolicy {name}: ingress[0]"),
            place: self.place(),
            direction: Direction::Ingress,
            peers: vec![peer],
            ports: vec![Ports::one(Transport::Tcp, 8443)],
        };
        NetworkPolicy {
            name,
            place: self.place(),
            pods: Selector::everybody(),
            ingress: true,
            egress: false,
            rules: vec![rule],
        }
    }
}

//! What an agent enforces after whatever happened is what a whole compile says, and it compiles whole only where it must.

use std::{
    collections::BTreeMap,
    fs,
    sync::{Arc, Mutex},
};

use bulkhead_controller::{
    agent::{Agent, Settings},
    attachments::Attachments,
    compile::compile,
    control::Control as _,
    diagnostic::Diagnostics,
    model::Model,
    settle::settle,
    store::Reader,
};
use bulkhead_dataplane::{
    cni::protocol::{Answer, Ask, Attached, Interface, Key, Request, VERSION},
    desired::Desired,
    node::Discovered,
};
use proptest::prelude::*;

use crate::{
    canonical::Canonical,
    support::{Home, Wrapped},
};

/// Policy files; each may be there, as one of its texts, the last of which is bad.
const POLICIES: [(&str, [&str; 3]); 4] = [
    (
        "shop.yaml",
        [
            "apiVersion: bulkhead/v1\nkind: Intent\nnamespace: shop\ndns: cluster\nservices:\n  web: { calls: [db:5432] }\n  db: { accepts: [world:sql] }\n",
            "apiVersion: bulkhead/v1\nkind: Intent\nnamespace: shop\nservices:\n  web: { accepts: [world:443] }\n  db: {}\n",
            "apiVersion: bulkhead/v1\nkind: Intent\nnamespace: shop\nservices:\n  web: { calls: [bd:5432] }\n  db: {}\n",
        ],
    ),
    (
        "a.yaml",
        [
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: a, namespace: shop }\nspec:\n  podSelector: {}\n  ingress:\n  - from: [{ namespaceSelector: {}, podSelector: { matchLabels: { tier: odd } } }]\n    ports: [{ port: sql }]\n",
            "# Another line.\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: a, namespace: shop }\nspec:\n  podSelector: { matchLabels: { app: db } }\n  egress:\n  - to: [{ namespaceSelector: { matchLabels: { tenant: t1 } } }, { ipBlock: { cidr: 10.0.0.0/28, except: [10.0.0.3/32] } }]\n    ports: [{ port: sql }, { port: 53, protocol: UDP }]\n",
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: a, namespace: shop }\nspec:\n  podSelector: {}\n  ingres: []\n",
        ],
    ),
    (
        "b.yaml",
        [
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: b, namespace: ops }\nspec:\n  podSelector: {}\n  policyTypes: [Ingress, Egress]\n",
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: b, namespace: ops }\nspec:\n  podSelector: {}\n  ingress:\n  - from: [{ namespaceSelector: {} }]\n",
            "kind: [",
        ],
    ),
    (
        "guard.yaml",
        [
            "apiVersion: bulkhead/v1\nkind: Guard\nname: g\npriority: 1\nrules:\n  - deny: { to: metadata }\n",
            "apiVersion: bulkhead/v1\nkind: Guard\nname: g\npriority: 1\nfor: { workloads: { app: web } }\nrules:\n  - deny: { from: world, ports: [25] }\n",
            "apiVersion: bulkhead/v1\nkind: Guard\nname: g\npriority: one\n",
        ],
    ),
];
/// Listed workloads, of which some have links, some are elsewhere and some take what a runtime gives them.
const WORKLOADS: [[&str; 3]; 5] = [
    [
        "{ name: w0, namespace: shop, labels: { app: web }, node: n1, endpoints: [{ addresses: [10.0.0.1], link: veth0 }] }",
        "{ name: w0, namespace: shop, labels: { app: web, tier: odd }, node: n1, endpoints: [{ addresses: [10.0.0.1], link: veth0 }] }",
        "{ name: w0, namespace: shop, labels: { app: web }, ports: { sql: 5433 }, node: n1, mode: observe, endpoints: [{ addresses: [10.0.0.2], link: veth0 }] }",
    ],
    [
        "{ name: w1, namespace: shop, labels: { app: db }, ports: { sql: 5432 }, node: n1, endpoints: [{ addresses: [10.0.0.3], link: veth1 }] }",
        "{ name: w1, namespace: shop, labels: { app: db }, ports: { sql: 5432 }, node: n2, endpoints: [{ addresses: [10.0.0.3] }] }",
        "{ name: w1, namespace: shop, labels: { app: db }, ports: { sql: 5432 }, node: n1 }",
    ],
    [
        "{ name: w2, namespace: ops, labels: { app: web }, node: n2, endpoints: [{ addresses: [10.0.0.9] }] }",
        "{ name: w2, namespace: ops, labels: { app: web, tier: odd }, node: n2, endpoints: [{ addresses: [10.0.0.9] }] }",
        "{ name: w2, namespace: ops, labels: { app: ops }, node: n1, endpoints: [{ addresses: [10.0.0.9], link: veth2 }] }",
    ],
    [
        "{ name: c0, namespace: shop, labels: { app: web }, node: n1 }",
        "{ name: c0, namespace: shop, labels: { app: db }, ports: { sql: 5432 }, node: n1 }",
        "{ name: c0, namespace: shop, labels: { app: web }, node: n1, endpoints: [{ addresses: [10.0.0.20] }] }",
    ],
    [
        "{ name: w3, namespace: shop, labels: { app: web }, node: n2, endpoints: [{ addresses: [10.0.0.11] }] }",
        "{ name: w3, namespace: shop, labels: { app: web }, node: n2 }",
        // Another one has the address, or a node.
        "{ name: w3, namespace: shop, labels: { app: web }, node: n2, endpoints: [{ addresses: [192.0.2.2] }] }",
    ],
];

#[derive(Clone, Debug)]
enum Step {
    /// A policy file has one of its texts, or is gone.
    Policy(usize, Option<usize>),
    /// A workload is listed so, or not.
    Workload(usize, Option<usize>),
    /// Which namespace has a label.
    Tenant(usize),
    /// Which service addresses there are.
    Service(usize),
    /// A container starts: its number, of whom it is, its address.
    Add(usize, usize, u8),
    Gone(usize),
    /// All containers but one go at once.
    Only(usize),
    /// Another network.
    Network(bool),
    /// The kernel takes so many writes of the next publish.
    Refuses(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let text = || prop_oneof![2 => Just(Some(0)), 2 => Just(Some(1)), 1 => Just(Some(2)), 1 => Just(None)];
    prop_oneof![
        6 => (0..POLICIES.len(), text()).prop_map(|(file, text)| Step::Policy(file, text)),
        6 => (0..WORKLOADS.len(), text()).prop_map(|(at, text)| Step::Workload(at, text)),
        2 => (0..3_usize).prop_map(Step::Tenant),
        2 => (0..3_usize).prop_map(Step::Service),
        6 => (0..4_usize, 0..3_usize, 18..22_u8).prop_map(|(at, name, address)| Step::Add(at, name, address)),
        3 => (0..4_usize).prop_map(Step::Gone),
        1 => (0..4_usize).prop_map(Step::Only),
        1 => any::<bool>().prop_map(Step::Network),
        2 => (0..12_usize).prop_map(Step::Refuses),
    ]
}

fn key(at: usize) -> Key {
    Key { container: format!("k{at}"), ifname: "eth0".to_owned() }
}

fn request(ask: Ask) -> Request {
    Request { version: VERSION, network: "lab".to_owned(), waits: true, ask }
}

fn add(at: usize, name: &str, address: u8) -> Request {
    let interface = Interface {
        name: "eth0".to_owned(),
        link: format!("veth-k{at}"),
        ifindex: 7,
        addresses: vec![[10, 0, 0, address].into()],
    };
    request(Ask::Add(Attached {
        key: key(at),
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        uid: None,
        labels: [("app".to_owned(), "db".to_owned())].into(),
        interfaces: vec![interface],
    }))
}

/// What the workloads file says.
struct Listed {
    workloads: BTreeMap<usize, usize>,
    tenant: usize,
    service: usize,
}

impl Listed {
    fn write(&self, home: &Home) {
        let tenant = ["[]", "[{ name: ops, labels: { tenant: t1 } }]", "[{ name: shop, labels: { tenant: t1 } }]"];
        let services = [
            "[]",
            "[{ name: s, namespace: shop, addresses: [10.96.0.1], ports: [{ port: 80, target: 8080 }], backends: [w0] }]",
            "[{ name: dns, namespace: shop, addresses: [10.96.0.10], ports: [{ port: 53, protocol: udp }], backends: [w0] }]",
        ];
        let listed = self.workloads.iter().map(|(at, text)| format!("  - {}\n", WORKLOADS[*at][*text]));
        home.write(
            "workloads.yaml",
            &format!(
                "apiVersion: bulkhead/v1\nkind: Workloads\nresolvers: [10.96.0.10]\nnodes:\n  - {{ name: n1, addresses: [192.0.2.1] }}\n  \
                 - {{ name: n2, addresses: [192.0.2.2] }}\nnamespaces: {}\nservices: {}\nworkloads:\n{}",
                tenant[self.tenant],
                services[self.service],
                listed.collect::<String>()
            ),
        );
    }
}

/// An agent over a node that remembers, and its files.
struct Rig {
    home: Home,
    agent: Agent<Wrapped>,
    asked: Arc<Mutex<Desired>>,
    listed: Listed,
}

impl Rig {
    fn new() -> Self {
        let home = Home::new();
        fs::remove_file(home.path("policies/shop.yaml")).unwrap();
        let listed = Listed { workloads: [(0, 0), (1, 0), (3, 0)].into(), tenant: 0, service: 0 };
        listed.write(&home);
        let node = Wrapped::new(&home);
        let asked = Arc::clone(&node.asked);
        let settings = Settings { cni: Some(home.path("state/cni.sock")), ..home.settings() };
        let agent = Agent::start(node, settings).unwrap_or_else(|error| panic!("{error}"));
        Self { home, agent, asked, listed }
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Policy(file, Some(text)) => {
                let (name, texts) = POLICIES[file];
                self.home.write(&format!("policies/{name}"), texts[text]);
            }
            Step::Policy(file, None) => _ = fs::remove_file(self.home.path(&format!("policies/{}", POLICIES[file].0))),
            Step::Workload(at, Some(text)) => _ = self.listed.workloads.insert(at, text),
            Step::Workload(at, None) => _ = self.listed.workloads.remove(&at),
            Step::Tenant(at) => self.listed.tenant = at,
            Step::Service(at) => self.listed.service = at,
            Step::Add(at, name, address) => {
                self.agent.attach(&[add(at, &format!("c{name}"), address)]);
            }
            Step::Gone(at) => _ = self.agent.attach(&[request(Ask::Del { key: key(at) })]),
            Step::Only(at) => _ = self.agent.attach(&[request(Ask::Gc { valid: vec![key(at)] }), add(9, "c9", 30)]),
            Step::Network(other) => {
                let addresses = if other { vec!["192.0.2.1".parse().unwrap()] } else { Vec::new() };
                self.home.links.network().discovered = Discovered { addresses, ..Discovered::default() };
            }
            Step::Refuses(writes) => {
                self.home.store.memory().budget = Some(writes);
                return;
            }
        }
        self.listed.write(&self.home);
        self.agent.refresh();
        if self.home.store.memory().budget.take().is_some() {
            self.agent.refresh();
        }
    }

    /// What is in force, compiled anew.
    fn whole(&self) -> Desired {
        let reader = Reader::open(&self.home.state()).unwrap().unwrap();
        let inputs = reader.in_force().unwrap().unwrap().inputs;
        let attachments: Attachments = match fs::read(self.home.path("state/attachments.json")) {
            Ok(text) => serde_json::from_slice(&text).unwrap(),
            Err(_) => Attachments::default(),
        };
        let built = settle(&inputs.clone().into(), Some(&inputs), |policies, workloads| {
            Model::build(policies, &attachments.join(workloads, "n1")?)
        });
        let model = built.unwrap_or_else(|found| panic!("{found}")).built;
        let compiled: Result<Desired, Diagnostics> =
            compile(&model, "n1", &self.home.links.network().discovered, 1_767_225_600_000_000_000);
        let mut desired = compiled.unwrap_or_else(|found| panic!("{found}"));
        desired.endpoints.retain(|endpoint| !endpoint.link.is_empty());
        let guarded: Vec<_> = desired.endpoints.iter().map(|endpoint| endpoint.name.clone()).collect();
        for known in desired.addresses.values_mut() {
            known.endpoint = known.endpoint.take().filter(|name| guarded.contains(name));
        }
        desired
    }

    fn check(&self, when: &str) {
        Canonical::of(&self.asked.lock().unwrap()).assert_is(&Canonical::of(&self.whole()), when);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_whole_compile_says_the_same(steps in prop::collection::vec(step(), 1..32)) {
        let mut rig = Rig::new();
        rig.check("at first");
        for (at, step) in steps.iter().enumerate() {
            rig.take(step);
            rig.check(&format!("at step {at}, {step:?}"));
        }
    }
}

/// Nothing is compiled whole for one pod, one policy or labels; all of it is for what no event changes.
#[test]
fn what_differs_is_compiled() {
    let mut rig = Rig::new();
    let whole = |rig: &Rig| rig.agent.health().compiles.whole;
    assert_eq!(whole(&rig), 1);
    for step in [
        Step::Workload(0, Some(1)),
        Step::Workload(2, Some(0)),
        Step::Workload(2, Some(1)),
        Step::Policy(1, Some(0)),
        Step::Policy(1, Some(1)),
        Step::Policy(1, None),
        Step::Tenant(1),
        Step::Service(1),
        Step::Add(0, 0, 18),
        Step::Add(1, 1, 19),
        // Another one has the address.
        Step::Add(2, 2, 19),
        Step::Gone(0),
        Step::Only(1),
        Step::Workload(2, None),
    ] {
        let before = rig.agent.health().compiles.changes;
        rig.take(&step);
        assert_eq!(whole(&rig), 1, "{step:?}");
        let changed = rig.agent.health().compiles.changes > before;
        assert_eq!(changed, !matches!(step, Step::Add(2, ..)), "{step:?}");
        rig.check(&format!("{step:?}"));
    }
    for (at, step) in (2..).zip([Step::Policy(0, Some(1)), Step::Policy(3, Some(0)), Step::Network(true)]) {
        rig.take(&step);
        assert_eq!(whole(&rig), at, "{step:?}");
        rig.check(&format!("{step:?}"));
    }
}

/// Whoever takes the only name of a port away starts, and who had it may go: rules about that port are about nothing, and nothing else is.
#[test]
fn a_port_that_nobody_has_any_more_keeps_no_change_out() {
    let mut rig = Rig::new();
    for step in [Step::Policy(0, Some(0)), Step::Workload(1, None), Step::Service(2)] {
        rig.take(&step);
    }
    let note = |rig: &mut Rig| {
        let basis = rig.agent.basis();
        basis.model.warnings.0.iter().any(|warning| warning.message.contains("has a port `sql`"))
    };
    assert_eq!(rig.agent.refused(), "");
    assert_eq!(rig.agent.attach(&[add(1, "new", 19)]), [Answer::Done]);
    rig.check("somebody without the name");
    // A container has it for a while, and goes.
    for step in [Step::Workload(3, Some(1)), Step::Add(0, 0, 18)] {
        rig.take(&step);
        assert!(!note(&mut rig), "{step:?}");
        assert_eq!(rig.agent.refused(), "", "{step:?}");
        rig.check(&format!("{step:?}"));
    }
    for step in [Step::Gone(0), Step::Workload(3, None), Step::Policy(2, Some(0)), Step::Policy(3, Some(0))] {
        rig.take(&step);
        assert_eq!(rig.agent.refused(), "", "{step:?}");
        rig.check(&format!("{step:?}"));
    }
    assert!(note(&mut rig), "{:?}", rig.agent.basis().model.warnings);
}

//! In a cluster what does not fit harms nobody but those whom it is about: neither a policy that fills a table, nor policies that fit and do not fit together
//! on one pod.

use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{Arc, Mutex},
    time::Duration,
};

use bulkhead_controller::{
    agent::{Agent, Settings},
    control::Control as _,
    input::{Files, LIVE, Listing},
    source::{Heard, Source},
};
use bulkhead_dataplane::{
    cni::protocol::{Answer, Ask, Request, VERSION},
    desired::{Desired, Peers},
    node::Node as _,
    store::{Prefixes4, Table as _},
};

use crate::{
    live::{attached, cluster},
    support::{Home, Wrapped},
};

/// A cluster that says what it is told to say.
#[derive(Clone, Debug, Default)]
struct Told(Arc<Mutex<(BTreeMap<String, String>, Vec<[&'static str; 5]>)>>);

impl Told {
    fn pods(pods: &[[&'static str; 5]]) -> Self {
        let told = Self::default();
        told.0.lock().unwrap().1 = pods.to_vec();
        told
    }

    fn policy(&self, name: &str, text: Option<String>) {
        let mut told = self.0.lock().unwrap();
        match text {
            Some(text) => _ = told.0.insert(name.to_owned(), text),
            None => _ = told.0.remove(name),
        }
    }

    fn label(&self, at: usize, labels: &'static str) {
        self.0.lock().unwrap().1[at][4] = labels;
    }
}

/// Its agent on a node.
struct Lab {
    home: Home,
    agent: Agent<Wrapped>,
    /// What was published last.
    asked: Arc<Mutex<Desired>>,
}

impl Lab {
    fn start(home: Home, told: &Told) -> Self {
        let settings =
            Settings { source: Arc::new(told.clone()), cni: Some(home.path("state/cni.sock")), ..home.settings() };
        let node = Wrapped::new(&home);
        let asked = Arc::clone(&node.asked);
        let agent = Agent::start(node, settings).unwrap_or_else(|error| panic!("{error}"));
        Self { home, agent, asked }
    }

    /// The next agent.
    fn again(self, told: &Told) -> Self {
        let Self { home, agent, .. } = self;
        drop(agent);
        Self::start(home, told)
    }

    fn ask(&mut self, name: &str, uid: &str, address: &str) -> Answer {
        let ask = Ask::Add(attached(name, uid, address));
        let add = Request { version: VERSION, network: "cbr0".to_owned(), waits: true, ask };
        self.agent.attach(&[add]).remove(0)
    }

    fn run(&mut self, name: &str, uid: &str, address: &str) {
        assert_eq!(self.ask(name, uid, address), Answer::Done, "{name}");
    }

    fn refresh(&mut self) -> String {
        self.agent.refresh();
        self.agent.refused().to_owned()
    }

    /// Names of the rules by which a pod of the node is reached.
    fn reached(&self, pod: &str) -> Vec<String> {
        let desired = self.asked.lock().unwrap();
        let endpoint = desired.endpoints.iter().find(|endpoint| endpoint.name.workload == pod).expect("it runs here");
        let entries = desired.sets[endpoint.views[0].ingress.0 as usize].classes[0].iter().flat_map(|at| &at.entries);
        let rules = entries.flat_map(|entry| match &entry.peers {
            Peers::Any(rule) => vec![*rule],
            Peers::Selectors(some) => some.iter().map(|(_, rule)| *rule).collect(),
        });
        let names: BTreeSet<_> = rules.map(|rule| desired.rules[rule.0 as usize].name.clone()).collect();
        names.into_iter().collect()
    }

    fn is_reached_by(&self, pod: &str, policy: &str) -> bool {
        self.reached(pod).iter().any(|rule| rule.contains(policy) && !rule.contains("isolated"))
    }
}

impl Source for Told {
    fn read(&self) -> Files {
        let told = self.0.lock().unwrap();
        let mut workloads = cluster(&told.1);
        Arc::make_mut(workloads.nodes.get_mut("n1").unwrap()).addresses.insert("192.0.2.1".parse().unwrap());
        let policies = told.0.iter().map(|(name, text)| (name.clone(), Ok(text.clone()))).collect();
        Files { policies: Ok(policies), workloads: (LIVE.to_owned(), Ok(Listing::Live(Arc::new(workloads)))) }
    }

    fn watch(&self, _heard: Heard) -> Option<Box<dyn Any>> {
        None
    }

    fn quiet(&self) -> Duration {
        Duration::ZERO
    }

    fn has_news(&self) -> bool {
        true
    }
}

/// A NetworkPolicy for pods with a label.
fn policy(name: &str, label: &str, ingress: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{ name: {name}, namespace: shop }}\n\
         spec:\n  podSelector: {{ matchLabels: {{ {label}: yes-it-is }} }}\n  ingress:\n{ingress}"
    )
}

fn from_blocks(count: usize) -> String {
    from_blocks_of("198.51.100", count)
}

fn from_blocks_of(net: &str, count: usize) -> String {
    (0..count).map(|at| format!("  - from: [{{ ipBlock: {{ cidr: {net}.{at}/32 }} }}]\n")).collect()
}

fn to_ports(first: u16, count: u16) -> String {
    (0..count).map(|at| format!("  - ports: [{{ port: {} }}]\n", first + 2 * at)).collect()
}

const PODS: [[&str; 5]; 3] = [
    ["web", "u1", "n1", "", "app: web, one: yes-it-is"],
    ["db", "u2", "n1", "", "app: db, two: yes-it-is"],
    ["late", "u3", "n1", "", "app: late, three: yes-it-is"],
];

/// A node with two pods, policies for each, and room for so many more prefixes.
fn lab(room: usize) -> (Told, Lab) {
    let (home, told) = (Home::new(), Told::pods(&PODS));
    told.policy("one", Some(policy("one", "one", &to_ports(1, 2))));
    told.policy("two", Some(policy("two", "two", &from_blocks(2))));
    let mut lab = Lab::start(home, &told);
    lab.run("web", "u1", "10.0.0.1");
    lab.run("db", "u2", "10.0.0.2");
    let tables = lab.home.node().unwrap().status().unwrap().tables;
    let used = tables.iter().find(|of| of.table == Prefixes4::NAME).unwrap().used;
    lab.home.store.set_limit::<Prefixes4>(used + room);
    assert_eq!(lab.agent.refused(), "");
    (told, lab)
}

/// Others go on: policies that come later, pods that start, and the next agent.
#[test]
fn a_policy_that_fills_a_table_is_held_back_alone() {
    let (told, mut lab) = lab(4);
    told.policy("many", Some(policy("many", "one", &from_blocks(40))));
    told.policy("three", Some(policy("three", "three", &to_ports(80, 1))));
    let refused = lab.refresh();
    assert!(refused.contains("`networkpolicy shop/many` needs 40 of"), "{refused}");
    assert!(refused.contains("many is not in force: it never was good; isolated until it is"), "{refused}");
    assert!(!refused.contains("three"), "{refused}");
    // Another node may have room.
    let found = lab.agent.standing(&BTreeMap::new()).found;
    assert!(found.0.iter().all(|found| found.is_local == found.place.is_some()), "{found:?}");
    assert!(lab.is_reached_by("web", "shop/one") && !lab.is_reached_by("web", "shop/many"), "{:?}", lab.reached("web"));
    lab.run("late", "u3", "10.0.0.3");
    assert!(lab.is_reached_by("late", "shop/three"), "{:?}", lab.reached("late"));

    // What was good and is too large now holds as it was.
    told.policy("two", Some(policy("two", "two", &from_blocks(30))));
    let refused = lab.refresh();
    assert!(refused.contains("two is not in force as it is: its last good text is"), "{refused}");
    let mut lab = lab.again(&told);
    assert_eq!(lab.agent.refused(), refused, "the next agent begins with the same");

    told.policy("many", None);
    told.policy("two", Some(policy("two", "two", &from_blocks(3))));
    assert_eq!(lab.refresh(), "");
}

/// So does an agent that knows of nothing that was good.
#[test]
fn an_agent_starts_beside_a_policy_that_fills_a_table() {
    let (told, lab) = lab(4);
    told.policy("many", Some(policy("many", "one", &from_blocks(40))));
    let Lab { home, agent, .. } = lab;
    drop(agent);
    fs::remove_file(home.path("state/bulkhead.db")).unwrap();
    let mut lab = Lab::start(home, &told);
    assert!(lab.agent.refused().contains("many is not in force: it never was good"), "{}", lab.agent.refused());
    lab.run("late", "u3", "10.0.0.3");
    assert!(lab.is_reached_by("web", "shop/one") && !lab.is_reached_by("web", "shop/many"), "{:?}", lab.reached("web"));
}

/// A pod whose own policy has no room on the node does not start, others do.
#[test]
fn only_who_needs_the_room_does_not_start() {
    let (told, mut lab) = lab(4);
    told.policy("many", Some(policy("many", "three", &from_blocks(40))));
    assert_eq!(lab.refresh(), "", "nobody needs it yet");
    let Answer::Refused { message, .. } = lab.ask("late", "u3", "10.0.0.3") else { panic!("it starts") };
    assert!(message.contains("`networkpolicy shop/many` needs 40 of"), "{message}");
    told.label(2, "app: late");
    assert_eq!(lab.refresh(), "");
    lab.run("late", "u3", "10.0.0.3");
}

/// Somebody writes a large policy for nobody, and then labels a pod that runs: no policy changed, and others go on all the same.
#[test]
fn a_label_that_fills_a_table_touches_its_pod_alone() {
    let (told, mut lab) = lab(4);
    // Larger than the one that comes, and it has always been here.
    told.policy("two", Some(policy("two", "two", &from_blocks(6))));
    told.policy("many", Some(policy("many", "three", &from_blocks_of("203.0.113", 5))));
    assert_eq!(lab.refresh(), "", "nobody needs it yet");
    told.label(0, "app: web, three: yes-it-is, four: yes-it-is");
    told.policy("four", Some(policy("four", "four", &to_ports(80, 1))));
    let refused = lab.refresh();
    assert!(refused.contains("`networkpolicy shop/many` needs 5 of"), "{refused}");
    assert!(refused.contains("many is not in force: it was, and does not fit any more; isolated until"), "{refused}");
    assert!(!refused.contains("four"), "{refused}");
    assert!(
        lab.is_reached_by("web", "shop/four") && !lab.is_reached_by("web", "shop/many"),
        "{:?}",
        lab.reached("web")
    );
    lab.run("late", "u3", "10.0.0.3");
    let mut lab = lab.again(&told);
    assert!(lab.is_reached_by("web", "shop/four"), "{:?}", lab.reached("web"));

    told.label(0, "app: web, one: yes-it-is");
    told.label(2, "app: late");
    assert_eq!(lab.refresh(), "");
}

/// What an admin policy in force denies is not let go for want of room, however it comes about: then all stays as it was.
#[test]
fn no_room_opens_nothing_that_is_denied() {
    let (told, mut lab) = lab(4);
    let networks: Vec<_> = (0..20).map(|at| format!("203.0.113.{at}/32")).collect();
    let subject = "{ pods: { namespaceSelector: {}, podSelector: { matchLabels: { three: yes-it-is } } } }";
    let rule = format!("{{ action: Deny, to: [{{ networks: [{}] }}] }}", networks.join(", "));
    let spec = format!("{{ priority: 1, subject: {subject}, egress: [{rule}] }}");
    let head = "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: { name: edge }\n";
    told.policy("edge", Some(format!("{head}spec: {spec}\n")));
    assert_eq!(lab.refresh(), "", "nobody needs it yet");
    let before = lab.home.store.snapshot();
    told.label(0, "app: web, three: yes-it-is");
    let refused = lab.refresh();
    assert!(refused.contains("`adminnetworkpolicy edge` needs 20 of"), "{refused}");
    assert!(!refused.contains("is not in force"), "{refused}");
    assert!(lab.home.store.snapshot() == before);
    told.label(0, "app: web, one: yes-it-is");
    assert_eq!(lab.refresh(), "");
}

/// Objects have no other names, as files have: what is deleted is gone, whatever is held back.
#[test]
fn what_is_deleted_goes_while_another_is_held_back() {
    let (told, mut lab) = lab(4);
    told.policy("many", Some(policy("many", "one", &from_blocks(40))));
    told.policy("two", None);
    let refused = lab.refresh();
    assert!(refused.contains("many is not in force") && !refused.contains("two is"), "{refused}");
    assert_eq!(lab.reached("db"), ["not isolated"]);
}

/// Labels of a pod bring policies together that do not fit: nobody changed a policy that could be held back.
#[test]
fn a_pod_whose_policies_do_not_fit_together_is_shut_alone() {
    let (told, mut lab) = lab(4);
    told.policy("low", Some(policy("low", "low", &to_ports(1001, 300))));
    told.policy("high", Some(policy("high", "high", &to_ports(3001, 300))));
    assert_eq!(lab.refresh(), "");
    told.label(0, "app: web, low: yes-it-is, high: yes-it-is");
    let refused = lab.refresh();
    assert!(refused.contains("intervals, 784 fit"), "{refused}");
    assert!(refused.contains("they reach nobody, until their rules fit: shop/web"), "{refused}");
    let shut = ["node may reach its workloads", "rules do not fit, isolated ingress"];
    assert_eq!(lab.reached("web"), shut);

    // Who asks how policies stand is told of the one that isolates it first, and only of that one.
    let texts =
        [("high", policy("high", "high", &to_ports(3001, 300))), ("low", policy("low", "low", &to_ports(1001, 300)))];
    let standing = lab.agent.standing(&texts.map(|(name, text)| (name.to_owned(), text.into())).into());
    assert_eq!((standing.differ, standing.refused), (BTreeSet::from(["high".to_owned()]), String::new()));
    assert!(standing.found.to_string().contains("intervals, 784 fit"), "{}", standing.found);
    assert!(standing.found.0.iter().all(|found| found.is_local), "{:?}", standing.found);

    // Whatever else happens goes on, and what was shut stays so. A policy that does not fit by itself is held back as ever, and shuts nobody else.
    let wide = policy("wide", "two", &to_ports(1, 400)) + &to_ports(10_001, 400);
    told.policy("wide", Some(wide));
    let both = lab.refresh();
    assert!(both.contains("wide is not in force: it never was good"), "{both}");
    assert!(both.ends_with("until their rules fit: shop/web"), "{both}");
    assert!(lab.is_reached_by("db", "shop/two"), "{:?}", lab.reached("db"));
    told.policy("wide", None);
    told.policy("three", Some(policy("three", "three", &to_ports(80, 1))));
    assert_eq!(lab.refresh(), refused);
    lab.run("late", "u3", "10.0.0.3");
    assert!(lab.is_reached_by("late", "shop/three"), "{:?}", lab.reached("late"));
    let mut lab = lab.again(&told);
    assert_eq!(lab.agent.refused(), refused, "the next agent shuts it too");
    assert_eq!(lab.reached("web"), shut);

    told.label(0, "app: web, low: yes-it-is");
    assert_eq!(lab.refresh(), "");
    assert!(lab.is_reached_by("web", "shop/low"), "{:?}", lab.reached("web"));
}

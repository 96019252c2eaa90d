//! What runtimes tell of containers beside what a cluster says of pods.

use std::{
    any::Any,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bulkhead_controller::{
    adopt::Scope,
    agent::{Agent, Settings},
    attachments::{Attachment, Attachments},
    bypass,
    control::Control as _,
    diagnostic::source,
    input::{Files, LIVE, Listing},
    manifest::Manifests,
    source::{Heard, Source},
    workloads::{Workload, WorkloadName, Workloads},
};
use bulkhead_dataplane::{
    cni::protocol::{Answer, Ask, Attached, Interface, Key, Request, VERSION},
    memory::MemoryNode,
    node::{ContainerLink, Containers, Status},
};

use crate::{
    home::{Home, eventually},
    support::{keep_result, report},
};

/// Pods as `name uid node address labels`.
pub(crate) fn cluster(pods: &[[&str; 5]]) -> Workloads {
    let mut manifests = Manifests::default();
    for [name, uid, node, address, labels] in pods {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {name}, namespace: shop, uid: {uid}, labels: {{ {labels} }} }}\n\
             spec: {{ nodeName: {node} }}\nstatus: {{ podIP: '{address}' }}\n"
        );
        manifests.read(&source(*name, text)).unwrap_or_else(|found| panic!("{found}"));
    }
    let mut workloads = manifests.workloads().unwrap_or_else(|found| panic!("{found}"));
    workloads.live = true;
    for workload in workloads.workloads.values_mut() {
        Arc::make_mut(workload).endpoints.retain(|endpoint| !endpoint.placeholder);
    }
    workloads
}

fn attach(attachments: &mut Attachments, name: &str, uid: &str, address: &str) {
    let attached = attached(name, uid, address);
    attachments.add(Attachment { network: "cbr0".to_owned(), attached });
}

pub(crate) fn attached(name: &str, uid: &str, address: &str) -> Attached {
    let interface = Interface {
        name: "eth0".to_owned(),
        link: format!("veth-{uid}"),
        ifindex: 7,
        addresses: vec![address.parse().unwrap()],
    };
    Attached {
        key: Key { container: format!("sandbox-{uid}"), ifname: "eth0".to_owned() },
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        uid: Some(uid.to_owned()),
        labels: [].into(),
        interfaces: vec![interface],
    }
}

fn name(name: &str) -> WorkloadName {
    WorkloadName::new("shop".to_owned(), name.to_owned())
}

/// `labels link addresses` of each endpoint.
fn shown(workload: &Workload) -> Vec<String> {
    let labels: Vec<_> = workload.labels.iter().map(|(label, value)| format!("{label}={value}")).collect();
    let endpoint = |endpoint: &bulkhead_controller::workloads::Endpoint| {
        format!("{} {} {:?}", labels.join(","), endpoint.link, endpoint.addresses)
    };
    workload.endpoints.iter().map(endpoint).collect()
}

fn joined(attachments: &Attachments, workloads: &Workloads) -> Workloads {
    let joined = attachments.join(workloads, "n1").unwrap_or_else(|found| panic!("{found}"));
    // One by one it comes to the same, where nobody else has the addresses any more.
    for (name, workload) in &joined.workloads {
        let one = attachments.joined(workloads, "n1", name, |_, _| None).unwrap_or_else(|found| panic!("{found}"));
        let one = attachments.left_of(workloads, name).or(one).unwrap();
        assert_eq!((shown(&one), &one.node), (shown(workload), &workload.node), "{name}");
    }
    joined
}

/// The status of a pod lags behind its network, and an address that is given again is still another pod's there.
#[test]
fn who_is_here_is_known_from_the_runtime() {
    let workloads = cluster(&[
        ["web", "u1", "n1", "10.244.0.4", "app: web"],
        ["gone", "u2", "n1", "10.244.0.5", "app: gone"],
        ["far", "u3", "n2", "10.244.1.5", "app: far"],
    ]);
    let mut attachments = Attachments::default();
    attach(&mut attachments, "web", "u1", "10.244.0.5");
    let joined = joined(&attachments, &workloads);
    assert_eq!(shown(&joined.workloads[&name("web")]), ["app=web veth-u1 [10.244.0.5]"]);
    assert_eq!(shown(&joined.workloads[&name("gone")]), [""; 0]);
    assert_eq!(shown(&joined.workloads[&name("far")]), ["app=far  [10.244.1.5]"]);
}

/// The next pod of a StatefulSet has its name, and may start on another node before the last one has ended.
#[test]
fn another_pod_of_the_same_name_is_another_workload() {
    let before = cluster(&[["web-0", "u1", "n1", "", "app: web, v: a"]]);
    let mut attachments = Attachments::default();
    attach(&mut attachments, "web-0", "u1", "10.244.0.5");
    assert!(attachments.learn(&before) && !attachments.learn(&before));
    let after = cluster(&[["web-0", "u2", "n2", "10.244.1.5", "app: web, v: b"]]);
    let joined = joined(&attachments, &after);
    assert_eq!(shown(&joined.workloads[&name("web-0")]), ["app=web,v=b  [10.244.1.5]"]);
    assert_eq!(shown(&joined.workloads[&name("web-0.u1")]), ["app=web,v=a veth-u1 [10.244.0.5]"]);
    assert_eq!(&*joined.workloads[&name("web-0.u1")].node, "n1");
}

/// Else the walls that select it would fall while it runs on.
#[test]
fn a_container_keeps_its_labels_when_its_pod_is_deleted() {
    let mut attachments = Attachments::default();
    attach(&mut attachments, "web", "u1", "10.244.0.5");
    attachments.learn(&cluster(&[["web", "u1", "n1", "", "app: web"]]));
    attachments.learn(&cluster(&[["web", "u2", "n1", "", "app: other"]]));
    let joined = joined(&attachments, &cluster(&[]));
    assert_eq!(shown(&joined.workloads[&name("web")]), ["app=web veth-u1 [10.244.0.5]"]);
}

/// Nothing may be told between its start and the end of its pod, not even to the next agent.
#[test]
fn a_container_has_the_labels_of_its_pod_from_its_start() {
    let home = Home::new();
    let mut agent = agent(&home, &[["web", "u1", "n1", "", "app: web"]]);
    let ask = Ask::Add(attached("web", "u1", "10.0.0.1"));
    let add = Request { version: VERSION, network: "cbr0".to_owned(), waits: true, ask };
    assert_eq!(agent.attach(&[add]), [Answer::Done]);
    let kept = fs::read_to_string(home.path("state/attachments.json")).unwrap();
    let kept: Attachments = serde_json::from_str(&kept).unwrap();
    assert_eq!(shown(&joined(&kept, &cluster(&[])).workloads[&name("web")]), ["app=web veth-u1 [10.0.0.1]"]);
}

/// A cluster that stays as it is.
#[derive(Debug)]
struct Still {
    workloads: Arc<Workloads>,
    /// Whether what it says may be older than a pod.
    is_behind: AtomicBool,
}

impl Source for Still {
    fn read(&self) -> Files {
        let workloads = (LIVE.to_owned(), Ok(Listing::Live(Arc::clone(&self.workloads))));
        Files { policies: Ok([].into()), workloads }
    }

    fn watch(&self, _heard: Heard) -> Option<Box<dyn Any>> {
        None
    }

    fn quiet(&self) -> Duration {
        Duration::ZERO
    }

    fn vouches(&self, _attached: &Attached) -> Result<(), String> {
        if self.is_behind.load(Relaxed) { Err("no watch began".to_owned()) } else { Ok(()) }
    }
}

/// An agent of such a cluster.
fn agent(home: &Home, pods: &[[&str; 5]]) -> Agent<MemoryNode> {
    agent_of(home, pods).0
}

/// The same, and the cluster.
fn agent_of(home: &Home, pods: &[[&str; 5]]) -> (Agent<MemoryNode>, Arc<Still>) {
    let mut workloads = cluster(pods);
    Arc::make_mut(workloads.nodes.get_mut("n1").unwrap()).addresses.insert("192.0.2.1".parse().unwrap());
    let still = Arc::new(Still { workloads: Arc::new(workloads), is_behind: AtomicBool::new(false) });
    let scope = Scope { cache: Some(home.path("cache")), ..Scope::default() };
    let source = Arc::clone(&still) as Arc<dyn Source>;
    let settings = Settings { source, cni: Some(home.path("state/cni.sock")), scope, ..home.settings() };
    (Agent::start(home.node().unwrap(), settings).unwrap_or_else(|error| panic!("{error}")), still)
}

/// Policies that are older than it may be wanting: also for what started shut, and is opened by whoever knows it.
#[test]
fn nobody_is_let_in_by_what_may_be_old() {
    let home = Home::new();
    let (mut agent, still) = agent_of(&home, &[["web", "u1", "n1", "", "app: web"]]);
    let mut add = || {
        let ask = Ask::Add(attached("web", "u1", "10.0.0.1"));
        agent.attach(&[Request { version: VERSION, network: "cbr0".to_owned(), waits: true, ask }]).remove(0)
    };
    still.is_behind.store(true, Relaxed);
    let Answer::Refused { message, .. } = add() else { panic!("it starts") };
    assert!(message.contains("no watch began"), "{message}");
    still.is_behind.store(false, Relaxed);
    assert_eq!(add(), Answer::Done);
}

/// Its pod may have been deleted in the moment before: without labels no policy would select it.
#[test]
fn a_container_does_not_start_without_its_pod() {
    let home = Home::new();
    let mut agent = agent(&home, &[["web", "u1", "n1", "", "app: web"]]);
    let mut add = |uid: &str, waits| {
        let ask = Ask::Add(attached("web", uid, "10.0.0.1"));
        agent.attach(&[Request { version: VERSION, network: "cbr0".to_owned(), waits, ask }]).remove(0)
    };
    let Answer::Refused { message, .. } = add("u2", true) else { panic!("it starts as nobody") };
    assert!(message.contains("pod shop/web is gone, or is another one"), "{message}");
    let refused = |answer| match answer {
        Answer::Done => String::new(),
        Answer::Refused { message, .. } => message,
    };
    let known = refused(add("u1", true));
    assert!(!known.contains("another one"), "{known}");
}

/// How policies stand is told also of a node that drops nothing although its agent would.
#[test]
fn a_node_that_is_bypassed_stands_as_one_that_observes() {
    let home = Home::new();
    let mut agent = agent(&home, &[["web", "u1", "n1", "", "app: web"]]);
    for bypassed_until in [None, Some(1_700_000_000_000_000_000), None] {
        agent.looked(Ok(Status { bypassed_until, input_rule: true, ..Status::default() }));
        assert_eq!(agent.standing(&[].into()).observe, bypassed_until.is_some());
    }
}

/// A bypass that nobody looked at is in the audit log all the same: who began it, who ended it, and why.
#[test]
fn who_bypasses_between_two_looks_is_recorded_once() {
    let home = Home::new();
    let pods = [["web", "u1", "n1", "", "app: web"]];
    let mut agent = agent(&home, &pods);
    for (until, reason) in [(Some(1_900_000_000_000_000_000), "the cart is down"), (None, "it is up again")] {
        bypass::record(&bypass::Record::new(until, reason), &home.state()).unwrap();
    }
    let recorded = || {
        let text = fs::read_to_string(home.state().join("audit.jsonl")).unwrap();
        let records = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let told = |record: serde_json::Value| {
            let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
            (text(&record["action"]), record["actor"]["uid"].as_u64(), text(&record["detail"]))
        };
        records.map(told).filter(|(action, ..)| action.starts_with("enforcement.bypass")).collect::<Vec<_>>()
    };
    assert!(recorded().is_empty());
    agent.check();
    let uid = Some(u64::from(nix::unistd::getuid().as_raw()));
    let all = recorded();
    let [begin, end] = &all[..] else { panic!("{all:?}") };
    assert_eq!((begin.0.as_str(), begin.1), ("enforcement.bypass", uid));
    assert!(begin.2.starts_with("until 2030-") && begin.2.contains("the cart is down (at 20"), "{begin:?}");
    assert_eq!((end.0.as_str(), end.1), ("enforcement.bypass_end", uid));
    assert!(end.2.starts_with("it is up again (at 20"), "{end:?}");
    agent.check();
    drop(agent);
    self::agent(&home, &pods).check();
    assert_eq!(recorded(), all, "nor does the next agent record them again");
}

/// What the agent has forgotten of a pod that is deleted and still runs nobody says again: with no labels it would have no walls.
#[test]
fn who_runs_without_its_pod_is_shut_once_it_is_forgotten() {
    let home = Home::new();
    let pods = [["web", "u1", "n1", "", "app: web"], ["gone", "u2", "n1", "", "app: web"]];
    let containers = [("web", "u1", 1), ("gone", "u2", 2)].map(|(name, uid, index)| {
        let mut attached = attached(name, uid, &format!("10.0.0.{index}"));
        attached.interfaces[0].ifindex = index;
        attached
    });
    let links = containers.each_ref().map(|Attached { interfaces, .. }| ContainerLink {
        link: interfaces[0].link.clone(),
        index: interfaces[0].ifindex,
        inside: "eth0".to_owned(),
        addresses: interfaces[0].addresses.clone(),
        ..ContainerLink::default()
    });
    let names = links.iter().map(|link| link.link.clone()).collect();
    home.links.network().containers = Containers { links: links.to_vec(), names };
    let mut first = agent(&home, &pods);
    for attached in containers {
        let Attached { key: Key { container, .. }, name, uid, interfaces, .. } = &attached;
        let pod = (container.as_str(), name.as_str(), uid.as_deref().unwrap());
        keep_result(&home, "cbr0", pod, &interfaces[0].link, &interfaces[0].addresses[0].to_string());
        let add = Request { version: VERSION, network: "cbr0".to_owned(), waits: true, ask: Ask::Add(attached) };
        assert_eq!(first.attach(&[add]), [Answer::Done]);
    }
    assert_eq!(home.attached(), ["veth-u1", "veth-u2"]);
    drop(first);
    let mut second = agent(&home, &pods[..1]);
    assert_eq!(home.attached(), ["veth-u1", "veth-u2"], "it is remembered");
    second.refresh();
    drop(second);

    fs::remove_file(home.path("state/attachments.json")).unwrap();
    let mut third = agent(&home, &pods[..1]);
    eventually("it is told of", || {
        third.adopt();
        third.health().strangers == 1
    });
    assert_eq!(home.attached(), ["veth-u1"]);
    let found = report(&mut third).found;
    let [stranger] = &found.strangers[..] else { panic!("{found:?}") };
    assert_eq!((stranger.link.as_str(), stranger.shut), ("veth-u2", true));
    assert!(stranger.why.contains("pod shop/gone is gone"), "{}", stranger.why);
    drop(third);
    let _fourth = agent(&home, &pods);
    assert_eq!(home.attached(), ["veth-u1", "veth-u2"], "its pod is known again");
}

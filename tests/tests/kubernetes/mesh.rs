//! Pods of the shop that all call each other, again and again: under the shop's policy no pair may ever see another verdict than its own.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::Value;

use bulkhead_tests::{
    guarded::{Guarded, eventually, pod},
    inside::Pod,
    probe::{ALIKE, Flow, Pace, Server},
};

use crate::said::Said;

/// Who calls whom; under these names the shop's policy knows them.
pub(crate) const MEMBERS: [&str; 4] = ["db", "web", "guest", "near"];

/// Serves, and calls whoever is listed in a file.
pub(crate) fn member(name: &str, node: &str) -> String {
    let call = "if /agnhost connect $to:8080 --timeout=1s; then echo answered $to; else echo silent $to; fi";
    let script = format!(
        "/agnhost netexec & while true; do for to in $(cat /tmp/peers 2>/dev/null); do ({call}) & done; sleep 1.5; done"
    );
    pod(name, node, &format!("command: [sh, -c, '{script}']"))
}

/// Whether the shop's policy lets one call another: `web` alone calls `db`, and who is neither calls nobody.
fn may_call(from: &str, to: &str) -> bool {
    from == "web" || from == "db" && to != "db"
}

/// Who calls whom.
type Pair = (&'static str, &'static str);

/// What the calls of each pair came to, in order: whether they were answered.
type Calls = BTreeMap<Pair, Vec<bool>>;

pub(crate) struct Mesh {
    /// Names of the members by their addresses.
    names: BTreeMap<String, &'static str>,
    said: [Said; 4],
    /// How often each pair had called when all that may were answered.
    begun: BTreeMap<Pair, usize>,
}

impl Mesh {
    /// Has all call all others, until each that may is answered: the node of a callee hears of a new caller's address when the API server does. From then on
    /// nothing is forgiven, and of who may not call nothing ever.
    pub(crate) fn begin(guarded: &Guarded) -> Self {
        guarded.wait_for(&MEMBERS);
        let list = ["--namespace=shop", "get", "pods", "--output=json"];
        let listed = guarded.kubectl(&[&list[..], &MEMBERS].concat());
        let listed: Value = serde_json::from_str(&listed).unwrap();
        let pod = |name: &str| {
            let found = listed["items"].as_array().unwrap().iter().find(|pod| pod["metadata"]["name"] == name);
            found.unwrap_or_else(|| panic!("no {name}"))
        };
        let address = |name: &str| pod(name)["status"]["podIP"].as_str().unwrap().to_owned();
        let names: BTreeMap<_, _> = MEMBERS.iter().map(|name| (address(name), *name)).collect();
        for from in MEMBERS {
            let others = names.iter().filter(|(_, name)| **name != from).map(|(address, _)| address.as_str());
            let write = format!("echo {} > /tmp/peers", others.collect::<Vec<_>>().join(" "));
            guarded.kubectl(&["--namespace=shop", "exec", from, "--", "sh", "-c", &write]);
        }
        let said = MEMBERS.map(|name| Said::of(guarded, pod(name)));
        let mut mesh = Self { names, said, begun: BTreeMap::new() };
        eventually("all that may call are answered", || {
            let calls = mesh.calls();
            mesh.begun = calls.iter().map(|(pair, calls)| (*pair, calls.len())).collect();
            calls.iter().filter(|((from, to), _)| may_call(from, to)).all(|(_, calls)| calls.last() == Some(&true))
        });
        mesh
    }

    fn calls(&self) -> Calls {
        let pairs = MEMBERS.iter().flat_map(|from| MEMBERS.iter().map(move |to| (*from, *to)));
        let mut calls: Calls = pairs.filter(|(from, to)| from != to).map(|pair| (pair, Vec::new())).collect();
        for (from, said) in MEMBERS.iter().zip(&self.said) {
            for line in said.lines() {
                let Some((said @ ("answered" | "silent"), address)) = line.split_once(' ') else { continue };
                calls.get_mut(&(*from, self.names[address])).unwrap().push(said == "answered");
            }
        }
        calls
    }

    /// Waits until each pair has called more often, and who may was answered. The first of these calls may have begun before.
    pub(crate) fn goes_on(&self, what: &str) {
        let before = self.calls();
        let more = || {
            self.calls().iter().all(|(pair, calls)| {
                let since = &calls[before[pair].len()..];
                since.len() > 1 && (!may_call(pair.0, pair.1) || since[1..].contains(&true))
            })
        };
        eventually(&format!("all pairs call on: {what}"), more);
    }

    /// Looks at all calls of all pairs since they began.
    #[track_caller]
    pub(crate) fn assert_unchanged(&self) {
        for (pair @ (from, to), calls) in self.calls() {
            let may = may_call(from, to);
            let begun = self.begun[&pair];
            let judged = if may { &calls[begun..] } else { &calls[..] };
            assert!(calls.len() > begun + 3, "{from} to {to}: {calls:?}");
            assert!(judged.iter().all(|answered| *answered == may), "{from} to {to}, from {begun} on: {calls:?}");
        }
    }
}

/// Port on which the probed answer, by UDP.
const PROBED: u16 = 9000;
/// `web` calls `db` there. `web` is called by everybody who may call anybody.
const PROBES: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: probes, namespace: shop }
spec:
  podSelector: { matchLabels: { app: db } }
  policyTypes: [Ingress]
  ingress: [{ from: [{ podSelector: { matchLabels: { app: web } } }], ports: [{ protocol: UDP, port: 9000 }] }]
";
/// Of those that may not call, whose first node stops them.
const DENIED: Pace = Pace {
    gap: Duration::from_millis(5),
    look: Duration::from_millis(20),
    bound: Duration::from_millis(200),
    // An hour.
    kept: 720_000,
};
/// What may be answered is not missed because the machine is busy.
const ALLOWED: Pace = Pace { bound: Duration::from_secs(2), ..DENIED };

/// Calls of some pairs of the mesh each few milliseconds, each from a fresh port.
pub(crate) struct Probes {
    flows: [(Pair, Flow); 3],
    since: Instant,
    _servers: [Server; 2],
}

impl Probes {
    /// Calls from now on: one pair that may, from node to node, and for each node one that it alone stops.
    pub(crate) fn begin(guarded: &Guarded) -> Self {
        guarded.apply(PROBES);
        let inside = |name: &str, node: usize| Pod::new(guarded.cluster.node(node), &guarded.address(name)).unwrap();
        let [web, guest] = ["web", "guest"].map(|name| inside(name, 0));
        let [db, near] = ["db", "near"].map(|name| inside(name, 1));
        let servers = [&web, &db].map(|pod| Server::start(pod, PROBED).unwrap());
        let flow = |from: &Pod, to: &Pod, pace| Flow::start(from, to.address, PROBED, pace).unwrap();
        let flows = [
            (("web", "db"), flow(&web, &db, ALLOWED)),
            (("guest", "web"), flow(&guest, &web, DENIED)),
            (("near", "web"), flow(&near, &web, DENIED)),
        ];
        eventually("who may is answered", || flows[0].1.is_answered());
        Self { flows, since: Instant::now(), _servers: servers }
    }

    /// Looks at all calls since they began, and ends them.
    #[track_caller]
    pub(crate) fn end(self, guarded: &Guarded) {
        for ((from, to), flow) in &self.flows {
            let (may, calls) = (may_call(from, to), flow.since(self.since));
            let other: Vec<_> = calls.iter().filter(|(_, answered)| *answered != may).map(|(at, _)| *at).collect();
            assert!(calls.len() > ALIKE, "{from} to {to}: {} calls", calls.len());
            assert!(other.is_empty(), "{from} to {to}, answered: {}, at {other:?} of {:?}", !may, self.since.elapsed());
            println!("{from} to {to}: {} calls in {:.1?}, answered: {may}", calls.len(), self.since.elapsed());
        }
        guarded.kubectl(&["--namespace=shop", "delete", "networkpolicy", "probes"]);
    }
}

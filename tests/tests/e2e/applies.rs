//! An agent that is killed in the middle of applying.

use std::{
    thread,
    time::{Duration, Instant},
};

use bulkhead_controller::{
    api::types::{PlanBody, RevisionBody, StatusBody, WholeRevision},
    client::{Client, ClientError},
};
use bulkhead_fixtures::skip;
use bulkhead_tests::{Agent, Lab};
use bulkhead_topology::Topology;
use serde_json::{Value, json};

use crate::probe::{Ask, Servers, allowed, denied};

const PORTS: [u16; 2] = [8080, 9999];

/// Two policies that open a port each, and differ in what selectors, lists and rows they need.
fn policy(which: usize) -> String {
    let other = ["", "\n  guest: { calls: [web:7000] }"][which];
    let services = format!("  web: {{ calls: ['cart:{}'] }}\n  cart: {{}}{other}", PORTS[which]);
    format!("apiVersion: bulkhead/v1\nkind: Intent\nnamespace: shop\nservices:\n{services}\n")
}

fn plan(client: &Client, text: &str) -> PlanBody {
    client.post("/v1/plan", &json!({ "documents": [{ "name": "shop", "text": text }] })).unwrap()
}

/// The one document in force, and the revision that says so.
fn in_force(client: &Client) -> (u64, String) {
    let status: StatusBody = client.get("/v1/status").unwrap();
    assert!(status.troubles.is_empty(), "{:?}", status.troubles);
    let number = status.revision.number;
    let whole: WholeRevision = client.get(&format!("/v1/revisions/{number}")).unwrap();
    let [document] = &whole.policies[..] else { panic!("{:?}", whole.policies) };
    assert_eq!(document.name, "api/shop");
    (number, document.text.clone())
}

/// After each death the next agent has the revision before or the one that was applied, the kernel enforces that one and no other, and what was answered
/// with success is not lost.
#[test]
fn what_is_in_force_after_a_death_is_one_of_the_two() {
    if !skip::programs() {
        return;
    }
    let lives = if skip::long() { 200 } else { 40 };
    let builder = Topology::builder().nodes(1).workload("web", 0).workload("cart", 0).workload("guest", 0);
    let lab = Lab::new(builder).unwrap();
    let _servers = Servers::start(&lab, "cart", &PORTS, &[]);
    let client = Client::new(&lab.socket(0));
    let mut agent = Agent::start(&lab, 0, &[]).unwrap();
    let apply = |id: &str| client.post::<RevisionBody>("/v1/apply", &json!({ "plan": id }));
    apply(&plan(&client, &policy(0)).id).unwrap();

    // How long one takes that is let alone: deaths are spread over a little more.
    let start = Instant::now();
    apply(&plan(&client, &policy(1)).id).unwrap();
    let whole = start.elapsed();
    let mut moments = fastrand::Rng::with_seed(11);
    let (mut before, mut kept, mut made, mut cut) = (1, 0, 0, 0);
    let (mut number, _) = in_force(&client);
    for life in 0..lives {
        let wanted = 1 - before;
        let planned = plan(&client, &policy(wanted));
        assert!(planned.writes > 0, "life {life}");
        let (client, id) = (client.clone(), planned.id);
        let applying = thread::spawn(move || client.post::<RevisionBody>("/v1/apply", &json!({ "plan": id })));
        let moment = moments.u64(0..u64::try_from(whole.as_micros()).unwrap() * 5 / 4);
        thread::sleep(Duration::from_micros(moment));
        agent.kill().unwrap();
        let told = match applying.join().unwrap() {
            Ok(revision) => Some(revision.number),
            Err(ClientError::Away { .. }) => None,
            Err(other) => panic!("life {life}: {other}"),
        };
        cut += usize::from(told.is_none());

        agent = Agent::start(&lab, 0, &[]).unwrap();
        let client = Client::new(&lab.socket(0));
        let (found, text) = in_force(&client);
        let now = usize::from(text == policy(1));
        assert_eq!(text, policy(now), "life {life}");
        match told {
            Some(revision) => assert_eq!((found, now), (revision, wanted), "life {life}: it was told"),
            None if now == before => assert_eq!(found, number, "life {life}: nothing took effect"),
            None => assert!(found > number, "life {life}"),
        }
        // What the tables hold is what this revision means: to publish it again would write nothing.
        assert_eq!(plan(&client, &text).writes, 0, "life {life}");
        allowed(&lab, "web", "cart", Ask::Tcp(PORTS[now]));
        if life % 10 == 0 {
            denied(&lab, "web", "cart", Ask::Tcp(PORTS[1 - now]));
        }
        if now == wanted {
            made += 1;
        } else {
            kept += 1;
        }
        (before, number) = (now, found);
    }
    println!("{lives} deaths: {cut} before the answer, {kept} left the old revision, {made} the new one");
    assert!(cut > 0 && kept > 0 && made > 0, "{cut} {kept} {made}");
    let listed: Vec<Value> = client.get("/v1/revisions?limit=1000").unwrap();
    let held = listed.iter().filter(|revision| revision["condition"] == "in force").count();
    assert_eq!(held, 1);
}

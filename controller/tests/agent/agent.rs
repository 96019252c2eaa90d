//! What an agent does with good and bad input.

use std::{
    fs,
    os::unix::fs::symlink,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bulkhead_controller::{
    agent::{Agent, Settings, StartError},
    store::{self, Revision},
};
use bulkhead_dataplane::{
    desired::Manner,
    memory::MemoryNode,
    node::{Discovered, Node as _},
    store::{Prefixes4, Store as _},
};

use crate::support::{Home, INTENT, WORKLOADS, Wrapped, endpoint, metrics, stored, value};

const BAD: &str =
    "apiVersion: bulkhead/v1\nkind: Intent\nnamespace: shop\nservices:\n  web: { calls: [bd:5432] }\n  db: {}\n";

fn rules(home: &Home) -> Vec<String> {
    bulkhead_dataplane::names::Names::load(&home.state()).unwrap().rules.into_values().map(|rule| rule.name).collect()
}

fn in_force(home: &Home) -> Revision {
    store::Reader::open(&home.state()).unwrap().unwrap().in_force().unwrap().unwrap()
}

#[test]
fn good_input_is_published_and_stored() {
    let home = Home::new();
    let mut agent = home.agent();
    assert_eq!(home.attached(), ["veth-db", "veth-web"]);
    assert!(rules(&home).contains(&"shop: web calls db:5432/tcp".to_owned()));
    assert_eq!(stored(&home.state()), Some(1));
    let text = metrics(&mut agent);
    for (metric, expected) in [
        ("bulkhead_revision", 1),
        ("bulkhead_policy_error", 0),
        ("bulkhead_publish_error", 0),
        ("bulkhead_endpoints_unguarded", 0),
        ("bulkhead_mark_conflicts", 0),
    ] {
        assert_eq!(value(&text, metric, &[]), Some(expected), "{metric} in\n{text}");
    }
    assert!(
        value(&text, "bulkhead_table_limit", &["table=\"LISTS\""])
            > value(&text, "bulkhead_table_used", &["table=\"LISTS\""])
    );
}

#[test]
fn guards_with_ends_are_published_and_replaced() {
    let home = Home::new();
    let end = SystemTime::now() + Duration::from_secs(3600);
    let guard = |end| {
        format!(
            "apiVersion: bulkhead/v1\nkind: Guard\nname: g\npriority: 1\nrules:\n  - deny: {{ to: metadata }}\n  - deny: {{ to: world:25, expires: {} }}\n",
            humantime::format_rfc3339_seconds(end)
        )
    };
    home.write("policies/guard.yaml", &guard(end));
    let mut agent = home.agent();
    for rule in ["guard g: deny to metadata", "guard g: deny to world:25/tcp"] {
        assert!(rules(&home).contains(&rule.to_owned()), "{rule}");
    }
    let before = home.store.snapshot();
    agent.refresh();
    assert_eq!(home.store.snapshot(), before, "the same input changes nothing");
    home.write("policies/guard.yaml", &guard(SystemTime::now() - Duration::from_secs(3600)));
    agent.refresh();
    assert_eq!(agent.refused(), "");
    assert_ne!(home.store.snapshot(), before);
}

#[test]
fn bad_input_at_the_first_start_ends_it() {
    let home = Home::new();
    home.write("policies/shop.yaml", BAD);
    let Err(StartError::Input(found)) = home.start() else { panic!("started") };
    assert_eq!(
        found.to_string(),
        "shop.yaml:5:18: nothing in namespace `shop` is called `bd`\n  help: did you mean `db`?"
    );
    assert_eq!(home.attached(), [""; 0]);
    assert_eq!(stored(&home.state()), None);
}

#[test]
fn bad_input_later_keeps_the_last_good_revision() {
    let home = Home::new();
    let mut agent = home.agent();
    let before = home.store.snapshot();
    for (name, text) in [
        ("policies/shop.yaml", BAD),
        ("policies/shop.yaml", ""),
        ("policies/more.yaml", "kind: Guard\napiVersion: bulkhead/v1\n"),
        ("workloads.yaml", "apiVersion: bulkhead/v1\nkind: Workloads\nnodes: []\n"),
    ] {
        home.write(name, text);
        agent.refresh();
        assert_ne!(agent.refused(), "", "{name}: {text}");
        assert_eq!(home.store.snapshot(), before, "{name}: {text}");
        let text = metrics(&mut agent);
        assert_eq!(
            (value(&text, "bulkhead_policy_error", &[]), value(&text, "bulkhead_revision", &[])),
            (Some(1), Some(1))
        );
        assert_eq!(stored(&home.state()), Some(1));
        let _ = fs::remove_file(home.path("policies/more.yaml"));
        home.write("policies/shop.yaml", INTENT);
        home.write("workloads.yaml", WORKLOADS);
        agent.refresh();
        assert_eq!(agent.refused(), "", "the old text is good again");
        assert_eq!(stored(&home.state()), Some(1), "and is the same revision");
    }
    fs::remove_dir_all(home.path("policies")).unwrap();
    agent.refresh();
    assert!(agent.refused().contains("cannot be read"), "{}", agent.refused());
    assert_eq!(home.store.snapshot(), before);
}

#[test]
fn bad_input_at_a_later_start_uses_the_last_good_revision() {
    let home = Home::new();
    drop(home.agent());
    home.write("policies/shop.yaml", BAD);
    let mut agent = home.agent();
    assert!(agent.refused().contains("did you mean `db`?"));
    assert!(agent.health().refused);
    assert!(rules(&home).contains(&"shop: web calls db:5432/tcp".to_owned()));

    // And goes on from there.
    home.write("policies/shop.yaml", &INTENT.replace("5432", "5433"));
    agent.refresh();
    assert_eq!(agent.refused(), "");
    assert!(rules(&home).contains(&"shop: web calls db:5433/tcp".to_owned()));
    assert_eq!(stored(&home.state()), Some(2));
}

#[test]
fn services_of_a_file_that_never_was_good_are_isolated() {
    let home = Home::new();
    home.write("policies/shop.yaml", &INTENT.replace("  web: { calls: [db:5432] }\n", ""));
    let mut agent = home.agent();
    let isolates = |service: &str| rules(&home).contains(&format!("shop/{service} isolated ingress"));
    assert_eq!((isolates("db"), isolates("web")), (true, false));
    home.write("policies/front.yaml", &INTENT.replace("db:5432", "bd:5432").replace("  db: {}\n", ""));
    for _ in 0..2 {
        agent.refresh();
        assert_eq!((isolates("db"), isolates("web")), (true, true));
        assert!(agent.refused().contains("front.yaml is not in force"), "{}", agent.refused());
        assert_eq!(agent.health().revision, 2);
    }
    drop(agent);
    let mut agent = home.agent();
    assert_eq!((isolates("web"), agent.health().revision), (true, 2));
    assert!(agent.refused().ends_with("it never was good; isolated until it is: shop/web"), "{}", agent.refused());

    fs::remove_file(home.path("policies/front.yaml")).unwrap();
    agent.refresh();
    assert_eq!((agent.health().revision, agent.refused()), (3, ""));
    let in_force = in_force(&home).inputs;
    assert_eq!(in_force.policies.keys().collect::<Vec<_>>(), ["shop.yaml"]);
}

#[test]
fn one_bad_file_does_not_hold_back_the_others() {
    let home = Home::new();
    let mut agent = home.agent();
    let more = format!(
        "{WORKLOADS}  - {{ name: db-2, namespace: shop, labels: {{ app: db }}, node: n1, endpoints: [{{ addresses: [10.0.0.3], link: veth-db2 }}] }}\n"
    );
    home.write("policies/shop.yaml", BAD);
    home.write("policies/new.yaml", "services: {}\n");
    home.write(
        "policies/ops.yaml",
        "apiVersion: bulkhead/v1\nkind: Intent\nnamespace: ops\nservices: { backup: {} }\n",
    );
    home.write("workloads.yaml", &more);
    agent.refresh();
    assert_eq!(home.attached(), ["veth-db", "veth-db2", "veth-web"], "a new workload is guarded");
    assert!(rules(&home).contains(&"shop: web calls db:5432/tcp".to_owned()));
    for said in [
        "did you mean `db`?",
        "shop.yaml is not in force as it is: its last good text is",
        "new.yaml is not in force: it never was good",
    ] {
        assert!(agent.refused().contains(said), "{said} in {}", agent.refused());
    }
    let error = |agent: &mut Agent<MemoryNode>| value(&metrics(agent), "bulkhead_policy_error", &[]);
    assert_eq!((error(&mut agent), agent.health().revision), (Some(1), 2));

    // What is stored is what is in force, now and after the next start.
    let in_force = in_force(&home).inputs;
    assert_eq!(in_force.policies.keys().collect::<Vec<_>>(), ["ops.yaml", "shop.yaml"]);
    assert_eq!((in_force.policies["shop.yaml"].as_str(), in_force.workloads.1.as_str()), (INTENT, more.as_str()));
    agent.refresh();
    assert_eq!((error(&mut agent), agent.health().revision), (Some(1), 2), "said until it is mended");
    drop(agent);
    let mut agent = home.agent();
    assert_eq!((error(&mut agent), agent.health().revision), (Some(1), 2));
    assert!(agent.refused().contains("new.yaml is not in force: it never was good"), "{}", agent.refused());

    // A change of another file while the agent was away is followed at its start.
    drop(agent);
    home.write("workloads.yaml", WORKLOADS);
    let mut agent = home.agent();
    assert_eq!(home.attached(), ["veth-db", "veth-web"]);
    assert_eq!((error(&mut agent), agent.health().revision), (Some(1), 3));

    home.write("policies/shop.yaml", &INTENT.replace("5432", "5433"));
    fs::remove_file(home.path("policies/new.yaml")).unwrap();
    agent.refresh();
    assert_eq!((error(&mut agent), agent.health().revision, agent.refused()), (Some(0), 4, ""));
}

#[test]
fn a_revision_of_another_node_is_not_used() {
    let home = Home::new();
    drop(home.agent());
    home.write("policies/shop.yaml", BAD);
    let other = Settings { node: "n2".to_owned(), ..home.settings() };
    assert!(matches!(Agent::start(home.node().unwrap(), other), Err(StartError::Input(_))));
    home.agent();
}

#[test]
fn what_does_not_fit_at_a_later_start_uses_the_last_good_revision() {
    let home = Home::new();
    drop(home.agent());
    home.store.set_limit::<Prefixes4>(home.store.entries::<Prefixes4>().unwrap().len());
    home.write("policies/shop.yaml", &INTENT.replace("db: {}", "db: { accepts: [stripe:1] }"));
    let agent = home.agent();
    assert!(agent.refused().contains("PREFIXES4"), "{}", agent.refused());
    assert_eq!(agent.health().revision, 1);
}

#[test]
fn changes_are_published_and_numbered() {
    let home = Home::new();
    let mut agent = home.agent();
    agent.refresh();
    assert_eq!(agent.health().revision, 1, "nothing changed");
    home.write("policies/shop.yaml", &format!("# A comment moves the lines.\n{INTENT}"));
    agent.refresh();
    assert_eq!(agent.health().revision, 2);
    let revision = in_force(&home);
    assert!(revision.inputs.policies["shop.yaml"].starts_with("# A comment"));
    assert_eq!((revision.head.node.as_str(), revision.head.summary.endpoints), ("n1", 2));

    home.write(
        "workloads.yaml",
        &WORKLOADS.lines().filter(|line| !line.contains("db-1")).collect::<Vec<_>>().join("\n"),
    );
    agent.refresh();
    assert_eq!(home.attached(), ["veth-web"], "its link is left alone");
}

#[test]
fn names_for_addresses_are_made_once_for_each_change() {
    let home = Home::new();
    let mut agent = home.agent();
    let (web, db) = (endpoint("web-1"), "10.0.0.2".parse().unwrap());
    let (asked, names) = (agent.peers(), agent.peers().make());
    assert!(Arc::ptr_eq(&asked.make(), &names), "by whoever is first");
    agent.refresh();
    assert!(Arc::ptr_eq(&agent.peers().make(), &names), "nothing changed");
    assert_eq!(names.name(&web, db), "shop/db");

    let before = agent.peers();
    home.write("workloads.yaml", &WORKLOADS.replace("app: db", "app: sql"));
    home.write("policies/shop.yaml", &INTENT.replace("db", "sql"));
    agent.refresh();
    assert_eq!(agent.peers().make().name(&web, db), "shop/sql");
    assert!(Arc::ptr_eq(&before.make(), &names), "who asked before the change has the names of then");
}

#[test]
fn files_that_are_swapped_by_a_symlink_are_seen() {
    let home = Home::new();
    // As a ConfigMap is mounted: files are links through ..data, which is replaced at once.
    let policies = home.path("policies");
    fs::remove_file(policies.join("shop.yaml")).unwrap();
    for (version, text) in [("..v1", INTENT.to_owned()), ("..v2", INTENT.replace("5432", "5433"))] {
        fs::create_dir(policies.join(version)).unwrap();
        fs::write(policies.join(version).join("shop.yaml"), text).unwrap();
    }
    symlink("..v1", policies.join("..data")).unwrap();
    symlink("..data/shop.yaml", policies.join("shop.yaml")).unwrap();
    let mut agent = home.agent();
    symlink("..v2", policies.join("..data_tmp")).unwrap();
    fs::rename(policies.join("..data_tmp"), policies.join("..data")).unwrap();
    agent.refresh();
    assert!(rules(&home).contains(&"shop: web calls db:5433/tcp".to_owned()));
}

#[test]
fn a_link_that_is_missing_leaves_the_others_guarded() {
    let home = Home::new();
    home.links.network().broken.insert("veth-db".to_owned(), "there is no such link".to_owned());
    let mut agent = home.agent();
    assert_eq!(home.attached(), ["veth-web"]);
    assert_eq!(agent.unguarded().iter().map(|unguarded| unguarded.link.as_str()).collect::<Vec<_>>(), ["veth-db"]);
    assert_eq!(value(&metrics(&mut agent), "bulkhead_endpoints_unguarded", &[]), Some(1));

    home.links.network().broken.clear();
    agent.refresh();
    assert_eq!(home.attached(), ["veth-db", "veth-web"]);
    assert_eq!(agent.unguarded(), []);
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let home = Home::new();
    let mut agent = home.agent();
    let before = home.store.snapshot();
    let used = home.store.entries::<Prefixes4>().unwrap().len();
    home.store.set_limit::<Prefixes4>(used);
    home.write("policies/shop.yaml", &INTENT.replace("db: {}", "db: { accepts: [stripe:1] }"));
    agent.refresh();
    let need =
        format!("needs 1 of {} prefixes (PREFIXES4), {used} are configured; not applied, revision 1 stays", used + 1);
    assert!(agent.refused().contains(&need), "{}", agent.refused());
    assert!(!agent.health().failed);
    assert_eq!(home.store.snapshot(), before);
    home.store.set_limit::<Prefixes4>(used + 1);
    home.write("policies/shop.yaml", &INTENT.replace("db: {}", "db: { accepts: [stripe:2] }"));
    agent.refresh();
    assert_eq!(agent.refused(), "");
}

#[test]
fn a_kernel_that_fails_is_tried_again() {
    let home = Home::new();
    let mut agent = home.agent();
    home.store.memory().budget = Some(3);
    home.write("policies/shop.yaml", &INTENT.replace("5432", "5433"));
    agent.refresh();
    assert!(agent.health().failed);
    assert_eq!((agent.health().revision, agent.refused()), (1, ""), "the input is not to blame");
    home.store.memory().budget = None;
    agent.refresh();
    assert!(!agent.health().failed);
    assert_eq!(agent.health().revision, 2);
    assert!(rules(&home).contains(&"shop: web calls db:5433/tcp".to_owned()));
}

#[test]
fn the_nodes_network_is_followed_even_while_the_input_is_bad() {
    let home = Home::new();
    let mut agent = home.agent();
    home.write("policies/shop.yaml", BAD);
    agent.refresh();
    let before = home.store.snapshot();
    home.links.network().discovered =
        Discovered { addresses: vec!["10.0.0.254".parse().unwrap()], ..Discovered::default() };
    agent.refresh();
    assert_ne!(home.store.snapshot(), before, "the new address is the node's");
    assert_ne!(agent.refused(), "");
}

#[test]
fn a_guard_that_is_gone_is_put_up_again() {
    let home = Home::new();
    let mut agent = home.agent();
    let epoch = agent.node().status().unwrap().epoch;
    agent.check();
    agent.refresh();
    assert_eq!(agent.node().status().unwrap().epoch, epoch, "nothing is missing");
    assert_eq!((agent.health().drift_found, agent.health().drift_repaired), (0, 0));
    home.links.network().attached.remove("veth-db");
    agent.check();
    // It is told once, though it is looked at again before it is put up.
    agent.check();
    assert_eq!((agent.health().drift_found, agent.health().drift_repaired), (1, 0));
    agent.refresh();
    assert_eq!(home.attached(), ["veth-db", "veth-web"]);
    agent.check();
    assert_eq!((agent.health().drift_found, agent.health().drift_repaired), (1, 1));
    let audit = fs::read_to_string(home.state().join("audit.jsonl")).unwrap();
    let told = |action: &str| audit.lines().filter(|line| line.contains(&format!("\"{action}\""))).count();
    assert_eq!((told("enforcement.drift"), told("enforcement.drift_repaired")), (1, 1), "{audit}");
    assert!(audit.contains("guard of an endpoint on veth-db"), "{audit}");
}

/// A container that stops takes its guards with it, which nobody puts back.
#[test]
fn what_is_not_wanted_any_more_is_not_put_back() {
    let home = Home::new();
    let mut agent = home.agent();
    home.links.network().attached.remove("veth-db");
    agent.check();
    home.write(
        "workloads.yaml",
        &WORKLOADS.lines().filter(|line| !line.contains("db-1")).collect::<Vec<_>>().join("\n"),
    );
    agent.refresh();
    assert_eq!(agent.refused(), "");
    agent.check();
    assert_eq!((agent.health().drift_found, agent.health().drift_repaired), (1, 0));
}

#[test]
fn a_node_that_observes_does_so_until_an_agent_enforces() {
    let home = Home::new();
    for observe in [true, false] {
        let node = Wrapped::new(&home);
        let asked = node.asked.clone();
        let mut agent =
            Agent::start(node, Settings { manner: Manner { observe, direct: false }, ..home.settings() }).unwrap();
        assert_eq!(asked.lock().unwrap().manner.observe, observe);
        home.write("policies/shop.yaml", &INTENT.replace("5432", if observe { "5433" } else { "5434" }));
        agent.refresh();
        assert_eq!(agent.refused(), "");
        assert_eq!(asked.lock().unwrap().manner.observe, observe, "also later");
        home.links.network().discovered =
            Discovered { addresses: vec!["10.0.0.254".parse().unwrap()], ..Default::default() };
        home.write("policies/shop.yaml", "{");
        agent.refresh();
        assert_eq!(asked.lock().unwrap().manner.observe, observe, "and while the input is bad");
        home.write("policies/shop.yaml", INTENT);
        home.links.network().discovered = Discovered::default();
    }
}

//! Planning and applying.

use std::fs;

use bulkhead_controller::{
    api::types::{PlanBody, PolicySource, RevisionBody},
    audit::{Wanted, verify_state},
};
use bulkhead_dataplane::memory::Event;
use serde_json::json;

use crate::{
    client::{Answer, Client},
    home::{Home, INTENT, eventually},
    served::{CART, Served, audited, edits, home},
};

fn messages(answer: &Answer) -> Vec<String> {
    answer.problem(412).errors.into_iter().map(|fault| fault.message).collect()
}

#[test]
fn a_plan_says_what_applying_then_does() {
    let home = home();
    let served = Served::new(&home);
    let before = home.store.snapshot();
    assert!(!served.cart_calls_db());

    let plan = served.plan(&[("cart", Some(CART))]);
    assert_eq!(plan.revision, 1);
    let changes: Vec<_> = plan.changes.iter().map(|change| json!(change)).collect();
    let between = |from: &str, to: &str| changes.iter().find(|change| change["from"] == from && change["to"] == to);
    insta::assert_json_snapshot!(between("shop/cart-1", "shop/db-1").unwrap_or_else(|| panic!("{changes:?}")));
    let closed = between("0.0.0.0-255.255.255.255[External]", "shop/cart-1");
    insta::assert_json_snapshot!(closed.unwrap_or_else(|| panic!("{changes:?}")));
    assert_eq!(plan.changes_total, changes.len() as u64);
    assert!(plan.tables.iter().any(|table| table.used > 0 && table.limit > table.used));
    assert_eq!(home.store.snapshot(), before, "a plan writes nothing");
    assert_eq!(served.plan(&[("cart", Some(CART))]).id, plan.id, "the same change is the same plan");
    assert_ne!(served.plan(&[("cart", Some(&format!("{CART}\n")))]).id, plan.id);

    home.store.memory().journal = Some(Vec::new());
    let apply = json!({ "plan": plan.id, "reason": "carts pay" });
    let revision: RevisionBody = served.client.post("/v1/apply", &apply).ok();
    let journal = home.store.memory().journal.take().unwrap();
    let written = journal.iter().filter(|event| matches!(event, Event::Write { .. })).count() as u64;
    assert!(written > 0);
    assert_eq!(plan.writes, written, "as many as the tables saw");
    assert_eq!((revision.number, revision.parent, revision.condition.as_str()), (2, Some(1), "in force"));
    assert_eq!((revision.origin.as_str(), revision.reason.as_str()), ("api", "carts pay"));
    assert_eq!((revision.author.uid, revision.author.name.as_str()), (Some(nix::unistd::geteuid().as_raw()), "root"));

    assert!(served.cart_calls_db());
    assert_eq!(served.status().revision.number, 2);
    assert_eq!(served.source("api/cart"), Some(PolicySource::Api));
    assert_eq!(served.source("shop.yaml"), Some(PolicySource::File));

    // Removed again, nothing is left of it.
    let plan = served.plan(&[("cart", None)]);
    served.client.post("/v1/apply", &json!({ "plan": plan.id })).ok::<RevisionBody>();
    assert!(!served.cart_calls_db());
    assert_eq!(served.source("api/cart"), None);
    let told = audited(&home, "revision.apply");
    let root = |before, after| ("root".to_owned(), "revision.apply".to_owned(), "ok".to_owned(), before, after);
    assert_eq!(told[told.len() - 2..], [root(Some(1), Some(2)), root(Some(2), Some(3))]);
    verify_state(&home.state(), &Wanted::default()).unwrap();
}

#[test]
fn what_is_applied_outlives_the_agent() {
    let home = home();
    let served = Served::new(&home);
    served.apply(&[("cart", Some(CART))]);
    drop(served);
    let served = Served::new(&home);
    assert_eq!(served.status().revision.number, 2);
    assert!(served.cart_calls_db());
    let document = served.policies().into_iter().find(|policy| policy.name == "api/cart").unwrap();
    assert_eq!((document.text.as_str(), document.author.unwrap().name.as_str()), (CART, "root"));
}

/// Plans, changes something else, and tries to apply: `change` says what is named then.
#[track_caller]
fn refused_after(change: impl FnOnce(&Home, &Served, &PlanBody) -> &'static str) {
    let home = home();
    let served = Served::new(&home);
    let plan = served.plan(&[("cart", Some(CART))]);
    let named = change(&home, &served, &plan);
    let messages = messages(&served.client.post("/v1/apply", &json!({ "plan": plan.id })));
    assert!(messages.iter().any(|message| message.contains(named)), "{named} in {messages:?}");
    assert!(!served.cart_calls_db());
    assert!(audited(&home, "revision.apply").iter().any(|(who, _, outcome, ..)| who == "root" && outcome == "refused"));
    // Planned again, it can be applied, unless the agent takes up the change just then.
    eventually("it is applied", || {
        let plan = served.plan(&[("cart", Some(CART))]);
        served.client.post("/v1/apply", &json!({ "plan": plan.id })).status == 200
    });
    assert!(served.cart_calls_db());
}

#[test]
fn a_plan_does_not_hold_when_a_file_changed() {
    refused_after(|home, _, _| {
        home.write("policies/shop.yaml", &INTENT.replace("5432", "5432, db:5433"));
        "shop.yaml was changed"
    });
    refused_after(|home, _, _| {
        home.write("policies/new.yaml", &CART.replace("shop", "ops"));
        "new.yaml is new"
    });
    refused_after(|home, _, _| {
        home.write("policies/shop.yaml", &INTENT.replace("198", "203"));
        fs::rename(home.path("policies/shop.yaml"), home.path("policies/other.yaml")).unwrap();
        "shop.yaml is gone"
    });
}

#[test]
fn a_plan_does_not_hold_when_the_workloads_changed() {
    refused_after(|home, _, _| {
        let text = fs::read_to_string(home.path("workloads.yaml")).unwrap();
        home.write("workloads.yaml", &text.replace("10.0.0.1", "10.0.0.9"));
        "the workloads changed"
    });
}

#[test]
fn a_plan_does_not_hold_when_the_network_changed() {
    refused_after(|home, served, plan| {
        home.links.network().discovered.addresses.push("192.0.2.77".parse().unwrap());
        let now = || served.plan(&[("cart", Some(CART))]);
        eventually("the agent looks at its network", || now().id != plan.id);
        "the node's network changed"
    });
}

#[test]
fn of_two_authors_one_wins_and_the_other_is_told() {
    let home = home();
    let served = Served::new(&home);
    let [alice, bob] = [("alice", 1001), ("bob", 1002)].map(|(name, uid)| served.somebody(&home, name, uid, true));
    let plan =
        |client: &Client, text: &str| -> PlanBody { client.post("/v1/plan", &edits(&[("cart", Some(text))])).ok() };
    let first = plan(&alice, CART);
    let second = plan(&bob, &CART.replace("5432", "5433"));
    let answers = std::thread::scope(|scope| {
        let apply = |client: Client, id: String| scope.spawn(move || client.post("/v1/apply", &json!({ "plan": id })));
        let (alice, bob) = (apply(alice, first.id), apply(bob, second.id));
        [("alice", alice.join().unwrap()), ("bob", bob.join().unwrap())]
    });
    let (won, lost): (Vec<_>, Vec<_>) = answers.iter().partition(|(_, answer)| answer.status == 200);
    let [(winner, answer)] = won[..] else { panic!("{answers:?}") };
    assert_eq!(answer.ok::<RevisionBody>().author.name, *winner);
    let messages = messages(&lost[0].1);
    assert_eq!(messages, [format!("revision 2 by {winner} is in force, not 1"), "api/cart is new".to_owned()]);
    assert_eq!(served.cart_calls_db(), *winner == "alice");
    // Both tries are recorded, each with its author.
    let mut told: Vec<_> =
        audited(&home, "revision.apply").into_iter().map(|(who, _, outcome, ..)| (who, outcome)).collect();
    told.drain(..told.len() - 2);
    let loser = lost[0].0;
    told.sort_by_key(|(who, _)| who != winner);
    assert_eq!(told, [(*winner, "ok"), (loser, "refused")].map(|(who, outcome)| (who.to_owned(), outcome.to_owned())));
}

#[test]
fn a_plan_of_another_process_is_not_there() {
    let home = home();
    let served = Served::new(&home);
    let plan = served.plan(&[("cart", Some(CART))]);
    drop(served);
    let served = Served::new(&home);
    let problem = served.client.post("/v1/apply", &json!({ "plan": plan.id })).problem(404);
    assert_eq!(problem.errors[0].pointer, "/plan");
}

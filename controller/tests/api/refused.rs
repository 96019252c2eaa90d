//! What the node refuses, and what does not fit: what was in force stays.

use bulkhead_controller::{
    api::types::{PlanBody, RevisionBody},
    store::{Condition, Reader},
};
use bulkhead_dataplane::store::{Prefixes4, Store as _};
use serde_json::{Value, json};

use crate::{
    client::NEW,
    home::{Home, INTENT, eventually},
    served::{CART, Served, audited, edits, home},
};

fn conditions(home: &Home) -> Vec<(u64, Condition)> {
    let heads = Reader::open(&home.state()).unwrap().unwrap().revisions(10, None).unwrap();
    heads.into_iter().map(|head| (head.number, head.condition)).collect()
}

#[test]
fn what_the_kernel_refuses_leaves_what_was_in_force() {
    let home = home();
    let served = Served::new(&home);
    let plan = || served.plan(&[("cart", Some(CART))]);
    // Entries that are left to a try, of those that its plan says.
    let apply = |left: &dyn Fn(u64) -> u64| {
        let plan = plan();
        let (id, budget) = (plan.id, left(plan.writes));
        home.store.memory().budget = Some(budget.try_into().unwrap());
        let answer = served.client.post("/v1/apply", &json!({ "plan": id }));
        home.store.memory().budget = None;
        answer
    };
    const TRIES: u64 = 16;
    for tries in 1..=TRIES {
        let problem = apply(&|writes| (writes * tries / TRIES).saturating_sub(1)).problem(503);
        assert!(problem.detail.contains("what was in force is put back"), "{problem:?}");
        // So that the agent does not wait until it looks by itself.
        home.write("policies/.woken", "");
        eventually("the node takes it again", || served.status().troubles.is_empty());
        assert_eq!(served.status().revision.number, 1);
        assert!(!served.cart_calls_db());
        let [(_, Condition::Refused { .. }), ..] = &conditions(&home)[..] else { panic!("{:?}", conditions(&home)) };
    }
    assert_eq!(apply(&|writes| writes).ok::<RevisionBody>().condition, "in force");
    assert!(served.cart_calls_db());
    let failed = |(who, _, outcome, ..): &(String, _, String, _, _)| who == "root" && outcome == "failed";
    assert_eq!(audited(&home, "revision.apply").iter().filter(|record| failed(record)).count() as u64, TRIES);
}

#[test]
fn what_does_not_fit_is_refused_before_it_is_written() {
    let home = home();
    let served = Served::new(&home);
    home.store.set_limit::<Prefixes4>(home.store.entries::<Prefixes4>().unwrap().len());
    let large = CART.replace("services:", "external: { bank: { cidrs: [203.0.113.0/24] } }\nservices:");
    let large = large.replace("db:5432", "db:5432, bank:443");
    let plan = served.client.post("/v1/plan", &edits(&[("cart", Some(&large))])).problem(422);
    assert!(plan.errors[0].message.contains("PREFIXES4"), "{plan:?}");
    let put = served.client.put("cart", &large, NEW).problem(422);
    assert!(put.errors[0].message.contains("PREFIXES4"), "{put:?}");
    let status = served.status();
    assert_eq!(status.revision.number, 1);
    let outcomes: Vec<_> =
        audited(&home, "revision.apply").into_iter().map(|(who, _, outcome, ..)| (who, outcome)).collect();
    assert_eq!(outcomes.last(), Some(&("root".to_owned(), "refused".to_owned())));
    // Room that goes between plan and apply.
    home.store.set_limit::<Prefixes4>(16384);
    let plan = served.plan(&[("cart", Some(&large))]);
    home.store.set_limit::<Prefixes4>(home.store.entries::<Prefixes4>().unwrap().len());
    served.client.post("/v1/apply", &json!({ "plan": plan.id })).problem(422);
    assert!(matches!(conditions(&home)[0].1, Condition::Refused { .. }));
    assert_eq!(served.status().revision.number, 1);
}

#[test]
fn a_link_that_cannot_be_guarded_keeps_nobody_from_changing() {
    let home = home();
    home.links.network().broken.insert("veth-web".to_owned(), "it is gone".to_owned());
    let served = Served::new(&home);
    assert_eq!(home.attached(), ["veth-cart", "veth-db"]);
    let plan = served.plan(&[("cart", Some(CART))]);
    home.store.memory().journal = Some(Vec::new());
    served.client.post("/v1/apply", &json!({ "plan": plan.id })).ok::<RevisionBody>();
    let journal = home.store.memory().journal.take().unwrap();
    let written = journal.iter().filter(|event| matches!(event, bulkhead_dataplane::memory::Event::Write { .. }));
    assert_eq!(written.count() as u64, plan.writes);
    assert!(served.cart_calls_db());
    assert!(served.status().troubles.iter().any(|trouble| trouble.contains("it is gone")));
}

/// The directory of policies is gone: what it said stays, and nothing is changed on the word of what is not known.
#[test]
fn without_its_files_nothing_is_changed() {
    let home = home();
    let served = Served::new(&home);
    let plan: PlanBody = served.plan(&[("cart", Some(CART))]);
    std::fs::rename(home.path("policies"), home.path("elsewhere")).unwrap();
    let refused = served.client.put("cart", CART, NEW).problem(422);
    assert!(refused.errors[0].message.contains("policies"), "{refused:?}");
    served.client.post("/v1/apply", &json!({ "plan": plan.id })).problem(412);
    served.client.post("/v1/plan", &edits(&[("cart", Some(CART))])).problem(422);
    assert!(served.policies().iter().any(|policy| policy.text == INTENT));
    std::fs::rename(home.path("elsewhere"), home.path("policies")).unwrap();
    served.apply(&[("cart", Some(CART))]);
}

#[test]
fn an_agent_that_has_stopped_says_so() {
    let home = home();
    let served = Served::new(&home);
    let client = served.somebody(&home, "root", 0, true);
    client.get("/v1/status").ok::<Value>();
    drop(served);
    let problem = client.get("/v1/status").problem(503);
    assert!(problem.detail.contains("stopped"), "{problem:?}");
    client.put("cart", CART, NEW).problem(503);
}

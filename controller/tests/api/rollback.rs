//! Going back.

use std::fs;

use bulkhead_controller::api::types::{PolicySource, RevisionBody, WholeRevision};
use serde_json::json;

use crate::{
    home::{INTENT, eventually},
    served::{CART, Served, audited, home},
};

fn text(served: &Served, name: &str) -> Option<String> {
    served.policies().into_iter().find(|policy| policy.name == name).map(|policy| policy.text)
}

#[test]
fn files_are_held_until_somebody_changes_them() {
    let home = home();
    let served = Served::new(&home);
    let second = INTENT.replace("5432", "5433");
    home.write("policies/shop.yaml", &second);
    home.write("policies/extra.yaml", CART);
    eventually("the files are in force", || served.cart_calls_db() && text(&served, "shop.yaml").unwrap() == second);

    let body = json!({ "revision": 1, "reason": "5433 was wrong" });
    let revision: RevisionBody = served.client.post("/v1/rollback", &body).ok();
    assert_eq!((revision.origin.as_str(), revision.rollback_of), ("rollback", Some(1)));
    let back = |served: &Served| {
        assert_eq!(text(served, "shop.yaml").unwrap(), INTENT);
        assert_eq!(text(served, "extra.yaml"), None);
        assert!(!served.cart_calls_db());
        assert_eq!(served.source("shop.yaml"), Some(PolicySource::FileRolledBack));
        assert_eq!(served.status().rolled_back, ["extra.yaml", "shop.yaml"]);
    };
    back(&served);
    // Written again as they are, they were not changed; what else changes does not bring them back.
    home.write("policies/shop.yaml", &second);
    home.write(
        "workloads.yaml",
        &fs::read_to_string(home.path("workloads.yaml")).unwrap().replace("10.0.0.1]", "10.0.0.9]"),
    );
    eventually("the workloads are followed", || served.status().revision.number > revision.number);
    back(&served);
    // Nor does another agent.
    drop(served);
    let served = Served::new(&home);
    back(&served);

    let third = INTENT.replace("5432", "5434");
    home.write("policies/shop.yaml", &third);
    eventually("the file is followed again", || text(&served, "shop.yaml").unwrap() == third);
    assert_eq!(served.status().rolled_back, ["extra.yaml"]);
    assert_eq!(served.source("shop.yaml"), Some(PolicySource::File));
    fs::remove_file(home.path("policies/extra.yaml")).unwrap();
    eventually("it is forgotten", || served.status().rolled_back.is_empty());
    drop(served);
    let served = Served::new(&home);
    assert!(served.status().rolled_back.is_empty());
    assert_eq!(text(&served, "shop.yaml").unwrap(), third);
    let told = audited(&home, "revision.rollback");
    assert_eq!((told.len(), told[0].1.as_str(), told[0].2.as_str()), (1, "revision.rollback to 1", "ok"));
}

#[test]
fn documents_of_the_api_go_back_too() {
    let home = home();
    let served = Served::new(&home);
    served.apply(&[("cart", Some(CART))]);
    let other = CART.replace("5432", "5433");
    served.apply(&[("cart", Some(&other))]);
    served.apply(&[("cart", None)]);
    let revision: RevisionBody = served.client.post("/v1/rollback", &json!({ "revision": 2 })).ok();
    assert_eq!(revision.number, 5);
    assert_eq!(text(&served, "api/cart").unwrap(), CART);
    assert!(served.cart_calls_db());
    let whole: WholeRevision = served.client.get("/v1/revisions/5").ok();
    let names: Vec<_> = whole.policies.iter().map(|policy| policy.name.as_str()).collect();
    assert_eq!(names, ["api/cart", "shop.yaml"]);
    drop(served);
    let served = Served::new(&home);
    assert_eq!(text(&served, "api/cart").unwrap(), CART);
}

#[test]
fn there_is_no_way_back_to_what_never_was_in_force() {
    let home = home();
    let served = Served::new(&home);
    let plan = served.plan(&[("cart", Some(CART))]);
    home.store.memory().budget = Some(0);
    served.client.post("/v1/apply", &json!({ "plan": plan.id })).problem(503);
    home.store.memory().budget = None;
    eventually("the node takes it again", || served.status().troubles.is_empty());
    let problem = served.client.post("/v1/rollback", &json!({ "revision": 2 })).problem(409);
    assert_eq!(problem.errors[0].pointer, "/revision");
}

#[test]
fn what_cannot_be_used_any_more_is_refused() {
    let home = home();
    let without = fs::read_to_string(home.path("workloads.yaml")).unwrap();
    home.write("workloads.yaml", &without.replacen("nodes:", "resolvers: [10.96.0.10]\nnodes:", 1));
    let served = Served::new(&home);
    served.apply(&[("cart", Some(&CART.replace("services:", "dns: cluster\nservices:")))]);
    assert!(served.cart_calls_db());
    served.apply(&[("cart", None)]);
    // Nobody resolves names any more.
    home.write("workloads.yaml", &without);
    eventually("the workloads are followed", || served.status().revision.number == 4);
    let problem = served.client.post("/v1/rollback", &json!({ "revision": 2 })).problem(422);
    assert!(problem.errors[0].message.contains("no resolver is known"), "{problem:?}");
    assert_eq!(served.status().revision.number, 4);
    assert_eq!(audited(&home, "revision.rollback")[0].2, "refused");
}

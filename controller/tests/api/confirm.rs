//! Changes that come back unless somebody confirms them.

use std::{fs, thread, time::Duration};

use bulkhead_controller::api::types::{PolicySource, RevisionBody};
use serde_json::{Value, json};

use crate::{
    client::NEW,
    home::{INTENT, eventually},
    served::{CART, Served, audited, home},
};

/// Applies the document for `cart`, to be confirmed within so many seconds.
fn pending(served: &Served, seconds: u64) -> u64 {
    let plan = served.plan(&[("cart", Some(CART))]);
    let body = json!({ "plan": plan.id, "confirm_within": seconds });
    let revision: RevisionBody = served.client.post("/v1/apply", &body).ok();
    revision.number
}

fn confirm(served: &Served, revision: u64) -> crate::client::Answer {
    served.client.post(&format!("/v1/revisions/{revision}/confirm"), &Value::Null)
}

#[test]
fn what_nobody_confirms_is_taken_back() {
    let home = home();
    let served = Served::new(&home);
    assert_eq!(pending(&served, 1), 2);
    eventually("what was before is back", || !served.cart_calls_db());
    let status = served.status();
    assert!(status.pending.is_none() && status.troubles.is_empty(), "{:?}", status.troubles);
    let RevisionBody { number, origin, reason, .. } = status.revision;
    assert_eq!((number, origin.as_str(), reason.as_str()), (3, "restore", "revision 2 was not confirmed in time"));
    confirm(&served, 2).problem(409);
    let told = audited(&home, "revision.restore");
    let (who, action, ok) = ("bulkhead".to_owned(), "revision.restore".to_owned(), "ok".to_owned());
    assert_eq!(told, [(who, action, ok, Some(2), Some(3))]);
    // And stays so.
    drop(served);
    let served = Served::new(&home);
    assert!(!served.cart_calls_db() && served.status().pending.is_none());
}

#[test]
fn what_is_confirmed_stays() {
    let home = home();
    let served = Served::new(&home);
    confirm(&served, 1).problem(409);
    let revision = pending(&served, 3600);
    let status = served.status();
    assert_eq!(status.pending.unwrap().revision, revision);
    confirm(&served, revision + 1).problem(409);
    assert_eq!(confirm(&served, revision).ok::<RevisionBody>().number, revision);
    confirm(&served, revision).problem(409);
    assert!(served.status().pending.is_none());
    let told: Vec<_> = audited(&home, "revision.confirm ").into_iter().map(|record| (record.1, record.2)).collect();
    let record = |number: u64, outcome: &str| (format!("revision.confirm {number}"), outcome.to_owned());
    let expected =
        [record(1, "refused"), record(revision + 1, "refused"), record(revision, "ok"), record(revision, "refused")];
    assert_eq!(told, expected);
    drop(served);
    let served = Served::new(&home);
    assert!(served.cart_calls_db() && served.status().pending.is_none());
}

#[test]
fn others_wait_while_a_change_is_to_be_confirmed() {
    let home = home();
    let served = Served::new(&home);
    let revision = pending(&served, 3600);
    let other = CART.replace("cart", "cart2");
    served.client.put("other", &other, NEW).problem(409);
    served.client.delete("cart", "*").problem(409);
    served.client.post("/v1/rollback", &json!({ "revision": 1 })).problem(409);
    let plan = served.plan(&[("cart", None)]);
    served.client.post("/v1/apply", &json!({ "plan": plan.id })).problem(409);
    assert_eq!(served.status().revision.number, revision);

    // Files go on, and what they say is not lost by either end.
    home.write("policies/shop.yaml", &INTENT.replace("198.51.100.0", "203.0.113.0"));
    eventually("the file is in force", || served.status().revision.number > revision);
    assert_eq!(served.status().pending.unwrap().revision, revision);
    assert!(served.cart_calls_db());
    confirm(&served, revision).ok::<Value>();
    served.apply(&[("cart", None)]);
}

#[test]
fn the_deadline_outlives_the_agent() {
    let home = home();
    let served = Served::new(&home);
    let revision = pending(&served, 3600);
    let until = served.status().pending.unwrap().until;
    drop(served);
    let served = Served::new(&home);
    let again = served.status().pending.unwrap();
    assert_eq!((again.revision, again.until), (revision, until));
    assert!(served.cart_calls_db());
    confirm(&served, revision).ok::<Value>();
}

#[test]
fn what_ran_out_while_no_agent_was_there_is_taken_back_by_the_next() {
    let home = home();
    let served = Served::new(&home);
    pending(&served, 2);
    drop(served);
    thread::sleep(Duration::from_millis(2100));
    let served = Served::new(&home);
    eventually("what was before is back", || !served.cart_calls_db());
    assert!(served.status().pending.is_none());
}

#[test]
fn a_deadline_is_written_before_the_change_takes_effect() {
    let home = home();
    let served = Served::new(&home);
    let plan = served.plan(&[("cart", Some(CART))]);
    // The kernel takes nothing: as far as it comes is what an agent leaves that is killed here.
    home.store.memory().budget = Some(0);
    let body = json!({ "plan": plan.id, "confirm_within": 3600 });
    served.client.post("/v1/apply", &body).problem(503);
    drop(served);
    let store = bulkhead_controller::store::Reader::open(&home.state()).unwrap().unwrap();
    let staged: Value = store.setting("beside staged").unwrap().unwrap();
    assert_eq!(staged["revision"], 2);
    assert!(staged["pending"]["until"].as_u64() > Some(0), "{staged}");
}

#[test]
fn a_rollback_can_be_taken_back_too() {
    let home = home();
    let served = Served::new(&home);
    served.apply(&[("cart", Some(CART))]);
    home.write("policies/shop.yaml", &INTENT.replace("5432", "5432, db:5433"));
    eventually("the file is in force", || served.status().revision.number == 3);
    let body = json!({ "revision": 1, "confirm_within": 1 });
    served.client.post("/v1/rollback", &body).ok::<RevisionBody>();
    eventually("what was before is back", || served.status().pending.is_none());
    assert!(served.cart_calls_db(), "the document is back");
    assert_eq!(served.source("shop.yaml"), Some(PolicySource::File));
    let text = fs::read_to_string(home.path("policies/shop.yaml")).unwrap();
    assert!(served.policies().iter().any(|policy| policy.text == text), "the file is back");
}

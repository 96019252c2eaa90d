//! Single documents: conditions, sources, contradictions.

use bulkhead_controller::api::types::{PolicyBody, PolicySource, RevisionBody};
use serde_json::json;

use crate::{
    client::{JSON, NEW},
    home::{INTENT, eventually},
    served::{CART, Served, audited, home},
};

#[test]
fn a_document_is_put_and_removed_on_condition() {
    let home = home();
    let served = Served::new(&home);
    let client = &served.client;
    let get = || client.get("/v1/policies/cart");

    get().problem(404);
    assert_eq!(client.delete("cart", "*").status, 404);
    let body = json!({ "text": CART, "reason": "carts pay" }).to_string();
    client.send("PUT", "/v1/policies/cart", &[JSON], body.clone()).problem(428);
    client.put("cart", CART, ("if-match", "*")).problem(412);
    assert_eq!(served.status().revision.number, 1);

    let put = client.send("PUT", "/v1/policies/cart", &[JSON, NEW], body);
    let revision: RevisionBody = put.ok();
    assert_eq!((revision.number, revision.reason.as_str()), (2, "carts pay"));
    let first = put.header("etag").unwrap().to_owned();
    let got = get();
    assert_eq!(got.header("etag"), Some(first.as_str()));
    let document: PolicyBody = got.ok();
    assert_eq!((document.etag.as_str(), document.text.as_str()), (first.as_str(), CART));
    assert_eq!((document.source, document.author.unwrap().name.as_str()), (PolicySource::Api, "root"));

    let problem = client.put("cart", CART, NEW).problem(412);
    assert!(problem.detail.contains(&first), "{problem:?}");
    let changed = CART.replace("5432", "5433");
    client.put("cart", &changed, ("if-match", "\"another\"")).problem(412);
    client.put("cart", &changed, ("if-none-match", &first)).problem(412);
    let put = client.put("cart", &changed, ("if-match", &format!("\"another\", {first}")));
    assert_eq!(put.ok::<RevisionBody>().number, 3);
    let second = put.header("etag").unwrap().to_owned();
    assert_ne!(first, second);

    client.send("DELETE", "/v1/policies/cart", &[], "").problem(428);
    client.delete("cart", &first).problem(412);
    assert_eq!(get().ok::<PolicyBody>().text, changed);
    assert_eq!(client.delete("cart", &second).ok::<RevisionBody>().number, 4);
    get().problem(404);
    let told = audited(&home, "revision.apply").into_iter().filter(|(who, ..)| who == "root");
    let told: Vec<_> = told.map(|(_, _, outcome, _, after)| (outcome, after.unwrap())).collect();
    assert_eq!(told, [2, 3, 4].map(|after| ("ok".to_owned(), after)));
}

#[test]
fn of_two_who_make_one_document_one_is_refused() {
    let home = home();
    let served = Served::new(&home);
    let statuses = std::thread::scope(|scope| {
        let put = |port| {
            let client = served.client.clone();
            scope.spawn(move || client.put("cart", &CART.replace("5432", port), NEW).status)
        };
        let puts = ["5432", "5433"].map(put);
        let mut statuses = puts.map(|put| put.join().unwrap());
        statuses.sort_unstable();
        statuses
    });
    assert_eq!(statuses, [200, 412]);
    assert_eq!(served.status().revision.number, 2);
}

#[test]
fn the_list_says_where_each_policy_comes_from() {
    let home = home();
    let served = Served::new(&home);
    // It never was good: what it would isolate is isolated.
    home.write("policies/bad.yaml", &CART.replace("shop", "ops").replace("db:5432", "nobody:1"));
    eventually("the file is read", || served.source("bad.yaml").is_some());
    let good = served.apply(&[("cart", Some(CART))]).number;
    home.write("policies/shop.yaml", &INTENT.replace("5432", "5433"));
    eventually("the file is in force", || served.policies().iter().any(|policy| policy.text.contains("5433")));
    let rollback: RevisionBody = served.client.post("/v1/rollback", &json!({ "revision": good })).ok();
    assert_eq!(rollback.rollback_of, Some(good));
    let sources = || -> Vec<_> { served.policies().into_iter().map(|policy| (policy.name, policy.source)).collect() };
    let told = [
        ("api/cart", PolicySource::Api),
        ("bad.yaml", PolicySource::FileIsolating),
        ("shop.yaml", PolicySource::FileRolledBack),
    ];
    assert_eq!(sources(), told.map(|(name, source)| (name.to_owned(), source)));
    home.write("policies/shop.yaml", INTENT);
    eventually("the file is followed again", || served.source("shop.yaml") == Some(PolicySource::File));
}

#[test]
fn of_a_document_and_a_file_that_contradict_each_other_the_newcomer_is_refused() {
    let home = home();
    let served = Served::new(&home);
    // The file was first.
    home.write("policies/cart.yaml", CART);
    eventually("the file is in force", || served.cart_calls_db());
    let before = served.status().revision.number;
    let other = CART.replace("5432", "5433");
    let problem = served.client.put("cart", &other, NEW).problem(422);
    let fault = &problem.errors[0];
    assert_eq!(fault.pointer, "/text", "{problem:?}");
    let both = ["listed twice", "api/cart:5:3"];
    assert!(both.iter().all(|part| fault.message.contains(part)) && fault.place == "cart.yaml:5:3", "{problem:?}");
    let problem = served.client.post("/v1/plan", &crate::served::edits(&[("cart", Some(&other))])).problem(422);
    assert_eq!(problem.errors[0].pointer, "/documents/0/text", "{problem:?}");
    assert_eq!(served.status().revision.number, before);
    assert!(served.cart_calls_db());

    // The document was first.
    std::fs::remove_file(home.path("policies/cart.yaml")).unwrap();
    eventually("the file is gone", || served.source("cart.yaml").is_none());
    served.apply(&[("cart", Some(CART))]);
    home.write("policies/cart.yaml", &other);
    let refused = || served.status().troubles.iter().any(|trouble| trouble.contains("cart.yaml:5"));
    eventually("the file is refused", refused);
    assert!(served.cart_calls_db(), "the document is in force as it was");
    assert_eq!(served.source("api/cart"), Some(PolicySource::Api));
    let file = served.policies().into_iter().find(|policy| policy.name == "cart.yaml");
    assert!(file.is_none_or(|file| file.source == PolicySource::FileIsolating), "nothing of the file opens");
    let told = audited(&home, "revision.apply");
    assert!(told.iter().any(|(who, _, outcome, ..)| who == "root" && outcome == "refused"), "{told:?}");
    // Who removes the document lets the file in.
    served.client.delete("cart", "*").ok::<RevisionBody>();
    eventually("the file is used", || served.source("cart.yaml") == Some(PolicySource::File));
}

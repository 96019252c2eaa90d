//! The history, a page at a time.

use bulkhead_controller::api::types::{RevisionBody, WholeRevision};

use crate::served::{CART, Served, home};

#[test]
fn pages_hold_every_revision_once() {
    let home = home();
    let served = Served::new(&home);
    for _ in 0..4 {
        served.apply(&[("cart", Some(CART))]);
        served.apply(&[("cart", None)]);
    }
    let page = |query: &str| -> Vec<RevisionBody> { served.client.get(&format!("/v1/revisions{query}")).ok() };
    let numbers = |page: &[RevisionBody]| -> Vec<u64> { page.iter().map(|revision| revision.number).collect() };
    let all = page("");
    assert_eq!(numbers(&all), [9, 8, 7, 6, 5, 4, 3, 2, 1]);
    let mut seen = Vec::new();
    let mut before = String::new();
    loop {
        let page = page(&format!("?limit=4{before}"));
        let Some(last) = page.last() else { break };
        assert!(page.len() <= 4);
        before = format!("&before={}", last.number);
        seen.extend(numbers(&page));
    }
    assert_eq!(seen, numbers(&all));
    assert!(page("?before=1").is_empty());
    let conditions: Vec<_> = all.iter().map(|revision| revision.condition.as_str()).collect();
    assert_eq!(conditions[0], "in force");
    assert!(conditions[1..].iter().all(|condition| *condition == "superseded"));
    assert_eq!((all[8].origin.as_str(), all[8].author.name.as_str(), all[8].author.uid), ("files", "files", None));

    let whole: WholeRevision = served.client.get("/v1/revisions/8").ok();
    let texts: Vec<_> = whole.policies.iter().map(|policy| (policy.name.as_str(), policy.text.as_str())).collect();
    assert_eq!(texts[0], ("api/cart", CART));
    assert_eq!(whole.workloads.name, "workloads.yaml");
}

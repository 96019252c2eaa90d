//! Requests that are refused before anything is asked: whatever they lack, the answer says it.

use std::{
    env,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
};

use bulkhead_controller::api::{identity::Appliers, types::RevisionBody};
use bulkhead_fixtures::skip;
use serde_json::{Value, json};

use crate::{
    client::{Client, JSON, NEW},
    served::{CART, NOBODY, SOCKET, Served, audited, edits, enterable, home, nobody},
};

#[test]
fn who_may_not_apply_may_read() {
    let home = home();
    let served = Served::new(&home);
    let reader = served.somebody(&home, "reader", 4242, false);
    reader.get("/v1/status").ok::<Value>();
    for path in ["policies", "revisions", "revisions/1", "rules", "workloads", "services", "flows", "simulate"] {
        reader.get(&format!("/v1/{path}")).ok::<Value>();
    }
    let question = json!({ "from": "shop/web-1", "to": "shop/db-1", "port": "5432" });
    reader.post("/v1/explain", &question).ok::<Value>();

    let plan = served.plan(&[("cart", Some(CART))]);
    let detail = reader.post("/v1/apply", &json!({ "plan": plan.id })).problem(403).detail;
    assert!(detail.contains("reader") && detail.contains("--apply-uid"), "{detail}");
    reader.post("/v1/plan", &edits(&[("cart", Some(CART))])).problem(403);
    reader.post("/v1/rollback", &json!({ "revision": 1 })).problem(403);
    reader.post("/v1/revisions/1/confirm", &Value::Null).problem(403);
    reader.put("cart", CART, NEW).problem(403);
    reader.delete("cart", "*").problem(403);
    // Also who sends what cannot be read: it is not looked at.
    reader.send("POST", "/v1/apply", &[], "{").problem(403);
    assert_eq!(served.status().revision.number, 1);
    // Once a minute is enough.
    let told = audited(&home, "POST ");
    let forbidden = ("reader", "POST /v1/apply", "refused");
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].0.as_str(), told[0].1.as_str(), told[0].2.as_str()), forbidden);
    assert!(audited(&home, "PUT ").is_empty());
}

#[test]
fn who_does_not_say_who_asks_gets_nothing() {
    let home = home();
    let served = Served::new(&home);
    let Client::Router(router, _) = served.somebody(&home, "", 0, true) else { unreachable!() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (method, path) in [("GET", "/v1/status"), ("GET", "/v1/simulate"), ("DELETE", "/v1/policies/a")] {
        let request = axum::http::Request::builder().method(method).uri(path).body(axum::body::Body::empty()).unwrap();
        let answer = runtime.block_on(tower::ServiceExt::oneshot(router.clone(), request)).unwrap();
        assert_eq!(answer.status(), 403, "{path}");
    }
}

#[test]
fn the_kernel_says_who_asks() {
    const NAME: &str = "requests::the_kernel_says_who_asks";
    if let Some(socket) = env::var_os(SOCKET) {
        let client = Client::Socket(socket.into());
        client.get("/v1/status").ok::<Value>();
        let put = client.put("cart", CART, NEW);
        println!("answered {}", put.status);
        return;
    }
    if !skip::require("root, to be somebody else", nix::unistd::geteuid().is_root()) {
        return;
    }
    let home = home();
    enterable(&home);
    for (appliers, status) in [(vec![], 403), (vec![1000], 403), (vec![1000, NOBODY], 200)] {
        let served = Served::with(&home, home.agent(), Some(NOBODY), Appliers(appliers.into_iter().collect()));
        let socket = home.path("run/api.sock");
        assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
        let ask = |group| nobody(NAME, &socket).gid(group).output().unwrap();
        let answered = ask(NOBODY);
        let said = String::from_utf8_lossy(&answered.stdout).into_owned();
        assert!(said.contains(&format!("answered {status}")), "{said}{}", String::from_utf8_lossy(&answered.stderr));
        assert!(!ask(NOBODY - 1).status.success(), "who is not in the group cannot connect");
        drop(served);
    }
    let told: Vec<_> =
        audited(&home, "revision.apply").into_iter().map(|(who, _, outcome, ..)| (who, outcome)).collect();
    let nobody = nix::unistd::User::from_uid(NOBODY.into()).unwrap().map_or(NOBODY.to_string(), |user| user.name);
    assert_eq!(told.last(), Some(&(nobody, "ok".to_owned())));
}

#[test]
fn what_is_not_there_is_said() {
    let home = home();
    let served = Served::new(&home);
    let client = &served.client;
    for path in ["/", "/v1", "/v1/nothing", "/v2/status", "/v1/policies/", "/metrics", "/v1/status/"] {
        client.get(path).problem(404);
    }
    client.get("/v1/policies/nothing").problem(404);
    client.get("/v1/policies/shop.yaml").problem(404);
    client.get("/v1/revisions/2").problem(404);
    client.post("/v1/apply", &json!({ "plan": "none" })).problem(404);
    client.post("/v1/rollback", &json!({ "revision": 7 })).problem(404);
    for (method, path, allow) in [
        ("POST", "/v1/status", "GET,HEAD"),
        ("DELETE", "/v1/plan", "POST"),
        ("PATCH", "/v1/policies/cart", "GET,HEAD,PUT,DELETE"),
        ("GET", "/v1/apply", "POST"),
    ] {
        let answer = client.send(method, path, &[], "");
        answer.problem(405);
        assert_eq!(answer.header("allow"), Some(allow), "{method} {path}");
    }
}

#[test]
fn what_cannot_be_read_is_pointed_at() {
    let home = home();
    let served = Served::new(&home);
    let client = &served.client;
    let plan = |body: &str| client.send("POST", "/v1/plan", &[JSON], body.to_owned());
    for (body, pointer) in [
        ("", ""),
        ("{", ""),
        ("[]", ""),
        ("{\"documents\": []} x", ""),
        ("{\"documents\": [{\"name\": \"a\", \"text\": \"\"}, {\"name\": 1}]}", "/documents/1/name"),
        ("{\"documents\": [{\"name\": \"a\", \"txt\": \"\"}]}", "/documents/0/txt"),
        ("{\"documents\": 1}", "/documents"),
        ("{\"documents\": []}", "/documents"),
        ("{\"documents\": [{\"name\": \"A\", \"text\": \"\"}]}", "/documents/0/name"),
        ("{\"documents\": [{\"name\": \"a\", \"text\": \"\"}, {\"name\": \"a\"}]}", "/documents/1/name"),
        ("{\"documents\": [{\"name\": \"a\"}]}", "/documents/0/name"),
    ] {
        let problem = plan(body).problem(400);
        let pointers: Vec<_> = problem.errors.iter().map(|fault| fault.pointer.as_str()).collect();
        assert_eq!(pointers, [pointer], "{body}");
    }
    let many: Vec<_> = (0..257).map(|number| (format!("d{number}"), Some(""))).collect();
    let many: Vec<_> = many.iter().map(|(name, text)| (name.as_str(), *text)).collect();
    assert_eq!(client.post("/v1/plan", &edits(&many)).problem(400).errors[0].pointer, "/documents");

    let id = served.plan(&[("cart", Some(CART))]).id;
    for (body, pointer) in [
        (json!({ "plan": id, "reason": "x".repeat(4097) }), "/reason"),
        (json!({ "plan": id, "confirm_within": 0 }), "/confirm_within"),
        (json!({ "plan": id, "confirm_within": 86_401 }), "/confirm_within"),
        (json!({ "plan": id, "confirm_within": -1 }), "/confirm_within"),
        (json!({ "plan": id, "force": true }), "/force"),
        (json!({}), ""),
    ] {
        assert_eq!(client.post("/v1/apply", &body).problem(400).errors[0].pointer, pointer, "{body}");
    }
    for path in ["limit=0", "limit=1001", "limit=x", "before=-1", "page=2"] {
        client.get(&format!("/v1/revisions?{path}")).problem(400);
    }
    for path in ["revisions/x", "revisions/-1", "revisions/99999999999999999999", "policies/%ff"] {
        client.get(&format!("/v1/{path}")).problem(400);
    }
    // Numbers that no database holds are not there; they break nothing.
    client.get("/v1/revisions/18446744073709551615").problem(404);
    client.get("/v1/revisions/0").problem(404);
    client.get("/v1/revisions?before=18446744073709551615").ok::<Vec<RevisionBody>>();
    client.post("/v1/rollback", &json!({ "revision": u64::MAX })).problem(404);
    client.post(&format!("/v1/revisions/{}/confirm", u64::MAX), &Value::Null).problem(409);
    assert_eq!(served.client.put("Cart", CART, NEW).status, 400);
    assert_eq!(served.status().revision.number, 1);
}

#[test]
fn only_json_is_read_and_not_too_much_of_it() {
    let home = home();
    let served = Served::new(&home);
    let body = edits(&[("cart", Some(CART))]).to_string();
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""] {
        served.client.send("POST", "/v1/plan", &[("content-type", kind)], body.clone()).problem(415);
    }
    served.client.send("POST", "/v1/plan", &[], body.clone()).problem(415);
    let json = ("content-type", "application/json; charset=utf-8");
    served.client.send("POST", "/v1/plan", &[json], body).ok::<Value>();
    let long = edits(&[("cart", Some(&format!("{CART}#{}", "x".repeat(4 << 20))))]).to_string();
    served.somebody(&home, "root", 0, true).send("POST", "/v1/plan", &[JSON], long).problem(413);
}

#[test]
fn what_is_wrong_with_a_document_is_said_with_its_place() {
    let home = home();
    let served = Served::new(&home);
    let typo = CART.replace("db:5432", "dbb:5432");
    let edit = edits(&[("cart", Some(CART)), ("other", Some(&typo.replace("cart", "web2")))]);
    let problem = served.client.post("/v1/plan", &edit).problem(422);
    let fault = problem.errors.iter().find(|fault| fault.pointer == "/documents/1/text");
    let fault = fault.unwrap_or_else(|| panic!("{problem:?}"));
    assert!(fault.place.starts_with("api/other:5:"), "{problem:?}");
    assert!(fault.message.contains("dbb") && fault.help.contains("db"), "{problem:?}");

    let fault = served.client.put("cart", &typo, NEW).problem(422).errors.swap_remove(0);
    assert_eq!((fault.pointer.as_str(), fault.place.split(':').next()), ("/text", Some("api/cart")));
    for (from, to, port, pointer) in [
        ("shop/nobody", "shop/db-1", "5432", "/from"),
        ("shop/web-1", "nowhere", "5432", "/to"),
        ("shop/web-1", "shop/db-1", "5432-5433", "/port"),
    ] {
        let question = json!({ "from": from, "to": to, "port": port });
        assert_eq!(served.client.post("/v1/explain", &question).problem(422).errors[0].pointer, pointer);
    }
    assert_eq!(served.status().revision.number, 1);
}

//! What an API server answers, and what a watch makes of it. Time is made up: it goes on while all wait.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use hyper::{Request, Response};
use kube::client::Body;
use serde_json::json;
use tokio::sync::Notify;

use super::{
    super::{client::Prompt, kinds::Kind},
    *,
};

const POLICIES: usize = 5;
/// Longer than anything here takes that happens at all.
const LONG: Duration = Duration::from_secs(60);

/// What is answered; `None` for what hangs.
type Answer = Option<(u16, Value)>;

/// A client of a server that answers each path with its query so.
fn client(answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Client {
    let answer = Arc::new(answer);
    let service = tower::service_fn(move |request: Request<Body>| {
        let answer = answer(request.uri().path_and_query().map_or("", |path| path.as_str()));
        async move {
            let Some((status, body)) = answer else { return std::future::pending().await };
            let body = Body::from(body.to_string().into_bytes());
            Response::builder().status(status).body(body)
        }
    });
    Client::new(Prompt(service), "default")
}

fn refusal(code: u16) -> Value {
    json!({ "kind": "Status", "status": "Failure", "message": "as told", "reason": "Told", "code": code })
}

fn list(kind: usize, items: &[Value]) -> Value {
    let Kind { api_version, name, .. } = KINDS[kind];
    json!({ "apiVersion": api_version, "kind": format!("{name}List"), "metadata": { "resourceVersion": "1" }, "items": items })
}

fn is_watch(path: &str) -> bool {
    path.contains("watch=true")
}

fn is_behind(shared: &Shared, kind: usize) -> bool {
    !shared.behind()[kind].is_empty()
}

#[tokio::test(start_paused = true)]
async fn a_kind_is_behind_until_it_is_listed_anew() {
    let (lists, watches, asked) = (AtomicUsize::new(0), AtomicUsize::new(0), Arc::new(Notify::new()));
    let may = Arc::new(Mutex::new(false));
    let (tell, holds) = (Arc::clone(&asked), Arc::clone(&may));
    let client = client(move |path| {
        if is_watch(path) {
            // What happened since the first list is forgotten.
            return (watches.fetch_add(1, Relaxed) == 0).then(|| (410, refusal(410)));
        }
        if path.ends_with("limit=1") {
            return Some((200, list(POLICIES, &[])));
        }
        if lists.fetch_add(1, Relaxed) == 0 {
            return Some((200, list(POLICIES, &[])));
        }
        tell.notify_one();
        match *holds.lock().unwrap() {
            true => Some((200, list(POLICIES, &[]))),
            false => Some((503, refusal(503))),
        }
    });
    let shared = Arc::new(Shared::new());
    let following = tokio::spawn(follow(POLICIES, client, Arc::clone(&shared)));
    // However often it fails, and however well the server answers others meanwhile.
    for _ in 0..20 {
        timeout(LONG, asked.notified()).await.unwrap();
        assert!(is_behind(&shared, POLICIES), "a list was asked for, and has not come");
    }
    assert!(shared.behind()[POLICIES].starts_with("kind NetworkPolicy"), "{:?}", shared.behind());
    *may.lock().unwrap() = true;
    timeout(LONG, asked.notified()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(!is_behind(&shared, POLICIES), "it was listed: {:?}", shared.behind());
    following.abort();
}

/// As after a server's end, where one that took its place has the connection and no time.
#[tokio::test(start_paused = true)]
async fn a_watch_that_does_not_begin_is_behind() {
    let client = client(|path| (!is_watch(path)).then(|| (200, list(POLICIES, &[]))));
    let shared = Arc::new(Shared::new());
    let following = tokio::spawn(follow(POLICIES, client, Arc::clone(&shared)));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(shared.store().missing() != Some(KINDS[POLICIES].name) && !is_behind(&shared, POLICIES), "it was listed");
    tokio::time::sleep(Duration::from_secs(15)).await;
    let why = shared.behind()[POLICIES].clone();
    assert!(why.contains("no watch began"), "{why}");
    // It stays so, however well the server answers others.
    for _ in 0..600 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(is_behind(&shared, POLICIES));
    }
    following.abort();
}

#[tokio::test(start_paused = true)]
async fn a_list_that_fails_is_asked_for_less_and_less_often() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let client = client(move |_| {
        counted.fetch_add(1, Relaxed);
        Some((500, refusal(500)))
    });
    let following = tokio::spawn(follow(POLICIES, client, Arc::new(Shared::new())));
    tokio::time::sleep(LONG).await;
    // 0.1 s, 0.2 s, and so on to 5 s, of each at least half.
    let asked = asked.load(Relaxed);
    assert!((12..=32).contains(&asked), "{asked} times in a minute");
    following.abort();
}

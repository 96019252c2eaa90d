//! An API server in memory, as far as a client that lists and watches can tell, with the failures that a real one has.

mod object;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use axum::{
    Router,
    body::Body,
    body::Bytes,
    extract::{Query, State},
    http::{Method, StatusCode, Uri},
    response::{IntoResponse as _, Response},
};
use futures_util::stream;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::Notify};

use self::object::One;

/// What the server knows, and how it behaves.
#[derive(Default)]
struct Content {
    version: u64,
    /// By path of the collection, then by namespace and name.
    objects: BTreeMap<String, BTreeMap<(String, String), Value>>,
    /// What happened: version, collection, type of the event, object.
    history: Vec<(u64, String, &'static str, Value)>,
    /// What happened before this is forgotten.
    oldest: u64,
    /// Watches that began before this number of breaks end.
    breaks: u64,
    /// Nothing is answered but this error.
    down: Option<StatusCode>,
    /// Somebody before the server answers in its place that there is no such page.
    lost: bool,
    /// Lists of this collection are not answered.
    slow: Option<String>,
    /// Collections that were listed, in order.
    lists: Vec<String>,
    /// What nobody may write.
    forbidden: Vec<String>,
    /// What was written: method and path.
    writes: Vec<String>,
}

#[derive(Default)]
struct Shared {
    content: Mutex<Content>,
    changed: Notify,
}

impl Shared {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Makes an object, or changes it.
    fn put(&self, collection: &str, mut object: Value) -> Value {
        let mut content = self.content();
        content.version += 1;
        object["metadata"]["resourceVersion"] = content.version.to_string().into();
        let key = key(&object);
        let objects = content.objects.get_mut(collection).unwrap();
        let event = if objects.insert(key, object.clone()).is_some() { "MODIFIED" } else { "ADDED" };
        let version = content.version;
        content.history.push((version, collection.to_owned(), event, object.clone()));
        self.changed.notify_waiters();
        object
    }
}

/// A running server; it ends with the process.
pub(crate) struct Server {
    shared: Arc<Shared>,
    home: TempDir,
}

impl Server {
    pub(crate) fn start() -> Self {
        let shared = Arc::new(Shared::default());
        // A version of 0 means any version to clients.
        shared.content().version = 1;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let routes = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        thread::spawn(move || runtime.block_on(async { axum::serve(listener, routes).await }));
        let home = TempDir::new().unwrap();
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{ name: c, cluster: {{ server: 'http://{address}' }} }}]\n\
             users: [{{ name: u, user: {{}} }}]\ncontexts: [{{ name: c, context: {{ cluster: c, user: u }} }}]\n"
        );
        fs::write(home.path().join("kubeconfig"), text).unwrap();
        let server = Self { shared, home };
        for kind in [NAMESPACES, "/api/v1/nodes", "/api/v1/pods", "/api/v1/services"] {
            server.define(kind);
        }
        server.define("/apis/discovery.k8s.io/v1/endpointslices");
        server.define(POLICIES);
        server.put(NAMESPACES, json!({ "metadata": { "name": "shop" } }));
        server
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.home.path().join("kubeconfig")
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    /// A kind is served from now on.
    pub(crate) fn define(&self, collection: &str) {
        self.shared.content().objects.entry(collection.to_owned()).or_default();
    }

    pub(crate) fn put(&self, collection: &str, object: Value) {
        self.shared.put(collection, object);
    }

    pub(crate) fn get(&self, collection: &str, namespace: &str, name: &str) -> Option<Value> {
        self.shared.content().objects[collection].get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    pub(crate) fn all(&self, collection: &str) -> Vec<Value> {
        self.shared.content().objects[collection].values().cloned().collect()
    }

    /// Nobody may write to these collections, or to an object where one's name is behind its collection. Everybody may write to all others.
    pub(crate) fn forbid(&self, paths: &[&str]) {
        self.shared.content().forbidden = paths.iter().map(|path| (*path).to_owned()).collect();
    }

    /// What was written, of which the path has this.
    pub(crate) fn writes(&self, part: &str) -> usize {
        self.shared.content().writes.iter().filter(|write| write.contains(part)).count()
    }

    pub(crate) fn delete(&self, collection: &str, namespace: &str, name: &str) {
        let mut content = self.shared.content();
        content.version += 1;
        let version = content.version;
        let gone = content.objects.get_mut(collection).unwrap().remove(&(namespace.to_owned(), name.to_owned()));
        content.history.push((version, collection.to_owned(), "DELETED", gone.unwrap()));
        self.shared.changed.notify_waiters();
    }

    /// Watches end, and what happened so far is forgotten: whoever goes on from there is told 410.
    pub(crate) fn forget(&self) {
        let mut content = self.shared.content();
        content.version += 1;
        content.oldest = content.version;
        content.breaks += 1;
        self.shared.changed.notify_waiters();
    }

    /// Watches end, and nothing is answered but this error.
    pub(crate) fn down(&self, error: Option<StatusCode>) {
        let mut content = self.shared.content();
        content.down = error;
        content.breaks += 1;
        self.shared.changed.notify_waiters();
    }

    /// A kind is not served any more.
    pub(crate) fn undefine(&self, collection: &str) {
        let mut content = self.shared.content();
        content.objects.remove(collection);
        content.breaks += 1;
        self.shared.changed.notify_waiters();
    }

    /// Watches end, and what is asked does not come to the server.
    pub(crate) fn lose(&self, lost: bool) {
        let mut content = self.shared.content();
        content.lost = lost;
        content.breaks += 1;
        self.shared.changed.notify_waiters();
    }

    /// Lists of a collection take until it is another one.
    pub(crate) fn slow(&self, collection: Option<&str>) {
        self.shared.content().slow = collection.map(str::to_owned);
        self.shared.changed.notify_waiters();
    }

    /// How often a collection was listed.
    pub(crate) fn lists(&self, collection: &str) -> usize {
        self.shared.content().lists.iter().filter(|listed| *listed == collection).count()
    }
}

pub(crate) const NAMESPACES: &str = "/api/v1/namespaces";
pub(crate) const PODS: &str = "/api/v1/pods";
pub(crate) const EVENTS: &str = "/apis/events.k8s.io/v1/events";
pub(crate) const POLICIES: &str = "/apis/networking.k8s.io/v1/networkpolicies";

fn key(object: &Value) -> (String, String) {
    let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

fn status(code: StatusCode, reason: &str) -> Response {
    let body = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code.as_u16(), "message": reason });
    (code, body.to_string()).into_response()
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    Query(query): Query<BTreeMap<String, String>>,
    body: Bytes,
) -> Response {
    let path = uri.path().to_owned();
    if let Some(error) = shared.content().down {
        return status(error, "AsTold");
    }
    if shared.content().lost {
        return (StatusCode::NOT_FOUND, "404 page not found").into_response();
    }
    if let Some(served) = discovery(&shared.content(), &path) {
        return served.to_string().into_response();
    }
    if let Some(of) = One::of(&path)
        && shared.content().objects.contains_key(&of.collection)
    {
        return of.answer(&shared, &method, &body, &query);
    }
    if !shared.content().objects.contains_key(&path) {
        return status(StatusCode::NOT_FOUND, "NotFound");
    }
    if query.get("watch").is_some_and(|watch| watch == "true" || watch == "1") {
        let since = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
        return watch(shared, path, since);
    }
    list(&shared, &path).await
}

/// What is served: all groups, or the kinds of one version.
fn discovery(content: &Content, path: &str) -> Option<Value> {
    let served = content.objects.keys().filter_map(|collection| collection.strip_prefix("/apis/")?.rsplit_once('/'));
    if path == "/apis" {
        let groups = served.filter_map(|(of, _)| {
            let (group, version) = of.split_once('/')?;
            Some(json!({ "name": group, "versions": [{ "groupVersion": of, "version": version }] }))
        });
        return Some(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups.collect::<Vec<_>>() }));
    }
    let version = path.strip_prefix("/apis/")?;
    let resource = |plural| json!({ "name": plural, "singularName": "", "namespaced": true, "kind": "", "verbs": [] });
    let resources: Vec<_> = served.filter(|(of, _)| *of == version).map(|(_, plural)| resource(plural)).collect();
    let list =
        json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources });
    (!resources.is_empty()).then_some(list)
}

async fn list(shared: &Shared, path: &str) -> Response {
    shared.content().lists.push(path.to_owned());
    loop {
        let changed = shared.changed.notified();
        {
            let content = shared.content();
            if content.slow.as_deref() != Some(path) {
                let items: Vec<_> = content.objects[path].values().cloned().collect();
                let metadata = json!({ "resourceVersion": content.version.to_string() });
                return json!({ "kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items })
                    .to_string()
                    .into_response();
            }
        }
        changed.await;
    }
}

fn watch(shared: Arc<Shared>, path: String, since: u64) -> Response {
    if since < shared.content().oldest {
        // Servers say it in either way.
        let body =
            json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410 });
        return match path == PODS {
            true => format!("{}\n", json!({ "type": "ERROR", "object": body })).into_response(),
            false => status(StatusCode::GONE, "Expired"),
        };
    }
    let began = shared.content().breaks;
    let lines = stream::unfold((shared, path, since), move |(shared, path, since)| async move {
        let waiting = Arc::clone(&shared);
        loop {
            let changed = waiting.changed.notified();
            {
                let content = shared.content();
                // A watch may begin while its kind goes.
                if content.breaks != began || !content.objects.contains_key(&path) {
                    return None;
                }
                let next = content.history.iter().find(|(version, of, ..)| *version > since && *of == path);
                if let Some((version, _, event, object)) = next {
                    let (version, line) = (*version, format!("{}\n", json!({ "type": event, "object": object })));
                    drop(content);
                    return Some((Ok::<_, Infallible>(line), (shared, path, version)));
                }
            }
            changed.await;
        }
    });
    Body::from_stream(lines).into_response()
}

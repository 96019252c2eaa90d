//! Lists and watches one kind for ever.

use std::{sync::Arc, time::Duration};

use bulkhead_dataplane::causes::causes;
use futures_util::StreamExt as _;
use kube::{
    Api, Client,
    api::ListParams,
    core::{ApiResource, DynamicObject},
    runtime::watcher::{self, Event, watcher},
};
use serde_json::Value;
use tokio::time::timeout;

use super::{
    ANSWER, Shared,
    client::BEGINS,
    kinds::{KINDS, PODS},
    object::{Object, Pod},
};

/// How long it is waited after a failure: the first time, and at most. The most is short, since what a cluster says meanwhile is not known.
const FIRST: Duration = Duration::from_millis(100);
const MOST: Duration = Duration::from_secs(5);
/// How often it is asked whether a server that failed answers again.
const AGAIN: Duration = Duration::from_secs(2);
/// How often it is looked whether a cluster has a kind that it had not.
const ABSENT: Duration = Duration::from_secs(30);
/// Objects of a list that are on the way at once: what is kept of one is small, but a list is not.
const PAGE: u32 = 500;
/// A watch is asked for anew after so many seconds, and a connection of which nothing came since is given up.
const WATCH: u32 = 240;

/// Ever longer, each time with a part that is left to chance, so that a thousand nodes do not ask at the same moment.
struct Pause(Duration);

impl Pause {
    async fn wait(&mut self) {
        let now = self.0;
        self.0 = (now * 2).min(MOST);
        tokio::time::sleep(jitter(now)).await;
    }
}

/// Half of a time, and a part of the other half.
fn jitter(time: Duration) -> Duration {
    time.mul_f64(fastrand::f64().mul_add(0.5, 0.5))
}

/// Follows a kind.
pub(super) async fn follow(kind: usize, client: Client, shared: Arc<Shared>) {
    if kind == PODS {
        follow_as::<Pod>(kind, client, shared).await;
    } else {
        follow_as::<DynamicObject>(kind, client, shared).await;
    }
}

async fn follow_as<K: Object>(kind: usize, client: Client, shared: Arc<Shared>) {
    let resource = KINDS[kind].resource();
    let config =
        watcher::Config { label_selector: KINDS[kind].labels.map(str::to_owned), ..watcher::Config::default() };
    let config = config.page_size(PAGE).timeout(WATCH);
    let api: Api<K> = Api::all_with(client.clone(), &resource);
    let mut pause = Pause(FIRST);
    loop {
        let mut events = watcher(api.clone(), config.clone()).boxed();
        // A list that is asked for says nothing yet: what happened meanwhile is known when it is complete.
        let mut is_listing = true;
        loop {
            let is_behind = !is_listing && !shared.behind()[kind].is_empty();
            let event = tokio::select! {
                event = events.next() => event,
                // A watch that goes on is silent until something happens.
                () = answers(&api), if is_behind => {
                    shared.behind()[kind].clear();
                    continue;
                }
            };
            let Some(event) = event else { break };
            match event {
                Ok(event) => {
                    is_listing = matches!(event, Event::Init | Event::InitApply(_));
                    take(kind, event, &shared);
                    if !is_listing {
                        pause = Pause(FIRST);
                        shared.behind()[kind].clear();
                    }
                }
                // What happened since is forgotten: all is listed anew, and at once.
                Err(error) if is_status(&error, 410) && !is_listing => {
                    shared.behind()[kind] = format!("kind {} is listed anew: {}", KINDS[kind].name, causes(&error));
                    break;
                }
                Err(error) => {
                    let may_be_absent = KINDS[kind].is_optional && is_status(&error, 404);
                    let served = if may_be_absent { served(&client, &resource).await } else { Served::Unknown };
                    let why = match served {
                        Served::Not => {
                            forget(kind, &shared);
                            tokio::time::sleep(jitter(ABSENT)).await;
                            break;
                        }
                        Served::Otherwise(version) => {
                            let read = &resource.api_version;
                            format!("the cluster has some of {version}, which is not read; serve them as {read} too")
                        }
                        Served::Unknown => causes(&error),
                    };
                    tracing::debug!(kind = KINDS[kind].name, "watch: {error}");
                    shared.behind()[kind] = format!("kind {}: {why}", KINDS[kind].name);
                    pause.wait().await;
                }
            }
        }
    }
}

/// Waits until the server lists the kind again, and for as long as the watch may take from then on until it goes on and tells what happened meanwhile: a try
/// that hangs, and a pause.
async fn answers<K: Object>(api: &Api<K>) {
    loop {
        tokio::time::sleep(jitter(AGAIN)).await;
        if api.list(&ListParams::default().limit(1)).await.is_ok() {
            return tokio::time::sleep(BEGINS + MOST).await;
        }
    }
}

/// How a cluster serves a kind that it does not list.
enum Served {
    /// It has no such kind, or none of it.
    Not,
    /// It has some, and shows them in this version only: that they say nothing is not known.
    Otherwise(String),
    Unknown,
}

/// How the cluster serves a kind, as its list of what it serves says: that there is no such page anybody on the way may answer. Where the list does not
/// come the kind is not taken for absent.
async fn served(client: &Client, kind: &ApiResource) -> Served {
    let ask = async {
        let groups = client.list_api_groups().await?.groups;
        let versions = groups.iter().flat_map(|group| &group.versions).map(|version| &version.group_version);
        let is_of_group = |version: &&String| version.split_once('/').is_some_and(|(group, _)| group == kind.group);
        let mut served = Served::Not;
        for version in versions.filter(is_of_group) {
            let resources = client.list_api_group_resources(version).await?.resources;
            if !resources.iter().any(|resource| resource.name == kind.plural) {
                continue;
            }
            if *version == kind.api_version {
                return Ok(Served::Unknown);
            }
            let other = ApiResource { api_version: version.clone(), ..kind.clone() };
            let other = ApiResource { version: version.rsplit('/').next().unwrap_or_default().to_owned(), ..other };
            let other: Api<DynamicObject> = Api::all_with(client.clone(), &other);
            if !other.list(&ListParams::default().limit(1)).await?.items.is_empty() {
                served = Served::Otherwise(version.clone());
            }
        }
        Ok::<_, kube::Error>(served)
    };
    match timeout(ANSWER, ask).await {
        Ok(Ok(served)) => served,
        Ok(Err(error)) => {
            tracing::debug!(kind = kind.kind, "what the cluster serves is not known: {}", causes(&error));
            Served::Unknown
        }
        Err(_) => Served::Unknown,
    }
}

/// The cluster has no such kind.
fn forget(kind: usize, shared: &Shared) {
    let known = shared.store().count(kind);
    if known > 0 {
        tracing::warn!(
            kind = KINDS[kind].name,
            objects = known,
            "the cluster has no such kind any more: none of them holds"
        );
    }
    shared.roster().absent(kind);
    shared.change(|store| store.absent(kind));
    shared.behind()[kind].clear();
}

/// Whether the server answered with this status: 404 where it knows no such kind.
fn is_status(error: &watcher::Error, code: u16) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status.code == code,
        _ => false,
    }
}

fn take<K: Object>(kind: usize, event: Event<K>, shared: &Shared) {
    if K::for_roster(&event).is_some_and(|event| shared.roster().hear(kind, event)) {
        shared.news.notify_one();
    }
    match event {
        Event::Init => shared.change(|store| {
            store.begin(kind);
            false
        }),
        Event::InitApply(object) => {
            let object = object.into_json();
            shared.change(|store| {
                if let Err(found) = store.list(kind, object) {
                    Shared::refuse(&found);
                }
                false
            });
        }
        Event::InitDone => shared.change(|store| store.end(kind)),
        Event::Apply(object) => {
            let object = object.into_json();
            shared.change(|store| store.apply(kind, object).inspect_err(Shared::refuse).unwrap_or_default());
        }
        Event::Delete(object) => {
            let object = object.into_json();
            shared.change(|store| store.delete(kind, &object));
        }
    }
}

/// Asks for a pod.
pub(super) async fn pod(client: &Client, namespace: &str, name: &str) -> Result<Value, String> {
    let api: Api<Pod> = Api::namespaced_with(client.clone(), namespace, &KINDS[PODS].resource());
    api.get(name).await.map(Object::into_json).map_err(|error| causes(&error))
}

#[cfg(test)]
mod tests;

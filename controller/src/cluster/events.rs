//! Events: what people see who describe a pod or a policy. Few, whatever happens: an object has one at a time, which is changed at most once a minute,
//! and of a node come so many in a minute. Some of these are left for objects of which nothing was told.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use bulkhead_dataplane::causes::causes;
use k8s_openapi::{
    api::{
        core::v1::{self, ObjectReference},
        events::v1::{Event, EventSeries},
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{
    Api, Client, Error,
    api::{ListParams, Patch, PatchParams, PostParams},
    core::DynamicObject,
};
use serde_json::json;
use tokio::time::timeout;

use super::{
    kinds::{KINDS, Kind, OURS},
    report::{cut, reasons},
    status::{is_forbidden, within},
};
use crate::diagnostic::Diagnostics;

/// An object's event is not changed sooner.
pub(super) const MINUTE: Duration = Duration::from_secs(60);
/// What is written of a policy is written again after this time, while it is so.
const AGAIN: Duration = Duration::from_secs(1800);
/// The API server forgets events after an hour.
pub(super) const FORGOTTEN: Duration = Duration::from_secs(3000);
/// Characters; the API server takes 1,024 bytes.
const WORDS: usize = 900;
/// Longest name of an object.
const NAME: usize = 253;
/// Why an API server refuses what is new in a namespace that is being deleted.
const ENDS: &str = "NamespaceTerminating";
/// How long a request may take.
const ANSWER: Duration = Duration::from_secs(10);

/// What was written last about an object.
#[derive(Debug)]
struct Written {
    event: String,
    first: Instant,
    count: i32,
}

/// How many events may be written. Pure: who asks says what time it is.
#[derive(Debug, Default)]
pub(super) struct Budget {
    /// When the latest ones were written, and whether each was the first about its object.
    latest: VecDeque<(Instant, bool)>,
}

impl Budget {
    /// Events of a node in a minute.
    pub(super) const EVENTS: usize = 10;
    /// Those of them that may be about objects that had one: what is new is told while others go on and on.
    pub(super) const REPEATED: usize = 6;

    /// Takes one out, where one is left.
    pub(super) fn take(&mut self, first: bool, now: Instant) -> bool {
        while self.latest.front().is_some_and(|(at, _)| now >= *at + MINUTE) {
            self.latest.pop_front();
        }
        let repeated = self.latest.iter().filter(|(_, first)| !first).count();
        let may = self.latest.len() < Self::EVENTS && (first || repeated < Self::REPEATED);
        if may {
            self.latest.push_back((now, first));
        }
        may
    }
}

/// Writes events.
pub(super) struct Events {
    client: Client,
    node: String,
    /// By unique id of the object.
    written: BTreeMap<String, Written>,
    pub(super) budget: Budget,
    /// Policies by name, with what was said of them last and when.
    policies: BTreeMap<String, (String, Instant)>,
    warned: bool,
}

impl Events {
    pub(super) fn new(client: Client, node: &str) -> Self {
        let node = node.to_owned();
        Self {
            client,
            node,
            written: BTreeMap::new(),
            budget: Budget::default(),
            policies: BTreeMap::new(),
            warned: false,
        }
    }

    /// Writes an event that the budget had, or changes the one that the object has. What cannot be written is lost. Whether it would be no use to try again.
    pub(super) async fn write(&mut self, about: ObjectReference, reason: &str, action: &str, note: &str) -> bool {
        self.written.retain(|_, written| written.first.elapsed() < FORGOTTEN);
        let note = cut(note, WORDS);
        match timeout(ANSWER, self.put(about, reason, action, note)).await {
            Ok(Err(Error::Api(status))) if status.code == 403 => {
                // Nothing new comes into a namespace that is being deleted.
                let ends = status.details.iter().flat_map(|details| &details.causes).any(|cause| cause.reason == ENDS);
                if !ends && !self.warned {
                    tracing::warn!("events are not written, a right is missing: {}", status.message);
                }
                self.warned |= !ends;
                true
            }
            Ok(Err(error)) => {
                tracing::debug!("event: {}", causes(&error));
                false
            }
            Ok(Ok(())) => {
                self.warned = false;
                true
            }
            Err(_) => {
                tracing::debug!("event: the API server does not answer");
                false
            }
        }
    }

    async fn put(&mut self, about: ObjectReference, reason: &str, action: &str, note: String) -> Result<(), Error> {
        let stamp = MicroTime(Timestamp::now());
        let namespace = about.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let uid = about.uid.clone().unwrap_or_default();
        if let Some(written) = self.written.get_mut(&uid) {
            let series = EventSeries { count: written.count + 1, last_observed_time: stamp.clone() };
            // Events are in two groups of the API: in the newer one, where they are made, what they say can never be changed.
            let old: Api<v1::Event> = Api::namespaced(self.client.clone(), &namespace);
            let patch = json!({ "message": note, "series": series });
            match old.patch(&written.event, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Ok(_) => {
                    written.count += 1;
                    return Ok(());
                }
                Err(Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        let event = called(about.name.as_deref().unwrap_or_default(), stamp.0.as_nanosecond());
        let object = Event {
            metadata: ObjectMeta { name: Some(event.clone()), namespace: Some(namespace), ..ObjectMeta::default() },
            action: Some(action.to_owned()),
            event_time: Some(stamp),
            note: Some(note),
            reason: Some(reason.to_owned()),
            regarding: Some(about),
            reporting_controller: Some("bulkhead.io/agent".to_owned()),
            reporting_instance: Some(self.node.clone()),
            type_: Some("Warning".to_owned()),
            ..Event::default()
        };
        api.create(&PostParams::default(), &object).await?;
        self.written.insert(uid, Written { event, first: Instant::now(), count: 1 });
        Ok(())
    }

    /// Says of policies of Kubernetes that they are refused, which have no status for it.
    pub(super) async fn refused(&mut self, found: &Diagnostics) {
        let files: BTreeSet<&str> = found.0.iter().filter_map(|found| Some(found.place.as_ref()?.file())).collect();
        self.policies.retain(|name, (_, at)| files.contains(name.as_str()) && at.elapsed() < AGAIN);
        for name in files {
            let Some((kind, namespace, of)) = object(name) else { continue };
            let note = reasons(name, found);
            let said = self.policies.get(name).map(|(said, _)| said);
            if said == Some(&note) || !self.budget.take(said.is_none(), Instant::now()) {
                continue;
            }
            let is_told = match self.find(kind, namespace, of).await {
                Ok(Some(about)) => self.write(about, "Refused", "Read", &note).await,
                // It is gone.
                Ok(None) => true,
                Err(error) => is_forbidden(&error),
            };
            if is_told {
                self.policies.insert(name.to_owned(), (note, Instant::now()));
            }
        }
    }

    /// The object that has a name now. It may only be listed.
    async fn find(&self, kind: &Kind, namespace: &str, name: &str) -> Result<Option<ObjectReference>, Error> {
        let resource = kind.resource();
        let api: Api<DynamicObject> = match namespace {
            "" => Api::all_with(self.client.clone(), &resource),
            namespace => Api::namespaced_with(self.client.clone(), namespace, &resource),
        };
        let those = ListParams::default().fields(&format!("metadata.name={name}"));
        let Some(object) = within(api.list(&those)).await?.items.into_iter().next() else { return Ok(None) };
        Ok(Some(ObjectReference {
            api_version: Some(kind.api_version.to_owned()),
            kind: Some(kind.name.to_owned()),
            namespace: object.metadata.namespace,
            name: object.metadata.name,
            uid: object.metadata.uid,
            ..ObjectReference::default()
        }))
    }
}

/// What an event is called: after its object, as far as a name may be that long.
fn called(object: &str, at: i128) -> String {
    let at = format!(".{at:x}");
    let most = NAME - at.len();
    // Names have no other characters.
    let object = object.get(..most).map_or(object, |start| start.trim_end_matches(['.', '-']));
    object.to_owned() + &at
}

/// What a name of a policy stands for, where it is one of Kubernetes: kind, namespace and name.
fn object(name: &str) -> Option<(&'static Kind, &str, &str)> {
    let (of, rest) = name.split_once('/')?;
    let policies = KINDS.iter().enumerate().filter(|(at, kind)| kind.is_policy && !OURS.contains(at));
    let kind = policies.map(|(_, kind)| kind).find(|kind| kind.name.to_ascii_lowercase() == of)?;
    let (namespace, name) = rest.split_once('/').unwrap_or(("", rest));
    Some((kind, namespace, name))
}

//! Containers that run without a guard are found, and guarded: see [`crate::adopt`].

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::{Duration, Instant},
};

use bulkhead_dataplane::{
    cni::protocol::{Answer, Ask, Attached, Request},
    node::{ContainerLink, Containers, Node},
};

use super::{Agent, cni::is_known};
use crate::{
    adopt::{Found, Stranger, cache, identify, unguarded},
    attachments::Attachments,
};

/// How long a link may be there before it is taken for one that nobody tells of. A chain of plugins takes about a tenth of it from making the link to
/// telling of it.
const GRACE: Duration = Duration::from_secs(1);

/// How long it may be there until it counts as a start without a guard while nobody says who it is. On a busy node a chain takes longer.
const BUSY: Duration = Duration::from_secs(5);

/// How long the link of a container may be there after the runtime has said that it goes. The plugin is the first of a chain to be told.
const DEPARTURE: Duration = Duration::from_secs(30);

/// A link that was seen without a guard.
#[derive(Debug)]
struct Sighting {
    since: Instant,
    /// It was there when the agent started.
    before: bool,
    /// It has been counted.
    counted: bool,
    /// It came without a guard, and has been shut since.
    shut: bool,
    /// What was said of it last.
    told: String,
}

/// What is remembered of them.
#[derive(Debug, Default)]
pub(super) struct Adoption {
    /// By name and index.
    sightings: BTreeMap<(String, u32), Sighting>,
    /// Links of containers that go, and since when.
    departing: BTreeMap<(String, u32), Instant>,
    /// Results that could not be read.
    pub(super) unreadable: BTreeSet<PathBuf>,
    /// Why links could not be looked for; empty when they could.
    failed: String,
    pub(super) found: Found,
    /// It has been looked once.
    started: bool,
}

impl Adoption {
    /// Takes what is there now, and forgets what is not.
    fn see(&mut self, links: &[&ContainerLink], now: Instant) {
        let key = |link: &ContainerLink| (link.link.clone(), link.index);
        let there: BTreeSet<_> = links.iter().map(|link| key(link)).collect();
        self.sightings.retain(|key, _| there.contains(key));
        self.departing.retain(|_, since| now < *since + DEPARTURE);
        for key in there {
            let before = !self.started;
            let counted = self.departing.contains_key(&key);
            let seen = Sighting { since: now, before, counted, shut: false, told: String::new() };
            self.sightings.entry(key).or_insert(seen);
        }
        self.started = true;
    }
}

impl<N: Node> Agent<N> {
    /// Looks for containers that run without a guard, and guards those that somebody knows; links that are new on the bridges that the agent is to keep are
    /// shut until then. Who it is, is asked when a link has been there for a second, so that those whose ADD is under way are none.
    pub fn adopt(&mut self) {
        let containers = match self.node.containers() {
            Ok(containers) => containers,
            Err(error) => {
                let error = error.to_string();
                if self.adoption.failed != error {
                    tracing::warn!("whether containers run without a guard is not known: {error}");
                }
                self.adoption.failed = error;
                return;
            }
        };
        self.adoption.failed.clear();
        let guarded: BTreeSet<&str> = self.desired.endpoints.iter().map(|endpoint| endpoint.link.as_str()).collect();
        let of_node = (&self.listed, self.settings.node.as_str());
        let links = unguarded(&containers, &guarded, of_node, &self.settings.scope.bridges);
        // Those are no start without a guard. On a bridge that is to be kept they are shut all the same.
        let none = |link: &&ContainerLink| self.departs(link) || self.arrives(link);
        let links: Vec<_> = links.into_iter().filter(|link| !none(link) || self.is_kept(link)).collect();
        let now = Instant::now();
        self.adoption.see(&links, now);
        self.shut_new(&links);
        let ripe =
            |link: &&ContainerLink| self.sighting(link).is_some_and(|seen| seen.before || now >= seen.since + GRACE);
        let ripe: Vec<ContainerLink> = links.into_iter().filter(ripe).cloned().collect();
        let mut strangers = Vec::new();
        for (link, who) in self.who(&ripe, &containers) {
            self.count(&link, who.as_ref());
            let why = match who {
                Ok((request, Answer::Done)) => {
                    self.tell_guarded(&link, &request);
                    continue;
                }
                Ok((_, Answer::Refused { message, .. })) => message,
                Err(why) => why,
            };
            // Of those that were there before, some plugin may just be about to tell.
            if self.sighting(&link).is_some_and(|seen| now >= seen.since + GRACE) {
                strangers.push(self.receive(link, why));
            }
        }
        self.adoption.found.strangers = strangers;
    }

    /// Shuts what is new on a bridge that is to be kept. An ADD that waits sees to its links itself.
    fn shut_new(&mut self, links: &[&ContainerLink]) {
        let new = |link: &&&ContainerLink| {
            !link.shut
                && self.is_kept(link)
                && !self.arrives(link)
                && self.sighting(link).is_some_and(|seen| !seen.before)
        };
        let new: Vec<_> = links.iter().filter(new).filter(|_| !self.settings.manner.observe).collect();
        for link in new {
            match self.node.shut(&link.link) {
                Ok(()) => {
                    let seen = self.adoption.sightings.get_mut(&(link.link.clone(), link.index));
                    seen.into_iter().for_each(|seen| seen.shut = true);
                }
                // It may be gone. If not, it is tried again, and told with those of nobody.
                Err(error) => tracing::debug!(link = link.link, "a new link is not shut: {error}"),
            }
        }
    }

    /// The runtime has said that these go: without a guard they are none that started so.
    pub(super) fn depart(&mut self, links: impl Iterator<Item = (String, u32)>) {
        let now = Instant::now();
        self.adoption.departing.extend(links.map(|link| (link, now)));
    }

    fn departs(&self, link: &ContainerLink) -> bool {
        self.adoption.departing.contains_key(&(link.link.clone(), link.index))
    }

    fn arrives(&self, link: &ContainerLink) -> bool {
        self.settings.scope.arriving.contains(&(link.link.clone(), link.index))
    }

    fn is_kept(&self, link: &ContainerLink) -> bool {
        link.bridge.as_ref().is_some_and(|bridge| self.settings.scope.bridges.contains(bridge))
    }

    /// How long until a link that was seen has been there long enough.
    #[must_use]
    pub fn until_ripe(&self) -> Option<Duration> {
        let ripens = self.adoption.sightings.values().map(|seen| seen.since + GRACE);
        let left = ripens.map(|at| at.saturating_duration_since(Instant::now()));
        // What is ripe has been looked at, and is again with the next refresh.
        left.filter(|left| !left.is_zero()).min()
    }

    fn sighting(&self, link: &ContainerLink) -> Option<&Sighting> {
        self.adoption.sightings.get(&(link.link.clone(), link.index))
    }

    /// Asks who runs behind these links, and guards whom somebody knows, all at once.
    fn who(
        &mut self,
        links: &[ContainerLink],
        containers: &Containers,
    ) -> Vec<(ContainerLink, Result<(Request, Answer), String>)> {
        if links.is_empty() {
            return Vec::new();
        }
        let cached = match &self.settings.scope.cache {
            Some(directory) => cache::read(directory, &mut self.adoption.unreadable),
            None => Vec::new(),
        };
        let node = self.settings.node.as_str();
        let joined = self.attachments.join(&self.listed, node);
        let joined = joined.as_ref().unwrap_or(&self.listed);
        let mut requests: Vec<Request> = Vec::new();
        let found: Vec<Result<usize, String>> = links
            .iter()
            .map(|link| {
                if self.departs(link) {
                    return Err("its runtime has said that it goes, and it is still there".to_owned());
                }
                let request = identify(link, containers, &cached, (joined, node))?;
                not_another(&self.attachments, &request)?;
                // What is shut must not be opened for want of labels.
                if let Some(attached) = attached(&request).filter(|_| link.shut) {
                    is_known(&self.listed, attached)?;
                    self.settings.source.vouches(attached)?;
                }
                // A container with two interfaces is found twice.
                Ok(requests.iter().position(|known| *known == request).unwrap_or_else(|| {
                    requests.push(request);
                    requests.len() - 1
                }))
            })
            .collect();
        let answers = if requests.is_empty() { Vec::new() } else { self.attach(&requests) };
        let of = |at: usize| Some((requests.get(at)?.clone(), answers.get(at)?.clone()));
        let answered = |who: Result<usize, String>| {
            who.and_then(|at| of(at).ok_or_else(|| "it was asked for, and nothing came of it".to_owned()))
        };
        links.iter().cloned().zip(found.into_iter().map(answered)).collect()
    }

    /// Counts a container that started without a guard while the agent ran, once.
    fn count(&mut self, link: &ContainerLink, who: Result<&(Request, Answer), &String>) {
        let Some(seen) = self.adoption.sightings.get_mut(&(link.link.clone(), link.index)) else { return };
        // One that had been shut already never ran without.
        let was_shut = link.shut && !seen.shut;
        if seen.counted || seen.before || was_shut || who.is_err() && seen.since.elapsed() < BUSY {
            return;
        }
        seen.counted = true;
        self.adoption.found.unenforced += 1;
        let attached = who.ok().and_then(|(request, _)| attached(request));
        let container = attached.map_or("unknown", |attached| attached.key.container.as_str());
        let workload = attached.map_or_else(|| "unknown".to_owned(), workload);
        let addresses = addresses(link);
        tracing::warn!(link = link.link, container, workload, addresses, "a container started without a guard");
        let detail = format!("link {}, container {container}, workload {workload}, addresses {addresses}", link.link);
        self.record_seen("enforcement.unenforced_start", detail);
    }

    fn tell_guarded(&mut self, link: &ContainerLink, request: &Request) {
        let seen = self.adoption.sightings.remove(&(link.link.clone(), link.index));
        let before = seen.is_some_and(|seen| seen.before);
        let attached = attached(request);
        let container = attached.map_or("", |attached| attached.key.container.as_str());
        let workload = attached.map_or_else(String::new, workload);
        if before {
            self.adoption.found.adopted += 1;
            tracing::info!(
                link = link.link,
                container,
                workload,
                "adopted: it ran before the agent, and is guarded now"
            );
        } else {
            tracing::info!(link = link.link, container, workload, "it is guarded now");
        }
    }

    /// A link of nobody: shut where its bridge is to be kept, opened again where nothing is to be dropped.
    fn receive(&mut self, link: ContainerLink, why: String) -> Stranger {
        let kept = self.is_kept(&link);
        let mut shut = link.shut;
        let mut why = why;
        let done = match (link.shut, self.settings.manner.observe) {
            // It may have been tried to guard one that was shut, in vain.
            (was, false) if was || kept => self.node.shut(&link.link).map(|()| shut = true),
            (true, true) => self.node.unshut(&link.link).map(|()| shut = false),
            _ => Ok(()),
        };
        if let Err(error) = done {
            why = format!("{why}; {error}");
        }
        let told = format!("{}: {why}", if shut { "it is shut" } else { "everything passes it" });
        if let Some(seen) = self.adoption.sightings.get_mut(&(link.link.clone(), link.index))
            && seen.told != told
        {
            let addresses = addresses(&link);
            tracing::error!(link = link.link, addresses, "nobody is known who runs behind this link, {told}");
            seen.told = told;
        }
        let ContainerLink { link, bridge, addresses, .. } = link;
        Stranger { link, bridge, addresses, shut, why }
    }
}

/// A container that is attached by another link has not moved: somebody has its addresses.
pub(super) fn not_another(attachments: &Attachments, request: &Request) -> Result<(), String> {
    let Some(attached) = attached(request) else { return Ok(()) };
    let known = attachments.iter().find(|known| known.attached.key == attached.key);
    match known.filter(|known| known.attached.interfaces != attached.interfaces) {
        Some(known) => {
            Err(format!("what is known of it is of container {}, which has another link", known.attached.key.container))
        }
        None => Ok(()),
    }
}

pub(super) fn attached(request: &Request) -> Option<&Attached> {
    match &request.ask {
        Ask::Add(attached) => Some(attached),
        _ => None,
    }
}

pub(super) fn workload(attached: &Attached) -> String {
    format!("{}/{}", attached.namespace, attached.name)
}

pub(super) fn addresses(link: &ContainerLink) -> String {
    let all: Vec<_> = link.addresses.iter().map(ToString::to_string).collect();
    all.join(" ")
}

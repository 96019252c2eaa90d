//! What container runtimes tell, and what becomes of it: see [`crate::attachments`].

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    slice,
};

use bulkhead_dataplane::{
    cni::{
        protocol::{Answer, Ask, Attached, Interface, Request, VERSION},
        spool,
    },
    desired::{EndpointName, Segment},
    node::{Discovered, Node},
};

use super::{Agent, Settings, compiling::Compiling};
use crate::{
    attachments::{Attachment, Attachments},
    diagnostic::Diagnostics,
    peers::Made,
    store::{
        file::{self, FileError},
        now,
    },
    workloads::{WorkloadName, Workloads},
};

/// Name of the file beside the socket that tells the next agent.
const ATTACHMENTS: &str = "attachments.json";

fn directory(settings: &Settings) -> Option<&Path> {
    settings.cni.as_deref().and_then(Path::parent)
}

/// What the agent before was told.
///
/// # Errors
/// It cannot be read. An agent that went on would take the guards of all of them for left-overs.
pub(super) fn load(settings: &Settings) -> Result<Attachments, FileError> {
    let known = directory(settings).map(|directory| file::load(directory, ATTACHMENTS)).transpose()?;
    Ok(known.flatten().unwrap_or_default())
}

fn refused(message: impl Into<String>, remedy: impl Into<String>) -> Answer {
    Answer::Refused { message: message.into(), remedy: remedy.into() }
}

/// Links of containers that start and wait for it, but for those that were refused.
fn links<'a>(asked: impl Iterator<Item = (&'a Request, &'a Option<Answer>)>) -> BTreeSet<String> {
    let interfaces = asked.filter_map(|(request, refused)| match &request.ask {
        Ask::Add(attached) if request.waits && refused.is_none() => Some(&attached.interfaces),
        _ => None,
    });
    interfaces.flatten().map(|interface| interface.link.clone()).collect()
}

/// Who an ADD is about, where a link of it is gone.
fn of_gone<'a>(request: &'a Request, gone: &BTreeSet<(String, u32)>) -> Option<&'a Attached> {
    let Ask::Add(attached) = &request.ask else { return None };
    let is_gone = |interface: &Interface| gone.contains(&(interface.link.clone(), interface.ifindex));
    attached.interfaces.iter().any(is_gone).then_some(attached)
}

const LOG: &str = "the agent's log and `bulkhead status` say more";

/// Whether the cluster has this pod. One without labels would be selected by no policy, and so by no wall.
///
/// # Errors
/// It has not.
pub(super) fn is_known(workloads: &Workloads, attached: &Attached) -> Result<(), String> {
    let Attached { namespace, name, uid, .. } = attached;
    let listed = || workloads.workloads.get(&WorkloadName::new(namespace.clone(), name.clone()));
    let is_listed = || listed().is_some_and(|listed| listed.uid.as_deref() == uid.as_deref());
    if !workloads.live || uid.is_none() || is_listed() {
        return Ok(());
    }
    Err(format!("pod {namespace}/{name} is gone, or is another one"))
}

/// What attachments are compiled with.
pub(super) struct Here<'a> {
    pub(super) listed: &'a Workloads,
    pub(super) node: &'a str,
    pub(super) discovered: &'a Discovered,
    pub(super) now: u64,
}

/// Compiles what other attachments make of the workloads, all of it or nothing.
pub(super) fn compile_attached(
    compiling: &mut Compiling,
    here: &Here<'_>,
    before: &Attachments,
    after: &Attachments,
) -> Result<(), Diagnostics> {
    let &Here { listed, node, discovered, now } = here;
    // Who had such an address may be known in another overlay.
    let segments = listed.nodes.values().flat_map(|node| &node.segments).map(|segment| segment.vni);
    let segments: BTreeSet<Segment> = segments.chain([0]).collect();
    compiling.together(|compiling| {
        compiling.renew(discovered, now)?;
        for name in before.differing(after, listed) {
            for (_, address) in after.addresses_of(listed, node, &name) {
                for &segment in &segments {
                    let Some(other) = compiling.owner(&name, segment, address) else { continue };
                    if let Some(left) = after.left_of(listed, &other) {
                        compiling.put(&other, Some(&left))?;
                    }
                }
            }
            let owner = |segment, address| compiling.owner(&name, segment, address);
            let workload = after.joined(listed, node, &name, owner)?;
            compiling.put(&name, workload.as_ref())?;
        }
        for (name, left) in after.given_back(before, listed) {
            compiling.put(&name, Some(&left))?;
        }
        Ok(())
    })
}

impl<N: Node> Agent<N> {
    /// What CNI plugins ask, all at once: those that come together share one publish.
    pub fn attach(&mut self, requests: &[Request]) -> Vec<Answer> {
        if self.settings.source.has_news() {
            // Who it is may be among them.
            self.read_input();
        }
        self.compiling.begin();
        let (next, refusals) = self.told(requests);
        let staying = next.links();
        let leaving: Vec<_> = self.attachments.links().into_iter().filter(|link| !staying.contains(link)).collect();
        self.depart(leaving.into_iter());
        let changed = if next == self.attachments {
            Ok(())
        } else {
            self.node.hold(links(requests.iter().zip(&refusals)));
            let changed = self.change_attachments(next);
            self.node.hold(BTreeSet::new());
            changed
        };
        match changed {
            // One of them may be to blame: the others go on without it.
            Err(_) if requests.len() > 1 => {
                requests.iter().flat_map(|request| self.attach(slice::from_ref(request))).collect()
            }
            changed => {
                self.compiling.keep();
                let answers = refusals.into_iter().zip(requests).map(|(refusal, request)| {
                    refusal.unwrap_or_else(|| match &changed {
                        Ok(()) => self.answer(request),
                        Err(why) => refused(why, LOG),
                    })
                });
                answers.collect()
            }
        }
    }

    /// What would be attached, compiled, and what of it cannot be.
    fn told(&mut self, requests: &[Request]) -> (Attachments, Vec<Option<Answer>>) {
        let gone = self.gone(requests);
        let mut next = self.attachments.clone();
        let refusals = requests.iter().map(|request| {
            if request.version != VERSION {
                let message = format!("the plugin speaks version {}, this agent version {VERSION}", request.version);
                return Some(refused(message, "put the plugin of the agent's release in its place"));
            }
            if let Some(attached) = of_gone(request, &gone) {
                let message = format!("the links of container {} are gone", attached.key.container);
                return Some(refused(message, "nothing is to be done: its runtime has taken it down"));
            }
            if let Ask::Add(attached) = &request.ask
                && request.waits
                && let Err(message) =
                    is_known(&self.listed, attached).and_then(|()| self.settings.source.vouches(attached))
            {
                return Some(refused(message, "the runtime tries again as long as there is such a pod"));
            }
            let mut tried = next.clone();
            match &request.ask {
                Ask::Add(attached) => {
                    let mut new = Attachment { network: request.network.clone(), attached: attached.clone() };
                    // Its pod may be deleted before anything else is told, and then nobody knows its labels.
                    new.learn(&self.listed);
                    tried.add(new);
                }
                Ask::Del { key } => tried.remove(key),
                Ask::Gc { valid } => tried.keep(&request.network, valid),
                Ask::Check(_) | Ask::Status => {}
            }
            if tried == next {
                return None;
            }
            if let Err(found) = self.compile_attached(&next, &tried) {
                return Some(refused(found.to_string(), LOG));
            }
            next = tried;
            None
        });
        let refusals = refusals.collect();
        (next, refusals)
    }

    /// Links of these ADDs that are not there any more.
    fn gone(&mut self, requests: &[Request]) -> BTreeSet<(String, u32)> {
        let of = |request: &Request| match &request.ask {
            Ask::Add(attached) => attached.interfaces.clone(),
            _ => Vec::new(),
        };
        let links = requests.iter().flat_map(of).map(|interface| (interface.link, interface.ifindex));
        let gone = self.node.gone(&links.collect());
        gone.inspect_err(|error| tracing::warn!("whether containers still run is not known: {error}"))
            .unwrap_or_default()
    }

    fn compile_attached(&mut self, before: &Attachments, after: &Attachments) -> Result<(), Diagnostics> {
        self.compiled = now();
        let (listed, node) = (&self.listed, self.settings.node.as_str());
        let here = Here { listed, node, discovered: &self.discovered, now: self.compiled };
        compile_attached(&mut self.compiling, &here, before, after)
    }

    /// Guards what is attached, and nothing else that was.
    fn change_attachments(&mut self, next: Attachments) -> Result<(), String> {
        // Before it takes effect: an agent that starts in between would take the guards for left-overs.
        let before = std::mem::replace(&mut self.attachments, next);
        // A link may be another one of the same name, and what is desired the same.
        self.stale |= !self.attachments.links().is_subset(&before.links());
        if let Err(error) = self.write_attachments() {
            // Who goes may go all the same: the next agent finds its link gone.
            if self.attachments.iter().any(|attachment| !before.iter().any(|known| known == attachment)) {
                self.attachments = before;
                self.compiling.go_back();
                return Err(format!("the next agent would not know which containers run: {error}"));
            }
            tracing::error!("the next agent does not know which containers went: {error}");
        }
        match self.enforce(self.compiling.desired()) {
            Ok(()) => {
                self.peers = Made::default();
                if self.uses_all() {
                    self.say_who_is_shut(false);
                } else {
                    // A file that contradicted what ran may fit now.
                    self.seen = None;
                }
                Ok(())
            }
            Err(error) => {
                let error = self.why(&error);
                self.attachments = before;
                self.compiling.go_back();
                self.keep_attachments();
                if self.stale {
                    self.renew();
                }
                Err(error)
            }
        }
    }

    fn answer(&mut self, request: &Request) -> Answer {
        match &request.ask {
            Ask::Add(attached) => self.stands(attached),
            Ask::Check(attached) => {
                let known = self.attachments.iter().find(|known| known.attached.key == attached.key);
                match known.map(|known| &known.attached) {
                    Some(known) if known.interfaces == attached.interfaces => self.stands(attached),
                    Some(_) => refused("the container's interfaces are not those that were attached", LOG),
                    None => refused("the agent does not know the container", "attach it anew: restart the container"),
                }
            }
            Ask::Status if self.failed.is_empty() => Answer::Done,
            Ask::Status => refused(format!("publishing fails: {}", self.failed), LOG),
            Ask::Del { .. } | Ask::Gc { .. } => Answer::Done,
        }
    }

    /// Whether all of its endpoints are guarded, as the kernel says.
    fn stands(&mut self, attached: &Attached) -> Answer {
        let wanted: BTreeSet<EndpointName> = self
            .desired
            .endpoints
            .iter()
            .filter(|endpoint| attached.interfaces.iter().any(|interface| interface.link == endpoint.link))
            .map(|endpoint| endpoint.name.clone())
            .collect();
        let why = match self.node.guarded(&wanted) {
            Ok(standing) if wanted.len() == attached.interfaces.len() && standing == wanted => return Answer::Done,
            Ok(_) => {
                let of = |link: &String| attached.interfaces.iter().any(|interface| interface.link == *link);
                let unguarded = self.unguarded.iter().find(|unguarded| of(&unguarded.link));
                unguarded.map_or_else(|| "what guards it is not what is meant to".to_owned(), |of| of.why.clone())
            }
            Err(error) => error.to_string(),
        };
        refused(format!("container {} is not guarded: {why}", attached.key.container), LOG)
    }

    /// Has the node make ahead what the next containers will need.
    pub fn make_ready(&mut self) {
        if let Err(error) = self.node.make_ready() {
            tracing::warn!("the next containers wait longer: {error}");
        }
    }

    /// Writes down who is attached, for the next agent.
    pub(super) fn keep_attachments(&self) {
        if let Err(error) = self.write_attachments() {
            tracing::error!("the next agent would not know which containers run: {error}");
        }
    }

    fn write_attachments(&self) -> Result<(), FileError> {
        // Nothing that outlives the machine's memory: what the containers are, a reboot takes too.
        let write = |directory| file::replace(directory, ATTACHMENTS, &self.attachments);
        directory(&self.settings).map_or(Ok(()), write)
    }

    /// Forgets containers that are gone although nobody said so, and calls links as they are called now.
    pub(super) fn sweep_attachments(&mut self) {
        let links = self.attachments.links();
        let found = self.node.gone(&links).and_then(|gone| Ok((gone, self.node.renamed(&links)?)));
        match found {
            Ok((gone, renamed)) if gone.is_empty() && renamed.is_empty() => {}
            Ok((gone, renamed)) => {
                for (link, _) in &gone {
                    tracing::info!(link, "the container behind it is gone, and no runtime said so");
                }
                for ((link, _), name) in &renamed {
                    tracing::info!(link, "it is called {name} now, and its container stays guarded");
                }
                let before = self.attachments.clone();
                self.attachments.forget(&gone);
                self.attachments.rename(&renamed);
                // Whatever becomes of the files, their addresses are free.
                let after = self.attachments.clone();
                if let Err(found) = self.compile_attached(&before, &after) {
                    tracing::error!("what is in force still names containers that are gone: {found}");
                }
                self.keep_attachments();
                (self.seen, self.stale) = (None, true);
            }
            Err(error) => tracing::warn!("which containers still run is not known: {error}"),
        }
    }

    /// Guards those who started with their links shut while no agent answered. What keeps somebody shut is said once, as long as it is the same.
    pub(super) fn take_over_shut(&mut self) {
        let Some(socket) = self.settings.cni.clone() else { return };
        let spool::Spooled { requests, unreadable } = spool::read(&socket);
        for (path, why) in unreadable {
            let (file, aside) = (path.display(), spool::set_aside(&path));
            let aside =
                aside.map_or_else(|error| error.to_string(), |aside| format!("it is kept as {}", aside.display()));
            tracing::error!(
                "a container stays shut, since what the plugin wrote of it cannot be read: {file}: {why}; {aside}"
            );
        }
        let gone = self.gone(&requests);
        let (went, requests): (Vec<_>, Vec<_>) =
            requests.into_iter().partition(|request| of_gone(request, &gone).is_some());
        for attached in went.iter().filter_map(|request| of_gone(request, &gone)) {
            tracing::info!(container = attached.key.container, "it started shut and is gone, and no runtime said so");
            spool::forget(&socket, &attached.key);
        }
        let answers = if requests.is_empty() { Vec::new() } else { self.attach(&requests) };
        let mut stay = BTreeMap::new();
        for (request, answer) in requests.iter().zip(answers) {
            let Ask::Add(attached) = &request.ask else { continue };
            match answer {
                Answer::Done => {
                    tracing::info!(
                        container = attached.key.container,
                        "it started shut, and is guarded by its policy now"
                    );
                    spool::forget(&socket, &attached.key);
                }
                Answer::Refused { message, .. } => {
                    if self.shut.get(&attached.key) != Some(&message) {
                        tracing::error!("a container stays shut: {message}");
                    }
                    stay.insert(attached.key.clone(), message);
                }
            }
        }
        self.shut = stay;
    }
}

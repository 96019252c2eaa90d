//! Keeps a node at what people wrote: reads, compiles, publishes, and goes on with the last good revision when it cannot.
//!
//! No signal and no timer here: [`crate::run`] calls, and tests do. One thing is done on a thread of its own ([`records`]).

mod adopt;
mod changes;
mod cni;
mod compiling;
mod control;
mod recall;
mod records;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, iter, mem,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use bulkhead_dataplane::{
    cni::protocol::Key,
    desired::{Desired, Endpoint, EndpointName, Manner},
    node::{Discovered, MarkConflicts, Node, NodeError, Status},
};
use serde::{Deserialize, Serialize};

use self::{
    adopt::Adoption,
    changes::Unwritten,
    cni::Here,
    compiling::Compiling,
    recall::Recall,
    records::{Keeper, Records},
};
use crate::{
    accounts::Accounts,
    adopt::Scope,
    attachments::Attachments,
    audit::{Event, Log, Outcome},
    bypass,
    compile::{Compiler, Misfits, yield_to_nodes},
    control::Pending,
    diagnostic::Diagnostics,
    drift::{self, Drift},
    input::{Files, Inputs, LIVE},
    metrics::Health,
    model::Model,
    overlay::{Held, Overlay},
    peers::{Made, Unmade},
    room::{no_room, no_room_beside, stays},
    settle::{Blame, Memory, Settled, settle_with},
    show::time,
    source::Source,
    store::{
        Author, Condition, Draft, Head, Origin, Revision, SetAside, Store, StoreError, file::FileError, now, seconds,
    },
    workloads::{WorkloadName, Workloads},
};

/// Names of settings in the database: what holds beside the revision in force, and beside the one that is staged.
const BESIDE: &str = "beside";
const BESIDE_STAGED: &str = "beside staged";
/// Setting: when those bypasses began or were ended that others have written down for the audit log, and that are there.
const LOGGED: &str = "bypasses in the audit log";

/// What an agent is for.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where people write.
    pub source: Arc<dyn Source>,
    /// Name of this node in the workloads file.
    pub node: String,
    /// State directory; it exists.
    pub state: PathBuf,
    /// How the node enforces.
    pub manner: Manner,
    /// Socket of the CNI plugin, where there is one. What runtimes tell is kept beside it, on a file system that a reboot empties, as it does away
    /// with the containers.
    pub cni: Option<PathBuf>,
    /// What runs without a guard and shall have one.
    pub scope: Scope,
}

/// Why an agent cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The input is bad and no good one was ever published.
    #[error("{0}")]
    Input(Diagnostics),
    /// The node refused.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Which containers run cannot be read.
    #[error(transparent)]
    Attachments(#[from] FileError),
}

/// An endpoint that is not guarded, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unguarded {
    /// Name of the endpoint.
    pub endpoint: String,
    /// Host-side link.
    pub link: String,
    /// Reason and remedy.
    pub why: String,
}

/// What holds beside a revision, written with it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Beside {
    /// The staged revision that it belongs to; what holds now goes on with the next ones from files.
    revision: u64,
    /// Files that were rolled back.
    held: BTreeMap<String, Held>,
    /// What comes back unless somebody confirms the revision.
    pending: Option<Pending>,
}

/// The agent of a node.
#[derive(Debug)]
pub struct Agent<N> {
    node: N,
    settings: Settings,
    keeper: Keeper,
    discovered: Discovered,
    /// In force, as people wrote it and as it is meant. It is still marked as staged while the database cannot say that it is in force.
    revision: Revision,
    /// Staged, and neither in force nor refused: publishing it is tried again.
    staged: Option<u64>,
    /// What holds over the files.
    overlay: Overlay,
    /// What comes back unless somebody confirms what is in force.
    pending: Option<Pending>,
    /// What that means, compiled. It may be of a newer network and time than what is in force.
    compiling: Compiling,
    /// Workloads as they are listed, without what runtimes told.
    listed: Workloads,
    /// What runtimes told of this node's containers.
    attachments: Attachments,
    /// Published.
    desired: Desired,
    /// When it was compiled last, nanoseconds of Unix time.
    compiled: u64,
    /// It must be published again although the input is the same.
    stale: bool,
    /// The input as it was read last, used or not; `None` to use it again whatever it is.
    seen: Option<Files>,
    /// Policies that were read.
    memory: Memory,
    unwritten: Unwritten,
    unguarded: Vec<Unguarded>,
    /// Containers that started shut and stay so, and what was said of why.
    shut: BTreeMap<Key, String>,
    /// Why the input as it is now is not used, or not all of it; empty when it is.
    refused: String,
    /// The same, where some of it is used: of policies.
    found: Diagnostics,
    /// Workloads whose rules do not fit, which are shut, and why.
    misfits: (BTreeSet<WorkloadName>, Diagnostics),
    /// Why the latest publish failed; empty when it did not.
    failed: String,
    /// Why the database could not be written; empty when it can.
    unstored: String,
    /// What took effect because a cluster says so, and could not be written down.
    unwritten_inputs: Option<Inputs>,
    /// Why the source may say what is not so any more; empty when it says what is.
    behind: String,
    /// Names for addresses, once somebody has asked.
    peers: Made,
    accounts: Accounts,
    /// Since when it runs, nanoseconds of Unix time.
    started: u64,
    /// Who else uses our bits of packet marks.
    marks: MarkConflicts,
    bypass: bypass::Watch,
    /// As in the setting [`LOGGED`].
    logged: Vec<u64>,
    drift: Drift,
    adoption: Adoption,
}

impl<N: Node> Agent<N> {
    /// Publishes the input, or the last good revision when the input is bad.
    ///
    /// # Errors
    /// Bad input and no good revision in the state directory; a node that refuses.
    pub fn start(node: N, settings: Settings) -> Result<Self, StartError> {
        let (state, target) = (settings.state.clone(), settings.node.clone());
        Self::begin(node, settings).inspect_err(|error| {
            let (outcome, detail) = match error {
                StartError::Input(_) => (Outcome::Refused, error.to_string()),
                StartError::Node(_) | StartError::Store(_) | StartError::Attachments(_) => {
                    (Outcome::Failed, error.to_string())
                }
            };
            record(&mut Log::new(&state), &Event { outcome, detail, ..start(&target) });
        })
    }

    fn begin(mut node: N, settings: Settings) -> Result<Self, StartError> {
        let compiled = now();
        let discovered = node.discover()?;
        let mut log = Log::new(&settings.state);
        let mut store = open(&settings, &mut log)?;
        let ours = |revision: &Revision| revision.head.node == settings.node;
        let last = store.reader().in_force()?.filter(ours);
        // An agent ended before it knew whether this is in force: it may be, in part.
        let staged = store.reader().staged()?.filter(ours);
        let in_force: Beside = store.reader().setting(BESIDE)?.unwrap_or_default();
        let about: Option<Beside> = store.reader().setting(BESIDE_STAGED)?;
        let about = about.filter(|about| staged.as_ref().is_some_and(|staged| staged.head.number == about.revision));
        let mut beside = about.unwrap_or_else(|| in_force.clone());
        let base = staged.as_ref().or(last.as_ref());
        let documents = base.map(|base| base.documents.clone()).unwrap_or_default();
        let mut overlay = Overlay { documents, held: beside.held.clone() };
        let written = settings.source.read();
        overlay.forget(&written);
        let mut told = cni::load(&settings)?;
        told.forget(&node.gone(&told.links())?);
        told.rename(&node.renamed(&told.links())?);
        let recall = Recall::look(&mut node, &settings, last.iter().chain(&staged))?;
        let mut adoption = Adoption::default();
        let mut memory = Memory::default();
        let mut force = |files: &Files, base: Option<&Revision>, keep, rehearsed| {
            let mut build = |model: Model, misfits| {
                let compiler = Compiler::with(Arc::new(model), &settings.node, discovered.clone(), compiled, misfits)?;
                if rehearsed {
                    let desired = for_node(compiler.desired().clone(), settings.manner);
                    has_room(&mut node, &desired, compiler.model(), None)?;
                }
                Ok(compiler)
            };
            // In a cluster many write, and one bad policy keeps no node from its walls: it opens nothing, and isolates what can be read of it.
            let none = Inputs { workloads: (LIVE.to_owned(), String::new()), ..Inputs::default() };
            let base_inputs = base.map(|base| &base.inputs).or(files.is_live().then_some(&none)).filter(|_| keep);
            let joined = (&told, settings.node.as_str(), &discovered);
            let shut = |compiler: &Compiler| compiler.shut().cloned().collect();
            let prepared = prepare_live(files, base_inputs, &Misfits::None, shut, |files, misfits, blame| {
                prepare(&mut memory, files, base_inputs, joined, blame, |model| build(model, misfits.clone()))
            });
            let Prepared { inputs, listed, built, refused } = prepared.map_err(StartError::Input)?;
            let mut compiling = Compiling::new(built, settings.manner);
            let here = Here { listed: &listed, node: &settings.node, discovered: &discovered, now: compiled };
            let asked = (&settings, &mut adoption.unreadable);
            let (attachments, nobodys) = recall.explain(&mut compiling, told.clone(), &here, asked);
            let desired = compiling.desired();
            let documents = base.map(|base| base.documents.clone()).unwrap_or_default();
            let same = |known: &&Revision| known.inputs == inputs && known.documents == documents;
            let revision = match (last.as_ref().filter(same), staged.as_ref().filter(same)) {
                (Some(last), _) => last.clone(),
                // Whoever wrote it is still its author.
                (None, Some(staged)) => store.stage(&staged.into())?,
                (None, None) => {
                    let draft = draft(&settings, inputs.clone(), &desired);
                    store.stage(&Draft { documents: Some(documents), ..draft })?
                }
            };
            match publish_beside(&mut node, &desired, nobodys.keys()) {
                Ok(unguarded) => {
                    adoption.found.adopted = recall.tell(&told, &attachments, &nobodys);
                    Ok((compiling, listed, attachments, refused, desired, revision, unguarded))
                }
                Err(error) => {
                    let stays = stays(last.as_ref().map(|last| last.head.number));
                    let found = no_room(&error, &desired, compiling.model(), &stays);
                    if let Some(found) = &found
                        && revision.head.condition == Condition::Staged
                    {
                        store.refuse(revision.head.number, &found.to_string())?;
                    }
                    Err(found.map_or(StartError::Node(error), StartError::Input))
                }
            }
        };
        let mut whole = String::new();
        let files = overlay.over(written);
        let mut now = force(&files, base, true, false);
        if files.is_live() && matches!(now, Err(StartError::Input(_))) {
            now = force(&files, base, true, true);
        }
        // Used as it is, it need not be used again.
        let seen = now.is_ok().then(|| files.clone());
        for good in [&staged, &last].into_iter().flatten() {
            match &now {
                // What was good may be refused now: the node's addresses changed.
                Err(error @ (StartError::Input(_) | StartError::Store(_))) => {
                    if whole.is_empty() {
                        whole = error.to_string();
                    }
                }
                _ => break,
            }
            if last.as_ref().is_some_and(|last| last.head.number == good.head.number) {
                beside = in_force.clone();
            }
            now = force(&Files::again(good.inputs.clone(), &files), Some(good), false, false);
        }
        let (compiling, listed, attachments, refused, desired, revision, unguarded) = now?;
        for warning in &compiling.model().warnings.0 {
            tracing::warn!("{warning}");
        }
        let overlay = Overlay { documents: revision.documents.clone(), held: beside.held };
        let before = last.map(|last| last.head.number);
        let leftover = store.reader().staged()?.map(|staged| staged.head.number);
        let leftover = leftover.filter(|&number| number != revision.head.number);
        let accounts = Accounts::open(node.observer()?, settings.state.clone());
        let logged = store.reader().setting(LOGGED)?.unwrap_or_default();
        let mut agent = Self {
            node,
            settings,
            keeper: Keeper::new(Records { store, log }),
            discovered,
            staged: leftover,
            revision,
            overlay,
            pending: beside.pending,
            compiling,
            listed,
            attachments,
            desired,
            compiled,
            stale: !unguarded.is_empty(),
            seen,
            memory,
            unwritten: Unwritten::default(),
            unguarded: Vec::new(),
            shut: BTreeMap::new(),
            refused: String::new(),
            found: Diagnostics::default(),
            misfits: (BTreeSet::new(), Diagnostics::default()),
            failed: String::new(),
            unstored: String::new(),
            unwritten_inputs: None,
            behind: String::new(),
            peers: Made::default(),
            accounts,
            started: compiled,
            marks: MarkConflicts::default(),
            bypass: bypass::Watch::default(),
            logged,
            drift: Drift::default(),
            adoption,
        };
        let what = if agent.desired.manner.observe { "it only observes: nothing is dropped" } else { "" };
        let after = Some(agent.revision.head.number);
        let started = Event {
            revision_before: before,
            revision_after: after,
            detail: what.to_owned(),
            ..start(&agent.settings.node)
        };
        agent.keeper.record(&started);
        if before != after {
            agent.record_change(before);
        }
        if whole.is_empty() {
            agent.refuse_some(&refused);
        } else {
            agent.refuse(whole);
        }
        agent.set_unguarded(unguarded);
        let marked = agent.mark().and_then(|()| {
            agent.drop_staged("the agent ended before it was in force, and the next one found other input")
        });
        agent.stored(marked);
        tracing::info!(revision = agent.revision.head.number, endpoints = agent.desired.endpoints.len(), "in force");
        if agent.desired.manner.observe {
            tracing::warn!("this node only observes: nothing is dropped");
        }
        let marks = agent.accounts.mark_conflicts();
        agent.take_marks(marks);
        agent.keep_attachments();
        agent.take_over_shut();
        agent.adopt();
        agent.make_ready();
        Ok(agent)
    }

    /// Reads everything again and publishes what changed. Never fails: what cannot be used is said, and what was in force stays.
    pub fn refresh(&mut self) {
        match self.node.discover() {
            Ok(mut discovered) => {
                // The publish looks at them anew.
                let moved = mem::take(&mut discovered.moved);
                if !moved.is_empty() {
                    tracing::info!(?moved, "links of workloads are ports of something else");
                    self.stale = true;
                }
                if discovered != self.discovered {
                    tracing::info!("the node's network changed");
                    self.discovered = discovered;
                    self.peers = Made::default();
                    self.stale = true;
                }
            }
            Err(error) => tracing::warn!("the node's network is not known: {error}"),
        }
        // Each of these takes a while, and what has changed meanwhile is not kept waiting for the others.
        self.follow_changes();
        self.stale |= self.is_overdue();
        if self.revision.head.condition == Condition::Staged {
            let marked = self.mark();
            self.stored(marked);
        }
        self.read_input();
        self.take_over_shut();
        self.follow_changes();
        self.adopt();
        self.follow_changes();
        self.make_ready();
    }

    /// Reads policies and workloads, and publishes what changed.
    fn read_input(&mut self) {
        self.sweep_attachments();
        if self.follow_changes() {
            self.note_behind();
            return;
        }
        // What is not used goes on as it is written down.
        self.write_down();
        let files = self.settings.source.read();
        self.note_behind();
        if self.overlay.forget(&files) {
            let kept = self.keeper.lock().store.set(BESIDE, &self.beside());
            self.stored(kept);
        }
        let files = self.overlay.over(files);
        if self.stale || self.seen.as_ref() != Some(&files) {
            self.compiled = now();
            self.compiling.begin();
            // Where something is held back it is mostly for the same reason as before.
            let prepared = self.prepare(&files, files.is_live() && !self.found.0.is_empty());
            self.seen = Some(files.clone());
            let used = match prepared.map(|prepared| self.apply(prepared)) {
                // Of many who write in a cluster those that fill a table are held back, and nobody else.
                Ok(Err(why)) if files.is_live() => match self.prepare(&files, true) {
                    Ok(prepared) => Ok(self.apply(prepared)),
                    Err(_) => Ok(Err(why)),
                },
                used => used,
            };
            let used = match used {
                Ok(Ok(used)) => used,
                Ok(Err(why)) => {
                    self.close_staged(&why);
                    self.refuse(why);
                    false
                }
                Err(found) => {
                    self.refuse(found.to_string());
                    false
                }
            };
            if used {
                self.compiling.keep();
            } else {
                self.compiling.go_back();
            }
        }
        if self.stale {
            // The input is not used, but what is in force must follow the network.
            self.renew();
        }
        if self.attachments.learn(&self.listed) {
            self.keep_attachments();
        }
    }

    /// What can be used of files, compiled; `rehearsed` for what there is room for.
    fn prepare(&mut self, files: &Files, rehearsed: bool) -> Result<Prepared<BTreeSet<WorkloadName>>, Diagnostics> {
        let Self { node, settings, revision, compiling, attachments, discovered, compiled, memory, desired, .. } = self;
        let before = &*desired;
        let joined = (&*attachments, settings.node.as_str(), &*discovered);
        let last = Some(&revision.inputs);
        prepare_live(files, last, &compiling.misfits(), Clone::clone, |files, misfits, blame| {
            prepare(memory, files, last, joined, blame, |model| {
                compiling.together(|compiling| {
                    compiling.follow(Arc::new(model), discovered, *compiled, misfits.clone())?;
                    if rehearsed {
                        has_room(node, &compiling.desired(), compiling.model(), Some(before))?;
                    }
                    Ok(compiling.shut())
                })
            })
        })
    }

    /// Says once when the source cannot be followed, and when it can be again.
    fn note_behind(&mut self) {
        let behind = self.settings.source.behind();
        if behind != self.behind {
            if behind.is_empty() {
                tracing::info!("the source of policies and workloads is followed again");
            } else {
                tracing::warn!("what is in force stays, and may be behind: {behind}");
            }
        }
        self.behind = behind;
    }

    /// Compiles what is in force again, and publishes it if it changed or is stale.
    fn renew(&mut self) {
        self.compiled = now();
        match self.compiling.renew(&self.discovered, self.compiled) {
            Ok(()) => match self.enforce(self.compiling.desired()) {
                Ok(()) => self.say_who_is_shut(false),
                Err(error) => self.fail(&error),
            },
            Err(found) => self.refuse(found.to_string()),
        }
    }

    /// After a step of the wall clock: deadlines are in force as jiffies, which did not step, and what was left out as past may be to come again.
    pub fn clock_stepped(&mut self) {
        self.stale |= self.has_deadlines();
        self.renew();
    }

    /// Takes out what has ended. The programs do not wait for that; what they have no use for any more goes.
    pub fn expire(&mut self) {
        if self.has_waited_in_vain() {
            self.restore();
        }
        if self.is_overdue() {
            self.stale = true;
            self.renew();
        }
    }

    /// When the first of what is in force ends, in nanoseconds of Unix time.
    #[must_use]
    pub fn earliest_deadline(&self) -> Option<u64> {
        // What had passed already when it was compiled would be compiled to the same again.
        self.deadlines().filter(|&until| until > self.compiled).min()
    }

    /// How long until then, or until what is in force has waited long enough to be confirmed.
    #[must_use]
    pub fn until_deadline(&self) -> Option<Duration> {
        let pending = self.pending.as_ref().map(|pending| pending.until);
        let first = self.earliest_deadline().into_iter().chain(pending).min();
        first.map(|until| Duration::from_nanos(until.saturating_sub(now())))
    }

    fn is_overdue(&self) -> bool {
        self.earliest_deadline().is_some_and(|until| until <= now())
    }

    fn has_deadlines(&self) -> bool {
        self.deadlines().next().is_some()
    }

    fn deadlines(&self) -> impl Iterator<Item = u64> {
        // With less to come who is shut may fit.
        let guards = self.compiling.model().guards.iter().filter(|_| !self.misfits.0.is_empty());
        let ends = guards.flat_map(|guard| &guard.rules).filter_map(|rule| rule.expires);
        self.desired.endpoints.iter().flat_map(|endpoint| &endpoint.views).filter_map(|view| view.until).chain(ends)
    }

    /// Looks whether all guards stand, and puts up again what the node lost: a link that was made anew, the input rule.
    pub fn check(&mut self) {
        let status = self.node.status();
        self.take_status(status);
    }

    /// The same, of what was seen beside the agent. A publish may have been under way meanwhile: what looks missing is looked at again.
    pub fn looked(&mut self, status: Result<Status, NodeError>) {
        match status {
            Ok(status) if !self.missing(&status).is_empty() => self.check(),
            status => self.take_status(status),
        }
    }

    fn missing(&self, status: &Status) -> BTreeSet<(String, String)> {
        drift::missing(status, !self.desired.overlays.is_empty() && !self.desired.manner.observe)
    }

    fn take_status(&mut self, status: Result<Status, NodeError>) {
        // Jiffies and the wall clock drift apart. Deadlines that did not are the same again, and nothing is written.
        self.stale |= self.has_deadlines();
        match status {
            Ok(status) => {
                if let Some(found) = self.drift.find(self.missing(&status), now()) {
                    tracing::warn!("found missing, and put up again: {found}");
                    self.record_seen("enforcement.drift", found);
                }
                self.stale |= !self.drift.is_whole();
                self.log_bypasses();
                if let Some(news) = self.bypass.see(status.bypassed_until, &self.settings.state) {
                    tracing::warn!("{news}");
                    self.record_seen("enforcement.bypass_seen", news);
                }
            }
            Err(error) => tracing::warn!("what is in force cannot be read: {error}"),
        }
    }

    /// Takes to the audit log who bypassed enforcement and who ended that while this agent had the log, however short it was.
    fn log_bypasses(&mut self) {
        let records = match bypass::unlogged(&self.settings.state) {
            Ok(records) => records,
            Err(error) => return tracing::warn!("who bypasses enforcement cannot be taken to the audit log: {error}"),
        };
        let all: Vec<u64> = records.iter().map(|record| record.at).collect();
        if all == self.logged {
            return;
        }
        self.end_writing();
        for record in records.iter().filter(|record| !self.logged.contains(&record.at)) {
            let mut event = record.event();
            event.detail.push_str(&format!(" (at {})", time(record.at)));
            self.keeper.record(&event);
        }
        self.logged = all;
        let kept = self.keeper.lock().store.set(LOGGED, &self.logged);
        if let Err(error) = kept {
            tracing::warn!("the next agent may record once more who bypassed enforcement: {error}");
        }
    }

    /// What the agent has seen of what is in force.
    fn record_seen(&mut self, action: &str, detail: String) {
        self.end_writing();
        let event = Event {
            revision_before: Some(self.revision.head.number),
            revision_after: Some(self.revision.head.number),
            action: action.to_owned(),
            detail,
            ..start(&self.settings.node)
        };
        self.keeper.record(&event);
    }

    /// Says who else uses our bits of packet marks. What others write there may let through what was not checked, and what they read was not
    /// meant for them; nothing of it is reason enough to leave a node unguarded.
    pub fn take_marks(&mut self, found: Result<MarkConflicts, NodeError>) {
        let unread = |error: NodeError| MarkConflicts { unread: vec![error.to_string()], ..self.marks.clone() };
        let found = found.unwrap_or_else(unread);
        for why in found.unread.iter().filter(|why| !self.marks.unread.contains(why)) {
            tracing::warn!("who else uses packet marks is not known in full: {why}");
        }
        for user in found.users.iter().filter(|user| !self.marks.users.contains(user)) {
            let (reads, writes) = (format!("{:#010x}", user.reads), format!("{:#010x}", user.writes));
            tracing::warn!(reads, writes, "uses bits of packet marks that are Bulkhead's: {}", user.rule);
        }
        if found.remedy != self.marks.remedy {
            if found.remedy.is_empty() {
                tracing::info!("nobody else uses Bulkhead's bits of packet marks any more");
            } else {
                tracing::warn!("{}", found.remedy);
            }
        }
        self.marks = found;
    }

    /// Puts in force what was compiled. Whether it is; why there is no room for it.
    fn apply<T>(&mut self, prepared: Prepared<T>) -> Result<bool, String> {
        let Prepared { inputs, listed, built: _, refused } = prepared;
        let desired = self.compiling.desired();
        // A cluster keeps its policies itself: there they take effect before they are written down.
        let is_live = inputs.workloads.0 == LIVE;
        let mut revision = None;
        if !is_live {
            match self.stage(&inputs, &desired) {
                Ok(staged) => revision = staged,
                Err(error) => {
                    // Nothing that would not survive the agent takes effect. It is tried again.
                    self.seen = None;
                    self.stored(Err(error));
                    return Ok(false);
                }
            }
        }
        match self.enforce(desired) {
            Ok(()) => {}
            Err(error @ NodeError::Capacity { .. }) => {
                return Err([self.why(&error), refused.to_string()].join("\n").trim_end().to_owned());
            }
            Err(error) => {
                // Not the input's fault: it is tried again.
                self.seen = None;
                self.fail(&error);
                return Ok(false);
            }
        }
        self.refuse_some(&refused);
        (self.listed, self.peers) = (listed, Made::default());
        if is_live {
            match self.stage(&inputs, &self.compiling.desired()) {
                Ok(staged) => revision = staged,
                Err(error) => {
                    self.seen = None;
                    self.unwritten_inputs = Some(inputs);
                    self.stored(Err(error));
                    return Ok(true);
                }
            }
        }
        self.unwritten.clear();
        let Some(revision) = revision else {
            self.unwritten_inputs = None;
            self.close_staged("publishing it failed, and then the input was again what is in force");
            return Ok(true);
        };
        self.set_revision(revision);
        for warning in &self.compiling.model().warnings.0 {
            tracing::warn!("{warning}");
        }
        Ok(true)
    }

    /// What was written down is in force.
    fn set_revision(&mut self, revision: Revision) {
        let before = Some(self.revision.head.number);
        (self.revision, self.staged, self.unwritten_inputs) = (revision, None, None);
        let marked = self.mark();
        self.stored(marked);
        self.record_change(before);
        self.say_in_force();
    }

    fn say_in_force(&self) {
        tracing::info!(revision = self.revision.head.number, endpoints = self.desired.endpoints.len(), "in force");
    }

    /// Writes a revision that is about to take effect; `None` when it is the one in force.
    fn stage(&mut self, inputs: &Inputs, desired: &Desired) -> Result<Option<Revision>, StoreError> {
        self.end_writing();
        if *inputs == self.revision.inputs {
            return Ok(None);
        }
        // What is in force is its parent.
        self.mark()?;
        let revision = self.keeper.lock().store.stage(&draft(&self.settings, inputs.clone(), desired))?;
        self.staged = Some(revision.head.number);
        Ok(Some(revision))
    }

    /// Marks what is in force as such, unless it is already.
    fn mark(&mut self) -> Result<(), StoreError> {
        if self.revision.head.condition == Condition::Staged {
            let (number, beside) = (self.revision.head.number, self.beside());
            let marked = self.keeper.lock().store.write(|write| {
                write.set(BESIDE, &beside)?;
                write.unset(BESIDE_STAGED)?;
                write.commit(number)
            });
            self.revision.head = marked?;
        }
        Ok(())
    }

    fn beside(&self) -> Beside {
        let (held, pending) = (self.overlay.held.clone(), self.pending.clone());
        Beside { revision: self.revision.head.number, held, pending }
    }

    /// What was staged does not take effect.
    fn drop_staged(&mut self, why: &str) -> Result<(), StoreError> {
        let Some(number) = self.staged.take() else { return Ok(()) };
        let refused = self.keeper.lock().store.refuse(number, why).map(drop);
        refused.inspect_err(|error| {
            // Otherwise it is tried again.
            if !matches!(error, StoreError::NotStaged { .. }) {
                self.staged = Some(number);
            }
        })
    }

    /// The same, and tried again with the next look at the files.
    fn close_staged(&mut self, why: &str) {
        let closed = self.drop_staged(why);
        if closed.is_err() {
            self.seen = None;
        }
        self.stored(closed);
    }

    fn stored(&mut self, result: Result<(), impl fmt::Display>) {
        let error = result.err().map(|error| error.to_string()).unwrap_or_default();
        if self.unstored != error && !error.is_empty() {
            tracing::error!(revision = self.revision.head.number, "the database is tried again: {error}");
            if self.unstored.is_empty() {
                self.record_refusal(Outcome::Failed, &error);
            }
        }
        self.unstored = error;
    }

    fn enforce(&mut self, desired: Desired) -> Result<(), NodeError> {
        if !self.stale && desired == self.desired {
            return Ok(());
        }
        let result = match !self.stale && desired.has_guards_of(&self.desired) {
            true => self.node.rewrite(&desired).map(|_| Vec::new()),
            false => publish(&mut self.node, &desired),
        };
        // After an error of the kernel only a publish that succeeds says what is in force.
        self.stale = match &result {
            Ok(unguarded) => !unguarded.is_empty(),
            Err(NodeError::Capacity { .. }) => self.stale,
            Err(_) => true,
        };
        self.set_unguarded(result?);
        let has = |desired: &Desired, link: &str| desired.endpoints.iter().any(|endpoint| endpoint.link == link);
        let unwanted = |link: &str| has(&self.desired, link) && !has(&desired, link);
        if let Some(back) = self.drift.repair(&self.unguarded, unwanted) {
            tracing::info!("put up again: {back}");
            self.record_seen("enforcement.drift_repaired", back);
        }
        self.desired = desired;
        self.failed.clear();
        Ok(())
    }

    /// Why what was compiled last cannot be published.
    fn why(&self, error: &NodeError) -> String {
        let stays = stays(Some(self.revision.head.number));
        let found = no_room(error, &self.compiling.desired(), self.compiling.model(), &stays);
        found.map_or_else(|| error.to_string(), |found| found.to_string())
    }

    fn fail(&mut self, error: &NodeError) {
        let error = self.why(error);
        if self.failed != error {
            tracing::error!(revision = self.revision.head.number, "publishing failed and is tried again: {error}");
            if self.failed.is_empty() {
                self.record_refusal(Outcome::Failed, &error);
            }
        }
        self.failed = error;
    }

    fn refuse(&mut self, why: String) {
        if self.refused != why {
            tracing::error!(
                revision = self.revision.head.number,
                "the input is refused, the last good revision stays in force:\n{why}"
            );
            self.record_refusal(Outcome::Refused, &why);
        }
        (self.refused, self.found) = (why, Diagnostics::default());
    }

    /// Says which files are not used beside those that are, and which workloads are shut.
    fn refuse_some(&mut self, found: &Diagnostics) {
        self.misfits = (self.compiling.shut(), self.compiling.why_shut());
        let why: Vec<_> = found.0.iter().chain(&self.misfits.1.0).cloned().collect();
        let why = Diagnostics(why).to_string();
        if self.refused != why {
            if why.is_empty() {
                tracing::info!("the input is good again");
            } else {
                tracing::error!("not all of the input is used:\n{why}");
                self.record_refusal(Outcome::Refused, &format!("not all of the input is used:\n{why}"));
            }
        }
        (self.refused, self.found) = (why, found.clone());
    }

    /// Whether all policies are used as they are written. Some workloads may be shut.
    fn uses_all(&self) -> bool {
        self.found.0.is_empty() && self.refused == self.misfits.1.to_string()
    }

    /// Says which workloads are shut, where others are than before, or where they may be for another reason.
    fn say_who_is_shut(&mut self, other_policies: bool) {
        let others = self.compiling.shut() != self.misfits.0;
        if self.uses_all() && (others || other_policies && !self.misfits.0.is_empty()) {
            self.refuse_some(&Diagnostics::default());
        }
    }

    /// What is in force was not changed by the files as they are. Said once for each reason, not each time that it is tried; of failures, which may
    /// come in turns, the first until one try succeeds.
    fn record_refusal(&mut self, outcome: Outcome, why: &str) {
        self.end_writing();
        let event = Event {
            actor: Author::files(),
            revision_before: Some(self.revision.head.number),
            ..change(&self.settings.node, &self.revision.head, outcome, why)
        };
        self.keeper.record(&event);
    }

    /// What is in force took the place of what was before.
    fn record_change(&mut self, before: Option<u64>) {
        let event =
            Event { revision_before: before, ..change(&self.settings.node, &self.revision.head, Outcome::Ok, "") };
        self.keeper.record(&event);
    }

    fn set_unguarded(&mut self, unguarded: Vec<Unguarded>) {
        if self.unguarded != unguarded {
            for Unguarded { endpoint, link, why } in &unguarded {
                tracing::error!(endpoint, link, "not guarded, tried again until it is: {why}");
            }
        }
        self.unguarded = unguarded;
    }

    /// Names for addresses, as they are now.
    #[must_use]
    pub fn peers(&self) -> Unmade {
        self.peers.of(self.compiling.model(), &self.settings.node, &self.discovered)
    }

    /// What the agent says of itself.
    #[must_use]
    pub fn health(&self) -> Health {
        Health {
            revision: self.revision.head.number,
            refused: !self.refused.is_empty(),
            failed: !self.failed.is_empty() || !self.listed.live && !self.unstored.is_empty(),
            unwritten: self.listed.live && !self.unstored.is_empty(),
            unguarded: self.unguarded.len(),
            mark_conflicts: self.marks.users.len(),
            audit_lost: self.keeper.losses().total,
            drift_found: self.drift.found,
            drift_repaired: self.drift.repaired,
            unenforced: self.adoption.found.unenforced,
            strangers: self.adoption.found.strangers.len(),
            compiles: self.compiling.compiles(),
            behind: !self.behind.is_empty(),
        }
    }

    /// Endpoints that are not guarded now.
    #[must_use]
    pub fn unguarded(&self) -> &[Unguarded] {
        &self.unguarded
    }

    /// Why the input as it is now is not used, or not all of it; empty when it is.
    #[must_use]
    pub fn refused(&self) -> &str {
        &self.refused
    }

    /// The node, for tests.
    pub const fn node(&mut self) -> &mut N {
        &mut self.node
    }
}

/// Opens the database. One that cannot be used is kept beside a new one: without it there is nothing to fall back on, and that is all.
fn open(settings: &Settings, log: &mut Log) -> Result<Store, StoreError> {
    let (store, aside) = Store::open_or_set_aside(&settings.state)?;
    if let Some(SetAside { why, path }) = aside {
        let detail = format!("{why}; it is {} now, and there is no last good revision to fall back on", path.display());
        tracing::error!("{detail}");
        let (action, outcome) = ("store.set_aside".to_owned(), Outcome::Failed);
        record(log, &Event { action, outcome, detail, ..start(&settings.node) });
    }
    Ok(store)
}

/// What an agent does by itself, and under whose name.
fn start(node: &str) -> Event {
    Event {
        actor: Author { uid: Some(nix::unistd::geteuid().as_raw()), name: "agent".to_owned() },
        action: "agent.start".to_owned(),
        target: node.to_owned(),
        revision_before: None,
        revision_after: None,
        outcome: Outcome::Ok,
        detail: String::new(),
    }
}

/// What became of a change to a node, by which revision.
fn change(node: &str, head: &Head, outcome: Outcome, detail: &str) -> Event {
    Event {
        actor: head.author.clone(),
        action: "revision.apply".to_owned(),
        target: node.to_owned(),
        revision_before: None,
        revision_after: Some(head.number),
        outcome,
        detail: detail.to_owned(),
    }
}

/// Walls do not wait for the log: what cannot be recorded is said, and in the next record too.
fn record(log: &mut Log, event: &Event) {
    if let Err(error) = log.record(event) {
        tracing::error!(action = event.action, "the audit log lacks a record: {error}");
    }
}

/// A revision of files.
fn draft(settings: &Settings, inputs: Inputs, desired: &Desired) -> Draft {
    Draft {
        node: settings.node.clone(),
        author: Author::files(),
        origin: Origin::Files,
        time: seconds(),
        reason: String::new(),
        inputs,
        summary: desired.into(),
        documents: None,
    }
}

/// Input that can be published.
pub(crate) struct Prepared<T> {
    pub(crate) inputs: Inputs,
    pub(crate) listed: Workloads,
    /// What was made of the model.
    pub(crate) built: T,
    /// What of the files is not in it, and why.
    pub(crate) refused: Diagnostics,
}

/// What can be used of files, and for the others of `last`, the inputs in force. With what runtimes told of the containers of a node, and what it discovered.
/// `compile` was called last, of those times that it succeeded, for what is used.
pub(crate) fn prepare<T>(
    memory: &mut Memory,
    files: &Files,
    last: Option<&Inputs>,
    (attachments, node, discovered): (&Attachments, &str, &Discovered),
    blame: Blame,
    mut compile: impl FnMut(Model) -> Result<T, Diagnostics>,
) -> Result<Prepared<T>, Diagnostics> {
    let settled = settle_with(memory, files, last, blame, |policies, workloads| {
        let mut model = Model::build(policies, &attachments.join(workloads, node)?)?;
        if workloads.live {
            yield_to_nodes(&mut model, node, discovered);
        }
        Ok((compile(model)?, workloads.clone()))
    })?;
    let Settled { inputs, built: (built, listed), refused } = settled;
    Ok(Prepared { inputs, listed, built, refused })
}

/// The same in a cluster, where many write and nobody must be in anybody else's way: what does not fit is shut or held back alone. Those that are shut may
/// stay so. Else those are shut whom the policies in force, `last`, do not fit as the cluster is now; else policies may be held back that did not change;
/// else all are shut that do not fit. `prepare` is asked with files, with those that need not fit, and with whom an error may blame; `shut` says who is, of
/// what was built.
fn prepare_live<T>(
    files: &Files,
    last: Option<&Inputs>,
    known: &Misfits,
    shut: impl Fn(&T) -> BTreeSet<WorkloadName>,
    mut prepare: impl FnMut(&Files, &Misfits, Blame) -> Result<Prepared<T>, Diagnostics>,
) -> Result<Prepared<T>, Diagnostics> {
    let first = prepare(files, known, Blame::Changed);
    if first.is_ok() || !files.is_live() {
        return first;
    }
    let before = last.map(|last| Files::again(last.clone(), files));
    let before = before.and_then(|before| prepare(&before, &Misfits::Any, Blame::All).ok());
    let these = before.map(|before| shut(&before.built)).unwrap_or_default();
    let these = Misfits::These(these);
    let again = if these == *known { None } else { prepare(files, &these, Blame::Changed).ok() };
    again
        .map_or_else(|| prepare(files, &these, Blame::All), Ok)
        .or_else(|_| prepare(files, &Misfits::Any, Blame::All))
        .or(first)
}

/// Whether a node has room for it. What else may keep it from being published is said when it is. Who needs more than `before` is named first.
fn has_room<N: Node>(
    node: &mut N,
    desired: &Desired,
    model: &Model,
    before: Option<&Desired>,
) -> Result<(), Diagnostics> {
    let rehearsed = guarding(desired, |possible, _| node.rehearse(possible));
    match rehearsed.err().and_then(|error| no_room_beside(before, &error, desired, model, "not applied")) {
        Some(found) => Err(found),
        None => Ok(()),
    }
}

/// What of it a node can be asked to enforce.
pub(crate) fn for_node(mut desired: Desired, manner: Manner) -> Desired {
    // A workload that is listed and does not run yet has no link that could be guarded.
    leave_out(&mut desired, |endpoint| endpoint.link.is_empty());
    Desired { manner, ..desired }
}

/// Takes endpoints out, and says which.
fn leave_out(desired: &mut Desired, which: impl Fn(&Endpoint) -> bool) -> BTreeSet<EndpointName> {
    let gone: Vec<_> = desired.endpoints.extract_if(.., |endpoint| which(endpoint)).collect();
    for endpoint in &gone {
        for address in &endpoint.addresses {
            if let Some(known) = desired.addresses.get_mut(&(endpoint.segment, *address)) {
                known.endpoint.take_if(|name| **name == endpoint.name);
            }
        }
    }
    gone.into_iter().map(|endpoint| endpoint.name).collect()
}

/// Publishes as much as can be guarded.
fn publish<N: Node>(node: &mut N, desired: &Desired) -> Result<Vec<Unguarded>, NodeError> {
    publish_beside(node, desired, iter::empty())
}

/// The same beside links that are nobody's. Where something is to be dropped, a guard of theirs, and one of an endpoint that is left out, is not let go: the
/// link is shut in its place.
fn publish_beside<'a, N: Node>(
    node: &mut N,
    desired: &Desired,
    nobodys: impl Iterator<Item = &'a String>,
) -> Result<Vec<Unguarded>, NodeError> {
    let mut kept: BTreeSet<String> = nobodys.cloned().collect();
    let published = guarding(desired, |possible, left| {
        kept.extend(left.iter().filter(|_| !desired.manner.observe).map(|unguarded| unguarded.link.clone()));
        node.keep_shut(kept.clone());
        node.publish(possible)
    });
    // Who is taken out of what is desired from here on is let go.
    node.keep_shut(BTreeSet::new());
    let (published, mut unguarded) = published?;
    tracing::debug!(?published, "published");
    for Unguarded { link, why, .. } in &mut unguarded {
        if published.shut.contains(link) {
            *why = format!("nothing passes its link meanwhile: {why}");
        } else if desired.manner.observe
            && let Err(error) = node.unshut(link)
        {
            tracing::warn!(link, "it may be shut, and cannot be opened: {error}");
        }
    }
    Ok(unguarded)
}

/// Goes on without the endpoints whose links cannot be guarded: one container that stopped must not keep the others from their policy. It is called with what
/// is left of what is desired, and with what is not in it.
fn guarding<T>(
    desired: &Desired,
    mut call: impl FnMut(&Desired, &[Unguarded]) -> Result<T, NodeError>,
) -> Result<(T, Vec<Unguarded>), NodeError> {
    let mut possible = desired.clone();
    let mut unguarded = Vec::new();
    loop {
        match call(&possible, &unguarded) {
            Ok(done) => return Ok((done, unguarded)),
            Err(NodeError::Link { link, endpoint, why }) => {
                if leave_out(&mut possible, |candidate| candidate.link == link).is_empty() {
                    return Err(NodeError::Link { link, endpoint, why });
                }
                unguarded.push(Unguarded { endpoint, link, why });
            }
            Err(other) => return Err(other),
        }
    }
}

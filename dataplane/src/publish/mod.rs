//! The publisher: makes the tables say what a [`Desired`] says, so that every packet is judged by exactly one revision.
//!
//! ```text
//! prepare   checks all of it against the limits; names to disk; slots, their data and flow tables for new endpoints    (nothing enforced changes)
//! commit    S1 ids | S2 objects nobody sees | step 1 rows, epochs | S3 wait | S4 flip words | S5 wait | step 3 rows, epochs | wait | S6 free
//! release   frees the slots of removed endpoints, once their links are detached
//! ```
//!
//! Links of new endpoints are attached by the caller after `prepare`: up to the commit their words are 0, pending; after it they have their policy.
//!
//! Stopped anywhere, the tables alone say what is in force; the next publisher reads them back ([`recover`]) and goes on from there.

mod check;
mod ids;
mod judge;
mod lower;
mod places;
mod recover;
mod rehearse;
mod services;
mod sets;
mod shares;
mod slots;
mod standing;
mod state;
mod steps;
mod troubles;

use std::{
    collections::BTreeSet,
    fmt,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use bulkhead_ebpf::{
    abi::{ContactKey, Counter, Direction, EndpointInfo},
    reason::REASONS,
};
use foldhash::HashSet;

pub use self::{
    judge::{Answer, Judge, Row},
    lower::display,
    shares::shares,
};
use self::{
    lower::{Target, lower},
    places::put,
    recover::recover,
    slots::Free,
};
pub(crate) use self::{
    places::{from_packet, to_packet},
    recover::{epoch, manner, scan},
    state::State,
};
use crate::{
    desired::{Desired, Endpoint, EndpointName},
    names::{NamedEndpoint, Names, SlotOwner, Total},
    node::{NodeError, Published, TableUse, Wire},
    store::{ContactTable, EndpointInfos, Store},
};

/// Where a publish can be stopped; the tables are complete up to there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CrashPoint {
    /// Names are on disk; slots of new endpoints have their data and flow tables.
    Prepared,
    /// S1: new selectors' bits are recorded.
    Ids,
    /// S2: lists, port tables, views, rows and counters are written, and nothing refers to them.
    Objects,
    /// VTEPs and owners of prefixes are as desired.
    Overlays,
    /// Step 1: addresses and prefixes have their first rows.
    FirstRows,
    /// Step 1: the epochs of endpoints that read what changed are raised.
    FirstEpochs,
    /// S3.
    FirstWait,
    /// S4, step 2: endpoint words are flipped.
    Flips,
    /// S5.
    FlipsWait,
    /// Step 3: addresses and prefixes are as desired.
    LastRows,
    /// Step 3: epochs.
    LastEpochs,
    /// S5 again: nothing reads the old objects any more.
    LastWait,
    /// S6: they are free.
    Swept,
    /// Slots of removed endpoints are free.
    Released,
}

impl CrashPoint {
    /// All, in order.
    pub const ALL: [Self; 14] = [
        Self::Prepared,
        Self::Ids,
        Self::Objects,
        Self::Overlays,
        Self::FirstRows,
        Self::FirstEpochs,
        Self::FirstWait,
        Self::Flips,
        Self::FlipsWait,
        Self::LastRows,
        Self::LastEpochs,
        Self::LastWait,
        Self::Swept,
        Self::Released,
    ];
}

/// Called at every [`CrashPoint`]; `Break` stops the publisher there as a crash would.
pub type Hook = Box<dyn FnMut(CrashPoint) -> ControlFlow<()> + Send>;

/// An endpoint whose link shall be guarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attach {
    /// Its slot.
    pub slot: u32,
    /// Its name.
    pub endpoint: EndpointName,
    /// Its host-side link.
    pub link: String,
    /// The slot is new to it: its word is 0 until the commit. For others the attachment stands, unless the link was made anew.
    pub new: bool,
}

/// A slot whose endpoint is gone, or has another slot now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The slot.
    pub slot: u32,
    /// The link that referred to it; `None` where that is not known or it is another endpoint's now.
    pub link: Option<String>,
}

/// A publish that is checked and can be carried out.
#[derive(Debug)]
pub struct Plan {
    /// Every endpoint.
    pub attach: Vec<Attach>,
    /// What is to be detached after the commit.
    pub removed: Vec<Removed>,
    target: Target,
    /// Of several plans only the latest holds.
    generation: u64,
}

/// Publishes to one node's tables. One at a time: a second one would give the same ids to other things.
pub struct Publisher<S> {
    store: S,
    /// Where names are kept; `None` where they are not to be, in a rehearsal.
    directory: Option<PathBuf>,
    names: Names,
    /// `None` after a failure: then the tables are asked.
    state: Option<State>,
    generation: u64,
    hook: Option<Hook>,
    clock: fn() -> SystemTime,
}

impl<S: Store> Publisher<S> {
    /// Takes over what the tables hold; `directory` is the state directory.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn open(mut store: S, directory: &Path) -> Result<Self, NodeError> {
        let state = recover(&mut store)?;
        let names = if state.epoch == 0 {
            // New tables, as after a reboot: they count from 0, and what the file knows counted in others.
            Names::default()
        } else {
            Names::load(directory).unwrap_or_else(|error| {
                tracing::warn!(%error, "names of rules and endpoints that are gone are lost");
                Names::default()
            })
        };
        let clock = SystemTime::now;
        Ok(Self {
            store,
            directory: Some(directory.to_owned()),
            names,
            state: Some(state),
            generation: 0,
            hook: None,
            clock,
        })
    }

    /// Takes the tables over once more, as [`Publisher::open`] does and with it each agent that starts again.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn reopen(&mut self) -> Result<(), NodeError> {
        self.generation += 1;
        self.state = None;
        self.state = Some(recover(&mut self.store)?);
        Ok(())
    }

    /// Has `hook` called at every [`CrashPoint`].
    pub fn set_hook(&mut self, hook: Option<Hook>) {
        self.hook = hook;
    }

    /// Has deadlines measured by another wall clock: a test's, that steps.
    pub fn set_clock(&mut self, clock: fn() -> SystemTime) {
        self.clock = clock;
    }

    /// The tables.
    pub const fn store(&self) -> &S {
        &self.store
    }

    /// The tables, for what is not published: flows, settings.
    pub const fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }

    /// Names of all that the tables know by hash.
    pub const fn names(&self) -> &Names {
        &self.names
    }

    /// Use of the bounded tables.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn usage(&mut self) -> Result<Vec<TableUse>, NodeError> {
        let state = self.take_state()?;
        let usage = state.usage(&self.store);
        self.state = Some(state);
        Ok(usage)
    }

    fn take_state(&mut self) -> Result<State, NodeError> {
        match self.state.take() {
            Some(state) => Ok(state),
            None => recover(&mut self.store),
        }
    }

    fn reached(hook: &mut Option<Hook>, point: CrashPoint) -> Result<(), NodeError> {
        match hook.as_mut().map(|hook| hook(point)) {
            Some(ControlFlow::Break(())) => {
                Err(NodeError::Kernel { doing: "publish".to_owned(), why: format!("stopped at {point:?}") })
            }
            _ => Ok(()),
        }
    }

    /// Checks `desired` against every limit and makes ready what new endpoints need. `wire` tells what the kernel says of an endpoint's link.
    ///
    /// # Errors
    /// [`NodeError::Capacity`], or the error of `wire`, with nothing changed; [`NodeError::Kernel`].
    pub fn prepare(
        &mut self,
        desired: &Desired,
        wire: &mut dyn FnMut(&Endpoint) -> Result<Wire, NodeError>,
    ) -> Result<Plan, NodeError> {
        self.generation += 1;
        let mut state = self.take_state()?;
        // A plan before this one that was not carried out.
        state.roll_back();
        let target = match lower(desired, &mut state, &self.store, &self.names, (self.clock)(), wire) {
            Ok(target) => target,
            Err(error) => {
                state.roll_back();
                self.state = Some(state);
                return Err(error);
            }
        };

        let removed = self.removed(desired, &state, &target);
        if let Some((names, changing)) =
            self.renamed(desired, &state, &target)?.filter(|(names, _)| *names != self.names)
        {
            // Before it is known who has them now: whoever is stopped in between goes on from the owners of before.
            self.forget_contacts(&changing)?;
            if let Some(directory) = &self.directory {
                names.save(directory)?;
            }
            self.names = names;
        }
        let new: Vec<(u32, EndpointInfo)> =
            target.slots.iter().filter(|(.., new)| *new).map(|(slot, info, _)| (*slot, *info)).collect();
        if !new.is_empty() {
            self.store.flow_tables(&new.iter().map(|(slot, _)| *slot).collect::<Vec<_>>())?;
        }
        let moved = target.slots.iter().map(|(slot, info, _)| (*slot, *info));
        let written: Vec<_> = moved.filter(|(slot, info)| state.infos.get(slot) != Some(info)).collect();
        put::<S, EndpointInfos>(&mut self.store, &written)?;
        state.infos.extend(written);
        Self::reached(&mut self.hook, CrashPoint::Prepared)?;
        self.state = Some(state);

        let attach = desired.endpoints.iter().zip(&target.slots).map(|(endpoint, (slot, _, new))| Attach {
            slot: *slot,
            endpoint: endpoint.name.clone(),
            link: endpoint.link.clone(),
            new: *new,
        });
        Ok(Plan { attach: attach.collect(), removed, target, generation: self.generation })
    }

    fn removed(&self, desired: &Desired, state: &State, target: &Target) -> Vec<Removed> {
        let slots: HashSet<u32> = target.slots.iter().map(|(slot, ..)| *slot).collect();
        let links: HashSet<&str> = desired.endpoints.iter().map(|endpoint| endpoint.link.as_str()).collect();
        let owners = |slot: &u32| {
            self.names.slots.get(slot).map(|owner| owner.link.clone()).filter(|link| !links.contains(link.as_str()))
        };
        state
            .infos
            .keys()
            .filter(|slot| !slots.contains(slot))
            .map(|slot| Removed { slot: *slot, link: owners(slot) })
            .collect()
    }

    /// What was denied of whom slots had before must not be told of whom they have now. No link refers to them meanwhile.
    fn forget_contacts(&mut self, slots: &HashSet<u32>) -> Result<(), NodeError> {
        if slots.is_empty() {
            return Ok(());
        }
        let contacts = self.store.entries::<ContactTable>()?.into_iter().map(|(key, _)| key);
        let keys: Vec<ContactKey> = contacts.filter(|key| slots.contains(&u32::from(key.slot))).collect();
        if keys.is_empty() { Ok(()) } else { self.store.delete::<ContactTable>(&keys) }
    }

    /// Names as they shall be: those of before that tables still refer to, and those of the target; and slots that change hands. `None` where all that is
    /// to be there is.
    fn renamed(
        &self,
        desired: &Desired,
        state: &State,
        target: &Target,
    ) -> Result<Option<(Names, HashSet<u32>)>, NodeError> {
        if self.has_names(desired, state, target) {
            return Ok(None);
        }
        let mut names = self.names.clone();
        let there: BTreeSet<u64> = target.slots.iter().map(|(_, info, _)| info.identity).collect();
        let now = (self.clock)().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64);
        let gone = names.endpoints.iter_mut().filter(|(identity, _)| !there.contains(*identity));
        for (_, endpoint) in gone.filter(|(_, endpoint)| endpoint.gone.is_none()) {
            (endpoint.gone, endpoint.gone_at) = (Some(state.epoch.saturating_add(1)), Some(now));
        }
        for (endpoint, (_, info, _)) in desired.endpoints.iter().zip(&target.slots) {
            let retired = names.endpoints.remove(&info.identity).map(|endpoint| endpoint.retired).unwrap_or_default();
            let Endpoint { name, service, link, .. } = endpoint.clone();
            names
                .endpoints
                .insert(info.identity, NamedEndpoint { name, service, link, gone: None, gone_at: None, retired });
        }

        // Slots that change hands: what is counted there is the old owner's up to here.
        let changing = |(slot, info, new): &(u32, EndpointInfo, bool)| {
            *new && names.slots.get(slot).is_none_or(|owner| owner.endpoint != info.identity)
        };
        let changing: HashSet<u32> =
            target.slots.iter().filter(|slot| changing(slot)).map(|(slot, ..)| *slot).collect();
        for (endpoint, (slot, info, _)) in desired.endpoints.iter().zip(&target.slots) {
            let link = endpoint.link.clone();
            match names.slots.get_mut(slot) {
                Some(owner) if !changing.contains(slot) => owner.link = link,
                before => {
                    let counted = slot_totals(&self.store, Some(*slot))?;
                    let base: Vec<Total> = counted.into_iter().map(|(_, total)| total).collect();
                    if let Some(before) = before
                        && let Some(endpoint) = names.endpoints.get_mut(&before.endpoint)
                    {
                        add_totals(&mut endpoint.retired, &since(&base, &before.base));
                    }
                    names.slots.insert(*slot, SlotOwner { endpoint: info.identity, link, base });
                }
            }
        }

        names.rules.extend(target.rules.iter().map(|(hash, at)| (*hash, desired.rules[*at].clone())));
        let counters = || state.counters.keys();
        let rules: HashSet<u64> =
            counters().map(|key| key.rule).chain(target.rules.iter().map(|(hash, _)| *hash)).collect();
        let endpoints: HashSet<u64> = counters()
            .map(|key| key.endpoint)
            .chain(names.slots.values().map(|owner| owner.endpoint))
            .chain(there)
            .collect();
        names.rules.retain(|hash, _| rules.contains(hash));
        names.endpoints.retain(|identity, _| endpoints.contains(identity));
        Ok(Some((names, changing)))
    }

    /// Whether names say all of a target. What they say of others goes with the next change.
    fn has_names(&self, desired: &Desired, state: &State, target: &Target) -> bool {
        let Names { rules, endpoints, slots } = &self.names;
        let there: HashSet<u64> = target.slots.iter().map(|(_, info, _)| info.identity).collect();
        let is_named = |(endpoint, (slot, info, _)): (&Endpoint, &(u32, EndpointInfo, bool))| {
            let of = |known: &NamedEndpoint| {
                (&known.name, &known.service, &known.link) == (&endpoint.name, &endpoint.service, &endpoint.link)
            };
            let owns = |owner: &SlotOwner| (owner.endpoint, &owner.link) == (info.identity, &endpoint.link);
            endpoints.get(&info.identity).is_some_and(|known| known.gone.is_none() && of(known))
                && slots.get(slot).is_some_and(owns)
        };
        // What a rule is called is its hash; where it stands may be another place where it is not the rule of before.
        let before = state.standing.as_ref().map(|standing| &standing.symbols.rules);
        let other: HashSet<usize> = match before {
            Some(before) => desired.rules.beside(before).map(|(at, _)| at).collect(),
            None => (0..desired.rules.len()).collect(),
        };
        let is_rule = |(hash, at): &(u64, usize)| {
            rules.get(hash).is_some_and(|known| !other.contains(at) || *known == desired.rules[*at])
        };
        endpoints.iter().all(|(identity, known)| known.gone.is_some() || there.contains(identity))
            && desired.endpoints.iter().zip(&target.slots).all(is_named)
            && target.rules.iter().all(is_rule)
    }

    /// Slots without an owner that are worth having flow tables already, in ascending order: see [`Free::worth_keeping_ready`]. `None` after a failure: then
    /// only the next publish knows who has which.
    pub(crate) fn slots_to_keep_ready(&self) -> Option<BTreeSet<u32>> {
        let state = self.state.as_ref()?;
        Some(Free::new(&self.store, state, &self.names).worth_keeping_ready())
    }

    /// Slots that have an owner; `None` as above.
    pub(crate) fn owned_slots(&self) -> Option<BTreeSet<u32>> {
        Some(self.state.as_ref()?.infos.keys().copied().collect())
    }

    /// Carries a plan out. Afterwards the caller detaches [`Plan::removed`], whose words are 0, and calls [`Publisher::release`].
    ///
    /// # Errors
    /// [`NodeError::Kernel`]: then the next [`Publisher::prepare`] reads the tables back and goes on from where they are.
    pub fn commit(&mut self, plan: Plan) -> Result<Published, NodeError> {
        // What the plan allocated is known to the state that it was made from, and to no other.
        let Some(mut state) = self.state.take_if(|_| plan.generation == self.generation) else {
            return Err(NodeError::Kernel { doing: "publish".to_owned(), why: "the plan is out of date".to_owned() });
        };
        self.generation += 1;
        let hook = &mut self.hook;
        let published = steps::run(&mut self.store, &mut state, plan.target, &mut |point| Self::reached(hook, point))?;
        self.state = Some(state);
        Ok(published)
    }

    /// Frees the slots of what was removed, once no link refers to them.
    ///
    /// # Errors
    /// [`NodeError::Kernel`].
    pub fn release(&mut self, removed: &[Removed]) -> Result<(), NodeError> {
        let mut state = self.take_state()?;
        let slots: Vec<u32> =
            removed.iter().map(|removed| removed.slot).filter(|slot| !state.words.contains_key(slot)).collect();
        put::<S, EndpointInfos>(
            &mut self.store,
            &slots.iter().map(|slot| (*slot, EndpointInfo::default())).collect::<Vec<_>>(),
        )?;
        state.infos.retain(|slot, _| !slots.contains(slot));
        Self::reached(&mut self.hook, CrashPoint::Released)?;
        self.state = Some(state);
        Ok(())
    }
}

impl<S> fmt::Debug for Publisher<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher")
            .field("directory", &self.directory)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

/// What is not zero in `ENDPOINT_COUNTERS`, of one slot or of all, by slot.
pub(crate) fn slot_totals<S: Store>(store: &S, slot: Option<u32>) -> Result<Vec<(u32, Total)>, NodeError> {
    let total = |(index, counter): (u32, Counter)| {
        let (place, reason) = (index / REASONS, index % REASONS);
        (place / 2, Total::new(Direction::from_u8((place % 2) as u8), reason as u8, counter))
    };
    Ok(store.endpoint_counters(slot)?.into_iter().map(total).collect())
}

/// What was counted after `base`.
pub(crate) fn since(totals: &[Total], base: &[Total]) -> Vec<Total> {
    let less = |total: &Total| {
        let base = base
            .iter()
            .find(|base| (base.direction, base.reason) == (total.direction, total.reason))
            .map(Total::counter)
            .unwrap_or_default();
        Total {
            packets: total.packets.saturating_sub(base.packets),
            bytes: total.bytes.saturating_sub(base.bytes),
            flows: total.flows.saturating_sub(base.flows),
            ..*total
        }
    };
    totals.iter().map(less).filter(|total| total.counter() != Counter::default()).collect()
}

fn add_totals(to: &mut Vec<Total>, more: &[Total]) {
    for total in more {
        match to.iter_mut().find(|to| (to.direction, to.reason) == (total.direction, total.reason)) {
            Some(to) => {
                to.packets += total.packets;
                to.bytes += total.bytes;
                to.flows += total.flows;
            }
            None => to.push(*total),
        }
    }
}

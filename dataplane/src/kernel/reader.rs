//! What is pinned and attached, read while an agent runs or when none does.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bulkhead_ebpf::{abi::program, mark::Layout, reason::Reason};

use super::KernelStore;
use crate::{
    attach::{Attachment, Classifiers, Guard, Links},
    gate, input_rule,
    load::Maps,
    mark,
    names::Names,
    node::{
        Contacts, EndpointStatus, FlowRecord, LinkStatus, MarkConflicts, NodeError, Observer, Reading, Status, TableUse,
    },
    pins::Pins,
    read::{self, Idle},
    store::{Config, Endpoints, Store as _},
};

/// What the latest publish has put up, for who looks whether it still stands.
#[derive(Debug, Default)]
pub(super) struct Meant {
    pub(super) guards: Vec<Guard>,
    /// Ports that the gate lets through; `None` without a gate.
    pub(super) gated: Option<BTreeSet<String>>,
    /// How full the tables are since; `None` before.
    pub(super) usage: Option<Vec<TableUse>>,
}

pub(super) fn meant(of: &Mutex<Meant>) -> MutexGuard<'_, Meant> {
    // Replaced as a whole: who panicked meanwhile left one or the other.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The [`Observer`] of a [`KernelNode`].
pub(super) struct KernelObserver {
    pub(super) reader: Reader,
    /// As in [`super::Options::gate`].
    pub(super) gate: Option<String>,
    pub(super) meant: Arc<Mutex<Meant>>,
    pub(super) idle: Mutex<Idle>,
}

impl Observer for KernelObserver {
    fn counters(&self) -> Result<Vec<Reading>, NodeError> {
        let Reader { store, state, .. } = &self.reader;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        read::with_names(state, |names| counters(store, names, self.gate.is_some(), &mut idle))
    }

    fn flows(&self) -> Result<Vec<FlowRecord>, NodeError> {
        self.reader.flows()
    }

    fn contacts(&self) -> Result<Contacts, NodeError> {
        self.reader.contacts()
    }

    fn status(&self) -> Result<Status, NodeError> {
        let Reader { store, links, state } = &self.reader;
        let (guards, gated, usage) = {
            let meant = meant(&self.meant);
            (meant.guards.clone(), meant.gated.clone(), meant.usage.clone())
        };
        let mut status = read::with_names(state, |names| status(store, names, links, &guards, usage.clone()))?;
        look_at_gate(&mut status, self.gate.as_deref(), gated.as_ref())?;
        Ok(status)
    }

    fn mark_conflicts(&self) -> Result<MarkConflicts, NodeError> {
        self.reader.mark_conflicts()
    }
}

/// Tells of the gate as missing where there is to be one, with these ports, and it does not stand. Whether it is.
pub(super) fn look_at_gate(
    status: &mut Status,
    pattern: Option<&str>,
    gated: Option<&BTreeSet<String>>,
) -> Result<bool, NodeError> {
    let (Some(pattern), Some(gated)) = (pattern, gated) else { return Ok(false) };
    let is_missing = !gate::stands(pattern, gated)?;
    if is_missing {
        status.missing.push(LinkStatus { link: String::new(), guard: GATE.to_owned() });
    }
    Ok(is_missing)
}

/// Reads what is pinned, while an agent runs or when none does. Changes nothing.
#[derive(Debug)]
pub struct Reader {
    store: KernelStore,
    links: Links,
    state: PathBuf,
}

/// An attachment, as a status tells of it.
pub(super) fn link_status(found: &Attachment) -> LinkStatus {
    LinkStatus { link: found.link.clone(), guard: found.to_string() }
}

impl Reader {
    /// Opens the pins.
    ///
    /// # Errors
    /// Nothing is pinned there, or by another version.
    pub fn open(pins: &Path, state: &Path) -> Result<Self, NodeError> {
        let pins = Pins::new(pins);
        let store = KernelStore::new(Maps::open(&pins)?)?;
        Ok(Self { store, links: Links::new(&pins, Classifiers::default()), state: state.to_owned() })
    }

    /// See [`Node::counters`].
    ///
    /// # Errors
    /// [`NodeError::Kernel`].
    pub fn counters(&self) -> Result<Vec<Reading>, NodeError> {
        read::with_names(&self.state, |names| counters(&self.store, names, true, &mut Idle::default()))
    }

    /// See [`Node::flows`].
    ///
    /// # Errors
    /// [`NodeError::Kernel`].
    pub fn flows(&self) -> Result<Vec<FlowRecord>, NodeError> {
        read::with_names(&self.state, |names| read::flows(&self.store, names))
    }

    /// See [`Node::contacts`].
    ///
    /// # Errors
    /// [`NodeError::Kernel`].
    pub fn contacts(&self) -> Result<Contacts, NodeError> {
        read::with_names(&self.state, |names| read::contacts(&self.store, names))
    }

    /// See [`Node::mark_conflicts`]; of the mask that is in force.
    ///
    /// # Errors
    /// [`NodeError::Kernel`].
    pub fn mark_conflicts(&self) -> Result<MarkConflicts, NodeError> {
        let mask = self.store.get::<Config>(&0)?.unwrap_or_default().mark_mask;
        let slots = self.store.limit::<Endpoints>();
        Ok(mark::conflicts(mask, u32::try_from(slots).unwrap_or(u32::MAX)))
    }

    /// See [`Node::status`].
    ///
    /// # Errors
    /// [`NodeError::Kernel`].
    pub fn status(&self) -> Result<Status, NodeError> {
        read::with_names(&self.state, |names| status(&self.store, names, &self.links, &[], None))
    }
}

/// What the tables counted, and what nftables dropped where no program saw it: the input rule, and the gate where there is one.
fn counters(store: &KernelStore, names: &Names, gated: bool, idle: &mut Idle) -> Result<Vec<Reading>, NodeError> {
    let mut readings = read::counters(store, names, idle)?;
    // Without an overlay there is no rule, and nft need not be there.
    let input = if tunnel_ports(store)?.is_empty() { 0 } else { input_rule::counter()? };
    let shut = if gated { gate::counter()? } else { 0 };
    let counted = [(input, Reason::Unverified, INPUT_RULE), (shut, Reason::Unguarded, GATE)];
    readings.extend(counted.into_iter().filter(|(packets, ..)| *packets > 0).map(|(packets, reason, rule)| Reading {
        endpoint: None,
        service: String::new(),
        gone: None,
        direction: "ingress",
        reason,
        rule: rule.to_owned(),
        packets,
        bytes: 0,
        flows: 0,
    }));
    Ok(readings)
}

/// Name of the gate among the rules and guards.
pub const GATE: &str = "gate of bridges";
/// Name of the nftables input rule among the rules.
pub const INPUT_RULE: &str = "input rule";

pub(super) fn status(
    store: &KernelStore,
    names: &Names,
    links: &Links,
    wanted: &[Guard],
    usage: Option<Vec<TableUse>>,
) -> Result<Status, NodeError> {
    let mut status = read::status(store, names, usage)?;
    let attachments = links.list()?;
    set_attached(&mut status.endpoints, &attachments);
    status.links = attachments.iter().map(link_status).collect();
    let missing = wanted.iter().filter(|guard| !attachments.iter().any(|found| guard.is(found)));
    status.missing = missing.map(|guard| LinkStatus { link: guard.link.clone(), guard: guard.to_string() }).collect();
    let ports = tunnel_ports(store)?;
    let mask = store.get::<Config>(&0)?.unwrap_or_default().mark_mask;
    let stands = |layout: Layout| input_rule::present(&ports, &layout);
    status.input_rule = status.observe || ports.is_empty() || Layout::new(mask).map_or(Ok(false), stands)?;
    status.mark_mask = mask;
    Ok(status)
}

/// Says of endpoints whether both of their programs are attached.
pub(super) fn set_attached(endpoints: &mut [EndpointStatus], attachments: &[Attachment]) {
    for endpoint in endpoints {
        let guards = |program| {
            attachments.iter().any(|found| {
                found.guards() && found.link == endpoint.link && found.stub == Some((program, endpoint.slot))
            })
        };
        endpoint.attached = guards(program::FROM_WORKLOAD) && guards(program::TO_WORKLOAD);
    }
}

/// Ports that the programs in force know; none before the first publish.
pub(super) fn tunnel_ports(store: &KernelStore) -> Result<BTreeSet<u16>, NodeError> {
    let config = store.get::<Config>(&0)?.unwrap_or_default();
    Ok(config.tunnel_ports.into_iter().filter(|port| *port != 0).collect())
}

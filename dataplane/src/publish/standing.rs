//! Known addresses that stand as they are: a piece of them that is the one of the revision in force keeps what that made of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use crate::{
    desired::{Address, Desired, Segment, SelectorId},
    pieces::Pieces,
    publish::{
        places::{Key, Place},
        state::State,
    },
};

/// What [`State::places`] were made from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    addresses: Pieces<(Segment, IpAddr), Address>,
    selectors: Vec<String>,
    /// Of each piece.
    facts: BTreeMap<(Segment, IpAddr), Arc<Facts>>,
}

/// What else than itself decides what is made of a piece.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    selectors: BTreeSet<SelectorId>,
    /// Somebody of this node has one of them: then slots do.
    here: bool,
}

impl Facts {
    pub(crate) fn add(&mut self, known: &Address) {
        self.selectors.extend(&known.selectors);
        self.here |= known.endpoint.is_some();
    }
}

/// A piece of known addresses, lowered.
pub(crate) type Lowered = Arc<BTreeMap<Key, Place>>;

impl Standing {
    /// Of what is lowered now; pieces are told one by one.
    pub(crate) fn of(desired: &Desired) -> Self {
        let (addresses, selectors) = (desired.addresses.clone(), desired.selectors.clone());
        Self { addresses, selectors, facts: BTreeMap::new() }
    }

    /// What is true of a piece.
    pub(crate) fn learn(&mut self, at: (Segment, IpAddr), facts: Arc<Facts>) {
        self.facts.insert(at, facts);
    }

    /// Selectors by ids that mean somebody else now, or nobody.
    fn renamed(&self, desired: &Desired) -> BTreeSet<SelectorId> {
        let before = (0..).map(SelectorId).zip(&self.selectors).filter(|(_, text)| !text.is_empty());
        before.filter(|(id, text)| desired.selectors.get(id.0 as usize) != Some(text)).map(|(id, _)| id).collect()
    }
}

/// What of a revision in force stays.
pub(crate) struct Kept<'a> {
    state: &'a State,
    renamed: BTreeSet<SelectorId>,
}

impl<'a> Kept<'a> {
    pub(crate) fn new(state: &'a State, desired: &Desired) -> Self {
        let renamed = state.standing.as_ref().map(|standing| standing.renamed(desired)).unwrap_or_default();
        Self { state, renamed }
    }

    /// What is in force of a piece of known addresses, if that is still what it becomes.
    pub(crate) fn piece(
        &self,
        at: &(Segment, IpAddr),
        piece: &Arc<BTreeMap<(Segment, IpAddr), Address>>,
    ) -> Option<(Lowered, Arc<Facts>)> {
        let standing = self.state.standing.as_ref()?;
        let is_same = standing.addresses.piece(at).is_some_and(|before| Arc::ptr_eq(before, piece));
        let facts = standing.facts.get(at).filter(|_| is_same)?;
        if facts.here || !facts.selectors.is_disjoint(&self.renamed) {
            return None;
        }
        Some((Arc::clone(self.state.places.piece(&Key::known(at.0, at.1))?), Arc::clone(facts)))
    }
}

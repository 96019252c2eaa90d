//! Known addresses that stand as they are: a piece of them that is the one of the revision in force keeps what that made of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use crate::{
    desired::{Address, Desired, Rule, Segment, SelectorId},
    listed::Listed,
    names::{rule_hash, selector_hash},
    pieces::{Neighbours, Pieces},
    publish::{
        places::{Key, Place},
        state::State,
    },
};

/// What [`State::places`] were made from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    addresses: Pieces<(Segment, IpAddr), Address>,
    pub(crate) symbols: Symbols,
    /// Of each piece.
    facts: BTreeMap<(Segment, IpAddr), Arc<Facts>>,
}

/// Selectors and rules with their hashes: digests of their texts, which are made once for each.
#[derive(Clone, Debug, Default)]
pub(crate) struct Symbols {
    pub(crate) selectors: Listed<String>,
    pub(crate) rules: Listed<Rule>,
    /// By [`SelectorId`].
    pub(crate) selector_hashes: Listed<[u64; 2]>,
    /// By [`RuleId`](crate::desired::RuleId).
    pub(crate) rule_hashes: Listed<u64>,
}

impl Symbols {
    /// Those of a revision; what is `before`'s is not hashed again.
    pub(crate) fn of(desired: &Desired, before: &Self) -> Self {
        let Desired { selectors, rules, .. } = desired;
        Self {
            selectors: selectors.clone(),
            rules: rules.clone(),
            selector_hashes: selectors
                .map_beside(&before.selectors, &before.selector_hashes, |text| selector_hash(text)),
            rule_hashes: rules.map_beside(&before.rules, &before.rule_hashes, |rule| rule_hash(&rule.name)),
        }
    }

    /// Hashes of selectors that there are: of those with a text.
    pub(crate) fn named(&self) -> impl Iterator<Item = [u64; 2]> + Clone {
        self.selectors().filter(|(text, _)| !text.is_empty()).map(|(_, hash)| hash)
    }

    /// Selectors with their hashes.
    pub(crate) fn selectors(&self) -> impl Iterator<Item = (&str, [u64; 2])> + Clone {
        self.selectors.iter().map(String::as_str).zip(self.selector_hashes.iter().copied())
    }
}

/// What else than itself decides what is made of a piece.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    selectors: BTreeSet<SelectorId>,
    /// Somebody of this node has one of them: then slots do.
    here: bool,
    /// Rows that its addresses have.
    rows: BTreeSet<u32>,
}

impl Facts {
    pub(crate) fn add(&mut self, known: &Address, row: u32) {
        self.rows.insert(row);
        self.selectors.extend(&known.selectors);
        self.here |= known.endpoint.is_some();
    }
}

/// A piece of known addresses, lowered.
pub(crate) type Lowered = Arc<Neighbours<Key, Place>>;

impl Standing {
    /// Of what is lowered now; pieces are told one by one.
    pub(crate) fn of(desired: &Desired, symbols: Symbols) -> Self {
        Self { addresses: desired.addresses.clone(), symbols, facts: BTreeMap::new() }
    }

    /// What is true of a piece.
    pub(crate) fn learn(&mut self, at: (Segment, IpAddr), facts: Arc<Facts>) {
        self.facts.insert(at, facts);
    }

    /// Rows that known addresses have.
    pub(crate) fn rows(&self) -> impl Iterator<Item = u32> {
        self.facts.values().flat_map(|facts| facts.rows.iter().copied())
    }

    /// Selectors by ids that mean somebody else now, or nobody.
    fn renamed(&self, desired: &Desired) -> BTreeSet<SelectorId> {
        let before = self.symbols.selectors.beside(&desired.selectors).filter(|(_, text)| !text.is_empty());
        let renamed = before.filter(|(at, text)| desired.selectors.get(*at) != Some(text));
        renamed.filter_map(|(at, _)| u32::try_from(at).ok()).map(SelectorId).collect()
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
        piece: &Arc<Neighbours<(Segment, IpAddr), Address>>,
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

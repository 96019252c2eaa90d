//! Which slot an endpoint gets, and which slots are made ready before somebody comes.

use std::{cmp::Reverse, collections::BTreeSet};

use bulkhead_ebpf::abi::MAX_SLOTS;
use foldhash::HashSet;

use crate::{
    names::Names,
    publish::state::State,
    store::{self, Store},
};

/// Slots that are kept ready for endpoints that never were on this node, and as many for those that went last and may come back.
const READY: usize = 4;

/// Slots that the tables hold, slot 0 included.
pub(crate) fn slots_limit<S: Store>(store: &S) -> u32 {
    store.limit::<store::Endpoints>().min(store.limit::<store::EndpointInfos>()).min(MAX_SLOTS as usize) as u32
}

/// Slots without an owner.
pub(crate) struct Free<'a> {
    free: BTreeSet<u32>,
    /// Those of them whose flow tables are there.
    ready: BTreeSet<u32>,
    limit: u32,
    names: &'a Names,
}

impl<'a> Free<'a> {
    pub(crate) fn new<S: Store>(store: &S, state: &State, names: &'a Names) -> Self {
        let limit = slots_limit(store);
        let free: BTreeSet<u32> = (1..limit).filter(|slot| !state.infos.contains_key(slot)).collect();
        let ready = store.ready_slots().intersection(&free).copied().collect();
        Self { free, ready, limit, names }
    }

    /// Takes a slot for an endpoint: the one that it had before; else one that is ready; else the first one from its hash on that nobody ever had; else
    /// the one whose owner has been gone longest.
    pub(crate) fn take(&mut self, identity: u64) -> Option<u32> {
        let start = 1 + (identity % u64::from(self.limit.max(2) - 1)) as u32;
        let had = |slot: &&u32| self.names.slots.get(slot).is_some_and(|owner| owner.endpoint == identity);
        let slot = self.free.iter().find(had).copied();
        let slot = slot
            .or_else(|| self.ready.iter().copied().min_by_key(|slot| self.gone(*slot)))
            .or_else(|| {
                self.free.range(start..).chain(self.free.range(..start)).copied().find(|slot| self.is_virgin(*slot))
            })
            .or_else(|| self.free.iter().copied().min_by_key(|slot| self.gone(*slot)))?;
        self.free.remove(&slot);
        self.ready.remove(&slot);
        Some(slot)
    }

    /// Slots for who comes next: some that strangers will get, and those whose owners went last, since what is started again has its name again. Those that
    /// are ready already stay so where one is as good as the other.
    pub(crate) fn worth_keeping_ready(&self) -> BTreeSet<u32> {
        let mut back: Vec<u32> = self.free.iter().copied().filter(|slot| !self.is_virgin(*slot)).collect();
        back.sort_by_key(|slot| Reverse(self.gone(*slot)));
        back.truncate(READY);
        let taken: HashSet<u32> = back.iter().copied().collect();
        let mut strangers: Vec<u32> = self.free.iter().copied().filter(|slot| !taken.contains(slot)).collect();
        strangers.sort_by_key(|slot| (self.gone(*slot), !self.ready.contains(slot)));
        strangers.truncate(READY);
        back.into_iter().chain(strangers).collect()
    }

    fn is_virgin(&self, slot: u32) -> bool {
        !self.names.slots.contains_key(&slot)
    }

    /// The epoch since which its owner is gone; 0 where nobody knows of one.
    fn gone(&self, slot: u32) -> u32 {
        let owner = self.names.slots.get(&slot).and_then(|owner| self.names.endpoints.get(&owner.endpoint));
        owner.and_then(|owner| owner.gone).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::EndpointName;
    use crate::names::{NamedEndpoint, SlotOwner};

    /// Of nine slots 1 has an owner; of 2 to 7 the owners went, one after the other; 8 and 9 are virgins.
    fn names() -> Names {
        let mut names = Names::default();
        for slot in 2..8_u32 {
            let identity = u64::from(slot) * 1000;
            let name = EndpointName { namespace: "shop".to_owned(), workload: format!("web-{slot}"), index: 0 };
            let (service, link) = ("web".to_owned(), format!("veth{slot}"));
            let (gone, link_before, retired) = (Some(10 + slot), link.clone(), Vec::new());
            let endpoint = NamedEndpoint { name, service, link: link_before, gone, gone_at: None, retired };
            names.endpoints.insert(identity, endpoint);
            names.slots.insert(slot, SlotOwner { endpoint: identity, link, base: Vec::new() });
        }
        names
    }

    fn free<'a>(names: &'a Names, ready: &[u32]) -> Free<'a> {
        Free { free: (2..10).collect(), ready: ready.iter().copied().collect(), limit: 10, names }
    }

    #[test]
    fn who_comes_back_has_his_slot_again_and_a_stranger_one_that_is_ready() {
        let names = names();
        let mut free = free(&names, &[5, 9]);
        assert_eq!(free.take(6000), Some(6), "his own");
        assert_eq!(free.take(77), Some(9), "ready, and nobody's");
        assert_eq!(free.take(78), Some(5), "ready");
        assert_eq!(free.take(79), Some(8), "nobody's");
        assert_eq!(free.take(80), Some(2), "whose owner has been gone longest");
        assert_eq!(free.take(5000), Some(3), "his own has another owner");
        assert_eq!([free.take(81), free.take(82), free.take(83)], [Some(4), Some(7), None]);
    }

    #[test]
    fn ready_are_those_who_went_last_and_those_for_strangers() {
        let names = names();
        // Back come 4 to 7. Strangers get the virgins, then who has been gone longest.
        assert_eq!(free(&names, &[]).worth_keeping_ready(), (2..10).collect());
        let many = Free { free: (2..100).collect(), limit: 100, ..free(&names, &[50, 51, 3]) };
        assert_eq!(many.worth_keeping_ready(), [4, 5, 6, 7, 50, 51, 8, 9].into());
    }
}

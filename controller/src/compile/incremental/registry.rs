//! Ids that stay with what they were given to, for as long as somebody uses it.

use std::{collections::BTreeSet, hash::Hash, sync::Arc};

use foldhash::{HashMap, HashMapExt as _};

/// Who has which id, and how many use it. The lowest free id is given first; none is kept free at the end.
#[derive(Debug)]
pub(super) struct Registry<T> {
    ids: HashMap<Arc<T>, u32>,
    slots: Vec<Option<(Arc<T>, usize)>>,
    free: BTreeSet<u32>,
}

impl<T> Default for Registry<T> {
    fn default() -> Self {
        Self { ids: HashMap::new(), slots: Vec::new(), free: BTreeSet::new() }
    }
}

impl<T: Clone + Eq + Hash> Registry<T> {
    /// Id of a value for one more user, and whether it is new.
    pub(super) fn acquire(&mut self, value: &T) -> (u32, bool) {
        self.acquire_once(value, |_| true)
    }

    /// The same for a user who may have it already: `takes` notes that it has it now, and says whether it had not.
    pub(super) fn acquire_once(&mut self, value: &T, takes: impl FnOnce(u32) -> bool) -> (u32, bool) {
        if let Some(&id) = self.ids.get(value) {
            if takes(id) {
                self.slots.get_mut(id as usize).into_iter().flatten().for_each(|(_, uses)| *uses += 1);
            }
            return (id, false);
        }
        let id = self.free.pop_first().unwrap_or_else(|| u32::try_from(self.slots.len()).unwrap_or(u32::MAX));
        takes(id);
        let value = Arc::new(value.clone());
        let slot = Some((Arc::clone(&value), 1));
        match self.slots.get_mut(id as usize) {
            Some(free) => *free = slot,
            None => self.slots.push(slot),
        }
        self.ids.insert(value, id);
        (id, true)
    }

    /// One user less. The value, if that was the last one: then the id is free.
    pub(super) fn release(&mut self, id: u32) -> Option<Arc<T>> {
        let slot = self.slots.get_mut(id as usize)?;
        let (_, uses) = slot.as_mut()?;
        *uses -= 1;
        if *uses > 0 {
            return None;
        }
        let (value, _) = slot.take()?;
        self.ids.remove(&value);
        self.free.insert(id);
        while self.slots.pop_if(|last| last.is_none()).is_some() {
            self.free.remove(&u32::try_from(self.slots.len()).unwrap_or(u32::MAX));
        }
        Some(value)
    }

    pub(super) fn id(&self, value: &T) -> Option<u32> {
        self.ids.get(value).copied()
    }

    pub(super) fn get(&self, id: u32) -> Option<&T> {
        self.shared(id).map(|value| &**value)
    }

    /// The same, to be shared.
    pub(super) fn shared(&self, id: u32) -> Option<&Arc<T>> {
        self.slots.get(id as usize)?.as_ref().map(|(value, _)| value)
    }

    /// In order of their ids.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &T)> + Clone {
        (0..).zip(&self.slots).filter_map(|(id, slot)| Some((id, &*slot.as_ref()?.0)))
    }

    /// Ids up to the last one in use.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_given_again_when_its_last_user_is_gone() {
        let mut registry = Registry::default();
        assert_eq!(
            ["a", "b", "c", "a"].map(|value| registry.acquire(&value)),
            [(0, true), (1, true), (2, true), (0, false)]
        );
        assert_eq!(registry.release(0), None);
        assert_eq!(registry.release(1), Some(Arc::new("b")));
        assert_eq!((registry.get(1), registry.len()), (None, 3));
        assert_eq!(registry.acquire(&"d"), (1, true));
        assert_eq!([1, 2].map(|id| registry.release(id)), [Some(Arc::new("d")), Some(Arc::new("c"))]);
        assert_eq!((registry.len(), registry.acquire(&"e")), (1, (1, true)));
    }
}

//! Links of containers whose ADD waits: nothing of these runs yet, so none of them started without a guard.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bulkhead_dataplane::cni::protocol::Attached;

/// A link by name and index, and how many ADDs of it wait: a runtime may have given one up and asked again.
type Links = BTreeMap<(String, u32), usize>;

/// All of them. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Arriving(Arc<Mutex<Links>>);

/// An ADD that waits, until it is dropped.
#[derive(Debug)]
pub struct Arrival {
    all: Arriving,
    links: Vec<(String, u32)>,
}

impl Arriving {
    /// One begins to wait.
    #[must_use]
    pub fn begin(&self, attached: &Attached) -> Arrival {
        let links: Vec<_> = attached.interfaces.iter().map(|own| (own.link.clone(), own.ifindex)).collect();
        let mut all = self.links();
        links.iter().for_each(|link| *all.entry(link.clone()).or_default() += 1);
        drop(all);
        Arrival { all: self.clone(), links }
    }

    /// Whether one waits for this link.
    pub(crate) fn contains(&self, link: &(String, u32)) -> bool {
        self.links().contains_key(link)
    }

    fn links(&self) -> MutexGuard<'_, Links> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        let mut all = self.all.links();
        for link in &self.links {
            if let Some(count) = all.get_mut(link) {
                *count -= 1;
                if *count == 0 {
                    all.remove(link);
                }
            }
        }
    }
}

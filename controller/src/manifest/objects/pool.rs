//! What pods have in common, once in memory: those of one controller have the same labels, ports and owner, those of one node its name.

use std::{collections::HashSet, hash::Hash, sync::Arc};

use super::{Object, Seen};
use crate::{
    diagnostic::{Place, source},
    labels::Labels,
    workloads::{Owner, PortNames},
};

/// Fewer values than this are not worth a look at who still has them.
const FEW: usize = 1024;

/// Equal values once, for as long as somebody has them.
#[derive(Debug)]
struct Shared<T: ?Sized> {
    known: HashSet<Arc<T>>,
    /// With so many of them it is looked which nobody has any more.
    most: usize,
}

impl<T: ?Sized> Default for Shared<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), most: FEW }
    }
}

impl<T: Eq + Hash + ?Sized> Shared<T> {
    /// Takes the known one for an equal one.
    fn share(&mut self, value: &mut Arc<T>) {
        if let Some(known) = self.known.get(&**value) {
            *value = Arc::clone(known);
            return;
        }
        if self.known.len() >= self.most {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            // A look costs little beside what comes until the next one, and what nobody has any more stays until then.
            self.most = FEW.max(self.known.len() + self.known.len() / 4);
        }
        self.known.insert(Arc::clone(value));
    }
}

/// What the pods of a cluster share.
#[derive(Debug)]
pub(crate) struct Pool {
    /// Stands for a place in each of them: what is said of a pod names it, and there is no text to point into.
    place: Place,
    labels: Shared<Labels>,
    ports: Shared<PortNames>,
    owners: Shared<Owner>,
    nodes: Shared<str>,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            place: Place::start(&source("(pods)", "")),
            labels: Shared::default(),
            ports: Shared::default(),
            owners: Shared::default(),
            nodes: Shared::default(),
        }
    }
}

impl Seen {
    /// Has it share with others what is the same.
    pub(crate) fn share(&mut self, pool: &mut Pool) {
        let Object::Pod(pod) = &mut self.0 else { return };
        pool.labels.share(&mut pod.template.labels);
        pool.ports.share(&mut pod.template.ports);
        if let Some(owner) = &mut pod.metadata.owner {
            pool.owners.share(owner);
        }
        pod.metadata.place = pool.place.clone();
        if let Some((node, place)) = &mut pod.template.node {
            pool.nodes.share(node);
            *place = pool.place.clone();
        }
        pod.addresses.iter_mut().for_each(|(_, place)| *place = pool.place.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one_and_are_forgotten_with_the_last_who_has_them() {
        let mut shared = Shared::<str>::default();
        let of = |shared: &mut Shared<str>, text: &str| {
            let mut value = Arc::from(text);
            shared.share(&mut value);
            value
        };
        let kept = of(&mut shared, "kept");
        assert!(Arc::ptr_eq(&kept, &of(&mut shared, "kept")));
        (0..10 * FEW).for_each(|number| drop(of(&mut shared, &number.to_string())));
        assert!(shared.known.len() <= FEW, "{}", shared.known.len());
        assert!(Arc::ptr_eq(&kept, &of(&mut shared, "kept")));
    }
}

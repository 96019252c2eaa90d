//! Plans that were made and may be applied.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{control::Fingerprint, overlay::Overlay, plan::Plan};

/// How many are kept; the oldest go first.
const KEPT: usize = 64;
/// For how long.
pub(super) const LIFE: Duration = Duration::from_secs(900);

/// What applying a plan takes. What it was compiled to is large and is compiled again.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    id: String,
    /// What it was planned on.
    pub(super) basis: Fingerprint,
    /// What shall hold over the files.
    pub(super) overlay: Overlay,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Plans(Arc<Mutex<VecDeque<(Instant, Kept)>>>);

impl Plans {
    /// Keeps a plan.
    pub(super) fn keep(&self, plan: Plan) {
        let mut plans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        plans.retain(|(made, other)| made.elapsed() < LIFE && other.id != plan.id);
        let Plan { id, basis, overlay, .. } = plan;
        plans.push_back((Instant::now(), Kept { id, basis, overlay }));
        while plans.len() > KEPT {
            plans.pop_front();
        }
    }

    /// A plan that is kept.
    pub(super) fn get(&self, id: &str) -> Option<Kept> {
        let plans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        plans.iter().find(|(made, plan)| made.elapsed() < LIFE && plan.id == id).map(|(_, plan)| plan.clone())
    }
}

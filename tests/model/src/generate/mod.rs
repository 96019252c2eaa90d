//! Random worlds, and random packets that are aimed at what their policies speak of.

mod traffic;
mod worlds;

use std::sync::Arc;

use proptest::prelude::*;

pub use traffic::{Conversation, Event, Move, Step, Target, resolve};
pub use worlds::{GATEWAY, TUNNEL_PORT, worlds};

use crate::World;

/// A world that changes, and what happens in it.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The first one is in force when the steps begin.
    pub worlds: Vec<Arc<World>>,
    /// What the steps are part of.
    pub conversations: Vec<Conversation>,
    /// What happens.
    pub steps: Vec<Step>,
}

/// Scenarios with so many steps.
pub fn scenario(steps: impl Into<proptest::collection::SizeRange>) -> impl Strategy<Value = Scenario> {
    (worlds(), traffic::conversations(), prop::collection::vec(traffic::step(), steps)).prop_map(
        |(worlds, conversations, steps)| {
            let worlds: Vec<_> = worlds.into_iter().map(Arc::new).collect();
            let conversations = conversations.iter().map(|raw| raw.aim(&worlds[0])).collect();
            Scenario { worlds, conversations, steps }
        },
    )
}

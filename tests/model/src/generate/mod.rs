//! Random worlds, and random packets that are aimed at what their policies speak of.

mod guards;
mod services;
mod traffic;
mod worlds;

use std::{sync::Arc, time::Duration};

use proptest::prelude::*;

pub use traffic::{Behind, Conversation, Event, Move, Step, Target, Translated, resolve};
pub use worlds::{GATEWAY, TUNNEL_PORT, worlds};

use crate::World;

/// When a scenario begins: nanoseconds of Unix time. Deadlines lie around it.
pub const START: u64 = 1_798_761_605_000_000_000;

/// The clock of a scenario shows whole ticks after [`START`], and deadlines lie half a tick beside those. So long that the
/// time which the scenario itself takes is nothing to it, on any machine.
pub const TICK: Duration = Duration::from_secs(3600);

/// What scenarios may have beside nodes, workloads and allow-lists. Each is in a good part of the scenarios, and absent from
/// the others; without any, a seed makes what it made before there was a choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Guards, and labels of namespaces.
    pub guards: bool,
    /// Documents, rules and walls that only report.
    pub audit: bool,
    /// Rules of Guards with deadlines, and a clock that moves.
    pub expiry: bool,
    /// Endpoints and nodes that only watch, for a time or until told otherwise.
    pub modes: bool,
    /// Services of the source, and calls to their addresses.
    pub services: bool,
}

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
pub fn scenario(
    features: Features,
    steps: impl Into<proptest::collection::SizeRange>,
) -> impl Strategy<Value = Scenario> {
    let steps = prop::collection::vec(traffic::step(features), steps);
    let enforces = if features.modes { prop::bool::weighted(0.4).boxed() } else { Just(true).boxed() };
    (worlds(features), traffic::conversations(features), steps, enforces).prop_map(
        |(worlds, conversations, mut steps, enforces)| {
            let worlds: Vec<_> = worlds.into_iter().map(Arc::new).collect();
            let conversations = conversations.iter().map(|raw| raw.aim(&worlds[0])).collect();
            steps.retain(|step| !enforces || !matches!(step, Step::Mode(..) | Step::Observe(_) | Step::Bypass(_)));
            Scenario { worlds, conversations, steps }
        },
    )
}

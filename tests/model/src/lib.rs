//! The reference model: from a policy and a sequence of packets straight to verdicts.
//!
//! It exists to disagree with the product. It shares no code with it and none of its ideas of how data should lie: there
//! are no selectors, bitmaps, intervals, tries or epochs here. A question is answered by reading the whole policy, each
//! time, in the words of the specification; a known flow is judged again at every packet, so that nothing can go stale.
//! It is slow, and that is its only virtue.
//!
//! - [`World`] is what there is (nodes, workloads, services) and what is wanted (Guards, intents).
//! - [`World::judge`] answers one question of policy, twice: as enforced, and as if what only reports were enforced.
//! - [`Machine`] adds what packets do: ownership of addresses, flows, replies, errors, fragments, calls, modes, time.
//! - [`yaml`] writes a world as the files that the product reads.
//! - [`generate`] makes random worlds and packets.

pub mod generate;
pub mod intent;
mod machine;
pub mod packet;
pub mod policy;
mod prefix;
pub mod service;
pub mod world;
pub mod yaml;

pub use machine::{Machine, Mode, Origin, Seen, Verdict, Would, reason};
pub use packet::Packet;
pub use policy::{Decision, Judgement};
pub use prefix::Prefix;
pub use world::World;

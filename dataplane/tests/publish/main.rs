//! The publisher over tables in memory, against judges of its own: what is published is what was meant, at every moment and after every crash.

mod build;
mod history;
mod judge;
mod random;
mod rig;
mod services;
mod single;
mod world;

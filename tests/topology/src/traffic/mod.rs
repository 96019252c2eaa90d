//! Traffic from and to namespaces: probes, echo servers, numbered datagrams, whole frames and captures.

mod capture;
mod client;
mod echo;
mod frame;
mod numbered;

pub use capture::{Capture, Captured, Counts, Direction, Frame};
pub use client::{Client, Outcome, echo, fresh_port};
pub use echo::{TcpEcho, UdpEcho};
pub use frame::RawLink;
pub use numbered::{NumberedReceiver, NumberedSender, Received, Stream};

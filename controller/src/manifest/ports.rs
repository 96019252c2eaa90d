//! Ports and protocols.

use super::read;
use crate::{
    diagnostic::Diagnostics,
    ports::{Ports, Transport, port_name},
    yaml::tree::{Fields, Node},
};

/// Reads `protocol`, which is TCP where it is left out.
pub(super) fn protocol(fields: &mut Fields<'_>, found: &mut Diagnostics) -> Option<Transport> {
    let Some(written) = fields.get("protocol") else { return Some(Transport::Tcp) };
    match written.text(found)? {
        "TCP" => Some(Transport::Tcp),
        "UDP" => Some(Transport::Udp),
        "SCTP" => Some(Transport::Sctp),
        other => {
            let help = format!("write {}", read::any(&["TCP", "UDP", "SCTP"]));
            found.push(written.error(format!("`{other}` is not a protocol with ports"), help));
            None
        }
    }
}

/// Reads a port's number.
pub(super) fn number(written: Node<'_>, found: &mut Diagnostics) -> Option<u16> {
    let number = written.integer(found)?;
    let port = u16::try_from(number).ok().filter(|&port| port > 0);
    if port.is_none() {
        found.push(written.error(format!("`{number}` is not a port"), "ports are 1 to 65535"));
    }
    port
}

/// Reads a port's name.
pub(super) fn name(written: Node<'_>, found: &mut Diagnostics) -> Option<String> {
    let name = written.text(found)?;
    if name.parse::<u16>().is_ok() {
        let message = format!("`{name}` in quotes would be the name of a port, and a name has a letter");
        found.push(written.error(message, format!("write the number without quotes: {name}")));
        return None;
    }
    if !port_name(name) || name.len() > 15 || name.contains("--") {
        let help = "a name is up to 15 small letters, digits and `-`, at least one letter, no `-` first, last or twice in a row; `any` is taken";
        found.push(written.error(format!("`{name}` cannot be the name of a port"), help));
        return None;
    }
    Some(name.to_owned())
}

/// Reads `start` and `end`.
pub(super) fn range(fields: &mut Fields<'_>, transport: Option<Transport>, found: &mut Diagnostics) -> Option<Ports> {
    let start = fields.required("start", found).and_then(|start| number(start, found));
    let end = fields.required("end", found).and_then(|end| number(end, found));
    fields.refuse_rest(found);
    let (first, last) = (start?, end?);
    if first >= last {
        let help = if first == last { "write a single port by its number" } else { "write the lower one as `start`" };
        found.push(fields.here().error(format!("`start` {first} is not less than `end` {last}"), help));
        return None;
    }
    Some(Ports::Range { transport: transport?, first, last })
}

/// Every port of a protocol.
pub(super) const fn every(transport: Transport) -> Ports {
    Ports::Range { transport, first: 1, last: u16::MAX }
}

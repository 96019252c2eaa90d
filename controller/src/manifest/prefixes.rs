//! Prefixes of addresses.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::{diagnostic::Diagnostics, policy::disguised, yaml::tree::Node};

/// Reads a prefix. Kubernetes takes one with bits set behind it; they mean nothing.
pub(super) fn prefix(written: Node<'_>, found: &mut Diagnostics) -> Option<IpNetwork> {
    let text = written.text(found)?;
    let Some(net) = parse(text) else {
        let help = match text.parse::<IpAddr>() {
            Ok(address) => format!("for the one address write `{}`", IpNetwork::from(address)),
            Err(_) => "write `198.51.100.0/24` or `2001:db8::/32`".to_owned(),
        };
        found.push(written.error(format!("`{text}` is not a prefix"), help));
        return None;
    };
    if let Some((message, help)) = disguised(text, net) {
        found.push(written.error(message, help));
        return None;
    }
    Some(net)
}

fn parse(text: &str) -> Option<IpNetwork> {
    let (address, length) = text.split_once('/')?;
    let digits = length.bytes().all(|byte| byte.is_ascii_digit());
    let length = digits.then(|| length.parse().ok()).flatten()?;
    let written = IpNetwork::new(address.parse().ok()?, length).ok()?;
    IpNetwork::new(written.network(), length).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_behind_a_prefix_are_masked() {
        for (text, meant) in [
            ("10.1.2.3/8", Some("10.0.0.0/8")),
            ("192.0.2.7/32", Some("192.0.2.7/32")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("2001:db8::7/32", Some("2001:db8::/32")),
            ("192.0.2.7", None),
            ("192.0.2.7/", None),
            ("192.0.2.7/33", None),
            ("192.0.2.7/+8", None),
            ("192.0.2.0/255.255.255.0", None),
            ("192.0.2/24", None),
            ("192.0.02.0/24", None),
        ] {
            assert_eq!(parse(text).map(|net| net.to_string()).as_deref(), meant, "{text}");
        }
    }
}
